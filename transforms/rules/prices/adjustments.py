"""What a charge is beside its tiers: units that are included, fees for events, a minimum and a maximum."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from meterline.schemas.catalog import Metered
from meterline.schemas.records import TierCharge
from meterline.transforms.rules.money import round_amount
from meterline.transforms.rules.prices.parts import ZERO, Parts, total


def adjusted(price: Metered, quantity: Decimal, events: int, model: Callable[[Any, Decimal, Decimal], Parts]) -> Parts:
    """The parts of `model` for the units above the included ones, and in front of them part 0, which has the rest."""
    included = min(quantity, price.included)
    parts = model(price, quantity - included, ZERO)
    fees = max(events - price.free_events, 0) * price.fee_per_event
    amount = total(parts)
    due = round_amount(amount + fees)
    if price.minimum is not None:
        due = max(due, price.minimum)
    if price.maximum is not None:
        due = min(due, price.maximum)
    if not (included or fees) and due == amount:
        return parts
    return (TierCharge(0, included, ZERO, fees, due - amount), *parts)
