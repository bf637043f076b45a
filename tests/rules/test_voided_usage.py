"""Usage with voided events is the usage of the others, in rows that know more."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from functools import reduce
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.schemas.catalog import (
    Graduated,
    Package,
    Tier,
    UsagePrice,
    Volume,
)
from meterline.schemas.meters import Aggregation
from meterline.schemas.records import LineItem, RatingKey
from meterline.transforms.rules.aggregation import Cell, Usage, merge, quantity, scaled, voided
from meterline.transforms.rules.attribution import Priced
from meterline.transforms.rules.gauges import Stretch
from meterline.transforms.rules.line_items import line_items
from meterline.transforms.rules.percentiles import Intervals

START = int(datetime(2026, 10, 1, tzinfo=UTC).timestamp())
END = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp())
KEY = RatingKey(
    *("default", "acme", "sub", "charge", "meter", "v1"),
    datetime(2026, 10, 1, tzinfo=UTC),
    datetime(2026, 11, 1, tzinfo=UTC),
    (),
)
TIERS = (Tier(up_to=Decimal(5), flat_fee=Decimal(1)), Tier(unit_price=Decimal("0.3")))
PRICES: list[UsagePrice] = [
    Graduated(model="graduated", tiers=TIERS, first_tier_flat_at_zero=True),
    Volume(model="volume", tiers=TIERS, first_tier_flat_at_zero=True),
    Package(model="package", package_size=Decimal(3), package_price=Decimal(2), minimum_packages=1),
]


class Event(NamedTuple):
    cell: Cell
    usage: Usage
    is_voided: bool


def single(aggregation: Aggregation, number: int, units: int, cell: Cell) -> Usage:
    """The usage of one event."""
    time = (cell.window_start + number % 3) * 1_000_000
    value: dict[Aggregation, Any] = {
        Aggregation.COUNT: None,
        Aggregation.DISTINCT: frozenset({bytes([units]) * 16}),
        Aggregation.LATEST: (number % 3, str(number), "/s", scaled(Decimal(units))),
        Aggregation.PERCENTILE: Intervals(1, {number % 3: scaled(Decimal(units))}),
        Aggregation.TIME_WEIGHTED_SUM: {
            (cell.account_id, ""): (Stretch(time, time, str(number), "/s", scaled(Decimal(units)), END * 1_000_000),)
        },
    }
    return Usage(1, value.get(aggregation, scaled(Decimal(units))))


@st.composite
def events(draw: st.DrawFn) -> tuple[Aggregation, list[Event]]:
    aggregation = draw(st.sampled_from(list(Aggregation)))
    cells = st.builds(Cell, st.sampled_from([START + 3_600 * hour for hour in range(3)]), st.sampled_from("ab"))
    drawn = draw(st.lists(st.tuples(cells, st.integers(0, 9), st.booleans()), min_size=1, max_size=9))
    return aggregation, [
        Event(cell, single(aggregation, number, units, cell), is_voided)
        for number, (cell, units, is_voided) in enumerate(drawn)
    ]


def items(aggregation: Aggregation, known: Iterable[Event], price: UsagePrice | None = None) -> list[LineItem]:
    usages: dict[Cell, Usage] = {}
    for event in known:
        usage = voided(aggregation, 1) if event.is_voided else event.usage
        usages[event.cell] = merge(aggregation, usages[event.cell], usage) if event.cell in usages else usage
    return list(line_items(KEY, aggregation, Priced(price, "EUR") if price else None, usages))


@given(events(), st.sampled_from([None, *PRICES]))
def test_line_items_with_voids_are_those_of_the_events_that_count(
    usage: tuple[Aggregation, list[Event]], price: UsagePrice | None
) -> None:
    aggregation, known = usage
    found = items(aggregation, known, price)
    counting = [item._replace(voided_count=0, revision=0) for item in found if item.event_count]
    expected = items(aggregation, [event for event in known if not event.is_voided], price)
    assert counting == [item._replace(revision=0) for item in expected]
    for item in found:
        if not item.event_count:
            assert (item.quantity_from, item.amount, item.tiers) == (item.quantity_to, 0, ())
    assert {(one.window_start, one.account_id) for one in found} == {event.cell for event in known}
    assert sum(item.voided_count for item in found) == sum(event.is_voided for event in known)


@given(events(), st.data())
def test_to_know_an_event_or_its_void_makes_the_revision_of_its_cell_and_all_after_it_grow(
    usage: tuple[Aggregation, list[Event]], data: st.DataObject
) -> None:
    aggregation, known = usage
    at = data.draw(st.integers(0, len(known) - 1))
    changed = known[at]
    if changed.is_voided:
        earlier = [*known[:at], changed._replace(is_voided=False), *known[at + 1 :]]
    else:
        earlier = [*known[:at], *known[at + 1 :]]
    before = {Cell(one.window_start, one.account_id): one for one in items(aggregation, earlier)}
    for item in items(aggregation, known):
        cell = Cell(item.window_start, item.account_id)
        if cell < changed.cell:
            assert item == before[cell]
        elif cell in before:
            assert item.revision > before[cell].revision


@given(events(), st.randoms(use_true_random=False))
def test_usage_merges_in_any_order(usage: tuple[Aggregation, list[Event]], random: Any) -> None:
    aggregation, known = usage
    parts = [voided(aggregation, 1) if event.is_voided else event.usage for event in known]
    whole = reduce(lambda one, other: merge(aggregation, one, other), parts)
    random.shuffle(parts)
    assert reduce(lambda one, other: merge(aggregation, one, other), parts) == whole


@pytest.mark.parametrize("aggregation", list(Aggregation))
def test_without_an_event_that_counts_the_quantity_is_0(aggregation: Aggregation) -> None:
    assert quantity(aggregation, voided(aggregation, 3)) == 0


def test_what_is_due_at_zero_usage_is_borne_by_the_first_cell_that_has_an_event() -> None:
    first, second = Cell(START, "a"), Cell(START + 3_600, "a")
    known = [Event(first, Usage(1, scaled(Decimal(4))), True), Event(second, Usage(1, 0), False)]
    assert [item.amount for item in items(Aggregation.SUM, known, PRICES[0])] == [0, 1]
