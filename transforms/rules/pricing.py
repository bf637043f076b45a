"""The price of a cumulative quantity by each price model, and of a usage interval as a difference.

`C(q)` is a sum of parts, one for each tier that q reaches, each rounded once to 18 decimals. A usage
interval costs `C(to) − C(from)`, so any cutting of a period into intervals adds up to `C(total)`.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

from meterline.schemas.catalog import UsagePrice
from meterline.transforms.rules.money import EXACT, check_quantity
from meterline.transforms.rules.prices.adjustments import adjusted
from meterline.transforms.rules.prices.package import package
from meterline.transforms.rules.prices.parts import ZERO, Parts, RateCardError, difference, total
from meterline.transforms.rules.prices.per_unit import per_unit
from meterline.transforms.rules.prices.percentage import dynamic, graduated_percentage, percentage
from meterline.transforms.rules.prices.tiers import graduated, stairstep, volume


def charge_parts(price: UsagePrice, quantity: Decimal, events: int = 0) -> Parts:
    """Price a cumulative quantity, tier by tier in ascending order.

    Args:
      quantity: Units since the period began.
      events: Events since then; only a fee for each event asks for them.

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
        return _parts(price, quantity, events)


def charge(price: UsagePrice, quantity: Decimal, events: int = 0) -> Decimal:
    """`C(quantity)` in currency units, exact to 18 decimals; errors as in `charge_parts`."""
    check_quantity(quantity)
    with localcontext(EXACT):
        return total(_parts(price, quantity, events))


def charge_interval(
    price: UsagePrice,
    quantity_from: Decimal,
    quantity_to: Decimal,
    *,
    opening: bool,
    events: tuple[int, int] = (0, 0),
) -> tuple[Decimal, Parts]:
    """Price the step from one cumulative quantity to another, which may be lower.

    Args:
      opening: Whether the step is its key's first. It starts at 0 and bears the fees due without usage.
      events: How many there were up to the two quantities; only a fee for each event asks for them.

    Returns:
      `C(to) − C(from)`, opening `C(to)`, in currency units; and the same by tier, ascending, without the
      tiers in which nothing changed. The tiers' amounts add up to the amount, their quantities to the step.

    Raises:
      As `charge_parts`.

    Source: docs/rules.md, "Amounts".
    """
    assert not (opening and quantity_from), f"a key opens at 0, not at {quantity_from}"
    global _last
    last_price, model, is_adjusted, last_quantity, last_events, last_parts = _last
    if last_price is not price:
        model, is_adjusted = _model(price), price.is_adjusted
    follows = last_price is price and last_quantity is quantity_from
    if not follows:
        check_quantity(quantity_from)
    check_quantity(quantity_to)
    with localcontext(EXACT):
        if opening:
            parts = _parts(price, quantity_to, events[1])
        elif is_adjusted:
            known = follows and last_events == events[0]
            before = last_parts if known else _parts(price, quantity_from, events[0])
            after = _parts(price, quantity_to, events[1])
            parts = difference(before, after)
            _last = price, model, is_adjusted, quantity_to, events[1], after
        else:
            full = min(quantity_from, quantity_to)
            after = model(price, quantity_to, full)
            # From where the last step ended upwards, all lower tiers are full: its highest part alone is `before`.
            before = last_parts if follows and full == quantity_from else model(price, quantity_from, full)
            parts = difference(before, after)
            _last = price, model, is_adjusted, quantity_to, 0, after[-1:]
        return total(parts), parts


# The step before: most steps begin where another ended. One tuple, so that threads do not mix two steps.
_last: tuple[Any, Any, bool, Any, int, Parts] = (None, None, False, None, 0, ())


_Model = Callable[[Any, Decimal, Decimal], Parts]
"""Parts of a price for a quantity, in exact arithmetic. The third argument is at most that quantity: graduated tiers
that end below it may be left out. They are full, and alike in all quantities from there on, so that they cancel out."""


def _parts(price: UsagePrice, quantity: Decimal, events: int) -> Parts:
    """All parts of `C(quantity)`."""
    model = _model(price)
    return adjusted(price, quantity, events, model) if price.is_adjusted else model(price, quantity, ZERO)


def _model(price: UsagePrice) -> _Model:
    try:
        return _MODELS[price.model]
    except KeyError:
        raise RateCardError(f"expected a price for usage, got model {price.model!r}") from None


_MODELS: dict[str, _Model] = {
    "per_unit": per_unit,
    "graduated": graduated,
    "volume": volume,
    "stairstep": stairstep,
    "package": package,
    "percentage": percentage,
    "graduated_percentage": graduated_percentage,
    "dynamic": dynamic,
}
