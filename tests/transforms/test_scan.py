"""The vectorised reading of records gives what the slow path gives, for whatever bytes come."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meterline.schemas.catalog_files import load_catalog
from meterline.schemas.event import Reason
from meterline.schemas.filters import EVERYTHING, Condition, Filter
from meterline.transforms.blocks import compiled
from meterline.transforms.scan import Scanned, Scanner
from meterline.transforms.shape import EventShape
from tests import strategies
from tests.simulation.delivery import microseconds
from tests.simulation.generator import generate, write_catalog

LINES = int(os.environ.get("METERLINE_FUZZ_LINES", "20000"))
SEED = int(os.environ.get("METERLINE_FUZZ_SEED", "1"))


def shape_of(columns: dict[str, str]) -> EventShape:
    """The shape of meters without filters, which read some columns of each type."""
    return EventShape({name: dict.fromkeys(some.split(), frozenset({EVERYTHING})) for name, some in columns.items()})


SHAPE = shape_of(
    {
        "api": "q:amount q:usage.tokens v:user d:region d:labels.model",
        "llm": "q:amount v:amount d:region",
        "call": "",
    }
)
RECEIVED = microseconds(datetime(2026, 10, 2, tzinfo=UTC))
HORIZON = timedelta(days=35)

GOOD = (
    b'{"specversion":"1.0","id":"1","source":"/s","type":"api","time":"2026-10-01T12:30:00Z","subject":"acme",'
    b'"data":{"amount":1.5,"usage":{"tokens":"7"},"user":"u","region":"eu","labels":{"model":null}}}'
)


def assert_alike(fast: Scanned, slow: Scanned) -> None:
    """Same rows to the last digit, same places, same reasons; messages may differ."""
    assert fast.places.tolist() == slow.places.tolist()
    assert [(place, reason) for place, reason, _ in fast.rejected] == [(p, reason) for p, reason, _ in slow.rejected]
    assert fast.events.schema == slow.events.schema
    for name in fast.events.schema.names:
        assert fast.events[name].to_pylist() == slow.events[name].to_pylist(), name
    fast.events.validate(full=True)


def both(records: list[bytes], shape: EventShape = SHAPE, received: int = RECEIVED) -> Scanned:
    answer = Scanner(shape, HORIZON, vectorised=False).scan(records, received)
    assert_alike(Scanner(shape, HORIZON).scan(records, received), answer)
    vectorised = Scanner(shape, HORIZON, compiled=False)
    assert_alike(vectorised.scan(records, received), answer)
    # Once more: it now knows the extensions that it met.
    assert_alike(vectorised.scan(records, received), answer)
    return answer


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(strategies.event_records, max_size=6))
def test_any_records(records: list[bytes]) -> None:
    both([GOOD, *records, GOOD])


IN_EU = Filter((Condition("region", frozenset({"eu", "1"})),))
SOME_MODEL = Filter((Condition("labels.model", frozenset({""}), is_one=False), *IN_EU.conditions))
FILTERED = EventShape(
    {
        "api": {
            "w:region": frozenset({EVERYTHING}),
            "w:labels.model": frozenset({EVERYTHING}),
            "q:amount": frozenset({EVERYTHING}),
            "q:usage.tokens": frozenset({IN_EU, SOME_MODEL}),
            "v:user": frozenset({SOME_MODEL}),
            "x:max(amount, 1) * usage.tokens - 0.25": frozenset({IN_EU}),
            "d:labels.model": frozenset({IN_EU}),
        },
        "llm": {"w:region": frozenset({EVERYTHING}), "q:amount": frozenset({IN_EU})},
        "call": {},
    }
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(strategies.event_records, max_size=6))
def test_any_records_under_filters_and_expressions(records: list[bytes]) -> None:
    both([GOOD, *records, GOOD.replace(b'"eu"', b'"us"')], FILTERED)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"7"', b'"x"', Reason.BAD_QUANTITY),
        (b'"7"', b"0", Reason.BAD_QUANTITY),
        (b'"7"', b"99999999999999999999", Reason.BAD_QUANTITY),
        (b'"7"', b"0.000000000001", Reason.BAD_QUANTITY),
        (b"null", b"[]", Reason.BAD_DIMENSION),
        (b"null", b'"m"', None),
        (b'"7"},"user":"u","region":"eu"', b'"x"},"user":[],"region":"us"', None),
        (b'"7"},"user":"u","region":"eu"', b'"x"},"user":[],"region":[]', None),
        (b'"7"},"user":"u","region":"eu"', b'"8"},"user":[],"region":1', None),
        (
            b'"7"},"user":"u","region":"eu","labels":{"model":null',
            b'8},"user":[],"region":1.0,"labels":{"model":"m"',
            Reason.BAD_QUANTITY,
        ),
    ],
)  # fmt: skip
def test_only_what_meters_read_that_take_the_event_is_looked_at(old: bytes, new: bytes, reason: Reason | None) -> None:
    assert old in GOOD
    scanned = both([GOOD, GOOD.replace(old, new)], FILTERED)
    assert [(place, why) for place, why, _ in scanned.rejected] == ([(1, reason)] if reason else [])
    assert scanned.events["x:max(amount, 1) * usage.tokens - 0.25"][0].as_py() == Decimal("10.25")


@given(st.lists(strategies.near_times, min_size=1, max_size=8))
def test_any_times(times: list[str]) -> None:
    both([GOOD.replace(b"2026-10-01T12:30:00Z", time.encode()) for time in times])


@given(st.lists(strategies.json_quantities, min_size=1, max_size=8))
def test_any_quantities(quantities: list[str]) -> None:
    both([GOOD.replace(b"1.5", text.encode("utf-8", "surrogatepass")) for text in quantities])


@given(
    st.lists(strategies.json_texts, min_size=1, max_size=8), st.sampled_from(["user", "region", "id", "subject", "ext"])
)
def test_any_texts(texts: list[str], name: str) -> None:
    records = []
    for text in texts:
        said = f'"{name}":{text}'.encode("utf-8", "surrogatepass")
        place = b'"data":{' if name in ("user", "region") else b"{"
        without = GOOD.replace(b'"id":"1",', b"") if name == "id" else GOOD.replace(b'"subject":"acme",', b"")
        good = without if name in ("id", "subject") else GOOD.replace(b'"user":"u","region":"eu",', b"")
        records.append(good.replace(place, place + said + b",", 1))
    both(records)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        pytest.param(b'"id":"1"', b'"id":"a\\u0000"', Reason.BAD_ATTRIBUTE, id="an escaped control character"),
        pytest.param(b'"id":"1"', b'"id":"a\\nb"', Reason.BAD_ATTRIBUTE, id="a short escape of one"),
        pytest.param(
            b'"id":"1"', b'"id":"1","ext":"\\uffff"', Reason.BAD_ATTRIBUTE, id="a noncharacter in an extension"
        ),
        pytest.param(b'"id":"1"', b'"id":"1","tenantid":"\\u007f"', Reason.BAD_ATTRIBUTE, id="a control in the tenant"),
        pytest.param(b'"id":"1"', b'"id":"1","data_base64":""', Reason.BAD_ATTRIBUTE, id="data in base64"),
        pytest.param(b'"eu"', b'"e\\nu"', None, id="a dimension may hold a line feed"),
        pytest.param(b'"eu"', b'"eu","note":"\\ud800"', None, id="a property that nobody reads may hold a surrogate"),
        pytest.param(b'"eu"', b'"eu","note":"\xff"', Reason.MALFORMED, id="no UTF-8, where nobody reads"),
        pytest.param(b'"eu"', b'"\\udc00"', Reason.BAD_DIMENSION, id="a dimension with a surrogate"),
        pytest.param(b"1.5", b"1e400", Reason.BAD_QUANTITY, id="a number beyond any quantity"),
        pytest.param(b'"eu"', b'"eu","deep":' + b"[" * 62 + b"]" * 62, None, id="64 levels"),
        pytest.param(b'"eu"', b'"eu","deep":' + b"[" * 63 + b"]" * 63, Reason.MALFORMED, id="65 levels"),
        pytest.param(b'"eu"', b'"eu","deep":' + b'{"":' * 63 + b"1" + b"}" * 63, Reason.MALFORMED, id="of objects"),
        pytest.param(b'"eu"', b'"eu","flat":[' + b"[]," * 99 + b"[]]", None, id="many brackets are not deep"),
        pytest.param(b'"eu"', b'"eu","text":"' + b"{" * 99 + b'"', None, id="nor are those of a string"),
        pytest.param(b'"eu"', b'"eu","long":' + b"1" * 4_000, None, id="a number of 4,000 characters"),
        pytest.param(b'"eu"', b'"eu","long":' + b"1" * 4_001, Reason.MALFORMED, id="and one more"),
        pytest.param(b'"eu"', b'"eu","long":"' + b"1" * 1_048_576 + b'"', Reason.TOO_LARGE, id="a large record"),
        pytest.param(b"1.5", b"100000000000000000000", Reason.BAD_QUANTITY, id="10^20"),
        pytest.param(b"1.5", b"99999999999999999999", None, id="one less"),
        pytest.param(b"1.5", b"0.0000000000001", Reason.BAD_QUANTITY, id="13 decimals"),
        pytest.param(b"1.5", b"0.0000000000010", None, id="a trailing zero is no decimal"),
        pytest.param(b"1.5", b"-0.0", None, id="minus nothing"),
        pytest.param(b"1.5", b"01.5", Reason.MALFORMED, id="a number that is no JSON"),
        pytest.param(b"1.5", b'"01.5"', Reason.BAD_QUANTITY, id="a string that is no JSON number"),
        pytest.param(b"12:30:00Z", b"12:30:60Z", Reason.BAD_TIME, id="a leap second"),
        pytest.param(b"2026-10-01", b"2026-10-03", Reason.IN_FUTURE, id="the day after tomorrow"),
        pytest.param(b"2026-10-01", b"2026-01-01", Reason.TOO_OLD, id="beyond the horizon"),
        pytest.param(b'"api"', b'"API"', Reason.UNKNOWN_TYPE, id="a type that nobody counts"),
        pytest.param(b'{"specversion"', b'{"data":5,"specversion"', None, id="the last of two keys counts"),
        pytest.param(b'"1.0"', b' \r\n\t"1.0"', None, id="white space"),
    ],
)
def test_one_record(old: bytes, new: bytes, reason: Reason | None) -> None:
    assert old in GOOD
    scanned = both([GOOD, GOOD.replace(old, new), GOOD])
    assert [(place, why) for place, why, _ in scanned.rejected] == ([(1, reason)] if reason else [])


def test_values_are_exact() -> None:
    digits = "99999999999999999999.999999999999"
    scanned = both([GOOD.replace(b"1.5", digits.encode()), GOOD.replace(b"1.5", b"0.000000000001")])
    assert scanned.events["q:amount"].to_pylist() == [Decimal(digits), Decimal("0.000000000001")]


def test_no_records() -> None:
    assert both([]).events.num_rows == 0
    assert both([b"", b" "]).events.num_rows == 0


def test_each_record_is_judged_by_when_it_was_received() -> None:
    received = np.asarray([RECEIVED, RECEIVED - 2 * 86_400_000_000, RECEIVED + 50 * 86_400_000_000])
    for vectorised in (True, False):
        scanned = Scanner(SHAPE, HORIZON, vectorised).scan([GOOD] * 3, received)
        assert [(place, reason) for place, reason, _ in scanned.rejected] == [(1, "in_future"), (2, "too_old")]
        assert scanned.events["received_time"].cast("int64").to_pylist() == [RECEIVED]


def test_a_path_inside_anothers_value_takes_the_slow_path() -> None:
    shape = shape_of({"api": "q:usage.tokens d:usage"})
    scanned = both([GOOD, GOOD.replace(b'{"tokens":"7"}', b'"x"')], shape)
    assert [reason for _, reason, _ in scanned.rejected] == [Reason.BAD_DIMENSION, Reason.BAD_QUANTITY]


def test_good_records_take_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the two paths would be equal and slow."""
    spellings = [GOOD, GOOD + b"\r", GOOD.replace(b'"eu"', '"größe"'.encode()), GOOD.replace(b'"eu"', b'"a\\nb"')]
    spellings.append(GOOD.replace(b'"id"', b'"tenantid":"acme","id"').replace(b"1.5", b'"1.50"'))
    monkeypatch.setattr(Scanner, "read", None)
    assert Scanner(SHAPE, HORIZON).scan(spellings, RECEIVED).events.num_rows == len(spellings)


@pytest.mark.skipif(compiled() is None, reason="the compiled loops are not built here, or switched off")
def test_plain_records_take_the_compiled_path(monkeypatch: pytest.MonkeyPatch) -> None:
    spellings = [GOOD, b" " + GOOD + b"\r", GOOD.replace(b'"eu"', '"größe"'.encode()), GOOD.replace(b"1.5", b'"1.50"')]
    spellings.append(GOOD.replace(b'"id"', b'"tenantid":"acme","traceparent":"00-1","sampledrate":30,"id"'))
    spellings.append(GOOD.replace(b'"id"', b'"dataschema":null,"datacontenttype":"application/json","id"'))
    spellings.append(GOOD.replace(b'"user"', b'"more":[1e5,{"a":"\\u00e9\\ud800"},null,-0.1],"user"'))
    spellings.append(GOOD.replace(b'"id":"1"', '"id":"é€😀"'.encode()).replace(b"00Z", b"00.123456789+05:30"))
    monkeypatch.setattr(Scanner, "_columns", None)
    assert Scanner(SHAPE, HORIZON).scan(spellings, RECEIVED).events.num_rows == len(spellings)


def test_a_bad_record_leaves_the_others_on_the_compiled_path() -> None:
    scanned = both([GOOD, b"{", GOOD.replace(b'"eu"', b'"a\\nb"'), b"", GOOD.replace(b'"id"', b'"\\u0069d"'), GOOD])
    assert scanned.places.tolist() == [0, 2, 4, 5]
    assert scanned.events["d:region"].to_pylist() == ["eu", "a\nb", "eu", "eu"]


# --- mutations ------------------------------------------------------------------------------------------

TOKENS = (
    *(b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b" ", b"\t", b"\n", b"\r", b"\x00", b"\x0b", b"\x0c", b"\x1f"),
    *(b"\x7f", b"\x80", b"\xc2", b"\xc3\xa9", b"\xff", b"\xed\xa0\x80", b"\xef\xbf\xbf", b"\xef\xb7\x90", b"\xc2\x85"),
    *(b"\\n", b"\\u0000", b"\\u001f", b"\\ud800", b"\\udc00", b"\\ud83e\\udd9c", b"\\uFFFF", b"\\x", b"\\u12", b"\\/"),
    *(b"null", b"true", b"false", b"NaN", b"Infinity", b"-", b"+", b"0", b"1", b".", b"e", b"E+1", b"e400", b"-5"),
    *(b"0.1", b'""', b"{}", b"[]", b'"1e400"', b'"-5"', b'"0.1"', b"1e20", b"1e-13", b"00", b"9" * 20, b"Z", b"T"),
    *(b"2026-02-31", b'"data":', b'"id":"2",', b'"time":null,', b'"ext":"x",', b'"ext":1,', b'"a":{"b":1},'),
    *(b'"amount":', b'"usage":'),
)


def mutated(rng: Random, record: bytes) -> bytes:
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        at = rng.randrange(len(record) + 1)
        match rng.randrange(6):
            case 0:
                record = record[:at] + bytes([rng.randrange(256)]) + record[at + 1 :]
            case 1:
                record = record[:at] + rng.choice(TOKENS) + record[at:]
            case 2:
                record = record[:at] + record[at + rng.choice([1, 1, 2, 8]) :]
            case 3:
                record = record[:at] + rng.choice(TOKENS) + record[at + rng.choice([1, 2, 4, 8]) :]
            case 4:
                end = at + rng.randrange(40)
                record = record[:end] + record[at:end] + record[end:]
            case _:
                old, new = rng.choice(SWAPS)
                record = record.replace(old, new, 1)
    return record


SWAPS = [
    *[(b'"id"', name) for name in (b'"ID"', b'"i"', b'"id\\u0000"', b'"\\u0069d"', b'"data"')],
    *[(b"Z", zone) for zone in (b"z", b"+00:00", b"-23:59", b"+24:00", b"", b".5Z", b".1234567Z", b" Z")],
    *[(b"T", letter) for letter in (b"t", b" ", b"")],
    *[(b":", b"::"), (b",", b",,"), (b"{", b"{{"), (b'"data"', b'"data_base64"'), (b"1.0", b"1.1"), (b'"', b"'")],
    *[(b"0", digit) for digit in (b"1", b"9", b"00", b"0.0", b"-0", b"")],
]


def test_mutated_records(tmp_path: Path) -> None:
    """`METERLINE_FUZZ_LINES` says how many, `METERLINE_FUZZ_SEED` which."""
    rng = Random(SEED)
    done = 0
    number = 0
    while done < LINES:
        world = generate(SEED * 1000 + number % 50, events=200, bad=0.05)
        folder = tmp_path / str(number % 50)
        if not folder.exists():
            write_catalog(world.catalog, folder)
        shape = EventShape.of(load_catalog(folder))
        pool = [record for record in world.records if len(record) < 3_000]
        fast, slow = Scanner(shape, world.horizon), Scanner(shape, world.horizon, vectorised=False)
        middle = Scanner(shape, world.horizon, compiled=False)
        for _ in range(10):
            records = [mutated(rng, rng.choice(pool)) for _ in range(200)]
            received = microseconds(world.received)
            answer = slow.scan(records, received)
            assert_alike(fast.scan(records, received), answer)
            assert_alike(middle.scan(records, received), answer)
            done += len(records)
        number += 1
