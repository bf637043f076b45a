"""What is due without usage: fixed fees of a billing period, and what metered charges cost at zero usage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal, localcontext
from typing import NamedTuple

from meterline.schemas.catalog import Fixed, Matrix, Subscription, TimeOfDay
from meterline.schemas.records import RatingKey
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.contracts import TRIAL, name_in_key, price_at, stretches_of
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
    """What was used or billed: units of the meter, and currency units, of `currency` where it is not the invoice's."""

    quantity: Decimal
    amount: Decimal
    currency: str = ""


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
    metered = {
        (key.subscription_id, key.charge_id, key.period_start)
        for key in used
        if not key.rate_card_version.startswith(TRIAL)
    }
    for subscription in sorted(book.catalog.subscriptions, key=lambda one: one.id):
        period = period_with_label(label, subscription.calendar)
        if period is None or not subscription.covers_some_of(period.start, period.end):
            continue
        account = book.accounts[subscription.account]
        due: dict[tuple[str, str, str], Billed] = {}
        for fee in fees_of(subscription, period, book):
            if fee.price is None:
                if (subscription.id, fee.charge_id, period.start) in metered:
                    continue
                billed = Billed(Decimal(0), fee.amount)
            else:
                before = due.get((fee.charge_id, "", fee.name), Billed(Decimal(1), Decimal(0)))
                with localcontext(EXACT):
                    billed = Billed(Decimal(1), before.amount + fee.amount)
            due[fee.charge_id, fee.meter, fee.name] = billed
        for (charge_id, meter, name), billed in due.items():
            key = RatingKey(
                tenant_id=account.tenant,
                billing_account_id=book.billing_account_of(account.id),
                subscription_id=subscription.id,
                charge_id=charge_id,
                meter_id=meter,
                rate_card_version=name,
                period_start=period.start,
                period_end=period.end,
                dimensions=(),
            )
            yield BilledKey(key, account.id), billed, book.currency_of(subscription), period


class Fee(NamedTuple):
    """What is due without usage of a charge, for a stretch of a period.

    A metered charge, due at zero usage, has neither price nor share.
    """

    charge_id: str
    meter: str
    name: str
    price: Fixed | None
    share: Share | None
    amount: Decimal


def fees_of(subscription: Subscription, period: Period, book: Directory) -> Iterator[Fee]:
    """What is due of a subscription's charges in a billing period, whether it has usage or not.

    A fee is that of each stretch of its contract, at the price in force when the stretch opens in the period. What is
    not prorated, and what is due at zero usage, is due once for a charge: in the first stretch outside of a trial.

    Source: docs/rules.md, "Fixed fees and proration" and "Contracts".
    """
    charges = {one.id: one for plan in reversed(subscription.plans) for one in book.plans[plan].charges}
    for charge_id in charges:
        is_due = False
        for stretch in stretches_of(subscription, charge_id):
            opens, end = max(period.start, stretch.start), min(period.end, stretch.end)
            own = next((one for one in book.plans[stretch.plan].charges if one.id == charge_id), None)
            if opens >= end or own is None:
                continue
            name, price = price_at(subscription, charge_id, stretch, opens, book.plans, book.rate_cards)
            if isinstance(price, Fixed):
                share = share_of(price, period, opens, end, subscription.time_zone)
                if price.prorate == "none" and is_due:
                    share = share._replace(part=0)
                is_due = is_due or (bool(share.part) and not stretch.is_trial)
                yield Fee(charge_id, "", name, price, share, fixed_fee(price, share))
            elif not is_due and price is not None and not stretch.is_trial:
                # Without usage no row of a matrix, and no band, is due.
                amount = Decimal(0) if isinstance(price, Matrix | TimeOfDay) else charge(price, Decimal(0))
                is_due = True
                if amount:
                    yield Fee(charge_id, own.meter or "", name_in_key(subscription, name), None, None, amount)
