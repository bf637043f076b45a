"""Invoices as differences: what should have been billed by now, less what was posted before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal

from meterline.schemas.event import LATEST_TIME
from meterline.schemas.records import Invoice, InvoiceLine, RatingKey
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.billing.bill import Circumstances, Elsewhere, Step, Target, made
from meterline.transforms.rules.billing.commitments import commitments
from meterline.transforms.rules.billing.contracts import COMMITMENT_KINDS, contracts
from meterline.transforms.rules.billing.credits import credits
from meterline.transforms.rules.billing.discounts import discounts
from meterline.transforms.rules.billing.exchange import without_part
from meterline.transforms.rules.billing.rollover import rollover
from meterline.transforms.rules.billing.taxes import taxes
from meterline.transforms.rules.contracts import TRIAL
from meterline.transforms.rules.fees import Billed, BilledKey, charges_without_usage, is_in_advance
from meterline.transforms.rules.money import RoundingMode

STEPS: tuple[Step, ...] = (rollover, discounts, commitments, credits, taxes)
"""From charges to what is to be paid, in this order."""
_NOTHING = Target(Decimal(0), Decimal(0), Decimal(0))
_OF_ONE_LINE = ("charge", "tax", "included_tax")  # A source has several, each with terms of its own.
_ORDER = ("charge", "rollover", "discount", *COMMITMENT_KINDS, "credit", "included_tax", "tax")


@dataclass(frozen=True)
class Statement:
    """All that determines the next invoice of a billing account, period and currency.

    Args:
      due: By rating key and account, what the line items and fees say by now (exact, in the currency of the prices).
      posted: The same of the lines of issued invoices (rounded).
      sequence: Number of invoices issued so far.
      elsewhere: What issued invoices of the account's other periods say, where its contracts ask for it.
      earlier: Units used in earlier periods, by rating key, where included units are carried over.
      waits: Whether all but fees in advance stays as it was posted, as the period has not ended.
    """

    tenant_id: str
    billing_account_id: str
    period: str
    currency: str
    due: Mapping[BilledKey, Billed]
    posted: Mapping[BilledKey, Billed]
    sequence: int
    elsewhere: tuple[Elsewhere, ...] = ()
    earlier: Mapping[RatingKey, Decimal] = field(default_factory=dict)
    waits: bool = False


def next_invoice(
    statement: Statement,
    book: Directory,
    *,
    status: str,
    made_at: datetime,
    rounding: RoundingMode,
    ended: bool = True,
) -> Invoice | None:
    """The invoice that bills what is due and was not posted; None when nothing is left to bill.

    Args:
      ended: Whether the period has ended; what is due at its end only is left out before.

    Source: docs/rules.md, "Invoices" and "From charges to the total".
    """
    targets = targets_of(statement, book, rounding, ended, made_at)
    # A line that is given back is of a discount that others may still have: it says what that comes to now.
    terms = {_origin(one): target.terms for one, target in targets.items() if one.kind not in _OF_ONE_LINE}
    of_charges = {one.key: target.terms for one, target in targets.items() if one.kind == "charge"}
    lines = []
    # What was billed before the period closed is no first bill of it.
    opened = any(one.kind == "charge" and not is_in_advance(one.key, book) for one in statement.posted)
    for one in sorted({*targets, *statement.posted}, key=_place):
        target, before = targets.get(one, _NOTHING), statement.posted.get(one)
        quantity = target.quantity - (before.quantity if before else 0)
        difference = target.amount - (before.amount if before else 0)
        if before and not quantity and not difference:
            continue
        if not before and one.kind not in ("charge", "tax") and not difference:
            continue
        lines.append(
            InvoiceLine(
                key=one.key,
                account_id=one.account_id,
                description=_description(one, book),
                unit=book.meters[one.key.meter_id].unit if _is_metered(one) and one.key.meter_id in book.meters else "",
                quantity=quantity,
                exact_amount=target.exact - (before.amount if before else 0),
                amount=difference,
                reason=_reason(one, opened or before is not None, quantity),
                kind=one.kind,
                source=one.source,
                terms=target.terms or _left(one, terms, of_charges),
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


def _left(
    one: BilledKey, terms: Mapping[tuple[str, str, RatingKey | None], str], of_charges: Mapping[RatingKey, str]
) -> str:
    """The terms of what is given back: of a source, or of a charge that was converted, as others have it now."""
    if one.kind != "charge":
        return terms.get(_origin(one), "")
    return without_part(of_charges.get(one.key, ""))


def has_ended(statement: Statement, book: Directory, now: datetime) -> bool:
    """Whether all of its periods have ended: of what was used, and of an account that has promised to spend."""
    terms = contracts(book)
    promised = statement.billing_account_id in terms.commitments
    return all(one.key.period_end <= now for one in (*statement.due, *statement.posted)) and (
        not promised or terms.period_of(statement.billing_account_id, statement.period).end <= now
    )


def in_advance(statement: Statement, book: Directory, now: datetime) -> Statement:
    """Of a period that has not ended: fees in advance, once it has begun. All else stays as it was posted."""

    def moves(one: BilledKey) -> bool:
        return one.key.period_start <= now and is_in_advance(one.key, book)

    due = {one: billed for one, billed in statement.due.items() if moves(one)}
    kept = {one: billed for one, billed in statement.posted.items() if one.kind == "charge" and not moves(one)}
    return replace(statement, due={**kept, **due}, waits=True)


def targets_of(
    statement: Statement, book: Directory, rounding: RoundingMode, ended: bool = True, now: datetime = LATEST_TIME
) -> dict[BilledKey, Target]:
    """What each line of all invoices of the period together should have billed by now."""
    terms = contracts(book)
    period = terms.period_of(statement.billing_account_id, statement.period)
    around = Circumstances(
        book,
        terms,
        statement.tenant_id,
        statement.billing_account_id,
        period,
        rounding,
        begun=ended or period.start <= now,
        ended=ended,
        elsewhere=statement.elsewhere,
        earlier=statement.earlier,
        carried=(
            {one: billed.amount for one, billed in statement.posted.items() if one.kind == "rollover"}
            if statement.waits
            else None
        ),
    )
    return made(statement.due, statement.currency, around, STEPS)


def _payer(one: BilledKey) -> tuple[str, str, str]:
    return one.key.tenant_id, one.key.billing_account_id, one.key.subscription_id


def _place(one: BilledKey) -> tuple[object, ...]:
    """The order of an invoice: usage, fees, and what follows from them step by step."""
    return (_ORDER.index(one.kind), one.source, not one.key.meter_id, one.key, one.account_id)


def _origin(one: BilledKey) -> tuple[str, str, RatingKey | None]:
    """What the lines have in common whose amounts are shares of one: the record, of what is carried over the key."""
    return one.kind, one.source, one.key if one.kind == "rollover" else None


def _is_metered(one: BilledKey) -> bool:
    return one.kind == "charge" and bool(one.key.meter_id)


def _reason(one: BilledKey, is_later: bool, quantity: Decimal) -> str:
    if one.kind != "charge":
        return "correction" if is_later else one.kind
    if not one.key.meter_id:
        return "correction" if is_later else "fee"
    if not is_later:
        return "usage"
    return "late_usage" if quantity else "correction"


def _description(one: BilledKey, book: Directory) -> str:
    key = one.key
    subscription = book.subscriptions.get(key.subscription_id)
    charges = [charge for plan in subscription.plans for charge in book.plans[plan].charges] if subscription else []
    name = next((charge.name for charge in charges if charge.id == key.charge_id), "") or key.charge_id
    values = ", ".join(value for _, value in key.dimensions if value)
    if one.kind == "rollover" and values:
        name = f"{name} ({values})"
    if one.kind != "charge":
        source = contracts(book).name_of(one.kind, one.source)
        return f"{source}: {name}" if name else source
    trial = ", trial" if key.rate_card_version.startswith(TRIAL) else ""
    return f"{name} ({values}){trial}" if values else f"{name}{trial}"


def double_entry(invoice: Invoice) -> list[tuple[str, Decimal]]:
    """The ledger accounts of an issued invoice: debits positive, credits negative; they add up to zero."""
    entries: dict[str, Decimal] = {}
    for line in invoice.lines:
        account = _ledger_account(line)
        entries[account] = entries.get(account, Decimal(0)) - line.amount
    return [("accounts_receivable", invoice.total), *sorted(entries.items())]


def _ledger_account(line: InvoiceLine) -> str:
    """Tax that prices include is taken out of the revenue of their charges."""
    match line.kind:
        case "discount":
            return f"discounts:{line.source}"
        case "prepayment" | "prepaid":
            return f"prepaid:{line.source}"
        case "true_up" | "overage":
            return f"revenue:{line.source}"
        case "credit":
            return f"credits:{line.source}"
        case "tax":
            return f"tax_payable:{line.source}"
        case "included_tax" if not line.key.charge_id:
            return f"tax_payable:{line.source}"
    return f"revenue:{line.key.charge_id}"  # Of charges, of what is carried over, and of tax that prices include.


def statements(
    label: str,
    book: Directory,
    used: Mapping[BilledKey, tuple[Billed, str]],
    posted: Mapping[tuple[BilledKey, str], Billed],
    issued: Mapping[tuple[str, str, str], int],
    billing_accounts: Sequence[str],
    elsewhere: Mapping[tuple[str, str, str], Sequence[Elsewhere]] | None = None,
    earlier: Mapping[tuple[str, str], Mapping[RatingKey, Decimal]] | None = None,
) -> Iterator[Statement]:
    """The statements of billing accounts for a period.

    Args:
      used: What line items of the period's keys say, with the currency.
      posted: What issued invoices of the period's label billed, by key and currency: two may have the same tax.
      issued: How many were issued, by (tenant, billing account, currency); of those that have a draft alone, none.
      billing_accounts: Those wanted.
      elsewhere: What issued invoices of other periods say, of those with commitments or grants, likewise.
      earlier: Units used in earlier periods by rating key, of those whose included units are carried over, by (tenant,
        billing account).
    """
    wanted = set(billing_accounts)
    terms = contracts(book)
    due: dict[tuple[str, str, str], dict[BilledKey, Billed]] = {}
    before: dict[tuple[str, str, str], dict[BilledKey, Billed]] = {}
    fees = {
        one: (billed, currency)
        for one, billed, currency, _ in charges_without_usage(label, book, [one.key for one in used])
    }
    settled: dict[tuple[str, str, str], str] = {}
    for (one, currency), billed in posted.items():
        if one.key.billing_account_id in wanted:
            before.setdefault((one.key.tenant_id, one.key.billing_account_id, currency), {})[one] = billed
            settled[_payer(one)] = currency
    for one, (billed, currency) in {**used, **fees}.items():
        account = one.key.billing_account_id
        if account in wanted:
            # What has been billed of a subscription in a period stays in its currency, whatever the account says now.
            into = settled.get(_payer(one)) or terms.exchange.invoice_currency(account, currency)
            group = (one.key.tenant_id, account, into)
            due.setdefault(group, {})[one] = billed if into == currency else billed._replace(currency=currency)
    # A draft in a currency that nothing is due in any more is made anew, without lines.
    drafted = (group for group in issued if group[1] in wanted)
    for group in sorted({*due, *before, *terms.promised(label, wanted), *drafted}):
        yield Statement(
            *group[:2],
            label,
            group[2],
            due.get(group, {}),
            before.get(group, {}),
            issued.get(group, 0),
            tuple((elsewhere or {}).get(group, ())),
            (earlier or {}).get(group[:2], {}),
        )
