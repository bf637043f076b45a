from __future__ import annotations

from decimal import Decimal, FloatOperation, Inexact, localcontext
from fractions import Fraction

import pytest
from babel.numbers import get_currency_precision, list_currencies
from hypothesis import given
from hypothesis import strategies as st

from meterline.schemas.currency import MINOR_UNITS
from meterline.transforms.rules.money import (
    AMOUNT_PLACES,
    EXACT,
    MoneyError,
    QuantityError,
    check_quantity,
    minor_units,
    round_amount,
    round_money,
    round_parts,
    split_by_largest_remainder,
)
from tests import strategies


def half_even(value: Fraction, places: int) -> Fraction:
    return Fraction(round(value * 10**places), 10**places)


def half_up(value: Fraction, places: int) -> Fraction:
    whole = int(abs(value) * 10**places + Fraction(1, 2))
    return Fraction(whole if value >= 0 else -whole, 10**places)


def test_the_exact_context_refuses_what_it_cannot_keep() -> None:
    with localcontext(EXACT):
        with pytest.raises(Inexact):
            Decimal(1) / Decimal(3)
        with pytest.raises(FloatOperation):
            Decimal(0.5)  # noqa: RUF032
    with pytest.raises(TypeError):
        round_amount(0.5, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("numerator", "denominator", "amount"),
    [
        pytest.param("2.5E-18", "1", "2E-18", id="a half goes to the even neighbour below"),
        pytest.param("3.5E-18", "1", "4E-18", id="a half goes to the even neighbour above"),
        pytest.param("-2.5E-18", "1", "-2E-18", id="and a credit mirrors the charge"),
        pytest.param("2.5" + "0" * 100 + "1E-18", "1", "3E-18", id="a digit far behind the half decides"),
        pytest.param("1", "3", "0.333333333333333333", id="a third"),
        pytest.param("2", "3", "0.666666666666666667", id="two thirds"),
        pytest.param("99999999999999999999.999999999999999999", "1", None, id="38 digits are kept"),
        pytest.param("7.5E-12", "3000000", "2E-18", id="a quotient that is a half, to even"),
        pytest.param("10.5E-12", "3000000", "4E-18", id="a quotient that is a half, to even above"),
    ],
)
def test_round_amount(numerator: str, denominator: str, amount: str | None) -> None:
    assert round_amount(Decimal(numerator), Decimal(denominator)) == Decimal(amount or numerator)


@given(
    numerator=st.integers(-(10**56), 10**56).map(lambda value: Decimal(value).scaleb(-30, EXACT)),
    denominator=st.one_of(st.integers(1, 10**12), strategies.decimals(10**6, 12).filter(bool)),
)
def test_round_amount_rounds_the_exact_ratio_once(numerator: Decimal, denominator: Decimal | int) -> None:
    exact = Fraction(numerator) / Fraction(denominator)
    if abs(half_even(exact, AMOUNT_PLACES)) >= 10**20:
        with pytest.raises(MoneyError):
            round_amount(numerator, denominator)
    else:
        assert Fraction(round_amount(numerator, denominator)) == half_even(exact, AMOUNT_PLACES)


@given(
    half=st.one_of(
        st.integers(-(10**38) + 1, 10**38 - 2).map(lambda value: 2 * value + 1),
        st.integers(10**37, 10**38 - 2).map(lambda value: 2 * value + 1),
    ),
    denominator=st.integers(1, 10**20),
    nudge=st.sampled_from([-1, 0, 1]),
)
def test_round_amount_sees_on_which_side_of_a_half_a_ratio_lies(half: int, denominator: int, nudge: int) -> None:
    # half / 2 units of 1E-18, moved at a decimal far behind all that the division keeps
    numerator = (half * 10**140 * denominator + nudge) * 5
    divisor = denominator * 10**159
    assert Fraction(round_amount(numerator, divisor)) == half_even(Fraction(numerator, divisor), AMOUNT_PLACES)


def test_an_amount_with_too_many_digits_is_refused() -> None:
    with pytest.raises(MoneyError, match="below 1E\\+20"):
        round_amount(Decimal(10) ** 20)
    with pytest.raises(MoneyError):
        round_amount(Decimal("99999999999999999999.9999999999999999995"))


@pytest.mark.parametrize(
    ("currency", "digits"),
    [("USD", 2), ("JPY", 0), ("KWD", 3), ("HUF", 2), ("CLP", 0), ("IQD", 3), ("CLF", 4), ("MGA", 2), ("ISK", 0)],
)
def test_minor_units_are_those_of_iso_4217(currency: str, digits: int) -> None:
    assert minor_units(currency) == digits


def test_babel_differs_from_iso_4217_only_where_we_know() -> None:
    assert set(MINOR_UNITS) <= list_currencies()
    different = {code for code, digits in MINOR_UNITS.items() if get_currency_precision(code) != digits}
    assert different == {*["AFN", "ALL", "IQD", "IRR", "KPW", "LAK", "LBP", "MGA", "MMK", "RSD", "SOS", "SYP", "YER"]}


@pytest.mark.parametrize("code", ["XAU", "XXX", "usd", "ITL", ""])
def test_a_code_without_a_minor_unit_is_refused(code: str) -> None:
    with pytest.raises(MoneyError, match="ISO 4217"):
        round_money(Decimal(1), code, "half_even")


@pytest.mark.parametrize(
    ("amount", "currency", "even", "up"),
    [
        pytest.param("0.125", "USD", "0.12", "0.13", id="a half"),
        pytest.param("-0.125", "USD", "-0.12", "-0.13", id="a credit mirrors the charge"),
        pytest.param("0.125000000000000001", "USD", "0.13", "0.13", id="more than a half"),
        pytest.param("2.5", "JPY", "2", "3", id="no decimals"),
        pytest.param("0.0005", "KWD", "0.000", "0.001", id="three decimals"),
    ],
)
def test_round_money(amount: str, currency: str, even: str, up: str) -> None:
    assert str(round_money(Decimal(amount), currency, "half_even")) == even
    assert str(round_money(Decimal(amount), currency, "half_up")) == up


@pytest.mark.parametrize("quantity", ["-1", "-1E-12", "1E26", "1E-13", "0.1000000000001", "NaN", "Infinity"])
def test_a_quantity_that_no_meter_yields_is_refused(quantity: str) -> None:
    with pytest.raises(QuantityError, match="expected a quantity"):
        check_quantity(Decimal(quantity))


@pytest.mark.parametrize("quantity", ["0", "-0", "1E25", "1E-12", "99999999999999999999999999.999999999999", "1.0"])
def test_a_quantity_of_38_digits_is_taken(quantity: str) -> None:
    check_quantity(Decimal(quantity))


@pytest.mark.parametrize(
    ("total", "weights", "parts"),
    [
        pytest.param("1.00", "1 1 1", "0.34 0.33 0.33", id="a tie goes to the earlier part"),
        pytest.param("-1.00", "1 1 1", "-0.33 -0.33 -0.34", id="of a credit too"),
        pytest.param("1.00", "0 0 0", "0.34 0.33 0.33", id="without weights the shares are equal"),
        pytest.param("1.00", "1 -1", "0.50 0.50", id="or when the weights cancel out"),
        pytest.param("0.05", "0.999 0.0005 0.0005", "0.05 0 0", id="a part may get nothing"),
        pytest.param("10.00", "3 -1", "15.00 -5.00", id="a negative weight has a share of the other sign"),
        pytest.param("10.00", "-3 -1", "7.50 2.50", id="weights count in proportion, not by sign"),
        pytest.param("0", "1 2", "0 0", id="nothing to split"),
        pytest.param("0", "", "", id="nothing, over nothing"),
        pytest.param("7.01", "5", "7.01", id="one part"),
    ],
)
def test_split_by_largest_remainder(total: str, weights: str, parts: str) -> None:
    expected = tuple(map(Decimal, parts.split()))
    assert split_by_largest_remainder(Decimal(total), list(map(Decimal, weights.split())), 2) == expected


def test_a_split_needs_a_rounded_total_and_a_part() -> None:
    with pytest.raises(MoneyError, match="at most 2 decimals"):
        split_by_largest_remainder(Decimal("0.001"), [Decimal(1)], 2)
    with pytest.raises(MoneyError, match="nothing to split"):
        split_by_largest_remainder(Decimal("0.01"), [], 2)


@given(
    total=st.integers(-(10**20), 10**20),
    weights=st.lists(strategies.amounts, min_size=1, max_size=12),
    places=st.integers(0, 4),
)
def test_a_split_adds_up_and_no_part_is_a_unit_off(total: int, weights: list[Decimal], places: int) -> None:
    amount = Decimal(total).scaleb(-places)
    parts = [Fraction(part) for part in split_by_largest_remainder(amount, weights, places)]
    shares = [Fraction(weight) for weight in weights]
    if not sum(shares):
        shares = [Fraction(1)] * len(shares)
    assert sum(parts) == Fraction(amount)
    for part, share in zip(parts, shares):
        assert (part * 10**places).denominator == 1
        assert abs(part - Fraction(amount) * share / sum(shares)) < Fraction(1, 10**places)


@pytest.mark.parametrize(
    ("parts", "rounded"),
    [
        pytest.param("0.011 0.011 0.011", "0.01 0.01 0.01", id="rounded down, so is the sum"),
        pytest.param("0.004 0.004 0.004", "0.01 0 0", id="a tie goes to the earlier part"),
        pytest.param("-0.004 -0.004 -0.004", "-0.01 0 0", id="of a credit too"),
        pytest.param("0.005 0.009", "0 0.01", id="the largest remainder first"),
        pytest.param("1.00 0.006 0", "1.00 0.01 0", id="a whole part stays"),
        pytest.param("0.335 -0.335", "0.34 -0.34", id="a sum of zero stays zero"),
        pytest.param("0.005 0.02", "0 0.02", id="the sum decides, once: 0.025 is 0.02 half-even"),
        pytest.param("", "", id="no parts"),
    ],
)
def test_round_parts(parts: str, rounded: str) -> None:
    exact = list(map(Decimal, parts.split()))
    assert round_parts(exact, "USD", "half_even") == tuple(map(Decimal, rounded.split()))


@given(
    parts=st.lists(strategies.amounts, max_size=12),
    currency=strategies.currencies,
    mode=strategies.rounding_modes,
)
def test_rounded_parts_add_up_to_the_rounded_sum(parts: list[Decimal], currency: str, mode: str) -> None:
    places = minor_units(currency)
    rounded = round_parts(parts, currency, mode)  # type: ignore[arg-type]
    exact = sum(map(Fraction, parts), Fraction(0))
    rule = half_even if mode == "half_even" else half_up
    assert sum(map(Fraction, rounded), Fraction(0)) == rule(exact, places)
    for part, value in zip(rounded, parts, strict=True):
        assert (Fraction(part) * 10**places).denominator == 1
        assert abs(Fraction(part) - Fraction(value)) < Fraction(1, 10**places)
    if exact:
        mirrored = round_parts([-part for part in parts], currency, mode)  # type: ignore[arg-type]
        assert mirrored == tuple(-part for part in rounded)
