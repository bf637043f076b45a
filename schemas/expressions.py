"""Small exact expressions over properties of an event, such as `max(duration, 60) * 8`: read into a checked tree.

Nothing is ever run as code: a tree holds numbers, properties and the few operations below, each exact for decimals. The
vectorised way to compute a column of them is in transforms/expressions.py, proved equal to `value_of`.

    sum     = product { ("+" | "-") product }          path = name { "." name }, or any property path in `backticks`
    product = factor { "*" factor }                    number = digits [ "." digits ]
    factor  = number | path | "(" sum ")" | function "(" sum { "," sum } ")"

Source: docs/rules.md, section 5, "Values".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

MAX_CHARACTERS = 1_000
MAX_PARTS = 100
MAX_DEPTH = 32
LITERAL_DIGITS = 20
LITERAL_PLACES = 18
STEPPED = ("ceil_to", "floor_to", "round_to")
FUNCTIONS = ("min", "max", *STEPPED)

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[0-9]+(?:\.[0-9]+)?)|(?P<name>[^\W\d]\w*(?:\.\w+)*)|`(?P<quoted>[^`]*)`|(?P<sign>[-+*(),]))"
)
_QUOTED = re.compile(r"[^.\s]+(\.[^.\s]+)*")


class ExpressionError(ValueError):
    """A text that is no expression; says where, what was expected and what came."""


class Literal(NamedTuple):
    number: Decimal


class Property(NamedTuple):
    path: str


class Operation(NamedTuple):
    """`+`, `-`, `*` of two, or a function of two or more; of `STEPPED` the second is a positive `Literal`."""

    name: str
    operands: tuple[Node, ...]


Node = Literal | Property | Operation


@dataclass(frozen=True)
class Expression:
    """An expression as written, and its tree."""

    text: str
    tree: Node

    @property
    def paths(self) -> tuple[str, ...]:
        """The properties that it reads, each once, sorted."""
        return tuple(sorted({node.path for node in walk(self.tree) if isinstance(node, Property)}))

    def value_of(self, values: Mapping[str, Decimal]) -> Fraction:
        """The exact value for one event."""
        return _value(self.tree, values)


def walk(node: Node) -> Iterator[Node]:
    yield node
    if isinstance(node, Operation):
        for operand in node.operands:
            yield from walk(operand)


def _value(node: Node, values: Mapping[str, Decimal]) -> Fraction:
    if isinstance(node, Literal):
        return Fraction(node.number)
    if isinstance(node, Property):
        return Fraction(values[node.path])
    return _OPERATIONS[node.name](*(_value(operand, values) for operand in node.operands))


_OPERATIONS: dict[str, Callable[..., Fraction]] = {
    "+": lambda one, other: one + other,
    "-": lambda one, other: one - other,
    "*": lambda one, other: one * other,
    "min": lambda *all_of_them: min(all_of_them),
    "max": lambda *all_of_them: max(all_of_them),
    "ceil_to": lambda number, step: -(-number // step) * step,
    "floor_to": lambda number, step: number // step * step,
    "round_to": lambda number, step: round(number / step) * step,  # of a fraction: half-even
}


@lru_cache(maxsize=4_096)
def parse_expression(text: str) -> Expression:
    """Read an expression.

    Raises:
      ExpressionError: it is none, it reads no property, or it is larger than `MAX_PARTS` parts or `MAX_DEPTH` levels.
    """
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(f"has {len(text)} characters, at most {MAX_CHARACTERS} are read")
    expression = Expression(text, _Parser(text).read())
    if not expression.paths:
        raise ExpressionError("reads no property, so that all events would count alike: a count meter does that")
    return expression


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


def _tokens(text: str) -> list[_Token]:
    tokens, at = [], 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if not match:
            at += len(text[at:]) - len(text[at:].lstrip())
            raise ExpressionError(f"{text[at]!r} at character {at + 1} is no part of an expression")
        kind = str(match.lastgroup)
        tokens.append(_Token(kind, match[kind], match.start(kind) + 1))
        at = match.end()
    return [*tokens, _Token("end", "", len(text) + 1)]


class _Parser:
    """Reads by descent: a method for each rule of the grammar."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._parts = self._depth = 0

    def read(self) -> Node:
        tree = self._sum()
        if self._tokens[0].kind != "end":
            raise self._unexpected("+, -, * or the end")
        return tree

    def _next(self) -> _Token:
        return self._tokens.pop(0)

    def _is(self, *signs: str) -> bool:
        return self._tokens[0].kind == "sign" and self._tokens[0].text in signs

    def _unexpected(self, expected: str) -> ExpressionError:
        kind, text, at = self._tokens[0]
        came = "the end" if kind == "end" else repr(text)
        return ExpressionError(f"expected {expected} at character {at}, got {came}")

    def _node(self, node: Node) -> Node:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise ExpressionError(f"has more than {MAX_PARTS} numbers, properties and operations")
        return node

    def _sum(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExpressionError(f"is nested deeper than {MAX_DEPTH} levels")
        node = self._product()
        while self._is("+", "-"):
            node = self._node(Operation(self._next().text, (node, self._product())))
        self._depth -= 1
        return node

    def _product(self) -> Node:
        node = self._factor()
        while self._is("*"):
            node = self._node(Operation(self._next().text, (node, self._factor())))
        return node

    def _factor(self) -> Node:
        kind, text, _ = self._tokens[0]
        if kind == "number":
            self._next()
            return self._node(Literal(_literal(text)))
        if kind == "quoted":
            if not _QUOTED.fullmatch(text):
                raise self._unexpected("property names joined by '.' in the backticks")
            self._next()
            return self._node(Property(text))
        if kind == "name":
            self._next()
            return self._node(self._call(text) if self._is("(") else Property(text))
        if self._is("("):
            self._next()
            node = self._sum()
            self._close()
            return node
        raise self._unexpected("a number, a property, a function or '('")

    def _close(self) -> None:
        if not self._is(")"):
            raise self._unexpected("')'")
        self._next()

    def _call(self, name: str) -> Node:
        if name not in FUNCTIONS:
            raise ExpressionError(f"{name!r} is no function, expected one of {', '.join(FUNCTIONS)}")
        self._next()
        operands = [self._sum()]
        while self._is(","):
            self._next()
            operands.append(self._sum())
        self._close()
        if name not in STEPPED:
            if len(operands) < 2:
                raise ExpressionError(f"{name} takes two values or more, got one")
        elif len(operands) != 2:
            raise ExpressionError(f"{name} takes a value and a step, got {len(operands)}")
        elif not isinstance(operands[1], Literal) or not operands[1].number:
            raise ExpressionError(f"the step of {name} must be a number of more than 0, written out")
        return Operation(name, tuple(operands))


def _literal(text: str) -> Decimal:
    whole, _, places = text.partition(".")
    if len(whole) > LITERAL_DIGITS or len(places) > LITERAL_PLACES:
        raise ExpressionError(
            f"{text} has too many digits, at most {LITERAL_DIGITS} before the point and {LITERAL_PLACES} behind it"
        )
    return Decimal(text)
