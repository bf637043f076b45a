"""Parts of a charge, one for each tier: how they are rounded, added up and taken from one another."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from meterline.schemas.records import TierCharge
from meterline.transforms.rules.money import round_amount

Parts = tuple[TierCharge, ...]

ZERO = Decimal(0)
ONE = Decimal(1)


class RateCardError(ValueError):
    """A price that cannot be applied to usage."""


class NoPriceError(RateCardError):
    """No price is in force for some usage of a rating key."""


def part(number: int, units: Decimal, unit_price: Decimal, per: Decimal, flat_fee: Decimal) -> tuple[TierCharge]:
    """Units at one price, and a fee; rounded once."""
    if per == ONE:
        amount = round_amount(units * unit_price + flat_fee)
    else:
        amount = round_amount(units * unit_price + flat_fee * per, per)
    return (TierCharge(number, units, unit_price, flat_fee, amount),)


def package_part(number: int, units: Decimal, package_price: Decimal, packages: Decimal, flat_fee: Decimal) -> Parts:
    """Units sold in packages, and a fee; `units` are those of the meter, the free ones too."""
    return (TierCharge(number, units, package_price, flat_fee, round_amount(packages * package_price + flat_fee)),)


def package_count(units: Decimal, package_size: Decimal, rounding: Literal["up", "down"]) -> Decimal:
    """How many packages `units` are, in whole ones."""
    whole, rest = divmod(units, package_size)
    return whole + ONE if rest and rounding == "up" else whole


def total(parts: Parts) -> Decimal:
    """The sum of the parts, refused like one part when it has too many digits."""
    if len(parts) == 1:
        return parts[0].amount
    amount = ZERO
    for one in parts:
        amount += one.amount
    return round_amount(amount)


def difference(before: Parts, after: Parts) -> Parts:
    """What changed from one charge to another, tier by tier, without the tiers in which nothing did."""
    if len(before) == len(after) == 1 and before[0].tier == after[0].tier:  # Nearly all steps: made short.
        (old,), (new,) = before, after
        fee, amount = new.flat_fee - old.flat_fee, new.amount - old.amount
        step = TierCharge(new.tier, new.quantity - old.quantity, new.unit_price, fee, amount)
        return (step,) if step.quantity or amount or fee else ()
    parts = {one.tier: one for one in after}
    for tier, quantity, unit_price, flat_fee, amount in before:
        new = parts.get(tier, TierCharge(tier, ZERO, unit_price, ZERO, ZERO))
        step = TierCharge(tier, new.quantity - quantity, unit_price, new.flat_fee - flat_fee, new.amount - amount)
        if step.quantity or step.amount or step.flat_fee:
            parts[tier] = step
        else:
            del parts[tier]
    return tuple(parts[tier] for tier in sorted(parts))
