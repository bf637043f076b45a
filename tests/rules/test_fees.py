"""What is due without usage: each second, or local day, of a fee is paid once, by who has it."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from meterline.schemas.calendars import Calendar
from meterline.schemas.catalog import Fixed
from meterline.transforms.rules.fees import Share, fixed_fee, share_of
from meterline.transforms.rules.periods import Period, billing_period, billing_periods, period_with_label
from tests import strategies

OCTOBER = datetime(2026, 10, 1, tzinfo=UTC)
DAY = timedelta(days=1)
THIRTY = Fixed(model="fixed", amount=Decimal(30))
BY_DAY = Fixed(model="fixed", amount=Decimal(31), prorate="day")
WHOLE = Fixed(model="fixed", amount=Decimal(30), prorate="none")
UTC_MONTHS = Calendar()
BERLIN = Calendar("Europe/Berlin")


def period_of(label: str, calendar: Calendar = UTC_MONTHS) -> Period:
    period = period_with_label(label, calendar)
    assert period is not None
    return period


def fee(price: Fixed, period: Period, start: datetime, end: datetime | None = None, time_zone: str = "UTC") -> Decimal:
    return fixed_fee(price, share_of(price, period, start, end, time_zone))


def rounded(value: Fraction) -> Fraction:
    return Fraction(round(value * 10**18), 10**18)


@pytest.mark.parametrize(
    ("start", "end", "by_second", "by_day", "whole"),
    [
        pytest.param(OCTOBER, None, "30", "31", "30", id="all of the period"),
        pytest.param(OCTOBER - DAY, OCTOBER + 99 * DAY, "30", "31", "30", id="more than the period"),
        pytest.param(OCTOBER + 15 * DAY + DAY / 2, None, "15", "16", "30", id="half of 31 days"),
        pytest.param(OCTOBER, OCTOBER + 15 * DAY + DAY / 2, "15", "15", "30", id="the other half"),
        pytest.param(OCTOBER, OCTOBER + DAY, "0.967741935483870968", "1", "30", id="one day of 31"),
        pytest.param(OCTOBER, OCTOBER + timedelta(seconds=1), "0.000011200716845878", "0", "30", id="one second"),
        pytest.param(OCTOBER + DAY / 2, OCTOBER + DAY, "0.483870967741935484", "1", "30", id="the end of a day"),
        pytest.param(OCTOBER + 31 * DAY, None, "0", "0", "0", id="starts when the period ends"),
        pytest.param(OCTOBER - DAY, OCTOBER, "0", "0", "0", id="ended when the period starts"),
        pytest.param(OCTOBER + 40 * DAY, OCTOBER + 50 * DAY, "0", "0", "0", id="later"),
    ],
)
def test_fixed_fee(start: datetime, end: datetime | None, by_second: str, by_day: str, whole: str) -> None:
    october = period_of("2026-10")
    fees = [fee(price, october, start, end) for price in (THIRTY, BY_DAY, WHOLE)]
    assert fees == [Decimal(by_second), Decimal(by_day), Decimal(whole)]


def test_a_month_with_a_clock_change_has_its_own_number_of_seconds() -> None:
    october = period_of("2026-10", BERLIN)
    assert fee(THIRTY, october, october.start, october.start + timedelta(hours=745) / 5) == 6


@pytest.mark.parametrize(
    ("label", "day"), [("2026-03", date(2026, 3, 29)), ("2026-10", date(2026, 10, 25))], ids=["23 hours", "25 hours"]
)
def test_by_days_a_day_of_a_clock_change_is_one_day(label: str, day: date) -> None:
    midnights = [
        datetime(one.year, one.month, one.day, tzinfo=ZoneInfo("Europe/Berlin")).astimezone(UTC)
        for one in (day, day + DAY)
    ]
    assert midnights[1] - midnights[0] != DAY
    assert fee(BY_DAY, period_of(label, BERLIN), *midnights, "Europe/Berlin") == 1


def test_the_days_are_those_of_the_time_zone() -> None:
    october = period_of("2026-10", BERLIN)
    late = datetime(2026, 10, 10, 22, 30, tzinfo=UTC)  # the 11th in Berlin
    assert share_of(BY_DAY, october, late, None, "Europe/Berlin") == Share(late, october.end, 21, 31)
    assert share_of(BY_DAY, period_of("2026-10"), late, None, "UTC").part == 22


def test_a_day_that_the_clock_skips_is_paid_once() -> None:
    apia = Calendar("Pacific/Apia")
    december = period_of("2011-12", apia)
    assert share_of(BY_DAY, december, december.start, None, "Pacific/Apia")[2:] == (31, 31)
    skipped = datetime(2011, 12, 30, 10, tzinfo=UTC)
    assert share_of(BY_DAY, december, skipped, None, "Pacific/Apia").part == 1
    assert share_of(BY_DAY, december, december.start, skipped, "Pacific/Apia").part == 30


calendars = strategies.calendars
seconds = st.integers(1, 400 * 86400).map(lambda seconds: timedelta(seconds=seconds))


@given(
    start=strategies.instants.map(lambda instant: instant.replace(microsecond=0)), length=seconds, calendar=calendars
)
def test_a_subscription_pays_for_each_period_what_it_covers(
    start: datetime, length: timedelta, calendar: Calendar
) -> None:
    end = start + length
    periods = list(billing_periods(start, end, calendar))
    for period in periods:
        covered = (min(end, period.end) - max(start, period.start)) // timedelta(seconds=1)
        share = Fraction(covered, (period.end - period.start) // timedelta(seconds=1))
        assert Fraction(fee(THIRTY, period, start, end)) == rounded(30 * share)
    before = billing_period(periods[0].start - timedelta(seconds=1), calendar)
    assert fee(THIRTY, before, start, end) == 0


@given(
    start=strategies.instants.map(lambda instant: instant.replace(microsecond=0)),
    lengths=st.lists(seconds, min_size=2, max_size=4),
    calendar=calendars,
    prorate=st.sampled_from(["second", "day"]),
)
def test_stretches_that_meet_pay_together_what_one_would(
    start: datetime, lengths: list[timedelta], calendar: Calendar, prorate: str
) -> None:
    """However a stretch of time is cut into subscriptions, no second and no day is paid twice, and none is left out."""
    price = Fixed(model="fixed", amount=Decimal(30), prorate=prorate)
    bounds = [start]
    for length in lengths:
        bounds.append(bounds[-1] + length)
    period = billing_period(bounds[1], calendar)
    assume(period.start.year < 2200)
    whole = share_of(price, period, bounds[0], bounds[-1], calendar.time_zone)
    parts = [share_of(price, period, *pair, calendar.time_zone).part for pair in pairwise(bounds)]
    assert all(part >= 0 for part in parts)
    assert sum(parts) == whole.part <= whole.whole
