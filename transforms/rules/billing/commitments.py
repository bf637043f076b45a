"""Spend that was promised: a minimum of each period, or a commitment over a term, paid at its end or its start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal

from meterline.schemas.catalog_money import Commitment
from meterline.transforms.rules.billing.bill import Bill, Circumstances
from meterline.transforms.rules.fees import BilledKey

_ZERO = Decimal(0)


def commitments(bill: Bill, around: Circumstances) -> None:
    """Bill what was promised and not spent, and what was spent beyond it.

    Spend is what charges come to after discounts, whoever pays for it: a prepayment, credits, the customer.

    Source: docs/rules.md, "Commitments".
    """
    spend = {one: net for one, net in bill.net.items() if one.kind == "charge"}
    for one in around.contracts.commitments.get(around.billing_account_id, ()):
        if one.currency == bill.currency and around.contracts.owes(one, around.period):
            _COMMIT[one.kind](bill, around, one, spend)


def _minimum(bill: Bill, around: Circumstances, one: Commitment, spend: Mapping[BilledKey, Decimal]) -> None:
    if around.ended:
        _true_up(bill, around, one, _spent(around, one, spend))


def _postpaid(bill: Bill, around: Circumstances, one: Commitment, spend: Mapping[BilledKey, Decimal]) -> None:
    spent, elsewhere = _spent(around, one, spend), sum(_spent_elsewhere(around, one), _ZERO)
    if around.ended and one.end is not None and around.period.end >= one.end:
        _true_up(bill, around, one, spent + elsewhere)
    _overage(bill, around, one, spent, elsewhere)


def _prepaid(bill: Bill, around: Circumstances, one: Commitment, spend: Mapping[BilledKey, Decimal]) -> None:
    before = around.contracts.period_before(around.billing_account_id, around.period)
    if around.begun and (before is None or before.start < one.start):
        _line(bill, around, one, "prepayment", one.amount, {"amount": f"{one.amount:f}"})
    spent, elsewhere = _spent(around, one, spend), sum(_spent_elsewhere(around, one), _ZERO)
    bases = [base for base in spend if around.contracts.covers(one, base.key)]
    available = max(one.amount + sum(around.posted("prepaid", one.id).values(), _ZERO), _ZERO)
    bill.draw(around.account_line("prepaid", one.id), available, bases)
    _overage(bill, around, one, spent, elsewhere)


_COMMIT = {"minimum": _minimum, "postpaid": _postpaid, "prepaid": _prepaid}


def _true_up(bill: Bill, around: Circumstances, one: Commitment, spent: Decimal) -> None:
    missing = max(one.amount - spent, _ZERO)
    _line(bill, around, one, "true_up", missing, {"amount": f"{one.amount:f}", "spent": f"{spent:f}"})


def _overage(bill: Bill, around: Circumstances, one: Commitment, spent: Decimal, elsewhere: Decimal) -> None:
    """What the term's overage comes to, less what other periods billed of it; at most that of this period's spend."""
    more = one.overage_factor - 1
    beyond = max(spent + elsewhere - one.amount, _ZERO)
    posted = sum(around.posted("overage", one.id).values(), _ZERO)
    due = max(bill.rounded(beyond * more, around.rounding) - posted, _ZERO)
    amount = min(due, bill.rounded(max(spent, _ZERO) * more, around.rounding))
    terms = {"factor": f"{one.overage_factor:f}", "of": f"{spent:f}", "beyond": f"{beyond:f}", "posted": f"{posted:f}"}
    _line(bill, around, one, "overage", amount, terms)


def _line(
    bill: Bill, around: Circumstances, one: Commitment, kind: str, amount: Decimal, terms: Mapping[str, str]
) -> None:
    if amount:
        bill.add(around.account_line(kind, one.id), amount, terms, to_pay=True)


def _spent(around: Circumstances, one: Commitment, spend: Mapping[BilledKey, Decimal]) -> Decimal:
    return sum((net for base, net in spend.items() if around.contracts.covers(one, base.key)), _ZERO)


def _spent_elsewhere(around: Circumstances, one: Commitment) -> Iterator[Decimal]:
    """What other periods of the term billed, after discounts and what was carried over."""
    for row in around.elsewhere:
        if row.kind in ("charge", "rollover", "discount") and around.contracts.covers(one, row.key):
            period = around.contracts.period_of(around.billing_account_id, row.label)
            if around.contracts.owes(one, period):
                yield row.amount
