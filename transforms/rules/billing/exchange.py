"""Charges in the invoice's currency: each converted once, by the rate in force in its billing period.

Source: docs/rules.md, "Another currency".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import NamedTuple

import msgspec

from meterline.schemas.catalog_exchange import ExchangeRate, invoice_currency
from meterline.schemas.currency import is_unit
from meterline.schemas.event import instant_text, plain_text
from meterline.schemas.records import RatingKey
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.fees import Billed, BilledKey, is_in_advance
from meterline.transforms.rules.money import MoneyError, round_amount

_SECOND = timedelta(seconds=1)
_ZERO = Decimal(0)


class ExchangeError(ValueError):
    """An amount that cannot be converted: no rate is in force, it is not said to what, or it gets too large."""


@dataclass(frozen=True)
class Exchange:
    """The exchange rates of a catalog, indexed."""

    book: Directory

    @cached_property
    def _rates(self) -> dict[tuple[str, str], ExchangeRate]:
        return {(one.source, one.target): one for one in self.book.catalog.exchange_rates}

    def invoice_currency(self, billing_account_id: str, currency: str) -> str:
        """What amounts of an account are invoiced in."""
        account = self.book.accounts.get(billing_account_id)
        own = account.invoice_currency if account is not None else None
        return invoice_currency(own, currency, self.book.catalog.exchange_rates)

    def due_at(self, key: RatingKey) -> datetime:
        """The instant whose rate a charge is converted by: the first of its billing period where it is billed in
        advance, else the last (instants of a catalog are whole seconds)."""
        return key.period_start if is_in_advance(key, self.book) else key.period_end - _SECOND

    def conversion(self, key: RatingKey, source: str, target: str) -> Conversion:
        """What one of the charge's currency is worth in the invoice's.

        Raises:
          ExchangeError: no rate is in force.
        """
        if is_unit(target):
            raise ExchangeError(
                f"account {key.billing_account_id}: has amounts in {source}, and it is not said in which currency they "
                "are invoiced: give it an `invoice_currency`"
            )
        at, rates = self.due_at(key), self._rates.get((source, target))
        found = rates.at(at) if rates else None
        if found is None:
            raise ExchangeError(
                f"account {key.billing_account_id}: no exchange rate from {source} to {target} is in force at "
                f"{instant_text(at)}, for charge {key.charge_id} of subscription {key.subscription_id}; add one to "
                "`exchange_rates`"
            )
        return Conversion(source, found, at)


class Conversion(NamedTuple):
    """The rate of a charge's prices, in `source`, to the invoice's currency."""

    source: str
    rate: Decimal
    at: datetime

    def of(self, of_key: Mapping[BilledKey, Billed]) -> dict[BilledKey, tuple[Decimal, str]]:
        """The parts of one rating key in the invoice's currency, exactly, each with the terms of its line."""
        assert {billed.currency for billed in of_key.values()} == {self.source}, "one price, one currency"
        total = sum((billed.amount for billed in of_key.values()), _ZERO)
        found = {}
        for one, billed in of_key.items():
            terms = {
                "from": self.source,
                "of": plain_text(billed.amount),
                "rate": plain_text(self.rate),
                "at": instant_text(self.at),
            }
            if len(of_key) > 1:
                terms["total"] = plain_text(total)
            found[one] = billed.amount * self.rate, msgspec.json.encode(terms).decode()
        return found


def without_part(terms: str) -> str:
    """Of the terms of a charge that other accounts still have: those of one that has nothing of it any more."""
    if not terms:
        return ""
    found = msgspec.json.decode(terms)
    total = found.get("total", found["of"])
    return msgspec.json.encode({**found, "of": "0", "total": total}).decode()


def kept(amount: Decimal) -> Decimal:
    """A converted amount, exact for rounding to the minor unit, as it is shown: with 18 decimals.

    Raises:
      ExchangeError: it is too large to be kept.
    """
    try:
        return round_amount(amount)
    except MoneyError as error:
        raise ExchangeError(f"an amount is too large once it is converted: {error}") from None
