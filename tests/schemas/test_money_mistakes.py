"""Mistakes in discounts, coupons and tax are found at their line, in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.schemas.test_catalog_files import GOOD as BASE
from tests.schemas.test_catalog_files import assert_reported, problems, write

MONEY = """\
discounts:
  - {id: launch, percent: '10', charges: [tokens], meters: [tokens], plans: [basic]}
  - {id: welcome, amount: '5.00', currency: USD, code: WELCOME, periods: 2, max_redemptions: 1,
     end: 2027-01-01T00:00:00Z}
redemptions:
  - {id: r1, discount: welcome, account: acme, redeemed_at: 2026-05-01T00:00:00Z}
tax_rates:
  - id: vat
    jurisdiction: DE
    rates:
      - {effective_from: 2020-01-01T00:00:00Z, percent: '16'}
      - {effective_from: 2021-01-01T00:00:00Z, percent: '19'}
  - {id: food, jurisdiction: DE, product_codes: [food], rates: [{effective_from: 2020-01-01T00:00:00Z, percent: 7}]}
"""
MONEY += """\
commitments:
  - {id: deal, account: acme, kind: prepaid, amount: '100', currency: USD, start: 2026-01-01T00:00:00Z,
     end: 2027-01-01T00:00:00Z, overage_factor: '1.2'}
grants:
  - {id: promo, account: acme, amount: '20', currency: USD, effective_from: 2026-01-01T00:00:00Z, recurs: monthly,
     rollover: {maximum: '5'}}
"""
GOOD = BASE.replace("{id: acme}", "{id: acme, tax: {jurisdictions: [DE]}}") + MONEY

MISTAKES = [
    ("percent: '10'", "percent: '110' #!\n   ", "discount launch, percent: must be at most 100 percent, got 110"),
    ("percent: '10'", "percent: '0' #!\n   ", "discount launch, percent: must be more than 0, got 0"),
    ("percent: '10', ", "", "discount launch: expected `percent`, or `amount` with its `currency`, and not both"),
    ("percent: '10', ", "percent: '10', currency: USD, #!\n    ",
     "discount launch, currency: a percentage has no currency, leave it out"),
    ("amount: '5.00', currency: USD", "amount: '5.00' #!\n    ",
     "discount welcome, amount: `currency` is missing, in which the amount is"),
    ("amount: '5.00'", "amount: '5.005' #!\n    ", "discount welcome, amount: is 5.005, but USD has 2 decimals"),
    ("code: WELCOME, ", "", "discount welcome, max_redemptions: only a coupon is redeemed, `code` is missing"),
    ("percent: '10', ", "percent: '10', periods: 3, #!\n    ",
     "discount launch, periods: `start` is missing, from which on they are counted"),
    ("percent: '10', ", "percent: '10', accounts: [acne], #!\n    ",
     "discount launch, account 1: no account has the id 'acne'"),
    ("percent: '10', ", "percent: '10', accounts: [team], #!\n    ",
     "discount launch, account 1: account team gets no invoice, expected one that is billed (line 39)"),
    ("percent: '10', ", "percent: '10', subscriptions: [s9], #!\n    ",
     "discount launch, subscription 1: no subscription has the id 's9'"),
    ("charges: [tokens]", "charges: [tokenz] #!\n    ", "discount launch, charge 1: no plan has a charge with the id"),
    ("meters: [tokens]", "meters: [tokenz] #!\n    ", "discount launch, meter 1: no meter has the id 'tokenz'"),
    ("plans: [basic]", "plans: [base] #!\n    ", "discount launch, plan 1: no plan has the id 'base'"),
    ("code: WELCOME", "code: WELCOME, accounts: [acme] #!\n    ",
     "discount welcome, accounts: a coupon is for those who redeem it: list them under `redemptions`"),
    ("discount: welcome", "discount: launch #!\n    ", "redemption r1, discount: discount launch is no coupon"),
    ("discount: welcome", "discount: welcom #!\n    ", "redemption r1, discount: no discount has the id 'welcom'"),
    ("account: acme, redeemed", "redeemed", "redemption r1: expected `account` or `subscription`, and not both"),
    ("2026-05-01T00:00:00Z}", "2027-05-01T00:00:00Z} #!",
     "redemption r1, redeemed_at: is 2027-05-01T00:00:00+00:00, when coupon welcome could not be redeemed"),
    ("tax_rates:",
     "  - {id: r2, discount: welcome, subscription: s1, redeemed_at: 2026-05-01T00:00:00Z} #!\ntax_rates:",
     "redemption r2, discount: coupon welcome can be redeemed 1 times at most, this is once more"),
    ("tax_rates:", "  - {id: r2, discount: welcome, account: acme, redeemed_at: 2026-05-01T00:00:00Z} #!\ntax_rates:",
     "redemption r2, discount: was redeemed for the same already"),
    ("2021-01-01T00:00:00Z, percent", "2019-01-01T00:00:00Z, percent: '1'} #!\n      - {effective_from: "
     "2021-01-01T00:00:00Z, percent",
     "tax rate vat, rate 2, effective_from: takes effect at 2019-01-01T00:00:00+00:00, it must be on a later day "
     "(UTC) than the one that stands before it"),
    ("2021-01-01T00:00:00Z, percent", "2021-01-01T00:00:00Z, percent: '1'}\n      - {effective_from: "
     "2021-01-01T23:30:00Z, #!\n        percent",
     "tax rate vat, rate 3, effective_from: takes effect at 2021-01-01T23:30:00+00:00, it must be on a later day"),
    ("percent: '19'", "percnt: '19' #!\n       ", "unknown key 'percnt', did you mean 'percent'?"),
    ("jurisdiction: DE, product_codes: [food]", "jurisdiction: DE #!\n    ",
     "tax rate food: DE has a rate without product codes already"),
    ("product_codes: [food]", "product_codes: [food, food] #!\n    ", "DE has a rate for food already"),
    ("jurisdictions: [DE]", "jurisdictions: [FR] #!\n   ",
     "account acme, tax, jurisdiction 1: no tax rate is of the jurisdiction FR"),
    ("jurisdictions: [DE]", "jurisdictions: [DE, DE] #!\n   ",
     "account acme, tax, jurisdiction 2: 'DE' is named twice"),
    ("jurisdictions: [DE]", "jurisdictions: [DE], treatment: free #!\n   ",
     "account acme, tax, treatment: expected one of taxable, exempt, reverse_charge, got free"),
    ("parent: acme", "parent: acme, tax: {jurisdictions: [DE]} #!\n   ",
     "account team, tax: account team gets no invoice, expected one that is billed"),
    ("account: acme, kind", "account: team, #!\n    kind",
     "commitment deal, account: account team gets no invoice, expected one that is billed"),
    ("kind: prepaid", "kind: payg #!\n    ",
     "commitment deal, kind: expected one of minimum, postpaid, prepaid, got payg"),
    ("amount: '100'", "amount: '100.001' #!\n    ", "commitment deal, amount: is 100.001, but USD has 2 decimals"),
    ("end: 2027-01-01T00:00:00Z, overage", "overage", "commitment deal: `end` is missing, the end of the term"),
    ("end: 2027-01-01T00:00:00Z, overage", "end: 2025-01-01T00:00:00Z, #!\n    overage",
     "commitment deal, end: ends at 2025-01-01T00:00:00+00:00, it must end after its start"),
    ("overage_factor: '1.2'", "overage_factor: '0.9' #!\n    ", "overage_factor: must be at least 1, got 0.9"),
    ("kind: prepaid", "kind: minimum", "commitment deal, overage_factor: only a commitment over a term has an overage"),
    ("account: acme, amount: '20'", "account: acne, amount: '20' #!\n    ",
     "grant promo, account: no account has the id 'acne'"),
    ("account: acme, amount: '20'", "account: team, amount: '20' #!\n    ",
     "grant promo, account: account team gets no invoice, expected one that is billed"),
    ("currency: USD", "currency: USD\n    prices_include_tax: true",
     "commitment deal, account: acme has prices that include tax, and what a commitment promises is without it"),
    ("recurs: monthly", "recurs: weekly #!\n    ", "grant promo, recurs: expected one of never, monthly, got weekly"),
    ("recurs: monthly,", "", "grant promo, rollover: only a grant that recurs is carried over, `recurs` is missing"),
    ("{maximum: '5'}", "{maximum: '5', minimum: '6'} #!\n    ",
     "grant promo, rollover, maximum: is 5, it must be at least the minimum of 6"),
    ("{maximum: '5'}", "{maxium: '5'} #!\n    ", "unknown key 'maxium', did you mean 'maximum'?"),
    ("recurs: monthly", "expires: 2025-01-01T00:00:00Z, recurs: monthly #!\n    ",
     "grant promo, expires: is 2025-01-01T00:00:00+00:00, it must be after 2026-01-01T00:00:00+00:00"),
    ("amount: '100', currency: USD", "amount: '100', currency: EUR #!\n    ",
     "commitment deal, currency: is EUR, but account acme is billed in USD alone, so it would never be used (line 13)"),
    ("amount: '20', currency: USD", "amount: '20', currency: EUR #!\n    ",
     "grant promo, currency: is EUR, but account acme is billed in USD alone, so it would never be used (line 13)"),
    ("start: 2026-01-01T00:00:00Z,\n     end: 2027-01-01T00:00:00Z, over", "start: 2026-03-02T00:00:00Z,\n    "
     "end: 2026-04-01T00:00:00Z, #!\n    over",
     "commitment deal, end: account acme has no billing period that starts from 2026-03-02T00:00:00+00:00 on and "
     "before 2026-04-01T00:00:00+00:00, so it would never be billed: a commitment is for periods that start in its "
     "term; let the term hold the start of one, the next is 2026-04-01T00:00:00+00:00 (line 41)"),
    ("redemptions:\n", "  - {id: bienvenue, percent: 5,\n    code: WELCOME} #!\nredemptions:\n",
     "discount bienvenue, code: discount welcome has the code 'WELCOME' already, a code is for one coupon (line 44)"),
    ("commitments:", "  # more\ncommitments:\n  - {id: other, account: north, kind: minimum, amount: 1, currency: USD, "
     "start: 2026-01-01T00:00:00Z} #!", "commitment other, account: no account has the id 'north'"),
]  # fmt: skip


def test_a_good_catalog_has_no_problem(tmp_path: Path) -> None:
    assert problems(write(tmp_path, all=GOOD)) == []


def test_credit_and_promises_may_be_in_any_currency_that_the_account_is_billed_in(tmp_path: Path) -> None:
    euros = """\
rate_cards:
  - {id: euros, currency: EUR, versions: [{version: '1', effective_from: 2026-01-01T00:00:00Z,
     prices: {seats: {model: fixed, amount: 5}}}]}
plans:
  - {id: seats, rate_card: euros, charges: [{id: seats}]}
subscriptions:
  - {id: s2, account: team, plan: seats, start: 2026-01-01T00:00:00Z}
commitments:
  - {id: more, account: acme, kind: minimum, amount: 9, currency: EUR, start: 2026-01-01T00:00:00Z}
grants:
  - {id: extra, account: acme, amount: 9, currency: EUR, effective_from: 2026-01-01T00:00:00Z}
"""
    assert problems(write(tmp_path, all=GOOD, euros=euros)) == []
    cards_only = euros[: euros.index("subscriptions:")] + euros[euros.index("commitments:") :]
    assert len(problems(write(tmp_path, all=GOOD, euros=cards_only))) == 2


TERMS = [
    ("monthly", "UTC", "2026-03-31T23:59:59Z", "2026-04-01T00:00:01Z", True),
    ("monthly", "UTC", "2026-04-01T00:00:00Z", "2026-04-01T00:00:01Z", True),
    ("monthly", "UTC", "2026-04-01T00:00:01Z", "2026-05-01T00:00:00Z", False),
    ("monthly", "Europe/Berlin", "2026-03-31T22:00:00Z", "2026-03-31T22:00:01Z", True),
    ("monthly", "Europe/Berlin", "2026-04-01T00:00:00Z", "2026-04-30T22:00:00Z", False),
    ("weekly", "UTC", "2026-04-01T00:00:00Z", "2026-04-30T22:00:00Z", True),
    ("yearly", "UTC", "2026-01-01T00:00:01Z", "2027-01-01T00:00:00Z", False),
]


@pytest.mark.parametrize(("cycle", "zone", "start", "end", "holds"), TERMS)
def test_a_term_holds_at_least_one_start_of_a_billing_period(
    tmp_path: Path, cycle: str, zone: str, start: str, end: str, holds: bool
) -> None:
    good = GOOD.replace("plan: basic, start", f"plan: basic, cycle: {cycle}, time_zone: {zone}, start")
    term = "start: 2026-01-01T00:00:00Z,\n     end: 2027-01-01T00:00:00Z"
    assert term in good
    text = good.replace(term, f"start: {start}, end: {end}")
    assert (problems(write(tmp_path, all=text)) == []) == holds


def test_a_grant_may_come_before_the_first_subscription(tmp_path: Path) -> None:
    later = "accounts: [{id: north}]\ngrants: [{id: extra, account: north, amount: 9, currency: EUR, effective_from: "
    assert problems(write(tmp_path, all=GOOD, later=later + "2026-01-01T00:00:00Z}]\n")) == []


@pytest.mark.parametrize(("old", "new", "expected"), MISTAKES, ids=[message for _, _, message in MISTAKES])
def test_a_mistake_is_reported_at_its_line(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert_reported(tmp_path, GOOD, old, new, expected)
