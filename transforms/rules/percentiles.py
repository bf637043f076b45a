"""Percentiles of sums over fixed intervals of a billing period.

How many intervals lie above the one that is billed follows from the period alone. So what is known of a cell is that
number, and the sums of the intervals with usage; the other intervals are 0.

Source: docs/rules.md, section 5, "Percentile".
"""

from __future__ import annotations

from bisect import bisect_left, insort
from decimal import ROUND_CEILING, Decimal
from typing import NamedTuple


class Intervals(NamedTuple):
    """Sums, in units of 10^-12, by the number of the interval from the period's start; `above` intervals lie above the
    one that is billed. In a running total, `ordered` has the sums sorted.
    """

    above: int
    sums: dict[int, int]
    ordered: list[int] | None = None


def intervals_above(percentile: Decimal, period_seconds: int, interval_seconds: int) -> int:
    """How many intervals of a period lie above its percentile, by nearest rank."""
    count = -(-period_seconds // interval_seconds)
    return count - int((percentile * count / 100).to_integral_value(ROUND_CEILING))


def merged(one: Intervals, other: Intervals) -> Intervals:
    sums = dict(one.sums)
    for number, amount in other.sums.items():
        sums[number] = sums.get(number, 0) + amount
    return Intervals(one.above, sums)


def add_later(running: Intervals | None, later: Intervals) -> Intervals:
    """A running total with the sums of a later cell, in place."""
    if running is None:
        return Intervals(later.above, dict(later.sums), sorted(later.sums.values()))
    assert running.ordered is not None
    for number, amount in later.sums.items():
        known = running.sums.get(number)
        if known is not None:
            del running.ordered[bisect_left(running.ordered, known)]
        running.sums[number] = total = (known or 0) + amount
        insort(running.ordered, total)
    return running


def percentile_of(intervals: Intervals) -> int:
    """The sum of the interval that is billed, in units of 10^-12."""
    if len(intervals.sums) <= intervals.above:
        return 0
    ordered = sorted(intervals.sums.values()) if intervals.ordered is None else intervals.ordered
    return ordered[-1 - intervals.above]
