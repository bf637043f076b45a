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
    Aggregation.AVERAGE: "the average {}",
    Aggregation.TIME_WEIGHTED_SUM: "the sum of {}, each times the hours it holds,",
}


def in_words(meter: Meter) -> str:
    """What a meter counts, as one line of text."""
    value = meter.expression or meter.value
    if meter.aggregation is Aggregation.COUNT:
        counted = "events"
    elif meter.aggregation is Aggregation.PERCENTILE:
        counted = (
            f"the {meter.percentile:f}th percentile of the sums of {value} in {meter.interval_seconds} s of events"
        )
    else:
        counted = f"{_COUNTED[meter.aggregation].format(value)} of events"
    series = f" in each series of {meter.series}" if meter.series else ""
    return f"{counted} {meter.event_type}{series}{filter_in_words(meter)}"


def filter_in_words(meter: Meter) -> str:
    """Which events it takes; empty for all."""
    asked = [f"{path} is {_listed(values, 'or')}" for path, values in meter.where.items()]
    asked += [f"{path} is not {_listed(values, 'nor')}" for path, values in meter.where_not.items()]
    return f" where {' and '.join(asked)}" if asked else ""


def _listed(values: Iterable[str], word: str) -> str:
    *first, last = (repr(value) if value else "absent" for value in values)
    return f"{', '.join(first)} {word} {last}" if first else last
