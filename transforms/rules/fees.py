"""What is due without usage: fixed fees of a billing period, and what metered charges cost at zero usage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal, localcontext
from typing import NamedTuple

from meterline.schemas.catalog import Fixed, Matrix, TimeOfDay
from meterline.schemas.records import RatingKey
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.money import EXACT, round_amount
from meterline.transforms.rules.periods import Period, billing_period, local_days, period_with_label
from meterline.transforms.rules.pricing import charge

_SECOND = timedelta(seconds=1)


class BilledKey(NamedTuple):
    """What a line is about: a charge of an account, or what a step made of such (`kind`, by the record `source`)."""

    key: RatingKey
    account_id: str
    kind: str = "charge"
    source: str = ""


class Billed(NamedTuple):
    """What was used or billed: units of the meter, and currency units."""

    quantity: Decimal
    amount: Decimal


class Share(NamedTuple):
    """The part of a period that a fee is due for: `part` of `whole` seconds or local days, as its price says."""

    start: datetime
    end: datetime
    part: int
    whole: int


def share_of(price: Fixed, period: Period, start: datetime, end: datetime | None, time_zone: str) -> Share:
    """What of a billing period a fee in force for [start, end) is due for.

    Source: docs/rules.md, "Fixed fees and proration".
    """
    first = max(period.start, start)
    last = max(first, period.end if end is None else min(period.end, end))
    if price.prorate == "none":
        return Share(first, last, int(first < last), 1)
    if price.prorate == "day":
        return Share(first, last, *(local_days(*span, time_zone) for span in ((first, last), period[:2])))
    return Share(first, last, (last - first) // _SECOND, (period.end - period.start) // _SECOND)


def fixed_fee(price: Fixed, share: Share) -> Decimal:
    """The fee for a share of a period: currency units, rounded half-even to 18 decimals.

    Source: docs/rules.md, "Fixed fees and proration".
    """
    with localcontext(EXACT):
        return round_amount(price.amount * share.part, share.whole)


def is_in_advance(key: RatingKey, book: Directory) -> bool:
    """Whether what a key stands for is due when its period starts, not when it has ended."""
    if key.meter_id:
        return False
    price = book.charge_price(key.subscription_id, key.charge_id, key.rate_card_version, ())
    return isinstance(price, Fixed) and price.billed == "in_advance"


def period_label(key: RatingKey, book: Directory) -> str | None:
    """The label of a key's billing period; None when the catalog no longer has its subscription."""
    subscription = book.subscriptions.get(key.subscription_id)
    return None if subscription is None else billing_period(key.period_start, subscription.calendar).label


def charges_without_usage(
    label: str, book: Directory, used: Iterable[RatingKey]
) -> Iterator[tuple[BilledKey, Billed, str, Period]]:
    """Fees of the periods with a label: fixed ones, and what metered charges cost without any usage, with currency and
    period."""
    metered = {(key.subscription_id, key.charge_id, key.period_start) for key in used}
    for subscription in sorted(book.catalog.subscriptions, key=lambda one: one.id):
        period = period_with_label(label, subscription.calendar)
        if period is None or subscription.start >= period.end or (subscription.end or period.end) <= period.start:
            continue
        plan = book.plans[subscription.plan]
        card = book.rate_cards[plan.rate_card]
        opens = max(period.start, subscription.start)
        in_force = [version for version in card.versions if version.effective_from <= opens]
        if not in_force:
            continue
        version = in_force[-1]
        account = book.accounts[subscription.account]
        for item in plan.charges:
            price = version.prices.get(item.id)
            if price is None or isinstance(price, Matrix | TimeOfDay):  # Without usage no row, and no band, is due.
                continue
            if isinstance(price, Fixed):
                share = share_of(price, period, subscription.start, subscription.end, subscription.time_zone)
                amount, quantity = fixed_fee(price, share), Decimal(1)
            elif (subscription.id, item.id, period.start) in metered:
                continue
            else:
                amount, quantity = charge(price, Decimal(0)), Decimal(0)
                if not amount:
                    continue
            key = RatingKey(
                tenant_id=account.tenant,
                billing_account_id=book.billing_account_of(account.id),
                subscription_id=subscription.id,
                charge_id=item.id,
                meter_id=item.meter or "",
                rate_card_version=version.version,
                period_start=period.start,
                period_end=period.end,
                dimensions=(),
            )
            yield BilledKey(key, account.id), Billed(quantity, amount), card.currency, period
