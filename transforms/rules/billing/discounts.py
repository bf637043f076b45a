"""Discounts and coupons: a part, or an amount, off what charges come to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal

from meterline.schemas.catalog_money import Discount, Redemption
from meterline.schemas.records import RatingKey
from meterline.transforms.rules.billing.bill import Bill, Circumstances
from meterline.transforms.rules.fees import BilledKey


def discounts(bill: Bill, around: Circumstances) -> None:
    """Take each discount off what the ones before it left: percentages first, then amounts, by id.

    Source: docs/rules.md, "Discounts and coupons".
    """
    for one in around.contracts.discounts(one.key for one in bill.net):
        if one.currency in (None, bill.currency):
            _discount(bill, around, one)


def _discount(bill: Bill, around: Circumstances, discount: Discount) -> None:
    bases = [one for one in bill.net if one.kind == "charge" and _holds(discount, one.key, around)]
    before = sum((bill.net[one] for one in bases), Decimal(0))
    if before <= 0:
        return
    if discount.percent is not None:
        off = bill.rounded(before * discount.percent.scaleb(-2), around.rounding)
        terms = {"percent": f"{discount.percent:f}"}
    else:
        assert discount.amount is not None
        off = min(discount.amount, before)
        terms = {"amount": f"{discount.amount:f}"}
    take_off(bill, "discount", discount.id, off, bases, {**terms, "of": f"{before:f}", "total": f"{off:f}"})


def take_off(
    bill: Bill, kind: str, source: str, off: Decimal, bases: Iterable[BilledKey], terms: Mapping[str, str]
) -> None:
    """Lines for the parts of a discount, one for each charge and account: dimensions are put together."""
    for one, part in bill.take(off, bases).items():
        bill.add(BilledKey(one.key._replace(dimensions=()), one.account_id, kind, source), -part, terms)


def _holds(discount: Discount, key: RatingKey, around: Circumstances) -> bool:
    """Whether a charge has the discount in its billing period."""
    if not around.contracts.covers(discount, key):
        return False
    if discount.code is not None:
        return any(_redeemed(discount, key, one, around) for one in around.contracts.redemptions(discount, key))
    if discount.accounts and key.billing_account_id not in discount.accounts:
        return False
    if discount.subscriptions and key.subscription_id not in discount.subscriptions:
        return False
    if not discount.has(key.period_start):
        return False
    if discount.periods is None or discount.start is None:
        return True
    since = around.contracts.periods_since(key, discount.start)
    return sum(period.start >= discount.start for period in since) <= discount.periods


def _redeemed(discount: Discount, key: RatingKey, redemption: Redemption, around: Circumstances) -> bool:
    if key.period_end <= redemption.redeemed_at:
        return False
    if discount.periods is None:
        return True
    return len(around.contracts.periods_since(key, redemption.redeemed_at)) <= discount.periods
