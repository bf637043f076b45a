"""The promises of prices by the clock: each instant is in one band, that of the first times which have it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meterline.schemas.catalog import DAYS, Band, PerUnit, TimeOfDay, Times
from meterline.transforms.rules.prices.time_of_day import price_in, stretch_at
from tests import strategies


def clock(since: str = "00:00", until: str = "24:00", days: Sequence[str] = DAYS) -> Times:
    return Times.model_validate({"days": days, "from": since, "to": until})


PRICES = {name: PerUnit(model="per_unit", unit_price=Decimal(name)) for name in ("1", "2", "9")}
WORKDAYS = ("mon", "tue", "wed", "thu", "fri")
PEAK = Band(name="peak", times=(clock("08:00", "20:00", WORKDAYS),), price=PRICES["2"])
NIGHT = Band(name="night", times=(clock(until="06:00"), clock("22:00")), price=PRICES["1"])
TARIFF = TimeOfDay(model="time_of_day", bands=(PEAK, NIGHT), default=PRICES["9"])
BERLIN = "Europe/Berlin"


@pytest.mark.parametrize(
    ("instant", "time_zone", "band"),
    [
        pytest.param("2026-10-27T18:30:00Z", BERLIN, "peak", id="19:30 of a Tuesday in winter"),
        pytest.param("2026-10-20T18:30:00Z", BERLIN, "", id="20:30 of a Tuesday in summer"),
        pytest.param("2026-10-20T06:00:00Z", BERLIN, "peak", id="the start is inside"),
        pytest.param("2026-10-20T18:00:00Z", BERLIN, "", id="the end is not"),
        pytest.param("2026-10-20T17:59:59.999999Z", BERLIN, "peak", id="the last instant is"),
        pytest.param("2026-10-24T10:00:00Z", BERLIN, "", id="a Saturday"),
        pytest.param("2026-10-24T22:30:00Z", BERLIN, "night", id="past midnight"),
        pytest.param("2026-10-25T01:30:00Z", BERLIN, "night", id="an hour that comes twice"),
        pytest.param("2026-10-20T02:29:00Z", "Asia/Kolkata", "", id="before 08:00 where the clock is half an hour off"),
        pytest.param("2026-10-20T02:30:00Z", "Asia/Kolkata", "peak", id="08:00 there"),
    ],
)
def test_the_band_of_an_instant(instant: str, time_zone: str, band: str) -> None:
    assert stretch_at(TARIFF, datetime.fromisoformat(instant), time_zone).band == band


def test_the_price_of_a_band() -> None:
    assert price_in(TARIFF, "peak") == PRICES["2"]
    assert price_in(TARIFF, "") == PRICES["9"]
    assert price_in(TARIFF, "gone") is None


clocks = st.sampled_from(["00:00", "00:30", "02:00", "02:30", "05:59", "12:00", "23:00", "23:59"])
times = st.builds(
    lambda days, one, other: clock(min(one, other), max(one, other) if one != other else "24:00", days),
    st.lists(st.sampled_from(DAYS), min_size=1, max_size=4, unique=True),
    clocks,
    clocks,
)
tariffs = st.lists(st.lists(times, min_size=1, max_size=2), min_size=1, max_size=3).map(
    lambda bands: TimeOfDay(
        model="time_of_day",
        bands=tuple(Band(name=f"b{n}", times=tuple(one), price=PRICES["1"]) for n, one in enumerate(bands)),
        default=PRICES["9"],
    )
)


@given(price=tariffs)
def test_a_price_by_the_clock_is_the_same_after_it_was_stored(price: TimeOfDay) -> None:
    assert TimeOfDay.model_validate_json(price.model_dump_json()) == price


def band_at(price: TimeOfDay, instant: datetime, time_zone: str) -> str:
    """By the text of a clock."""
    local = instant.astimezone(ZoneInfo(time_zone))
    day, clock = f"{local:%a}".lower(), f"{local:%H:%M}"
    for band in price.bands:
        if any(day in one.days and one.since <= clock < one.until for one in band.times):
            return band.name
    return ""


@given(
    price=tariffs,
    instant=strategies.instants,
    time_zone=strategies.time_zones,
    inside=st.lists(st.integers(0, 999), max_size=6),
)
@example(TARIFF, datetime(2026, 10, 25, 0, 30, tzinfo=UTC), BERLIN, [0, 250, 500, 750, 999])
@example(TARIFF, datetime(2018, 11, 4, 3, 0, tzinfo=UTC), "America/Sao_Paulo", [0, 250, 500, 750, 999])
def test_a_stretch_is_of_one_band(price: TimeOfDay, instant: datetime, time_zone: str, inside: list[int]) -> None:
    band, start, end = stretch_at(price, instant, time_zone)
    assert start <= instant < end
    assert not start.microsecond
    assert not end.microsecond
    assert band == band_at(price, instant, time_zone)
    for part in inside:
        assert band_at(price, start + (end - start) * part // 1000, time_zone) == band
    assert band_at(price, end - timedelta(microseconds=1), time_zone) == band


@pytest.mark.parametrize("day", ["2026-03-29", "2026-10-25", "2011-12-30", "2018-11-04", "2026-04-05", "1994-12-31"])
@pytest.mark.parametrize("time_zone", [BERLIN, "Pacific/Apia", "America/Sao_Paulo", "Australia/Lord_Howe"])
def test_stretches_tile_the_days_of_clock_changes(day: str, time_zone: str) -> None:
    _tile(TARIFF, day, time_zone)


def test_stretches_tile_an_hour_inside_which_the_clock_is_changed() -> None:
    """At 00:01 of the Sunday it was 23:01 of the Saturday again, 31 minutes past a UTC hour."""
    sunday = Band(name="sunday", times=(clock(days=("sun",)),), price=PRICES["2"])
    tariff = TimeOfDay(model="time_of_day", bands=(sunday,), default=PRICES["9"])
    _tile(tariff, "2010-11-07", "America/St_Johns")
    for minute, band in {"02:29": "", "02:30": "sunday", "02:31": "", "03:29": "", "03:30": "sunday"}.items():
        assert stretch_at(tariff, datetime.fromisoformat(f"2010-11-07T{minute}:00Z"), "America/St_Johns").band == band


def _tile(tariff: TimeOfDay, day: str, time_zone: str) -> None:
    moment = datetime.fromisoformat(day).replace(tzinfo=UTC) - timedelta(days=1)
    stop = moment + timedelta(days=3)
    while moment < stop:
        band, start, end = stretch_at(tariff, moment, time_zone)
        assert start <= moment < end
        for minute in range(int((min(end, stop) - moment) / timedelta(minutes=1))):
            assert band_at(tariff, moment + timedelta(minutes=minute), time_zone) == band
        moment = end
