"""Values of expressions, a column at once, exactly: what `Expression.value_of` gives row by row.

Decimals are whole numbers and a scale, in 64 bits while all can be told to fit, else Python's integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from meterline.schemas.event import MAX_EVENT_QUANTITY, QUANTITY_PLACES
from meterline.schemas.expressions import Expression, Literal, Node, Property

_FITS = 2**63 - 1
_BEYOND = int(MAX_EVENT_QUANTITY) * 10**QUANTITY_PLACES
_MASK = 2**64 - 1


class _Decimals(NamedTuple):
    """Numbers in units of 10^-scale, of at most `most`, with either sign."""

    numbers: Any  # int64, or objects that are integers
    scale: int
    most: int

    def scaled(self, scale: int) -> _Decimals:
        """The same in smaller units."""
        factor = 10 ** (scale - self.scale)
        most = self.most * factor
        return self if factor == 1 else _Decimals(_room(self.numbers, max(most, factor)) * factor, scale, most)

    def with_room(self, most: int) -> Any:
        """The numbers, in a type that can hold as much."""
        return _room(self.numbers, most)


def _room(numbers: Any, most: int) -> Any:
    return numbers.astype(object) if most > _FITS and numbers.dtype != object else numbers


def computed(expression: Expression, quantities: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The values of an expression, in limbs, and which of them are quantities: within the limits, and not negative.

    Args:
      quantities: By path, the properties that it reads, in limbs (see columns.decimal_limbs).
    """
    read = {path: _read(limbs) for path, limbs in quantities.items()}
    rows = len(next(iter(quantities.values())))
    numbers, right = _in_units(_value(expression.tree, read))
    numbers, right = np.broadcast_to(numbers, rows), np.broadcast_to(right, rows)
    right = right & np.asarray((numbers >= 0) & (numbers < _BEYOND), bool)
    limbs = np.zeros((rows, 2), np.int64)
    if numbers.dtype == object:
        kept = np.where(right, numbers, 0)
        limbs[:, 0] = (kept & _MASK).astype(np.uint64).view(np.int64)
        limbs[:, 1] = (kept >> 64).astype(np.int64)
    else:
        limbs[:, 0] = np.where(right, numbers, 0)
    return limbs, right


def _read(limbs: np.ndarray) -> _Decimals:
    low, high = limbs[:, 0], limbs[:, 1]
    if high.any() or (low < 0).any():
        numbers = (high.astype(object) << 64) + low.view(np.uint64).astype(object)
        return _Decimals(numbers, QUANTITY_PLACES, max(map(abs, numbers)))
    # In the largest unit that they are whole multiples of, so that products stay small.
    for places in (12, 10, 9, 6, 3):
        whole, rest = np.divmod(low, 10**places)
        if not rest.any():
            return _Decimals(whole, QUANTITY_PLACES - places, int(whole.max(initial=0)))
    return _Decimals(low, QUANTITY_PLACES, int(low.max(initial=0)))


def _in_units(value: _Decimals) -> tuple[Any, Any]:
    """In units of 10^-12, and which numbers are whole in them."""
    if value.scale <= QUANTITY_PLACES:
        return value.scaled(QUANTITY_PLACES).numbers, np.True_
    unit = 10 ** (value.scale - QUANTITY_PLACES)
    numbers = value.with_room(unit)
    return numbers // unit, numbers % unit == 0


def _value(node: Node, read: Mapping[str, _Decimals]) -> _Decimals:
    if isinstance(node, Literal):
        _, digits, exponent = node.number.as_tuple()  # never negative
        assert isinstance(exponent, int)
        number = int("".join(map(str, digits)))
        kind: Any = np.int64 if number <= _FITS else object
        return _Decimals(np.asarray([number], kind), -exponent, number)
    if isinstance(node, Property):
        return read[node.path]
    return _OPERATIONS[node.name](*(_value(operand, read) for operand in node.operands))


def _aligned(one: _Decimals, other: _Decimals, room: Callable[[int, int], int] = max) -> tuple[Any, Any, int, int]:
    """Both in one unit and type, the scale, and the most that `room` says a result of the two may be."""
    scale = max(one.scale, other.scale)
    one, other = one.scaled(scale), other.scaled(scale)
    most = room(one.most, other.most)
    wide = max(most, one.most, other.most)
    return one.with_room(wide), other.with_room(wide), scale, most


def _sum(one: int, other: int) -> int:
    return one + other


def _added(one: _Decimals, other: _Decimals) -> _Decimals:
    left, right, scale, most = _aligned(one, other, _sum)
    return _Decimals(left + right, scale, most)


def _subtracted(one: _Decimals, other: _Decimals) -> _Decimals:
    left, right, scale, most = _aligned(one, other, _sum)
    return _Decimals(left - right, scale, most)


def _multiplied(one: _Decimals, other: _Decimals) -> _Decimals:
    most = one.most * other.most
    wide = max(most, one.most, other.most)
    return _Decimals(one.with_room(wide) * other.with_room(wide), one.scale + other.scale, most)


def _least(*all_of_them: _Decimals) -> _Decimals:
    def lesser(one: _Decimals, other: _Decimals) -> _Decimals:
        left, right, scale, most = _aligned(one, other)
        return _Decimals(np.minimum(left, right), scale, most)

    return reduce(lesser, all_of_them)


def _greatest(*all_of_them: _Decimals) -> _Decimals:
    def greater(one: _Decimals, other: _Decimals) -> _Decimals:
        left, right, scale, most = _aligned(one, other)
        return _Decimals(np.maximum(left, right), scale, most)

    return reduce(greater, all_of_them)


def _stepped(steps: Callable[[Any, Any], Any]) -> Callable[[_Decimals, _Decimals], _Decimals]:
    """An operation that rounds to a multiple; `steps` says how many steps that is."""

    def operation(value: _Decimals, step: _Decimals) -> _Decimals:
        numbers, unit, scale, most = _aligned(value, step, _sum)
        return _Decimals(steps(numbers, unit) * unit, scale, most)

    return operation


def _half_even(numbers: Any, unit: Any) -> Any:
    whole, rest = numbers // unit, numbers % unit
    # Compared without doubling, which might not fit.
    up = (rest > unit - rest) | ((rest == unit - rest) & (whole % 2 == 1))
    return whole + up


_OPERATIONS: dict[str, Callable[..., _Decimals]] = {
    "+": _added,
    "-": _subtracted,
    "*": _multiplied,
    "min": _least,
    "max": _greatest,
    "ceil_to": _stepped(lambda numbers, unit: -(-numbers // unit)),
    "floor_to": _stepped(lambda numbers, unit: numbers // unit),
    "round_to": _stepped(_half_even),
}
