"""What happens to money after rating: discounts and coupons, commitments, grants of credit, and tax."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from meterline.schemas.catalog_fields import (
    Currency,
    Id,
    Instant,
    Name,
    Percent,
    Price,
    Record,
    check_dates,
    check_end,
    decimal_schema,
    misplaced,
    positive,
    zone,
)

Amount = Annotated[
    Price, AfterValidator(positive), decimal_schema("Currency units (dollars, not cents), in quotes; more than 0.")
]


def _at_most_all(value: Decimal) -> Decimal:
    if value > 100:
        raise ValueError(f"must be at most 100 percent, got {value:f}")
    return value


PercentOff = Annotated[
    Percent, AfterValidator(positive), AfterValidator(_at_most_all), decimal_schema("Percent, in quotes; 100 at most.")
]


class Scope(Record):
    """Which charges: those that each of the lists which are given names; all where none is."""

    charges: tuple[Id, ...] = Field((), description="Ids of charges; all unless given.")
    meters: tuple[Id, ...] = Field((), description="Ids of meters whose usage the charges bill; all unless given.")
    plans: tuple[Id, ...] = Field((), description="Ids of plans that the charges are of; all unless given.")


class Validity(Record):
    """A stretch of time [start, end)."""

    start: Instant | None = Field(None, description="From when on; always unless given.")
    end: Instant | None = Field(None, description="Until when, exclusive; without end unless given.")

    @model_validator(mode="after")
    def _ends_after_start(self) -> Validity:
        check_end(self.start, self.end)
        return self

    def has(self, instant: datetime) -> bool:
        return (self.start is None or self.start <= instant) and (self.end is None or instant < self.end)


class Discount(Scope, Validity):
    """A part, or an amount, off some charges; a coupon where it has a code."""

    id: Id
    name: Name = ""
    percent: PercentOff | None = None
    amount: Amount | None = Field(None, description="Off each billing period, at most what the charges come to.")
    currency: Currency | None = Field(None, description="Of the amount.")
    accounts: tuple[Id, ...] = Field((), description="Billing accounts that have it; all unless given.")
    subscriptions: tuple[Id, ...] = Field((), description="Subscriptions that have it; all unless given.")
    code: Annotated[str, StringConstraints(min_length=1, max_length=100)] | None = Field(
        None, description="Makes it a coupon: it is for those who redeem it (`redemptions`) and nobody else."
    )
    periods: int | None = Field(
        None, ge=1, le=1_200, strict=True, description="For so many billing periods, from its start or redemption on."
    )
    max_redemptions: int | None = Field(
        None, ge=1, le=10**9, strict=True, description="How often the coupon can be redeemed."
    )

    @model_validator(mode="after")
    def _sensible(self) -> Discount:
        if (self.percent is None) == (self.amount is None):
            raise ValueError("expected `percent`, or `amount` with its `currency`, and not both")
        if self.amount is not None and self.currency is None:
            raise misplaced("`currency` is missing, in which the amount is", at=("amount",))
        if self.percent is not None and self.currency is not None:
            raise misplaced("a percentage has no currency, leave it out", at=("currency",))
        if self.code is None and self.max_redemptions is not None:
            raise misplaced("only a coupon is redeemed, `code` is missing", at=("max_redemptions",))
        if self.code is None and self.periods is not None and self.start is None:
            raise misplaced("`start` is missing, from which on they are counted", at=("periods",))
        if self.code is not None and (self.accounts or self.subscriptions):
            name = "accounts" if self.accounts else "subscriptions"
            raise misplaced("a coupon is for those who redeem it: list them under `redemptions`", at=(name,))
        return self


class Redemption(Record):
    """A coupon used by an account, or for one of its subscriptions."""

    id: Id
    discount: Annotated[Id, Field(description="The discount whose code was redeemed.")]
    account: Id | None = Field(None, description="The billing account that has it now.")
    subscription: Id | None = Field(None, description="The subscription that has it now, in place of an account.")
    redeemed_at: Instant = Field(description="Its first billing period is the one that holds this instant.")

    @model_validator(mode="after")
    def _of_one(self) -> Redemption:
        if (self.account is None) == (self.subscription is None):
            raise ValueError("expected `account` or `subscription`, and not both")
        return self


class DatedPercent(Record):
    """A tax rate in force from an instant until the next one's."""

    effective_from: Instant
    percent: Annotated[Percent, decimal_schema("Percent of the amount without tax, in quotes.")]


class TaxRate(Record):
    """What a jurisdiction takes of some products, or of all that it has no other rate for."""

    id: Id
    name: Name = ""
    jurisdiction: Annotated[Id, Field(description="Country, state or city, like DE or US-CA.")]
    product_codes: tuple[Id, ...] = Field((), description="Codes of charges; all that no other rate names, if none.")
    rates: tuple[DatedPercent, ...] = Field(min_length=1, description="In the order they take effect.")

    @model_validator(mode="after")
    def _rates_in_order(self) -> TaxRate:
        check_dates(self.rates, "rates", by_day=True)
        return self


class AccountTax(Record):
    """Where a billing account is taxed, and whether."""

    jurisdictions: tuple[Id, ...] = Field(min_length=1, description="All that tax it, for example a state and a city.")
    treatment: Literal["taxable", "exempt", "reverse_charge"] = Field(
        "taxable", description="reverse_charge: the customer owes the tax; the invoice says so and adds none."
    )
    note: str = Field("", max_length=1_000, description="Printed on the tax line: a VAT number, why it is exempt.")

    @model_validator(mode="after")
    def _named_once(self) -> AccountTax:
        for number, name in enumerate(self.jurisdictions):
            if name in self.jurisdictions[:number]:
                raise misplaced(f"{name!r} is named twice", at=("jurisdictions", number))
        return self


class Rollover(Record):
    """What of a grant is carried into its next month."""

    minimum: Annotated[Price, decimal_schema("At least so much, even where less is left.")] = Decimal(0)
    maximum: Annotated[Price, decimal_schema("At most so much of what is left.")] = Decimal(0)

    @model_validator(mode="after")
    def _minimum_first(self) -> Rollover:
        if self.maximum < self.minimum:
            raise misplaced(
                f"is {self.maximum:f}, it must be at least the minimum of {self.minimum:f}",
                at=("maximum",),
                also=("minimum",),
            )
        return self


class Grant(Scope):
    """Credit that a billing account draws from before it pays."""

    id: Id
    name: Name = ""
    account: Annotated[Id, Field(description="The billing account.")]
    amount: Amount
    currency: Currency
    priority: int = Field(100, ge=0, le=10**6, strict=True, description="The lowest is drawn first.")
    effective_from: Instant
    expires: Instant | None = Field(None, description="The first instant that it no longer holds; none for no end.")
    recurs: Literal["never", "monthly"] = Field("never", description="monthly: anew on each monthly day of its start.")
    rollover: Rollover | None = Field(None, description="What of a month is carried into the next; nothing unless set.")
    time_zone: Annotated[str, AfterValidator(zone)] = Field("UTC", description="In which its months start.")

    @model_validator(mode="after")
    def _sensible(self) -> Grant:
        if self.expires is not None and self.expires <= self.effective_from:
            raise misplaced(
                f"is {self.expires.isoformat()}, it must be after {self.effective_from.isoformat()}",
                at=("expires",),
                also=("effective_from",),
            )
        if self.rollover is not None and self.recurs == "never":
            raise misplaced("only a grant that recurs is carried over, `recurs` is missing", at=("rollover",))
        return self


def _at_least_one(value: Decimal) -> Decimal:
    if value < 1:
        raise ValueError(f"must be at least 1, got {value:f}")
    return value


class Commitment(Scope):
    """Spend that a billing account has promised: in each billing period, or over a term."""

    id: Id
    name: Name = ""
    account: Annotated[Id, Field(description="The billing account.")]
    kind: Literal["minimum", "postpaid", "prepaid"] = Field(
        description="minimum: in each billing period; postpaid: over the term, what is missing is billed at its end; "
        "prepaid: the same, billed at its start and then drawn from."
    )
    amount: Amount
    currency: Currency
    start: Instant
    end: Instant | None = Field(None, description="The end of the term, exclusive; a minimum may be without end.")
    overage_factor: Annotated[
        Price,
        AfterValidator(_at_least_one),
        decimal_schema("Spend beyond the commitment is multiplied by it; 1 or more."),
    ] = Decimal(1)

    @model_validator(mode="after")
    def _sensible(self) -> Commitment:
        if self.end is None and self.kind != "minimum":
            raise ValueError("`end` is missing, the end of the term")
        check_end(self.start, self.end)
        if self.kind == "minimum" and self.overage_factor != 1:
            raise misplaced("only a commitment over a term has an overage", at=("overage_factor",))
        return self
