"""The price of a cumulative quantity by each price model, and of a usage interval as a difference.

`C(q)` is a sum of parts, one for each tier that q reaches, each rounded once to 18 decimals. A usage
interval costs `C(to) − C(from)`, so any cutting of a period into intervals adds up to `C(total)`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal, localcontext
from typing import Any

from meterline.schemas.catalog import Fixed, UsagePrice
from meterline.transforms.rules.money import EXACT, check_quantity, round_amount
from meterline.transforms.rules.periods import Period
from meterline.transforms.rules.prices.adjustments import adjusted
from meterline.transforms.rules.prices.package import package
from meterline.transforms.rules.prices.parts import ZERO, Parts, RateCardError, difference, total
from meterline.transforms.rules.prices.per_unit import per_unit
from meterline.transforms.rules.prices.tiers import graduated, stairstep, volume

_SECOND = timedelta(seconds=1)


def charge_parts(price: UsagePrice, quantity: Decimal) -> Parts:
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
        return total(_parts(price, quantity))


def charge_interval(
    price: UsagePrice, quantity_from: Decimal, quantity_to: Decimal, *, opening: bool
) -> tuple[Decimal, Parts]:
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
    last_price, last_quantity, last_parts = _last
    follows = last_price is price and last_quantity is quantity_from
    if not follows:
        check_quantity(quantity_from)
    check_quantity(quantity_to)
    with localcontext(EXACT):
        if opening:
            parts = _parts(price, quantity_to)
        else:
            whole = price.is_adjusted
            full = ZERO if whole else min(quantity_from, quantity_to)
            after = _parts(price, quantity_to, full)
            # From where the last step ended upwards, all lower tiers are full: its highest part alone is `before`.
            known = follows and (whole or full == quantity_from)
            before = last_parts if known else _parts(price, quantity_from, full)
            parts = difference(before, after)
            _last = price, quantity_to, after if whole else after[-1:]
        return total(parts), parts


# The step before: most steps begin where another ended. One tuple, so that threads do not mix two steps.
_last: tuple[Any, Any, Parts] = (None, None, ())


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


def _parts(price: UsagePrice, quantity: Decimal, full: Decimal = ZERO) -> Parts:
    """The parts of `C(quantity)`, in exact arithmetic.

    Args:
      full: At most `quantity`. Graduated tiers that end below it may be left out: they are full, and alike in all
        quantities from `full` on, so that they cancel out in a difference. 0 for a price that is adjusted.
    """
    try:
        model = _MODELS[price.model]
    except KeyError:
        raise RateCardError(f"expected a price for usage, got model {price.model!r}") from None
    return adjusted(price, quantity, model) if price.is_adjusted else model(price, quantity, full)


_MODELS: dict[str, Callable[[Any, Decimal, Decimal], Parts]] = {
    "per_unit": per_unit,
    "graduated": graduated,
    "volume": volume,
    "stairstep": stairstep,
    "package": package,
}
