"""invoice_accounts: rated line items in, invoices out; a batch job over parts of the accounts.

parts ─▶ read totals ─▶ invoice ─▶ post ─▶ invoice_lines, postings, invoices
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics

from meterline.schemas.arrow import MONEY, QUANTITY
from meterline.schemas.catalog import Catalog
from meterline.schemas.event import plain_text
from meterline.schemas.records import Invoice, InvoiceLine, RatingKey
from meterline.transforms import clickhouse
from meterline.transforms.rules.attribution import Directory, directory
from meterline.transforms.rules.billing.bill import Elsewhere
from meterline.transforms.rules.billing.contracts import contracts
from meterline.transforms.rules.billing.exchange import ExchangeError
from meterline.transforms.rules.fees import Billed, BilledKey, period_label
from meterline.transforms.rules.invoicing import (
    Statement,
    double_entry,
    has_ended,
    in_advance,
    next_invoice,
    statements,
)
from meterline.transforms.rules.money import RoundingMode
from meterline.transforms.rules.periods import starts_of_label
from meterline.transforms.write import key_columns

_SECONDS = pa.timestamp("s", tz="UTC")
_ISSUED_VERSION = 2**64 - 1


@dataclass(frozen=True)
class Options:
    """What one run of the job needs to know.

    Args:
      period: Label of the billing period, like 2026-10; it covers the subscriptions whose cycle has such labels.
      issue: Whether to issue; otherwise drafts are made, or made anew.
      now: The run's instant; a period is issued once it has ended, fees in advance once it has begun.
      interim: Whether periods that have not ended are issued as well (the rest follows with a later invoice).
      rounding: How amounts are rounded to the minor unit.
      accounts: Billing accounts wanted; none for all.
      parts: Parts of the accounts that workers handle side by side.
    """

    period: str
    catalog: Catalog
    clickhouse: str
    now: datetime
    issue: bool = False
    interim: bool = False
    rounding: RoundingMode = "half_even"
    accounts: tuple[str, ...] = ()
    parts: int = 16


def build(pipeline: beam.Pipeline, options: Options) -> None:
    """The stages, in order. Tests call this; so does every runner."""
    parts = min(options.parts, max(1, len(options.catalog.accounts)))
    (
        pipeline
        | "Parts" >> beam.Create(list(range(parts)), reshuffle=False)
        | "Spread" >> beam.Reshuffle()
        | "ReadTotals" >> beam.ParDo(_ReadTotalsFn(options, parts))
        | "Invoice" >> beam.ParDo(_InvoiceFn(options))
        | "Post" >> beam.ParDo(_PostFn(options.clickhouse))
    )


# Periods of several cycles may start in that time: those of the label are picked out. Sums are taken in 256 bits:
# ClickHouse wraps sums of Decimal(38) without a word. Where all events were voided there is no usage.
_TOTALS = """
SELECT rating_key, account_id, any(currency) AS currency,
       CAST(sum(toDecimal256(quantity_to, 12) - toDecimal256(quantity_from, 12)), 'Decimal(38, 12)') AS quantity,
       sum(toDecimal256(amount, 18)) AS amount
FROM (SELECT * FROM line_items FINAL) AS line_items
INNER JOIN (SELECT rating_key_id, rating_key FROM rating_keys FINAL) AS rating_keys USING (rating_key_id)
WHERE charge_id != '' AND period_start >= {since:DateTime64(0, 'UTC')} AND period_start < {until:DateTime64(0, 'UTC')}
  AND cityHash64(billing_account_id) % {parts:UInt32} = {part:UInt32}
GROUP BY rating_key, account_id
HAVING sum(event_count) > 0
"""
_POSTED = """
SELECT tenant_id, billing_account_id, account_id, subscription_id, charge_id, meter_id, rate_card_version,
       dimensions, period_start, period_end, currency, kind, source,
       CAST(sum(toDecimal256(quantity, 12)), 'Decimal(38, 12)') AS quantity,
       sum(toDecimal256(amount, 18)) AS amount
FROM invoice_lines FINAL
WHERE invoice_id IN (SELECT invoice_id FROM invoices FINAL WHERE status = 'issued' AND period = {label:String})
  AND cityHash64(billing_account_id) % {parts:UInt32} = {part:UInt32}
GROUP BY ALL
"""
_ISSUED = """
SELECT tenant_id, billing_account_id, currency, countIf(status = 'issued') AS issued
FROM (SELECT * FROM invoices FINAL) AS invoices
WHERE period = {label:String} AND cityHash64(billing_account_id) % {parts:UInt32} = {part:UInt32}
  AND (status = 'issued' OR invoice_id IN (SELECT invoice_id FROM invoice_lines))
GROUP BY ALL
"""
# What account-wide terms look at: a commitment at the spend of its term, a grant at what other periods have drawn.
_ELSEWHERE = """
SELECT tenant_id, billing_account_id, currency, label, kind, source, subscription_id, charge_id, meter_id,
       rate_card_version, period_start, period_end, sum(toDecimal256(amount, 18)) AS amount
FROM (SELECT * FROM invoice_lines FINAL WHERE billing_account_id IN {accounts:Array(String)}) AS lines
INNER JOIN (
    SELECT invoice_id, period AS label FROM invoices FINAL
    WHERE status = 'issued' AND period != {label:String} AND billing_account_id IN {accounts:Array(String)}
) AS invoices USING (invoice_id)
GROUP BY ALL ORDER BY ALL
"""
# What earlier periods have left of included units follows from what was used in them, billed or not.
_EARLIER = """
SELECT rating_key,
       CAST(sum(toDecimal256(quantity_to, 12) - toDecimal256(quantity_from, 12)), 'Decimal(38, 12)') AS quantity
FROM (
    SELECT * FROM line_items FINAL
    WHERE billing_account_id IN {accounts:Array(String)} AND subscription_id IN {subscriptions:Array(String)}
      AND charge_id IN {charges:Array(String)}
      AND period_start >= {since:DateTime64(0, 'UTC')} AND period_start < {until:DateTime64(0, 'UTC')}
) AS line_items
INNER JOIN (SELECT rating_key_id, rating_key FROM rating_keys FINAL) AS rating_keys USING (rating_key_id)
GROUP BY rating_key
"""


class UnknownSubscriptionError(clickhouse.DatabaseError):
    """Line items name a subscription that the catalog does not have."""


class _ReadTotalsFn(beam.DoFn):
    """The statements of a part of the billing accounts."""

    def __init__(self, options: Options, parts: int) -> None:
        self._options, self._parts = options, parts

    def process(self, part: int) -> Iterator[Statement]:
        options = self._options
        book = directory(options.catalog)
        parameters = {"label": options.period, "part": part, "parts": self._parts}
        used = line_item_totals(options.clickhouse, options.period, book, part, self._parts)
        posted = _posted(clickhouse.query(options.clickhouse, _POSTED, parameters))
        issued = {
            (row["tenant_id"], row["billing_account_id"], row["currency"]): row["issued"]
            for row in clickhouse.query(options.clickhouse, _ISSUED, parameters).to_pylist()
        }
        wanted = self._wanted(part, book)
        elsewhere = billed_elsewhere(options.clickhouse, options.period, book, wanted)
        earlier = self._earlier(book, wanted)
        yield from statements(options.period, book, used, posted, issued, wanted, elsewhere, earlier)

    def _earlier(self, book: Directory, wanted: list[str]) -> dict[tuple[str, str], dict[RatingKey, Decimal]]:
        reach = contracts(book).carried_from(self._options.period, wanted)
        found: dict[tuple[str, str], dict[RatingKey, Decimal]] = {}
        if reach is not None:
            for row in clickhouse.query(self._options.clickhouse, _EARLIER, reach._asdict()).to_pylist():
                key = RatingKey.parse(row["rating_key"])
                found.setdefault((key.tenant_id, key.billing_account_id), {})[key] = row["quantity"]
        return found

    def _wanted(self, part: int, book: Directory) -> list[str]:
        accounts = list(self._options.accounts) or [
            account.id for account in book.catalog.accounts if account.is_billed
        ]
        sql = "SELECT arrayJoin({accounts:Array(String)}) AS account, cityHash64(account) % {parts:UInt32} AS part"
        rows = clickhouse.query(self._options.clickhouse, sql, {"accounts": accounts, "parts": self._parts}).to_pylist()
        return [row["account"] for row in rows if row["part"] == part]


def line_item_totals(
    url: str, label: str, book: Directory, part: int = 0, parts: int = 1
) -> dict[BilledKey, tuple[Billed, str]]:
    """What the line items of a period's label say, by rating key and account, with the currency; of a part of the
    billing accounts.

    Raises:
      UnknownSubscriptionError: they name a subscription that the catalog does not have.
    """
    since, until = starts_of_label(label)
    rows = clickhouse.query(url, _TOTALS, {"since": since, "until": until, "part": part, "parts": parts})
    used = {}
    for row in rows.to_pylist():
        key = RatingKey.parse(row["rating_key"])
        found = period_label(key, book)
        if found is None:
            raise UnknownSubscriptionError(
                f"line items name the subscription {key.subscription_id!r}, which the catalog does not have; "
                "a subscription that was used is ended, never removed"
            )
        if found == label:
            used[BilledKey(key, row["account_id"])] = (Billed(row["quantity"], row["amount"]), row["currency"])
    return used


def billed_elsewhere(
    url: str, label: str, book: Directory, accounts: Iterable[str]
) -> dict[tuple[str, str, str], list[Elsewhere]]:
    """What issued invoices of other periods say, by tenant, billing account and currency, of the accounts with
    commitments or grants."""
    terms = contracts(book)
    asked = [name for name in accounts if name in terms.commitments or name in terms.grants]
    found: dict[tuple[str, str, str], list[Elsewhere]] = {}
    if asked:
        for row in clickhouse.query(url, _ELSEWHERE, {"accounts": asked, "label": label}).to_pylist():
            group = (row["tenant_id"], row["billing_account_id"], row["currency"])
            key = _key_of(row, ())
            amount = Decimal(plain_text(row["amount"]))  # Terms show what is left, without the column's zeros.
            found.setdefault(group, []).append(Elsewhere(row["label"], row["kind"], row["source"], key, amount))
    return found


def _posted(rows: pa.Table) -> dict[tuple[BilledKey, str], Billed]:
    posted = {}
    for row in rows.to_pylist():
        key = _key_of(row, tuple(map(tuple, row["dimensions"])))
        one = BilledKey(key, row["account_id"], row["kind"], row["source"])
        posted[one, row["currency"]] = Billed(row["quantity"], row["amount"])
    return posted


def _key_of(row: dict[str, Any], dimensions: tuple[tuple[str, str], ...]) -> RatingKey:
    names = ("tenant_id", "billing_account_id", "subscription_id", "charge_id", "meter_id", "rate_card_version")
    return RatingKey._make([*(row[name] for name in names), row["period_start"], row["period_end"], dimensions])


class _InvoiceFn(beam.DoFn):
    def __init__(self, options: Options) -> None:
        self._options = options

    def process(self, statement: Statement) -> Iterator[Invoice]:
        options = self._options
        book = directory(options.catalog)
        Metrics.counter("invoice", "statements").inc()
        ended = has_ended(statement, book, options.now)
        waits = options.issue and not (ended or options.interim)
        if waits:
            statement = in_advance(statement, book, options.now)
        status = "issued" if options.issue else "draft"
        try:
            invoice = next_invoice(
                statement, book, status=status, made_at=options.now, rounding=options.rounding, ended=ended
            )
        except ExchangeError as error:
            Metrics.string_set("invoice", "not_converted").add(str(error))
            return
        if invoice is None and waits:
            Metrics.counter("invoice", "not_ended").inc()
            return
        if invoice is None:
            Metrics.counter("invoice", "nothing_to_bill").inc()
            # An earlier draft under this number bills nothing any more.
            invoice = Invoice(*_head(statement), statement.sequence + 1, "draft", (), options.now)
        else:
            Metrics.counter("invoice", status).inc()
        yield invoice


def _head(statement: Statement) -> tuple[str, str, str, str]:
    return statement.tenant_id, statement.billing_account_id, statement.period, statement.currency


class _PostFn(beam.DoFn):
    """Store invoices: lines and postings first, the invoice last. What has no row in `invoices` counts nowhere, so an
    attempt that breaks off leaves nothing behind that matters."""

    def __init__(self, url: str) -> None:
        self._url = url

    def start_bundle(self) -> None:
        self._held: list[Invoice] = []

    def process(self, invoice: Invoice) -> None:
        self._held.append(invoice)
        if len(self._held) >= 1_000:
            self._flush()

    def finish_bundle(self) -> None:
        self._flush()

    def _flush(self) -> None:
        if self._held:
            clickhouse.insert(self._url, "invoice_lines", line_rows(self._held))
            clickhouse.insert(self._url, "postings", posting_rows(self._held))
            clickhouse.insert(self._url, "invoices", invoice_rows(self._held))
        self._held = []


def line_rows(invoices: Iterable[Invoice]) -> pa.Table:
    pairs: list[tuple[Invoice, int, InvoiceLine]] = [
        (invoice, number, line) for invoice in invoices for number, line in enumerate(invoice.lines, start=1)
    ]
    lines = [line for _, _, line in pairs]
    return pa.table(
        {
            "invoice_id": [invoice.id for invoice, _, _ in pairs],
            "line_number": pa.array([number for _, number, _ in pairs], pa.uint32()),
            "invoice_line_id": [invoice.line_id(line) for invoice, _, line in pairs],
            **key_columns([line.key for line in lines]),
            "rating_key_id": pa.array([line.about_id for line in lines], pa.uint64()),
            "account_id": [line.account_id for line in lines],
            "description": [line.description for line in lines],
            "unit": [line.unit for line in lines],
            "quantity": pa.array([line.quantity for line in lines], QUANTITY),
            "exact_amount": pa.array([line.exact_amount for line in lines], MONEY),
            "amount": pa.array([line.amount for line in lines], MONEY),
            "currency": [invoice.currency for invoice, _, _ in pairs],
            "reason": [line.reason for line in lines],
            "kind": [line.kind for line in lines],
            "source": [line.source for line in lines],
            "terms": [line.terms for line in lines],
        }
    )


def posting_rows(invoices: Iterable[Invoice]) -> pa.Table:
    entries: list[tuple[Invoice, str, Decimal]] = [
        (invoice, account, amount)
        for invoice in invoices
        if invoice.status == "issued"
        for account, amount in double_entry(invoice)
    ]
    return pa.table(
        {
            "posting_id": [f"{invoice.id}:{account}" for invoice, account, _ in entries],
            "invoice_id": [invoice.id for invoice, _, _ in entries],
            "tenant_id": [invoice.tenant_id for invoice, _, _ in entries],
            "billing_account_id": [invoice.billing_account_id for invoice, _, _ in entries],
            "ledger_account": [account for _, account, _ in entries],
            "amount": pa.array([amount for _, _, amount in entries], MONEY),
            "currency": [invoice.currency for invoice, _, _ in entries],
            "posted_at": pa.array([int(invoice.made_at.timestamp()) for invoice, _, _ in entries], _SECONDS),
        }
    )


def invoice_rows(invoices: list[Invoice]) -> pa.Table:
    made = time.time_ns()  # The draft that was made last wins, whatever its --now.

    def column(read: Any, kind: pa.DataType | None = None) -> pa.Array:
        return pa.array([read(invoice) for invoice in invoices], kind)

    return pa.table(
        {
            "invoice_id": column(lambda one: one.id),
            "number": column(lambda one: one.number),
            "status": column(lambda one: one.status),
            "kind": column(lambda one: one.kind),
            "tenant_id": column(lambda one: one.tenant_id),
            "billing_account_id": column(lambda one: one.billing_account_id),
            "period": column(lambda one: one.period),
            "sequence": column(lambda one: one.sequence, pa.uint32()),
            "currency": column(lambda one: one.currency),
            "total": column(lambda one: one.total, MONEY),
            "content_hash": column(lambda one: one.content_hash),
            "corrects": column(lambda one: one.corrects),
            "made_at": column(lambda one: int(one.made_at.timestamp()), _SECONDS),
            "version": column(
                lambda one: _ISSUED_VERSION if one.status == "issued" else made,
                pa.uint64(),
            ),
        }
    )
