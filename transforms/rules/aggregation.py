"""How events become quantities: for each aggregation a commutative monoid, so that partial results merge in any order.

A usage is what is known of one cell (a usage window and an account of a rating key): the number of events that count,
a value that depends on the aggregation, and the number of events that were voided. Quantities in it are integers, in
units of 10^-12.

    sum       the sum                              min, max   the least, the greatest
    count     nothing (None)                       latest     (time, id, source, quantity) of the latest event
    average   the sum                              distinct   the set of 16-byte hashes of the values
    percentile, time_weighted_sum                  see percentiles.Intervals and gauges.Gauges

Without an event that counts the value is neutral: 0, the empty set, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple

from meterline.schemas.meters import Aggregation
from meterline.transforms.rules import gauges, percentiles

SCALE = 12


class Usage(NamedTuple):
    """Events of a cell, aggregated; see the module's table for `value`, to which voided events add nothing."""

    event_count: int
    value: Any
    voided_count: int = 0

    @property
    def revision(self) -> int:
        """Grows with each event that becomes known, and once more when it becomes known that it is voided."""
        return self.event_count + 2 * self.voided_count


class Cell(NamedTuple):
    """Where usage belongs: the start of its window (seconds since 1970) and its account. Cells sort by it."""

    window_start: int
    account_id: str


# Stands for all cells before the first that is given: in it their usage is folded, and it has no line item.
FOLDED = Cell(-1, "")


def voided(aggregation: Aggregation, count: int) -> Usage:
    """The usage of events that were voided: known, and nothing else."""
    match aggregation:
        case Aggregation.SUM:
            return Usage(0, 0, count)
        case Aggregation.DISTINCT:
            return Usage(0, frozenset(), count)
        case _:
            return Usage(0, None, count)


def merge(aggregation: Aggregation, one: Usage, other: Usage) -> Usage:
    """The usage of both sets of events."""
    return Usage(
        one.event_count + other.event_count,
        _merge_values(aggregation, one.value, other.value),
        one.voided_count + other.voided_count,
    )


def add(aggregation: Aggregation, usages: dict[Cell, Usage], cell: Cell, usage: Usage) -> None:
    """Add usage to that of its cell, in place."""
    known = usages.get(cell)
    usages[cell] = usage if known is None else merge(aggregation, known, usage)


def _merge_values(aggregation: Aggregation, one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    match aggregation:
        case Aggregation.SUM | Aggregation.AVERAGE:
            return one + other
        case Aggregation.MIN:
            return min(one, other)
        case Aggregation.MAX | Aggregation.LATEST:
            return max(one, other)
        case Aggregation.DISTINCT:
            return one | other
        case Aggregation.TIME_WEIGHTED_SUM:
            return gauges.merged(one, other)
        case Aggregation.PERCENTILE:
            return percentiles.merged(one, other)


def cumulative(aggregation: Aggregation, cells: Iterable[tuple[Cell, Usage]]) -> Iterator[tuple[Cell, Usage, Usage]]:
    """For cells in order: the cell, its own usage, and that of all cells up to it."""
    so_far: Usage | None = None
    grow = _GROWING.get(aggregation)
    for cell, usage in cells:
        if grow is not None:
            known = so_far or Usage(0, None)
            value = known.value if usage.value is None else grow(known.value, usage.value)
            so_far = Usage(known.event_count + usage.event_count, value, known.voided_count + usage.voided_count)
        else:
            so_far = usage if so_far is None else merge(aggregation, so_far, usage)
        yield cell, usage, so_far


def _more_values(values: set[bytes] | None, more: frozenset[bytes]) -> set[bytes]:
    values = set() if values is None else values
    values |= more
    return values


def _more_samples(running: gauges.Running | None, later: gauges.Gauges) -> gauges.Running:
    running = gauges.Running() if running is None else running
    running.add(later)
    return running


# One growing value: copying it for every cell would cost the square of the period.
_GROWING: dict[Aggregation, Callable[[Any, Any], Any]] = {
    Aggregation.DISTINCT: _more_values,
    Aggregation.TIME_WEIGHTED_SUM: _more_samples,
    Aggregation.PERCENTILE: percentiles.add_later,
}


def quantity(aggregation: Aggregation, usage: Usage) -> Decimal:
    """The meter's quantity, in its unit; 0 where no event counts."""
    if not usage.event_count:
        return Decimal(0)
    match aggregation:
        case Aggregation.COUNT:
            return Decimal(usage.event_count)
        case Aggregation.DISTINCT:
            return Decimal(len(usage.value))
        case Aggregation.LATEST:
            return unscaled(usage.value[3])
        case Aggregation.AVERAGE:
            return unscaled(gauges.half_even(usage.value, usage.event_count))
        case Aggregation.TIME_WEIGHTED_SUM:
            return unscaled(gauges.unit_hours(usage.value))
        case Aggregation.PERCENTILE:
            return unscaled(percentiles.percentile_of(usage.value))
        case _:
            return unscaled(usage.value)


def scaled(number: Decimal) -> int:
    """A quantity as an integer of 10^-12 units; exact, as quantities have at most 12 decimals."""
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    whole = int("".join(map(str, digits)) or "0")
    shift = exponent + SCALE
    if shift < 0:
        whole, rest = divmod(whole, 10**-shift)
        assert not rest, f"{number} has more than {SCALE} decimals"
    else:
        whole *= 10**shift
    return -whole if sign else whole


def unscaled(number: int) -> Decimal:
    """The quantity of an integer of 10^-12 units, without trailing zeros."""
    whole, rest = divmod(abs(number), 10**SCALE)
    if not rest:
        return Decimal(-whole if number < 0 else whole)
    digits = tuple(map(int, str(abs(number)).rstrip("0")))
    return Decimal((int(number < 0), digits, -SCALE + len(str(abs(number))) - len(digits)))
