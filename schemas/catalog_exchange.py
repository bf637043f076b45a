"""Units that prices may be in beside currencies, and what they and other currencies are worth, by date."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, WithJsonSchema, model_validator

from meterline.schemas.catalog_fields import (
    Currency,
    Id,
    Instant,
    Name,
    Price,
    Record,
    check_dates,
    decimal_schema,
    misplaced,
    positive,
)
from meterline.schemas.currency import MINOR_UNITS, UNIT_PATTERN, is_unit


def denomination(value: str) -> str:
    """Refuse what is neither an ISO 4217 currency nor the id of a custom unit."""
    if value not in MINOR_UNITS and not is_unit(value):
        raise ValueError(f"{value!r} is no ISO 4217 currency, expected a code like 'USD'")
    return value


def invoice_currency(own: str | None, name: str, rates: Iterable[ExchangeRate]) -> str:
    """What amounts in a currency, or a custom unit, are invoiced in: as the account says, else as they are.

    Custom units are invoiced in the one currency that they have rates to; where there is none, or several, they stay
    what they are, and can be converted to nothing.
    """
    if own is not None:
        return own
    targets = [one.target for one in rates if one.source == name] if is_unit(name) else []
    return targets[0] if len(targets) == 1 else name


UnitId = Annotated[
    str,
    StringConstraints(pattern=UNIT_PATTERN),
    Field(description="4 to 50 small letters, digits, '-' and '_', so that it is no code of a currency."),
]
Denomination = Annotated[
    str,
    AfterValidator(denomination),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": f"^[A-Z]{{3}}$|{UNIT_PATTERN}",
            "description": "ISO 4217 code, or the id of a custom unit.",
        }
    ),
]


class CustomUnit(Record):
    """What prices may be in instead of a currency: credits, tokens, points."""

    id: UnitId
    name: Name = ""


class DatedRate(Record):
    """An exchange rate in force from an instant until the next one's. Never edited once used."""

    effective_from: Instant
    rate: Annotated[
        Price,
        AfterValidator(positive),
        decimal_schema("What one of `from` is worth in `to`, in quotes; more than 0, at most 18 decimals."),
    ]


class ExchangeRate(Record):
    """What a currency, or a custom unit, is worth in a currency that invoices are in."""

    id: Id
    source: Denomination = Field(alias="from", description="What prices are in: a currency, or a custom unit.")
    target: Currency = Field(alias="to")
    rates: tuple[DatedRate, ...] = Field(min_length=1, description="In the order they take effect.")

    model_config = ConfigDict(serialize_by_alias=True)

    @model_validator(mode="after")
    def _sensible(self) -> ExchangeRate:
        if self.source == self.target:
            raise misplaced(f"is {self.target}, like `from`: that is always 1, leave the record out", at=("to",))
        check_dates(self.rates, "rates")
        return self

    def at(self, instant: datetime) -> Decimal | None:
        """The rate in force at an instant; None before the first."""
        return next((one.rate for one in reversed(self.rates) if one.effective_from <= instant), None)
