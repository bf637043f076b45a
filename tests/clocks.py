"""Days on which clocks change, found by looking at the clock."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

MICROSECOND = timedelta(microseconds=1)
DST_ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "America/Sao_Paulo",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Africa/Casablanca",
    "Africa/Cairo",
    "Asia/Beirut",
    "America/Havana",
]


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def clock_change_days(time_zone: str) -> list[date]:
    """Local days of 2024 to 2030 on which the UTC offset at some hour differs from the hour before."""
    zone = ZoneInfo(time_zone)
    days = []
    instant, offset = utc("2024-01-01"), None
    while instant < utc("2031-01-01"):
        local = instant.astimezone(zone)
        if offset is not None and local.utcoffset() != offset:
            before = (instant - timedelta(hours=1)).astimezone(zone).date()
            days += sorted({before, local.date()})
        offset = local.utcoffset()
        instant += timedelta(hours=1)
    return days


def is_first_instant(instant: datetime, day: date, zone: ZoneInfo) -> bool:
    """Whether the clock shows `day` from this instant on for the first time, by looking at the day before."""
    instants = (instant - MICROSECOND - timedelta(minutes=15 * step) for step in range(4 * 30))
    return instant.astimezone(zone).date() == day and all(before.astimezone(zone).date() < day for before in instants)
