"""Billing periods of a local calendar as instants, and the usage windows inside them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from typing import NamedTuple

from meterline.schemas.calendars import MAX_CYCLE_DAYS, Calendar, longest_days, number_at, start_of, zone_of
from meterline.transforms.rules.period_labels import cycle_of_label, days_of_label, label_of

_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)


class Period(NamedTuple):
    """A billing period, [start, end) in UTC; the label is made of the local date that it starts on."""

    start: datetime
    end: datetime
    label: str


def billing_period(instant: datetime, calendar: Calendar) -> Period:
    """The billing period that an instant lies in.

    Args:
      instant: With a time zone, any.

    Source: docs/rules.md, "Periods and windows".
    """
    assert instant.tzinfo is not None, f"{instant} has no time zone"
    return _period(number_at(instant, calendar), calendar)


def billing_periods(start: datetime, end: datetime, calendar: Calendar) -> Iterator[Period]:
    """All billing periods that overlap [start, end), in order; none when it is empty."""
    assert start.tzinfo is not None, f"{start} has no time zone"
    assert end.tzinfo is not None, f"{end} has no time zone"
    if start >= end:
        return
    first = number_at(start, calendar)
    last = number_at(end - timedelta.resolution, calendar)
    for number in range(first, last + 1):
        period = _period(number, calendar)
        if period.start < period.end:  # One that is a day which the clock skips is empty.
            yield period


def period_with_label(label: str, calendar: Calendar) -> Period | None:
    """The billing period of a label; None where the calendar has none, as its cycle is another.

    Raises:
      PeriodError: `label` is none of any cycle.
    """
    _, last = days_of_label(label)
    period = _period(calendar.number_of(last), calendar)
    return period if period.label == label and period.start < period.end else None


def utc_days_of_label(label: str) -> Period:
    """The UTC days that name billing periods of a label: of 2026-10 those of October.

    Raises:
      PeriodError: `label` is none of any cycle.
    """
    first, last = days_of_label(label)
    start, end = (datetime.combine(day, time(), UTC) for day in (first, last + _DAY))
    return Period(start, end, label)


def starts_of_label(label: str) -> tuple[datetime, datetime]:
    """Between which instants, [since, until), all billing periods of a label start, whatever their time zone.

    Raises:
      PeriodError: `label` is none of any cycle.
    """
    first, last = days_of_label(label)
    # By its time zone a period starts up to a day before or after; a day that a zone skips adds another.
    since, until = (datetime.combine(day, time(), UTC) for day in (first - 2 * _DAY, last + 3 * _DAY))
    return since, until


def longest_of_label(label: str) -> timedelta:
    """Longer than any billing period of a label.

    Raises:
      PeriodError: `label` is none of any cycle.
    """
    cycle = cycle_of_label(label)
    return longest_days(f"{MAX_CYCLE_DAYS} days" if cycle == "days" else cycle) * _DAY + _DAY


def local_days(start: datetime, end: datetime, time_zone: str) -> int:
    """How many local days there are from the one that holds `start` to the one that holds `end`, that one left out.

    So of a day that lies partly in one stretch of time and partly in the next, the next has all: they add up.
    """
    days = Calendar(time_zone, "1 days")
    return number_at(end, days) - number_at(start, days)


def usage_window(instant: datetime, period: Period) -> tuple[datetime, datetime]:
    """The UTC hour of an instant, cut at the bounds of its billing period: [start, end).

    Source: docs/rules.md, "Periods and windows".
    """
    assert period.start <= instant < period.end, f"{instant} lies outside {period}"
    hour = instant.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return max(hour, period.start), min(hour + _HOUR, period.end)


def local_time(instant: datetime, time_zone: str) -> datetime:
    """What the clocks of a time zone show at an instant."""
    return instant.astimezone(zone_of(time_zone))


@lru_cache(maxsize=1 << 16)
def _period(number: int, calendar: Calendar) -> Period:
    label = label_of(calendar.first_day(number), calendar.cycle)
    return Period(start_of(number, calendar), start_of(number + 1, calendar), label)
