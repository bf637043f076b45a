"""The auditor proved on examples small enough to compute by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import pytest

from .auditor import (
    ABSOLUTE_URI,
    URI_REFERENCE,
    Books,
    Catalog,
    as_decimal,
    audit,
    charge_for,
    exact,
    period_of,
    price_in,
    read_catalog,
    rounded,
    string_form,
)
from .generator import BAD, Events, JsonText, encode, generate, spell_number, spell_time, write_catalog

RECEIVED = datetime(2026, 10, 20, tzinfo=UTC)
HORIZON = timedelta(days=35)


def catalog(
    meters: list[dict[str, Any]] | None = None,
    prices: dict[str, Any] | None = None,
    versions: list[dict[str, Any]] | None = None,
    **subscription: str,
) -> Catalog:
    """One account `acme` (with the project `web`), subscribed to a plan that bills every meter `m`…"""
    meters = meters or [{"id": "m", "event_type": "call", "aggregation": "sum", "value": "n", "unit": "call"}]
    prices = prices or {"model": "per_unit", "unit_price": "0.5"}
    versions = versions or [{"version": "v1", "effective_from": "2020-01-01T00:00:00Z", "prices": {"c-m": prices}}]
    return {
        "meters": meters,
        "rate_cards": [{"id": "card", "currency": "EUR", "versions": versions}],
        "plans": [{"id": "plan", "rate_card": "card", "charges": [{"id": "c-m", "meter": "m"}]}],
        "accounts": [{"id": "acme"}, {"id": "web", "parent": "acme", "subjects": ["user:1"]}],
        "subscriptions": [
            {"id": "sub", "account": "acme", "plan": "plan", "start": "2020-01-01T00:00:00Z", **subscription}
        ],
    }


def record(
    id: str = "1",
    time: str = "2026-10-10T10:10:00Z",
    data: Any = None,
    subject: str = "acme",
    **attributes: Any,
) -> bytes:
    event = {
        "specversion": "1.0",
        "id": id,
        "source": "/s",
        "type": "call",
        "time": time,
        "subject": subject,
        "data": {"n": 1} if data is None else data,
        **attributes,
    }
    return json.dumps(event).encode()


def books(records: list[bytes], catalog: Catalog) -> Books:
    return audit(records, catalog, RECEIVED, HORIZON)


def reasons(records: list[bytes], catalog: Catalog) -> list[str]:
    return [reason for reason, _, _ in books(records, catalog).rejects]


def quantities(records: list[bytes], catalog: Catalog) -> list[tuple[Any, ...]]:
    return [
        (item["window_start"].hour, item["quantity_from"], item["quantity_to"], item["amount"])
        for item in books(records, catalog).line_items
    ]


def test_a_line_item_says_all_there_is_to_say() -> None:
    meter = {"id": "m", "event_type": "call", "aggregation": "sum", "value": "n", "unit": "x", "dimensions": ["a.b"]}
    world = catalog([meter], time_zone="Asia/Kolkata")
    data = {"n": "2.50", "a": {"b": 1e2}}
    assert books([record(data=data, subject="user:1")], world).line_items == [
        {
            "tenant_id": "default",
            "billing_account_id": "acme",
            "account_id": "web",
            "subscription_id": "sub",
            "charge_id": "c-m",
            "meter_id": "m",
            "rate_card_version": "v1",
            "dimensions": {"a.b": "100"},
            "period_start": datetime(2026, 9, 30, 18, 30, tzinfo=UTC),
            "period_end": datetime(2026, 10, 31, 18, 30, tzinfo=UTC),
            "window_start": datetime(2026, 10, 10, 10, tzinfo=UTC),
            "window_end": datetime(2026, 10, 10, 11, tzinfo=UTC),
            "quantity_from": 0,
            "quantity_to": Fraction(5, 2),
            "amount": Fraction(5, 4),
            "event_count": 1,
            "voided_count": 0,
            "revision": 1,
        }
    ]


# Values 5 and 2 in the hour of ten (arriving backwards), 7 at eleven, 5 at twelve.
FOUR = [("11:00:00", 7), ("10:59:59.999999", 2), ("12:00:00", 5), ("10:00:00", 5)]


@pytest.mark.parametrize(
    ("aggregation", "after_each_hour"),
    [
        ("sum", [7, 14, 19]),
        ("count", [2, 3, 4]),
        ("min", [2, 2, 2]),
        ("max", [5, 7, 7]),
        ("distinct", [2, 3, 3]),
        ("latest", [2, 7, 5]),
    ],
)
def test_quantities_of_each_aggregation(aggregation: str, after_each_hour: list[int]) -> None:
    meter = {"id": "m", "event_type": "call", "aggregation": aggregation, "unit": "x"}
    if aggregation != "count":
        meter["value"] = "n"
    records = [
        record(id=str(number), time=f"2026-10-10T{time}Z", data={"n": n}) for number, (time, n) in enumerate(FOUR)
    ]
    result = books(records, catalog([meter])).line_items
    assert [item["quantity_to"] for item in result] == after_each_hour
    assert [item["quantity_from"] for item in result] == [0, *after_each_hour[:-1]]
    assert [item["event_count"] for item in result] == [2, 1, 1]
    assert [item["revision"] for item in result] == [2, 3, 4]
    assert sum(item["amount"] for item in result) == Fraction(after_each_hour[-1], 2)


def test_latest_at_one_instant_is_decided_by_id_then_source() -> None:
    meter = {"id": "m", "event_type": "call", "aggregation": "latest", "value": "n", "unit": "x"}
    records = [
        record(id="b", source="/a", data={"n": 1}),
        record(id="b", source="/b", data={"n": 2}),
        record(id="B", source="/z", data={"n": 3}),
    ]
    assert quantities(records, catalog([meter])) == [(10, 0, 2, 1)]


def test_distinct_counts_string_forms() -> None:
    meter = {"id": "m", "event_type": "call", "aggregation": "distinct", "value": "n", "unit": "x"}
    values: list[Any] = [5, 5.0, "5", "5.0", "é", "e\u0301"]
    records = [record(id=str(number), data={"n": value}) for number, value in enumerate(values)]
    assert quantities(records, catalog([meter])) == [(10, 0, 4, 2)]


def test_two_accounts_of_one_hour_are_two_cells() -> None:
    records = [record(id="1", subject="web", data={"n": 2}), record(id="2", subject="acme", data={"n": 3})]
    items = books(records, catalog()).line_items
    assert [(item["account_id"], item["quantity_from"], item["quantity_to"]) for item in items] == [
        ("acme", 0, 3),
        ("web", 3, 5),
    ]


def test_dimensions_are_priced_apart() -> None:
    meter = {"id": "m", "event_type": "call", "aggregation": "sum", "value": "n", "unit": "x", "dimensions": ["d"]}
    data: list[dict[str, Any]] = [{"d": "1"}, {"d": 1.0}, {"d": True}, {"d": None}, {}, {"d": ""}, {"d": "true"}]
    records = [record(id=str(number), data={"n": 1, **one}) for number, one in enumerate(data)]
    items = books(records, catalog([meter])).line_items
    assert [(item["dimensions"]["d"], item["quantity_to"]) for item in items] == [("", 3), ("1", 2), ("true", 2)]


# Prices


TIERS = [
    {"up_to": "10", "unit_price": "2", "flat_fee": "100"},
    {"up_to": "20", "unit_price": "1"},
    {"unit_price": "0.1", "flat_fee": "7"},
]
THIRDS = [{"up_to": "1", "unit_price": "1"}, {"unit_price": "1"}]  # with per 3; each tier is rounded
# Half of the last digit and the fee's odd last digit are rounded together.
DUST = [{"unit_price": "0.000000000000000001", "flat_fee": "0.000000000000000001"}]


UNITS_THEN_PACKAGES = [{"up_to": "100", "unit_price": "0.10"}, {"package_size": "50", "package_price": "4"}]
STEPS = [{"up_to": "10", "price": "20"}, {"price": "50"}]
SHARES = [{"up_to": "1000", "percent": "2", "flat_fee": "1"}, {"basis_points": "50"}]
LIMITED = {"model": "per_unit", "unit_price": "0.10", "included": "100", "minimum": "5", "maximum": "20"}


@pytest.mark.parametrize(
    ("price", "quantity", "charge"),
    [
        ({"model": "per_unit", "unit_price": "0.3"}, "7", "2.1"),
        ({"model": "per_unit", "unit_price": "1", "per": "3"}, "1", "0.333333333333333333"),
        ({"model": "per_unit", "unit_price": "1", "per": "3"}, "2", "0.666666666666666667"),
        ({"model": "per_unit", "unit_price": "0"}, "0", "0"),
        ({"model": "graduated", "tiers": TIERS}, "0", "0"),
        ({"model": "graduated", "tiers": TIERS, "first_tier_flat_at_zero": "true"}, "0", "100"),
        ({"model": "graduated", "tiers": TIERS}, "0.5", "101"),
        ({"model": "graduated", "tiers": TIERS}, "10", "120"),
        ({"model": "graduated", "tiers": TIERS}, "11", "121"),
        ({"model": "graduated", "tiers": TIERS}, "20", "130"),
        ({"model": "graduated", "tiers": TIERS}, "20.1", "137.01"),
        ({"model": "graduated", "tiers": TIERS, "per": "10"}, "15", "102.5"),
        ({"model": "graduated", "tiers": THIRDS, "per": "3"}, "2", "0.666666666666666666"),
        ({"model": "graduated", "tiers": DUST}, "0.5", "0.000000000000000002"),
        ({"model": "volume", "tiers": DUST}, "0.5", "0.000000000000000002"),
        ({"model": "volume", "tiers": TIERS}, "0", "0"),
        ({"model": "volume", "tiers": TIERS, "first_tier_flat_at_zero": "true"}, "0", "100"),
        ({"model": "volume", "tiers": TIERS}, "10", "120"),
        ({"model": "volume", "tiers": TIERS}, "10.5", "10.5"),
        ({"model": "volume", "tiers": TIERS}, "20", "20"),
        ({"model": "volume", "tiers": TIERS}, "30", "10"),
        ({"model": "package", "package_price": "5", "package_size": "10"}, "0", "0"),
        ({"model": "package", "package_price": "5", "package_size": "10"}, "10", "5"),
        ({"model": "package", "package_price": "5", "package_size": "10"}, "10.1", "10"),
        ({"model": "package", "package_price": "5", "package_size": "10", "round": "down"}, "19.9", "5"),
        ({"model": "package", "package_price": "5", "package_size": "10", "free_units": "8"}, "8", "0"),
        ({"model": "package", "package_price": "5", "package_size": "10", "free_units": "8"}, "18.5", "10"),
        ({"model": "package", "package_price": "5", "package_size": "10", "minimum_packages": "3"}, "0", "15"),
        ({"model": "package", "package_price": "5", "package_size": "10", "minimum_packages": "3"}, "31", "20"),
        ({"model": "graduated", "tiers": UNITS_THEN_PACKAGES}, "100", "10"),
        ({"model": "graduated", "tiers": UNITS_THEN_PACKAGES}, "160", "18"),
        ({"model": "volume", "tiers": UNITS_THEN_PACKAGES}, "160", "16"),
        ({"model": "stairstep", "steps": STEPS}, "0", "0"),
        ({"model": "stairstep", "steps": STEPS, "first_step_at_zero": "true"}, "0", "20"),
        ({"model": "stairstep", "steps": STEPS}, "10", "20"),
        ({"model": "stairstep", "steps": STEPS}, "10.5", "50"),
        ({"model": "percentage", "percent": "2.9"}, "250.50", "7.2645"),
        ({"model": "percentage", "basis_points": "25"}, "1000", "2.5"),
        ({"model": "graduated_percentage", "tiers": SHARES}, "0", "0"),
        ({"model": "graduated_percentage", "tiers": SHARES}, "3000", "31"),
        ({"model": "graduated_percentage", "tiers": SHARES, "first_tier_flat_at_zero": "true"}, "0", "1"),
        ({"model": "dynamic"}, "3", "3"),
        ({"model": "dynamic", "multiplier": "1.2"}, "3", "3.6"),
        (LIMITED, "0", "5"),
        (LIMITED, "80", "5"),
        (LIMITED, "170", "7"),
        (LIMITED, "400", "20"),
    ],
)
def test_charge(price: dict[str, Any], quantity: str, charge: str) -> None:
    assert charge_for(Fraction(quantity), 0, price) == Fraction(charge)


def test_a_fee_for_each_event() -> None:
    assert charge_for(Fraction(100), 3, {"model": "percentage", "percent": "2.9", "fee_per_event": "0.30"}) == Fraction(
        "3.80"
    )


def test_a_matrix_has_the_price_of_the_first_row_that_fits() -> None:
    matrix = {"rows": [{"when": {"m": "a", "r": ""}, "price": {"p": "1"}}, {"when": {"m": "a"}, "price": {"p": "2"}}]}
    assert price_in(matrix, {"m": "a", "r": ""}) == {"p": "1"}
    assert price_in(matrix, {"m": "a", "r": "eu"}) == {"p": "2"}
    assert price_in(matrix, {"m": "b", "r": "eu"}) is None
    assert price_in({**matrix, "default": {"p": "3"}}, {"m": "b", "r": "eu"}) == {"p": "3"}


@pytest.mark.parametrize(
    ("value", "result"),
    [("0.5", 0), ("1.5", 2), ("2.5", 2), ("2.500000001", 3), ("2.4", 2), ("-0.5", 0), ("-1.5", -2), ("-2.6", -3)],
)
def test_rounding_is_half_even_at_the_eighteenth_decimal(value: str, result: int) -> None:
    assert rounded(Fraction(value) / 10**18) == Fraction(result, 10**18)


def test_a_volume_bound_that_is_crossed_gives_a_negative_amount() -> None:
    tiers = [{"up_to": "10", "unit_price": "2"}, {"unit_price": "1"}]
    records = [record(id=str(hour), time=f"2026-10-10T{hour:02}:00:00Z", data={"n": 5}) for hour in range(1, 4)]
    assert quantities(records, catalog(prices={"model": "volume", "tiers": tiers})) == [
        (1, 0, 5, 10),
        (2, 5, 10, 10),
        (3, 10, 15, -5),
    ]


def test_amounts_add_up_to_the_price_of_the_total_to_the_last_digit() -> None:
    price = {"model": "per_unit", "unit_price": "1", "per": "3"}
    records = [record(id=str(hour), time=f"2026-10-10T{hour:02}:00:00Z") for hour in range(5)]
    amounts = [amount for _, _, _, amount in quantities(records, catalog(prices=price))]
    thirds = ["0.333333333333333333", "0.333333333333333334", "0.333333333333333333"]
    assert amounts == [Fraction(amount) for amount in thirds + thirds[:2]]
    assert sum(amounts) == Fraction("1.666666666666666667")


def test_a_fee_due_at_zero_usage_is_in_the_first_line_item_only() -> None:
    price = {"model": "package", "package_price": "5", "package_size": "10", "minimum_packages": "2"}
    records = [
        record(id="1", time="2026-10-10T01:00:00Z", data={"n": 0}),
        record(id="2", time="2026-10-10T02:00:00Z", data={"n": 21}),
    ]
    assert quantities(records, catalog(prices=price)) == [(1, 0, 0, 10), (2, 0, 21, 5)]


# Attribution, periods and windows


def test_a_window_is_cut_where_the_period_begins() -> None:
    records = [
        record(id="1", time="2026-09-30T18:29:59.999999Z"),
        record(id="2", time="2026-09-30T18:30:00Z"),
        record(id="3", time="2026-10-01T00:00:00+05:30"),
    ]
    items = books(records, catalog(time_zone="Asia/Kolkata")).line_items
    at = [datetime(2026, 9, 30, 18, 0, tzinfo=UTC) + timedelta(minutes=minutes) for minutes in (0, 30, 60)]
    assert [(item["window_start"], item["window_end"], item["quantity_to"]) for item in items] == [
        (at[0], at[1], 1),
        (at[1], at[2], 2),
    ]
    assert items[0]["period_end"] == items[1]["period_start"] == at[1]


@pytest.mark.parametrize(
    ("time", "zone", "anchor", "start", "end"),
    [
        ("2026-10-10T00:00", "UTC", 1, "2026-10-01T00:00", "2026-11-01T00:00"),
        ("2026-03-31T00:00", "UTC", 31, "2026-03-31T00:00", "2026-04-30T00:00"),
        ("2026-02-28T00:00", "UTC", 30, "2026-02-28T00:00", "2026-03-30T00:00"),
        ("2024-02-28T23:59", "UTC", 31, "2024-01-31T00:00", "2024-02-29T00:00"),
        ("2026-03-08T12:00", "America/New_York", 8, "2026-03-08T05:00", "2026-04-08T04:00"),
        ("2026-10-04T12:00", "Australia/Lord_Howe", 4, "2026-10-03T13:30", "2026-11-03T13:00"),
        # The clock jumped from 00:00 to 01:00 (-03 to -02).
        ("2018-11-04T03:00", "America/Sao_Paulo", 4, "2018-11-04T03:00", "2018-12-04T02:00"),
        ("2018-11-04T02:59", "America/Sao_Paulo", 4, "2018-10-04T03:00", "2018-11-04T03:00"),
        # Midnight came twice: the clock went from 01:00 back to 00:00 (-04 to -05).
        ("2024-11-03T04:30", "America/Havana", 3, "2024-11-03T04:00", "2024-12-03T05:00"),
        # And from 00:01 back to 23:01: the day before is seen again inside the new period.
        ("2010-11-07T03:00", "America/St_Johns", 7, "2010-11-07T02:30", "2010-12-07T03:30"),
        # A day that Samoa left out.
        ("2011-12-30T10:00", "Pacific/Apia", 30, "2011-12-30T10:00", "2012-01-29T10:00"),
        ("2000-02-29T12:00", "Pacific/Kiritimati", 29, "2000-02-28T10:00", "2000-03-28T10:00"),
    ],
)
def test_periods(time: str, zone: str, anchor: int, start: str, end: str) -> None:
    moment, *period = (datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (time, start, end))
    assert period_of(moment, {"time_zone": zone, "anchor_day": str(anchor)}) == tuple(period)


def test_each_version_counts_its_own_usage() -> None:
    tiers = [{"up_to": "1", "unit_price": "0"}, {"unit_price": "1"}]
    first, second = {"model": "graduated", "tiers": tiers}, {"model": "per_unit", "unit_price": "3"}
    versions = [
        {"version": "v1", "effective_from": "2020-01-01T00:00:00Z", "prices": {"c-m": first}},
        {"version": "v2", "effective_from": "2026-10-10T10:30:00Z", "prices": {"c-m": second}},
    ]
    times = ["10:00:00", "10:29:59.999999", "10:30:00"]
    records = [record(id=time, time=f"2026-10-10T{time}Z") for time in times]
    items = books(records, catalog(versions=versions)).line_items
    names = ("rate_card_version", "quantity_from", "quantity_to", "amount")
    assert [tuple(item[name] for name in names) for item in items] == [("v1", 0, 2, 1), ("v2", 0, 1, 3)]


@pytest.mark.parametrize(
    "world",
    [
        pytest.param(catalog(start="2026-10-10T10:10:01Z"), id="before the subscription"),
        pytest.param(catalog(end="2026-10-10T10:10:00Z"), id="at its end"),
        pytest.param(
            catalog(versions=[{"version": "v", "effective_from": "2026-10-11T00:00:00Z", "prices": {"c-m": {}}}]),
            id="before the first version",
        ),
        pytest.param(
            catalog(versions=[{"version": "v", "effective_from": "2020-01-01T00:00:00Z", "prices": {"other": {}}}]),
            id="no price for the charge",
        ),
    ],
)
def test_usage_without_a_price_is_counted_in_the_calendar_month(world: Catalog) -> None:
    world["subscriptions"][0].update(time_zone="Asia/Kolkata", anchor_day="5")
    [item] = books([record(data={"n": 4})], world).line_items
    assert (item["subscription_id"], item["charge_id"], item["rate_card_version"]) == ("", "", "")
    assert (item["billing_account_id"], item["quantity_to"], item["amount"]) == ("acme", 4, 0)
    assert item["period_start"] == datetime(2026, 10, 1, tzinfo=UTC)
    assert item["period_end"] == datetime(2026, 11, 1, tzinfo=UTC)


def test_the_nearest_account_with_a_charge_on_the_meter_subscribes() -> None:
    world = catalog()
    world["plans"].append({"id": "other", "rate_card": "card", "charges": [{"id": "c-x", "meter": "x"}]})
    below = {"id": "below", "account": "web", "plan": "other", "start": "2020-01-01T00:00:00Z"}
    world["subscriptions"].append(below)
    assert [item["subscription_id"] for item in books([record(subject="web")], world).line_items] == ["sub"]
    below["plan"] = "plan"
    assert [item["subscription_id"] for item in books([record(subject="web")], world).line_items] == ["below"]


def test_the_nearest_billed_account_pays() -> None:
    world = catalog()
    world["accounts"].append({"id": "deep", "parent": "web"})
    assert books([record(subject="deep")], world).line_items[0]["billing_account_id"] == "acme"
    world["accounts"][1]["billed"] = "true"
    assert books([record(subject="deep")], world).line_items[0]["billing_account_id"] == "web"


def test_one_subject_of_two_tenants_is_two_accounts() -> None:
    world = catalog()
    world["accounts"].append({"id": "theirs", "tenant": "t2", "subjects": ["user:1"]})
    items = books([record(subject="user:1", tenantid=tenant) for tenant in ("", "default", "t2")], world).line_items
    assert [(item["tenant_id"], item["account_id"], item["event_count"]) for item in items] == [
        ("default", "web", 1),
        ("t2", "theirs", 1),
    ]


# Identity


def test_equal_content_is_a_duplicate_however_it_is_written() -> None:
    same = [
        record(),
        record(),
        record(data={"n": "1.0", "more": 1}, traceparent="x", tenantid="default"),
        record(time="2026-10-10T12:10:00.0000009+02:00"),
    ]
    result = books(same, catalog())
    assert (len(result.accepted), result.duplicates, result.rejects) == (1, 3, [])
    assert result.accepted[0].payload == same[0]


@pytest.mark.parametrize(
    "changed",
    [
        record(data={"n": 2}),
        record(time="2026-10-10T10:10:00.000001Z"),
        record(subject="web"),
        record(data={"n": 1, "d": "x"}),
    ],
)
def test_another_content_is_a_conflict(changed: bytes) -> None:
    meter = {"id": "m", "event_type": "call", "aggregation": "sum", "value": "n", "unit": "x", "dimensions": ["d"]}
    result = books([record(), changed, changed, record()], catalog([meter]))
    assert result.rejects == [("conflict", "deduplicate", changed)] * 2
    assert (len(result.accepted), result.duplicates) == (1, 1)


def test_another_source_tenant_or_day_is_another_event() -> None:
    world = catalog()
    world["accounts"].append({"id": "acme2", "tenant": "t2", "subjects": ["acme"]})
    records = [record(), record(source="/t"), record(tenantid="t2"), record(time="2026-10-11T00:00:00Z")]
    assert len(books(records, world).accepted) == 4


def test_a_rejected_event_takes_no_identity() -> None:
    result = books([record(subject="nobody"), record()], catalog())
    assert result.rejects == [("unknown_subject", "attribute", record(subject="nobody"))]
    assert len(result.accepted) == 1


# Rejects: one reason a line; the generator's many more are below.


@pytest.mark.parametrize(
    ("reason", "raw"),
    [
        ("too_large", record() + b" " * (1_048_577 - len(record()))),
        ("malformed", b""),
        ("malformed", b"\xef\xbb\xbf" + record()),
        ("malformed", b"[" * 100_000),
        ("malformed", record(data={"n": float("nan")})),
        ("malformed", record(subject="\udc80").replace(b"\\udc80", b"\x80")),
        ("malformed", record(data={"n": 1, "x": [[[0]]]}).replace(b"[[[0]]]", b"[" * 63 + b"]" * 63)),
        ("malformed", record(data={"n": 10**4000})),
        ("missing_field", record(id="")),
        ("missing_field", record(subject="", time="never", Upper=1)),
        ("missing_field", b"{}"),
        ("bad_attribute", record(specversion="1")),
        ("bad_attribute", record(time="never", ext=2**31)),
        ("bad_attribute", record(subject="\ud800")),
        ("bad_time", record(time="2026-10-10 10:10:00Z", type="unknown")),
        ("bad_time", record(time="2016-12-31T23:59:60Z")),
        ("too_old", record(time="2026-09-14T23:59:59.9999999Z", type="unknown")),
        ("in_future", record(time="2026-10-20T01:00:00.000001Z")),
        ("unknown_type", record(type="Call", data={})),
        ("bad_quantity", record(data={"n": "1,5", "d": []})),
        ("bad_dimension", record(data={"n": 1, "d": []}, subject="nobody")),
        ("unknown_subject", record(subject="ACME")),
    ],
)
def test_a_record_is_rejected_with_its_first_reason(reason: str, raw: bytes) -> None:
    meter = {"id": "m", "event_type": "call", "aggregation": "sum", "value": "n", "unit": "x", "dimensions": ["d"]}
    stage = "attribute" if reason == "unknown_subject" else "validate"
    assert books([raw], catalog([meter])).rejects == [(reason, stage, raw)]


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\r\n\t " + record() + b" \n", id="white space around"),
        pytest.param(record().ljust(1_048_576), id="as large as can be"),
        pytest.param(record(data={"n": 1, "x": [[]]}).replace(b"[[]]", b"[" * 62 + b"]" * 62), id="64 levels"),
        pytest.param(record(data={"n": 1, "x": 10**3999}), id="a number of 4000 characters"),
        pytest.param(record().replace(b'"n": 1', b'"n": "x", "n": -0.0e9999999999'), id="the last of two keys"),
        pytest.param(record(Upper=None, data_base64=None, tenantid=None), id="null is absent"),
        pytest.param(record(data={"n": "99999999999999999999.999999999999000"}), id="the greatest quantity"),
        pytest.param(record(data={"n": "1e-12"}), id="the least quantity"),
        pytest.param(record(time="2026-09-15T00:00:00Z"), id="the oldest"),
        pytest.param(record(time="2026-10-20t01:00:00z"), id="the newest"),
        pytest.param(record(ext=-(2**31), other=True, empty=""), id="extensions"),
        pytest.param(record(data={"n": 1, "x": "\ud800", "": [None]}), id="other data may hold anything"),
        pytest.param(record(id="🦜" * 512, datacontenttype="Application/X+JSON ; a"), id="attributes"),
    ],
)
def test_what_only_looks_bad_is_accepted(raw: bytes) -> None:
    assert reasons([raw], catalog()) == []


def test_without_a_horizon_nothing_is_too_old() -> None:
    assert audit([record(time="1970-01-01T00:00:00Z")], catalog(), RECEIVED, None).rejects == []


@pytest.mark.parametrize(
    ("text", "reference", "absolute"),
    [
        ("https://user:pw@example.com:443/a/b?c=d/?#e", True, False),
        ("urn:uuid:6e8bc430", True, True),
        ("mailto:a@b", True, True),
        ("", True, False),
        ("/a//b", True, False),
        ("//host", True, False),
        ("a/b:c", True, False),
        ("a:b", True, True),
        ("x:", True, True),
        ("1a:b", False, False),
        ("http://[::ffff:1.2.3.4]/", True, True),
        ("http://[1:2:3:4:5:6:7::]", True, True),
        ("http://[1::2::3]", False, False),
        ("http://[1:2:3:4:5:6:7]", False, False),
        ("http://[v7.x:y]", True, True),
        ("http://a b", False, False),
        ("a%2", False, False),
        ("a\n", False, False),
        ("#a#b", False, False),
    ],
)
def test_uris(text: str, reference: bool, absolute: bool) -> None:
    assert bool(URI_REFERENCE.fullmatch(text)) is reference
    assert bool(ABSOLUTE_URI.fullmatch(text)) is absolute


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("1.50", "1.5"),
        ("1e2", "100"),
        ("-0", "0"),
        ("-0.0e5", "0"),
        ("-12.5E-2", "-0.125"),
        ("0.001e3", "1"),
        ("100", "100"),
        ("1e99", "1" + "0" * 99),
        ("1e-100", "0." + "0" * 99 + "1"),
        ("9" * 100, "9" * 100),
    ],
)
def test_string_form(text: str, form: str) -> None:
    value = exact(text)
    assert value is not None
    assert string_form(value) == form


@pytest.mark.parametrize("text", ["1e100", "-1e100", "1e-101", "1" + "0" * 100, "1e" + "9" * 3990])
def test_numbers_beyond_a_hundred_digits_have_no_value(text: str) -> None:
    assert exact(text) is None


def test_a_key_with_an_amount_too_large_for_its_column_is_rejected() -> None:
    prices = {"model": "per_unit", "unit_price": "100000000000000000"}
    assert quantities([record(data={"n": 999})], catalog(prices=prices)) == [(10, 0, 999, 999 * 10**17)]
    assert books([record(data={"n": 1000})], catalog(prices=prices)).rejects == [("quantity_overflow", "rate", b"")]


def test_a_decimal_is_exact_or_an_error() -> None:
    assert as_decimal(Fraction(-5, 4), 18) == Decimal("-1.25")
    with pytest.raises(AssertionError):
        as_decimal(Fraction(1, 3), 18)


# The generator


@pytest.mark.parametrize("reason", list(BAD))
def test_the_generators_bad_records_have_the_reason_they_say(reason: str) -> None:
    for seed in range(2 if reason == "too_large" else 60):
        world = generate(seed, events=0)
        rng = Random(seed)
        day = world.received - timedelta(days=5)
        events = Events(rng, world.catalog, day, world.received, world.horizon)
        for _ in range(5):
            raw = events.bad_record(reason)
            if raw is not None:
                rejects = audit([raw], world.catalog, world.received, world.horizon).rejects
                assert [rejected for rejected, _, _ in rejects] == [reason], raw[:2000]


def test_the_generators_good_records_are_accepted() -> None:
    for seed in range(40):
        world = generate(seed, events=60, bad=0, conflicts=False)
        assert books_of(world.records, seed).rejects == []


def test_every_record_ends_in_one_place_and_every_event_in_one_line_item_per_meter() -> None:
    for seed in range(40):
        world = generate(seed, events=100)
        result = books_of(world.records, seed)
        assert len(result.accepted) + result.duplicates + len(result.rejects) == len(world.records)
        counted = sum(item["event_count"] for item in result.line_items)
        assert counted == sum(len(event.readings) for event in result.accepted)
        for item in result.line_items:
            as_decimal(item["amount"], 18)
            as_decimal(item["quantity_to"], 12)
            assert item["period_start"] <= item["window_start"] < item["window_end"] <= item["period_end"]


def test_the_order_of_arrival_changes_nothing_where_there_is_no_conflict() -> None:
    for seed in range(20):
        world = generate(seed, events=80, conflicts=False)
        shuffled = Random(seed).sample(world.records, len(world.records))
        before, after = books_of(world.records, seed), books_of(shuffled, seed)
        assert before.line_items == after.line_items
        assert before.duplicates == after.duplicates
        assert sorted(before.rejects) == sorted(after.rejects)


def books_of(records: list[bytes], seed: int) -> Books:
    world = generate(seed, events=0)
    return audit(records, world.catalog, world.received, world.horizon)


def test_one_seed_is_one_world() -> None:
    assert generate(7) == generate(7)
    assert generate(7) != generate(8)


def test_no_record_breaks_a_file_of_lines() -> None:
    for seed in range(20):
        assert not any(b"\n" in raw or raw.endswith(b"\r") or not raw.strip() for raw in generate(seed).records)


def test_every_kind_of_thing_happens() -> None:
    seen = set()
    models = set()
    for seed in range(30):
        world = generate(seed)
        result = books_of(world.records, seed)
        seen |= {reason for reason, _, _ in result.rejects}
        seen |= {"negative" for item in result.line_items if item["amount"] < 0}
        seen |= {"unpriced" if item["charge_id"] == "" else "priced" for item in result.line_items}
        seen |= {"cut" for item in result.line_items if item["window_end"] - item["window_start"] < timedelta(hours=1)}
        seen |= {"backwards" for item in result.line_items if item["quantity_to"] < item["quantity_from"]}
        for card in world.catalog["rate_cards"]:
            models |= {price["model"] for version in card["versions"] for price in version["prices"].values()}
    assert seen == {*BAD, "conflict", "negative", "unpriced", "priced", "cut", "backwards"}
    assert models == {"per_unit", "graduated", "volume", "package", "fixed"}


def test_a_spelling_does_not_change_what_is_said() -> None:
    rng = Random(1)
    for _ in range(500):
        number = Decimal(rng.randint(-(10**9), 10**9)).scaleb(rng.randint(-12, 12))
        assert exact(spell_number(rng, number)) == Fraction(number)
        moment = RECEIVED + timedelta(microseconds=rng.randint(-(10**12), 0))
        raw = encode(rng, {**json.loads(record()), "time": spell_time(rng, moment), "data": {"n": JsonText("1")}})
        assert audit([raw], catalog(), RECEIVED, None).accepted[0].time == moment


def test_a_catalog_is_read_as_it_was_written(tmp_path: Path) -> None:
    for seed in range(20):
        world = generate(seed, events=0)
        write_catalog(world.catalog, tmp_path / str(seed))
        assert read_catalog(tmp_path / str(seed)) == world.catalog


def test_generated_catalogs_have_no_problems(tmp_path: Path) -> None:
    catalog_files = pytest.importorskip("meterline.schemas.catalog_files")
    for seed in range(200):
        world = generate(seed, events=0)
        write_catalog(world.catalog, tmp_path / str(seed))
        loaded = catalog_files.load_catalog(tmp_path / str(seed))
        assert len(loaded.subscriptions) == len(world.catalog["subscriptions"])
