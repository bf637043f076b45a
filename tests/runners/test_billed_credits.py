"""Commitments and credits over several billing periods: late usage settles itself, and no balance falls below zero."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from meterline.pipelines.invoice_accounts import Options
from meterline.runners.audit import audit
from meterline.runners.explain import explain
from meterline.runners.invoices import invoices_of, lines_of
from meterline.runners.jobs import make_invoices, rate_files
from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_files import load_catalog
from meterline.transforms import clickhouse

LATER = datetime(2027, 1, 1, tzinfo=UTC)
CATALOG = """
meters:
  - {id: tokens, event_type: call, aggregation: sum, value: tokens, unit: token}
rate_cards:
  - id: card
    currency: EUR
    versions:
      - {version: v1, effective_from: 2025-01-01T00:00:00Z, prices: {tokens: {model: per_unit, unit_price: "1"}}}
plans:
  - {id: plan, rate_card: card, charges: [{id: tokens, name: Tokens, meter: tokens}]}
accounts:
  - {id: north}
subscriptions:
  - {id: north-plan, account: north, plan: plan, start: 2026-01-01T00:00:00Z}
"""
GRANT = """
grants:
  - {id: promo, name: Promotion, account: north, amount: "100", currency: EUR, effective_from: 2026-01-01T00:00:00Z}
"""
MINIMUM = """
commitments:
  - {id: least, account: north, kind: minimum, amount: "50", currency: EUR, start: 2026-01-01T00:00:00Z}
"""
POSTPAID = """
commitments:
  - {id: deal, account: north, kind: postpaid, amount: "100", currency: EUR, start: 2026-01-01T00:00:00Z,
     end: 2026-04-01T00:00:00Z, overage_factor: "1.5"}
"""
PREPAID = POSTPAID.replace("postpaid", "prepaid")


class Books:
    """A database that is rated and invoiced by a catalog."""

    def __init__(self, url: str, folder: Path, more: str, base: str = CATALOG) -> None:
        (folder / "catalog").mkdir()
        (folder / "catalog" / "all.yaml").write_text(base + more)
        self.catalog: Catalog = load_catalog(folder / "catalog")
        self.url, self.folder, self.number = url, folder, 0

    def use(self, month: int, tokens: int) -> None:
        self.number += 1
        time = datetime(2026, month, 10, tzinfo=UTC).isoformat()
        event = {"specversion": "1.0", "id": str(self.number), "source": "/g", "type": "call", "subject": "north"}
        file = self.folder / f"{self.number}.ndjson"
        file.write_text(json.dumps({**event, "time": time, "data": {"tokens": tokens}}) + "\n")
        rate_files([str(file)], self.catalog, self.url, now=datetime(2026, 6, 1, tzinfo=UTC))

    def issue(self, month: int, now: datetime = LATER) -> dict[str, Decimal]:
        """What all invoices of the month come to, by kind of line. The laws hold, and a second run posts nothing."""
        period = f"2026-{month:02}"
        make_invoices(Options(period, self.catalog, self.url, now, issue=True))
        assert not make_invoices(Options(period, self.catalog, self.url, now, issue=True)).issued
        assert [one.law for one in audit(self.url, self.catalog) if one.broken] == []
        found: dict[str, Decimal] = {}
        for head in invoices_of(self.url, period):
            for line in lines_of(self.url, head) if head["status"] == "issued" else ():
                found[line["kind"]] = found.get(line["kind"], Decimal(0)) + line["amount"]
        return {kind: amount for kind, amount in found.items() if amount}


def test_a_grant_is_drawn_until_it_is_empty_and_late_usage_takes_no_more(database: str, tmp_path: Path) -> None:
    books = Books(database, tmp_path, GRANT)
    books.use(1, 60)
    books.use(2, 60)
    assert books.issue(1) == {"charge": 60, "credit": -60}
    assert books.issue(2) == {"charge": 60, "credit": -40}
    books.use(1, 30)  # Late: February has drawn what was left, and stays as it is.
    assert books.issue(1) == {"charge": 90, "credit": -60}
    assert books.issue(2) == {"charge": 60, "credit": -40}


def test_credit_that_an_earlier_period_gives_back_pays_for_the_next(database: str, tmp_path: Path) -> None:
    books = Books(database, tmp_path, GRANT)
    books.use(1, 80)
    books.use(2, 60)
    assert books.issue(1) == {"charge": 80, "credit": -80}
    assert books.issue(2) == {"charge": 60, "credit": -20}
    clickhouse.connect(database).command(  # As if half of January had been voided.
        "INSERT INTO line_items SELECT * REPLACE (quantity_to - 40 AS quantity_to, amount - 40 AS amount, "
        "revision + 1 AS revision) FROM line_items FINAL WHERE period_start = '2026-01-01'"
    )
    make_invoices(Options("2026-01", books.catalog, database, LATER, issue=True))
    make_invoices(Options("2026-02", books.catalog, database, LATER, issue=True))
    found = {
        period: [line["amount"] for head in invoices_of(database, period) for line in lines_of(database, head)
                 if line["kind"] == "credit"]
        for period in ("2026-01", "2026-02")
    }  # fmt: skip
    assert found == {"2026-01": [-80, 40], "2026-02": [-20, -40]}


def test_a_minimum_is_billed_at_the_end_of_each_period_used_or_not(database: str, tmp_path: Path) -> None:
    books = Books(database, tmp_path, MINIMUM)
    books.use(1, 20)
    books.use(2, 70)
    early = datetime(2026, 1, 15, tzinfo=UTC)
    make_invoices(Options("2026-01", books.catalog, database, early, issue=True, interim=True))
    assert books.issue(1, now=early) == {"charge": 20}  # What is missing is not known yet.
    assert books.issue(1) == {"charge": 20, "true_up": 30}
    assert books.issue(2) == {"charge": 70}
    assert books.issue(3) == {"true_up": 50}
    books.use(1, 10)
    assert books.issue(1) == {"charge": 30, "true_up": 20}


def test_a_postpaid_commitment_is_settled_at_the_end_of_its_term(database: str, tmp_path: Path) -> None:
    books = Books(database, tmp_path, POSTPAID)
    for month, tokens in ((1, 30), (2, 20), (3, 10)):
        books.use(month, tokens)
    assert [books.issue(month) for month in (1, 2, 3)] == [
        {"charge": 30},
        {"charge": 20},
        {"charge": 10, "true_up": 40},
    ]
    books.use(1, 100)  # 160 of 100 in the end.
    assert books.issue(1) == {"charge": 130, "overage": 30}
    assert books.issue(3) == {"charge": 10}
    assert books.issue(2) == {"charge": 20}


def test_a_prepaid_commitment_is_drawn_from_and_what_goes_beyond_costs_more(database: str, tmp_path: Path) -> None:
    books = Books(database, tmp_path, PREPAID)
    books.use(1, 70)
    books.use(2, 50)
    assert books.issue(1) == {"charge": 70, "prepayment": 100, "prepaid": -70}
    assert books.issue(2) == {"charge": 50, "prepaid": -30, "overage": 10}
    assert books.issue(3) == {}
    sql = "SELECT ledger_account, sum(amount) AS balance FROM postings FINAL GROUP BY 1"
    balances = {row["ledger_account"]: row["balance"] for row in clickhouse.query(database, sql).to_pylist()}
    assert balances == {"accounts_receivable": 130, "revenue:tokens": -120, "prepaid:deal": 0, "revenue:deal": -10}


def test_a_prepayment_is_due_when_its_term_begins(database: str, tmp_path: Path) -> None:
    books = Books(database, tmp_path, PREPAID)
    assert books.issue(1, now=datetime(2025, 12, 31, tzinfo=UTC)) == {}
    assert books.issue(1, now=datetime(2026, 1, 1, tzinfo=UTC)) == {"prepayment": 100}
    books.use(1, 10)
    assert books.issue(1, now=datetime(2026, 1, 20, tzinfo=UTC)) == {"prepayment": 100}
    assert books.issue(1) == {"charge": 10, "prepayment": 100, "prepaid": -10}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (GRANT, "10.00 EUR of the 100.00 EUR that were left pay for what there was of 10.00 EUR"),
        (MINIMUM, "50.00 EUR were promised, 10.00 EUR were spent: the rest is due"),
        (PREPAID, "100.00 EUR for the whole term, to be drawn from"),
    ],
)
def test_explain_says_what_a_line_was_computed_from(more: str, words: str, database: str, tmp_path: Path) -> None:
    books = Books(database, tmp_path, more)
    books.use(1, 10)
    books.issue(1)
    (invoice,) = explain(database, "north-2026-01-EUR-1", None).to_json()["found"]
    assert words in [line["price"]["text"] for line in invoice["lines"]]


def test_a_minimum_is_owed_only_while_there_is_a_subscription(database: str, tmp_path: Path) -> None:
    left = CATALOG.replace("start: 2026-01-01T00:00:00Z}", "start: 2026-02-10T00:00:00Z, end: 2026-03-10T00:00:00Z}")
    books = Books(database, tmp_path, MINIMUM, left)
    assert [books.issue(month) for month in (1, 2, 3, 4)] == [{}, {"true_up": 50}, {"true_up": 50}, {}]
