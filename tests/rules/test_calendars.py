"""Cycles and anchors: what periods start when, and that they tile the time line on every day of a clock change."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.schemas.calendars import Calendar, longest_days
from meterline.schemas.catalog import Fixed
from meterline.transforms.rules.fees import share_of
from meterline.transforms.rules.period_labels import cycle_of_label, days_of_label, labels_near
from meterline.transforms.rules.periods import (
    billing_period,
    billing_periods,
    longest_of_label,
    period_with_label,
    starts_of_label,
)
from tests import strategies
from tests.clocks import DST_ZONES, MICROSECOND, clock_change_days, is_first_instant, utc

ZONES = [*DST_ZONES, "America/St_Johns", "Asia/Kathmandu", "Pacific/Chatham", "America/Asuncion", "Europe/Lisbon"]
CYCLES = ["weekly", "monthly", "quarterly", "yearly", "1 days", "10 days", "45 days"]
ANCHORS = [date(2024, 1, 1), date(2024, 1, 31), date(2024, 2, 29), date(2025, 8, 30), date(2028, 12, 31)]
SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("instant", "cycle", "anchor", "first", "last", "label"),
    [
        pytest.param("2026-10-15", "weekly", None, "2026-10-12", "2026-10-18", "2026-W42", id="a week from Monday"),
        pytest.param("2026-10-15", "weekly", "2026-01-04", "2026-10-11", "2026-10-17", "2026-W41", id="from Sunday"),
        pytest.param("2027-01-02", "weekly", None, "2026-12-28", "2027-01-03", "2026-W53", id="the year's 53rd week"),
        pytest.param("2026-01-01", "weekly", None, "2025-12-29", "2026-01-04", "2026-W01", id="the ISO year's first"),
        pytest.param("2026-10-15", "quarterly", None, "2026-10-01", "2026-12-31", "2026-Q4", id="a quarter"),
        pytest.param(
            "2026-10-15", "quarterly", "2026-02-28", "2026-08-28", "2026-11-27", "2026-Q3", id="of February's 28th"
        ),
        pytest.param("2026-02-28", "quarterly", "2025-11-30", "2026-02-28", "2026-05-29", "2026-Q1", id="too short"),
        pytest.param("2026-05-30", "quarterly", "2025-08-31", "2026-02-28", "2026-05-30", "2026-Q1", id="of the 31st"),
        pytest.param("2026-10-15", "yearly", None, "2026-01-01", "2026-12-31", "2026", id="a year"),
        pytest.param("2027-02-27", "yearly", "2024-02-29", "2026-02-28", "2027-02-27", "2026", id="of a leap day"),
        pytest.param("2028-02-28", "yearly", "2024-02-29", "2027-02-28", "2028-02-28", "2027", id="up to the leap day"),
        pytest.param("2026-03-30", "monthly", "2024-01-31", "2026-02-28", "2026-03-30", "2026-02", id="of the 31st"),
        pytest.param(
            "2026-10-15", "10 days", "2026-10-05", "2026-10-15", "2026-10-24", "2026-10-15", id="days, after the anchor"
        ),
        pytest.param("2026-10-04", "10 days", "2026-10-05", "2026-09-25", "2026-10-04", "2026-09-25", id="before it"),
    ],
)
def test_cycles(instant: str, cycle: str, anchor: str | None, first: str, last: str, label: str) -> None:
    calendar = Calendar("UTC", cycle, *([date.fromisoformat(anchor)] if anchor else []))
    period = billing_period(utc(instant), calendar)
    assert (period.start, period.end - DAY, period.label) == (utc(first), utc(last), label)


@given(
    instant=strategies.instants, calendar=strategies.calendars, length=st.timedeltas(timedelta(0), timedelta(days=999))
)
def test_every_instant_lies_in_one_period_whose_label_finds_it(
    instant: datetime, calendar: Calendar, length: timedelta
) -> None:
    period = billing_period(instant, calendar)
    assert period.start <= instant < period.end
    assert billing_period(period.end, calendar).start == period.end
    assert billing_period(period.start - MICROSECOND, calendar).end == period.start
    assert period_with_label(period.label, calendar) == period
    since, until = starts_of_label(period.label)
    assert since <= period.start < until
    assert period.end - period.start < longest_of_label(period.label)
    assert period.end - period.start <= longest_days(calendar.cycle) * DAY
    assert period.label in labels_near((period.start - 2 * DAY).date(), (period.start + 2 * DAY).date())
    periods = list(billing_periods(instant, instant + length, calendar))
    assert len({one.label for one in periods}) == len(periods)


@given(strategies.calendars, strategies.calendars, strategies.instants)
def test_a_label_is_of_one_cycle(one: Calendar, other: Calendar, instant: datetime) -> None:
    label = billing_period(instant, one).label
    form = "days" if one.cycle.endswith(" days") else one.cycle
    assert cycle_of_label(label) == form
    first, last = days_of_label(label)
    assert first <= last
    found = period_with_label(label, other)
    assert found is None or ("days" if other.cycle.endswith(" days") else other.cycle) == form


@given(strategies.calendars, strategies.calendars, strategies.instants, strategies.instants)
def test_no_label_is_the_end_of_another(one: Calendar, other: Calendar, first: datetime, second: datetime) -> None:
    """So that the number of an invoice has one account and one label in it."""
    labels = billing_period(first, one).label, billing_period(second, other).label
    assert not labels[0].endswith(f"-{labels[1]}")


@pytest.mark.parametrize("time_zone", ZONES)
def test_periods_of_all_cycles_tile_the_years_2024_to_2030(time_zone: str) -> None:
    zone = ZoneInfo(time_zone)
    change_days = set(clock_change_days(time_zone))
    began, ended = utc("2024-01-01"), utc("2031-01-01")
    checked = set()
    for cycle in CYCLES:
        for anchor in ANCHORS:
            calendar = Calendar(time_zone, cycle, anchor)
            periods = list(billing_periods(began, ended, calendar))
            assert periods[0].start <= began
            assert ended <= periods[-1].end
            assert len({period.label for period in periods}) == len(periods)
            for earlier, later in pairwise(periods):
                assert earlier.start < earlier.end == later.start
            for period in periods:
                assert billing_period(period.start, calendar) == period
                assert billing_period(period.end - MICROSECOND, calendar) == period
                day = calendar.first_day(calendar.number_of((period.start + DAY / 2).astimezone(zone).date()))
                if day in change_days and (period.start, day) not in checked:
                    checked.add((period.start, day))
                    assert is_first_instant(period.start, day, zone)
    assert len({day for _, day in checked}) == len(change_days)


@pytest.mark.parametrize("time_zone", ZONES)
@pytest.mark.parametrize("prorate", ["second", "day"])
def test_two_subscriptions_that_meet_on_a_day_of_a_clock_change_add_up(time_zone: str, prorate: str) -> None:
    price = Fixed(model="fixed", amount=Decimal(30), prorate=prorate)
    zone = ZoneInfo(time_zone)
    for day in clock_change_days(time_zone) or [date(2026, 3, 1)]:
        noon = datetime(day.year, day.month, day.day, 12, tzinfo=zone).astimezone(UTC)
        for cycle in CYCLES:
            calendar = Calendar(time_zone, cycle, ANCHORS[1])
            period = billing_period(noon, calendar)
            whole = share_of(price, period, period.start, None, time_zone)
            assert whole.part == whole.whole
            for meet in (noon + timedelta(minutes=minutes) for minutes in range(-13 * 60, 13 * 60, 30)):
                first = share_of(price, period, utc("2020-01-01"), meet, time_zone)
                second = share_of(price, period, meet, None, time_zone)
                assert first.part + second.part == whole.whole
        of_the_day = share_of(price, billing_period(noon, Calendar(time_zone)), noon, noon + DAY, time_zone)
        assert prorate != "day" or of_the_day.part == 1
