"""Tiers: each unit at the price of its own (graduated), all at that of one (volume), or a price for all (stairstep)."""

from __future__ import annotations

from decimal import Decimal

from meterline.schemas.catalog import Graduated, Stairstep, Tier, Volume
from meterline.transforms.rules.prices.parts import ONE, ZERO, Parts, RateCardError, package_count, package_part, part


def graduated(price: Graduated, quantity: Decimal, full: Decimal) -> Parts:
    if not quantity:
        return _at_zero(price)
    parts: Parts = ()
    floor = ZERO
    for number, tier in enumerate(price.tiers, start=1):
        ceiling = tier.up_to
        if ceiling is None or quantity <= ceiling:
            return parts + _tier_part(number, quantity - floor, tier, price.per)
        if ceiling >= full:
            parts += _tier_part(number, ceiling - floor, tier, price.per)
        floor = ceiling
    raise RateCardError(f"tiers end at {floor}, usage is {quantity}")


def volume(price: Volume, quantity: Decimal, full: Decimal) -> Parts:
    if not quantity:
        return _at_zero(price)
    for number, tier in enumerate(price.tiers, start=1):
        if tier.up_to is None or quantity <= tier.up_to:
            return _tier_part(number, quantity, tier, price.per)
    raise RateCardError(f"tiers end at {price.tiers[-1].up_to}, usage is {quantity}")


def stairstep(price: Stairstep, quantity: Decimal, full: Decimal) -> Parts:
    if not (quantity or price.first_step_at_zero):
        return ()
    for number, step in enumerate(price.steps, start=1):
        if step.up_to is None or quantity <= step.up_to:
            parts = part(number, quantity, ZERO, ONE, step.price)
            return parts if quantity or parts[0].amount else ()
    raise RateCardError(f"steps end at {price.steps[-1].up_to}, usage is {quantity}")


def _tier_part(number: int, units: Decimal, tier: Tier, per: Decimal) -> Parts:
    if tier.package_size is None or tier.package_price is None:
        return part(number, units, tier.unit_price, per, tier.flat_fee)
    packages = package_count(units, tier.package_size, tier.round)
    return package_part(number, units, tier.package_price, packages, tier.flat_fee)


def _at_zero(price: Graduated | Volume) -> Parts:
    first = price.tiers[0]
    return _tier_part(1, ZERO, first, price.per) if price.first_tier_flat_at_zero and first.flat_fee else ()
