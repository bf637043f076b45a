"""Billing periods of a local calendar as instants, and the usage windows inside them."""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import cache, lru_cache
from importlib import resources
from typing import NamedTuple
from zoneinfo import ZoneInfo

_HOUR = timedelta(hours=1)
_SECOND = timedelta(seconds=1)
# Events lie in 1970 to 2199; their first and last periods may start or end a little outside.
_FIRST_YEAR, _LAST_YEAR = 1969, 2200


class Period(NamedTuple):
    """A billing period, [start, end) in UTC; the label is the year and month whose anchor day starts it."""

    start: datetime
    end: datetime
    label: str


class PeriodError(ValueError):
    """A label that names no billing period."""


def billing_period(instant: datetime, time_zone: str, anchor_day: int) -> Period:
    """The billing period that an instant lies in.

    Args:
      instant: With a time zone, any.
      time_zone: IANA name of the subscription's zone.
      anchor_day: 1 to 31; in a month that is too short the last day stands for it.

    Source: docs/rules.md, "Periods and windows".
    """
    assert instant.tzinfo is not None, f"{instant} has no time zone"
    return _period(_month_of(instant, time_zone, anchor_day), time_zone, anchor_day)


def billing_periods(start: datetime, end: datetime, time_zone: str, anchor_day: int) -> Iterator[Period]:
    """All billing periods that overlap [start, end), in order; none when it is empty."""
    assert start.tzinfo is not None, f"{start} has no time zone"
    assert end.tzinfo is not None, f"{end} has no time zone"
    if start >= end:
        return
    first = _month_of(start, time_zone, anchor_day)
    last = _month_of(end - timedelta.resolution, time_zone, anchor_day)
    for month in range(first, last + 1):
        yield _period(month, time_zone, anchor_day)


def period_with_label(label: str, time_zone: str, anchor_day: int) -> Period:
    """The billing period that starts in the month `YYYY-MM`.

    Raises:
      PeriodError: `label` is no such month.
    """
    try:
        month = datetime.strptime(label, "%Y-%m").replace(tzinfo=UTC)
        if not _FIRST_YEAR <= month.year <= _LAST_YEAR:
            raise ValueError(f"no event lies in {label}")
        period = _period(month.year * 12 + month.month - 1, time_zone, anchor_day)
    except ValueError:
        raise PeriodError(f"expected a year and month like '2026-10', got {label!r}") from None
    if period.label != label:
        raise PeriodError(f"expected a year and month like {period.label!r}, got {label!r}")
    return period


def usage_window(instant: datetime, period: Period) -> tuple[datetime, datetime]:
    """The UTC hour of an instant, cut at the bounds of its billing period: [start, end).

    Source: docs/rules.md, "Periods and windows".
    """
    assert period.start <= instant < period.end, f"{instant} lies outside {period}"
    hour = instant.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return max(hour, period.start), min(hour + _HOUR, period.end)


def local_time(instant: datetime, time_zone: str) -> datetime:
    """What the clocks of a time zone show at an instant."""
    return instant.astimezone(_zone(time_zone))


def _month_of(instant: datetime, time_zone: str, anchor_day: int) -> int:
    """The month, counted from year 0, whose period holds the instant."""
    local = instant.astimezone(_zone(time_zone))
    month = local.year * 12 + local.month - 1
    # The local date alone does not decide: after midnight a clock may be set back to the day before.
    if instant < _start(month, time_zone, anchor_day):
        return month - 1
    return month if instant < _start(month + 1, time_zone, anchor_day) else month + 1


@lru_cache(maxsize=1 << 16)
def _period(month: int, time_zone: str, anchor_day: int) -> Period:
    return Period(
        start=_start(month, time_zone, anchor_day),
        end=_start(month + 1, time_zone, anchor_day),
        label=f"{month // 12:04}-{month % 12 + 1:02}",
    )


@lru_cache(maxsize=1 << 16)
def _start(month: int, time_zone: str, anchor_day: int) -> datetime:
    assert 1 <= anchor_day <= 31, f"expected a day from 1 to 31, got {anchor_day}"
    year, month_index = divmod(month, 12)
    last_day = monthrange(year, month_index + 1)[1]
    return _first_instant(date(year, month_index + 1, min(anchor_day, last_day)), _zone(time_zone))


def _first_instant(day: date, zone: ZoneInfo) -> datetime:
    """The first midnight of a local day; where there is none, the first instant after it."""
    midnight = datetime.combine(day, time(), tzinfo=zone)
    before = midnight.astimezone(UTC)  # fold=0: read with the offset in force before a clock change
    after = midnight.replace(fold=1).astimezone(UTC)
    if before <= after:  # one midnight, or two: the first
        return before
    # Midnight is skipped, by a change in (after, before]; on whole seconds, at most a day or so long.
    low, high = after, before
    while high - low > _SECOND:
        middle = low + (high - low) // _SECOND // 2 * _SECOND
        if middle.astimezone(zone).date() < day:
            low = middle
        else:
            high = middle
    return high


@cache
def _zone(name: str) -> ZoneInfo:
    """The zone by the pinned `tzdata` package: two workers whose systems differ must agree on a period's bounds."""
    *folders, file = name.split("/")
    with resources.files(".".join(["tzdata.zoneinfo", *folders])).joinpath(file).open("rb") as data:
        return ZoneInfo.from_file(data, key=name)
