"""What a charge is beside its tiers: units that are included, a minimum and a maximum."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from meterline.schemas.catalog import Metered
from meterline.schemas.records import TierCharge
from meterline.transforms.rules.prices.parts import ZERO, Parts, total


def adjusted(price: Metered, quantity: Decimal, model: Callable[[Any, Decimal, Decimal], Parts]) -> Parts:
    """The parts of `model` for the units above the included ones, and in front of them part 0, which has the rest."""
    included = min(quantity, price.included)
    parts = model(price, quantity - included, ZERO)
    amount = due = total(parts)
    if price.minimum is not None:
        due = max(due, price.minimum)
    if price.maximum is not None:
        due = min(due, price.maximum)
    if not included and due == amount:
        return parts
    return (TierCharge(0, included, ZERO, ZERO, due - amount), *parts)
