"""Section 4 of docs/rules.md once more, for the auditor: naive, slow, sharing nothing with `transforms/`."""

from __future__ import annotations

import functools
import itertools
import zoneinfo
from datetime import UTC, date, datetime, timedelta
from typing import Any

HOUR = timedelta(hours=1)
MONTHS = {"monthly": 1, "quarterly": 3, "yearly": 12}


def given(entry: dict[str, Any], key: str) -> str | None:
    """An optional scalar of the catalog; YAML spells an absent one in several ways."""
    value = entry.get(key)
    return None if value in (None, "", "~", "null", "Null", "NULL") else str(value)


def yes(entry: dict[str, Any], key: str) -> bool:
    return (given(entry, key) or "false").lower() in ("true", "yes", "on")


def instant(text: str) -> datetime:
    """An instant of the catalog."""
    return datetime.fromisoformat(text).astimezone(UTC)


def period_of(time: datetime, subscription: dict[str, Any]) -> tuple[datetime, datetime]:
    """The billing period that holds the instant: the first days of all periods around it, and a look."""
    zone = given(subscription, "time_zone") or "UTC"
    days = first_days(subscription, time.date())
    nearest = sum(day <= time.date() for day in days)
    starts = [first_instant(day, zone) for day in days[max(nearest - 4, 0) : nearest + 4]]
    for start, end in itertools.pairwise(starts):
        if start <= time < end:
            return start, end
    raise AssertionError(f"no period of {subscription} around {time}")


def first_days(subscription: dict[str, Any], near: date) -> list[date]:
    """The dates on which periods start, for years around a date, one after another from far before it."""
    cycle = given(subscription, "cycle") or "monthly"
    anchor = date.fromisoformat(given(subscription, "anchor") or "1973-01-01")
    if given(subscription, "anchor_day"):
        anchor = anchor.replace(day=int(subscription["anchor_day"]))
    if cycle in MONTHS:
        months = range(near.year * 12 - 36, near.year * 12 + 48)
        months_of_periods = [month for month in months if (month - anchor.month + 1) % MONTHS[cycle] == 0]
        return [
            date(month // 12, month % 12 + 1, min(anchor.day, days_in_month(month // 12, month % 12 + 1)))
            for month in months_of_periods
        ]
    length = 7 if cycle == "weekly" else int(cycle.split()[0])
    away = (near - anchor).days % length
    return [
        near - timedelta(days=away) + timedelta(days=length * step) for step in range(-900 // length, 900 // length)
    ]


def label_of(first_day: date, subscription: dict[str, Any]) -> str:
    cycle = given(subscription, "cycle") or "monthly"
    year, week, _ = first_day.isocalendar()
    forms = {
        "monthly": f"{first_day.year:04}-{first_day.month:02}",
        "weekly": f"{year:04}-W{week:02}",
        "quarterly": f"{first_day.year:04}-Q{[0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4][first_day.month]}",
        "yearly": f"{first_day.year:04}",
    }
    return forms.get(cycle, str(first_day))


def days_in_month(year: int, month: int) -> int:
    next_month = date(year + 1, 1, 1) if month == 12 else date(year, month + 1, 1)
    return (next_month - date(year, month, 1)).days


@functools.cache
def first_instant(day: date, zone: str) -> datetime:
    """Local midnight; the first where it comes twice; the end of the clock's jump where there is none."""
    tz = zoneinfo.ZoneInfo(zone)
    midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001  (a wall clock's reading)
    # Fold 0 is the first of two midnights. In a jump it reads the clock as it went before the jump,
    # fold 1 as it went after: the jump lies between the two instants.
    late = midnight.replace(tzinfo=tz, fold=0).astimezone(UTC)
    if late.astimezone(tz).replace(tzinfo=None) == midnight:
        return late
    moment = midnight.replace(tzinfo=tz, fold=1).astimezone(UTC)
    while moment.astimezone(tz).replace(tzinfo=None) < midnight:
        moment += timedelta(seconds=1)
    return moment


def window_of(time: datetime, period: tuple[datetime, datetime]) -> tuple[datetime, datetime]:
    hour = time.replace(minute=0, second=0, microsecond=0)
    return max(hour, period[0]), min(hour + HOUR, period[1])
