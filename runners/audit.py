"""The audit before invoicing: the laws, checked on what is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from meterline.runners.audit_adjustments import adjustments
from meterline.schemas.catalog import Catalog
from meterline.schemas.meters import Aggregation
from meterline.schemas.voids import VOID_TYPE
from meterline.transforms import clickhouse
from meterline.transforms.rules.attribution import Directory, directory
from meterline.transforms.rules.periods import longest_of_label, starts_of_label
from meterline.transforms.rules.pricing import charge_interval

FIRST_ROWS = 5
_BEGINNING, _END = datetime(1900, 1, 1, tzinfo=UTC), datetime(2250, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Finding:
    """One law: how much was looked at, and the first rows that break it (none: it holds)."""

    law: str
    counted: str
    broken: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"law": self.law, "counted": self.counted, "broken": self.broken, "first_rows": self.rows}


def audit(
    url: str, catalog: Catalog | None, period: str | None = None, accounts: Sequence[str] = ()
) -> Iterator[Finding]:
    """Check each law, one after another.

    Args:
      catalog: Prices to recompute the amounts with; without, they are not.
      period: A label like 2026-10: only what an invoice of the period can depend on. None: all that is stored.
      accounts: Billing accounts looked at; none for all.
    """
    clickhouse.ready(url)
    ask = _Question(url, _scope(url, period, accounts))
    for law, counted, broken in _LAWS if period else (*_LAWS, _RUNS):
        yield ask.checked(law, counted, broken)
    yield _adjustments(ask)
    if catalog is not None:
        added = [one.id for one in catalog.meters if one.aggregation in (Aggregation.SUM, Aggregation.COUNT)]
        ask.parameters["meters"] = added
        yield ask.checked("sums and counts equal those of the archive", _COUNT_ITEMS, _TOTALS)
        yield _amounts(ask, directory(catalog))


def _scope(url: str, period: str | None, accounts: Sequence[str]) -> dict[str, Any]:
    if not period:
        return _between(url, _BEGINNING, _END, accounts=list(accounts))
    first, last = starts_of_label(period)
    ended = last + longest_of_label(period)
    return _between(url, first, last, ended=ended, period=period, accounts=list(accounts))


def _between(url: str, first: datetime, last: datetime, **more: Any) -> dict[str, Any]:
    """Billing periods that start in [first, last)."""
    retention = clickhouse.retention_days(url)
    kept = datetime.now(UTC) - timedelta(days=retention) if retention else first
    return {
        "period": "",
        "accounts": [],
        "since": first,
        "until": last,
        "ended": last,
        # Of a period that starts earlier the archive is not whole any more.
        "kept": max(first, kept.replace(microsecond=0)),
        **more,
    }


@dataclass(frozen=True)
class Counts:
    """The archive against the line items.

    Args:
      archived: Events, once for each meter they feed.
      counted: Of these, what line items say that they counted, or left out as voided.
      difference: By how many events the two differ, cell by cell. 0, but for what is under way.
    """

    archived: int
    counted: int
    difference: int


def counts(url: str, since: datetime, settled: datetime) -> Counts:
    """The law that each archived event is counted in one line item for each meter it feeds, as numbers.

    Args:
      since: Of billing periods that start then or later.
      settled: A cell whose latest event was received then or later does not enter the difference: its line item may be
        on its way.
    """
    row = _Question(url, {**_between(url, since, _END), "settled": settled}).rows(_SUMS)[0]
    return Counts(row["archived_counts"], row["item_counts"], row["difference"])


@dataclass
class _Question:
    url: str
    parameters: dict[str, Any]

    def rows(self, sql: str) -> list[dict[str, Any]]:
        return clickhouse.query(self.url, sql, self.parameters).to_pylist()

    def checked(self, law: str, counted: str, broken: str) -> Finding:
        count = self.rows(counted)[0]
        rows = self.rows(f"SELECT *, count() OVER () AS all_rows FROM ({broken}) LIMIT {FIRST_ROWS}")
        total = rows[0]["all_rows"] if rows else 0
        shown = [{name: value for name, value in row.items() if name != "all_rows"} for row in rows]
        counts = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in count.items())
        return Finding(law, counts, total, shown)


# The part of each table that is looked at.
_PAYERS = "(empty({accounts:Array(String)}) OR billing_account_id IN {accounts:Array(String)})"
_STARTS = (
    "period_start >= {since:DateTime64(0, 'UTC')} AND period_start < {until:DateTime64(0, 'UTC')} "
    "AND period_end < {ended:DateTime64(0, 'UTC')}"
)
_TIMES = "time >= {since:DateTime64(0, 'UTC')} AND time < {ended:DateTime64(0, 'UTC')}"
_EVENTS = f"(SELECT * FROM usage_events FINAL WHERE {_TIMES} AND {_PAYERS})"
_ITEMS = f"(SELECT * FROM line_items FINAL WHERE {_STARTS} AND {_PAYERS})"
_KEYS = f"(SELECT * FROM rating_keys WHERE {_STARTS} AND {_PAYERS})"
_INVOICES = f"(SELECT * FROM invoices FINAL WHERE ({{period:String}} = '' OR period = {{period:String}}) AND {_PAYERS})"
# Where the archive is whole.
_KEPT = "period_start >= {kept:DateTime64(0, 'UTC')}"

_OFF = "('discount', 'rollover')"
_VOIDED = "(tenant_id, source, id, time) IN (SELECT tenant_id, source, id, time FROM voids)"
_AT_VOIDS = "(tenant_id, time) IN (SELECT tenant_id, time FROM voids)"
_COUNT_EVENTS = f"SELECT count() AS events FROM {_EVENTS}"
_COUNT_ITEMS = f"SELECT count() AS line_items FROM {_ITEMS}"
_USED = f"""
    SELECT rating_key_id, account_id, event_time, received_time, quantity, is_voided
    FROM (
        SELECT account_id, time AS event_time, received_time, arrayJoin(arrayZip(rating_keys, quantities)) AS pair,
               pair.1 AS rating_key_id, pair.2 AS quantity, {_VOIDED} AS is_voided
        FROM {_EVENTS}
    )
"""
# Keys that could not be priced: their events are archived, and they have no line items.
_REJECTED = f"""
    SELECT rating_key_id FROM {_KEYS}
    WHERE rating_key IN (SELECT payload FROM rejects WHERE stage = 'rate')
      AND rating_key_id NOT IN (SELECT rating_key_id FROM line_items)
"""
# By cell: what is archived, and what its line item counts.
_COUNTS = f"""
    SELECT rating_key_id, account_id, archive.window AS window_start, archive.events AS archived,
           items.events AS counted, archive.voids AS voids, items.voids AS voided, archive.latest AS latest
    FROM (
        SELECT rating_key_id, account_id, countIf(NOT is_voided) AS events, countIf(is_voided) AS voids,
               max(received_time) AS latest,
               greatest(toDateTime64(toStartOfHour(event_time), 0, 'UTC'), period_start) AS window
        FROM ({_USED}) AS used
        INNER JOIN (
            SELECT rating_key_id, any(keys.period_start) AS period_start
            FROM (SELECT * FROM {_KEYS} WHERE {_KEPT}) AS keys GROUP BY 1
        ) AS keys USING (rating_key_id)
        GROUP BY rating_key_id, account_id, window
    ) AS archive
    FULL OUTER JOIN (
        SELECT rating_key_id, account_id, window_start AS window, event_count AS events, voided_count AS voids
        FROM {_ITEMS} WHERE {_KEPT}
    ) AS items USING (rating_key_id, account_id, window)
    WHERE rating_key_id NOT IN ({_REJECTED})
"""
_SUMS = f"""
    SELECT sum(archived + voids) AS archived_counts, sum(counted + voided) AS item_counts,
           sumIf(greatest(archived, counted) - least(archived, counted)
                 + greatest(voids, voided) - least(voids, voided),
                 latest < {{settled:DateTime64(6, 'UTC')}}) AS difference
    FROM ({_COUNTS})
"""
# Name of the law, what is counted, and the rows that break it.
_LAWS: tuple[tuple[str, str, str], ...] = (
    (
        "an identity (tenant, source, id) is archived once, whatever its day, or voided",
        _COUNT_EVENTS,
        # Grouped by 12 bytes first, as ids are long and there may be very many.
        f"""SELECT tenant_id, source, id, count() AS events, min(time) AS first, max(time) AS last
           FROM usage_events FINAL
           WHERE substring(identity, 1, 12) IN (
               SELECT substring(identity, 1, 12) AS name FROM usage_events FINAL GROUP BY name HAVING count() > 1
               SETTINGS max_bytes_before_external_group_by = 4000000000)
             AND NOT {_VOIDED}
           GROUP BY tenant_id, source, id HAVING events > 1 AND countIf({_TIMES} AND {_PAYERS}) > 0
           ORDER BY tenant_id, source, id""",
    ),
    (
        "the 64-bit ids of rating keys do not collide, and each in the archive is known",
        f"SELECT uniqExact(rating_key_id) AS rating_keys FROM {_KEYS}",
        f"""SELECT rating_key_id, uniqExact(rating_key) AS meanings FROM rating_keys GROUP BY rating_key_id
           HAVING meanings > 1
           UNION ALL SELECT used AS rating_key_id, 0 AS meanings
           FROM (SELECT DISTINCT arrayJoin(rating_keys) AS used FROM {_EVENTS})
           WHERE used NOT IN (SELECT rating_key_id FROM rating_keys)""",
    ),
    (
        "each void names an archived event, and is archived",
        f"SELECT count() AS voided_events FROM voids FINAL WHERE {_TIMES}",
        f"""SELECT tenant_id, time, source, id, void_id FROM voids FINAL
           WHERE {_TIMES} AND time >= (SELECT min(time) FROM usage_events)
             AND ((tenant_id, time, source, id) NOT IN (
                      SELECT tenant_id, time, source, id FROM usage_events WHERE {_AT_VOIDS} AND type != '{VOID_TYPE}')
                  OR (tenant_id, time, void_id) NOT IN (
                      SELECT tenant_id, time, id FROM usage_events WHERE {_AT_VOIDS} AND type = '{VOID_TYPE}'))
           ORDER BY tenant_id, time, source, id""",
    ),
    (
        "each archived event is counted in one line item for each meter it feeds, or voided there",
        f"SELECT sum(length(rating_keys)) AS counts_of_events FROM {_EVENTS}",
        f"""SELECT rating_key_id, account_id, window_start, archived, counted, voids, voided FROM ({_COUNTS})
            WHERE archived != counted OR voids != voided ORDER BY rating_key_id, window_start""",
    ),
    (
        "every rating key was priced, none was rejected at rate",
        f"SELECT uniqExact(rating_key_id) AS rating_keys FROM {_KEYS}",
        f"""SELECT rating_key_id, any(rating_key) AS rating_key FROM rating_keys WHERE rating_key_id IN ({_REJECTED})
           GROUP BY rating_key_id ORDER BY rating_key_id""",
    ),
    (
        "line items of a rating key tile: each starts where the one before it ends",
        _COUNT_ITEMS,
        f"""SELECT line_item_id, window_start, account_id, quantity_from, expected_from, revision, expected_revision
           FROM (
               SELECT line_item_id, window_start, account_id, quantity_from, revision,
                      lagInFrame(quantity_to, 1, toDecimal128(0, 12)) OVER cells AS expected_from,
                      sum(event_count + 2 * voided_count) OVER (
                          PARTITION BY rating_key_id ORDER BY window_start, account_id
                          ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS expected_revision
               FROM {_ITEMS}
               WINDOW cells AS (PARTITION BY rating_key_id ORDER BY window_start, account_id
                                ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
           )
           WHERE quantity_from != expected_from OR revision != expected_revision ORDER BY line_item_id""",
    ),
    (
        "the tiers of a line item add up to its amount",
        _COUNT_ITEMS,
        f"""SELECT line_item_id, amount, tier_sum FROM (
               SELECT line_item_id, amount, arraySum(arrayMap(x -> toDecimal256(x, 18), tiers.amount)) AS tier_sum,
                      length(tiers.amount) AS parts FROM {_ITEMS})
           WHERE toDecimal256(amount, 18) != tier_sum ORDER BY line_item_id""",
    ),
    (
        "the lines of an invoice add up to its total",
        f"SELECT count() AS invoices FROM {_INVOICES}",
        f"""SELECT number, invoice_id, total, line_sum FROM {_INVOICES} AS invoices LEFT JOIN (
               SELECT invoice_id, sum(toDecimal256(amount, 18)) AS line_sum FROM invoice_lines FINAL GROUP BY invoice_id
           ) AS lines USING (invoice_id) WHERE toDecimal256(total, 18) != line_sum ORDER BY number, invoice_id""",
    ),
    (
        "no charge is discounted by more than it comes to",
        f"SELECT count() AS discount_lines FROM invoice_lines FINAL WHERE kind IN {_OFF} AND invoice_id IN "
        f"(SELECT invoice_id FROM {_INVOICES})",
        f"""SELECT billing_account_id, period, subscription_id, charge_id, rate_card_version,
                   sumIf(toDecimal256(amount, 18), kind = 'charge') AS charged,
                   sumIf(toDecimal256(amount, 18), kind IN {_OFF}) AS discounted
           FROM (SELECT * FROM invoice_lines FINAL WHERE charge_id != '') AS lines
           INNER JOIN (SELECT invoice_id, period FROM {_INVOICES} WHERE status = 'issued') AS issued USING (invoice_id)
           GROUP BY tenant_id, billing_account_id, period, subscription_id, charge_id, rate_card_version, currency
           HAVING charged + discounted < 0 AND discounted < 0
           ORDER BY billing_account_id, period, subscription_id, charge_id, rate_card_version""",
    ),
    (
        "the postings of an issued invoice add up to 0",
        "SELECT uniqExact(invoice_id) AS posted_invoices FROM postings",
        f"""SELECT invoice_id, sum(toDecimal256(amount, 18)) AS balance FROM postings FINAL
           WHERE {{period:String}} = '' OR invoice_id IN (SELECT invoice_id FROM {_INVOICES})
           GROUP BY invoice_id HAVING balance != 0 ORDER BY invoice_id
           UNION ALL SELECT invoice_id, toDecimal256(0, 18) AS balance FROM {_INVOICES}
           WHERE status = 'issued' AND invoice_id NOT IN (SELECT invoice_id FROM postings)""",
    ),
)
_ADJUSTMENTS = f"""
SELECT invoice_id, invoices.tenant_id AS tenant_id, invoices.billing_account_id AS billing_account_id, period,
       invoices.currency AS currency, sequence, kind, source, subscription_id, charge_id, rating_key_id,
       rate_card_version, period_start, dimensions, terms, amount
FROM (
    SELECT * FROM invoice_lines FINAL
    WHERE kind != 'charge' OR rating_key_id IN (
        SELECT rating_key_id FROM invoice_lines FINAL WHERE kind = 'charge' AND terms != '')
) AS lines
INNER JOIN {_INVOICES} AS invoices USING (invoice_id)
ORDER BY tenant_id, billing_account_id, period, currency, sequence, invoice_id, line_number
"""
_RUNS = (
    "every record of a run was accepted, a duplicate or rejected",
    "SELECT sum(records) AS records, count() AS runs FROM runs FINAL",
    """SELECT run_id, records, accepted, duplicates, arraySum(mapValues(rejected)) AS rejects FROM runs FINAL
       WHERE records != accepted + duplicates + arraySum(mapValues(rejected)) ORDER BY run_id""",
)

_TOTALS = f"""
SELECT rating_key_id, meter, line_items, archive FROM (
    SELECT rating_key_id, any(meter_id) AS meter,
           sum(toDecimal256(quantity_to, 12) - toDecimal256(quantity_from, 12)) AS line_items
    FROM {_ITEMS} WHERE meter_id IN {{meters:Array(String)}} AND {_KEPT} GROUP BY rating_key_id
) AS items
LEFT JOIN (
    SELECT rating_key_id, sum(toDecimal256(quantity, 12)) AS archive FROM ({_USED}) WHERE NOT is_voided
    GROUP BY rating_key_id
) AS used
    USING (rating_key_id)
WHERE line_items != archive ORDER BY rating_key_id
"""
# A key opens with its first event that counts.
_PRICED = f"""
SELECT line_item_id, subscription_id, charge_id, rate_card_version, dimensions, quantity_from, quantity_to, amount,
       toInt64(toUnixTimestamp64Second(window_start)) AS window_start, event_count,
       sum(event_count) OVER (
           PARTITION BY rating_key_id ORDER BY window_start, account_id
           ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS events_to,
       event_count = events_to AS opening
FROM {_ITEMS}
WHERE charge_id != ''
"""


def _amounts(ask: _Question, book: Directory) -> Finding:
    """Recompute each amount from its interval and the catalog's price."""
    rows = ask.rows(_PRICED)
    wrong = []
    for row in rows:
        priced = book.price_of(
            row["subscription_id"], row["charge_id"], row["rate_card_version"], dict(row["dimensions"]).items()
        )
        expected: Decimal | None = None
        if not row["event_count"]:
            expected = Decimal(0)
        elif priced is not None and not (row["opening"] and row["quantity_from"]):
            expected, _ = charge_interval(
                priced.at(row["window_start"]),
                row["quantity_from"],
                row["quantity_to"],
                opening=bool(row["opening"]),
                events=(row["events_to"] - row["event_count"], row["events_to"]),
            )
        if expected != row["amount"]:
            wrong.append({"line_item_id": row["line_item_id"], "amount": row["amount"], "expected": expected})
    return Finding(
        "amounts recompute from the catalog's prices", f"{len(rows):,} line items", len(wrong), wrong[:FIRST_ROWS]
    )


def _adjustments(ask: _Question) -> Finding:
    """Recompute what converted charges, discounts, tax and the like come to, from the terms that their lines record."""
    rows = ask.rows(_ADJUSTMENTS)
    wrong = [
        {name: one.row[name] for name in ("invoice_id", "kind", "source")} | {"amount": one.amount, "terms": one.terms}
        for one in adjustments(rows)
        if not one.holds
    ]
    law = "discounts, credits and tax recompute from the terms on their lines"
    return Finding(law, f"{len(rows):,} lines", len(wrong), wrong[:FIRST_ROWS])
