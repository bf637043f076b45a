"""Where usage of a billing period is one charge under two plans, no term may tell the two apart."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_plan_checks import findings
from tests.schemas.test_catalog_files import problems, write

OWN = {"calls": {"model": "per_unit", "unit_price": "3"}}
NEW_YEAR = "2026-01-01T00:00:00Z"


def card(name: str) -> dict[str, Any]:
    prices = {"calls": {"model": "per_unit", "unit_price": "1"}, "fee": {"model": "fixed", "amount": "1"}}
    return {
        "id": name,
        "currency": "EUR",
        "versions": [{"version": "v", "effective_from": NEW_YEAR, "prices": prices}],
    }


BASE: dict[str, Any] = {
    "meters": [{"id": "calls", "event_type": "call", "aggregation": "count", "unit": "call"}],
    "rate_cards": [card("small"), card("large")],
    "plans": [
        {"id": name, "rate_card": name, "charges": [{"id": "calls", "meter": "calls"}, {"id": "fee"}]}
        for name in ("small", "large")
    ],
    "accounts": [{"id": "a", "tax": {"jurisdictions": ["DE"]}}, {"id": "b"}],
    "subscriptions": [
        {
            "id": "s",
            "account": "a",
            "plan": "small",
            "start": NEW_YEAR,
            "tiers_at_change": "carry_over",
            "changes": [{"name": "up", "at": "2026-03-10T00:00:00Z", "plan": "large"}],
        }
    ],
}


def catalog(subscription: dict[str, Any], **more: Any) -> dict[str, Any]:
    made = deepcopy({**BASE, **more})
    made["subscriptions"][0].update(subscription)
    return made


def discount(**more: Any) -> dict[str, Any]:
    return {"discounts": [{"id": "d", "percent": "5", "plans": ["large"], **more}]}


def credit(**more: Any) -> dict[str, Any]:
    grant = {"account": "a", "amount": "1", "currency": "EUR", "effective_from": NEW_YEAR, "plans": ["large"]}
    return {"grants": [{"id": "g", **grant, **more}]}


def promise(**more: Any) -> dict[str, Any]:
    one = {"account": "a", "kind": "minimum", "amount": "1", "currency": "EUR", "start": NEW_YEAR, "plans": ["small"]}
    return {"commitments": [{"id": "c", **one, **more}]}


COUPON = {"id": "r", "discount": "d", "redeemed_at": "2026-01-05T00:00:00Z"}
AT = {
    "discounts": ("discounts", 0, "plans"),
    "grants": ("grants", 0, "plans"),
    "commitments": ("commitments", 0, "plans"),
}
RESTART = {"tiers_at_change": "restart"}
KEPT = {**RESTART, "prices": OWN}


@pytest.mark.parametrize("subscription", [pytest.param({}, id="carried"), pytest.param(KEPT, id="own price")])
@pytest.mark.parametrize(
    "terms",
    [
        pytest.param(discount(), id="discount"),
        pytest.param(discount(accounts=["a"], charges=["calls"], meters=["calls"]), id="of the account's usage"),
        pytest.param(
            discount(subscriptions=["s"], start="2026-03-01T00:00:00Z", end="2026-03-02T00:00:00Z"), id="then"
        ),
        pytest.param(discount(code="X") | {"redemptions": [{**COUPON, "account": "a"}]}, id="coupon"),
        pytest.param(discount(code="X") | {"redemptions": [{**COUPON, "subscription": "s"}]}, id="its coupon"),
        pytest.param(credit(), id="grant"),
        pytest.param(credit(expires="2026-03-02T00:00:00Z"), id="grant until then"),
        pytest.param(promise(), id="commitment"),
    ],
)
def test_a_scope_that_tells_the_plans_apart_is_refused(subscription: dict[str, Any], terms: dict[str, Any]) -> None:
    (found,) = findings(Catalog.model_validate(catalog(subscription, **terms)))
    assert found.at in AT.values()
    assert found.also == ("subscriptions", 0, "changes", 0)
    assert "goes from plan small to large within a billing period" in found.message
    assert ("tiers carry over" if subscription == {} else "own price stays") in found.message


@pytest.mark.parametrize(
    ("subscription", "terms"),
    [
        pytest.param({}, discount(plans=["small", "large"]), id="both plans"),
        pytest.param({}, discount(plans=[]), id="no plan"),
        pytest.param({}, discount(charges=["fee"]), id="a fee says its plan"),
        pytest.param({}, discount(accounts=["b"]), id="of another account"),
        pytest.param({}, discount(start="2026-03-02T00:00:00Z"), id="a later discount"),
        pytest.param({}, discount(code="X") | {"redemptions": [{**COUPON, "account": "b"}]}, id="another's coupon"),
        pytest.param({}, credit(account="b"), id="another's grant"),
        pytest.param({}, credit(expires="2026-03-01T00:00:00Z"), id="a grant that has expired"),
        pytest.param({}, credit(effective_from="2026-04-01T00:00:00Z"), id="a later grant"),
        pytest.param({}, promise(start="2026-03-02T00:00:00Z"), id="a later commitment"),
        pytest.param(RESTART, discount(), id="keys that say their plan"),
        pytest.param({**KEPT, "changes": [{**BASE["subscriptions"][0]["changes"][0], "prices": OWN}]}, discount(),
                     id="another price of its own"),
        pytest.param({"changes": [{"name": "up", "at": "2026-03-01T00:00:00Z", "plan": "large"}]}, discount(),
                     id="a change with a period"),
        pytest.param({"time_zone": "Europe/Berlin", "changes": [
            {"name": "up", "at": "2026-03-31T22:00:00Z", "plan": "large"}]}, discount(), id="with a local period"),
        pytest.param({"trial": {"until": "2026-03-10T00:00:00Z"}}, discount(), id="a trial until the change"),
        pytest.param({"end": "2026-03-10T00:00:00Z"}, discount(), id="an end before the change"),
    ],
)  # fmt: skip
def test_a_scope_that_does_not_is_accepted(subscription: dict[str, Any], terms: dict[str, Any]) -> None:
    assert list(findings(Catalog.model_validate(catalog(subscription, **terms)))) == []


def test_tax_that_would_tell_them_apart_is_refused() -> None:
    made = catalog({})
    made["plans"][1]["charges"][0]["product_code"] = "saas"
    made["rate_cards"][1]["prices_include_tax"] = True
    found = list(findings(Catalog.model_validate(made)))
    assert [one.at for one in found] == [("subscriptions", 0, "changes", 0)] * 2
    assert "the product code of charge calls changes from none to saas within a billing period" in found[0].message
    assert "whether the prices of charge calls include tax changes within a billing period" in found[1].message
    made["accounts"][0]["tax"] = None
    assert list(findings(Catalog.model_validate(made))) == []


def test_it_is_reported_with_file_and_line(tmp_path: Path) -> None:
    text = """\
meters: [{id: calls, event_type: call, aggregation: count, unit: call}]
rate_cards:
  - {id: c, currency: EUR, versions: [{version: v, effective_from: 2026-01-01T00:00:00Z,
     prices: {calls: {model: per_unit, unit_price: 1}}}]}
plans:
  - {id: small, rate_card: c, charges: [{id: calls, meter: calls}]}
  - {id: large, rate_card: c, charges: [{id: calls, meter: calls}]}
accounts: [{id: a}]
subscriptions:
  - id: s
    account: a
    plan: small
    start: 2026-01-01T00:00:00Z
    tiers_at_change: carry_over
    changes:
      - {name: up, at: 2026-03-10T00:00:00Z, plan: large}
discounts:
  - id: d
    percent: 5
    plans: [large]
"""
    assert problems(write(tmp_path, all=text)) == [
        "all.yaml:20: discount d, plans: subscription s goes from plan small to large within a billing period, where "
        "its tiers carry over, so that usage of charge calls cannot be told apart by plan; name both plans, leave "
        "`plans` out, or let the plan change with a billing period (line 16)"
    ]
