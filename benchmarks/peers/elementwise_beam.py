"""The main job as Beam pipelines are usually written: an element is an event, and state is kept by its id.

The prices of a key's usage are those of Meterline's own rules, called once for each rating key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

import apache_beam as beam
import msgspec
import pyarrow as pa
import xxhash
from apache_beam.coders import BytesCoder
from apache_beam.metrics import Metrics
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

from meterline.runners.direct import run
from meterline.schemas.arrow import MICROSECONDS, QUANTITY
from meterline.schemas.catalog import Catalog
from meterline.schemas.event import Reason
from meterline.schemas.meters import Aggregation
from meterline.schemas.records import RatingKey, Reject, rating_key_id
from meterline.transforms import clickhouse
from meterline.transforms.rules.aggregation import Cell, Usage
from meterline.transforms.rules.attribution import directory
from meterline.transforms.rules.line_items import line_items
from meterline.transforms.write import key_columns, line_item_rows, reject_rows

_METERS = ("input_tokens", "output_tokens")
_TYPE = "com.example.llm.request.v1"
_BATCH = 50_000


class _Data(msgspec.Struct, gc=False):
    input_tokens: Decimal
    output_tokens: Decimal
    model: str = ""


class _Event(msgspec.Struct, gc=False):
    specversion: str
    id: str
    source: str
    type: str
    subject: str
    time: datetime
    data: _Data
    tenantid: str = "default"


class Accepted(NamedTuple):
    """An event that is archived and metered; `micros` is its time, quantities are in the order of the keys."""

    tenant: str
    source: str
    id: str
    subject: str
    account: str
    billing_account: str
    micros: int
    keys: tuple[str, ...]
    quantities: tuple[str, ...]
    identity: bytes
    payload: bytes

    @property
    def content(self) -> bytes:
        return repr((self.micros, self.subject, self.keys, self.quantities)).encode()


class _Read(beam.DoFn):
    """A line → (identity, event)."""

    def __init__(self, catalog: Catalog, origin: str, received: int) -> None:
        self._catalog, self._origin, self._received = catalog, origin, received

    def setup(self) -> None:
        self._book = directory(self._catalog)
        self._decode = msgspec.json.Decoder(_Event).decode
        self._keys = lru_cache(maxsize=100_000)(self._keys_of)

    def _keys_of(self, account: str, hour: int, model: str) -> tuple[str, ...]:
        billing, instant = self._book.billing_account_of(account), datetime.fromtimestamp(hour * 3_600, UTC)
        segments = [(meter, self._book.segment_at(account, meter, instant)) for meter in _METERS]
        return tuple(
            RatingKey(
                "default",
                billing,
                found.subscription_id,
                found.charge_id,
                meter,
                found.rate_card_version,
                found.period_start,
                found.period_end,
                (("model", model),),
            ).text
            for meter, found in segments
        )

    def process(self, line: bytes) -> Iterator[Any]:
        try:
            event = self._decode(line)
        except msgspec.ValidationError as error:
            text = str(error)
            where = "$.data." in text
            missing = "missing required" in text and not where
            yield self._reject(
                line, Reason.MISSING_FIELD if missing else Reason.BAD_QUANTITY if where else Reason.BAD_ATTRIBUTE
            )
            return
        except (msgspec.DecodeError, UnicodeDecodeError):
            yield self._reject(line, Reason.MALFORMED)
            return
        reason = self._fault(event)
        if reason:
            yield self._reject(line, reason)
            return
        account = self._book.account_of(event.tenantid, event.subject)
        if account is None:
            yield self._reject(line, Reason.UNKNOWN_SUBJECT)
            return
        seconds = event.time.timestamp()
        hour = int(seconds // 3_600)
        micros = int(seconds) * 1_000_000 + event.time.microsecond
        identity = xxhash.xxh3_128_digest(f"{event.tenantid}\0{event.source}\0{event.id}".encode())
        accepted = Accepted(
            event.tenantid,
            event.source,
            event.id,
            event.subject,
            account,
            self._book.billing_account_of(account),
            micros,
            self._keys(account, hour, event.data.model),
            (str(event.data.input_tokens), str(event.data.output_tokens)),
            identity,
            line,
        )
        yield identity, tuple(accepted)

    def _fault(self, event: _Event) -> Reason | None:
        if not (event.id and event.source and event.type and event.subject and event.specversion):
            return Reason.MISSING_FIELD
        if event.specversion != "1.0" or len(event.id) > 512 or len(event.source) > 1_024 or len(event.subject) > 1_024:
            return Reason.BAD_ATTRIBUTE
        if event.time.tzinfo is None:
            return Reason.BAD_TIME
        if event.time.timestamp() * 1e6 > self._received + 3_600_000_000:
            return Reason.IN_FUTURE
        if event.type != _TYPE:
            return Reason.UNKNOWN_TYPE
        if not (0 <= event.data.input_tokens < 10**20 and 0 <= event.data.output_tokens < 10**20):
            return Reason.BAD_QUANTITY
        return None

    def _reject(self, line: bytes, reason: Reason) -> beam.pvalue.TaggedOutput:
        stage = "attribute" if reason is Reason.UNKNOWN_SUBJECT else "validate"
        reject = Reject(stage, reason, str(reason), line, self._origin, 0, self._received)
        return beam.pvalue.TaggedOutput("rejects", reject)


class _Deduplicate(beam.DoFn):
    """State, per identity: the content that came first."""

    FIRST = ReadModifyWriteStateSpec("first", BytesCoder())

    def __init__(self, origin: str, received: int) -> None:
        self._origin, self._received = origin, received
        self._accepted = Metrics.counter("deduplicate", "accepted")
        self._duplicate = Metrics.counter("deduplicate", "duplicate")

    def process(self, keyed: tuple[bytes, tuple], first: Any = beam.DoFn.StateParam(FIRST)) -> Iterator[Any]:
        event = Accepted._make(keyed[1])
        known = first.read()
        if known is None:
            first.write(event.content)
            self._accepted.inc()
            yield keyed[1]
        elif known == event.content:
            self._duplicate.inc()
        else:
            reject = Reject("deduplicate", Reason.CONFLICT, "conflict", event.payload, self._origin, 0, self._received)
            yield beam.pvalue.TaggedOutput("rejects", reject)


def _usage(event: tuple) -> Iterator[tuple[tuple[str, int], tuple[int, Decimal]]]:
    accepted = Accepted._make(event)
    for key, quantity in zip(accepted.keys, accepted.quantities):
        yield (key, accepted.account, accepted.micros // 3_600_000_000 * 3_600), (1, quantity)


class _Sum(beam.CombineFn):
    def create_accumulator(self) -> tuple[int, str]:
        return 0, "0"

    def add_input(self, total: tuple[int, str], one: tuple[int, str]) -> tuple[int, str]:
        return total[0] + one[0], str(Decimal(total[1]) + Decimal(one[1]))

    def merge_accumulators(self, totals: Iterable[tuple[int, str]]) -> tuple[int, str]:
        totals = list(totals)
        return sum(count for count, _ in totals), str(sum(Decimal(quantity) for _, quantity in totals))

    def extract_output(self, total: tuple[int, str]) -> tuple[int, str]:
        return total


class _Rate(beam.DoFn):
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def process(self, keyed: tuple[str, Iterable[tuple[str, int, int, str]]]) -> Iterator[Any]:
        key = RatingKey.parse(keyed[0])
        priced = directory(self._catalog).price_of(
            key.subscription_id, key.charge_id, key.rate_card_version, key.dimensions
        )
        usage = {
            Cell(window, account): Usage(count, int(Decimal(quantity).scaleb(12)))
            for account, window, count, quantity in keyed[1]
        }
        yield from line_items(key, Aggregation.SUM, priced, usage)


class _Store(beam.DoFn):
    """Insert elements, many at a time."""

    def __init__(self, url: str, table: str, to_arrow: Any) -> None:
        self._url, self._table, self._to_arrow = url, table, to_arrow

    def start_bundle(self) -> None:
        self._rows: list[Any] = []

    def process(self, row: Any) -> None:
        self._rows.append(row)
        if len(self._rows) >= _BATCH:
            self.finish_bundle()

    def finish_bundle(self) -> None:
        if self._rows:
            clickhouse.insert(self._url, self._table, self._to_arrow(self._rows))
        self._rows = []


def _archive_rows(received: int, rows: list[tuple]) -> pa.Table:
    events = [Accepted._make(row) for row in rows]
    ids = lru_cache(maxsize=None)(rating_key_id)
    return pa.table(
        {
            "tenant_id": [event.tenant for event in events],
            "billing_account_id": [event.billing_account for event in events],
            "account_id": [event.account for event in events],
            "time": pa.array([event.micros for event in events]).cast(MICROSECONDS),
            "identity": pa.array([event.identity for event in events], pa.binary(16)),
            "source": [event.source for event in events],
            "id": [event.id for event in events],
            "type": [_TYPE] * len(events),
            "subject": [event.subject for event in events],
            "rating_keys": pa.array([[ids(key) for key in event.keys] for event in events], pa.list_(pa.uint64())),
            "quantities": pa.array([list(map(Decimal, event.quantities)) for event in events], pa.list_(QUANTITY)),
            "counted_values": [["", ""]] * len(events),
            "received_time": pa.array([received] * len(events)).cast(MICROSECONDS),
            "payload": pa.array([event.payload for event in events], pa.binary()),
        }
    )


def _key_rows(texts: list[str]) -> pa.Table:
    ids = pa.array(map(rating_key_id, texts), pa.uint64())
    return pa.table({"rating_key_id": ids, "rating_key": texts, **key_columns(map(RatingKey.parse, texts))})


def job(source: str, catalog: Catalog, url: str, received: int) -> dict[str, int]:
    """Rate a file of events into the tables; the counters by Meterline's names."""

    def build(pipeline: beam.Pipeline) -> None:
        read = (
            pipeline
            | beam.io.ReadFromText(source, coder=BytesCoder())
            | "Count" >> beam.ParDo(_Count())
            | beam.ParDo(_Read(catalog, source, received))
            .with_output_types(tuple[bytes, tuple])
            .with_outputs("rejects", main="events")
        )
        unique = read.events | beam.ParDo(_Deduplicate(source, received)).with_outputs("rejects", main="events")
        unique.events | "Archive" >> beam.ParDo(_Store(url, "usage_events", lambda rows: _archive_rows(received, rows)))
        usage = unique.events | beam.FlatMap(_usage) | beam.CombinePerKey(_Sum())
        by_key = usage | beam.MapTuple(lambda cell, total: (cell[0], (*cell[1:], *total))) | beam.GroupByKey()
        by_key | beam.Keys() | "RatingKeys" >> beam.ParDo(_Store(url, "rating_keys", _key_rows))
        by_key | beam.ParDo(_Rate(catalog)) | "LineItems" >> beam.ParDo(_Store(url, "line_items", line_item_rows))
        rejects = (read.rejects, unique.rejects) | beam.Flatten()
        rejects | "Rejects" >> beam.ParDo(_Store(url, "rejects", reject_rows))

    return run(build)


class _Count(beam.DoFn):
    def __init__(self) -> None:
        self._records = Metrics.counter("validate", "records")

    def process(self, line: bytes) -> Iterator[bytes]:
        self._records.inc()
        yield line
