"""Usage aggregated in batches is the naive sum, count, minimum … of each cell, however the batches are cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.schemas.catalog import Catalog
from meterline.schemas.meters import Aggregation, Meter
from meterline.transforms import meter
from meterline.transforms.meter import Pane, Totals
from meterline.transforms.rules.aggregation import Cell, Usage, merge, quantity, voided
from meterline.transforms.rules.gauges import Stretch
from meterline.transforms.rules.money import EXACT
from meterline.transforms.rules.percentiles import Intervals
from tests import strategies
from tests.transforms.batches import HOUR, START, Fed, batch, key_text
from tests.transforms.batches import Usage as Event

METERS = {aggregation.value: aggregation for aggregation in Aggregation}
INTERVAL = 7_000  # no part of an hour: they are counted from the period's start
CATALOG = Catalog(
    meters=[
        Meter(
            id=one,
            event_type="call",
            aggregation=one,
            unit="unit",
            value=None if one is Aggregation.COUNT else "n",
            percentile=Decimal("99.5") if one is Aggregation.PERCENTILE else None,
            interval_seconds=INTERVAL if one is Aggregation.PERCENTILE else None,
        )
        for one in Aggregation
    ]
)
# Of 383 intervals of a month of 31 days one is above the 99.5th percentile.
ABOVE = 1


def aggregated(batches: Iterable[list[Event]]) -> dict[str, dict[Cell, Usage]]:
    """All panes that leave, by key, merged."""
    totals, panes = Totals(), []
    for events in batches:
        totals.add(batch(events), CATALOG)
        if len(events) % 2:  # sometimes in the middle of a bundle
            panes += list(totals.flush())
    panes += list(totals.flush())
    found: dict[str, dict[Cell, Usage]] = {}
    for text, packed in panes:
        aggregation = METERS[meter_of(text.decode())]
        usages = found.setdefault(text.decode(), {})
        for cell, usage in Pane.unpacked(aggregation, packed).usage.items():
            usages[cell] = merge(aggregation, usages[cell], usage) if cell in usages else usage
    return found


def meter_of(key: str) -> str:
    return next(name for name in METERS if f'"{name}"' in key)


def naive(events: list[Event]) -> dict[str, dict[Cell, tuple[int, Decimal]]]:
    """Of each key and cell the number of events and the quantity."""
    members: dict[str, dict[Cell, list[tuple[Event, Fed]]]] = {}
    for event in events:
        seconds = START + event.time // 1_000_000
        cell = Cell(max(seconds - seconds % HOUR, START), event.account)
        for fed in event.fed:
            members.setdefault(fed.key, {}).setdefault(cell, []).append((event, fed))
    return {
        key: {cell: (len(group), _naive_quantity(meter_of(key), group)) for cell, group in cells.items()}
        for key, cells in members.items()
    }


def _naive_quantity(name: str, group: list[tuple[Event, Fed]]) -> Decimal:
    quantities = [fed.quantity for _, fed in group]
    match name:
        case "sum":
            with localcontext(EXACT):
                return sum(quantities, Decimal(0))
        case "count":
            return Decimal(len(group))
        case "min":
            return min(quantities)
        case "max":
            return max(quantities)
        case "distinct":
            return Decimal(len({fed.value for _, fed in group}))
        case "average":
            return rounded(sum(map(Fraction, quantities)) / len(quantities))
        case "percentile":
            sums: dict[int, Fraction] = {}
            for event, one in group:
                number = event.time // (INTERVAL * 1_000_000)
                sums[number] = sums.get(number, Fraction(0)) + Fraction(one.quantity)
            return rounded(sorted([Fraction(0)] * (ABOVE + 1) + list(sums.values()))[-1 - ABOVE])
        case "time_weighted_sum":
            return rounded(sum(_held(group), Fraction(0)) / 3_600_000_000)
    return max(group, key=lambda pair: (pair[0].time, pair[0].id, pair[0].source))[1].quantity


def rounded(value: Fraction) -> Decimal:
    """Half-even to 12 decimals."""
    with localcontext(EXACT):
        return Decimal(round(value * 10**12)).scaleb(-12)


def _held(group: list[tuple[Event, Fed]]) -> Iterator[Fraction]:
    """Of each sample its value, times the microseconds until the next one, or the end of the period."""
    ordered = sorted(group, key=lambda pair: (pair[0].time, pair[0].id, pair[0].source))
    for place, (event, one) in enumerate(ordered):
        later = [
            other.time
            for other, fed in ordered[place + 1 :]
            if (other.account, fed.value) == (event.account, one.value)
        ]
        yield Fraction(one.quantity) * (min([*later, 31 * 86_400_000_000]) - event.time)


fed = st.builds(
    Fed,
    st.builds(key_text, st.sampled_from(sorted(METERS)), st.sampled_from(["eu", "us"])),
    strategies.event_quantities,
    st.sampled_from(["x", "y", "größe"]),
)
events = st.lists(
    st.builds(
        Event,
        st.sampled_from([0, 1, 1_799_999_999, 1_800_000_000, 1_800_000_001, 3_600_000_000, 30 * 86_400_000_000]),
        st.lists(fed, max_size=4, unique_by=lambda one: one.key).map(tuple),
        st.text("01aü🦜\uffff", min_size=1, max_size=3),
        st.sampled_from(["/s", "/t"]),
        st.sampled_from(["acme", "web"]),
        st.just(bytes(16)),
    ),
    max_size=12,
    unique_by=lambda event: (event.id, event.source, event.time),
)


@given(events, st.lists(st.integers(0, 12), max_size=4))
def test_aggregated_usage_is_the_naive_one(events: list[Event], cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(events)]
    found = aggregated([events[start:end] for start, end in pairwise(bounds)])
    told = {
        key: {cell: (usage.event_count, quantity(METERS[meter_of(key)], usage)) for cell, usage in cells.items()}
        for key, cells in found.items()
    }
    assert told == naive(events)


def test_sums_do_not_wrap() -> None:
    """Arrow's decimals, and 64 bits, would."""
    most = Decimal("99999999999999999999.999999999999")
    many = [Event(0, (Fed(key_text("sum"), most),), str(number)) for number in range(5_000)]
    (usages,) = aggregated([many]).values()
    (usage,) = usages.values()
    assert usage == Usage(5_000, 5_000 * (10**32 - 1))


def test_a_batch_too_large_for_exact_sums_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "_MAX_SLOTS", 3)
    many = [Event(number, (Fed(key_text("sum")), Fed(key_text("count"))), str(number)) for number in range(9)]
    found = aggregated([many])
    assert {key: [usage.event_count for usage in cells.values()] for key, cells in found.items()} == {
        key_text("sum"): [9],
        key_text("count"): [9],
    }


@pytest.mark.parametrize(
    ("aggregation", "value"),
    [
        (Aggregation.SUM, 10**45),
        (Aggregation.COUNT, None),
        (Aggregation.MIN, 0),
        (Aggregation.MAX, 10**32 - 1),
        (Aggregation.DISTINCT, frozenset({b"\x00" * 16, b"\xff" * 16})),
        (Aggregation.LATEST, (1, "ü", "/s", 10**32)),
        (Aggregation.AVERAGE, 10**45),
        (Aggregation.PERCENTILE, Intervals(44, {0: 10**32, 8927: 0})),
        (Aggregation.TIME_WEIGHTED_SUM, {("a", ""): (Stretch(1, 5, "ü", "/s", 10**32, 9, 10**50),), ("ü", "x"): ()}),
    ],
)
def test_what_is_packed_is_unpacked(aggregation: Aggregation, value: Any) -> None:
    usages = {
        Cell(START, "acme"): Usage(3, value),
        Cell(START, "both"): Usage(1, value, 2),
        Cell(START, "web"): voided(aggregation, 2),
    }
    for pane in (Pane(usages), Pane(usages, min(usages)), Pane(usages, None, is_archived=True)):
        assert Pane.unpacked(aggregation, pane.packed(aggregation)) == pane
