"""Tax: by where the account is taxed and what it buys, rounded once for each rate of an invoice."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from meterline.schemas.catalog_money import AccountTax, DatedPercent, TaxRate
from meterline.schemas.records import RatingKey
from meterline.transforms.rules.billing.bill import Bill, Circumstances
from meterline.transforms.rules.fees import BilledKey
from meterline.transforms.rules.money import ratio

_ZERO = Decimal(0)


class _Rate(NamedTuple):
    """A tax rate in force; of prices that include tax, with the percent that all rates take of them together."""

    id: str
    effective_from: datetime
    percent: Decimal
    included_percent: Decimal | None


def taxes(bill: Bill, around: Circumstances) -> None:
    """Add the tax on what is left to pay.

    Source: docs/rules.md, "Tax".
    """
    tax = around.book.accounts[around.billing_account_id].tax
    if tax is None:
        return
    bases: dict[_Rate, list[BilledKey]] = {}
    for one in sorted(bill.net):
        for rate in _rates(one.key, tax, around):
            bases.setdefault(rate, []).append(one)
    for rate in sorted(bases, key=lambda rate: (rate[:3], rate.included_percent is not None, rate[3] or _ZERO)):
        _tax(bill, around, tax, rate, bases[rate])


def _rates(key: RatingKey, tax: AccountTax, around: Circumstances) -> Iterator[_Rate]:
    """The rates on a charge, in force at the end of its billing period."""
    code = around.contracts.product_code(key)
    found = [around.contracts.tax_rate(jurisdiction, code) for jurisdiction in tax.jurisdictions]
    in_force = [(rate, entry) for rate in found if rate for entry in _at_the_end_of(rate, key)]
    together = sum((entry.percent for _, entry in in_force), _ZERO)
    included = together if around.contracts.includes_tax(key) and tax.treatment == "taxable" else None
    for rate, entry in in_force:
        yield _Rate(rate.id, entry.effective_from, entry.percent, included)


def _at_the_end_of(rate: TaxRate, key: RatingKey) -> list[DatedPercent]:
    return [entry for entry in rate.rates if entry.effective_from < key.period_end][-1:]


def _tax(bill: Bill, around: Circumstances, tax: AccountTax, rate: _Rate, bases: list[BilledKey]) -> None:
    of = sum((bill.net[one] for one in bases), _ZERO)
    terms = {"percent": f"{rate.percent:f}", "of": f"{of:f}"}
    if tax.note:
        terms["note"] = tax.note
    key = around.account_key._replace(rate_card_version=f"{rate.effective_from:%Y-%m-%d}")
    line = BilledKey(key, around.billing_account_id, "tax", rate.id)
    if tax.treatment != "taxable":
        bill.add(line, _ZERO, {**terms, "treatment": tax.treatment})
    elif rate.included_percent is None:
        bill.add(line, bill.rounded(of * rate.percent.scaleb(-2), around.rounding), terms)
    else:
        _included(bill, around, rate, bases, of, line._replace(kind="included_tax"), terms)


def _included(
    bill: Bill,
    around: Circumstances,
    rate: _Rate,
    bases: list[BilledKey],
    of: Decimal,
    line: BilledKey,
    terms: dict[str, str],
) -> None:
    """Prices that include tax: it is shown, and taken out of the charges that it is in; the total stays."""
    assert rate.included_percent is not None
    terms = {**terms, "included_percent": f"{rate.included_percent:f}"}
    amount = bill.rounded(ratio(of * rate.percent, 100 + rate.included_percent), around.rounding)
    line = line._replace(key=line.key._replace(dimensions=(("included", f"{rate.included_percent:f}"),)))
    bill.add(line, amount, terms)
    for one, part in bill.share(amount, bases).items():
        key = one.key._replace(dimensions=())
        bill.add(BilledKey(key, one.account_id, "included_tax", rate.id), -part, terms)
