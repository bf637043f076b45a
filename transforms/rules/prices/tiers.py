"""Tiers: each unit at the price of the tier it falls in (graduated), or all at that of the total's (volume)."""

from __future__ import annotations

from decimal import Decimal

from meterline.schemas.catalog import Graduated, Volume
from meterline.transforms.rules.prices.parts import ZERO, Parts, RateCardError, part


def graduated(price: Graduated, quantity: Decimal, full: Decimal) -> Parts:
    if not quantity:
        return _at_zero(price)
    parts: Parts = ()
    floor = ZERO
    for number, tier in enumerate(price.tiers, start=1):
        ceiling = tier.up_to
        if ceiling is None or quantity <= ceiling:
            return parts + part(number, quantity - floor, tier.unit_price, price.per, tier.flat_fee)
        if ceiling >= full:
            parts += part(number, ceiling - floor, tier.unit_price, price.per, tier.flat_fee)
        floor = ceiling
    raise RateCardError(f"tiers end at {floor}, usage is {quantity}")


def volume(price: Volume, quantity: Decimal, full: Decimal) -> Parts:
    if not quantity:
        return _at_zero(price)
    for number, tier in enumerate(price.tiers, start=1):
        if tier.up_to is None or quantity <= tier.up_to:
            return part(number, quantity, tier.unit_price, price.per, tier.flat_fee)
    raise RateCardError(f"tiers end at {price.tiers[-1].up_to}, usage is {quantity}")


def _at_zero(price: Graduated | Volume) -> Parts:
    first = price.tiers[0]
    if not (price.first_tier_flat_at_zero and first.flat_fee):
        return ()
    return part(1, ZERO, first.unit_price, price.per, first.flat_fee)
