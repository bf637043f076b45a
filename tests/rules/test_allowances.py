"""Included units that are carried over: as a naive account of single units says, and never more than was left."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterline.schemas.catalog import LOCAL_TIME, Catalog
from meterline.schemas.records import Invoice, RatingKey
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.billing.contracts import contracts
from meterline.transforms.rules.fees import Billed, BilledKey
from meterline.transforms.rules.invoicing import Statement, next_invoice
from meterline.transforms.rules.periods import billing_periods, period_with_label
from meterline.transforms.rules.pricing import charge

NOW = datetime(2027, 1, 1, tzinfo=UTC)
START = "2026-01-01T00:00:00Z"
LABELS = tuple(f"2026-0{month}" for month in range(1, 7))
FREE: dict[str, Any] = {"model": "per_unit", "unit_price": "1"}


def book(*prices: tuple[str, dict[str, Any]], **subscription: Any) -> Directory:
    """A charge with prices, each from an instant on; its versions are called v0, v1 …"""
    versions = [
        {"version": f"v{number}", "effective_from": since, "prices": {"calls": price}}
        for number, (since, price) in enumerate(prices)
    ]
    return Directory(
        Catalog.model_validate(
            {
                "meters": [{"id": "calls", "event_type": "call", "aggregation": "count", "unit": "call"}],
                "rate_cards": [{"id": "card", "currency": "EUR", "versions": versions}],
                "plans": [{"id": "plan", "rate_card": "card", "charges": [{"id": "calls", "meter": "calls"}]}],
                "accounts": [{"id": "a"}],
                "subscriptions": [{"id": "s", "account": "a", "plan": "plan", "start": START, **subscription}],
            }
        )
    )


def priced(included: int, periods: int = 1, maximum: int | None = None, **more: Any) -> dict[str, Any]:
    rule = {"periods": periods, **({} if maximum is None else {"maximum": str(maximum)})}
    return {**FREE, "included": str(included), "included_rollover": rule, **more}


Usage = dict[tuple[str, str], int]  # By label and version.


def key(of: Directory, label: str, version: str) -> RatingKey:
    period = period_with_label(label, of.subscriptions["s"].calendar)
    assert period
    return RatingKey("default", "a", "s", "calls", "calls", version, period.start, period.end, ())


def bill(of: Directory, label: str, usage: Usage, issued: list[Invoice]) -> Invoice | None:
    posted: dict[BilledKey, Billed] = {}
    for line in (line for invoice in issued if invoice.period == label for line in invoice.lines):
        one = BilledKey(line.key, line.account_id, line.kind, line.source)
        before = posted.get(one, Billed(Decimal(0), Decimal(0)))
        posted[one] = Billed(before.quantity + line.quantity, before.amount + line.amount)
    due, earlier = {}, {}
    for (when, version), units in usage.items():
        about = key(of, when, version)
        price = of.price_of("s", "calls", version, ())
        assert price
        assert price.price
        if when == label:
            due[BilledKey(about, "a")] = Billed(Decimal(units), charge(price.price, Decimal(units)))
        elif when < label:
            earlier[about] = Decimal(units)
    number = sum(invoice.period == label for invoice in issued)
    statement = Statement("default", "a", label, "EUR", due, posted, number, earlier=earlier)
    return next_invoice(statement, of, status="issued", made_at=NOW, rounding="half_even")


def taken(of: Directory, label: str, usage: Usage) -> Decimal:
    invoice = bill(of, label, usage, [])
    return (
        -sum((line.amount for line in invoice.lines if line.kind == "rollover"), Decimal(0)) if invoice else Decimal(0)
    )


def by_single_units(included: int, periods: int, maximum: int | None, used: list[int]) -> list[int]:
    """What each period takes, by an account of single units: when each lapses."""
    shelf: list[int] = []
    takes = []
    for number, units in enumerate(used):
        shelf = sorted(last for last in shelf if last >= number)
        asked = max(units - included, 0)
        takes.append(min(asked, len(shelf)))
        shelf = shelf[takes[-1] :]
        shelf = [last for last in shelf if last > number] + [number + periods] * max(included - units, 0)
        if maximum is not None:
            shelf = shelf[max(len(shelf) - maximum, 0) :]
    return takes


histories = st.lists(st.integers(0, 25), min_size=len(LABELS), max_size=len(LABELS))


@given(used=histories, included=st.integers(1, 12), periods=st.integers(1, 4), maximum=st.none() | st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_each_period_takes_what_single_units_say(
    used: list[int], included: int, periods: int, maximum: int | None
) -> None:
    of = book((START, priced(included, periods, maximum)))
    usage = {(label, "v0"): units for label, units in zip(LABELS, used) if units}
    found = [taken(of, label, usage) for label in LABELS]
    assert found == by_single_units(included, periods, maximum, used)
    for end in range(len(LABELS)):  # Never more than was left, at any time.
        left = sum(max(included - units, 0) for units in used[:end])
        assert sum(found[: end + 1]) <= left


@pytest.mark.parametrize(
    ("included", "used", "last"),
    [
        pytest.param(9, [5, 12], 3, id="AT&T: of 9 GB and 4 GB carried over, 12 GB take 3"),
        pytest.param(9, [5, 12, 12], 0, id="and the other 1 lapses"),
        pytest.param(15, [4, 6, 30], 9, id="AT&T: what a month does not use is lost, but for its own"),
    ],
)
def test_published_cases(included: int, used: list[int], last: int) -> None:
    usage = {(label, "v0"): units for label, units in zip(LABELS, used)}
    assert taken(book((START, priced(included))), LABELS[len(used) - 1], usage) == last


prices = st.sampled_from([
    priced(5, 2),
    priced(5, 3, 7, unit_price="0.333"),
    priced(3, 1, minimum="2", maximum="9"),
    priced(4, 2, fee_per_event="0.05"),
    {"model": "graduated", "tiers": [{"up_to": "6", "unit_price": "0.7"}, {"unit_price": "0.2", "flat_fee": "3"}],
     "included": "5", "included_rollover": {"periods": 2}},
    {"model": "volume", "tiers": [{"up_to": "6", "unit_price": "1"}, {"unit_price": "0.1"}], "included": "5",
     "included_rollover": {"periods": 2}},
    {"model": "stairstep", "steps": [{"up_to": "6", "price": "4"}, {"price": "6"}], "included": "5",
     "included_rollover": {"periods": 1}},
])  # fmt: skip
steps = st.lists(st.tuples(st.sampled_from(LABELS), st.integers(0, 20)), min_size=1, max_size=8)


@given(price=prices, steps=steps, order=st.permutations(LABELS))
@settings(max_examples=150, deadline=None)
def test_late_usage_settles_itself_whatever_was_issued_when(
    price: dict[str, Any], steps: list[tuple[str, int]], order: list[str]
) -> None:
    of = book((START, price))
    issued: list[Invoice] = []
    usage: Usage = {}
    for label, units in steps:
        usage[label, "v0"] = units
        issued += filter(None, [bill(of, label, usage, issued)])
        assert bill(of, label, usage, issued) is None
        for each in LABELS:
            total = sum(one.total for one in issued if one.period == each)
            assert total >= 0
    for label in order:
        issued += filter(None, [bill(of, label, usage, issued)])
        assert bill(of, label, usage, issued) is None
    for label in LABELS:
        at_once = bill(of, label, usage, [])
        billed = sum(one.total for one in issued if one.period == label)
        assert billed == (at_once.total if at_once else 0)


MIDDLE = "2026-02-15T00:00:00Z"


@pytest.mark.parametrize(
    ("versions", "usage", "label", "units"),
    [
        pytest.param([priced(10)], {"01 v0": 4, "02 v0": 30}, "02", 6, id="priced where they are used"),
        pytest.param(
            [priced(10), priced(20)], {"01 v0": 4, "02 v0": 13, "02 v1": 30}, "02", 6,
            id="prices of one period take one after another",
        ),
        pytest.param([priced(10), priced(20)], {"02 v0": 4, "02 v1": 5, "03 v1": 90}, "03", 15,
                     id="a period leaves what the last price in it has left"),
        pytest.param([priced(10), FREE], {"02 v0": 4, "03 v1": 9}, "03", 0, id="a price without them takes none"),
        pytest.param([FREE, priced(10)], {"02 v0": 4, "02 v1": 3, "03 v1": 90}, "03", 7, id="and leaves none"),
        pytest.param([priced(10), FREE], {"01 v0": 1, "02 v0": 15, "02 v1": 5}, "02", 5,
                     id="and does not keep the one before it from taking"),
    ],
)  # fmt: skip
def test_prices_that_change(versions: list[dict[str, Any]], usage: dict[str, int], label: str, units: int) -> None:
    of = book(*zip((START, MIDDLE), versions))
    by_key = {(f"2026-{name[:2]}", name[3:]): used for name, used in usage.items()}
    assert taken(of, f"2026-{label}", by_key) == units


@pytest.mark.parametrize(
    ("subscription", "label", "units"),
    [
        pytest.param({}, "2026-02", 10, id="covered from its start"),
        pytest.param({"start": "2026-01-01T00:00:01Z"}, "2026-02", 0, id="a period that began before leaves nothing"),
        pytest.param({"start": "2026-01-01T00:00:01Z"}, "2026-03", 10, id="the next one does"),
        pytest.param(
            {"trial": {"until": "2026-01-20T00:00:00Z"}}, "2026-02", 0, id="nor one that a trial reaches into"
        ),
        pytest.param({"trial": {"until": "2026-02-01T00:00:00Z"}}, "2026-02", 0, id="or fills"),
        pytest.param({"trial": {"until": "2026-02-01T00:00:00Z"}}, "2026-03", 10, id="after it"),
    ],
)
def test_periods_that_are_cut(subscription: dict[str, Any], label: str, units: int) -> None:
    of = book((START, priced(10)), **subscription)
    assert taken(of, label, {(label, "v0"): 100}) == units


def test_bands_of_time_have_nothing_of_what_a_price_without_bands_left() -> None:
    times = [{"days": ["mon"]}]
    bands = {"model": "time_of_day", "bands": [{"name": "peak", "times": times, "price": priced(5)}], "default": FREE}
    of = book((START, priced(10)), ("2026-02-01T00:00:00Z", bands))
    assert banded(of, "2026-02", 100) == 0
    assert banded(of, "2026-03", 100) == 5


def banded(of: Directory, label: str, units: int) -> Decimal:
    """What usage in the band takes, where there was none before."""
    about = key(of, label, "v1")._replace(dimensions=((LOCAL_TIME, "peak"),))
    price = of.price_of("s", "calls", "v1", about.dimensions)
    assert price
    assert price.price
    due = {BilledKey(about, "a"): Billed(Decimal(units), charge(price.price, Decimal(units)))}
    invoice = next_invoice(
        Statement("default", "a", label, "EUR", due, {}, 0), of, status="issued", made_at=NOW, rounding="half_even"
    )
    assert invoice
    return -sum((line.amount for line in invoice.lines if line.kind == "rollover"), Decimal(0))


def test_a_unit_less_may_cost_more_and_is_not_charged_for() -> None:
    volume = {"model": "volume", "tiers": [{"up_to": "10", "unit_price": "1"}, {"unit_price": "0.1"}]}
    of = book((START, {**volume, "included": "5", "included_rollover": {}}))
    assert taken(of, "2026-02", {("2026-02", "v0"): 16}) == 0  # 11 at 0.10 cost less than 6 at 1.
    assert taken(of, "2026-02", {("2026-02", "v0"): 12}) == 5  # 7 at 1, and 2.


def test_what_one_price_gives_back_is_not_told_by_the_terms_of_another() -> None:
    of = book((START, priced(10)), (MIDDLE, priced(20)))
    first = bill(of, "2026-02", {("2026-02", "v0"): 13, ("2026-02", "v1"): 25}, [])
    assert first
    assert [(one.key.rate_card_version, one.amount) for one in first.lines if one.kind == "rollover"] == [
        ("v0", -3),
        ("v1", -5),
    ]
    later = bill(of, "2026-02", {("2026-02", "v0"): 2, ("2026-02", "v1"): 25}, [first])
    assert later
    (back,) = (one for one in later.lines if one.kind == "rollover")
    assert (back.key.rate_card_version, back.amount, back.terms) == ("v0", 3, "")


def test_an_account_that_pays_for_the_subscription_of_another_has_nothing_carried_over() -> None:
    of = book((START, priced(10)))
    assert contracts(of).carries_over(key(of, "2026-02", "v0"))
    assert not contracts(of).carries_over(key(of, "2026-02", "v0")._replace(billing_account_id="other"))


def test_where_units_lapse_after_one_period_only_the_one_before_is_asked_for() -> None:
    since = [
        contracts(book((START, priced(10, periods)))).carried_from("2026-06", ["a"]).since  # type: ignore[union-attr]
        for periods in (1, 2)
    ]
    calendar = book((START, FREE)).subscriptions["s"].calendar
    assert since == [
        next(billing_periods(datetime(2026, month, 1, tzinfo=UTC), NOW, calendar)).start for month in (5, 1)
    ]
    assert contracts(book((START, FREE))).carried_from("2026-06", ["a"]) is None
