"""Invoices as they are stored."""

from __future__ import annotations

from typing import Any

from meterline.transforms import clickhouse

_HEADS = """
SELECT invoice_id, number, CAST(status, 'String') AS status, CAST(kind, 'String') AS kind, tenant_id,
       billing_account_id, period, sequence, currency, total, content_hash, corrects,
       toDateTime64(made_at, 0, 'UTC') AS made_at,
       (SELECT count() FROM invoice_lines FINAL WHERE invoice_lines.invoice_id = invoices.invoice_id) AS lines
FROM (SELECT * FROM invoices FINAL) AS invoices
WHERE period = {period:String}
ORDER BY tenant_id, billing_account_id, currency, sequence
"""
_LINES = """
SELECT line_number, invoice_line_id, account_id, subscription_id, charge_id, meter_id, rate_card_version, dimensions,
       period_start, period_end,
       description, quantity, unit, exact_amount, amount, currency, reason
FROM invoice_lines FINAL
WHERE invoice_id = {invoice_id:String}
ORDER BY line_number
"""


def invoices_of(url: str, period: str) -> list[dict[str, Any]]:
    """The invoices of a period: issued ones, and drafts that bill something."""
    rows = clickhouse.query(url, _HEADS, {"period": period}).to_pylist()
    return [row for row in rows if row["lines"]]


def lines_of(url: str, head: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of an invoice, in order."""
    return clickhouse.query(url, _LINES, {"invoice_id": head["invoice_id"]}).to_pylist()
