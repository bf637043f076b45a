"""Recorded usage under another catalog: what the archived events of a billing period are as usage of its rating keys.

The archive says of an event what its meters read then. Where the new catalog's meters need nothing else, ClickHouse
adds the events up (`recorded_columns`); otherwise the events' bytes are read again by the stages' own functions
(`recorded_bytes`). Both give one usage for each rating key, and nothing is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from meterline.schemas.meters import Meter
from meterline.transforms.recorded_bytes import read_bytes
from meterline.transforms.recorded_columns import Columns
from meterline.transforms.recorded_parts import Found, cut, parts
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.periods import Period, period_with_label, utc_days_of_label

# Events that are added up, or whose bytes are read, at once: what is held in memory.
_ADDED_AT_ONCE = 2_000_000
_READ_AT_ONCE = 200_000


def period_bounds(label: str, book: Directory) -> Period:
    """The time that the billing periods of a label cover together, those of unpriced usage too."""
    found = (period_with_label(label, calendar) for calendar in {one.calendar for one in book.catalog.subscriptions})
    periods = [utc_days_of_label(label), *(one for one in found if one is not None)]
    return Period(min(one.start for one in periods), max(one.end for one in periods), label)


def read(
    url: str,
    book: Directory,
    label: str,
    recorded_by: Iterable[Meter],
    show: Callable[[int, int], None] = lambda done, events: None,
) -> Found:
    """The usage of a period under a catalog.

    Args:
      recorded_by: The meters that the archived events were read by.
      show: Called again and again with how many archived events are read, and how many there are.
    """
    period = period_bounds(label, book)
    found = Found(book, utc_days_of_label(label))
    columns = Columns(url, found, tuple(recorded_by))
    todo = parts(url, period, _ADDED_AT_ONCE)
    events, done = sum(part.events for part in todo), 0
    for part in todo:
        show(done, events)
        left = columns.read(part)
        for some in cut(part, _READ_AT_ONCE) if left else ():
            read_bytes(url, some, left, found)
            done += some.events
            show(done, events)
        done += 0 if left else part.events
    return found
