"""Subscriptions of several cycles: every period is invoiced once, under its own label, and fees in advance before."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from meterline.pipelines.invoice_accounts import Options
from meterline.runners.audit import audit
from meterline.runners.explain import explain
from meterline.runners.invoices import coverage, invoices_of, lines_of
from meterline.runners.jobs import InputError, check_retention, make_invoices, rate_files, rerate_archive
from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_files import load_catalog
from meterline.transforms import clickhouse

CATALOG = """
meters:
  - {id: calls, event_type: call, aggregation: count, unit: call}
rate_cards:
  - id: card
    currency: USD
    versions:
      - version: v1
        effective_from: 2025-01-01T00:00:00Z
        prices:
          calls: {model: per_unit, unit_price: "1"}
          fee: {model: fixed, amount: "31", billed: in_advance, prorate: day}
          support: {model: fixed, amount: "62"}
plans:
  - id: plan
    rate_card: card
    charges: [{id: calls, meter: calls}, {id: fee}, {id: support}]
accounts: [{id: weeks}, {id: months}, {id: quarters}, {id: years}, {id: tens}]
subscriptions:
  - {id: w, account: weeks, plan: plan, start: 2025-12-01T00:00:00Z, cycle: weekly, anchor: 2026-01-04}
  - {id: m, account: months, plan: plan, start: 2026-01-12T12:00:00Z, time_zone: Europe/Berlin, anchor_day: 1}
  - {id: q, account: quarters, plan: plan, start: 2025-12-01T00:00:00Z, cycle: quarterly, anchor: 2025-11-30}
  - {id: y, account: years, plan: plan, start: 2025-02-28T00:00:00Z, cycle: yearly, anchor: 2024-02-29}
  - {id: t, account: tens, plan: plan, start: 2025-12-01T00:00:00Z, cycle: 10 days, anchor: 2026-01-03}
"""
ACCOUNTS = ("weeks", "months", "quarters", "years", "tens")
END = datetime(2027, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("catalog")
    (folder / "all.yaml").write_text(CATALOG)
    return load_catalog(folder)


def events(first: datetime, days: int) -> list[bytes]:
    """One call a day of each account."""
    return [
        json.dumps(
            {"specversion": "1.0", "id": f"{account}-{day}", "source": "/gw", "type": "call", "subject": account}
            | {"time": (first + timedelta(days=day)).isoformat(), "data": {}}
        ).encode()
        for account in ACCOUNTS
        for day in range(days)
    ]


@pytest.fixture
def rated(database: str, catalog: Catalog, tmp_path: Path) -> str:
    """40 calls of each account, from 2025-12-20 12:00 on, in two runs."""
    whole = events(datetime(2025, 12, 20, 12, tzinfo=UTC), 40)
    for number, part in enumerate((whole[::2], whole[1::2])):
        file = tmp_path / f"{number}.ndjson"
        file.write_bytes(b"\n".join(part) + b"\n")
        rate_files([str(file)], catalog, database, now=END)
    return database


def invoice(url: str, catalog: Catalog, label: str, now: datetime = END, issue: bool = True) -> list[dict[str, Any]]:
    make_invoices(Options(label, catalog, url, now, issue=issue))
    return [{**head, "lines": lines_of(url, head)} for head in invoices_of(url, label)]


def test_every_period_of_every_cycle_is_invoiced_once(rated: str, catalog: Catalog) -> None:
    assert all(not law.broken for law in audit(rated, catalog))
    labels = ["2025", "2026", "2025-Q4", "2025-12", "2026-01"]
    labels += [f"{date(2025, 12, 14) + timedelta(days=7 * number):%G-W%V}" for number in range(7)]
    labels += [str(date(2025, 12, 14) + timedelta(days=10 * number)) for number in range(5)]
    billed = dict.fromkeys(ACCOUNTS, Decimal(0))
    for place, label in enumerate(labels):
        if place % 3 == 0:
            assert all(not law.broken for law in audit(rated, catalog, label))
        for one in invoice(rated, catalog, label):
            billed[one["billing_account_id"]] += sum(
                (line["quantity"] for line in one["lines"] if line["meter_id"]), Decimal(0)
            )
        if place % 3 == 0:
            assert make_invoices(Options(label, catalog, rated, END, issue=True)).issued == 0
    # The monthly subscription begins on 12 January at noon, and has that day's call.
    assert billed == {**dict.fromkeys(ACCOUNTS, Decimal(40)), "months": Decimal(40 - 23)}


def test_an_archive_that_is_kept_for_less_than_a_period_is_refused(database: str, catalog: Catalog) -> None:
    check_retention(database, catalog)
    try:
        clickhouse.set_retention(database, 438)
        with pytest.raises(InputError, match=r"periods that are yearly.*for 438 days, expected at least 439"):
            check_retention(database, catalog)
        clickhouse.set_retention(database, 439)
        check_retention(database, catalog)
        clickhouse.set_retention(database, 97)
        check_retention(database, catalog.model_copy(update={"subscriptions": catalog.subscriptions[:2]}))
    finally:
        clickhouse.set_retention(database, None)


def test_a_label_says_what_it_covers(catalog: Catalog) -> None:
    assert coverage("2026-02", catalog).text == (
        "2026-02 covers 1 monthly subscription. Other periods that end in it have labels of their own: days 2026-01-23 "
        "to 2026-02-12, quarterly 2025-Q4, weekly 2026-W05 to 2026-W08, yearly 2025."
    )
    only = catalog.model_copy(update={"subscriptions": catalog.subscriptions[1:2]})
    assert coverage("2026-02", only).text == ""
    assert coverage("2026-W07", only).text == (
        "2026-W07 covers no subscription: none has such periods. Other periods that end in it have labels of their "
        "own: monthly none."
    )


def test_a_fee_in_advance_is_issued_when_the_period_begins_and_the_rest_when_it_has_ended(
    rated: str, catalog: Catalog
) -> None:
    before, begun = datetime(2025, 12, 31, 22, tzinfo=UTC), datetime(2025, 12, 31, 23, tzinfo=UTC)
    assert invoice(rated, catalog, "2026-01", before) == []
    (first,) = invoice(rated, catalog, "2026-01", begun)
    assert [(line["charge_id"], line["amount"], line["reason"]) for line in first["lines"]] == [("fee", 20, "fee")]
    assert len(invoice(rated, catalog, "2026-01", begun + timedelta(days=9))) == 1
    first, second = invoice(rated, catalog, "2026-01")
    assert (second["number"], second["kind"]) == ("months-2026-01-USD-2", "invoice")
    assert [(line["charge_id"], line["quantity"], line["reason"]) for line in second["lines"]] == [
        ("calls", 17, "usage"),
        ("support", 1, "fee"),
    ]
    line = explain(rated, first["lines"][0]["invoice_line_id"], catalog).found[0]
    assert line.price.text == "fixed fee: 31 for each billing period, in advance; prorated by local days"  # type: ignore[union-attr]
    assert (line.fee.covered, line.fee.whole, line.fee.prorated) == (20, 31, 20)  # type: ignore[union-attr]
    assert explain(rated, second["number"], catalog).found


def test_what_ends_early_gives_a_fee_in_advance_back(rated: str, catalog: Catalog) -> None:
    invoice(rated, catalog, "2026-02", datetime(2026, 2, 2, tzinfo=UTC))
    ended = catalog.subscriptions[1].model_copy(update={"end": datetime(2026, 2, 14, 23, tzinfo=UTC)})
    shorter = catalog.model_copy(
        update={"subscriptions": (catalog.subscriptions[0], ended, *catalog.subscriptions[2:])}
    )
    shorter = Catalog.model_validate(shorter.model_dump())
    first, second = invoice(rated, shorter, "2026-02", datetime(2026, 2, 15, tzinfo=UTC))
    assert (first["total"], second["kind"], second["total"]) == (31, "credit_note", Decimal("-15.50"))
    assert [(line["charge_id"], line["reason"]) for line in second["lines"]] == [("fee", "correction")]


def test_a_draft_of_a_period_that_has_not_ended_stays_when_nothing_is_issued(rated: str, catalog: Catalog) -> None:
    begun = datetime(2026, 2, 2, tzinfo=UTC)
    invoice(rated, catalog, "2026-02", begun)
    drafts = invoice(rated, catalog, "2026-02", begun, issue=False)
    assert [one["status"] for one in drafts] == ["issued", "draft"]
    assert invoice(rated, catalog, "2026-02", begun) == drafts


@pytest.mark.parametrize("label", ["2025", "2026-W03"])
def test_a_period_of_any_cycle_is_recomputed_from_its_archive(rated: str, catalog: Catalog, label: str) -> None:
    count, items = rerate_archive(label, catalog, rated)
    assert count >= items > 0
    assert all(not law.broken for law in audit(rated, catalog))
