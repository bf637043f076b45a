"""What ClickHouse holds after a run, brought into the auditor's terms, and the comparison of the two."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

from meterline.transforms import clickhouse

from .auditor import Books, Catalog, Event, Terms, as_decimal, billing_account_of, by_id, dimensions_of, terms_of

Row = dict[str, Any]

TABLES = ("line_items", "usage_events", "rating_keys", "voids", "rejects")


class Different(AssertionError):
    """The database and the books disagree."""


def stored(url: str) -> dict[str, list[Row]]:
    """All rows of the job's tables, as readers see them."""
    return {table: _rows(url, f"SELECT * FROM {table} FINAL ORDER BY ALL") for table in TABLES}


def _rows(url: str, sql: str) -> list[Row]:
    result = clickhouse.connect(url).query(sql, column_formats={"payload": "bytes"})
    return [dict(zip(result.column_names, map(_in_utc, row))) for row in result.result_rows]


def _in_utc(value: Any) -> Any:
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value


def compare(
    tables: dict[str, list[Row]],
    books: Books,
    catalog: Catalog,
    counters: dict[str, int] | None = None,
    *,
    rated_before: bool = False,
) -> None:
    """The ledger and the books, to the last digit.

    Args:
      counters: Of the run, or the sums of several; none where they are looked at elsewhere.
      rated_before: Whether an earlier run had accepted the same events, so that all were duplicates in this one.

    Raises:
      Different: saying where.
    """
    _same("line_items", map(_line_item, tables["line_items"]), (_expected_item(i, catalog) for i in books.line_items))
    for row in tables["line_items"]:
        _adds_up(row)
    keys = {row["rating_key_id"]: row for row in tables["rating_keys"]}
    used = {key for row in tables["usage_events"] for key in row["rating_keys"]}
    if keys.keys() != used or len(keys) != len(tables["rating_keys"]):
        raise Different(f"{len(used)} rating keys are used, {len(tables['rating_keys'])} are stored")
    _same(
        "usage_events",
        (_archived(row, keys) for row in tables["usage_events"]),
        (_expected_event(event, catalog) for event in books.accepted),
    )
    _items_and_events(tables)
    voids = ((row["tenant_id"], row["time"], row["source"], row["id"]) for row in tables["voids"])
    _same("voids", voids, books.voided)
    _same(
        "rejects",
        ((row["reason"], row["stage"], row["payload"].strip()) for row in tables["rejects"]),
        ((reason, stage, payload.strip()) for reason, stage, payload in books.rejects),
    )
    if counters is not None:
        _counters(books, counters, rated_before)


def _same(name: str, found: Any, expected: Any) -> None:
    """Two bags of rows are one."""
    have, want = Counter(map(_frozen, found)), Counter(map(_frozen, expected))
    if have != want:
        extra, missing = list((have - want).elements()), list((want - have).elements())
        show = [f"  only in ClickHouse: {_short(row)}" for row in extra[:2]]
        show += [f"  only in the books:  {_short(row)}" for row in missing[:2]]
        raise Different("\n".join([f"{name}: {len(extra)} rows too many, {len(missing)} are missing", *show]))


def _short(row: Any) -> str:
    text = repr(row)
    return text if len(text) < 1500 else text[:1500] + "…"


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(sorted((name, _frozen(inner)) for name, inner in value.items()))
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return value


COPIED = (
    *("tenant_id", "billing_account_id", "account_id", "subscription_id", "charge_id", "meter_id"),
    *("rate_card_version", "dimensions", "period_start", "period_end", "window_start", "window_end"),
    *("quantity_from", "quantity_to", "amount", "currency", "event_count", "voided_count", "revision"),
)


def _line_item(row: Row) -> Row:
    return {name: row[name] for name in COPIED}


def _expected_item(item: dict[str, Any], catalog: Catalog) -> Row:
    expected = dict(item)
    for name, places in (("quantity_from", 12), ("quantity_to", 12), ("amount", 18)):
        expected[name] = as_decimal(Fraction(item[name]), places)
    expected["currency"] = ""
    if item["subscription_id"]:
        plan = by_id(catalog["plans"], by_id(catalog["subscriptions"], item["subscription_id"])["plan"])
        expected["currency"] = by_id(catalog["rate_cards"], plan["rate_card"])["currency"]
    return {name: expected[name] for name in COPIED}


def _adds_up(row: Row) -> None:
    """The tiers shown explain the line (docs/rules.md, section 6)."""
    if row["charge_id"] == "":
        return
    amount = sum(map(Fraction, row["tiers.amount"]), Fraction(0))
    quantity = sum(map(Fraction, row["tiers.quantity"]), Fraction(0))
    if amount != Fraction(row["amount"]) or quantity != Fraction(row["quantity_to"]) - Fraction(row["quantity_from"]):
        raise Different(f"tiers do not add up to their line item: {row}")


def _archived(row: Row, keys: dict[int, Row]) -> Row:
    """An archived event with what it counts for, by meter; each key is written out."""
    readings = {}
    for key_id, quantity, value in zip(row["rating_keys"], row["quantities"], row["counted_values"]):
        if key_id not in keys:
            raise Different(f"event {row['id']!r} names rating key {key_id}, which is not stored")
        key = keys[key_id]
        readings[key["meter_id"]] = (
            *(key["billing_account_id"], key["subscription_id"], key["charge_id"], key["rate_card_version"]),
            *(key["period_start"], key["period_end"], tuple(sorted(key["dimensions"].items())), quantity, value),
        )
    names = ("tenant_id", "source", "id", "time", "type", "subject", "account_id", "billing_account_id")
    return {**{name: row[name] for name in names}, "readings": readings}


def _expected_event(event: Event, catalog: Catalog) -> Row:
    readings = {}
    billing_account = billing_account_of(event.account_id, catalog)
    for meter_id, reading in event.readings.items():
        terms: Terms = terms_of(event, meter_id, catalog)
        counted = isinstance(reading.value, Fraction)
        readings[meter_id] = (
            *(billing_account, terms.subscription_id, terms.charge_id, terms.version, *terms.period),
            tuple(sorted(dimensions_of(reading, terms))),
            as_decimal(reading.value, 12) if isinstance(reading.value, Fraction) else Decimal("1.000000000000"),
            reading.series if counted or reading.value is None else reading.value,
        )
    return {
        "tenant_id": event.tenant,
        "source": event.source,
        "id": event.id,
        "time": event.time,
        "type": event.type,
        "subject": event.subject,
        "account_id": event.account_id,
        "billing_account_id": billing_account,
        "readings": readings,
    }


def _items_and_events(tables: dict[str, list[Row]]) -> None:
    """From each line item lead its rating key, window and account to just the events it counts."""
    fed: Counter[tuple[Any, ...]] = Counter()
    starts = {row["rating_key_id"]: row["period_start"] for row in tables["rating_keys"]}
    for event in tables["usage_events"]:
        hour: datetime = event["time"].replace(minute=0, second=0, microsecond=0)
        for key_id in event["rating_keys"]:
            fed[key_id, max(hour, starts[key_id]), event["account_id"]] += 1
    told = {(row["rating_key_id"], row["window_start"], row["account_id"]): row for row in tables["line_items"]}
    if fed != {place: row["event_count"] + row["voided_count"] for place, row in told.items()}:
        raise Different("line items do not lead to their events")
    if len({row["line_item_id"] for row in told.values()}) != len(tables["line_items"]):
        raise Different("two line items have one id")
    for row in told.values():
        if not timedelta(0) < row["window_end"] - row["window_start"] <= timedelta(hours=1):
            raise Different(f"a window is no part of an hour: {row}")


def _counters(books: Books, counters: dict[str, int], rated_before: bool) -> None:
    """Every record that came is in one place, and the job's own counters say so."""
    expected: Counter[str] = Counter(f"{stage}/{reason}" for reason, stage, _ in books.rejects)
    expected["deduplicate/accepted"] = 0 if rated_before else len(books.accepted)
    expected["deduplicate/duplicate"] = books.duplicates + (len(books.accepted) if rated_before else 0)
    counted = {name: counters.get(name, 0) for name in expected}
    if counted != dict(expected):
        raise Different(f"counters: the job counted {counted}, the books {dict(expected)}")
    came = counters.get("validate/records", 0)
    left = sum(
        count
        for name, count in counters.items()
        if name.startswith(("validate/", "attribute/", "void/", "deduplicate/")) and name != "validate/records"
    )
    if not came == left == len(books.accepted) + books.duplicates + len(books.rejects):
        raise Different(f"{came} records came, {left} were accounted for: {counters}")
