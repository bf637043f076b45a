"""messages: Pub/Sub messages → blocks of records.

A message holds one event or many. Its attributes (their names in any case) say which, and else its first bytes:

| `content-type` | records |
|---|---|
| `application/cloudevents+json` | the data is one event (CloudEvents' structured mode) |
| `application/cloudevents-batch+json` | the elements of a JSON array |
| any other, and attributes `ce-…` | one event: the attributes are its own, the data is its `data` (binary mode) |
| `application/x-ndjson`, `application/jsonl` | the lines that are not blank |
| `application/json`, or none | `[` starts an array; one JSON value is one event; anything else is lines |

`content-encoding: gzip` or `zstd` says that the data is compressed; without it, the data's first bytes do.

A message that cannot be taken apart is one reject (stage `read`) with its bytes, and none of its events counts.

Source: CloudEvents 1.0.2, its JSON format and its Pub/Sub protocol binding; docs/rules.md, section 1.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import apache_beam as beam
import msgspec
import numpy as np
import xxhash
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows
from apache_beam.typehints.decorators import no_annotations
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp

from meterline.schemas.event import EventError, Reason, microseconds
from meterline.schemas.records import Reject
from meterline.transforms import coders  # noqa: F401 — registers how blocks are encoded
from meterline.transforms.blocks import Block, Records
from meterline.transforms.progress import seen
from meterline.transforms.read import BLOCK_BYTES, DAMAGES, Read, array_elements, decompressed, lines_of, magic_of

MAX_TEXT_BYTES = 64 << 20
MAX_RECORDS = 48_000
# Of one message: a few compressed bytes must not become millions of rejects.
MAX_RECORDS_OF_ONE = 100_000
_BLANK = b" \t\r\n"
_LINES = {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"}


class Message(NamedTuple):
    """A message as Pub/Sub gives it; `publish_time` in microseconds since 1970 is when its events were received."""

    data: bytes
    attributes: Mapping[str, str]
    message_id: str
    publish_time: int

    @classmethod
    def of(cls, element: Message | PubsubMessage | bytes, timestamp: Timestamp) -> Message:
        """What a source gives as a message; the element's timestamp stands in for a publish time that is not there."""
        if isinstance(element, Message):
            return element
        if isinstance(element, bytes):
            return cls(element, {}, "", timestamp.micros)
        published = element.publish_time
        received = microseconds(published) if isinstance(published, datetime) else timestamp.micros
        return cls(element.data or b"", element.attributes or {}, element.message_id or "", received)

    @property
    def number(self) -> int:
        """63 bits that name the message: its id, which Pub/Sub counts in decimals; a hash where it has no such id."""
        if re.fullmatch(r"[0-9]{1,18}", self.message_id):
            return int(self.message_id)
        said = msgspec.json.encode([self.message_id, sorted(self.attributes.items())])
        return xxhash.xxh3_64_intdigest(said + self.data) >> 1


@dataclass
class BlocksOfMessages(beam.PTransform):
    """Take messages apart, and join the records of a bundle's messages to blocks.

    The input are `Message`, Beam's `PubsubMessage` or bytes, in the global window. In the blocks the position of a
    record is the message's id; where a message has several, `Block.numbers` tells them apart.

    Args:
      subscription: What the messages came through: the records' origin.
    """

    subscription: str

    @no_annotations
    def expand(self, messages: beam.PCollection[Any]) -> Read:
        take_apart = beam.ParDo(_MessagesFn(self.subscription)).with_output_types(Block)
        taken = messages | "TakeApart" >> take_apart.with_outputs("rejects", main="blocks")
        return Read(taken["blocks"], taken["rejects"])


class _MessagesFn(beam.DoFn):
    def __init__(self, subscription: str) -> None:
        self._subscription = subscription

    def start_bundle(self) -> None:
        self._joined = _Joined()

    def process(self, element: Any, timestamp: Any = beam.DoFn.TimestampParam) -> Iterator[Any]:
        message = Message.of(element, timestamp)
        Metrics.counter("messages", "taken").inc()
        try:
            records = records_of(message.data, message.attributes)
        except EventError as error:
            Metrics.counter("read", "records").inc()
            Metrics.counter("read", error.reason).inc()
            yield beam.pvalue.TaggedOutput("rejects", _reject(message, self._subscription, error))
            return
        seen.records += len(records)
        seen.bytes_read += len(message.data)
        self._joined.add(message, records, timestamp)
        if self._joined.is_full:
            yield self._joined.block(self._subscription)
            self._joined = _Joined()

    def finish_bundle(self) -> Iterator[Any]:
        if self._joined.counts:
            yield GlobalWindows.windowed_value(self._joined.block(self._subscription), self._joined.earliest)
        self._joined = _Joined()


class _Joined:
    """The records of some messages, one after the other; `earliest` is the first of their elements' timestamps."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self._records: list[Records] = []
        self._names: list[tuple[int, int]] = []
        self._bytes = self._total = 0
        self.earliest = MAX_TIMESTAMP

    def add(self, message: Message, records: Records, timestamp: Timestamp) -> None:
        if not len(records):
            return
        self.earliest = min(self.earliest, timestamp)
        self.counts.append(len(records))
        self._records.append(records)
        self._names.append((message.number, message.publish_time))
        self._bytes += len(records.data)
        self._total += len(records)

    @property
    def is_full(self) -> bool:
        return self._bytes >= BLOCK_BYTES or self._total >= MAX_RECORDS

    def block(self, origin: str) -> Block:
        counts = np.asarray(self.counts)
        lengths = np.fromiter((len(records.data) for records in self._records), np.int64, len(counts))
        before = np.repeat(np.cumsum(lengths) - lengths, counts)
        starts, ends = (
            np.concatenate([getattr(records, part) for records in self._records]) + before
            for part in ("starts", "ends")
        )
        positions, received = (np.repeat(column, counts) for column in np.asarray(self._names, np.int64).T)
        numbers = np.arange(self._total) - np.repeat(np.cumsum(counts) - counts, counts) if counts.max() > 1 else None
        text = b"".join(records.data for records in self._records)
        return Block(Records(text, starts, ends), positions, origin, received, numbers)


def _reject(message: Message, origin: str, error: EventError) -> Reject:
    return Reject("read", error.reason, str(error), message.data, origin, message.number, message.publish_time)


# --- one message --------------------------------------------------------------------------------


def records_of(data: bytes, attributes: Mapping[str, str]) -> Records:
    """The records of a message, each the JSON text of what shall be one event.

    Raises:
      EventError: the message cannot be taken apart: `unreadable`, `too_large` (above 64 MiB when unpacked, or more than
        100,000 records), `malformed` or `bad_attribute`.
    """
    records = _records_of(data, attributes)
    if len(records) > MAX_RECORDS_OF_ONE:
        raise EventError(
            Reason.TOO_LARGE, f"the message has {len(records):,} records, expected {MAX_RECORDS_OF_ONE:,} at most"
        )
    return records


def _records_of(data: bytes, attributes: Mapping[str, str]) -> Records:
    named = {name.lower(): value for name, value in attributes.items()}
    if len(named) != len(attributes):
        raise EventError(Reason.BAD_ATTRIBUTE, f"attributes differ in case alone: {', '.join(sorted(attributes))}")
    text = _unpacked(data, named.get("content-encoding", ""))
    kind = named.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/cloudevents+json":
        return _one(text)
    if kind == "application/cloudevents-batch+json":
        return _array(text)
    if kind.startswith("application/cloudevents"):
        raise EventError(Reason.UNREADABLE, f"content-type {kind}: of CloudEvents' formats only JSON is read")
    if any(name.startswith("ce-") for name in named):
        return _one(_binary(text, named))
    if kind in _LINES:
        return _lines(text)
    if kind not in ("", "application/json"):
        raise EventError(
            Reason.UNREADABLE,
            f"content-type {kind}: expected application/cloudevents+json, application/cloudevents-batch+json, "
            "application/x-ndjson, application/json, or attributes ce-…",
        )
    head = text.lstrip(_BLANK)[:1]
    if head == b"[":
        return _array(text)
    if b"\n" in text.strip(_BLANK) and not _is_json(text):
        return _lines(text)
    return _one(text)


def _one(text: bytes) -> Records:
    return Records(text, _ZERO, np.array([len(text)]))


_ZERO = np.zeros(1, np.int64)


def _lines(text: bytes) -> Records:
    return lines_of(text if text.endswith(b"\n") else text + b"\n", 0)[0]


def _array(text: bytes) -> Records:
    elements, _, broken = array_elements(text)
    if broken:
        raise EventError(Reason.UNREADABLE, broken)
    return Records.of(elements)


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


def _unpacked(data: bytes, encoding: str) -> bytes:
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        found = None if encoding else magic_of(data[:4])
        if found not in ("gzip", "zstd"):
            return data
        encoding = found
    if encoding not in ("gzip", "zstd"):
        raise EventError(Reason.UNREADABLE, f"content-encoding {encoding}: expected gzip or zstd")
    text: list[bytes] = []
    size = 0
    try:
        for piece in decompressed(io.BytesIO(data), encoding):
            text.append(piece)
            size += len(piece)
            if size > MAX_TEXT_BYTES:
                raise EventError(Reason.TOO_LARGE, f"the message unpacks to more than {MAX_TEXT_BYTES} bytes")
    except DAMAGES as error:
        raise EventError(Reason.UNREADABLE, f"the {encoding} data breaks after {size} bytes of text: {error}") from None
    return b"".join(text)


def _binary(text: bytes, named: Mapping[str, str]) -> bytes:
    """The event of a message in binary mode in CloudEvents' JSON format; what is missing in it `validate` says."""
    event = {name[3:]: value for name, value in named.items() if name.startswith("ce-")}
    said = f"; its attributes are {msgspec.json.encode(event).decode()}"
    if "data" in event:
        raise EventError(Reason.BAD_ATTRIBUTE, f"attribute ce-data: the data of a message is its event's{said}")
    if "content-type" in named:
        event["datacontenttype"] = named["content-type"]
    if not text.strip(_BLANK):
        return msgspec.json.encode(event)
    if not _is_json(text):
        raise EventError(Reason.MALFORMED, f"the data of a message with attributes ce-… is no JSON value{said}")
    return msgspec.json.encode(event)[:-1] + b',"data":' + text.strip(_BLANK) + b"}"
