"""Invoices as they are stored."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any

from meterline.schemas.catalog import Catalog
from meterline.transforms import clickhouse
from meterline.transforms.rules.period_labels import cycle_of_label, days_of_label
from meterline.transforms.rules.periods import billing_periods, local_time

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
       description, quantity, unit, exact_amount, amount, currency, reason, kind, source, terms
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


@dataclass(frozen=True)
class Coverage:
    """What the label of a billing period covers.

    Args:
      cycle: The cycle whose periods have such labels.
      subscriptions: How many of the catalog's have it.
      others: By other cycles that there are, the labels of the periods that end in the same time.
    """

    label: str
    cycle: str
    subscriptions: int
    others: dict[str, list[str]]

    def to_json(self) -> dict[str, Any]:
        return {"cycle": self.cycle, "subscriptions": self.subscriptions, "other_periods": self.others}

    @property
    def text(self) -> str:
        """A sentence for people; empty where all subscriptions have the cycle."""
        if not self.others and self.subscriptions:
            return ""
        count = f"{self.subscriptions:,} {self.cycle} subscription{'s' * (self.subscriptions != 1)}"
        if not self.subscriptions:
            count = "no subscription: none has such periods"
        spans = (
            f"{cycle} {labels[0] if len(labels) == 1 else f'{labels[0]} to {labels[-1]}'}"
            if labels
            else f"{cycle} none"
            for cycle, labels in self.others.items()
        )
        others = f" Other periods that end in it have labels of their own: {', '.join(spans)}." if self.others else ""
        return f"{self.label} covers {count}.{others}"


def coverage(label: str, catalog: Catalog) -> Coverage:
    """What a label covers, and which labels the periods have that it does not."""
    first, last = days_of_label(label)
    cycle = cycle_of_label(label)
    cycles = [one.cycle if not one.cycle.endswith(" days") else "days" for one in catalog.subscriptions]
    others: dict[str, set[str]] = {one: set() for one in sorted(set(cycles)) if one != cycle}
    around = [datetime.combine(day, time(), UTC) for day in (first - timedelta(days=2), last + timedelta(days=3))]
    for calendar in {one.calendar for one, own in zip(catalog.subscriptions, cycles) if own in others}:
        for period in billing_periods(around[0], around[1], calendar):
            last_day = local_time(period.end - timedelta(microseconds=1), calendar.time_zone).date()
            if first <= last_day <= last:
                others["days" if calendar.cycle.endswith(" days") else calendar.cycle].add(period.label)
    return Coverage(label, cycle, cycles.count(cycle), {one: sorted(labels) for one, labels in others.items()})
