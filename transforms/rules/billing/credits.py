"""Grants of credit: drawn in a fixed order, and never below zero.

A period draws from what all other periods have left, as issued invoices say: docs/decisions/0016.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal

from meterline.schemas.calendars import Calendar
from meterline.schemas.catalog_money import Grant
from meterline.transforms.rules.billing.bill import Bill, Circumstances
from meterline.transforms.rules.periods import local_time

_ZERO = Decimal(0)


def credits(bill: Bill, around: Circumstances) -> None:
    """Draw what is left to pay from grants, by priority, expiry and id.

    Source: docs/rules.md, "Credits".
    """
    for grant in around.contracts.grants.get(around.billing_account_id, ()):
        if grant.currency == bill.currency and _is_usable(grant, around):
            bases = [one for one in bill.net if one.kind != "prepayment" and around.contracts.covers(grant, one.key)]
            bill.draw(around.account_line("credit", grant.id), available_in(grant, around), bases)


def _is_usable(grant: Grant, around: Circumstances) -> bool:
    """Whether the period has an instant at which the grant holds."""
    return grant.effective_from < around.period.end and (grant.expires is None or around.period.start < grant.expires)


def available_in(grant: Grant, around: Circumstances) -> Decimal:
    """What a period can draw, so that no balance falls below zero whatever the other periods have drawn."""
    posted = around.posted("credit", grant.id)
    if grant.recurs == "never":
        return max(grant.amount + sum(posted.values(), _ZERO), _ZERO)
    drawn: dict[int, Decimal] = {}
    for label, amount in posted.items():
        start = around.contracts.period_of(around.billing_account_id, label).start
        drawn[month_of(grant, start)] = drawn.get(month_of(grant, start), _ZERO) - amount
    return available_month(grant, drawn, month_of(grant, around.period.start))


def month_of(grant: Grant, instant: datetime) -> int:
    """Which of its months an instant lies in, counted from 0; 0 too for what comes before it."""
    first = local_time(grant.effective_from, grant.time_zone).date()
    calendar = Calendar(grant.time_zone, "monthly", first)
    return max(calendar.number_of(local_time(instant, grant.time_zone).date()) - calendar.number_of(first), 0)


def available_month(grant: Grant, drawn: Mapping[int, Decimal], month: int) -> Decimal:
    """What is left of a month, less what later months have drawn of what it carries over.

    Args:
      drawn: By month, what has been drawn.
    """
    least, most = (grant.rollover.minimum, grant.rollover.maximum) if grant.rollover else (_ZERO, _ZERO)
    opening = grant.amount
    for number in range(month):
        left = max(opening - drawn.get(number, _ZERO), _ZERO)
        opening = grant.amount + min(most, max(least, left))
    carried = _ZERO
    for number in range(max([month, *drawn]), month, -1):
        needed = max(drawn.get(number, _ZERO) + carried - grant.amount, _ZERO)
        carried = needed if needed > least else _ZERO
    return max(opening - drawn.get(month, _ZERO) - carried, _ZERO)
