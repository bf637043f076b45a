"""Mistakes in custom units and exchange rates are found at their line, in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest

from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_files import load_catalog
from tests.schemas.test_catalog_files import assert_reported, problems, write

GOOD = """\
meters:
  - {id: calls, event_type: calls, aggregation: count, unit: call}
  - {id: chars, event_type: chars, aggregation: count, unit: char}
custom_units:
  - {id: credits, name: Credits}
rate_cards:
  - id: dollars
    currency: USD
    versions: [{version: v1, effective_from: 2026-01-01T00:00:00Z, prices: {
      calls: {model: per_unit, unit_price: 1}, seat: {model: fixed, amount: 10, billed: in_arrears}}}]
  - id: points
    currency: credits
    versions: [{version: v1, effective_from: 2026-01-01T00:00:00Z, prices: {
      chars: {model: per_unit, unit_price: 1}}}]
plans:
  - {id: by-call, rate_card: dollars, charges: [{id: calls, meter: calls}, {id: seat}]}
  - {id: by-char, rate_card: points, charges: [{id: chars, meter: chars}]}
accounts:
  - {id: acme, invoice_currency: EUR}
  - {id: team, parent: acme}
  - {id: north}
subscriptions:
  - {id: s1, account: team, plan: by-call, start: 2026-03-14T00:00:00Z}
  - {id: s2, account: north, plan: by-char, start: 2026-03-01T00:00:00Z}
grants:
  - {id: promo, account: north, amount: '20', currency: USD, effective_from: 2026-01-01T00:00:00Z}
exchange_rates:
  - id: usd-eur
    from: USD
    to: EUR
    rates:
      - {effective_from: 2026-03-31T23:59:59Z, rate: '0.92'}
      - {effective_from: 2026-05-01T00:00:00Z, rate: '0.93'}
  - {id: credits-usd, from: credits, to: USD, rates: [{effective_from: 2026-01-01T00:00:00Z, rate: '0.01'}]}
"""
MISTAKES = [
    ("rate: '0.92'", "rate: '0' #!\n       ", "exchange rate usd-eur, rate 1, rate: must be more than 0, got 0"),
    ("rate: '0.92'", "rate: 0.92 #!\n       ",
     "exchange rate usd-eur, rate 1, rate: expected a decimal number in quotes, got 0.92: write '0.92'"),
    ("rate: '0.92'", "rate: '0.1234567890123456789' #!\n       ",
     "0.1234567890123456789 has 19 decimals, at most 18 are kept exactly"),
    ("2026-05-01T00:00:00Z", "2026-03-31T23:59:59Z #!\n       ",
     "exchange rate usd-eur, rate 2, effective_from: takes effect at 2026-03-31T23:59:59+00:00, it must be after the "
     "one that stands before it"),
    ("    to: EUR", "    to: USD #!", "exchange rate usd-eur, to: is USD, like `from`: that is always 1"),
    ("    to: EUR", "    to: credits #!", "exchange rate usd-eur, to: 'credits' is no ISO 4217 currency"),
    ("    from: USD", "    from: usd #!", "exchange rate usd-eur, from: 'usd' is no ISO 4217 currency"),
    ("    from: USD", "    form: USD #!", "unknown key 'form', did you mean 'from'?"),
    ("    from: USD", "    from: tokens #!", "exchange rate usd-eur, from: no custom unit has the id 'tokens'"),
    ("rate: '0.93'", "rat: '0.93' #!\n       ", "unknown key 'rat', did you mean 'rate'?"),
    ("{id: credits, name", "{id: USD, #!\n    name",
     "custom unit USD, id: expected 4 to 50 small letters, digits, '-' and '_', starting with a letter"),
    ("{id: credits, name", "{id: usd, #!\n    name", "custom unit usd, id: expected 4 to 50 small letters"),
    ("  - {id: credits, name: Credits}", "  - {id: credits}\n  - {id: credits} #!", "another custom unit has this id"),
    ("currency: credits", "currency: credit #!", "rate card points, currency: no custom unit has the id 'credit'"),
    ("  - {id: credits-usd", "  - {id: more, from: USD, to: EUR, #!\n     rates: [{effective_from: "
     "2026-01-01T00:00:00Z, rate: 1}]}\n  - {id: credits-usd",
     "exchange rate more: another record has the rates from USD to EUR, put these there"),
    ("invoice_currency: EUR", "invoice_currency: GBP #!\n   ",
     "account acme, invoice_currency: is GBP, but rate card dollars is in USD, and no exchange rate goes from USD to "
     "GBP"),
    ("parent: acme", "parent: acme, invoice_currency: EUR #!\n   ",
     "account team, invoice_currency: account team gets no invoice, expected one that is billed"),
    ("invoice_currency: EUR", "invoice_currency: EURO #!\n   ", "'EURO' is no ISO 4217 currency"),
    ("{id: north}", "{id: north, invoice_currency: EUR} #!",
     "account north, invoice_currency: is EUR, but rate card points is in credits, and no exchange rate goes from"),
    ("currency: USD, effective", "currency: EUR, #!\n    effective",
     "grant promo, currency: is EUR, but account north is billed in USD alone, so it would never be used"),
    ("2026-03-31T23:59:59Z", "2026-04-01T00:00:00Z #!\n       ",
     "exchange rate usd-eur, rate 1, effective_from: takes effect at 2026-04-01T00:00:00+00:00, too late for the first "
     "billing period of subscription s1, which ends at 2026-04-01T00:00:00+00:00"),
    ("billed: in_arrears", "billed: in_advance",
     "takes effect at 2026-03-31T23:59:59+00:00, too late for the first billing period of subscription s1, which "
     "starts at 2026-03-01T00:00:00+00:00"),
]  # fmt: skip


def test_a_good_catalog_has_no_problem(tmp_path: Path) -> None:
    assert problems(write(tmp_path, all=GOOD)) == []


@pytest.mark.parametrize(("old", "new", "expected"), MISTAKES, ids=[message for _, _, message in MISTAKES])
def test_a_mistake_is_reported_at_its_line(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert_reported(tmp_path, GOOD, old, new, expected)


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ("", "rate card points, currency: is credits, which has no exchange rate to a currency that north could be"),
        (
            "  - {id: a, from: credits, to: USD, rates: [{effective_from: 2026-01-01T00:00:00Z, rate: 1}]}\n"
            "  - {id: b, from: credits, to: EUR, rates: [{effective_from: 2026-01-01T00:00:00Z, rate: 1}]}\n",
            "account north: `invoice_currency` is missing: credits, which it pays in, has exchange rates to EUR and "
            "USD",
        ),
    ],
)
def test_a_custom_unit_that_no_invoice_can_be_in_is_reported(tmp_path: Path, rates: str, expected: str) -> None:
    head, sign, _ = GOOD.partition("  - {id: credits-usd")
    assert sign
    assert any(expected in one for one in problems(write(tmp_path, all=head + rates)))


def test_a_catalog_reads_itself_back(tmp_path: Path) -> None:
    catalog = load_catalog(write(tmp_path, all=GOOD))
    again = Catalog.model_validate_json(catalog.model_dump_json())
    assert (again, again.digest) == (catalog, catalog.digest)


def test_no_custom_unit_can_be_taken_for_a_currency(tmp_path: Path) -> None:
    for name in ("EUR", "eur", "Eur", "xau", "abc", "a", "CREDITS", "cré-dits"):
        changed = GOOD.replace("id: credits,", f"id: {name},").replace(": credits", f": {name}")
        assert any(name in one for one in problems(write(tmp_path, all=changed)))
