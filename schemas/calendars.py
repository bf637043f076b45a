"""When billing periods start: a cycle, counted from an anchor date, in a time zone."""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import UTC, date, datetime, time, timedelta
from functools import cache, lru_cache
from importlib import resources
from typing import NamedTuple
from zoneinfo import ZoneInfo

MONTHS_OF_CYCLE = {"monthly": 1, "quarterly": 3, "yearly": 12}
CYCLE_PATTERN = r"^(weekly|monthly|quarterly|yearly|[1-9][0-9]{0,2} days)$"
MAX_CYCLE_DAYS = 366
# A Monday, and the first day of a month, a quarter and a year.
FIRST_ANCHOR = date(1973, 1, 1)
_SECOND = timedelta(seconds=1)


class Calendar(NamedTuple):
    """Billing periods start at local midnight, every so many months or days from the anchor on, and before it.

    A month that is too short for the anchor's day has its last day instead.

    Args:
      time_zone: IANA name.
      cycle: weekly, monthly, quarterly, yearly, or a number of days like `10 days`.
      anchor: A local date on which a period starts. Of it only what the cycle needs counts: the day of the week, the
        day of the month, the month.
    """

    time_zone: str = "UTC"
    cycle: str = "monthly"
    anchor: date = FIRST_ANCHOR

    @property
    def months(self) -> int:
        """Length of a period in months; 0 where it is counted in days."""
        return MONTHS_OF_CYCLE.get(self.cycle, 0)

    @property
    def days(self) -> int:
        """Length of a period in days; 0 where it is counted in months."""
        if self.cycle == "weekly":
            return 7
        found = re.fullmatch(r"([0-9]+) days", self.cycle)
        return int(found[1]) if found else 0

    def first_day(self, number: int) -> date:
        """The local date on which a period starts; they are counted from the anchor (days) or the year 0 (months)."""
        if self.days:
            return date.fromordinal(self.anchor.toordinal() + number * self.days)
        year, month = divmod(number * self.months + self._offset, 12)
        return date(year, month + 1, min(self.anchor.day, monthrange(year, month + 1)[1]))

    def number_of(self, day: date) -> int:
        """The period whose first day is the last one not after the date."""
        if self.days:
            return (day.toordinal() - self.anchor.toordinal()) // self.days
        number = (day.year * 12 + day.month - 1 - self._offset) // self.months
        return number if self.first_day(number) <= day else number - 1

    def starts_at(self, instant: datetime) -> bool:
        """Whether it is local midnight of the first day of a period."""
        local = instant.astimezone(zone_of(self.time_zone))
        first = self.first_day(self.number_of(local.date()))
        return (local.hour, local.minute, local.second, local.date()) == (0, 0, 0, first)

    @property
    def _offset(self) -> int:
        return (self.anchor.month - 1) % self.months


def longest_days(cycle: str) -> int:
    """The most days that a period of a cycle may have, and one for clock changes."""
    calendar = Calendar(cycle=cycle)
    return (calendar.days or 31 * calendar.months) + 1


def moved_on(instant: datetime, time_zone: str, *, months: int = 0, days: int = 0) -> datetime:
    """The instant at which a clock shows the same time, so many months and days later; in a month that is too short, on
    its last day. Of a time that comes twice, the first; one that is skipped as the clock went before.
    """
    local = instant.astimezone(zone_of(time_zone))
    year, month = divmod(local.year * 12 + local.month - 1 + months, 12)
    day = min(local.day, monthrange(year, month + 1)[1])
    moved = local.replace(year=year, month=month + 1, day=day, tzinfo=None, fold=0) + timedelta(days=days)
    return moved.replace(tzinfo=zone_of(time_zone)).astimezone(UTC)


def number_at(instant: datetime, calendar: Calendar) -> int:
    """Which period of its calendar holds the instant."""
    number = calendar.number_of(instant.astimezone(zone_of(calendar.time_zone)).date())
    # The local date alone does not decide: after midnight a clock may be set back to the day before.
    while instant < start_of(number, calendar):
        number -= 1
    while instant >= start_of(number + 1, calendar):
        number += 1
    return number


@lru_cache(maxsize=1 << 16)
def start_of(number: int, calendar: Calendar) -> datetime:
    """The first instant of a period."""
    return _first_instant(calendar.first_day(number), zone_of(calendar.time_zone))


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
def zone_of(name: str) -> ZoneInfo:
    """The zone by the pinned `tzdata` package: two workers whose systems differ must agree on a period's bounds."""
    *folders, file = name.split("/")
    with resources.files(".".join(["tzdata.zoneinfo", *folders])).joinpath(file).open("rb") as data:
        return ZoneInfo.from_file(data, key=name)
