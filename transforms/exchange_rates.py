"""Rates that may not change any more: those that were in force, and those that issued invoices were made by."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

from meterline.schemas.catalog import Catalog
from meterline.schemas.event import instant_text, plain_text
from meterline.transforms import clickhouse

# A period that had not ended when it was billed takes the rate that is in force when it ends.
_USED = """
SELECT DISTINCT JSONExtractString(terms, 'from') AS source, lines.currency AS target,
       JSONExtractString(terms, 'at') AS at, JSONExtractString(terms, 'rate') AS rate
FROM (SELECT * FROM invoice_lines FINAL WHERE kind = 'charge' AND terms != '') AS lines
INNER JOIN (SELECT invoice_id, made_at FROM invoices FINAL WHERE status = 'issued') AS invoices USING (invoice_id)
WHERE made_at > parseDateTimeBestEffort(at, 'UTC')
ORDER BY ALL
"""


def changed(url: str, before: Catalog, catalog: Catalog) -> Iterator[str]:
    """What a catalog says otherwise than the one published last, or than issued invoices, in words."""
    now = datetime.now(UTC)
    new = {(one.source, one.target): one for one in catalog.exchange_rates}
    for one in before.exchange_rates:
        own = new.get((one.source, one.target))
        dated = {entry.effective_from: entry.rate for entry in own.rates} if own else {}
        for entry in one.rates:
            if entry.effective_from <= now and dated.get(entry.effective_from) != entry.rate:
                since, was = instant_text(entry.effective_from), plain_text(entry.rate)
                yield f"the rate from {one.source} to {one.target} that took effect at {since} was {was}"
    for row in clickhouse.query(url, _USED).to_pylist():
        own, at = new.get((row["source"], row["target"])), datetime.fromisoformat(row["at"])
        if own is None or own.at(at) != Decimal(row["rate"]):
            yield (
                f"the rate from {row['source']} to {row['target']} at {row['at']} was {row['rate']} on issued invoices"
            )
