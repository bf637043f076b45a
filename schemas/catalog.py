"""What is sold and to whom: meters, rate cards, plans, accounts and subscriptions.

A catalog is a folder of YAML files (see `catalog_files`). These models check one record at a
time; `catalog_checks` checks what only the whole can show. Every record is immutable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from meterline.schemas.calendars import FIRST_ANCHOR, Calendar, moved_on
from meterline.schemas.catalog_allowances import IncludedRollover
from meterline.schemas.catalog_exchange import CustomUnit, Denomination, ExchangeRate
from meterline.schemas.catalog_fields import (
    BasisPoints,
    Currency,
    Cycle,
    Flag,
    Id,
    Instant,
    LocalDate,
    Name,
    Percent,
    PositiveQuantity,
    Price,
    PropertyPath,
    Quantity,
    Record,
    check_end,
    decimal_schema,
    misplaced,
    unless,
    zone,
)
from meterline.schemas.catalog_money import AccountTax, Commitment, Discount, Grant, Redemption, TaxRate
from meterline.schemas.meters import Meter


class Tier(Record):
    """Usage in (previous up_to, up_to]: the unit at the bound belongs to this tier."""

    up_to: PositiveQuantity | None = Field(
        None, description="Last unit of the tier, in the meter's unit (not in `per`); none for no end."
    )
    unit_price: Price = Decimal(0)
    flat_fee: Price = Field(Decimal(0), description="Due once a unit reaches the tier.")
    package_price: (
        Annotated[Price, decimal_schema("Currency units for one package, in place of `unit_price`.")] | None
    ) = None
    package_size: Annotated[PositiveQuantity, decimal_schema("Units of the meter in one package.")] | None = None
    round: Literal["up", "down"] = Field(default="up", description="Whether a started package is paid.")

    @model_validator(mode="after")
    def _sold_one_way(self) -> Tier:
        if self.package_price is not None and self.package_size is None:
            raise misplaced("`package_size` is missing, the units that it buys", at=("package_price",))
        if self.package_size is None:
            if self.round == "down":
                raise misplaced("only packages are rounded, `package_size` is missing", at=("round",))
            return self
        if self.package_price is None:
            raise misplaced("`package_price` is missing, what one package costs", at=("package_size",))
        if self.unit_price:
            raise misplaced("the tier is sold in packages, leave `unit_price` out", at=("unit_price",))
        return self


class Step(Record):
    """Usage in (previous up_to, up_to], at one price however much of it is used."""

    up_to: PositiveQuantity | None = Field(None, description="Last unit of the step; none for no end.")
    price: Annotated[Price, decimal_schema("Currency units for all usage up to the step's end, in quotes.")]


_Bounded = TypeVar("_Bounded", bound="Tier | Step | ShareTier")


def _ascending(tiers: Sequence[_Bounded]) -> Sequence[_Bounded]:
    floor = Decimal(0)
    for number, tier in enumerate(tiers, start=1):
        if tier.up_to is None:
            if number < len(tiers):
                raise misplaced("`up_to` is missing, only the last one may be without end", at=(number - 1,))
        elif tier.up_to <= floor:
            raise misplaced(f"ends at {tier.up_to}, it must end above {floor}", at=(number - 1, "up_to"))
        else:
            floor = tier.up_to
    if tiers[-1].up_to is not None:
        raise misplaced(
            f"the last one ends at {floor}, leave its `up_to` out so that all usage has a price",
            at=(len(tiers) - 1, "up_to"),
        )
    return tiers


Tiers = Annotated[tuple[Tier, ...], Field(min_length=1), AfterValidator(_ascending)]
Per = Annotated[
    PositiveQuantity,
    decimal_schema("Units that one `unit_price` buys, for example 1000000 for prices per million."),
]


class Metered(Record):
    """What prices of usage have in common, whatever their model."""

    model: str
    included: Annotated[Quantity, decimal_schema("Units that cost nothing, before the price begins.")] = Decimal(0)
    included_rollover: Annotated[
        IncludedRollover | None,
        Field(description="What of them is carried into later billing periods; nothing unless set."),
        unless(None),
    ] = None
    minimum: Annotated[Price, decimal_schema("Least charge of a billing period, without usage too.")] | None = None
    maximum: Annotated[Price, decimal_schema("Greatest charge of a billing period.")] | None = None
    fee_per_event: Annotated[Price, decimal_schema("Due for each event, whatever it counts for.")] = Decimal(0)
    free_events: int = Field(
        default=0, ge=0, le=10**15, strict=True, description="Events that bear no fee, before the others."
    )

    @model_validator(mode="after")
    def _carries_units(self) -> Metered:
        if self.included_rollover and not self.included:
            raise misplaced("`included` is missing, the units that are carried over", at=("included_rollover",))
        if self.included_rollover and self.fee_per_event and (self.minimum is not None or self.maximum is not None):
            limit = "maximum" if self.minimum is None else "minimum"
            message = f"the {limit} is of units and fees together, so that units alone have no price; leave one out"
            raise misplaced(message, at=("included_rollover",), also=("fee_per_event",))
        return self

    @model_validator(mode="after")
    def _limits_in_order(self) -> Metered:
        if self.free_events and not self.fee_per_event:
            raise misplaced("`fee_per_event` is missing, the fee that they do not bear", at=("free_events",))
        if self.minimum is not None and self.maximum is not None and self.maximum < self.minimum:
            raise misplaced(
                f"is {self.maximum:f}, it must be at least the minimum of {self.minimum:f}",
                at=("maximum",),
                also=("minimum",),
            )
        return self

    @property
    def is_adjusted(self) -> bool:
        """Whether the charge is more, or less, than what its tiers say."""
        return bool(self.included or self.fee_per_event) or self.minimum is not None or self.maximum is not None


class PerUnit(Metered):
    """Every unit at one price."""

    model: Literal["per_unit"]
    unit_price: Price
    per: Per = Decimal(1)


class Graduated(Metered):
    """Each unit at the price of the tier it falls in."""

    model: Literal["graduated"]
    tiers: Tiers
    per: Per = Decimal(1)
    first_tier_flat_at_zero: Flag = Field(False, description="Whether the first tier's flat fee is due without usage.")


class Volume(Metered):
    """All units at the price of the tier that the total falls in."""

    model: Literal["volume"]
    tiers: Tiers
    per: Per = Decimal(1)
    first_tier_flat_at_zero: Flag = Field(False, description="Whether the first tier's flat fee is due without usage.")


class Stairstep(Metered):
    """One price for all usage: that of the highest step reached. Also called capacity pricing."""

    model: Literal["stairstep"]
    steps: Annotated[tuple[Step, ...], Field(min_length=1), AfterValidator(_ascending)]
    first_step_at_zero: Flag = Field(False, description="Whether the first step's price is due without usage.")


class Package(Metered):
    """Usage is sold in packages."""

    model: Literal["package"]
    package_price: Annotated[Price, decimal_schema("Currency units for one package, in quotes.")]
    package_size: Annotated[PositiveQuantity, decimal_schema("Units of the meter in one package.")]
    round: Literal["up", "down"] = Field("up", description="Whether a started package is paid.")
    free_units: Annotated[Quantity, decimal_schema("Units before the first package.")] = Decimal(0)
    minimum_packages: int = Field(0, ge=0, le=10**9, strict=True, description="Packages paid in any case, used or not.")

    @model_validator(mode="after")
    def _one_allowance(self) -> Package:
        if self.included:
            raise misplaced("packages have their own allowance, write `free_units`", at=("included",))
        return self


class Share(Record):
    """A part of an amount, in percent or in basis points."""

    percent: Percent | None = None
    basis_points: BasisPoints | None = None

    @model_validator(mode="after")
    def _written_once(self) -> Share:
        if self.percent is None and self.basis_points is None:
            raise ValueError("`percent` is missing, or `basis_points`")
        if self.percent is not None and self.basis_points is not None:
            raise misplaced("the share stands in `percent` already, leave one out", at=("basis_points",))
        return self

    @property
    def rate(self) -> Decimal:
        """What is due for one currency unit: 0.029 of 2.9 percent."""
        if self.percent is not None:
            return self.percent.scaleb(-2)
        assert self.basis_points is not None
        return self.basis_points.scaleb(-4)


class Percentage(Share, Metered):
    """A share of the amount that events carry: the meter adds the amounts up, in the currency of the rate card."""

    model: Literal["percentage"]


class ShareTier(Share):
    """Amounts in (previous up_to, up_to]: the one at the bound belongs to this tier."""

    up_to: Annotated[PositiveQuantity, decimal_schema("Greatest amount of the tier.")] | None = None
    flat_fee: Price = Field(Decimal(0), description="Due once an amount reaches the tier.")


class GraduatedPercentage(Metered):
    """Each part of the amount that events carry at the share of the tier it falls in."""

    model: Literal["graduated_percentage"]
    tiers: Annotated[tuple[ShareTier, ...], Field(min_length=1), AfterValidator(_ascending)]
    first_tier_flat_at_zero: Flag = Field(False, description="Whether the first tier's flat fee is due without usage.")

    @cached_property
    def graduated(self) -> Graduated:
        """The same as a price of currency units."""
        tiers = (Tier(up_to=one.up_to, unit_price=one.rate, flat_fee=one.flat_fee) for one in self.tiers)
        flag = self.first_tier_flat_at_zero
        return Graduated(model="graduated", tiers=tuple(tiers), first_tier_flat_at_zero=flag)


class Dynamic(Metered):
    """The events carry what they cost: it is passed on, times a markup."""

    model: Literal["dynamic"]
    multiplier: Annotated[Price, decimal_schema("What the amounts are multiplied by, 1.2 for 20 percent more.")] = (
        Decimal(1)
    )


class Fixed(Record):
    """A fee for each billing period."""

    model: Literal["fixed"]
    amount: Price
    billed: Literal["in_arrears", "in_advance"] = Field(
        "in_arrears", description="Whether it is due when the billing period ends, or when it starts."
    )
    prorate: Literal["second", "day", "none"] = Field(
        "second",
        description="What part of it is due when the subscription covers part of the period: by seconds, by local days "
        "(a started one belongs to who has it at its end), or all.",
    )


UsagePrice = Annotated[
    PerUnit | Graduated | Volume | Stairstep | Package | Percentage | GraduatedPercentage | Dynamic,
    Field(discriminator="model"),
]


class MatrixRow(Record):
    """A price for usage whose dimensions have the given values; those that are not named may have any."""

    when: dict[PropertyPath, str] = Field(min_length=1, description="Value by dimension, '' where it is absent.")
    price: UsagePrice


class Matrix(Record):
    """Prices by the values of the meter's dimensions: that of the first row that fits."""

    model: Literal["matrix"]
    rows: tuple[MatrixRow, ...] = Field(min_length=1)
    default: UsagePrice | None = Field(
        None, description="Where no row fits; without it such usage is rejected as having no price."
    )

    @model_validator(mode="after")
    def _rows_are_reached(self) -> Matrix:
        for number, row in enumerate(self.rows):
            for earlier, other in enumerate(self.rows[:number]):
                if other.when.items() <= row.when.items():
                    raise misplaced(
                        f"is never reached, all that it fits is taken by row {earlier + 1}; put it before that one",
                        at=("rows", number),
                        also=("rows", earlier),
                    )
        return self


Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = get_args(Day)
CLOCK_PATTERN = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"
CLOCK_END_PATTERN = r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$"
LOCAL_TIME = "local time"
"""The dimension in which a rating key has its band; no property path, as it has a space."""


class Times(Record):
    """Times of the clock on some days of the week, [from, to)."""

    days: tuple[Day, ...] = Field(DAYS, min_length=1, description="Days of the week; all of them unless set.")
    since: Annotated[str, StringConstraints(pattern=CLOCK_PATTERN)] = Field(
        "00:00", alias="from", description="From when on, like '08:00'."
    )
    until: Annotated[str, StringConstraints(pattern=CLOCK_END_PATTERN)] = Field(
        "24:00", alias="to", description="Until when, like '20:00', or '24:00'."
    )

    model_config = ConfigDict(serialize_by_alias=True)

    @model_validator(mode="after")
    def _in_order(self) -> Times:
        if self.until <= self.since:
            raise misplaced(
                f"is {self.until}, it must be after {self.since}; what goes over midnight is two `times`", at=("to",)
            )
        return self

    @property
    def seconds(self) -> tuple[int, int]:
        """Of the clock, since midnight."""
        since, until = (int(text[:2]) * 3600 + int(text[3:]) * 60 for text in (self.since, self.until))
        return since, until


class Band(Record):
    """A price for usage at some times of the week."""

    name: Id
    times: tuple[Times, ...] = Field(min_length=1)
    price: UsagePrice


class TimeOfDay(Record):
    """Prices by the clock of the subscription's time zone: that of the first band that has the event's time."""

    model: Literal["time_of_day"]
    bands: tuple[Band, ...] = Field(min_length=1)
    default: UsagePrice = Field(description="At all other times.")

    @model_validator(mode="after")
    def _names_differ(self) -> TimeOfDay:
        first: dict[str, int] = {}
        for number, band in enumerate(self.bands):
            if first.setdefault(band.name, number) != number:
                raise misplaced(
                    "another band has this name", at=("bands", number, "name"), also=("bands", first[band.name], "name")
                )
        return self

    @cached_property
    def week(self) -> tuple[tuple[str, frozenset[int], int, int], ...]:
        """Band, days of the week (0 is Monday) and seconds of the clock [since, until), in the order of the bands."""
        return tuple(
            (band.name, frozenset(map(DAYS.index, times.days)), *times.seconds)
            for band in self.bands
            for times in band.times
        )


AnyPrice = Annotated[UsagePrice | Matrix | TimeOfDay | Fixed, Field(discriminator="model")]


class RateCardVersion(Record):
    """Prices of charges in force from an instant until the next version's. Never edited once used."""

    version: Id
    effective_from: Instant
    prices: dict[Id, AnyPrice] = Field(min_length=1, description="By charge id.")


class RateCard(Record):
    """A price list."""

    id: Id
    name: Name = ""
    currency: Denomination
    prices_include_tax: Annotated[Flag, unless(False)] = Field(
        False, description="Whether tax is part of the prices; else it comes on top."
    )
    versions: tuple[RateCardVersion, ...] = Field(min_length=1, description="In the order they take effect.")

    @model_validator(mode="after")
    def _versions_in_order(self) -> RateCard:
        for number, (earlier, later) in enumerate(zip(self.versions, self.versions[1:]), start=1):
            if later.effective_from <= earlier.effective_from:
                raise misplaced(
                    f"takes effect at {later.effective_from.isoformat()}, it must be after version "
                    f"{earlier.version}, which stands before it and is effective from "
                    f"{earlier.effective_from.isoformat()}",
                    at=("versions", number, "effective_from"),
                    also=("versions", number - 1, "effective_from"),
                )
        first: dict[str, int] = {}
        for number, version in enumerate(self.versions):
            if first.setdefault(version.version, number) != number:
                raise misplaced(
                    "another version has this name",
                    at=("versions", number, "version"),
                    also=("versions", first[version.version], "version"),
                )
        return self


class Charge(Record):
    """One thing a plan bills: the usage of a meter, or, without a meter, a fixed fee."""

    id: Id
    name: Name = ""
    meter: Id | None = Field(None, description="The meter whose usage it bills; none for a fixed fee.")
    product_code: Annotated[Id | None, unless(None)] = Field(None, description="What `tax_rates` call it.")


class Plan(Record):
    """Charges sold together, priced by one rate card."""

    id: Id
    name: Name = ""
    rate_card: Annotated[Id, Field(description="The rate card that prices the charges.")]
    charges: tuple[Charge, ...] = Field(min_length=1, description="At most one on each meter.")


class Account(Record):
    """A node of the tree organization → team → project (any depth)."""

    id: Id
    name: Name = ""
    kind: str = Field("account", description="For people: organization, team, project …")
    parent: Id | None = Field(None, description="The account above it; none for a root.")
    tenant: str = Field("default", min_length=1, max_length=100, description="The events' `tenantid`.")
    billed: Flag | None = Field(None, description="Whether it gets invoices; default: only accounts without parent.")
    subjects: tuple[Annotated[str, StringConstraints(min_length=1, max_length=1024)], ...] = Field(
        (), description="Event subjects that are this account's; its id always is."
    )
    tax: Annotated[AccountTax | None, unless(None)] = Field(
        None, description="Of a billing account: where it is taxed; none for no tax."
    )
    invoice_currency: Annotated[Currency | None, unless(None)] = Field(
        None, description="Of a billing account: what all it pays for is converted to; as the prices are, if none."
    )

    @property
    def is_billed(self) -> bool:
        return self.parent is None if self.billed is None else self.billed


FIRST_TERMS = "start"
"""The name of the prices that a subscription has from its start."""

Prices = Annotated[dict[Id, AnyPrice], Field(description="By charge id, in place of the rate card's.")]


class Change(Record):
    """Other terms of a subscription from an instant on: another plan, or prices. What it leaves out stays."""

    name: Id
    at: Instant | None = Field(None, description="From when on.")
    contract_month: int | None = Field(
        None,
        ge=2,
        le=1200,
        strict=True,
        description="In place of `at`: month 13 begins a year after the subscription's start, by the clock of its time "
        "zone.",
    )
    plan: Annotated[Id, Field(description="The plan it is on then.")] | None = None
    prices: Prices = Field({})

    @model_validator(mode="after")
    def _says_when_and_what(self) -> Change:
        if self.at is None and self.contract_month is None:
            raise ValueError("`at` is missing, or `contract_month`")
        if self.at is not None and self.contract_month is not None:
            raise misplaced("when it is stands in `at` already, leave one out", at=("contract_month",), also=("at",))
        if self.plan is None and not self.prices:
            raise ValueError("changes nothing, `plan` is missing, or `prices`")
        if self.name == FIRST_TERMS:
            raise misplaced(f"{FIRST_TERMS!r} is what the subscription's own `prices` are called", at=("name",))
        return self


class Trial(Record):
    """A stretch of time from a subscription's start on in which nothing is due."""

    days: int | None = Field(
        None, ge=1, le=3660, strict=True, description="How many, by the clock of the subscription's time zone."
    )
    until: Instant | None = Field(None, description="The first instant at which it is paid for, in place of `days`.")

    @model_validator(mode="after")
    def _ends(self) -> Trial:
        if self.days is None and self.until is None:
            raise ValueError("`days` is missing, or `until`")
        if self.days is not None and self.until is not None:
            raise misplaced("when it ends stands in `days` already, leave one out", at=("until",), also=("days",))
        return self


class Subscription(Record):
    """Puts an account, with all accounts below it, on a plan for [start, end)."""

    id: Id
    account: Annotated[Id, Field(description="The account, with all accounts below it.")]
    plan: Annotated[Id, Field(description="The plan it is on.")]
    start: Instant
    end: Instant | None = Field(None, description="The first instant it no longer holds; none for no end.")
    time_zone: Annotated[str, AfterValidator(zone)] = Field(
        "UTC", description="IANA time zone in which billing periods start at midnight."
    )
    cycle: Cycle = Field(
        "monthly", description="How long billing periods are: weekly, monthly, quarterly, yearly, or like '10 days'."
    )
    anchor: LocalDate | None = Field(
        None,
        description="A local date on which a billing period starts, from which the others are counted; unless set "
        "Mondays, or the first days of months, quarters and years.",
    )
    anchor_day: int | None = Field(
        None,
        ge=1,
        le=31,
        strict=True,
        description="Day of the month on which a billing period starts, in place of `anchor`.",
    )

    prices: Prices = Field({})
    changes: tuple[Change, ...] = Field((), description="In the order they take effect.")
    trial: Trial | None = None
    tiers_at_change: Literal["restart", "carry_over"] = Field(
        "restart",
        description="Where a price changes within a billing period: whether tiers begin anew, or go on from what was "
        "used before. To carry over, changes and versions take effect at full hours of UTC, or with a billing period.",
    )

    def covers_some_of(self, start: datetime, end: datetime) -> bool:
        """Whether it holds at an instant of [start, end)."""
        return self.start < end and (self.end is None or start < self.end)

    @property
    def plans(self) -> tuple[str, ...]:
        """The plans that it is on, each once, in the order of time."""
        return tuple(dict.fromkeys([self.plan, *(change.plan for change in self.changes if change.plan)]))

    def begin_of(self, change: Change) -> datetime:
        """When a change takes effect."""
        if change.at is not None:
            return change.at
        assert change.contract_month is not None
        return moved_on(self.start, self.time_zone, months=change.contract_month - 1)

    @property
    def trial_end(self) -> datetime | None:
        """The first instant at which it is paid for; None without a trial."""
        if self.trial is None:
            return None
        if self.trial.days is None:
            return self.trial.until
        return moved_on(self.start, self.time_zone, days=self.trial.days)

    @property
    def calendar(self) -> Calendar:
        """When its billing periods start."""
        anchor = self.anchor or FIRST_ANCHOR.replace(day=self.anchor_day or 1)
        return Calendar(self.time_zone, self.cycle, anchor)

    @model_validator(mode="after")
    def _anchored(self) -> Subscription:
        if Calendar(cycle=self.cycle).days and self.anchor_day is not None:
            raise misplaced(f"a cycle that is {self.cycle} takes a date, `anchor`", at=("anchor_day",))
        if self.anchor is not None and self.anchor_day is not None:
            raise misplaced("the day stands in `anchor` already, leave one out", at=("anchor_day",), also=("anchor",))
        if self.cycle.endswith(" days") and self.anchor is None:
            raise misplaced("`anchor` is missing, a date from which the days are counted", at=("cycle",))
        return self

    @model_validator(mode="after")
    def _changes_in_order(self) -> Subscription:
        before: tuple[datetime, tuple[str | int, ...], str] = (self.start, ("start",), "the start")
        names: dict[str, int] = {}
        for number, change in enumerate(self.changes):
            begin = self.begin_of(change)
            when = "at" if change.contract_month is None else "contract_month"
            if begin <= before[0]:
                raise misplaced(
                    f"takes effect at {begin.isoformat()}, it must be after {before[2]} at {before[0].isoformat()}",
                    at=("changes", number, when),
                    also=before[1],
                )
            before = begin, ("changes", number, when), f"change {change.name}"
            if names.setdefault(change.name, number) != number:
                raise misplaced(
                    "another change has this name",
                    at=("changes", number, "name"),
                    also=("changes", names[change.name], "name"),
                )
        check_end(self.start, self.trial_end, at=("trial", "until"))
        return self

    @model_validator(mode="after")
    def _ends_after_start(self) -> Subscription:
        check_end(self.start, self.end)
        return self


class Catalog(Record):
    """Everything a job knows about prices and customers."""

    meters: tuple[Meter, ...] = ()
    rate_cards: tuple[RateCard, ...] = ()
    plans: tuple[Plan, ...] = ()
    accounts: tuple[Account, ...] = ()
    subscriptions: tuple[Subscription, ...] = ()
    discounts: Annotated[tuple[Discount, ...], unless(())] = ()
    redemptions: Annotated[tuple[Redemption, ...], unless(())] = ()
    tax_rates: Annotated[tuple[TaxRate, ...], unless(())] = ()
    commitments: Annotated[tuple[Commitment, ...], unless(())] = ()
    grants: Annotated[tuple[Grant, ...], unless(())] = ()
    custom_units: Annotated[tuple[CustomUnit, ...], unless(())] = ()
    exchange_rates: Annotated[tuple[ExchangeRate, ...], unless(())] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content; two catalogs with one digest price alike."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    # A catalog may also stand for those that come into force while a stream runs (transforms/catalogs.py).

    def as_of(self, received_time: int) -> Catalog:
        """The catalog for events received at an instant, in microseconds since 1970: this one."""
        return self

    def known(self) -> tuple[Catalog, ...]:
        """All catalogs that may have been in force, the newest first: this one."""
        return (self,)

    def look(self) -> tuple[Catalog, ...]:
        """The same after a look for new ones."""
        return (self,)
