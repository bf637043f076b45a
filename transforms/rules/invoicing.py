"""Invoices as differences: what should have been billed by now, less what was posted before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from meterline.schemas.catalog import Matrix, TimeOfDay
from meterline.schemas.records import Invoice, InvoiceLine, RatingKey
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.money import RoundingMode, round_parts
from meterline.transforms.rules.periods import Period, billing_period, period_with_label
from meterline.transforms.rules.pricing import charge, fixed_fee


class BilledKey(NamedTuple):
    """What a line is about."""

    key: RatingKey
    account_id: str


class Billed(NamedTuple):
    """What was used or billed: units of the meter, and currency units."""

    quantity: Decimal
    amount: Decimal


@dataclass(frozen=True)
class Statement:
    """All that determines the next invoice of a billing account, period and currency.

    Args:
      due: By rating key and account, what the line items and fees say by now (exact).
      posted: The same of the lines of issued invoices (rounded).
      sequence: Number of invoices issued so far.
    """

    tenant_id: str
    billing_account_id: str
    period: str
    currency: str
    due: Mapping[BilledKey, Billed]
    posted: Mapping[BilledKey, Billed]
    sequence: int


def next_invoice(
    statement: Statement, book: Directory, *, status: str, made_at: datetime, rounding: RoundingMode
) -> Invoice | None:
    """The invoice that bills what is due and was not posted; None when nothing is left to bill.

    Each rating key is rounded once and its accounts share the rounding by largest remainder, so that a key's lines
    add up to its rounded charge whatever was issued before.

    Source: docs/rules.md, "Invoices".
    """
    lines = []
    for key, due in _by_key(statement.due, statement.posted):
        accounts = sorted(due)
        rounded = round_parts([due[account].amount for account in accounts], statement.currency, rounding)
        for account, amount in zip(accounts, rounded):
            before = statement.posted.get(BilledKey(key, account))
            quantity = due[account].quantity - (before.quantity if before else 0)
            difference = amount - (before.amount if before else 0)
            if before and not quantity and not difference:
                continue
            lines.append(
                InvoiceLine(
                    key=key,
                    account_id=account,
                    description=_description(key, book),
                    unit=book.meters[key.meter_id].unit if key.meter_id in book.meters else "",
                    quantity=quantity,
                    exact_amount=due[account].amount - (before.amount if before else 0),
                    amount=difference,
                    reason=_reason(key, statement.sequence, quantity),
                )
            )
    if not lines or (statement.sequence and not any(line.amount for line in lines)):
        return None
    return Invoice(
        statement.tenant_id,
        statement.billing_account_id,
        statement.period,
        statement.currency,
        statement.sequence + 1,
        status,
        tuple(lines),
        made_at,
    )


def _by_key(
    due: Mapping[BilledKey, Billed], posted: Mapping[BilledKey, Billed]
) -> Iterator[tuple[RatingKey, dict[str, Billed]]]:
    """Keys in the order of an invoice, with what is due by account; what was posted and is due no more is due 0."""
    keys: dict[RatingKey, dict[str, Billed]] = {}
    for billed in sorted({*due, *posted}, key=lambda one: (not one.key.meter_id, one.key, one.account_id)):
        keys.setdefault(billed.key, {})[billed.account_id] = due.get(billed, Billed(Decimal(0), Decimal(0)))
    yield from keys.items()


def _reason(key: RatingKey, sequence: int, quantity: Decimal) -> str:
    if not key.meter_id:
        return "fee" if not sequence else "correction"
    if not sequence:
        return "usage"
    return "late_usage" if quantity else "correction"


def _description(key: RatingKey, book: Directory) -> str:
    subscription = book.subscriptions.get(key.subscription_id)
    charges = book.plans[subscription.plan].charges if subscription else ()
    name = next((charge.name for charge in charges if charge.id == key.charge_id), "") or key.charge_id
    values = ", ".join(value for _, value in key.dimensions if value)
    return f"{name} ({values})" if values else name


def period_label(key: RatingKey, book: Directory) -> str | None:
    """The label of a key's billing period; None when the catalog no longer has its subscription."""
    subscription = book.subscriptions.get(key.subscription_id)
    if subscription is None:
        return None
    return billing_period(key.period_start, subscription.time_zone, subscription.anchor_day).label


def charges_without_usage(
    label: str, book: Directory, used: Iterable[RatingKey]
) -> Iterator[tuple[BilledKey, Billed, str, Period]]:
    """Fees of a period: fixed ones, and what metered charges cost without any usage, with currency and period."""
    metered = {(key.subscription_id, key.charge_id, key.period_start) for key in used}
    for subscription in sorted(book.catalog.subscriptions, key=lambda one: one.id):
        period = period_with_label(label, subscription.time_zone, subscription.anchor_day)
        if subscription.start >= period.end or (subscription.end or period.end) <= period.start:
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
            if price.model == "fixed":
                amount = fixed_fee(price, period, subscription.start, subscription.end)
                quantity = Decimal(1)
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


def double_entry(invoice: Invoice) -> list[tuple[str, Decimal]]:
    """The ledger accounts of an issued invoice: debits positive, credits negative; they add up to zero."""
    revenue: dict[str, Decimal] = {}
    for line in invoice.lines:
        account = f"revenue:{line.key.charge_id}"
        revenue[account] = revenue.get(account, Decimal(0)) - line.amount
    return [("accounts_receivable", invoice.total), *sorted(revenue.items())]


def statements(
    label: str,
    book: Directory,
    used: Mapping[BilledKey, tuple[Billed, str]],
    posted: Mapping[BilledKey, tuple[Billed, str]],
    issued: Mapping[tuple[str, str, str], int],
    billing_accounts: Sequence[str],
) -> Iterator[Statement]:
    """The statements of billing accounts for a period.

    Args:
      used: What line items of the period's keys say, with the currency.
      posted: What issued invoices of the period's label billed, with the currency.
      issued: How many were issued, by (tenant, billing account, currency).
      billing_accounts: Those wanted.
    """
    wanted = set(billing_accounts)
    due: dict[tuple[str, str, str], dict[BilledKey, Billed]] = {}
    before: dict[tuple[str, str, str], dict[BilledKey, Billed]] = {}
    fees = {
        one: (billed, currency)
        for one, billed, currency, _ in charges_without_usage(label, book, [one.key for one in used])
    }
    for source, target in (({**used, **fees}, due), (posted, before)):
        for one, (billed, currency) in source.items():
            if one.key.billing_account_id in wanted:
                group = (one.key.tenant_id, one.key.billing_account_id, currency)
                target.setdefault(group, {})[one] = billed
    for group in sorted({*due, *before}):
        tenant, account, currency = group
        yield Statement(
            tenant, account, label, currency, due.get(group, {}), before.get(group, {}), issued.get(group, 0)
        )
