"""Every unit at one price."""

from __future__ import annotations

from decimal import Decimal

from meterline.schemas.catalog import PerUnit
from meterline.transforms.rules.prices.parts import ZERO, Parts, part


def per_unit(price: PerUnit, quantity: Decimal, full: Decimal) -> Parts:
    return part(1, quantity, price.unit_price, price.per, ZERO) if quantity else ()
