"""What a month can draw from a grant that recurs: as much as leaves no balance below zero, and no cent less."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from meterline.schemas.catalog_money import Grant, Rollover
from meterline.transforms.rules.billing.credits import available_month, month_of

START = datetime(2026, 1, 31, tzinfo=UTC)


def grant(amount: int, least: int, most: int) -> Grant:
    rollover = Rollover(minimum=Decimal(least), maximum=Decimal(least + most))
    return Grant(
        id="g",
        account="a",
        amount=Decimal(amount),
        currency="EUR",
        effective_from=START,
        recurs="monthly",
        rollover=rollover,
    )


def balances(one: Grant, drawn: list[int]) -> list[Decimal]:
    """What is left at the end of each month, walked forward."""
    assert one.rollover
    left, opening = [], one.amount
    for amount in drawn:
        left.append(opening - amount)
        opening = one.amount + min(one.rollover.maximum, max(one.rollover.minimum, left[-1]))
    return left


@given(st.data())
def test_a_month_draws_what_leaves_no_balance_below_zero_and_no_cent_less(data: st.DataObject) -> None:
    small = st.integers(0, 20)
    one = grant(data.draw(st.integers(1, 20)), data.draw(small), data.draw(small))
    drawn: list[int] = []
    for _ in range(data.draw(st.integers(1, 6))):
        most = int(balances(one, [*drawn, 0])[-1])
        drawn.append(data.draw(st.integers(0, most)))
    month = data.draw(st.integers(0, len(drawn) - 1))
    others = {number: Decimal(amount) for number, amount in enumerate(drawn) if number != month}
    available = int(available_month(one, others, month))
    assert available >= drawn[month]
    assert min(balances(one, [*drawn[:month], available, *drawn[month + 1 :]])) >= 0
    assert min(balances(one, [*drawn[:month], available + 1, *drawn[month + 1 :]])) < 0


def test_months_begin_on_the_day_of_the_grants_start() -> None:
    one = grant(1, 0, 0)
    days = [
        datetime(2026, 1, 1, tzinfo=UTC),
        START,
        datetime(2026, 2, 27, tzinfo=UTC),
        datetime(2026, 2, 28, tzinfo=UTC),
    ]
    assert [month_of(one, day) for day in days] == [0, 0, 0, 1]
