"""Meters in words: what they count, of which events."""

from __future__ import annotations

from collections.abc import Iterable

from meterline.schemas.meters import Aggregation, Meter

_COUNTED = {
    Aggregation.SUM: "the sum of {}",
    Aggregation.MIN: "the least {}",
    Aggregation.MAX: "the greatest {}",
    Aggregation.DISTINCT: "the different values of {}",
    Aggregation.LATEST: "the latest {}",
}


def in_words(meter: Meter) -> str:
    """What a meter counts, as one line of text."""
    counted = _COUNTED.get(meter.aggregation, "events").format(meter.expression or meter.value)
    return f"{counted}{' of events' if counted != 'events' else ''} {meter.event_type}{filter_in_words(meter)}"


def filter_in_words(meter: Meter) -> str:
    """Which events it takes; empty for all."""
    asked = [f"{path} is {_listed(values, 'or')}" for path, values in meter.where.items()]
    asked += [f"{path} is not {_listed(values, 'nor')}" for path, values in meter.where_not.items()]
    return f" where {' and '.join(asked)}" if asked else ""


def _listed(values: Iterable[str], word: str) -> str:
    *first, last = (repr(value) if value else "absent" for value in values)
    return f"{', '.join(first)} {word} {last}" if first else last
