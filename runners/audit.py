"""The audit before invoicing: the laws, checked on what is stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from meterline.schemas.catalog import Aggregation, Catalog
from meterline.transforms import clickhouse
from meterline.transforms.rules.attribution import Directory, directory
from meterline.transforms.rules.pricing import charge_interval

FIRST_ROWS = 5


@dataclass(frozen=True)
class Finding:
    """One law: how much was looked at, and the first rows that break it (none: it holds)."""

    law: str
    counted: str
    broken: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"law": self.law, "counted": self.counted, "broken": self.broken, "first_rows": self.rows}


def audit(url: str, catalog: Catalog | None) -> Iterator[Finding]:
    """Check each law, one after another.

    Args:
      catalog: Prices to recompute the amounts with; without, they are not.
    """
    clickhouse.ready(url)
    laws = list(_LAWS)
    if catalog is not None:
        added = [one.id for one in catalog.meters if one.aggregation in (Aggregation.SUM, Aggregation.COUNT)]
        laws.append(("sums and counts equal those of the archive", _ITEMS, _TOTALS.format(meters=added or [""])))
    for law, counted, broken in laws:
        yield _checked(url, law, counted, broken)
    if catalog is not None:
        yield _amounts(url, directory(catalog))


def _checked(url: str, law: str, counted: str, broken: str) -> Finding:
    count = clickhouse.query(url, counted).to_pylist()[0]
    rows = clickhouse.query(
        url, f"SELECT *, count() OVER () AS all_rows FROM ({broken}) LIMIT {FIRST_ROWS}"
    ).to_pylist()
    total = rows[0]["all_rows"] if rows else 0
    shown = [{name: value for name, value in row.items() if name != "all_rows"} for row in rows]
    return Finding(law, ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in count.items()), total, shown)


_EVENTS = "SELECT count() AS events FROM usage_events FINAL"
_ITEMS = "SELECT count() AS line_items FROM line_items FINAL"
_USED = """
    SELECT rating_key_id, account_id, event_time, quantity
    FROM (
        SELECT account_id, time AS event_time, arrayJoin(arrayZip(rating_keys, quantities)) AS pair,
               pair.1 AS rating_key_id, pair.2 AS quantity
        FROM usage_events FINAL
    )
"""
# Keys that could not be priced: their events are archived, and they have no line items.
_REJECTED = """
    SELECT rating_key_id FROM rating_keys
    WHERE rating_key IN (SELECT payload FROM rejects WHERE stage = 'rate')
      AND rating_key_id NOT IN (SELECT rating_key_id FROM line_items)
"""
# Name of the law, what is counted, and the rows that break it.
_LAWS: tuple[tuple[str, str, str], ...] = (
    (
        "an identity (tenant, source, id) is archived once, whatever its day",
        _EVENTS,
        """SELECT tenant_id, source, id, count() AS events, min(time) AS first, max(time) AS last
           FROM usage_events FINAL GROUP BY tenant_id, source, id HAVING events > 1 ORDER BY tenant_id, source, id""",
    ),
    (
        "the 64-bit ids of rating keys do not collide, and each in the archive is known",
        "SELECT uniqExact(rating_key_id) AS rating_keys FROM rating_keys",
        """SELECT rating_key_id, uniqExact(rating_key) AS meanings FROM rating_keys GROUP BY rating_key_id
           HAVING meanings > 1
           UNION ALL SELECT used AS rating_key_id, 0 AS meanings
           FROM (SELECT DISTINCT arrayJoin(rating_keys) AS used FROM usage_events FINAL)
           WHERE used NOT IN (SELECT rating_key_id FROM rating_keys)""",
    ),
    (
        "each archived event is counted in one line item for each meter it feeds",
        "SELECT sum(length(rating_keys)) AS counts_of_events FROM usage_events FINAL",
        f"""SELECT rating_key_id, account_id, archive.window AS window_start, archive.events AS archived,
                   items.events AS counted
            FROM (
                SELECT rating_key_id, account_id, count() AS events,
                       greatest(toDateTime64(toStartOfHour(event_time), 0, 'UTC'), period_start) AS window
                FROM ({_USED}) AS used
                INNER JOIN (
                    SELECT rating_key_id, any(rating_keys.period_start) AS period_start FROM rating_keys GROUP BY 1
                ) AS keys USING (rating_key_id)
                GROUP BY ALL
            ) AS archive
            FULL OUTER JOIN (
                SELECT rating_key_id, account_id, window_start AS window, event_count AS events FROM line_items FINAL
            ) AS items USING (rating_key_id, account_id, window)
            WHERE archive.events != items.events AND rating_key_id NOT IN ({_REJECTED})
            ORDER BY rating_key_id, window_start""",
    ),
    (
        "every rating key was priced, none was rejected at rate",
        "SELECT uniqExact(rating_key_id) AS rating_keys FROM rating_keys",
        f"""SELECT rating_key_id, any(rating_key) AS rating_key FROM rating_keys WHERE rating_key_id IN ({_REJECTED})
           GROUP BY rating_key_id ORDER BY rating_key_id""",
    ),
    (
        "line items of a rating key tile: each starts where the one before it ends",
        _ITEMS,
        """SELECT line_item_id, window_start, account_id, quantity_from, expected_from, revision, expected_revision
           FROM (
               SELECT line_item_id, window_start, account_id, quantity_from, revision,
                      lagInFrame(quantity_to, 1, toDecimal128(0, 12)) OVER cells AS expected_from,
                      sum(event_count) OVER (PARTITION BY rating_key_id ORDER BY window_start, account_id
                          ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS expected_revision
               FROM line_items FINAL
               WINDOW cells AS (PARTITION BY rating_key_id ORDER BY window_start, account_id
                                ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
           )
           WHERE quantity_from != expected_from OR revision != expected_revision ORDER BY line_item_id""",
    ),
    (
        "the tiers of a line item add up to its amount",
        _ITEMS,
        """SELECT line_item_id, amount, tier_sum FROM (
               SELECT line_item_id, amount, arraySum(arrayMap(x -> toDecimal256(x, 18), tiers.amount)) AS tier_sum,
                      length(tiers.amount) AS parts FROM line_items FINAL)
           WHERE toDecimal256(amount, 18) != tier_sum ORDER BY line_item_id""",
    ),
    (
        "the lines of an invoice add up to its total",
        "SELECT count() AS invoices FROM invoices FINAL",
        """SELECT number, invoice_id, total, line_sum FROM invoices FINAL LEFT JOIN (
               SELECT invoice_id, sum(toDecimal256(amount, 18)) AS line_sum FROM invoice_lines FINAL GROUP BY invoice_id
           ) AS lines USING (invoice_id) WHERE toDecimal256(total, 18) != line_sum ORDER BY number, invoice_id""",
    ),
    (
        "the postings of an issued invoice add up to 0",
        "SELECT uniqExact(invoice_id) AS posted_invoices FROM postings",
        """SELECT invoice_id, sum(toDecimal256(amount, 18)) AS balance FROM postings FINAL GROUP BY invoice_id
           HAVING balance != 0 ORDER BY invoice_id
           UNION ALL SELECT invoice_id, toDecimal256(0, 18) AS balance FROM invoices FINAL
           WHERE status = 'issued' AND invoice_id NOT IN (SELECT invoice_id FROM postings)""",
    ),
    (
        "every record of a run was accepted, a duplicate or rejected",
        "SELECT sum(records) AS records, count() AS runs FROM runs FINAL",
        """SELECT run_id, records, accepted, duplicates, arraySum(mapValues(rejected)) AS rejects FROM runs FINAL
           WHERE records != accepted + duplicates + arraySum(mapValues(rejected)) ORDER BY run_id""",
    ),
)

_TOTALS = f"""
SELECT rating_key_id, meter, line_items, archive FROM (
    SELECT rating_key_id, any(meter_id) AS meter,
           sum(toDecimal256(quantity_to, 12) - toDecimal256(quantity_from, 12)) AS line_items
    FROM line_items FINAL WHERE meter_id IN {{meters}} GROUP BY rating_key_id
) AS items
LEFT JOIN (
    SELECT rating_key_id, sum(toDecimal256(quantity, 12)) AS archive FROM ({_USED}) GROUP BY rating_key_id
) AS used
    USING (rating_key_id)
WHERE line_items != archive ORDER BY rating_key_id
"""
_PRICED = """
SELECT line_item_id, subscription_id, charge_id, rate_card_version, quantity_from, quantity_to, amount, rating_key,
       row_number() OVER (PARTITION BY rating_key_id ORDER BY window_start, account_id) = 1 AS opening
FROM line_items FINAL
INNER JOIN (SELECT rating_key_id, any(rating_keys.rating_key) AS rating_key FROM rating_keys GROUP BY 1) AS keys
    USING (rating_key_id)
WHERE charge_id != ''
"""


def _amounts(url: str, book: Directory) -> Finding:
    """Recompute each amount from its interval and the catalog's price."""
    rows = clickhouse.query(url, _PRICED).to_pylist()
    wrong = []
    for row in rows:
        priced = book.price_of(row["subscription_id"], row["charge_id"], row["rate_card_version"])
        expected: Decimal | None = None
        if priced is not None and not (row["opening"] and row["quantity_from"]):
            expected, _ = charge_interval(
                priced.price, row["quantity_from"], row["quantity_to"], opening=bool(row["opening"])
            )
        if expected != row["amount"]:
            wrong.append({"line_item_id": row["line_item_id"], "amount": row["amount"], "expected": expected})
    return Finding(
        "amounts recompute from the catalog's prices", f"{len(rows):,} line items", len(wrong), wrong[:FIRST_ROWS]
    )
