"""Prices by the clock: which band an instant is in, and for how long before and after it that stays so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from meterline.schemas.catalog import TimeOfDay, UsagePrice
from meterline.transforms.rules.periods import local_time

_Week = tuple[tuple[str, frozenset[int], int, int], ...]
_HOUR = timedelta(hours=1)
_SECOND = timedelta(seconds=1)
_MOST_PIECES = 24


class Stretch(NamedTuple):
    """Instants [start, end) of one band; '' is the default. It may go on outside."""

    band: str
    start: datetime
    end: datetime


def stretch_at(price: TimeOfDay, instant: datetime, time_zone: str) -> Stretch:
    """The band of an instant by the clock of a time zone, and a stretch around it that lies in the band.

    Source: docs/rules.md, "Time of day".
    """
    second = instant.astimezone(UTC).replace(microsecond=0)
    band, start, end = _piece(price.week, second, time_zone)
    for _ in range(_MOST_PIECES):
        before = _piece(price.week, start - _SECOND, time_zone)
        if before.band != band:
            break
        start = before.start
    for _ in range(_MOST_PIECES):
        after = _piece(price.week, end, time_zone)
        if after.band != band:
            break
        end = after.end
    return Stretch(band, start, end)


def price_in(price: TimeOfDay, band: str) -> UsagePrice | None:
    """The price of a band; None for one that the price has not."""
    if not band:
        return price.default
    return next((one.price for one in price.bands if one.name == band), None)


def _piece(week: _Week, second: datetime, time_zone: str) -> Stretch:
    """The part of the instant's UTC hour that surely is of one band."""
    hour = second.replace(minute=0, second=0)
    for piece in _pieces(week, hour, time_zone):
        if piece.start <= second < piece.end:
            return piece
    # The clock is changed in this hour: each second for itself.
    return Stretch(_band(week, local_time(second, time_zone)), second, second + _SECOND)


@lru_cache(maxsize=1 << 16)
def _pieces(week: _Week, hour: datetime, time_zone: str) -> tuple[Stretch, ...]:
    """A UTC hour cut where bands may change; nothing for one in which the clock is changed."""
    first, last = local_time(hour, time_zone), local_time(hour + _HOUR - _SECOND, time_zone)
    if first.utcoffset() != last.utcoffset():
        return ()
    clock = _clock(first)
    cuts = {
        edge - clock + day
        for day in (0, 86_400)
        for edge in {0, *(edge for _, _, since, until in week for edge in (since, until))}
    }
    inside = [hour + timedelta(seconds=cut) for cut in sorted(cuts) if 0 < cut < 3_600]
    starts = [hour, *inside]
    return tuple(
        Stretch(_band(week, local_time(start, time_zone)), start, end)
        for start, end in zip(starts, [*inside, hour + _HOUR])
    )


def _band(week: _Week, local: datetime) -> str:
    day, clock = local.weekday(), _clock(local)
    return next((name for name, days, since, until in week if day in days and since <= clock < until), "")


def _clock(local: datetime) -> int:
    return local.hour * 3_600 + local.minute * 60 + local.second
