"""The price of a cumulative quantity by each price model, and of a usage interval as a difference.

`C(q)` is a sum of parts, one for each tier that q reaches, each rounded once to 18 decimals. A usage
interval costs `C(to) − C(from)`, so any cutting of a period into intervals adds up to `C(total)`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal, localcontext
from typing import Any

from meterline.schemas.catalog import Fixed, Graduated, Package, PerUnit, UsagePrice, Volume
from meterline.schemas.records import TierCharge
from meterline.transforms.rules.money import EXACT, check_quantity, round_amount
from meterline.transforms.rules.periods import Period

_ZERO = Decimal(0)
_ONE = Decimal(1)
_SECOND = timedelta(seconds=1)


class RateCardError(ValueError):
    """A price that cannot be applied to usage."""


def charge_parts(price: UsagePrice, quantity: Decimal) -> tuple[TierCharge, ...]:
    """Price a cumulative quantity, tier by tier in ascending order.

    Args:
      quantity: Units since the period began.

    Returns:
      The parts of `C(quantity)`: their quantities add up to `quantity`. Without units or amount, no part.

    Raises:
      QuantityError: `quantity` is negative, too large or too fine.
      RateCardError: The price model has no price for usage.
      MoneyError: A part has more than 20 digits before the point.

    Source: docs/rules.md, "Price models".
    """
    check_quantity(quantity)
    with localcontext(EXACT):
        return _parts(price, quantity)


def charge(price: UsagePrice, quantity: Decimal) -> Decimal:
    """`C(quantity)` in currency units, exact to 18 decimals; errors as in `charge_parts`."""
    check_quantity(quantity)
    with localcontext(EXACT):
        return _total(_parts(price, quantity))


def charge_interval(
    price: UsagePrice, quantity_from: Decimal, quantity_to: Decimal, *, opening: bool
) -> tuple[Decimal, tuple[TierCharge, ...]]:
    """Price the step from one cumulative quantity to another, which may be lower.

    Args:
      opening: Whether the step is its key's first. It starts at 0 and bears the fees due without usage.

    Returns:
      `C(to) − C(from)`, opening `C(to)`, in currency units; and the same by tier, ascending, without the
      tiers in which nothing changed. The tiers' amounts add up to the amount, their quantities to the step.

    Raises:
      As `charge_parts`.

    Source: docs/rules.md, "Amounts".
    """
    assert not (opening and quantity_from), f"a key opens at 0, not at {quantity_from}"
    global _last
    last_price, last_quantity, last_part = _last
    follows = last_price is price and last_quantity is quantity_from
    if not follows:
        check_quantity(quantity_from)
    check_quantity(quantity_to)
    with localcontext(EXACT):
        if opening:
            parts = _parts(price, quantity_to)
        else:
            full = min(quantity_from, quantity_to)
            after = _parts(price, quantity_to, full)
            # From where the last step ended upwards, all lower tiers are full: its highest part alone is `before`.
            before = last_part if follows and full == quantity_from else _parts(price, quantity_from, full)
            parts = _difference(before, after)
            _last = price, quantity_to, after[-1:]
        return _total(parts), parts


# The step before: most steps begin where another ended. One tuple, so that threads do not mix two steps.
_last: tuple[Any, Any, tuple[TierCharge, ...]] = (None, None, ())


def fixed_fee(price: Fixed, period: Period, subscription_start: datetime, subscription_end: datetime | None) -> Decimal:
    """The recurring fee of a period, prorated by the seconds that the subscription covers.

    Returns:
      Currency units, rounded half-even to 18 decimals; 0 when the subscription covers nothing.

    Source: docs/rules.md, "Fixed fees and proration".
    """
    start = max(period.start, subscription_start)
    end = period.end if subscription_end is None else min(period.end, subscription_end)
    covered_seconds = max((end - start) // _SECOND, 0)
    with localcontext(EXACT):
        return round_amount(price.amount * covered_seconds, (period.end - period.start) // _SECOND)


def _parts(price: UsagePrice, quantity: Decimal, full: Decimal = _ZERO) -> tuple[TierCharge, ...]:
    """The parts of `C(quantity)`, in exact arithmetic.

    Args:
      full: At most `quantity`. Graduated tiers that end below it may be left out: they are full, and
        alike in all quantities from `full` on, so that they cancel out in a difference.
    """
    if price.model == "graduated":
        return _graduated(price, quantity, full)
    if price.model == "per_unit":
        return _per_unit(price, quantity)
    if price.model == "volume":
        return _volume(price, quantity)
    if price.model == "package":
        return _package(price, quantity)
    raise RateCardError(f"expected a price for usage, got model {price.model!r}")


def _per_unit(price: PerUnit, quantity: Decimal) -> tuple[TierCharge, ...]:
    return _part(1, quantity, price.unit_price, price.per, _ZERO) if quantity else ()


def _graduated(price: Graduated, quantity: Decimal, full: Decimal) -> tuple[TierCharge, ...]:
    if not quantity:
        return _at_zero(price)
    parts: tuple[TierCharge, ...] = ()
    floor = _ZERO
    for number, tier in enumerate(price.tiers, start=1):
        ceiling = tier.up_to
        if ceiling is None or quantity <= ceiling:
            return parts + _part(number, quantity - floor, tier.unit_price, price.per, tier.flat_fee)
        if ceiling >= full:
            parts += _part(number, ceiling - floor, tier.unit_price, price.per, tier.flat_fee)
        floor = ceiling
    raise RateCardError(f"tiers end at {floor}, usage is {quantity}")


def _volume(price: Volume, quantity: Decimal) -> tuple[TierCharge, ...]:
    if not quantity:
        return _at_zero(price)
    for number, tier in enumerate(price.tiers, start=1):
        if tier.up_to is None or quantity <= tier.up_to:
            return _part(number, quantity, tier.unit_price, price.per, tier.flat_fee)
    raise RateCardError(f"tiers end at {price.tiers[-1].up_to}, usage is {quantity}")


def _at_zero(price: Graduated | Volume) -> tuple[TierCharge, ...]:
    first = price.tiers[0]
    if not (price.first_tier_flat_at_zero and first.flat_fee):
        return ()
    return _part(1, _ZERO, first.unit_price, price.per, first.flat_fee)


def _package(price: Package, quantity: Decimal) -> tuple[TierCharge, ...]:
    paid_units = max(quantity - price.free_units, _ZERO)
    whole, rest = divmod(paid_units, price.package_size)
    started = _ONE if rest and price.round == "up" else _ZERO
    packages = max(whole + started, Decimal(price.minimum_packages))
    amount = round_amount(packages * price.package_price)
    if not (quantity or amount):
        return ()
    return (TierCharge(1, quantity, price.package_price, _ZERO, amount),)


def _part(number: int, units: Decimal, unit_price: Decimal, per: Decimal, flat_fee: Decimal) -> tuple[TierCharge]:
    if per == _ONE:
        amount = round_amount(units * unit_price + flat_fee)
    else:
        amount = round_amount(units * unit_price + flat_fee * per, per)
    return (TierCharge(number, units, unit_price, flat_fee, amount),)


def _total(parts: tuple[TierCharge, ...]) -> Decimal:
    """The sum of the parts, refused like one part when it has too many digits."""
    if len(parts) == 1:
        return parts[0].amount
    total = _ZERO
    for part in parts:
        total += part.amount
    return round_amount(total)


def _difference(before: tuple[TierCharge, ...], after: tuple[TierCharge, ...]) -> tuple[TierCharge, ...]:
    if len(before) == len(after) == 1 and before[0].tier == after[0].tier:  # Nearly all steps: made short.
        (old,), (new,) = before, after
        fee, amount = new.flat_fee - old.flat_fee, new.amount - old.amount
        step = TierCharge(new.tier, new.quantity - old.quantity, new.unit_price, fee, amount)
        return (step,) if step.quantity or amount else ()
    parts = {part.tier: part for part in after}
    for tier, quantity, unit_price, flat_fee, amount in before:
        new = parts.get(tier, TierCharge(tier, _ZERO, unit_price, _ZERO, _ZERO))
        step = TierCharge(tier, new.quantity - quantity, unit_price, new.flat_fee - flat_fee, new.amount - amount)
        if step.quantity or step.amount:
            parts[tier] = step
        else:
            del parts[tier]
    return tuple(parts[tier] for tier in sorted(parts))
