"""Exact money and quantities: the one exact context, and every rounding that Meterline does."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import (
    ROUND_05UP,
    ROUND_HALF_EVEN,
    ROUND_HALF_UP,
    Context,
    Decimal,
    DivisionByZero,
    FloatOperation,
    Inexact,
    InvalidOperation,
    Overflow,
    localcontext,
)
from itertools import repeat
from typing import Literal

from meterline.schemas.catalog_fields import MAX_QUANTITY
from meterline.schemas.catalog_fields import QUANTITY_PLACES as QUANTITY_PLACES
from meterline.schemas.currency import MINOR_UNITS

AMOUNT_PLACES = 18
AMOUNT_DIGITS = 38

_LOUD = [InvalidOperation, DivisionByZero, Overflow, FloatOperation]
EXACT = Context(prec=120, traps=[*_LOUD, Inexact])
"""The context of all arithmetic on money and quantities: a digit that does not fit raises."""

# Rounded twice is rounded wrong, except through ROUND_05UP: it leaves a 0 or 5 last digit only where the
# value ends there, so that a second rounding to fewer digits sees on which side of a half it lies.
_DIVIDE = Context(prec=120, rounding=ROUND_05UP, traps=_LOUD)
_ROUND_AMOUNT = Context(prec=AMOUNT_DIGITS, traps=_LOUD)
_ROUND = Context(prec=120, traps=_LOUD)

_AMOUNT_UNIT = Decimal(1).scaleb(-AMOUNT_PLACES)
_QUANTITY_UNIT = Decimal(1).scaleb(-QUANTITY_PLACES)

RoundingMode = Literal["half_even", "half_up"]
_ROUNDING = {"half_even": ROUND_HALF_EVEN, "half_up": ROUND_HALF_UP}

_MINOR_UNIT = {code: Decimal(1).scaleb(-digits) for code, digits in MINOR_UNITS.items()}


class MoneyError(ValueError):
    """An amount that cannot be kept, an unknown currency, or nothing to split an amount over."""


class QuantityError(ValueError):
    """A quantity that is negative, too large, too fine, or no number."""


def check_quantity(quantity: Decimal) -> None:
    """Refuse what no meter yields.

    Raises:
      QuantityError: `quantity` is negative, 10^26 or more, finer than 12 decimals, or not finite.
    """
    try:
        if 0 <= quantity < MAX_QUANTITY:
            quantity.quantize(_QUANTITY_UNIT, ROUND_HALF_EVEN, EXACT)
            return
    except (InvalidOperation, Inexact):
        pass
    raise QuantityError(
        f"expected a quantity of 0 or more, below {MAX_QUANTITY:.0E}, with at most {QUANTITY_PLACES} "
        f"decimals, got {quantity}"
    )


def round_amount(numerator: Decimal | int, denominator: Decimal | int = 1) -> Decimal:
    """Round the exact ratio `numerator / denominator`, once, half-even to 18 decimals.

    Returns:
      Currency units that fit `Decimal(38, 18)`.

    Raises:
      MoneyError: The amount has more than 20 digits before the point.
      DivisionByZero: `denominator` is 0.

    Source: docs/rules.md, "Amounts".
    """
    exact = Decimal(numerator) if denominator == 1 else _DIVIDE.divide(numerator, denominator)
    try:
        return exact.quantize(_AMOUNT_UNIT, ROUND_HALF_EVEN, _ROUND_AMOUNT)
    except InvalidOperation:
        raise MoneyError(f"amounts are kept below 1E+{AMOUNT_DIGITS - AMOUNT_PLACES}, got {exact:.6E}") from None


def ratio(numerator: Decimal, denominator: Decimal) -> Decimal:
    """A ratio that is only there to be rounded once more: then it is as if it had been exact."""
    return _DIVIDE.divide(numerator, denominator)


def minor_units(currency: str) -> int:
    """Decimals of the currency's minor unit by ISO 4217: 2 for USD, 0 for JPY, 3 for KWD.

    Raises:
      MoneyError: `currency` is no ISO 4217 code, or one without a minor unit (gold, SDR, test codes).
    """
    try:
        return MINOR_UNITS[currency]
    except KeyError:
        raise MoneyError(f"{currency!r} is no ISO 4217 currency with a minor unit, expected one like 'USD'") from None


def round_money(amount: Decimal, currency: str, mode: RoundingMode) -> Decimal:
    """Round an exact amount to the currency's minor unit.

    Args:
      mode: What happens to a half: `half_even` takes the even neighbour, `half_up` the one away from zero.
        Both treat a credit like the charge it mirrors.

    Raises:
      MoneyError: Unknown currency.
    """
    minor_units(currency)
    return amount.quantize(_MINOR_UNIT[currency], _ROUNDING[mode], _ROUND)


def split_by_largest_remainder(total: Decimal, weights: Sequence[Decimal], places: int) -> tuple[Decimal, ...]:
    """Split a rounded total in proportion to weights, so that the parts add up to it.

    Each part gets its exact share `total · weight / Σ weights` rounded down; the units left over go to the
    largest remainders, on a tie to the earlier part. So every part is less than one unit from its share.
    Weights that add up to zero (all zero, or cancelling out) give no proportion: the shares are equal.
    A negative weight takes a share of the other sign; to round amounts that have a value already, of
    whatever sign, use `round_parts`.

    Args:
      total: A multiple of 10^-places.
      weights: Exact numbers, one for each part.

    Returns:
      One part for each weight, multiples of 10^-places.

    Raises:
      MoneyError: `total` is finer than `places`, or there is no part to put it in.

    Source: docs/rules.md, "Splitting an amount".
    """
    with localcontext(EXACT):
        units = total.scaleb(places)
        if units != units.to_integral_value():
            raise MoneyError(f"expected a total with at most {places} decimals, got {total}")
        if total and not weights:
            raise MoneyError(f"nothing to split {total} over")
        scaled, _ = _as_integers(weights)
        if not sum(scaled):
            scaled = [1] * len(scaled)
        parts = _apportion([int(units) * weight for weight in scaled], sum(scaled), int(units))
        return tuple(Decimal(part).scaleb(-places) for part in parts)


def round_parts(parts: Sequence[Decimal], currency: str, mode: RoundingMode) -> tuple[Decimal, ...]:
    """Round the sum of exact parts once, and the parts so that they add up to the rounded sum.

    Each part is rounded down, and the units missing to the rounded sum go to the largest remainders, on a
    tie to the earlier part; for a negative sum, all this with the signs turned. So every part is less than
    one minor unit from its exact value, and a part that needs no rounding is left as it is.

    Raises:
      MoneyError: Unknown currency.

    Source: docs/rules.md, "Splitting an amount".
    """
    places = minor_units(currency)
    with localcontext(EXACT):
        exact = sum(parts, start=Decimal(0))
        total = int(round_money(exact, currency, mode).scaleb(places))
        scaled, scale = _as_integers([part.scaleb(places) for part in parts])
        sign = -1 if exact < 0 else 1
        rounded = _apportion([sign * part for part in scaled], scale, sign * total)
        return tuple(Decimal(sign * part).scaleb(-places) for part in rounded)


def _as_integers(values: Sequence[Decimal]) -> tuple[list[int], int]:
    """The values times their smallest common power of ten, and that power."""
    places = 0
    for value in values:
        exponent = value.as_tuple().exponent
        assert isinstance(exponent, int), f"not a finite number: {value}"
        places = max(places, -exponent)
    return [int(value.scaleb(places)) for value in values], 10**places


def _apportion(numerators: Sequence[int], denominator: int, total: int) -> list[int]:
    """Round `numerators / denominator` to integers with the given sum, by largest remainder."""
    if denominator < 0:
        numerators, denominator = [-numerator for numerator in numerators], -denominator
    if not numerators:
        return []
    floors, remainders = map(list, zip(*map(divmod, numerators, repeat(denominator))))
    missing = total - sum(floors)
    assert 0 <= missing <= sum(remainder > 0 for remainder in remainders), "total is not the rounded sum"
    for position in sorted(range(len(floors)), key=lambda position: -remainders[position])[:missing]:
        floors[position] += 1
    return floors
