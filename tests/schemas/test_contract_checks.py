"""Plans and prices of one subscription must go together, and no two subscriptions may come to bill one meter."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_checks import findings

PER_UNIT = {"model": "per_unit", "unit_price": "1"}
BASE: dict[str, Any] = {
    "meters": [
        {"id": meter, "event_type": "call", "aggregation": "count", "unit": "call"} for meter in ("calls", "others")
    ],
    "rate_cards": [
        {
            "id": card,
            "currency": currency,
            "versions": [
                {
                    "version": "v",
                    "effective_from": "2026-01-01T00:00:00Z",
                    "prices": dict.fromkeys(charges, PER_UNIT),
                }
            ],
        }
        for card, currency, charges in (
            ("usd", "USD", ("calls",)),
            ("eur", "EUR", ("calls",)),
            ("two", "USD", ("others",)),
            ("odd", "USD", ("calls",)),
        )
    ],
    "plans": [
        {"id": "usd", "rate_card": "usd", "charges": [{"id": "calls", "meter": "calls"}]},
        {"id": "eur", "rate_card": "eur", "charges": [{"id": "calls", "meter": "calls"}]},
        {"id": "two", "rate_card": "two", "charges": [{"id": "others", "meter": "others"}]},
        {"id": "odd", "rate_card": "odd", "charges": [{"id": "calls", "meter": "others"}]},
    ],
    "accounts": [{"id": "acme"}],
}


def subscription(id: str = "s", plan: str = "usd", **more: Any) -> dict[str, Any]:
    return {"id": id, "account": "acme", "plan": plan, "start": "2026-01-01T00:00:00Z", **more}


def change(plan: str, at: str = "2026-03-01T00:00:00Z") -> dict[str, Any]:
    return {"name": f"to-{plan}", "at": at, "plan": plan}


@pytest.mark.parametrize(
    ("subscriptions", "at", "message"),
    [
        pytest.param(
            [subscription(changes=[change("eur")])],
            ("subscriptions", 0, "changes", 0, "plan"),
            "its rate card eur is in EUR, expected USD as before the change",
            id="another currency",
        ),
        pytest.param(
            [subscription(changes=[change("odd")])],
            ("subscriptions", 0, "changes", 0, "plan"),
            "charge calls is the meter others in plan odd, expected the meter calls as before the change",
            id="another meter under the same charge",
        ),
        pytest.param(
            [subscription(), subscription("t", "two", changes=[change("usd")])],
            ("subscriptions", 1, "changes", 0, "plan"),
            "starts at 2026-03-01T00:00:00+00:00 while subscription s of the same account bills calls without end",
            id="a change to what another bills",
        ),
        pytest.param(
            [subscription(changes=[change("two")]), subscription("t", "usd", start="2026-02-01T00:00:00Z")],
            ("subscriptions", 1, "start"),
            "starts at 2026-02-01T00:00:00+00:00 while subscription s of the same account bills calls until "
            "2026-03-01T00:00:00+00:00",
            id="before another is changed away from it",
        ),
    ],
)
def test_a_contract_that_does_not_go_together(
    subscriptions: list[dict[str, Any]], at: tuple[Any, ...], message: str
) -> None:
    found = [one for one in checked(subscriptions) if one.at == at]
    assert [one.message for one in found] == [message]
    assert found[0].also is not None


@pytest.mark.parametrize(
    "subscriptions",
    [
        pytest.param(
            [subscription(changes=[change("two"), change("usd", "2026-05-01T00:00:00Z")])], id="there and back"
        ),
        pytest.param(
            [subscription(changes=[change("two")]), subscription("t", "usd", start="2026-03-01T00:00:00Z")],
            id="from when another is changed away from it",
        ),
        pytest.param(
            [subscription(end="2026-02-01T00:00:00Z", changes=[change("two")]), subscription("t", "two")],
            id="a change after the end",
        ),
    ],
)
def test_a_contract_that_goes_together(subscriptions: list[dict[str, Any]]) -> None:
    assert list(checked(subscriptions)) == []


def checked(subscriptions: list[dict[str, Any]]) -> Any:
    used = {one["plan"] for one in subscriptions} | {
        step["plan"] for one in subscriptions for step in one.get("changes", [])
    }
    assert used <= {plan["id"] for plan in BASE["plans"]}
    return findings(Catalog.model_validate({**deepcopy(BASE), "subscriptions": subscriptions}), {})
