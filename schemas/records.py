"""Records that pass between the stages, and the ids that name them."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

import msgspec
import xxhash

from meterline.schemas.catalog import LOCAL_TIME
from meterline.schemas.event import Reason


class RatingKey(NamedTuple):
    """Whose usage is priced together: tiers count over one key.

    `dimensions` are (property path, value) pairs in the meter's order, and the band of time where the price has bands.
    Unpriced usage has no subscription, charge and version (empty strings).
    """

    tenant_id: str
    billing_account_id: str
    subscription_id: str
    charge_id: str
    meter_id: str
    rate_card_version: str
    period_start: datetime
    period_end: datetime
    dimensions: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """The key as JSON text: what the key is called in Beam's state and in ClickHouse."""
        *names, start, end, dimensions = self
        return msgspec.json.encode([*names, int(start.timestamp()), int(end.timestamp()), dimensions]).decode()

    @classmethod
    @lru_cache(maxsize=32_768)
    def parse(cls, text: str) -> RatingKey:
        *names, start, end, dimensions = msgspec.json.decode(text)
        starts, ends = datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(end, UTC)
        pairs = tuple((path, value) for path, value in dimensions)
        return cls._make([*names, starts, ends, pairs])

    @property
    def said(self) -> tuple[tuple[str, str], ...]:
        """The dimensions that events say, without the band, which the catalog says."""
        return tuple(pair for pair in self.dimensions if pair[0] != LOCAL_TIME)

    @property
    def id(self) -> int:
        """64 bits that name the key in the archive (collisions are looked for by the audit)."""
        return rating_key_id(self.text)


def rating_key_id(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


class Reject(NamedTuple):
    """An event or record that cannot go on, with its bytes.

    `origin` says where it came from (a file's name); `position` the byte offset, or message number, in it.
    """

    stage: str
    reason: Reason
    message: str
    payload: bytes
    origin: str
    position: int
    received_time: int

    @property
    def id(self) -> str:
        """Deterministic, so that a replay writes the same row."""
        parts = (self.stage, self.reason, self.origin, str(self.position))
        digest = xxhash.xxh3_128("\x00".join(parts).encode())
        digest.update(self.payload)
        return f"rej_{digest.hexdigest()[:24]}"


class TierCharge(NamedTuple):
    """What one tier contributes to a charge, or to the difference of two charges.

    `quantity` is the units priced in the tier, `flat_fee` the fee due for reaching it, `amount` the rounded
    `quantity · unit_price / per + flat_fee`. Per-unit and package prices have one tier, number 1. Of units sold in
    packages, `quantity` is all units (not packages; free ones too) and `unit_price` the price of a package. Tier 0
    has the included units, the fees for events as its flat fee, and what a minimum adds or a maximum takes off.
    In a difference, quantity, fee and amount are differences too.
    """

    tier: int
    quantity: Decimal
    unit_price: Decimal
    flat_fee: Decimal
    amount: Decimal


class LineItem(NamedTuple):
    """Rated usage of one cell: a usage window and an account of a rating key (docs/rules.md, section 5)."""

    key: RatingKey
    account_id: str
    window_start: int
    window_end: int
    quantity_from: Decimal
    quantity_to: Decimal
    amount: Decimal
    currency: str
    tiers: tuple[TierCharge, ...]
    event_count: int
    voided_count: int
    revision: int

    @property
    def id(self) -> str:
        return line_item_id(self.key.text, self.account_id, self.window_start)


def line_item_id(key_text: str, account_id: str, window_start: int) -> str:
    """The name of a cell's line item; the same whenever and wherever it is computed."""
    digest = xxhash.xxh3_128_hexdigest(f"{key_text}\x00{account_id}\x00{window_start}".encode())
    return f"li_{digest[:24]}"


class InvoiceLine(NamedTuple):
    """What an invoice bills of one rating key and account: what should have been billed by now, less what was.

    Fixed fees have a key without meter. `amount` is rounded to the minor unit, `exact_amount` is what was rounded, for
    all accounts of the key together. What is no `charge` is of another `kind`, by the catalog's record `source` with
    the `terms` it was computed from (docs/rules.md, section 18); a charge has terms where it was converted.
    """

    key: RatingKey
    account_id: str
    description: str
    unit: str
    quantity: Decimal
    exact_amount: Decimal
    amount: Decimal
    reason: str
    kind: str = "charge"
    source: str = ""
    terms: str = ""

    @property
    def about_id(self) -> int:
        """64 bits that name, with the account, what the line is about; of a charge that of its rating key."""
        return self.key.id if self.kind == "charge" else rating_key_id("\x00".join((self.key.text, *self.by)))

    @property
    def by(self) -> tuple[str, ...]:
        """What made it, where it is no charge."""
        return () if self.kind == "charge" else (self.kind, self.source)

    @property
    def content(self) -> list[str]:
        """What may not change once it is issued."""
        numbers = (f"{self.quantity:f}", f"{self.amount:f}")
        terms = (self.terms,) if self.by or self.terms else ()
        return [self.key.text, self.account_id, self.unit, *numbers, self.reason, *self.by, *terms]


class Invoice(NamedTuple):
    """A draft, or an issued invoice or credit note (docs/rules.md, "Invoices")."""

    tenant_id: str
    billing_account_id: str
    period: str
    currency: str
    sequence: int
    status: str
    lines: tuple[InvoiceLine, ...]
    made_at: datetime

    @property
    def total(self) -> Decimal:
        return sum((line.amount for line in self.lines), Decimal(0))

    @property
    def kind(self) -> str:
        return "credit_note" if self.total < 0 else "invoice"

    @property
    def number(self) -> str:
        """Unique by construction: no counter has to be shared. Drafts have none."""
        if self.status == "draft":
            return ""
        return self.number_of(self.sequence)

    @property
    def corrects(self) -> str:
        """The number of the period's first invoice, if all its lines move what was billed before. One that bills
        something for the first time, after fees in advance, only follows."""
        moves = self.sequence > 1 and all(line.reason in ("late_usage", "correction") for line in self.lines)
        return self.number_of(1) if moves else ""

    def number_of(self, sequence: int) -> str:
        return f"{self.billing_account_id}-{self.period}-{self.currency}-{sequence}"

    @property
    def content_hash(self) -> str:
        """SHA-256 of what was billed; the time and the status are no part of it."""
        lines = [line.content for line in self.lines]
        head = [self.tenant_id, self.billing_account_id, self.period, self.currency, self.sequence]
        return hashlib.sha256(msgspec.json.encode([head, lines])).hexdigest()

    @property
    def id(self) -> str:
        return f"inv_{self.content_hash[:24]}"

    def line_id(self, line: InvoiceLine) -> str:
        parts = (self.id, line.key.text, line.account_id, *line.by)
        digest = xxhash.xxh3_128_hexdigest("\x00".join(parts).encode())
        return f"il_{digest[:24]}"
