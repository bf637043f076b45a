"""Whatever the cells, and in whatever order parts of them are merged, a quantity is that of all events."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from functools import reduce
from itertools import zip_longest
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.schemas.meters import Aggregation
from meterline.transforms.rules.aggregation import Cell, Usage, add, cumulative, merge, quantity, scaled
from meterline.transforms.rules.gauges import Stretch
from meterline.transforms.rules.percentiles import Intervals, intervals_above

HOUR = 3_600
PERIOD = 10 * HOUR
INTERVAL = 900
ABOVE = 2


class Sample(NamedTuple):
    second: int
    account: str
    series: str
    units: Decimal
    id: str = ""


samples = st.lists(
    st.builds(
        Sample,
        st.integers(0, PERIOD - 1) | st.sampled_from([0, 1, HOUR - 1, HOUR, 2 * HOUR]),
        st.sampled_from("ab"),
        st.sampled_from(["", "x"]),
        st.integers(0, 12).map(lambda tenths: Decimal(tenths) / 10),
    ),
    min_size=1,
    max_size=12,
).map(lambda some: [one._replace(id=f"{number:02}") for number, one in enumerate(some)])
kinds = st.sampled_from([Aggregation.AVERAGE, Aggregation.TIME_WEIGHTED_SUM, Aggregation.PERCENTILE])


def single(aggregation: Aggregation, sample: Sample, until: int = PERIOD) -> Usage:
    number = scaled(sample.units)
    if aggregation is Aggregation.PERCENTILE:
        return Usage(1, Intervals(ABOVE, {sample.second // INTERVAL: number}))
    if aggregation is Aggregation.TIME_WEIGHTED_SUM:
        time = sample.second * 1_000_000
        one = Stretch(time, time, sample.id, "/s", number, until * 1_000_000)
        return Usage(1, {(sample.account, sample.series): (one,)})
    return Usage(1, number)


def naive(aggregation: Aggregation, some: list[Sample], until: int = PERIOD) -> Decimal:
    if aggregation is Aggregation.AVERAGE:
        value = Fraction(sum(Fraction(one.units) for one in some), len(some))
    elif aggregation is Aggregation.PERCENTILE:
        sums = [Fraction(0)] * (PERIOD // INTERVAL)
        for one in some:
            sums[one.second // INTERVAL] += Fraction(one.units)
        value = sorted(sums)[-1 - ABOVE]
    else:
        value = Fraction(0)
        for name in {(one.account, one.series) for one in some}:
            own = sorted((one.second, one.id, one.units) for one in some if (one.account, one.series) == name)
            for (second, _, units), following in zip_longest(own, own[1:]):
                ends = min(following[0], until) if following else until
                value += Fraction(units) * Fraction(max(ends - second, 0), HOUR)
    return Decimal(round(value * 10**12)).scaleb(-12)


def cells_of(aggregation: Aggregation, some: list[Sample], length: int = HOUR) -> dict[Cell, Usage]:
    found: dict[Cell, Usage] = {}
    for one in some:
        add(aggregation, found, Cell(one.second - one.second % length, one.account), single(aggregation, one))
    return found


@given(kinds, samples, st.randoms(use_true_random=False), st.integers(1, 11))
def test_parts_merge_in_any_order(aggregation: Aggregation, some: list[Sample], random: object, cut: int) -> None:
    usages = [single(aggregation, one) for one in some]
    shuffled = random.sample(usages, len(usages))  # type: ignore[attr-defined]
    together = reduce(lambda one, other: merge(aggregation, one, other), usages)
    assert reduce(lambda one, other: merge(aggregation, one, other), shuffled) == together
    parts = [part for part in (shuffled[:cut], shuffled[cut:]) if part]
    halves = [reduce(lambda one, other: merge(aggregation, one, other), part) for part in parts]
    assert reduce(lambda one, other: merge(aggregation, one, other), halves) == together
    assert quantity(aggregation, together) == naive(aggregation, some)


@given(kinds, samples, st.sampled_from([60, 1_800, HOUR, PERIOD]))
def test_for_any_cutting_into_cells_the_quantity_is_that_of_all_events_so_far(
    aggregation: Aggregation, some: list[Sample], length: int
) -> None:
    known: list[Sample] = []
    cells = cells_of(aggregation, some, length)
    for cell, _, so_far in cumulative(aggregation, sorted(cells.items())):
        known += [one for one in some if (one.second - one.second % length, one.account) == cell]
        assert quantity(aggregation, so_far) == naive(aggregation, known)
        assert so_far.event_count == len(known)


@given(kinds, samples, st.integers(0, 10))
def test_what_is_folded_goes_on_as_the_cells_that_are_folded_in_it(
    aggregation: Aggregation, some: list[Sample], place: int
) -> None:
    cells = sorted(cells_of(aggregation, some).items())
    first, rest = cells[: place + 1], cells[place + 1 :]
    *_, (_, _, folded) = cumulative(aggregation, first)
    *_, (_, _, whole) = cumulative(aggregation, [(Cell(-1, ""), folded), *rest])
    assert quantity(aggregation, whole) == naive(aggregation, some)


def test_a_value_holds_until_the_next_sample_and_a_later_sample_takes_back_what_holds_no_more() -> None:
    """100 GB from 0:00, 40 from 4:00 on, in a period of 10 hours."""
    aggregation = Aggregation.TIME_WEIGHTED_SUM
    some = [Sample(0, "a", "", Decimal(100), "1"), Sample(4 * HOUR, "a", "", Decimal(40), "2")]
    reached = [
        quantity(aggregation, so_far)
        for *_, so_far in cumulative(aggregation, sorted(cells_of(aggregation, some).items()))
    ]
    assert reached == [1_000, 640]


def test_a_value_holds_no_longer_than_its_account_is_on_the_price() -> None:
    some = [Sample(HOUR, "a", "", Decimal(5), "1"), Sample(6 * HOUR, "a", "", Decimal(3), "2")]
    merged = merge(
        Aggregation.TIME_WEIGHTED_SUM, *(single(Aggregation.TIME_WEIGHTED_SUM, one, 3 * HOUR) for one in some)
    )
    assert quantity(Aggregation.TIME_WEIGHTED_SUM, merged) == 10


@pytest.mark.parametrize(
    ("percentile", "period", "interval", "above"),
    [
        pytest.param("95", 31 * 86_400, 300, 446, id="of 8,928 intervals the 8,482nd"),
        # https://docs.swiftfederation.com/Billing/95th_Percentile.html
        pytest.param("95", 30 * 86_400, 300, 432, id="of 8,640 intervals the 432 busiest are free"),
        pytest.param("95", 100 * 60, 60, 5, id="of 100 the 95th"),
        pytest.param("100", 100 * 60, 60, 0, id="the greatest"),
        pytest.param("0.000000000001", 100 * 60, 60, 99, id="the least"),
        pytest.param("50", 3 * 60, 60, 1, id="the middle one"),
        pytest.param("50", 3 * 60 + 1, 60, 2, id="of four, the last one cut short, the second"),
        pytest.param("33.333333333333", 3 * 60, 60, 2, id="just not a third"),
        pytest.param("33.333333333334", 3 * 60, 60, 1, id="just more than a third"),
    ],
)
def test_the_nearest_rank(percentile: str, period: int, interval: int, above: int) -> None:
    assert intervals_above(Decimal(percentile), period, interval) == above
