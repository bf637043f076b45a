"""Pub/Sub messages become records, each exactly once, however events were packed; what cannot be read is one reject."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import apache_beam as beam
import msgspec
import pyarrow as pa
import pytest
import zstandard
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.testing.test_pipeline import TestPipeline as InProcess
from apache_beam.testing.util import assert_that
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from meterline.schemas.catalog import Catalog
from meterline.schemas.event import EventError, Reason, microseconds, parse_event
from meterline.schemas.records import Reject
from meterline.transforms import messages as module
from meterline.transforms.blocks import Block
from meterline.transforms.coders import BlockCoder
from meterline.transforms.messages import BlocksOfMessages, Message, records_of
from meterline.transforms.validate import ValidateEvents

SUBSCRIPTION = "projects/p/subscriptions/s"
PUBLISHED = microseconds(datetime(2026, 10, 2, tzinfo=UTC))
EVENT = (
    b'{"specversion":"1.0","id":"a","source":"/gw","type":"call","subject":"web",'
    b'"time":"2026-10-01T00:00:00Z","data":{"n":1}}'
)
OTHER = EVENT.replace(b'"a"', b'"b"')
PRETTY = json.dumps(json.loads(EVENT), indent=2).encode()
CE = {
    "ce-specversion": "1.0",
    "ce-id": "a",
    "ce-source": "/gw",
    "ce-type": "call",
    "ce-subject": "web",
    "ce-time": "2026-10-01T00:00:00Z",
}


def split(data: bytes, **attributes: str) -> list[bytes]:
    return list(records_of(data, {name.replace("_", "-"): value for name, value in attributes.items()}))


@pytest.mark.parametrize(
    ("data", "content_type", "records"),
    [
        pytest.param(EVENT, "application/cloudevents+json", [EVENT], id="structured"),
        pytest.param(PRETTY, "application/cloudevents+json; charset=utf-8", [PRETTY], id="structured on many lines"),
        pytest.param(b"{oops", "Application/CloudEvents+JSON", [b"{oops"], id="validate says what is wrong with one"),
        pytest.param(b"[%s, %s]" % (EVENT, OTHER), "application/cloudevents-batch+json", [EVENT, OTHER], id="batch"),
        pytest.param(
            b"[%s,{oops}]" % EVENT, "application/cloudevents-batch+json", [EVENT, b"{oops}"], id="bad element"
        ),
        pytest.param(b"[]", "application/cloudevents-batch+json", [], id="empty batch"),
        pytest.param(b"%s\n\n%s" % (EVENT, OTHER), "application/x-ndjson", [EVENT, OTHER], id="lines"),
        pytest.param(b"%s\r\n%s\n" % (EVENT, OTHER), "application/jsonl", [EVENT + b"\r", OTHER], id="CRLF"),
        pytest.param(PRETTY, "application/x-ndjson", PRETTY.split(b"\n"), id="who says lines gets lines"),
        pytest.param(EVENT, None, [EVENT], id="one without content-type"),
        pytest.param(PRETTY, None, [PRETTY], id="one on many lines without content-type"),
        pytest.param(b" [%s]" % EVENT, None, [EVENT], id="array without content-type"),
        pytest.param(b"%s\n%s" % (EVENT, OTHER), None, [EVENT, OTHER], id="lines without content-type"),
        pytest.param(EVENT + b"\n", None, [EVENT + b"\n"], id="one line without content-type"),
        pytest.param(b"{oops\n" + EVENT, None, [b"{oops", EVENT], id="a bad line costs itself only"),
        pytest.param(b"%s\n%s" % (EVENT, OTHER), "application/json", [EVENT, OTHER], id="JSON goes by the data"),
        pytest.param(b"", None, [b""], id="nothing is a malformed record, not no record"),
    ],
)
def test_what_a_message_holds(data: bytes, content_type: str | None, records: list[bytes]) -> None:
    assert list(records_of(data, {"Content-Type": content_type} if content_type else {})) == records


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
@pytest.mark.parametrize("is_said", [True, False], ids=["said", "seen"])
def test_compressed_messages(pack: Callable[[bytes], bytes], is_said: bool) -> None:
    attributes = {"Content-Encoding": "gzip" if pack is gzip.compress else "zstd"} if is_said else {}
    assert list(records_of(pack(b"%s\n%s" % (EVENT, OTHER)), attributes)) == [EVENT, OTHER]


def test_binary_mode_gives_the_event() -> None:
    (record,) = records_of(b'{"n": 1.10}', {**CE, "CE-tenantid": "t", "content-type": "application/json"})
    event = parse_event(record)
    assert (event.id, event.source, event.tenantid, event.datacontenttype) == ("a", "/gw", "t", "application/json")
    assert record.endswith(b'"data":{"n": 1.10}}'), "numbers stay as they were written"


def test_binary_mode_without_data_or_id_is_left_to_validate() -> None:
    without_id = {name: value for name, value in CE.items() if name != "ce-id"}
    for record in (*records_of(b"", CE), *records_of(b'{"n":1}', without_id)):
        with pytest.raises(EventError) as caught:
            parse_event(record)
        assert caught.value.reason is Reason.MISSING_FIELD


@given(data=st.binary() | st.sampled_from([b'1},"id":"x","y":{', b'{"n":1},"id":"x"', b'{"n":1} "id":2', b'"', b"[1,"]))
def test_data_cannot_reach_the_attributes_of_its_event(data: bytes) -> None:
    try:
        (record,) = records_of(data, CE | {"content-encoding": "identity"})
        event = parse_event(record)
    except EventError:
        return
    assert event.id == "a"
    assert not event.model_extra


@pytest.mark.parametrize(
    ("data", "attributes", "reason", "says"),
    [
        (gzip.compress(EVENT)[:-9], {"content-encoding": "gzip"}, Reason.UNREADABLE, "gzip data breaks"),
        (zstandard.compress(EVENT)[:-3], {}, Reason.UNREADABLE, "zstd data breaks"),
        (EVENT, {"content-encoding": "gzip"}, Reason.UNREADABLE, "gzip data breaks"),
        (EVENT, {"content-encoding": "br"}, Reason.UNREADABLE, "expected gzip or zstd"),
        (b"[%s, %s" % (EVENT, OTHER), {}, Reason.UNREADABLE, "JSON array breaks"),
        (EVENT, {"content-type": "application/cloudevents-batch+json"}, Reason.UNREADABLE, "JSON array breaks"),
        (EVENT, {"content-type": "application/cloudevents+avro"}, Reason.UNREADABLE, "only JSON"),
        (EVENT, {"content-type": "text/csv"}, Reason.UNREADABLE, "text/csv"),
        (b"\x00\x01", CE, Reason.MALFORMED, '"id":"a"'),
        (b"{}", CE | {"ce-data": "1"}, Reason.BAD_ATTRIBUTE, "ce-data"),
        (b"{}", CE | {"CE-ID": "other"}, Reason.BAD_ATTRIBUTE, "case"),
    ],
)
def test_a_message_that_cannot_be_taken_apart(
    data: bytes, attributes: dict[str, str], reason: Reason, says: str
) -> None:
    with pytest.raises(EventError) as caught:
        records_of(data, attributes)
    assert caught.value.reason is reason
    assert says in str(caught.value)


def test_a_message_that_unpacks_to_too_much_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TEXT_BYTES", 1_000)
    with pytest.raises(EventError) as caught:
        records_of(gzip.compress(EVENT * 100), {})
    assert caught.value.reason is Reason.TOO_LARGE


def test_a_small_message_does_not_become_millions_of_rejects() -> None:
    lines = b"1\n" * module.MAX_RECORDS_OF_ONE
    assert len(records_of(gzip.compress(lines), {})) == module.MAX_RECORDS_OF_ONE
    with pytest.raises(EventError, match="the message has 100,001 records, expected 100,000 at most") as caught:
        records_of(gzip.compress(lines + b"1\n"), {})
    assert caught.value.reason is Reason.TOO_LARGE


# --- bundles ------------------------------------------------------------------------------------


START = Timestamp(0)


def taken(messages: Iterable[Any], timestamp: Timestamp = START) -> tuple[list[Block], list[Reject]]:
    """What the step gives for one bundle."""
    step = module._MessagesFn(SUBSCRIPTION)
    step.start_bundle()
    given = [one for message in messages for one in step.process(message, timestamp)]
    given += [one.value for one in step.finish_bundle()]
    return [one for one in given if isinstance(one, Block)], [one.value for one in given if not isinstance(one, Block)]


def places(blocks: list[Block]) -> list[tuple[bytes, tuple[str, int, int]]]:
    return [(block.records[row], block.place(row)) for block in blocks for row in range(len(block.records))]


def test_messages_of_a_bundle_become_one_block_and_keep_their_names_and_times() -> None:
    sent = [
        Message(EVENT, {}, "17", PUBLISHED),
        Message(b"[%s" % EVENT, {}, "18", PUBLISHED + 1),
        Message(b"%s\n%s" % (OTHER, OTHER), {}, "19", PUBLISHED + 2),
    ]
    blocks, rejects = taken(sent)
    assert len(blocks) == 1
    assert places(blocks) == [
        (EVENT, (SUBSCRIPTION, 17, PUBLISHED)),
        (OTHER, (SUBSCRIPTION, 19, PUBLISHED + 2)),
        (OTHER, (f"{SUBSCRIPTION}#1", 19, PUBLISHED + 2)),
    ]
    (reject,) = rejects
    assert (reject.stage, reject.payload, reject.origin) == ("read", b"[%s" % EVENT, SUBSCRIPTION)
    assert (reject.position, reject.received_time) == (18, PUBLISHED + 1)


def test_blocks_do_not_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 3 * len(EVENT))
    blocks, _ = taken(Message(EVENT, {}, str(place), PUBLISHED) for place in range(10))
    assert [len(block.records) for block in blocks] == [3, 3, 3, 1]
    assert [place[1] for _, place in places(blocks)] == list(range(10))


def test_what_sources_give_is_read_alike() -> None:
    moment = datetime(2026, 10, 2, tzinfo=UTC)
    for sent in (
        Message(EVENT, {}, "5", PUBLISHED),
        PubsubMessage(EVENT, {}, "5", moment),
        PubsubMessage(EVENT, None, "5", None),  # the element's timestamp is the publish time
    ):
        ((record, place),) = places(taken([sent], Timestamp.of(moment.timestamp()))[0])
        assert (record, place) == (EVENT, (SUBSCRIPTION, 5, PUBLISHED))


def test_a_message_without_a_number_is_named_by_its_content() -> None:
    names = [Message(data, {}, name, 0).number for data in (EVENT, OTHER) for name in ("", "x", "9" * 19)]
    assert len(set(names)) == 6
    assert all(0 <= name < 2**63 for name in names)
    assert names[0] == Message(EVENT, {}, "", PUBLISHED).number, "a redelivery has the same name"
    assert Message(EVENT, {}, "9" * 18, 0).number == 10**18 - 1


def test_blocks_pass_a_shuffle() -> None:
    sent = [Message(b"%s\n%s" % (EVENT, OTHER), {}, "19", PUBLISHED), Message(EVENT, {}, "20", PUBLISHED + 5)]
    blocks, _ = taken(sent)
    coder = BlockCoder()
    assert places([coder.decode(coder.encode(block)) for block in blocks]) == places(blocks)


# --- with validate ------------------------------------------------------------------------------


def test_time_is_judged_by_each_message_s_publish_time(catalog: Catalog) -> None:
    """The same event, published at four times, in one block: on both bounds, and a microsecond beyond each."""
    event = EVENT.replace(b'"data":{"n":1}', b'"data":{"n":1,"user":"u"}')
    moment = microseconds(datetime(2026, 10, 1, tzinfo=UTC))
    hour, days = 3_600_000_000, 35 * 86_400_000_000
    sent = [
        Message(event, {}, str(place), moment + after) for place, after in enumerate((-hour - 1, -hour, days, days + 1))
    ]
    (block,), _ = taken(sent)
    accepted: list[tuple[int, int, str]] = []
    rejected: list[Reject] = []
    with InProcess() as pipeline:
        prices = beam.pvalue.AsSingleton(pipeline | "Catalog" >> beam.Create([catalog]))
        validated = pipeline | beam.Create([block]) | ValidateEvents(prices, timedelta(days=35))

        def accepts(batches: list[pa.RecordBatch]) -> None:
            accepted.extend(
                row for batch in batches for row in zip(*(batch[name].to_pylist() for name in ("position", "origin")))
            )
            assert sorted(accepted) == [(1, SUBSCRIPTION), (2, SUBSCRIPTION)]
            (times,) = [[microseconds(time) for time in batch["received_time"].to_pylist()] for batch in batches]
            assert times == [moment - hour, moment + days]

        def rejects(found: list[Reject]) -> None:
            rejected.extend(found)
            assert sorted((one.position, one.reason, one.received_time) for one in rejected) == [
                (0, Reason.IN_FUTURE, moment - hour - 1),
                (3, Reason.TOO_OLD, moment + days + 1),
            ]

        assert_that(validated.events, accepts, "accepts")
        assert_that(validated.rejects, rejects, "rejects")


def test_equal_bad_records_of_one_message_are_rejects_of_their_own() -> None:
    (block,), _ = taken([Message(b"{oops\n{oops", {}, "7", PUBLISHED)])
    ids = {Reject("validate", Reason.MALFORMED, "", block.records[row], *block.place(row)).id for row in range(2)}
    assert len(ids) == 2
    assert block.origins(block.numbers).to_pylist() == [SUBSCRIPTION, f"{SUBSCRIPTION}#1"]  # type: ignore[arg-type]


# --- any events, in any mode ----------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), lambda inner: st.lists(inner, max_size=3)
)
events = st.fixed_dictionaries(
    {
        **dict.fromkeys(
            ("id", "source", "type", "subject"), st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
        ),
        "data": st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), json_values, max_size=3),
    }
).map(lambda event: {"specversion": "1.0", "time": "2026-10-01T00:00:00Z", **event})
encoded = msgspec.json.encode


def binary(event: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    attributes = {f"ce-{name}": value for name, value in event.items() if name != "data"}
    return encoded(event["data"]), attributes


def structured(event: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    return json.dumps(event, indent=1).encode(), {"content-type": "application/cloudevents+json"}


def bare(event: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    return json.dumps(event, indent=1).encode(), {}


def lines(some: list[dict[str, Any]]) -> tuple[bytes, dict[str, str]]:
    return b"\n".join(map(encoded, some)), {"content-type": "application/x-ndjson"}


def batch(some: list[dict[str, Any]]) -> tuple[bytes, dict[str, str]]:
    return json.dumps(some, indent=1).encode(), {"content-type": "application/cloudevents-batch+json"}


def packed(message: tuple[bytes, dict[str, str]], encoding: str) -> tuple[bytes, dict[str, str]]:
    data, attributes = message
    if not encoding:
        return message
    pack = gzip.compress if encoding == "gzip" else zstandard.compress
    return pack(data), attributes | {"Content-Encoding": encoding}


many = st.lists(events, max_size=4)
parcels = st.one_of(
    *(st.tuples(st.just([mode]), events.map(lambda event: [event])) for mode in (binary, structured, bare)),
    *(st.tuples(st.just([mode]), many) for mode in (lines, batch)),
)


@given(st.lists(st.tuples(parcels, st.sampled_from(["", "gzip", "zstd"])), max_size=6))
def test_any_events_in_any_messages_are_the_same_records(sent: list[Any]) -> None:
    messages, expected = [], []
    for place, (([mode], some), encoding) in enumerate(sent):
        plain = mode(some) if mode in (lines, batch) else mode(some[0])
        messages.append(Message(*packed(plain, encoding), str(place), PUBLISHED + place))
        for number, event in enumerate(some):
            origin = f"{SUBSCRIPTION}#{number}" if number else SUBSCRIPTION
            expected.append((event, (origin, place, PUBLISHED + place)))
    blocks, rejects = taken(messages)
    assert [(json.loads(record), place) for record, place in places(blocks)] == expected
    assert not rejects


def test_the_step_in_a_pipeline() -> None:
    sent = [Message(EVENT, {}, str(place), PUBLISHED) for place in range(3)] + [Message(b"[", {}, "3", PUBLISHED)]

    def has(names: list[int]) -> Callable[[list[Any]], None]:
        def check(found: list[Any]) -> None:
            positions = [one.position for one in found if isinstance(one, Reject)]
            positions += [at for one in found if isinstance(one, Block) for at in one.positions.tolist()]
            assert sorted(positions) == names

        return check

    with InProcess() as pipeline:
        read = pipeline | beam.Create(sent) | BlocksOfMessages(SUBSCRIPTION)
        assert_that(read.blocks, has([0, 1, 2]), "blocks")
        assert_that(read.rejects, has([3]), "rejects")
