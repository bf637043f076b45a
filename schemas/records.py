"""Records that pass between the stages, and the ids that name them."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

import msgspec
import xxhash

from meterline.schemas.event import Reason


class RatingKey(NamedTuple):
    """Whose usage is priced together: tiers count over one key.

    `dimensions` are (property path, value) pairs in the meter's order. Unpriced usage has no subscription,
    charge and version (empty strings).
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
    def parse(cls, text: str) -> RatingKey:
        *names, start, end, dimensions = msgspec.json.decode(text)
        instants = (datetime.fromtimestamp(seconds, UTC) for seconds in (start, end))
        return cls(*names, *instants, tuple((path, value) for path, value in dimensions))

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
    `quantity · unit_price / per + flat_fee`. Per-unit and package prices have one tier, number 1; of a package
    price, `quantity` is all units (not packages; free ones too) and `unit_price` the price of a package.
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
    revision: int

    @property
    def id(self) -> str:
        return line_item_id(self.key.text, self.account_id, self.window_start)


def line_item_id(key_text: str, account_id: str, window_start: int) -> str:
    """The name of a cell's line item; the same whenever and wherever it is computed."""
    digest = xxhash.xxh3_128_hexdigest(f"{key_text}\x00{account_id}\x00{window_start}".encode())
    return f"li_{digest[:24]}"
