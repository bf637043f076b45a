"""The audit holds on what was rated and invoiced, names what was damaged, and rating from the archive mends it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from meterline.pipelines.invoice_accounts import Options
from meterline.runners.audit import Finding, audit
from meterline.runners.demo import RECEIVED, quickstart, usage_lines
from meterline.runners.jobs import fingerprint, make_invoices, rate_files, rerate_archive
from meterline.schemas.catalog_files import load_catalog
from meterline.transforms import clickhouse

CATALOG = load_catalog(quickstart() / "catalog")


@pytest.fixture
def rated(database: str, tmp_path: Path) -> str:
    file = tmp_path / "usage.ndjson"
    file.write_bytes(b"\n".join(usage_lines()[:2_000]))
    rate_files([str(file)], CATALOG, database, now=RECEIVED)
    make_invoices(Options("2023-11", CATALOG, database, datetime(2024, 1, 1, tzinfo=UTC), issue=True))
    return database


def broken(url: str) -> dict[str, Finding]:
    return {one.law: one for one in audit(url, CATALOG) if one.broken}


def test_the_laws_hold_on_what_was_rated(rated: str) -> None:
    assert broken(rated) == {}


def test_the_laws_hold_on_an_empty_database(database: str) -> None:
    assert broken(database) == {}


ITEM = "SELECT * REPLACE ({}) FROM line_items FINAL WHERE meter_id = 'requests' ORDER BY line_item_id LIMIT 1"
DAMAGE = {
    "an amount": (f"INSERT INTO line_items {ITEM.format('amount + 1 AS amount')}", "amounts recompute"),
    "tiers": (f"INSERT INTO line_items {ITEM.format('amount + 1 AS amount')}", "the tiers of a line item"),
    "an interval": (
        f"INSERT INTO line_items {ITEM.format('quantity_to + 1 AS quantity_to')}",
        "sums and counts",
    ),
    "a revision": (
        f"INSERT INTO line_items {ITEM.format('revision + 1 AS revision')}",
        "line items of a rating",
    ),
    "a count": (f"INSERT INTO line_items {ITEM.format('event_count + 1 AS event_count')}", "each archived event"),
    "an id on two days": (
        "INSERT INTO usage_events SELECT * REPLACE (time + INTERVAL 1 DAY AS time) FROM usage_events LIMIT 1",
        "an identity",
    ),
    "a void without its event": (
        "INSERT INTO voids SELECT tenant_id, time, source, 'other', '', '', time FROM usage_events LIMIT 1",
        "each void names",
    ),
    "a void that is not archived": (
        "INSERT INTO voids SELECT tenant_id, time, source, id, '', 'void_1', time FROM usage_events LIMIT 1",
        "each void names",
    ),
    "a void that line items do not know": (
        "INSERT INTO voids SELECT tenant_id, time, source, id, '', 'void_1', time FROM usage_events LIMIT 1",
        "each archived event",
    ),
    "an invoice's total": (
        "INSERT INTO invoices SELECT * REPLACE (total + 1 AS total) FROM invoices LIMIT 1",
        "the lines of an invoice",
    ),
    "a posting": (
        "INSERT INTO postings SELECT * REPLACE (amount + 1 AS amount) FROM postings LIMIT 1",
        "the postings of an issued",
    ),
    "a run": ("INSERT INTO runs SELECT * REPLACE (accepted + 1 AS accepted) FROM runs", "every record of a run"),
    "a rating key": (
        "INSERT INTO rating_keys SELECT * REPLACE (rating_key || ' ' AS rating_key) FROM rating_keys LIMIT 1",
        "the 64-bit ids",
    ),
}


@pytest.mark.parametrize(("sql", "law"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_found_and_its_first_rows_are_named(sql: str, law: str, rated: str) -> None:
    clickhouse.connect(rated).command(sql)
    found = [one for name, one in broken(rated).items() if name.startswith(law)]
    assert found, broken(rated)
    assert found[0].rows


def test_rating_from_the_archive_changes_nothing_and_mends_what_was_damaged(rated: str) -> None:
    before = fingerprint(rated)
    events, items = rerate_archive("2023-11", CATALOG, rated)
    assert (events, items) == (before.events, before.line_items)
    assert fingerprint(rated) == before
    clickhouse.connect(rated).command(DAMAGE["an amount"][0])
    assert fingerprint(rated) != before
    rerate_archive("2023-11", CATALOG, rated)
    assert fingerprint(rated) == before
    assert broken(rated) == {}


def test_rating_a_period_without_usage_from_the_archive_does_nothing(rated: str) -> None:
    assert rerate_archive("2024-05", CATALOG, rated) == (0, 0)


@pytest.mark.parametrize(("sql", "law"), DAMAGE.values(), ids=DAMAGE.keys())
def test_the_audit_of_a_period_looks_at_that_period_and_those_accounts_alone(sql: str, law: str, rated: str) -> None:
    clickhouse.connect(rated).command(sql)

    def found(period: str, *accounts: str) -> set[str]:
        return {one.law for one in audit(rated, CATALOG, period, accounts) if one.broken}

    assert any(name.startswith(law) for name in found("2023-11")) or law.startswith("every record of a run")
    elsewhere = {name for name in found("2024-06") if not name.startswith("the 64-bit ids")}
    assert not elsewhere


def test_an_archive_that_has_partly_gone_is_not_compared(rated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clickhouse.connect(rated).command("TRUNCATE TABLE usage_events")
    assert broken(rated)
    monkeypatch.setattr(clickhouse, "retention_days", lambda url: 97)
    assert broken(rated) == {}


def test_the_retention_is_read_from_the_table(database: str) -> None:
    assert clickhouse.retention_days(database) is None
    clickhouse.set_retention(database, 123)
    try:
        assert clickhouse.retention_days(database) == 123
    finally:
        clickhouse.set_retention(database, None)
    assert clickhouse.retention_days(database) is None
