"""What an explanation says: plain records, from an invoice down to events and back, and their JSON."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

from meterline.schemas.event import instant_text, plain_text


def visible(text: str) -> str:
    """Text without what could steer a terminal: control and format characters are shown as escapes."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


@dataclass(frozen=True)
class _Node:
    KIND: ClassVar[str] = ""

    def to_json(self) -> dict[str, Any]:
        """For other programs: exact numbers are strings, instants RFC 3339, counts integers."""
        kind = {"kind": self.KIND} if self.KIND else {}
        return {**kind, **{field.name: _json(getattr(self, field.name)) for field in fields(self)}}


@dataclass(frozen=True)
class Price(_Node):
    """How a quantity becomes an amount, in words.

    `source` is `catalog`; `recorded` where the catalog is not at hand, or differs from what was charged; `terms` for a
    line that is no charge, where `text` says what it was computed from; or `none` for usage that no charge prices.
    """

    model: str
    text: str
    source: str


@dataclass(frozen=True)
class Tier(_Node):
    """What one tier contributes; tier 0 is what stands beside them (docs/rules.md, section 7).

    Bounds (above, up_to], `per` and `packages` are known with a catalog only.
    """

    tier: int
    above: Decimal | None
    up_to: Decimal | None
    quantity: Decimal
    unit_price: Decimal
    per: Decimal | None
    packages: Decimal | None
    flat_fee: Decimal
    amount: Decimal


@dataclass(frozen=True)
class Fee(_Node):
    """A fixed fee: `amount · covered / whole`, in seconds or local days, as `prorate` says (with none, of 1)."""

    amount: Decimal
    billed: str
    prorate: str
    covered_from: datetime
    covered_to: datetime
    covered_seconds: int
    period_seconds: int
    covered: int
    whole: int
    prorated: Decimal


@dataclass(frozen=True)
class Conversion(_Node):
    """A charge of all its accounts in the currency (or custom unit) of its prices, `total`; of it `amount` is the
    account's. One of it was worth `rate` of the invoice's currency at the instant `at`.
    """

    currency: str
    amount: Decimal
    total: Decimal
    rate: Decimal
    at: str


@dataclass(frozen=True)
class Billing(_Node):
    """An invoice line, in short; with `conversion` where prices are in another currency."""

    invoice_line_id: str
    invoice_id: str
    invoice_number: str
    status: str
    sequence: int
    made_at: datetime
    reason: str
    quantity: Decimal
    exact_amount: Decimal
    amount: Decimal
    currency: str
    conversion: Conversion | None


@dataclass(frozen=True)
class Standing(_Node):
    """What the line items of a rating key and account say now, and how much of it no issued invoice has billed; in the
    currency of the prices."""

    quantity: Decimal
    amount: Decimal
    line_items: int
    events: int
    not_billed_quantity: Decimal
    not_billed_amount: Decimal


@dataclass(frozen=True)
class Voiding(_Node):
    """Why and when an event was voided, and by which voiding event."""

    reason: str
    voided_at: datetime
    void_id: str


@dataclass(frozen=True)
class VoidedEvent(_Node):
    """The event that a voiding event voids; it has the same tenant and time."""

    source: str
    id: str
    reason: str


@dataclass(frozen=True)
class CountedEvent(_Node):
    """An event of a line item, with the quantity that it adds to it; a voided one adds nothing any more."""

    time: datetime
    source: str
    id: str
    subject: str
    quantity: Decimal
    counted_value: str
    payload: str
    voided: bool


@dataclass(frozen=True)
class LineItem(_Node):
    """Rated usage of one window: the period's quantity went from `quantity_from` to `quantity_to`.

    `meter` says in words what is counted, here and elsewhere; it is known with a catalog only.
    """

    KIND = "line_item"
    line_item_id: str
    tenant_id: str
    billing_account_id: str
    account_id: str
    subscription_id: str
    charge_id: str
    meter_id: str
    rate_card_version: str
    rating_key_id: str
    dimensions: dict[str, str]
    meter: str
    period_start: datetime
    period_end: datetime
    window_start: datetime
    window_end: datetime
    quantity_from: Decimal
    quantity_to: Decimal
    unit: str
    amount: Decimal
    currency: str
    price: Price
    tiers: tuple[Tier, ...]
    event_count: int
    voided_count: int
    revision: int
    events: tuple[CountedEvent, ...]
    standing: Standing | None
    billed_by: tuple[Billing, ...]


@dataclass(frozen=True)
class Rounding(_Node):
    """A charge of all its accounts by the time of the line: rounded once, and shared by largest remainder.

    `exact` and `rounded` are the charge's, `share` is the account's part of `rounded`, of which earlier lines billed
    `billed_before`.
    """

    exact: Decimal
    rounded: Decimal
    accounts: int
    exact_share: Decimal
    share: Decimal
    billed_before: Decimal


@dataclass(frozen=True)
class Line(_Node):
    """A line of an invoice.

    `came_after` is what its line items say now, less what they said when the line was made, in the currency of the
    prices: 0 where the line items still add up to what it bills. Line items are told when the line itself is asked for.
    """

    KIND = "invoice_line"
    invoice_line_id: str
    invoice_id: str
    invoice_number: str
    status: str
    sequence: int
    line_number: int
    tenant_id: str
    billing_account_id: str
    account_id: str
    subscription_id: str
    charge_id: str
    meter_id: str
    rate_card_version: str
    rating_key_id: str
    dimensions: dict[str, str]
    meter: str
    period_start: datetime
    period_end: datetime
    description: str
    quantity: Decimal
    unit: str
    exact_amount: Decimal
    amount: Decimal
    currency: str
    reason: str
    line_kind: str
    source: str
    price: Price
    fee: Fee | None
    conversion: Conversion | None
    rounding: Rounding
    standing: Standing
    came_after: Decimal
    tiers: tuple[Tier, ...]
    line_items: tuple[LineItem, ...]
    earlier: tuple[Billing, ...]
    later: tuple[Billing, ...]


@dataclass(frozen=True)
class Invoice(_Node):
    """A draft, an issued invoice or a credit note."""

    KIND = "invoice"
    invoice_id: str
    number: str
    status: str
    invoice_kind: str
    tenant_id: str
    billing_account_id: str
    period: str
    sequence: int
    currency: str
    total: Decimal
    corrects: str
    made_at: datetime
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Usage(_Node):
    """What one meter made of an event; its own value is in `value_unit`, empty for a sample of a gauge."""

    meter_id: str
    subscription_id: str
    charge_id: str
    rate_card_version: str
    rating_key_id: str
    dimensions: dict[str, str]
    meter: str
    period_start: datetime
    period_end: datetime
    quantity: Decimal
    unit: str
    value_unit: str
    counted_value: str
    line_item_id: str
    line_item: LineItem | None
    standing: Standing
    billed_by: tuple[Billing, ...]


@dataclass(frozen=True)
class Event(_Node):
    """An accepted event, with what it was attributed to; `voided` where it counts no more, `voids` what it voids."""

    KIND = "event"
    tenant_id: str
    source: str
    id: str
    type: str
    subject: str
    time: datetime
    received_time: datetime
    account_id: str
    billing_account_id: str
    payload: str
    voided: Voiding | None
    voids: VoidedEvent | None
    usage: tuple[Usage, ...]


@dataclass(frozen=True)
class Reject(_Node):
    """A record that could not go on. Bytes that are no UTF-8 are shown as `\\xNN`."""

    KIND = "reject"
    reject_id: str
    stage: str
    reason: str
    message: str
    origin: str
    position: int
    received_time: datetime
    payload: str


@dataclass(frozen=True)
class Explanation(_Node):
    """All that has the id asked for; `more` where only the first are told."""

    id: str
    more: bool
    found: tuple[Invoice | Line | LineItem | Event | Reject, ...]


def _json(value: Any) -> Any:
    if isinstance(value, _Node):
        return value.to_json()
    if isinstance(value, Decimal):
        return plain_text(value)
    if isinstance(value, datetime):
        return instant_text(value)
    if isinstance(value, tuple):
        return [_json(one) for one in value]
    return value
