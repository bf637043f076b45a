"""Samples of gauges: a value holds until the next sample of its series, and no longer than to its end.

What is known of a series is its samples, in order, as stretches: of one sample at first; many that follow one another
without another between them can be joined to one. Quantities are integers, in units of 10^-12, times in microseconds.

Source: docs/rules.md, section 5, "Time-weighted sum".
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

HOUR_MICROSECONDS = 3_600_000_000


class Stretch(NamedTuple):
    """A series from its first to its last sample, which is (`last`, `id`, `source`) and says `quantity`.

    `until` is when the last sample's value ends if no other sample ends it before; `area` the sum of the values before,
    each times how long it held.
    """

    first: int
    last: int
    id: str
    source: str
    quantity: int
    until: int
    area: int = 0

    @property
    def whole(self) -> int:
        """The area with what the last sample adds."""
        return self.area + self.quantity * max(self.until - self.last, 0)


# By account and series; stretches of one are sorted, and do not overlap once they are joined.
Gauges = dict[tuple[str, str], tuple[Stretch, ...]]


def merged(one: Gauges, other: Gauges) -> Gauges:
    """The samples of both."""
    return {name: tuple(sorted((*one.get(name, ()), *other.get(name, ())))) for name in one.keys() | other.keys()}


def joined(stretches: Iterable[Stretch]) -> Stretch:
    """One stretch of several in order."""
    return reduce(_joined, stretches)


def _joined(one: Stretch, other: Stretch) -> Stretch:
    held = max(min(other.first, one.until) - one.last, 0)
    return other._replace(first=one.first, area=one.area + one.quantity * held + other.area)


class Running(Gauges):
    """Gauges to which later samples are added; `whole` is their area."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = 0

    def add(self, later: Gauges) -> None:
        for name, stretches in later.items():
            known = self.get(name, ())
            together = joined((*known, *stretches))
            self.whole += together.whole - sum(stretch.whole for stretch in known)
            self[name] = (together,)


def unit_hours(gauges: Gauges) -> int:
    """The time-weighted sum, in units of 10^-12, rounded half-even."""
    if isinstance(gauges, Running):
        whole = gauges.whole
    else:
        whole = sum(joined(stretches).whole for stretches in gauges.values())
    return half_even(whole, HOUR_MICROSECONDS)


def half_even(numerator: int, denominator: int) -> int:
    """A quotient of numbers that are not negative, rounded to an integer."""
    whole, rest = divmod(numerator, denominator)
    return whole + (2 * rest > denominator or (2 * rest == denominator and whole % 2))
