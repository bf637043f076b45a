"""Discounts and tax from a catalog's YAML to invoices, their explanation and the audit."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from rich.console import Console

from meterline.pipelines.invoice_accounts import Options
from meterline.runners.audit import audit
from meterline.runners.audit_adjustments import Adjustment
from meterline.runners.explain import explain
from meterline.runners.explain_tree import render
from meterline.runners.invoices import invoices_of, lines_of
from meterline.runners.jobs import make_invoices, rate_files
from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_files import load_catalog
from meterline.schemas.catalog_money import Discount
from meterline.schemas.records import RatingKey
from meterline.transforms import clickhouse
from meterline.transforms.rules.attribution import directory
from meterline.transforms.rules.billing.contracts import Contracts

NOW = datetime(2026, 2, 10, tzinfo=UTC)
CATALOG = """
meters:
  - {id: tokens, event_type: call, aggregation: sum, value: tokens, unit: token, dimensions: [model]}
rate_cards:
  - id: card
    currency: EUR
    versions:
      - version: v1
        effective_from: 2025-01-01T00:00:00Z
        prices:
          tokens: {model: per_unit, unit_price: "0.0333"}
          fee: {model: fixed, amount: "30"}
plans:
  - id: plan
    rate_card: card
    charges: [{id: tokens, name: Tokens, meter: tokens, product_code: saas}, {id: fee, name: Fee}]
accounts:
  - {id: north, tax: {jurisdictions: [DE], note: DE123}}
  - {id: north-red, parent: north, subjects: [red]}
  - {id: north-blue, parent: north}
subscriptions:
  - {id: north-plan, account: north, plan: plan, start: 2026-01-01T00:00:00Z}
discounts:
  - {id: launch, name: Launch discount, percent: "10", charges: [tokens]}
  - {id: welcome, name: Welcome, amount: "5.00", currency: EUR, code: WELCOME5, periods: 2}
redemptions:
  - {id: north-welcome, discount: welcome, account: north, redeemed_at: 2026-01-05T00:00:00Z}
tax_rates:
  - {id: vat, name: VAT, jurisdiction: DE, rates: [{effective_from: 2021-01-01T00:00:00Z, percent: "19"}]}
  - id: vat-saas
    name: Reduced VAT
    jurisdiction: DE
    product_codes: [saas]
    rates: [{effective_from: 2021-01-01T00:00:00Z, percent: "7"}]
"""


def with_discounts(catalog: Catalog, *discounts: Discount) -> Catalog:
    named = {name: getattr(catalog, name) for name in Catalog.model_fields}
    return Catalog.model_validate({**named, "discounts": discounts})


def event(id: str, subject: str, tokens: int, model: str = "large", month: int = 1) -> str:
    time = datetime(2026, month, 10, 10, tzinfo=UTC).isoformat()
    data = {"model": model, "tokens": tokens}
    whole = {"specversion": "1.0", "id": id, "source": "/g", "type": "call", "subject": subject, "time": time}
    return json.dumps({**whole, "data": data})


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("catalog")
    (folder / "all.yaml").write_text(CATALOG)
    return load_catalog(folder)


@pytest.fixture(scope="module")
def including(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """The same with prices that include tax."""
    folder = tmp_path_factory.mktemp("including")
    (folder / "all.yaml").write_text(
        CATALOG.replace("currency: EUR\n    v", "currency: EUR\n    prices_include_tax: true\n    v")
    )
    return load_catalog(folder)


def rate(url: str, catalog: Catalog, folder: Path, *events: str) -> None:
    file = folder / "usage.ndjson"
    file.write_text("\n".join(events) + "\n")
    rate_files([str(file)], catalog, url, now=NOW)


def issue(url: str, catalog: Catalog, period: str = "2026-01") -> list[tuple[str, str, Decimal, str]]:
    """What the last invoice bills: kind, what, amount, reason."""
    make_invoices(Options(period, catalog, url, datetime(2027, 1, 1, tzinfo=UTC), issue=True))
    heads = [head for head in invoices_of(url, period) if head["status"] == "issued"]
    assert heads[-1]["total"] == sum(line["amount"] for line in lines_of(url, heads[-1]))
    return [(one["kind"], one["description"], one["amount"], one["reason"]) for one in lines_of(url, heads[-1])]


def broken(url: str, catalog: Catalog) -> list[str]:
    return [one.law for one in audit(url, catalog) if one.broken]


def test_discounts_and_tax_are_lines_that_late_usage_settles(database: str, catalog: Catalog, tmp_path: Path) -> None:
    rate(database, catalog, tmp_path, event("1", "red", 1000), event("2", "north-blue", 777, "small"))
    first = [
        ("charge", "Tokens (large)", "33.30", "usage"),
        ("charge", "Tokens (small)", "25.87", "usage"),
        ("charge", "Fee", "30", "fee"),
        ("discount", "Launch discount: Tokens", "-2.59", "discount"),  # 10 % of 59.17
        ("discount", "Launch discount: Tokens", "-3.33", "discount"),
        ("discount", "Welcome: Tokens", "-1.40", "discount"),  # 5.00 of 83.25
        ("discount", "Welcome: Tokens", "-1.80", "discount"),
        ("discount", "Welcome: Fee", "-1.80", "discount"),
        ("tax", "VAT", "5.36", "tax"),  # 19 % of 28.20
        ("tax", "Reduced VAT", "3.50", "tax"),  # 7 % of 50.05
    ]
    assert issue(database, catalog) == [(*what, Decimal(amount), why) for *what, amount, why in first]
    assert issue(database, catalog) == issue(database, catalog)  # A second run posts nothing.
    assert len(invoices_of(database, "2026-01")) == 1
    assert broken(database, catalog) == []

    rate(database, catalog, tmp_path, event("3", "red", 100))
    late = [
        ("charge", "Tokens (large)", "3.33", "late_usage"),
        ("discount", "Launch discount: Tokens", "-0.33", "correction"),
        ("discount", "Welcome: Tokens", "0.05", "correction"),
        ("discount", "Welcome: Tokens", "-0.10", "correction"),
        ("discount", "Welcome: Fee", "0.06", "correction"),
        ("tax", "VAT", "0.01", "correction"),
        ("tax", "Reduced VAT", "0.20", "correction"),
    ]
    found = issue(database, catalog)
    assert [one[:2] for one in found][:2] == [one[:2] for one in late][:2]
    assert sum(one[2] for one in found if one[1].startswith("Welcome")) == 0
    assert broken(database, catalog) == []
    sql = "SELECT ledger_account, sum(amount) AS balance FROM postings FINAL GROUP BY 1 ORDER BY 1"
    balances = {row["ledger_account"]: row["balance"] for row in clickhouse.query(database, sql).to_pylist()}
    assert sum(balances.values()) == 0
    assert (balances["discounts:launch"], balances["discounts:welcome"]) == (Decimal("6.25"), Decimal("5"))


def test_a_line_says_what_it_was_computed_from(database: str, catalog: Catalog, tmp_path: Path) -> None:
    rate(database, catalog, tmp_path, event("1", "red", 1000), event("2", "north-blue", 777, "small"))
    issue(database, catalog)
    console = Console(file=io.StringIO(), width=160, record=True)
    explanation = explain(database, "north-2026-01-EUR-1", None)
    console.print(render(explanation))
    text = console.export_text()
    for words in (
        "discount launch: 10 % of 59.17 EUR = 5.92 EUR off, shared by what it is taken off",
        "discount welcome: 5 off 83.25 EUR, at most all of it = 5.00 EUR off, shared by what it is taken off",
        "tax vat: 19 % of 28.20 EUR, rounded once (DE123)",
        "the lines add up to 87.11 EUR",
    ):
        assert words in text
    (invoice,) = explanation.to_json()["found"]
    for line in invoice["lines"]:
        (same,) = explain(database, line["invoice_line_id"], catalog).to_json()["found"]
        assert (same["amount"], same["line_kind"], same["source"]) == (
            line["amount"],
            line["line_kind"],
            line["source"],
        )


@pytest.mark.parametrize(
    ("sql", "law"),
    [
        ("SELECT * REPLACE (amount - 1 AS amount) FROM invoice_lines FINAL WHERE source = 'vat'", "recompute from"),
        ("SELECT * REPLACE (amount - 90 AS amount) FROM invoice_lines FINAL WHERE kind = 'discount'", "no charge is"),
    ],
)
def test_the_audit_finds_an_adjustment_that_is_wrong(
    sql: str, law: str, database: str, catalog: Catalog, tmp_path: Path
) -> None:
    rate(database, catalog, tmp_path, event("1", "red", 1000))
    issue(database, catalog)
    assert broken(database, catalog) == []
    clickhouse.connect(database).command(f"INSERT INTO invoice_lines {sql}")
    assert any(law in one for one in broken(database, catalog))


INCLUDED = (
    "SELECT * REPLACE (amount {} AS amount) FROM invoice_lines FINAL WHERE source = '{}' AND charge_id {} LIMIT 1"
)


@pytest.mark.parametrize("amount", ["- 0.01", "+ 0.01"])
@pytest.mark.parametrize("source", ["vat", "vat-saas"])
@pytest.mark.parametrize("charges", ["= ''", "!= ''"], ids=["that is shown", "that is taken out of a charge"])
def test_the_audit_finds_an_included_tax_that_is_wrong(
    amount: str, source: str, charges: str, database: str, including: Catalog, tmp_path: Path
) -> None:
    rate(database, including, tmp_path, event("1", "red", 1000), event("2", "north-blue", 777, "small"))
    lines = issue(database, including)
    shown = {what: paid for kind, what, paid, _ in lines if kind == "included_tax" and ": " not in what}
    # 28.20 · 19 / 119 of the fee, and 50.05 · 7 / 107 of tokens.
    assert shown == {"VAT": Decimal("4.50"), "Reduced VAT": Decimal("3.27")}
    assert broken(database, including) == []
    clickhouse.connect(database).command(f"INSERT INTO invoice_lines {INCLUDED.format(amount, source, charges)}")
    assert any("recompute from" in law for law in broken(database, including))


def test_the_audit_holds_where_an_included_tax_has_another_rate_than_was_billed(
    database: str, including: Catalog, tmp_path: Path
) -> None:
    rate(database, including, tmp_path, event("1", "red", 1000))
    issue(database, including)
    named = {name: getattr(including, name) for name in Catalog.model_fields}
    rates = [one.model_dump() for one in including.tax_rates]
    rates[0]["rates"] = [{"effective_from": "2026-01-15T00:00:00Z", "percent": "20"}]
    other = Catalog.model_validate({**named, "tax_rates": rates})
    assert {line[1] for line in issue(database, other)} == {"VAT", "VAT: Fee"}
    assert broken(database, other) == []


@pytest.mark.parametrize(
    ("of", "amount", "holds"),
    [
        ("0.10", "0.00", True),  # 0.005, half even
        ("0.10", "0.01", True),  # half up
        ("-0.10", "-0.01", True),  # half up is away from zero
        ("-0.10", "0.00", True),
        ("-0.10", "0.01", False),
        ("-0.30", "-0.02", True),  # both
        ("-0.30", "-0.01", False),
        ("0.50", "0.02", True),  # 0.025, half even
        ("0.50", "0.03", True),
        ("0.50", "0.04", False),
    ],
)
def test_either_way_of_rounding_holds(of: str, amount: str, holds: bool) -> None:
    row = {"kind": "tax", "currency": "EUR"}
    assert Adjustment(row, Decimal(amount), json.dumps({"of": of, "percent": "5"})).holds == holds


def test_a_coupon_ends_after_its_periods(database: str, catalog: Catalog, tmp_path: Path) -> None:
    rate(database, catalog, tmp_path, *(event(str(month), "red", 1000, month=month) for month in (1, 2)))
    found = {period: issue(database, catalog, period) for period in ("2026-01", "2026-02", "2026-03")}
    welcome = {period: sum(one[2] for one in lines if "Welcome" in one[1]) for period, lines in found.items()}
    assert welcome == {"2026-01": Decimal(-5), "2026-02": Decimal(-5), "2026-03": 0}


@pytest.mark.parametrize(("source", "amount"), [("launch", Decimal("6.33")), ("welcome", Decimal("5.00"))])
def test_what_a_charge_gives_back_leaves_the_discount_to_the_others(
    source: str, amount: Decimal, database: str, catalog: Catalog, tmp_path: Path
) -> None:
    everything = tuple(one.model_copy(update={"charges": ()}) for one in catalog.discounts)
    of_tokens = tuple(one.model_copy(update={"charges": ("tokens",)}) for one in catalog.discounts if one.id == source)
    rate(database, catalog, tmp_path, event("1", "red", 1000), event("2", "north-blue", 900, "small"))
    issue(database, with_discounts(catalog, *everything))
    fewer = with_discounts(catalog, *of_tokens)
    issue(database, fewer)
    assert broken(database, fewer) == []
    sql = "SELECT sum(amount) AS off FROM invoice_lines FINAL WHERE source = {source:String}"
    assert clickhouse.query(database, sql, {"source": source})["off"].to_pylist() == [-amount]


def test_a_fee_in_advance_has_its_discount_and_tax_in_advance(database: str, tmp_path: Path) -> None:
    folder = tmp_path / "catalog"
    folder.mkdir()
    (folder / "all.yaml").write_text(
        CATALOG.replace('fee: {model: fixed, amount: "30"}', 'fee: {model: fixed, amount: "30", billed: in_advance}')
    )
    early = load_catalog(folder)
    rate(database, early, tmp_path, event("1", "red", 1000))
    half = Options("2026-01", early, database, datetime(2026, 1, 15, tzinfo=UTC), issue=True)
    assert make_invoices(half).issued == 1
    assert make_invoices(half).issued == 0
    (head,) = invoices_of(database, "2026-01")
    assert {(line["kind"], line["amount"]) for line in lines_of(database, head)} == {
        ("charge", Decimal(30)),
        ("discount", Decimal(-5)),
        ("tax", Decimal("4.75")),
    }
    issue(database, early)
    # It bills usage for the first time: it corrects nothing. What comes late does.
    rate(database, early, tmp_path, event("1", "red", 1000), event("2", "red", 10))
    make_invoices(Options("2026-01", early, database, datetime(2027, 1, 1, tzinfo=UTC)))
    assert [head["corrects"] for head in invoices_of(database, "2026-01")] == ["", "", "north-2026-01-EUR-1"]
    assert broken(database, early) == []
    total = sum(head["total"] for head in invoices_of(database, "2026-01") if head["status"] == "issued")
    # 33.30 − 3.33 of tokens and 30 of the fee, less 5 shared by both: 27.47 with 7 %, 27.50 with 19 %.
    assert total == Decimal("27.47") + Decimal("27.50") + Decimal("1.92") + Decimal("5.22")


def test_an_account_is_asked_for_the_discounts_that_it_may_have_alone(catalog: Catalog) -> None:
    of_all = catalog.discounts[0]
    of_some = [
        of_all.model_copy(update={"id": "of-red", "accounts": ("red",)}),
        of_all.model_copy(update={"id": "of-north", "accounts": ("north", "red")}),
        of_all.model_copy(update={"id": "of-plan", "subscriptions": ("north-plan",)}),
        of_all.model_copy(update={"id": "a-coupon-of-nobody", "code": "X"}),
    ]
    terms = Contracts(directory(with_discounts(catalog, *catalog.discounts, *of_some)))
    key = RatingKey("default", "north", "north-plan", "tokens", "tokens", "v1", NOW, NOW, ())
    assert [one.id for one in terms.discounts([key, key])] == ["launch", "of-north", "of-plan", "welcome"]
    (redemption,) = terms.redemptions(catalog.discounts[1], key)
    assert redemption.id == "north-welcome"
    other = key._replace(billing_account_id="other", subscription_id="")
    assert [one.id for one in terms.discounts([other])] == ["launch"]
    assert not [*terms.redemptions(catalog.discounts[1], other)]
