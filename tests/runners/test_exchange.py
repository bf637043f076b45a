"""Prices in dollars and credits, invoices in euros: from a catalog's YAML to invoices, their explanation and audit."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from meterline.pipelines.invoice_accounts import Options
from meterline.runners.audit import audit
from meterline.runners.explain import explain
from meterline.runners.explain_tree import render
from meterline.runners.invoices import invoices_of, lines_of
from meterline.runners.jobs import make_invoices, rate_files
from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_files import load_catalog
from meterline.transforms import catalogs, clickhouse
from tests.command import Command

NOW = datetime(2026, 2, 10, tzinfo=UTC)
CATALOG = """
meters:
  - {id: calls, event_type: call, aggregation: sum, value: calls, unit: call}
  - {id: chars, event_type: write, aggregation: sum, value: chars, unit: char}
custom_units:
  - {id: credits, name: Credits}
rate_cards:
  - id: dollars
    currency: USD
    versions:
      - version: v1
        effective_from: 2025-01-01T00:00:00Z
        prices: {calls: {model: per_unit, unit_price: "0.00123456"},
                 seat: {model: fixed, amount: "100", billed: in_advance}}
  - id: points
    currency: credits
    versions:
      - {version: v1, effective_from: 2025-01-01T00:00:00Z, prices: {chars: {model: per_unit, unit_price: "0.5"}}}
plans:
  - {id: by-call, rate_card: dollars, charges: [{id: calls, name: Calls, meter: calls}, {id: seat, name: Seat}]}
  - {id: by-char, rate_card: points, charges: [{id: chars, name: Characters, meter: chars}]}
accounts:
  - {id: north, invoice_currency: EUR, tax: {jurisdictions: [DE]}}
  - {id: red, parent: north}
  - {id: south, tax: {jurisdictions: [DE]}}
subscriptions:
  - {id: north-calls, account: north, plan: by-call, start: 2026-01-01T00:00:00Z}
  - {id: north-chars, account: north, plan: by-char, start: 2026-01-01T00:00:00Z}
  - {id: south-chars, account: south, plan: by-char, start: 2026-01-01T00:00:00Z}
discounts:
  - {id: launch, name: Launch, percent: "10", charges: [calls]}
grants:
  - {id: promo, name: Promo, account: north, amount: "50.00", currency: EUR, effective_from: 2026-01-01T00:00:00Z}
tax_rates:
  - {id: vat, name: VAT, jurisdiction: DE, rates: [{effective_from: 2021-01-01T00:00:00Z, percent: "19"}]}
exchange_rates:
  - id: usd-eur
    from: USD
    to: EUR
    rates:
      - {effective_from: 2026-01-01T00:00:00Z, rate: "0.92"}
      - {effective_from: 2026-01-31T23:59:59Z, rate: "0.93"}
      - {effective_from: 2026-02-01T00:00:00Z, rate: "0.94"}
  - {id: credits-eur, from: credits, to: EUR, rates: [{effective_from: 2026-01-01T00:00:00Z, rate: "0.01"}]}
"""


def event(id: str, subject: str, type: str, quantity: int) -> str:
    what = {"call": "calls", "write": "chars"}[type]
    whole = {"specversion": "1.0", "id": id, "source": "/g", "type": type, "subject": subject}
    return json.dumps({**whole, "time": "2026-01-10T10:00:00Z", "data": {what: quantity}})


def loaded(folder: Path, text: str = CATALOG) -> Catalog:
    folder.mkdir(exist_ok=True)
    (folder / "all.yaml").write_text(text)
    return load_catalog(folder)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return loaded(tmp_path / "catalog")


def rate(url: str, catalog: Catalog, folder: Path, *events: str) -> None:
    file = folder / "usage.ndjson"
    file.write_text("\n".join(events) + "\n")
    rate_files([str(file)], catalog, url, now=NOW)


USAGE = (
    event("1", "north", "call", 10_000),
    event("2", "red", "call", 10_001),
    event("3", "north", "write", 777),
)


def bill(url: str, catalog: Catalog, *, issue: bool = True, now: datetime = NOW, interim: bool = False) -> int:
    report = make_invoices(Options("2026-01", catalog, url, now, issue=issue, interim=interim))
    return report.issued if issue else report.drafts


def lines(url: str, number: int = -1, account: str = "north") -> list[tuple[str, str, Decimal]]:
    heads = [head for head in invoices_of(url, "2026-01") if head["billing_account_id"] == account]
    return [(one["kind"], one["account_id"], one["amount"]) for one in lines_of(url, heads[number])]


def broken(url: str, catalog: Catalog | None) -> list[str]:
    return [one.law for one in audit(url, catalog) if one.broken]


def told(url: str, id: str, catalog: Catalog | None = None) -> str:
    console = Console(file=io.StringIO(), width=200, record=True)
    console.print(render(explain(url, id, catalog)))
    return console.export_text()


# 20,001 calls are 24.69243456 USD; by the last instant of January 22.9639… EUR, of which each account has a half.
FIRST = [
    ("charge", "north", "3.88"),  # 388.5 credits × 0.01 = 3.885, half-even
    ("charge", "north", "11.48"),
    ("charge", "red", "11.48"),
    ("charge", "north", "92.00"),  # in advance, by the first instant of January
    ("discount", "north", "-1.15"),  # 10 % of 22.96
    ("discount", "red", "-1.15"),
    ("credit", "north", "-50.00"),
    ("tax", "north", "12.64"),  # 19 % of 66.54
]


def test_an_invoice_is_in_the_currency_of_the_account(database: str, catalog: Catalog, tmp_path: Path) -> None:
    rate(database, catalog, tmp_path, *USAGE)
    assert bill(database, catalog) == 1
    assert sorted(lines(database)) == sorted((kind, account, Decimal(amount)) for kind, account, amount in FIRST)
    assert bill(database, catalog) == 0
    assert broken(database, catalog) == broken(database, None) == []
    rate(database, catalog, tmp_path, event("late", "red", "call", 1_000))
    assert bill(database, catalog, now=datetime(2026, 6, 1, tzinfo=UTC)) == 1
    # The rate is January's, whenever it is invoiced: 25.92699456 USD are 24.11 EUR, of which 22.96 are billed.
    assert lines(database)[0] == ("charge", "red", Decimal("1.15"))
    assert broken(database, catalog) == broken(database, None) == []
    sql = "SELECT currency, sum(amount) AS balance FROM postings FINAL GROUP BY 1"
    assert clickhouse.query(database, sql).to_pylist() == [{"currency": "EUR", "balance": 0}]


def test_a_line_says_what_it_was_converted_from(database: str, catalog: Catalog, tmp_path: Path) -> None:
    rate(database, catalog, tmp_path, *USAGE)
    bill(database, catalog)
    words = "converted: 24.69243456 USD × 0.93 = 22.96 EUR, by the rate in force at 2026-01-31T23:59:59Z"
    whole = told(database, "north-2026-01-EUR-1")
    assert words in whole
    assert "converted: 388.5 credits × 0.01 = 3.88 EUR" in whole
    assert "converted: 100 USD × 0.92 = 92.00 EUR, by the rate in force at 2026-01-01T00:00:00Z" in whole
    assert "came after" not in whole
    (invoice,) = explain(database, "north-2026-01-EUR-1", None).to_json()["found"]
    red = next(line for line in invoice["lines"] if line["account_id"] == "red")
    assert words in told(database, red["invoice_line_id"], catalog)
    assert red["conversion"] == {
        "currency": "USD",
        "amount": "12.34683456",
        "total": "24.69243456",
        "rate": "0.93",
        "at": "2026-01-31T23:59:59Z",
    }
    rate(database, catalog, tmp_path, event("late", "red", "call", 1_000))
    assert "usage that came after: +1.23456 USD, +1.23456 USD not yet billed" in told(database, red["invoice_line_id"])


def test_custom_units_are_invoiced_in_the_currency_that_they_have_a_rate_to(
    database: str, catalog: Catalog, tmp_path: Path
) -> None:
    rate(database, catalog, tmp_path, event("1", "south", "write", 1_000))
    assert bill(database, catalog) == 2
    assert lines(database, account="south") == [("charge", "south", Decimal(5)), ("tax", "south", Decimal("0.95"))]
    assert "500 credits × 0.01 = 5.00 EUR" in told(database, "south-2026-01-EUR-1")
    assert "500 credits" in told(database, "1", catalog)


@pytest.mark.parametrize(
    "change",
    [
        "amount + 1 AS amount",
        "replaceOne(terms, '0.93', '0.94') AS terms",
        "replaceOne(terms, '24.69', '24.6') AS terms",
    ],
)
def test_the_audit_finds_a_conversion_that_is_wrong(
    change: str, database: str, catalog: Catalog, tmp_path: Path
) -> None:
    rate(database, catalog, tmp_path, *USAGE)
    bill(database, catalog)
    assert broken(database, None) == []
    sql = f"SELECT * REPLACE ({change}) FROM invoice_lines FINAL WHERE charge_id = 'calls' AND kind = 'charge'"
    clickhouse.connect(database).command(f"INSERT INTO invoice_lines {sql}")
    assert any("recompute from the terms" in one for one in broken(database, None))


def test_what_is_billed_before_a_rate_is_known_follows_it(database: str, catalog: Catalog, tmp_path: Path) -> None:
    early = loaded(tmp_path / "early", "\n".join(one for one in CATALOG.splitlines() if '"0.93"' not in one))
    rate(database, early, tmp_path, *USAGE)
    half = datetime(2026, 1, 15, tzinfo=UTC)
    assert bill(database, early, issue=False, now=half) == 1
    assert bill(database, early, now=half, interim=True) == 1
    assert ("charge", "red", Decimal("11.36")) in lines(database)
    assert broken(database, None) == []
    assert bill(database, catalog) == 1
    assert [one for one in lines(database) if one[0] == "charge"] == [
        ("charge", "north", Decimal("0.12")),
        ("charge", "red", Decimal("0.12")),
    ]
    assert broken(database, catalog) == broken(database, None) == []


def test_what_an_account_gives_back_leaves_the_conversion_of_the_others(
    database: str, catalog: Catalog, tmp_path: Path, meterline: Command
) -> None:
    rate(database, catalog, tmp_path, *USAGE)
    bill(database, catalog)
    for id in ("2", "1"):
        place = ("--catalog", tmp_path / "catalog", "--clickhouse", database, "--now", "2026-02-10T00:00:00Z")
        said = meterline("void", "--event", id, "--reason", "test", *place)
        assert said.code == 0, said.err
        assert bill(database, catalog) == 1
        assert broken(database, catalog) == broken(database, None) == []
    sql = "SELECT sum(amount) AS amount FROM invoice_lines FINAL WHERE charge_id = 'calls'"
    assert clickhouse.query(database, sql).to_pylist() == [{"amount": 0}]


def test_a_period_stays_in_the_currency_that_it_was_billed_in(
    database: str, catalog: Catalog, tmp_path: Path, meterline: Command
) -> None:
    rate(database, catalog, tmp_path, *USAGE)
    bill(database, catalog)
    text = CATALOG.replace("invoice_currency: EUR, ", "")
    changed = loaded(tmp_path / "changed", text)
    assert bill(database, changed) == 0
    rate(database, changed, tmp_path, event("late", "red", "call", 1_000))
    # Nor can it be billed without a rate to that; other accounts are.
    pairs = text.partition("exchange_rates:")[0] + "exchange_rates:\n" + text[text.index("  - {id: credits-eur") :]
    loaded(tmp_path / "without", pairs)
    place = ("--catalog", tmp_path / "without", "--clickhouse", database, "--now", "2026-02-10T00:00:00Z")
    said = meterline("invoice", "--period", "2026-01", *place, "--issue")
    assert said.code == 1
    assert "no invoice: account north: no exchange rate from USD to EUR is in force at 2026-01-" in said.err
    assert "Traceback" not in said.err
    assert bill(database, changed) == 1
    assert {head["currency"] for head in invoices_of(database, "2026-01")} == {"EUR"}


def test_an_account_without_a_rate_does_not_keep_others_from_their_invoices(
    database: str, catalog: Catalog, tmp_path: Path
) -> None:
    rate(database, catalog, tmp_path, *USAGE, event("4", "south", "write", 1_000))
    named: dict[str, Any] = {name: getattr(catalog, name) for name in Catalog.model_fields}
    unchecked = Catalog(**named | {"exchange_rates": catalog.exchange_rates[1:]})
    report = make_invoices(Options("2026-01", unchecked, database, NOW, issue=True))
    assert report.issued == 1
    (reason,) = report.not_converted
    assert reason.startswith("account north: no exchange rate from USD to EUR is in force at 2026-01-")
    assert {head["billing_account_id"] for head in invoices_of(database, "2026-01")} == {"south"}


def test_a_draft_in_another_currency_is_made_anew_without_lines(
    database: str, catalog: Catalog, tmp_path: Path
) -> None:
    dollars = loaded(
        tmp_path / "dollars",
        CATALOG.replace("invoice_currency: EUR, ", ""),
    )
    rate(database, dollars, tmp_path, *USAGE)
    bill(database, dollars, issue=False)
    assert sorted(head["currency"] for head in invoices_of(database, "2026-01")) == ["EUR", "USD"]
    bill(database, catalog, issue=False)
    assert [head["currency"] for head in invoices_of(database, "2026-01")] == ["EUR"]
    assert broken(database, catalog) == []


def test_one_tax_rate_in_two_currencies_is_billed_once(database: str, tmp_path: Path) -> None:
    two = loaded(
        tmp_path / "two",
        CATALOG.replace("invoice_currency: EUR, ", ""),
    )
    rate(database, two, tmp_path, *USAGE)
    assert bill(database, two) == 2
    assert bill(database, two) == 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'rate: "0.93"',
            'rate: "0.95"',
            "from USD to EUR that took effect at 2026-01-31T23:59:59Z was 0.93",
        ),
        ("  - {id: credits-eur, from: credits", "  - {id: credits-usd, from: credits", ""),
        (
            '      - {effective_from: 2026-01-31T23:59:59Z, rate: "0.93"}\n',
            "",
            "the rate from USD to EUR that took effect at 2026-01-31T23:59:59Z was 0.93; the rate from USD to EUR at "
            "2026-01-31T23:59:59Z was 0.93 on issued invoices",
        ),
        (
            '      - {effective_from: 2026-01-31T23:59:59Z, rate: "0.93"}',
            '      - {effective_from: 2025-12-31T00:00:00Z, rate: "0.5"}\n'
            '      - {effective_from: 2026-01-01T00:00:00Z, rate: "0.92"}\n'
            '      - {effective_from: 2026-01-31T23:59:59Z, rate: "0.93"}',
            "",
        ),
        ('rate: "0.94"}', 'rate: "0.94"}\n      - {effective_from: 2199-01-01T00:00:00Z, rate: "2"}', ""),
    ],
    ids=["edited", "another name", "left out", "one before all others", "one to come"],
)
def test_a_rate_that_was_in_force_is_never_edited(
    old: str, new: str, message: str, database: str, catalog: Catalog, tmp_path: Path
) -> None:
    clickhouse.ready(database)
    catalogs.publish(database, catalog, delay_seconds=0)
    rate(database, catalog, tmp_path, *USAGE)
    bill(database, catalog)
    assert old in CATALOG
    text = CATALOG.replace(old, new)
    if "2025-12-31" in new:
        text = text.replace('      - {effective_from: 2026-01-01T00:00:00Z, rate: "0.92"}\n', "", 1)
    changed = loaded(tmp_path / "changed", text)
    if not message:
        catalogs.check(database, changed)
        return
    with pytest.raises(catalogs.ChangedCatalogError) as refused:
        catalogs.check(database, changed)
    assert message in str(refused.value)


def test_a_rate_that_comes_later_changes_none_that_invoices_were_made_by(
    database: str, catalog: Catalog, tmp_path: Path
) -> None:
    early = loaded(tmp_path / "early", "\n".join(one for one in CATALOG.splitlines() if '"0.93"' not in one))
    rate(database, early, tmp_path, *USAGE)
    catalogs.publish(database, early, delay_seconds=0)
    bill(database, early, now=datetime(2026, 1, 15, tzinfo=UTC), interim=True)
    catalogs.check(database, catalog)  # January had not ended.
    rate(database, early, tmp_path, event("late", "red", "call", 1_000))
    assert bill(database, early) == 1
    with pytest.raises(catalogs.ChangedCatalogError, match=r"at 2026-01-31T23:59:59Z was 0\.92 on issued"):
        catalogs.check(database, catalog)
