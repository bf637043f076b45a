"""Amounts in another currency: exact, rounded once, by the rate in force."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from meterline.schemas.catalog import Catalog
from meterline.schemas.records import RatingKey
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.billing.exchange import ExchangeError
from meterline.transforms.rules.fees import Billed, BilledKey
from meterline.transforms.rules.invoicing import Statement, targets_of
from meterline.transforms.rules.money import RoundingMode

JULY = (datetime(2026, 7, 1, tzinfo=UTC), datetime(2026, 8, 1, tzinfo=UTC))


def book(rate: str, target: str, since: str = "2026-01-01T00:00:00Z", rates: bool = True) -> Directory:
    price = {"model": "per_unit", "unit_price": "1"}
    versions = [{"version": "v", "effective_from": "2026-01-01T00:00:00Z", "prices": {"calls": price}}]
    catalog: dict[str, Any] = {
        "meters": [{"id": "calls", "event_type": "call", "aggregation": "count", "unit": "call"}],
        "custom_units": [{"id": "credits"}],
        "rate_cards": [{"id": "card", "currency": "credits", "versions": versions}],
        "plans": [{"id": "plan", "rate_card": "card", "charges": [{"id": "calls", "meter": "calls"}]}],
        "accounts": [{"id": "acme"}],
        "subscriptions": [{"id": "s", "account": "acme", "plan": "plan", "start": "2026-01-01T00:00:00Z"}],
    }
    if rates:
        dated = [{"effective_from": since, "rate": rate}]
        catalog["exchange_rates"] = [{"id": "x", "from": "credits", "to": target, "rates": dated}]
    return Directory(Catalog.model_validate(catalog))


def converted(
    parts: list[str], rate: str, target: str = "EUR", rounding: RoundingMode = "half_even", **others: Any
) -> list[tuple[Decimal, Decimal, dict[str, str]]]:
    """By account: what is shown as exact, the rounded amount and the terms."""
    key = RatingKey("default", "acme", "s", "calls", "calls", "v", *JULY, ())
    due = {
        BilledKey(key, f"team-{number}"): Billed(Decimal(1), Decimal(part), "credits")
        for number, part in enumerate(parts)
    }
    statement = Statement("default", "acme", "2026-07", target, due, {}, 0)
    targets = targets_of(statement, book(rate, target, **others), rounding)
    return [(one.exact, one.amount, msgspec.json.decode(one.terms)) for _, one in sorted(targets.items())]


@pytest.mark.parametrize(
    ("of", "rate", "target", "amount"),
    [
        pytest.param("12.3456", "0.92", "EUR", "11.36", id="twice two decimals"),
        pytest.param("1234.5", "151.435", "JPY", "186947", id="no decimals"),
        pytest.param("1234.5", "0.30725", "KWD", "379.300", id="three decimals"),
        pytest.param("388.5", "0.01", "EUR", "3.88", id="a half goes to the even neighbour"),
        pytest.param("5.00000000000000001", "0.001", "EUR", "0.01", id="more than a half by what 18 decimals lose"),
        pytest.param("-12.3456", "0.92", "EUR", "-11.36", id="a credit mirrors its charge"),
        pytest.param("1", "0.000000000000000001", "EUR", "0", id="the smallest rate"),
        pytest.param("0", "0.92", "EUR", "0", id="nothing"),
    ],
)
def test_a_charge_is_rounded_once(of: str, rate: str, target: str, amount: str) -> None:
    ((_, found, terms),) = converted([of], rate, target)
    assert found == Decimal(amount)
    assert terms == {"from": "credits", "of": of, "rate": rate, "at": "2026-07-31T23:59:59Z"}


def test_the_accounts_of_a_key_share_its_rounding() -> None:
    found = converted(["0.3", "0.3", "0.4"], "0.015")
    assert [amount for _, amount, _ in found] == [Decimal("0.01"), Decimal("0.00"), Decimal("0.01")]
    assert {Decimal(terms["total"]) for _, _, terms in found} == {Decimal(1)}


def test_half_up_rounds_a_converted_half_up() -> None:
    ((_, found, _),) = converted(["388.5"], "0.01", rounding="half_up")
    assert found == Decimal("3.89")


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"since": "2026-08-01T00:00:00Z"}, "no exchange rate from credits to EUR is in force at 2026-07-31T23:59:59Z"),
        ({"rates": False}, "no exchange rate from credits to EUR is in force at"),
        ({"target": "credits"}, "it is not said in which currency they are invoiced"),
    ],
)
def test_without_a_rate_nothing_is_converted(others: dict[str, Any], message: str) -> None:
    target = others.pop("target", "EUR")
    if target == "credits":
        others["rates"] = False
    with pytest.raises(ExchangeError, match=message):
        converted(["1"], "1", target, **others)


def test_what_gets_too_large_is_refused() -> None:
    with pytest.raises(ExchangeError, match="too large once it is converted"):
        converted(["99999999999999999999"], "10")
