"""Which records are events: docs/rules.md, section 1, case by case and against the auditor."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.schemas.event import (
    Event,
    EventError,
    Number,
    Reason,
    dimension_text,
    distinct_text,
    exact_quantity,
    parse_event,
    parse_json,
    parse_time,
)
from tests import strategies
from tests.simulation import auditor
from tests.simulation.generator import BAD, Events, generate

GOOD: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1",
    "source": "/s",
    "type": "call",
    "time": "2026-10-01T12:30:00Z",
    "subject": "acme",
    "data": {"n": 1},
}


def record(**attributes: Any) -> bytes:
    return json.dumps({**GOOD, **attributes}).encode()


def reason_of(raw: bytes) -> str:
    try:
        parse_event(raw)
    except EventError as error:
        return error.reason
    return ""


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("value", [None, ""])
def test_a_required_attribute_that_is_null_or_empty_is_missing(name: str, value: str | None) -> None:
    assert reason_of(record(**{name: value})) == Reason.MISSING_FIELD
    assert reason_of(record(**{name: value}, Bad=[], id2=[])) == Reason.MISSING_FIELD


def test_an_absent_attribute_is_named() -> None:
    with pytest.raises(EventError, match=r"^subject: is absent or null$"):
        parse_event(record(subject=None))
    with pytest.raises(EventError, match=r"^data: is an empty string$"):
        parse_event(record(data=""))


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        pytest.param({"specversion": "0.3"}, "bad_attribute", id="another version"),
        pytest.param({"data": []}, "bad_attribute", id="data is no object"),
        pytest.param({"data_base64": "e30="}, "bad_attribute", id="data in base64"),
        pytest.param({"data_base64": None}, "", id="a null is absent, whatever its name"),
        pytest.param({"Upper": None}, "", id="also a name that is no attribute's"),
        pytest.param({"datacontenttype": ""}, "bad_attribute", id="an empty content type"),
        pytest.param({"datacontenttype": "text/plain"}, "bad_attribute", id="data is not JSON"),
        pytest.param({"datacontenttype": "a'%*`|~/x'+json ;x"}, "", id="every character of a token"),
        pytest.param({"datacontenttype": "\tApplication/JSON\t"}, "bad_attribute", id="a tab is a control character"),
        pytest.param({"datacontenttype": " Application/JSON "}, "", id="spaces and case do not matter"),
        pytest.param({"datacontenttype": "application/jſon"}, "bad_attribute", id="a long s is no s"),
        pytest.param({"dataschema": ""}, "bad_attribute", id="an empty schema"),
        pytest.param({"dataschema": "urn:x#a"}, "bad_attribute", id="a schema with a fragment"),
        pytest.param({"dataschema": "/x"}, "bad_attribute", id="a schema that is not absolute"),
        pytest.param({"dataschema": "a:"}, "", id="the shortest absolute URI"),
        pytest.param({"tenantid": ""}, "", id="an empty tenant is the default one"),
        pytest.param({"tenantid": "x" * 101}, "bad_attribute", id="a long tenant"),
        pytest.param({"tenantid": 5}, "bad_attribute", id="a tenant that is a number"),
        pytest.param({"ext": 2**31}, "bad_attribute", id="an extension beyond 32 bits"),
        pytest.param({"ext": -(2**31)}, "", id="the least integer"),
        pytest.param({"ext": "\x7f"}, "bad_attribute", id="a control character"),
        pytest.param({"id": "\ufdd0"}, "bad_attribute", id="a noncharacter"),
        pytest.param({"data": {"n": 1, "\ud800": "\ud800"}}, "", id="properties that nobody reads hold anything"),
        pytest.param({"time": "2026-02-31T00:00:00Z"}, "bad_time", id="a day that does not exist"),
        pytest.param({"time": "2026-02-31T00:00:00Z", "ext": []}, "bad_attribute", id="attributes before the time"),
    ],
)
def test_attributes(attributes: dict[str, Any], reason: str) -> None:
    assert reason_of(record(**attributes)) == reason


@pytest.mark.parametrize(
    "source",
    [
        *("//[::1", "//[::1]x", "//h:1a/", "//u@v@w", ":", "[", "1:a", "//[1:2:3:4:5:6:7:8:9]", "//[::1.2.3.04]"),
        *("//[::g]", "//[::1%25eth]", "//[v.x]", "//[]", "a b", "ü", "%", "%zz", "#a#b", "a?b c", "::1", "//h/["),
        *("?[", "a\\b"),
    ],
)
def test_what_is_no_uri_reference(source: str) -> None:
    assert not auditor.URI_REFERENCE.fullmatch(source)
    assert reason_of(record(source=source)) == Reason.BAD_ATTRIBUTE


@pytest.mark.parametrize(
    "source",
    [
        *("/", "?", "#", "a", "./a:b", "//", "//h:/", "//[::]:1/x", "//[v1.x:]", "//[1:2:3:4:5:6:7::]", "urn:a:b"),
        *("a://", "//u:p@h:1?q/?#f/?", "%20", "a//b", "x:/a", "//1.2.3.4", "//[::ffff:1.2.3.4]", "/a:b@c", "s:?q"),
    ],
)
def test_what_is_a_uri_reference(source: str) -> None:
    assert auditor.URI_REFERENCE.fullmatch(source)
    assert reason_of(record(source=source)) == ""


@given(strategies.near_uris)
def test_uris_are_those_of_the_grammar(text: str) -> None:
    assert (reason_of(record(source=text)) == "") == bool(auditor.URI_REFERENCE.fullmatch(text))
    assert (reason_of(record(dataschema=text)) == "") == bool(auditor.ABSOLUTE_URI.fullmatch(text))


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:00.0000019999z", 1),
        ("1970-01-01T01:00:00.5+01:00", 500_000),
        ("1969-12-31T23:59:00-00:01", 0),
        ("2199-12-31T23:59:59.999999Z", 7_258_118_399_999_999),
    ],
)
def test_times(text: str, micros: int) -> None:
    assert parse_time(text) == micros


@given(strategies.near_times)
def test_times_are_those_of_the_auditor(text: str) -> None:
    try:
        expected: int | None = (auditor.time_of(text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    except auditor.Rejected:
        expected = None
    try:
        found: int | None = parse_time(text)
    except EventError:
        found = None
    assert found == expected


@given(strategies.near_numbers, st.sampled_from([str, Number]))
def test_values_are_those_of_the_auditor(text: str, kind: type) -> None:
    if kind is Number and not auditor.JSON_NUMBER.fullmatch(text):
        return
    ours, theirs = kind(text), auditor.Number(text) if kind is Number else text
    data = {"a": theirs}
    for aggregation, parse in (("sum", exact_quantity), ("distinct", distinct_text)):
        try:
            expected: Any = auditor.value_of({"aggregation": aggregation, "value": "a"}, data)
        except auditor.Rejected:
            expected = None
        assert _value(parse, ours) == expected
    try:
        expected = auditor.dimension_of("a", data)
    except auditor.Rejected:
        expected = None
    assert _value(dimension_text, ours) == expected


def _value(parse: Any, value: Any) -> Any:
    try:
        return parse(value)
    except EventError:
        return None


def test_a_quantity_keeps_every_digit() -> None:
    assert exact_quantity(Number("99999999999999999999.999999999999")) == Decimal("99999999999999999999.999999999999")
    assert exact_quantity("1.50e1") == Decimal(15)
    assert exact_quantity(Number("0e999999999999")) == 0


def test_numbers_are_read_as_written() -> None:
    assert parse_json(b'{"a": 0.10, "b": 1e400}') == {"a": Number("0.10"), "b": Number("1e400")}


@pytest.mark.parametrize("seed", range(30))
def test_generated_records_have_the_auditors_reason(seed: int) -> None:
    world = generate(seed, events=80, bad=0.5)
    for raw in world.records:
        assert reason_of(raw) == _audited(raw), raw[:2000]


@pytest.mark.parametrize("reason", BAD)
def test_each_way_to_be_bad_has_its_reason(reason: str) -> None:
    for seed in range(40):
        world = generate(seed, events=0)
        rng = Random(seed)
        events = Events(rng, world.catalog, world.received - timedelta(days=5), world.received, world.horizon)
        for _ in range(10 if reason != "too_large" else 1):
            raw = events.bad_record(reason)
            if raw is not None:
                assert reason_of(raw) == _audited(raw), raw[:2000]


def _audited(raw: bytes) -> str:
    """The auditor's reason, of those that the event alone decides."""
    try:
        if len(raw) > 1_048_576:
            return "too_large"
        attributes = {name: value for name, value in auditor.json_object(raw).items() if value is not None}
        if any(attributes.get(name, "") == "" for name in auditor.REQUIRED):
            return "missing_field"
        auditor.check_attributes(attributes)
        auditor.time_of(attributes["time"])
    except auditor.Rejected as rejected:
        return rejected.reason
    return ""


def test_an_event_is_immutable() -> None:
    event = parse_event(record(ext="x"))
    assert isinstance(event, Event)
    with pytest.raises(ValueError):
        event.id = "2"  # type: ignore[misc]
