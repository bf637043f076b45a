"""Included units that are carried over: what a period leaves pays for later usage, and late usage settles itself."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from meterline.pipelines.invoice_accounts import Options
from meterline.runners.audit import audit
from meterline.runners.explain import explain
from meterline.runners.jobs import make_invoices
from meterline.transforms import clickhouse
from tests.runners.test_billed_credits import CATALOG, Books

LATER = datetime(2027, 1, 1, tzinfo=UTC)
ONE = CATALOG.replace('unit_price: "1"}', 'unit_price: "0.10", included: "100", included_rollover: {}}')
THREE = ONE.replace("included_rollover: {}", 'included_rollover: {periods: 3, maximum: "150"}')
DISCOUNT = """
discounts:
  - {id: tenth, percent: "10"}
"""


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_what_a_period_leaves_is_used_in_the_next_whatever_the_order(
    order: tuple[int, int], database: str, tmp_path: Path
) -> None:
    books = Books(database, tmp_path, "", ONE)
    books.use(1, 60)
    books.use(2, 170)
    billed = {month: books.issue(month) for month in order}
    assert billed == {1: {}, 2: {"charge": 7, "rollover": -4}}
    assert books.issue(3) == {}


def test_late_usage_of_the_earlier_period_takes_back_what_it_had_left(database: str, tmp_path: Path) -> None:
    books = Books(database, tmp_path, "", ONE)
    books.use(1, 60)
    books.use(2, 170)
    books.issue(1)
    assert books.issue(2) == {"charge": 7, "rollover": -4}
    books.use(1, 25)  # Costs nothing in its own period, so that has nothing to bill.
    assert books.issue(1) == {}
    assert books.issue(2) == {"charge": 7, "rollover": Decimal("-1.5")}
    books.use(2, 10)
    assert books.issue(2) == {"charge": 8, "rollover": Decimal("-1.5")}
    books.use(1, 200)
    assert books.issue(1) == {"charge": Decimal("18.5")}
    assert books.issue(2) == {"charge": 8}


def test_a_period_without_usage_leaves_all_and_the_first_is_only_there_from_its_start(
    database: str, tmp_path: Path
) -> None:
    base = ONE.replace("start: 2026-01-01T", "start: 2026-01-02T")
    books = Books(database, tmp_path, "", base)
    for month in (2, 4):
        books.use(month, 300)
    assert [books.issue(month) for month in (1, 2, 3, 4)] == [{}, {"charge": 20}, {}, {"charge": 20, "rollover": -10}]


def test_discounts_and_minimums_are_of_what_is_left(database: str, tmp_path: Path) -> None:
    minimum = """
commitments:
  - {id: least, account: north, kind: minimum, amount: "5", currency: EUR, start: 2026-02-01T00:00:00Z}
"""
    books = Books(database, tmp_path, DISCOUNT + minimum, ONE)
    books.use(1, 60)
    books.use(2, 170)
    expected = {"charge": 7, "rollover": -4, "discount": Decimal("-0.3"), "true_up": Decimal("2.3")}
    assert books.issue(2) == expected
    sql = "SELECT ledger_account, sum(amount) AS balance FROM postings FINAL GROUP BY 1"
    balances = {row["ledger_account"]: row["balance"] for row in clickhouse.query(database, sql).to_pylist()}
    assert balances["revenue:tokens"] == -3


YEN = """
exchange_rates:
  - {id: yen, from: EUR, to: JPY, rates: [{effective_from: 2026-01-01T00:00:00Z, rate: "150.5"}]}
"""


@pytest.mark.parametrize(
    ("more", "waiting", "ended"),
    [
        ("", {"charge": 12, "rollover": -4}, {"charge": 12, "rollover": -3}),
        # 150.5 × 12, in two lines, and × 4.
        (YEN, {"charge": 1806, "rollover": -602}, {"charge": 1806, "rollover": -452}),
    ],
    ids=["in the prices' currency", "in another"],
)
def test_an_invoice_of_fees_alone_leaves_what_was_carried_over(
    more: str, waiting: dict[str, int], ended: dict[str, int], database: str, tmp_path: Path
) -> None:
    fee = "fee: {model: fixed, amount: '5', billed: in_advance}"
    base = ONE.replace("included_rollover: {}}", "included_rollover: {}}, " + fee)
    base = base.replace("meter: tokens}]", "meter: tokens}, {id: fee}]")
    if more:
        base = base.replace("{id: north}", "{id: north, invoice_currency: JPY}")
    books = Books(database, tmp_path, more, base)
    books.use(1, 60)
    books.use(2, 170)
    early = datetime(2026, 2, 15, tzinfo=UTC)
    make_invoices(Options("2026-02", books.catalog, database, early, issue=True, interim=True))
    books.use(1, 10)  # So that January has left 30, which is for February's end.
    assert books.issue(2, now=early) == waiting  # Of what was posted, with nothing new.
    assert books.issue(2) == ended


def test_units_last_for_periods_up_to_a_maximum(database: str, tmp_path: Path) -> None:
    books = Books(database, tmp_path, "", THREE)
    books.use(1, 60)  # Leaves 40.
    books.use(2, 20)  # Leaves 80, and 120 are there.
    books.use(3, 90)  # 130
    books.use(4, 130)  # Takes 30 of January's 40, whose other 10 lapse.
    books.use(5, 400)  # Takes the 90 of February and March.
    found = [books.issue(month) for month in (1, 2, 3, 4, 5)]
    assert found == [{}, {}, {}, {"charge": 3, "rollover": -3}, {"charge": 30, "rollover": -9}]


def test_explain_says_whose_units_were_taken(database: str, tmp_path: Path) -> None:
    books = Books(database, tmp_path, "", THREE)
    books.use(2, 30)
    books.use(3, 170)
    books.issue(3)
    (invoice,) = explain(database, "north-2026-03-EUR-1", None).to_json()["found"]
    (line,) = (one for one in invoice["lines"] if one["line_kind"] == "rollover")
    assert line["price"]["text"] == (
        "170 used, 100 included, 150 left over (80 of 2026-01, 70 of 2026-02): 70 of them taken, "
        "0 in place of 7, both rounded"
    )
    assert line["description"] == "Carried over: Tokens"


@pytest.mark.parametrize(
    "wrong", ["amount - 0.01 AS amount", """replace(terms, '"used":"40"', '"used":"41"') AS terms"""]
)
def test_the_audit_recomputes_what_was_carried_over(wrong: str, database: str, tmp_path: Path) -> None:
    books = Books(database, tmp_path, "", ONE)
    books.use(1, 60)
    books.use(2, 170)
    books.issue(2)
    clickhouse.connect(database).command(
        f"INSERT INTO invoice_lines SELECT * REPLACE ({wrong}) FROM invoice_lines FINAL WHERE kind = 'rollover'"
    )
    broken = [one.law for one in audit(database, books.catalog) if one.broken]
    assert "discounts, credits and tax recompute from the terms on their lines" in broken
