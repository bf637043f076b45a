from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.schemas.calendars import Calendar
from meterline.transforms.rules.period_labels import PeriodError
from meterline.transforms.rules.periods import (
    Period,
    billing_period,
    billing_periods,
    period_with_label,
    usage_window,
)
from tests import strategies
from tests.clocks import DST_ZONES, MICROSECOND, clock_change_days, is_first_instant, utc


def monthly(time_zone: str, day: int = 1) -> Calendar:
    return Calendar(time_zone, "monthly", date(2024, 1, day))


@pytest.mark.parametrize(
    ("instant", "time_zone", "anchor_day", "start", "end", "label"),
    [
        pytest.param("2026-10-15", "UTC", 1, "2026-10-01", "2026-11-01", "2026-10", id="a calendar month"),
        pytest.param("2026-10-01", "UTC", 1, "2026-10-01", "2026-11-01", "2026-10", id="the start is inside"),
        pytest.param("2026-11-01", "UTC", 1, "2026-11-01", "2026-12-01", "2026-11", id="the end is not"),
        pytest.param("2027-01-14", "UTC", 15, "2026-12-15", "2027-01-15", "2026-12", id="over the year's end"),
        pytest.param("2026-02-28", "UTC", 31, "2026-02-28", "2026-03-31", "2026-02", id="31 in February"),
        pytest.param("2028-02-28", "UTC", 30, "2028-01-30", "2028-02-29", "2028-01", id="30 in a leap February"),
        pytest.param("2026-03-30", "UTC", 29, "2026-03-29", "2026-04-29", "2026-03", id="29 comes back after February"),
        pytest.param(
            "2026-10-31T23:30", "Europe/Berlin", 1, "2026-10-31T23:00", "2026-11-30T23:00", "2026-11",
            id="a local month, named by its local start",
        ),
        pytest.param(
            "2018-11-04T12:00", "America/Sao_Paulo", 4, "2018-11-04T03:00", "2018-12-04T02:00", "2018-11",
            id="midnight is skipped: the day starts at one",
        ),
        pytest.param(
            "2018-02-18T12:00", "America/Sao_Paulo", 18, "2018-02-18T03:00", "2018-03-18T03:00", "2018-02",
            id="the hour before midnight comes twice, midnight once",
        ),
        pytest.param(
            "2024-04-01T00:00", "Asia/Beirut", 31, "2024-03-30T22:00", "2024-04-29T21:00", "2024-03",
            id="the last day starts at one",
        ),
        pytest.param(
            "2024-11-03T04:00", "America/Havana", 3, "2024-11-03T04:00", "2024-12-03T05:00", "2024-11",
            id="midnight comes twice: the first",
        ),
        pytest.param(
            "2006-10-29T02:45", "America/St_Johns", 29, "2006-10-29T02:30", "2006-11-29T03:30", "2006-10",
            id="set back a minute after midnight to the day before, still in the period",
        ),
        pytest.param(
            "2009-11-01T02:45", "America/St_Johns", 1, "2009-11-01T02:30", "2009-12-01T03:30", "2009-11",
            id="set back to the month before, still in the period",
        ),
        pytest.param(
            "1919-04-15T00:00", "America/Toronto", 31, "1919-03-31T04:30", "1919-04-30T04:00", "1919-03",
            id="skipped from 23:30 to 0:30: the day starts at half past",
        ),
        pytest.param(
            "2011-12-30T12:00", "Pacific/Apia", 30, "2011-12-30T10:00", "2012-01-29T10:00", "2011-12",
            id="a day that was skipped: the start of the next",
        ),
        pytest.param(
            "2011-12-30T09:59", "Pacific/Apia", 1, "2011-12-01T10:00", "2011-12-31T10:00", "2011-12",
            id="a month of thirty days because of it",
        ),
        pytest.param(
            "1995-01-01T00:00", "Pacific/Kiritimati", 31, "1994-12-31T10:00", "1995-01-30T10:00", "1994-12",
            id="the anchor day of December was skipped: named by its month, so that labels are unique",
        ),
    ],
)  # fmt: skip
def test_billing_period(instant: str, time_zone: str, anchor_day: int, start: str, end: str, label: str) -> None:
    period = billing_period(utc(instant), monthly(time_zone, anchor_day))
    assert period == Period(utc(start), utc(end), label)
    assert period.start.tzinfo is UTC
    assert period.end.tzinfo is UTC


@pytest.mark.parametrize("time_zone", DST_ZONES)
def test_periods_tile_the_time_line_on_every_day_of_a_clock_change(time_zone: str) -> None:
    zone = ZoneInfo(time_zone)
    days = clock_change_days(time_zone)
    assert days or time_zone in {"America/Sao_Paulo", "Asia/Kolkata", "Pacific/Apia"}
    for day in days or [date(2026, 3, 1)]:
        start = datetime(day.year, day.month, day.day, 12, tzinfo=zone).astimezone(UTC)
        period = billing_period(start, monthly(time_zone, day.day))
        assert is_first_instant(period.start, day, zone)
        assert period.label == f"{day:%Y-%m}"
        for anchor_day in {day.day, 1, 29, 30, 31}:
            window = (start - timedelta(days=40), start + timedelta(days=40))
            periods = list(billing_periods(*window, monthly(time_zone, anchor_day)))
            assert periods[0].start <= window[0]
            assert window[1] <= periods[-1].end
            for earlier, later in pairwise(periods):
                assert earlier.end == later.start
                assert billing_period(later.start, monthly(time_zone, anchor_day)) == later
                assert billing_period(later.start - MICROSECOND, monthly(time_zone, anchor_day)) == earlier


@given(instant=strategies.instants, time_zone=strategies.time_zones, anchor_day=strategies.anchor_days)
def test_every_instant_lies_in_the_one_period_that_says_so(instant: datetime, time_zone: str, anchor_day: int) -> None:
    period = billing_period(instant, monthly(time_zone, anchor_day))
    assert period.start <= instant < period.end
    assert timedelta(days=27) < period.end - period.start < timedelta(days=32)
    assert billing_period(period.end, monthly(time_zone, anchor_day)).start == period.end
    assert period_with_label(period.label, monthly(time_zone, anchor_day)) == period
    assert billing_period(instant.astimezone(ZoneInfo("Asia/Tokyo")), monthly(time_zone, anchor_day)) == period


@given(
    start=strategies.instants,
    length=st.timedeltas(timedelta(0), timedelta(days=800)),
    time_zone=strategies.time_zones,
    anchor_day=strategies.anchor_days,
)
def test_billing_periods_are_those_that_overlap(
    start: datetime, length: timedelta, time_zone: str, anchor_day: int
) -> None:
    periods = list(billing_periods(start, start + length, monthly(time_zone, anchor_day)))
    if not length:
        assert periods == []
        return
    assert periods[0] == billing_period(start, monthly(time_zone, anchor_day))
    assert periods[-1].start < start + length <= periods[-1].end
    assert all(earlier.end == later.start for earlier, later in pairwise(periods))
    assert len({period.label for period in periods}) == len(periods)


def test_a_period_that_ends_where_the_next_starts_is_not_overlapped() -> None:
    periods = list(billing_periods(utc("2026-10-01"), utc("2026-11-01"), monthly("UTC")))
    assert [period.label for period in periods] == ["2026-10"]


@pytest.mark.parametrize(
    "label",
    [
        *("2026-1", "2026-13", "26-01", " 2026-01", "9999-12", "", "2026-W54", "2025-W53", "2026-W1", "2026-Q0"),
        *("2026-Q5", "2026-W41-1", "20261005", "2026-02-29", "1900", "2026-q1", "２０２６"),
    ],
)
def test_a_label_of_no_cycle_is_refused(label: str) -> None:
    with pytest.raises(PeriodError, match="expected the label of a billing period, like 2026-10"):
        period_with_label(label, monthly("Europe/Berlin"))


@pytest.mark.parametrize(
    ("instant", "start", "end"),
    [
        pytest.param("2026-10-10T10:59:59.999999", "2026-10-10T10:00", "2026-10-10T11:00", id="a UTC hour"),
        pytest.param("2026-09-30T18:30", "2026-09-30T18:30", "2026-09-30T19:00", id="cut at the start"),
        pytest.param("2026-10-31T18:29", "2026-10-31T18:00", "2026-10-31T18:30", id="cut at the end"),
    ],
)
def test_usage_window(instant: str, start: str, end: str) -> None:
    period = period_with_label("2026-10", monthly("Asia/Kolkata"))
    assert usage_window(utc(instant), period) == (utc(start), utc(end))


def test_an_instant_outside_the_period_has_no_window_in_it() -> None:
    period = period_with_label("2026-10", monthly("UTC"))
    with pytest.raises(AssertionError):
        usage_window(period.end, period)
