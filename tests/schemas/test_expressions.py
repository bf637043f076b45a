"""Expressions: what they mean, and what is said of a text that is none."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given

from meterline.schemas.expressions import ExpressionError, Node, parse_expression
from tests import strategies


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("a + b * 2", "26", id="* binds more than +"),
        pytest.param("(a + b) * 2", "32", id="parentheses"),
        pytest.param("a - b - 1", "-5", id="from the left"),
        pytest.param("max(a, 60) * 8", "480", id="a least duration"),
        pytest.param("min(max(a * 0.029 + 0.30, 0.50), 10)", "0.5", id="a fee between bounds"),
        pytest.param("min(max(100 * b * 0.029 + 0.30, 0.50), 10)", "10", id="and at the upper one"),
        pytest.param("ceil_to(b, 6)", "12", id="increments"),
        pytest.param("ceil_to(a - b, 6)", "0", id="up is towards more"),
        pytest.param("floor_to(b, 6)", "6", id="only whole ones"),
        pytest.param("floor_to(a - b, 6)", "-6", id="down is towards less"),
        pytest.param("round_to(a * 0.125, 0.5)", "1", id="a half to the even one, up"),
        pytest.param("round_to(0.25 * min(a, 1), 0.5)", "0", id="a half to the even one, down"),
        pytest.param("usage.tokens", "3", id="a path"),
        pytest.param("`a-b.1` * 1", "5", id="a path that is no name"),
        pytest.param("größe\n+ 0.000000000000000001", "7.000000000000000001", id="any letters, any white space"),
        pytest.param("max(1, 2, a, b)", "10", id="more than two"),
    ],
)
def test_an_expression(text: str, value: str) -> None:
    said = {"a": 6, "b": 10, "usage.tokens": 3, "a-b.1": 5, "größe": 7}
    assert parse_expression(text).value_of({name: Decimal(one) for name, one in said.items()}) == Fraction(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a number, a property, a function or '(' at character 1, got the end"),
        ("a +", "expected a number, a property, a function or '(' at character 4, got the end"),
        ("a b", "expected +, -, * or the end at character 3, got 'b'"),
        ("-a", "expected a number, a property, a function or '(' at character 1, got '-'"),
        ("(a", "expected ')' at character 3, got the end"),
        ("a / 2", "'/' at character 3 is no part of an expression"),
        ("a ** 2", "expected a number, a property, a function or '(' at character 4, got '*'"),
        ("sum(a, 2)", "'sum' is no function, expected one of min, max, ceil_to, floor_to, round_to"),
        ("__import__('os')", '"\'" at character 12 is no part of an expression'),
        ("max(a)", "max takes two values or more, got one"),
        ("ceil_to(a)", "ceil_to takes a value and a step, got 1"),
        ("ceil_to(a, b)", "the step of ceil_to must be a number of more than 0, written out"),
        ("ceil_to(a, 0.0)", "the step of ceil_to must be a number of more than 0, written out"),
        ("1 + 2", "reads no property, so that all events would count alike: a count meter does that"),
        ("`a..b`", "expected property names joined by '.' in the backticks at character 2, got 'a..b'"),
        ("a * 1e3", "expected +, -, * or the end at character 6, got 'e3'"),
        ("a * .5", "'.' at character 5 is no part of an expression"),
        ("a + 0.1234567890123456789", "has too many digits, at most 20 before the point and 18 behind it"),
        ("a + 123456789012345678901", "has too many digits, at most 20 before the point and 18 behind it"),
        ("(" * 33 + "a" + ")" * 33, "is nested deeper than 32 levels"),
        ("+".join(["a"] * 60), "has more than 100 numbers, properties and operations"),
        ("a" * 1_001, "has 1001 characters, at most 1000 are read"),
    ],
)
def test_no_expression(text: str, message: str) -> None:
    with pytest.raises(ExpressionError) as error:
        parse_expression(text)
    assert str(error.value).endswith(message)


@given(strategies.expression_trees)
def test_a_tree_that_is_written_is_read_again(tree: Node) -> None:
    assert parse_expression(strategies.written(tree)).tree == tree
