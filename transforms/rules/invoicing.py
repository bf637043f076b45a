"""Invoices as differences: what should have been billed by now, less what was posted before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

from meterline.schemas.records import Invoice, InvoiceLine, RatingKey
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.fees import Billed, BilledKey, charges_without_usage, is_in_advance
from meterline.transforms.rules.money import RoundingMode, round_parts


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
    # What was billed before the period closed is no first bill of it.
    opened = any(not is_in_advance(one.key, book) for one in statement.posted)
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
                    reason=_reason(key, opened or before is not None, quantity),
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


def in_advance(statement: Statement, book: Directory, now: datetime) -> Statement:
    """What is due of a period that has not ended: fees in advance, once it has begun."""
    due, posted = (
        {one: billed for one, billed in part.items() if one.key.period_start <= now and is_in_advance(one.key, book)}
        for part in (statement.due, statement.posted)
    )
    return replace(statement, due=due, posted=posted)


def _by_key(
    due: Mapping[BilledKey, Billed], posted: Mapping[BilledKey, Billed]
) -> Iterator[tuple[RatingKey, dict[str, Billed]]]:
    """Keys in the order of an invoice, with what is due by account; what was posted and is due no more is due 0."""
    keys: dict[RatingKey, dict[str, Billed]] = {}
    for billed in sorted({*due, *posted}, key=lambda one: (not one.key.meter_id, one.key, one.account_id)):
        keys.setdefault(billed.key, {})[billed.account_id] = due.get(billed, Billed(Decimal(0), Decimal(0)))
    yield from keys.items()


def _reason(key: RatingKey, is_later: bool, quantity: Decimal) -> str:
    if not key.meter_id:
        return "correction" if is_later else "fee"
    if not is_later:
        return "usage"
    return "late_usage" if quantity else "correction"


def _description(key: RatingKey, book: Directory) -> str:
    subscription = book.subscriptions.get(key.subscription_id)
    charges = book.plans[subscription.plan].charges if subscription else ()
    name = next((charge.name for charge in charges if charge.id == key.charge_id), "") or key.charge_id
    values = ", ".join(value for _, value in key.dimensions if value)
    return f"{name} ({values})" if values else name


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
