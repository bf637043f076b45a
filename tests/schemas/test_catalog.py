"""The promises of catalog records, and of the checks between them, without files."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import ROUND_HALF_EVEN, Context, Decimal, Inexact, localcontext
from typing import Any

import pytest
from hypothesis import given
from pydantic import TypeAdapter, ValidationError

from meterline.schemas.catalog import (
    Account,
    AnyPrice,
    Catalog,
    Charge,
    PerUnit,
    Plan,
    RateCard,
    RateCardVersion,
    Subscription,
    Tier,
    UsagePrice,
)
from meterline.schemas.catalog_checks import Finding, findings
from meterline.schemas.catalog_fields import Instant, Price, Quantity
from meterline.schemas.meters import Meter
from tests import strategies

PRICE = TypeAdapter(Price)
QUANTITY = TypeAdapter(Quantity)
INSTANT = TypeAdapter(Instant)
JANUARY = datetime(2026, 1, 1, tzinfo=UTC)


def card(**prices: Any) -> RateCard:
    version = RateCardVersion(version="1", effective_from=JANUARY, prices=prices)
    return RateCard(id="standard", currency="USD", versions=(version,))


@pytest.mark.parametrize(
    "text", ["0", "0.003", "1.50", "0.000000000000000001", "999999999999999999.999999999999999999"]
)
def test_a_price_is_kept_as_it_was_written(text: str) -> None:
    assert f"{PRICE.validate_python(text):f}" == text


@pytest.mark.parametrize("value", [0, 5, Decimal("0.10")])
def test_whole_and_decimal_numbers_are_prices(value: int | Decimal) -> None:
    assert PRICE.validate_python(value) == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param(0.1, "floating-point number", id="a float"),
        pytest.param(True, "expected a decimal number in quotes, got bool", id="a bool"),
        pytest.param("NaN", "is no decimal number", id="NaN"),
        pytest.param("1e3", "is no decimal number", id="an exponent"),
        pytest.param("1_000", "is no decimal number", id="underscores"),
        pytest.param("1,5", "is no decimal number", id="a comma"),
        pytest.param("１", "is no decimal number", id="other digits"),
        pytest.param("1\n", "is no decimal number", id="a line end"),
        pytest.param(Decimal("Infinity"), "should be a finite number", id="infinity"),
        pytest.param("-1", "must not be negative, got -1", id="negative"),
        pytest.param("-0", "must not be negative, got -0", id="negative zero"),
        pytest.param("1000000000000000000", "must be below 1E+18", id="too large"),
        pytest.param("0.0000000000000000001", "0.0000000000000000001 has 19 decimals, at most 18", id="too fine"),
    ],
)
def test_what_is_no_exact_price_is_refused(value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace("+", r"\+")):
        PRICE.validate_python(value)


def test_decimals_are_counted_exactly_however_many_digits_stand_before_them() -> None:
    with pytest.raises(ValidationError, match="has 13 decimals"):
        QUANTITY.validate_python("12345678901234567.1234567890123")


def test_trailing_zeros_are_no_decimals() -> None:
    assert QUANTITY.validate_python("1." + "0" * 30) == 1
    assert QUANTITY.validate_python("0." + "0" * 30) == 0


def test_numbers_are_checked_without_rounding() -> None:
    with localcontext(Context(prec=5, rounding=ROUND_HALF_EVEN, traps=[Inexact])):
        assert str(QUANTITY.validate_python("1234567890.123456789")) == "1234567890.123456789"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param("2026-01-01", "write 2026-01-01T00:00:00Z", id="a date"),
        pytest.param("2026-01-01T00:00:00", "has no time zone", id="no zone"),
        pytest.param("2026-01-01 00:00:00Z", "is no instant in whole seconds", id="a space"),
        pytest.param("2026-01-01T00:00:00.5Z", "is no instant in whole seconds", id="a fraction"),
        pytest.param("2026-02-29T00:00:00Z", "does not exist", id="no such day"),
        pytest.param("2026-01-01T23:59:60Z", "does not exist", id="a leap second"),
        pytest.param("1969-12-31T23:59:59Z", "outside the years 1970 to 2199", id="too early"),
        pytest.param("0001-01-01T00:00:00+14:00", "outside the years", id="before the first year in UTC"),
        pytest.param("9999-12-31T23:59:59-14:00", "outside the years", id="after the last year in UTC"),
        pytest.param(1767225600, "got int", id="a number"),
        pytest.param(datetime(2026, 1, 1), "has no time zone", id="a naive datetime"),  # noqa: DTZ001
        pytest.param(JANUARY + timedelta(microseconds=1), "fraction of a second", id="microseconds"),
    ],
)
def test_what_is_no_whole_second_with_its_offset_is_refused(value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        INSTANT.validate_python(value)


def test_instants_are_kept_in_utc() -> None:
    instant = INSTANT.validate_python("2026-01-01T02:00:00+02:00")
    assert instant == JANUARY
    assert instant.tzinfo is UTC
    assert INSTANT.validate_python(datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))).tzinfo is UTC


@pytest.mark.parametrize(
    ("tiers", "at"),
    [
        pytest.param([{"up_to": 1}], (0, "up_to"), id="the last has an end"),
        pytest.param([{}, {}], (0,), id="one before the last has none"),
        pytest.param([{"up_to": 2}, {"up_to": 2}, {}], (1, "up_to"), id="a bound comes twice"),
    ],
)
@pytest.mark.parametrize("model", ["graduated", "volume"])
def test_tiers_rise_and_cover_all_usage(model: str, tiers: list[dict[str, Any]], at: tuple[int | str, ...]) -> None:
    with pytest.raises(ValidationError) as error:
        TypeAdapter(AnyPrice).validate_python({"model": model, "tiers": tiers})
    assert error.value.errors()[0]["ctx"]["at"] == at


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: Meter(id="m", event_type="t", aggregation="sum", unit="u"), id="a sum of nothing"),
        pytest.param(
            lambda: Meter(id="m", event_type="t", aggregation="count", value="v", unit="u"), id="a count of values"
        ),
        pytest.param(lambda: RateCard(id="r", currency="EUX", versions=card(a=PRICE_ONE).versions), id="a currency"),
        pytest.param(lambda: RateCard(id="r", currency="USD", versions=()), id="no version"),
        pytest.param(card, id="no price"),
        pytest.param(
            lambda: Subscription(id="s", account="a", plan="p", start=JANUARY, end=JANUARY), id="an empty subscription"
        ),
        pytest.param(
            lambda: Subscription(id="s", account="a", plan="p", start=JANUARY, anchor_day="1"), id="a text day"
        ),
        pytest.param(lambda: Account(id="a", billed=1), id="a number as flag"),
        pytest.param(lambda: Account(id="a", subjects=("",)), id="an empty subject"),
        pytest.param(lambda: Account(id="a", colour="red"), id="an unknown key"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValidationError):
        make()


PRICE_ONE = PerUnit(model="per_unit", unit_price=Decimal(1))


@pytest.mark.parametrize("zone", ["", "/etc/passwd", "../UTC", "Mars/Base", "Europe", "a" * 300, "\0"])
def test_what_is_no_time_zone_is_refused(zone: str) -> None:
    with pytest.raises(ValidationError, match="is no IANA time zone"):
        Subscription(id="s", account="a", plan="p", start=JANUARY, time_zone=zone)


def test_only_roots_are_billed_unless_said_otherwise() -> None:
    assert Account(id="a").is_billed
    assert not Account(id="b", parent="a").is_billed
    assert Account(id="b", parent="a", billed=True).is_billed


def test_records_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Tier().unit_price = Decimal(1)


def test_a_catalog_survives_json_and_keeps_its_digest() -> None:
    catalog = Catalog(rate_cards=(card(a=PRICE_ONE),), accounts=(Account(id="a"),))
    again = Catalog.model_validate_json(catalog.model_dump_json())
    assert again == catalog
    assert again.digest == catalog.digest
    assert again.digest != Catalog(accounts=(Account(id="a"),)).digest


def test_a_finding_says_where_both_records_are() -> None:
    catalog = Catalog(accounts=(Account(id="a"), Account(id="b", subjects=("x", "a"))))
    assert list(findings(catalog, {})) == [
        Finding(("accounts", 1, "subjects", 1), "'a' is a subject of account a already", ("accounts", 0, "id"))
    ]


def test_each_circle_of_parents_is_found_once_and_accounts_below_it_are_not_blamed() -> None:
    parents = {"below": "a", "a": "b", "b": "c", "c": "a", "self": "self", "root": None}
    accounts = tuple(Account(id=name, parent=parent, billed=True) for name, parent in parents.items())
    assert [finding.message for finding in findings(Catalog(accounts=accounts), {})] == [
        "its parents form a circle: a → b → c → a",
        "its parents form a circle: self → self",
    ]


def test_a_chain_of_ten_thousand_accounts_is_checked() -> None:
    accounts = [Account(id="a0"), *(Account(id=f"a{n}", parent=f"a{n - 1}") for n in range(1, 10_000))]
    assert list(findings(Catalog(accounts=tuple(reversed(accounts))), {})) == []


def test_references_to_broken_records_are_no_findings() -> None:
    plan = Plan(id="p", rate_card="r", charges=(Charge(id="c", meter="m"),))
    catalog = Catalog(plans=(plan,))
    assert len(list(findings(catalog, {}))) == 2
    assert list(findings(catalog, {"rate_cards": {"r"}, "meters": {"m"}})) == []
    assert list(findings(catalog, {}, complete=False)) == []


@given(price=strategies.usage_prices)
def test_a_price_is_the_same_after_it_was_stored(price: UsagePrice) -> None:
    version = RateCardVersion(version="1", effective_from=JANUARY, prices={"a": price})
    assert RateCardVersion.model_validate_json(version.model_dump_json()) == version
