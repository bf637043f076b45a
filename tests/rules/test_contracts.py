"""Contracts: own prices, ramps, plan changes and trials, and what the price in force is called."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.schemas.calendars import moved_on
from meterline.schemas.catalog import Catalog
from meterline.schemas.meters import Aggregation
from meterline.schemas.records import RatingKey
from meterline.transforms.rules.aggregation import Cell, Usage
from meterline.transforms.rules.attribution import Directory, Segment
from meterline.transforms.rules.fees import charges_without_usage
from meterline.transforms.rules.line_items import line_items
from meterline.transforms.rules.prices.parts import NoPriceError
from meterline.transforms.rules.pricing import charge

MODELS: dict[str, Any] = {
    "meters": [{"id": "calls", "event_type": "call", "aggregation": "count", "unit": "call"}],
    "rate_cards": [
        {
            "id": card,
            "currency": "USD",
            "versions": [
                {
                    "version": version,
                    "effective_from": since,
                    "prices": {
                        "calls": {"model": "per_unit", "unit_price": str(price)},
                        "fee": {"model": "fixed", "amount": str(30 * price)},
                    },
                }
                for version, since, price in versions
            ],
        }
        for card, versions in {
            "one": [("v1", "2025-01-01T00:00:00Z", 1), ("v2", "2026-07-01T00:00:00Z", 2)],
            "two": [("v1", "2025-01-01T00:00:00Z", 3)],
        }.items()
    ],
    "plans": [
        {"id": "basic", "rate_card": "one", "charges": [{"id": "calls", "meter": "calls"}, {"id": "fee"}]},
        {"id": "plus", "rate_card": "two", "charges": [{"id": "calls", "meter": "calls"}, {"id": "fee"}]},
        {"id": "bare", "rate_card": "two", "charges": [{"id": "fee"}]},
    ],
    "accounts": [{"id": "acme"}],
}
START = "2026-01-31T10:00:00Z"


def per_unit(price: str) -> dict[str, str]:
    return {"model": "per_unit", "unit_price": price}


def book(**contract: Any) -> Directory:
    subscription = {"id": "s", "account": "acme", "plan": "basic", "start": START, **contract}
    return Directory(Catalog.model_validate({**MODELS, "subscriptions": [subscription]}))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def segment(known: Directory, instant: str) -> Segment:
    return known.segment_at("acme", "calls", at(instant))


def price(known: Directory, name: str) -> Decimal:
    priced = known.price_of("s", "calls", name, ())
    assert priced is not None
    return priced.price.unit_price  # type: ignore[union-attr]


RAMP = [
    {"name": "month-4", "contract_month": 4, "prices": {"calls": per_unit("0.8")}},
    {"name": "move", "at": "2026-06-10T12:00:00Z", "plan": "plus"},
    {"name": "fees", "at": "2026-08-01T00:00:00Z", "prices": {"fee": {"model": "fixed", "amount": "7"}}},
    {"name": "less", "at": "2026-09-01T00:00:00Z", "plan": "bare"},
    {"name": "back", "at": "2026-10-01T00:00:00Z", "plan": "basic", "prices": {"calls": per_unit("0.7")}},
]


@pytest.mark.parametrize(
    ("contract", "instant", "name", "unit_price"),
    [
        pytest.param({}, "2026-02-01", "v1", "1", id="the rate card"),
        pytest.param({}, "2026-07-01", "v2", "2", id="its next version"),
        pytest.param({"prices": {"calls": per_unit("0.9")}}, "2026-02-01", "contract:start", "0.9", id="its own"),
        pytest.param({"prices": {"calls": per_unit("0.9")}}, "2026-07-01", "contract:start", "0.9", id="in all time"),
        pytest.param({"changes": RAMP}, "2026-04-30T09:59:59", "v1", "1", id="before month 4 of a start on the 31st"),
        pytest.param({"changes": RAMP}, "2026-04-30T10:00", "contract:month-4", "0.8", id="month 4"),
        pytest.param({"changes": RAMP}, "2026-08-01", "contract:month-4", "0.8", id="kept on another plan"),
        pytest.param({"changes": RAMP[1:]}, "2026-06-10T11:59:59", "v1", "1", id="before a change of plan"),
        pytest.param({"changes": RAMP[1:]}, "2026-06-10T12:00", "plus/v1", "3", id="after it"),
        pytest.param({"changes": RAMP[1:]}, "2026-10-01", "contract:back", "0.7", id="and back with a price"),
        pytest.param({"changes": [RAMP[1], {**RAMP[4], "prices": {}}]}, "2026-10-01", "v2", "2", id="and back"),
        pytest.param({"trial": {"days": 14}}, "2026-02-14T09:59:59", "trial:v1", "0", id="a trial"),
        pytest.param({"trial": {"days": 14}}, "2026-02-14T10:00", "v1", "1", id="after it"),
        pytest.param(
            {"trial": {"until": "2026-07-05T00:00:00Z"}, "changes": RAMP}, "2026-07-04", "trial:contract:month-4", "0",
            id="of another price",
        ),
    ],
)  # fmt: skip
def test_the_price_in_force_and_its_name(contract: dict[str, Any], instant: str, name: str, unit_price: str) -> None:
    known = book(**contract)
    found = segment(known, instant)
    assert (found.subscription_id, found.charge_id, found.rate_card_version) == ("s", "calls", name)
    assert price(known, name) == Decimal(unit_price)
    for edge in (found.start, found.end - (at("2026-01-02") - at("2026-01-01")) / 86_400):
        assert segment(known, edge.isoformat()[:19]) == found


MOVE = {"name": "move", "at": "2026-06-10T12:00:00Z", "plan": "plus"}
CARRIED = {"tiers_at_change": "carry_over"}
OWN = {"prices": {"calls": per_unit("0.9")}}
TRIAL = {"trial": {"until": "2026-06-10T12:00:00Z"}}


@pytest.mark.parametrize(
    ("contract", "month", "name", "plan"),
    [
        pytest.param({"changes": [MOVE]}, 6, "v1", "basic", id="a version of its own plan"),
        pytest.param({"changes": [MOVE]}, 6, "plus/v1", "plus", id="of another"),
        pytest.param({"changes": [MOVE], **CARRIED}, 6, "carried:", "basic", id="the first of the period"),
        pytest.param({"changes": [MOVE], **CARRIED}, 7, "carried:", "plus", id="of the next period"),
        pytest.param({"plan": "bare", "changes": [MOVE], **CARRIED}, 6, "carried:", "plus", id="that has the charge"),
        pytest.param({"changes": [MOVE], **CARRIED, **TRIAL}, 6, "carried:", "plus", id="outside of a trial"),
        pytest.param({"changes": [MOVE], **CARRIED, **TRIAL}, 6, "trial:carried:", "basic", id="in the trial"),
        pytest.param({"changes": [MOVE], **OWN}, 6, "contract:start", "basic", id="an own price"),
        pytest.param({"changes": [MOVE], **OWN}, 7, "contract:start", "plus", id="an own price that stays"),
        pytest.param({"plan": "bare", "changes": [MOVE], **OWN}, 6, "contract:start", "plus", id="waiting for a plan"),
        pytest.param({"changes": [{**MOVE, **OWN}]}, 6, "contract:move", "plus", id="that comes with the plan"),
    ],
)
def test_the_plan_of_a_key(contract: dict[str, Any], month: int, name: str, plan: str) -> None:
    bounds = at(f"2026-0{month}-01"), at(f"2026-0{month + 1}-01")
    assert book(**contract).plan_of(RatingKey("default", "acme", "s", "calls", "calls", name, *bounds, ())) == plan


def test_usage_is_unpriced_while_the_plan_does_not_bill_it() -> None:
    known = book(changes=RAMP)
    found = segment(known, "2026-09-15")
    assert (found.subscription_id, found.rate_card_version) == ("", "")
    assert (found.start, found.end) == (at("2026-09-01"), at("2026-10-01"))


def test_a_name_that_the_catalog_does_not_have_has_no_price() -> None:
    known = book(changes=RAMP)
    for name in ("v9", "plus/v9", "plan-x/v1", "contract:none", "trial:v9", "contract:fees", "contract:start"):
        assert known.price_of("s", "calls", name, ()) is None, name


def fees(known: Directory, label: str) -> dict[tuple[str, str], Decimal]:
    return {
        (one.key.charge_id, one.key.rate_card_version): billed.amount
        for one, billed, _, _ in charges_without_usage(label, known, [])
    }


@pytest.mark.parametrize(
    ("contract", "label", "expected"),
    [
        pytest.param({}, "2026-07", {"v2": "60"}, id="the version at the period's start"),
        pytest.param({}, "2026-06", {"v1": "30"}, id="all of the period"),
        pytest.param(
            {"changes": RAMP}, "2026-06", {"v1": "9.5", "plus/v1": "61.5"}, id="a change of plan, to the second"
        ),
        pytest.param({"changes": RAMP}, "2026-08", {"contract:fees": "7"}, id="its own fee, from a period's start"),
        pytest.param({"changes": RAMP}, "2026-09", {"contract:fees": "7"}, id="kept on another plan"),
        pytest.param(
            {"trial": {"until": "2026-06-11T00:00:00Z"}}, "2026-06", {"trial:v1": "0", "v1": "20"}, id="a trial"
        ),
        pytest.param({"trial": {"days": 366}}, "2026-06", {"trial:v1": "0"}, id="all in a trial"),
        pytest.param(
            {"changes": [{"name": "a", "at": "2026-06-11T00:00:00Z", "plan": "plus"},
                         {"name": "b", "at": "2026-06-21T00:00:00Z", "plan": "basic"}]},
            "2026-06", {"v1": "20", "plus/v1": "30"}, id="there and back",
        ),
    ],
)  # fmt: skip
def test_fees_of_a_contract(contract: dict[str, Any], label: str, expected: dict[str, str]) -> None:
    assert fees(book(**contract), label) == {("fee", name): Decimal(amount) for name, amount in expected.items()}


def test_a_fee_that_is_not_prorated_is_due_once_for_a_period() -> None:
    whole = {"model": "fixed", "amount": "12", "prorate": "none"}
    changes = [{"name": "rise", "at": "2026-06-11T00:00:00Z", "prices": {"fee": {**whole, "amount": "15"}}}]
    assert fees(book(prices={"fee": whole}, changes=changes), "2026-06") == {
        ("fee", "contract:start"): 12,
        ("fee", "contract:rise"): 0,
    }
    after_trial = book(prices={"fee": whole}, trial={"until": "2026-06-11T00:00:00Z"})
    assert fees(after_trial, "2026-06") == {("fee", "trial:contract:start"): 0, ("fee", "contract:start"): 12}


def test_what_is_due_at_zero_usage_is_due_once_and_not_in_a_trial() -> None:
    least = {**per_unit("1"), "minimum": "5"}
    more = {"name": "more", "at": "2026-06-11T00:00:00Z", "prices": {"calls": {**least, "minimum": "6"}}}
    found = fees(book(prices={"calls": least}, changes=[more]), "2026-06")
    assert {name: amount for (charge, name), amount in found.items() if charge == "calls"} == {"contract:start": 5}
    trial = {"until": "2026-06-12T00:00:00Z"}
    found = fees(book(prices={"calls": least}, changes=[more], trial=trial), "2026-06")
    assert {name: amount for (charge, name), amount in found.items() if charge == "calls"} == {"contract:more": 6}


TIERED = {"model": "graduated", "tiers": [{"up_to": "10", "unit_price": "1"}, {"unit_price": "0.5"}]}
CHEAPER = {"model": "graduated", "tiers": [{"up_to": "10", "unit_price": "0.8"}, {"unit_price": "0.4"}]}
CARRIED: dict[str, Any] = {
    "tiers_at_change": "carry_over",
    "prices": {"calls": TIERED},
    "changes": [{"name": "cheaper", "at": "2026-06-11T00:00:00Z", "prices": {"calls": CHEAPER}}],
}


def rated(known: Directory, usage: dict[str, int]) -> list[Decimal]:
    """Amounts of the line items of June's usage, by window, of so many calls in each."""
    found = []
    by_key: dict[RatingKey, dict[Cell, Usage]] = {}
    for instant, calls in usage.items():
        one = segment(known, instant)
        names = (one.subscription_id, one.charge_id, "calls", one.rate_card_version)
        key = RatingKey("default", "acme", *names, one.period_start, one.period_end, ())
        cell = Cell(int(at(instant).timestamp()), "acme")
        by_key.setdefault(key, {})[cell] = Usage(calls, None)
    for key, cells in by_key.items():
        priced = known.price_of(key.subscription_id, key.charge_id, key.rate_card_version, ())
        found += list(line_items(key, Aggregation.COUNT, priced, cells))
    return [item.amount for item in sorted(found, key=lambda item: item.window_start)]


@pytest.mark.parametrize(
    ("tiers", "amounts"),
    [
        pytest.param("carry_over", ["6", "4.8", "0.4"], id="go on: 6 at 1, then 4 and 4 of both tiers, then 1"),
        pytest.param("restart", ["6", "6.4", "0.8"], id="begin anew: 8 of the first tier, and 1 more"),
    ],
)
def test_tiers_at_a_change_of_price(tiers: str, amounts: list[str]) -> None:
    known = book(**{**CARRIED, "tiers_at_change": tiers})
    usage = {"2026-06-10T23:00": 6, "2026-06-11T00:00": 8, "2026-06-30T23:00": 1}
    assert rated(known, usage) == [Decimal(amount) for amount in amounts]


def test_a_key_whose_tiers_carry_over_is_one_for_the_period_but_for_a_trial() -> None:
    known = book(**CARRIED, trial={"until": "2026-06-05T10:30:00Z"})
    names = {segment(known, f"2026-06-{day:02}T12:00").rate_card_version for day in range(1, 31)}
    assert names == {"carried:", "trial:carried:"}
    assert rated(known, {"2026-06-05T09:00": 9, "2026-06-05T11:00": 9, "2026-06-12T11:00": 2}) == [
        0,
        9,
        Decimal("0.8") + Decimal("0.4"),
    ]


@given(st.lists(st.tuples(st.integers(0, 719), st.integers(1, 20)), min_size=1, max_size=8))
def test_what_carries_over_adds_up_however_it_is_cut_into_windows(cells: list[tuple[int, int]]) -> None:
    usage: dict[str, int] = {}
    for hour, calls in cells:
        name = f"2026-06-{hour // 24 + 1:02}T{hour % 24:02}:00"
        usage[name] = usage.get(name, 0) + calls
    before = sum(calls for name, calls in usage.items() if name < "2026-06-11")
    total = sum(usage.values())
    known = book(**CARRIED)
    first, second = (known.price_of("s", "calls", f"contract:{name}", ()).price for name in ("start", "cheaper"))  # type: ignore[union-attr]
    expected = charge(first, Decimal(before)) + charge(second, Decimal(total)) - charge(second, Decimal(before))  # type: ignore[arg-type]
    assert sum(rated(known, usage)) == expected


def test_a_price_that_has_no_row_in_some_of_the_period_refuses_the_key() -> None:
    matrix = {"model": "matrix", "rows": [{"when": {"model": "a"}, "price": TIERED}]}
    missing = {**CARRIED, "changes": [{"name": "c", "at": "2026-06-11T00:00:00Z", "prices": {"calls": matrix}}]}
    with pytest.raises(NoPriceError):
        rated(book(**missing), {"2026-06-02T00:00": 1})
    assert rated(book(**missing), {"2026-05-02T00:00": 1}) == [1]


@pytest.mark.parametrize(
    ("start", "zone", "months", "days", "later"),
    [
        ("2026-01-31T10:00", "UTC", 1, 0, "2026-02-28T10:00"),
        ("2024-02-29T10:00", "UTC", 12, 0, "2025-02-28T10:00"),
        ("2024-02-29T10:00", "UTC", 48, 0, "2028-02-29T10:00"),
        ("2026-03-01T23:00", "Europe/Berlin", 1, 0, "2026-04-01T22:00"),
        ("2026-03-28T01:30", "Europe/Berlin", 0, 1, "2026-03-29T01:30"),
        ("2026-10-24T00:30", "Europe/Berlin", 0, 1, "2026-10-25T00:30"),
        ("2026-10-25T01:30", "Europe/Berlin", 0, 1, "2026-10-26T01:30"),
    ],
)
def test_the_clock_shows_the_same_later(start: str, zone: str, months: int, days: int, later: str) -> None:
    assert moved_on(at(start), zone, months=months, days=days) == at(later)


@given(
    moments=st.lists(st.integers(1, 400 * 24), min_size=1, max_size=4, unique=True).map(sorted),
    plans=st.lists(st.sampled_from(["basic", "plus", None]), min_size=4, max_size=4),
    owns=st.lists(st.sampled_from(["", "0.5", "2.5"]), min_size=4, max_size=4),
    trial=st.one_of(st.none(), st.integers(1, 400)),
    month=st.integers(2, 12),
)
def test_seconds_of_a_fee_are_paid_once_whatever_the_contract(
    moments: list[int], plans: list[str | None], owns: list[str], trial: int | None, month: int
) -> None:
    """At one price everywhere, the parts of a period add up to what a subscription without changes pays."""
    changes = []
    for number, (moment, plan, own) in enumerate(zip(moments, plans, owns)):
        begin = datetime.fromtimestamp(at(START[:-1]).timestamp() + 3600 * moment, UTC)
        prices = {"fee": {"model": "fixed", "amount": "30"}} | ({"calls": per_unit(own)} if own else {})
        changes.append(
            {"name": f"c{number}", "at": begin.isoformat(), "prices": prices} | ({"plan": plan} if plan else {})
        )
    same = {"fee": {"model": "fixed", "amount": "30"}}
    label = f"2026-{month:02}"
    whole = sum(amount for (charge, _), amount in fees(book(prices=same), label).items() if charge == "fee")
    found = fees(book(prices=same, changes=changes), label)
    parts = [amount for (charge, _), amount in found.items() if charge == "fee"]
    assert abs(sum(parts) - whole) <= len(parts) * Decimal("1e-18")
    if trial:
        free = fees(book(prices=same, changes=changes, trial={"days": trial}), label)
        assert sum(amount for (charge, _), amount in free.items() if charge == "fee") <= whole + Decimal("1e-17")
        assert all(not amount for (_, name), amount in free.items() if name.startswith("trial:"))
