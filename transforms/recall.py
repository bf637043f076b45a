"""recall: the archived events of the billing periods that new events touch join the input.

State is a cache of the archive: a run that starts without state, on the day after, or after a crash, sees the events
that are stored already, and so writes the rows that one run over all events would write (docs/exactly_once.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.typehints.decorators import no_annotations

from meterline.schemas.arrow import ATTRIBUTED
from meterline.schemas.records import RatingKey
from meterline.transforms import clickhouse
from meterline.transforms.columns import code_column, symbols, utc_days


class Span(NamedTuple):
    """Seconds [start, end) in which an account's archived events are wanted."""

    tenant_id: str
    billing_account_id: str
    start: int
    end: int


class Recalled(NamedTuple):
    """`events` are archived events; `identities` are just that, with the time, of all archived events of a day."""

    events: beam.PCollection[pa.RecordBatch]
    identities: beam.PCollection[pa.RecordBatch]


@dataclass
class RecallEvents(beam.PTransform):
    """Read the archive of the billing periods that attributed events touch, as attributed events; and the identities of
    the days they lie in, whoever paid: a subject may have moved to another account since its event was archived.

    Args:
      url: Of the database.
    """

    url: str

    @no_annotations
    def expand(self, events: beam.PCollection[pa.RecordBatch]) -> Recalled:
        recalled = (
            events
            | "Touch" >> beam.ParDo(_TouchFn()).with_output_types(tuple[str, bytes])
            | "Together" >> beam.GroupByKey()
            | "Recall" >> beam.ParDo(_RecallFn(self.url)).with_outputs("identities", main="events")
        )
        return Recalled(recalled["events"], recalled["identities"])


@dataclass
class RecallSpans(beam.PTransform):
    """Read the archive of given spans, as attributed events."""

    url: str
    spans: list[Span]

    @no_annotations
    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[pa.RecordBatch]:
        packed = msgspec.msgpack.encode((sorted(self.spans), []))
        return (
            begin
            | "Spans" >> beam.Create([("touched", [packed])], reshuffle=False)
            | "Recall" >> beam.ParDo(_RecallFn(self.url))
        )


class _TouchFn(beam.DoFn):
    """The spans, and the days, that a bundle touches, each once."""

    def start_bundle(self) -> None:
        self._keys: set[str] = set()
        self._spans: set[Span] = set()
        self._days: set[tuple[str, int]] = set()

    def process(self, events: pa.RecordBatch) -> None:
        keys, codes = code_column(events["rating_keys"].flatten())
        for text in {keys[code] for code in np.unique(codes).tolist()} - self._keys:
            self._keys.add(text)
            key = RatingKey.parse(text)
            start, end = int(key.period_start.timestamp()), int(key.period_end.timestamp())
            self._spans.add(Span(key.tenant_id, key.billing_account_id, start, end))
        tenants, tenant = code_column(events["tenant_id"])
        days = utc_days(events["time"])
        for pair in np.unique(tenant * 100_000 + days).tolist():
            self._days.add((tenants[pair // 100_000], pair % 100_000))

    def finish_bundle(self) -> Iterator[beam.utils.windowed_value.WindowedValue]:
        if self._spans:
            packed = msgspec.msgpack.encode((sorted(self._spans), sorted(self._days)))
            window = beam.window.GlobalWindow()
            yield beam.utils.windowed_value.WindowedValue(("touched", packed), window.start, (window,))


def joined(spans: Iterable[Span]) -> list[Span]:
    """The same time, with the spans of an account that overlap or meet made one: no event is read twice."""
    made: list[Span] = []
    for span in sorted(spans):
        last = made[-1] if made else None
        if last and last[:2] == span[:2] and span.start <= last.end:
            made[-1] = last._replace(end=max(last.end, span.end))
        else:
            made.append(span)
    return made


_EVENTS = """
SELECT tenant_id, source, id, type, subject, time, received_time, account_id, billing_account_id, identity,
       rating_keys, quantities, counted_values
FROM usage_events FINAL
"""
_SELECT = (
    _EVENTS
    + """
WHERE tenant_id = {tenant:String} AND billing_account_id IN {accounts:Array(String)}
  AND time >= fromUnixTimestamp64Second({start:Int64}, 'UTC') AND time < fromUnixTimestamp64Second({end:Int64}, 'UTC')
"""
)
_KEYS = """
SELECT rating_key_id, rating_key FROM rating_keys FINAL
WHERE tenant_id = {tenant:String} AND billing_account_id IN {accounts:Array(String)}
"""


_IDENTITIES = """
SELECT identity, time FROM usage_events
WHERE tenant_id = {tenant:String} AND toYYYYMMDD(time) IN {days:Array(UInt32)}
"""


class _RecallFn(beam.DoFn):
    def __init__(self, url: str) -> None:
        self._url = url

    def process(self, touched: tuple[str, Iterable[bytes]]) -> Iterator[Any]:
        spans: set[Span] = set()
        days: dict[str, set[int]] = {}
        for packed in touched[1]:
            some, others = msgspec.msgpack.decode(packed)
            spans |= {Span(*span) for span in some}
            for tenant, day in others:
                days.setdefault(tenant, set()).add(day)
        alike: dict[tuple[str, int, int], list[str]] = {}
        for span in joined(spans):
            alike.setdefault((span.tenant_id, span.start, span.end), []).append(span.billing_account_id)
        # Identities first, and of their days no events but theirs: what a killed job's insert brings between the two
        # reads is new to `deduplicate` then. Known there and not counted here, it would be lost.
        names: dict[str, np.ndarray] = {}
        for tenant, some_days in days.items():
            numbers = [int(str(np.datetime64(day, "D")).replace("-", "")) for day in sorted(some_days)]
            rows = clickhouse.query(self._url, _IDENTITIES, {"tenant": tenant, "days": numbers})
            names[tenant] = np.sort(_names(rows["identity"].combine_chunks()))
            for batch in rows.to_batches():
                yield beam.pvalue.TaggedOutput("identities", batch)
        for (tenant, start, end), accounts in alike.items():
            for batch in recalled(self._url, {"tenant": tenant, "accounts": accounts, "start": start, "end": end}):
                if tenant in days:
                    batch = _named(batch, days[tenant], names[tenant])
                Metrics.counter("recall", "events").inc(batch.num_rows)
                yield batch


def _names(identities: pa.Array) -> np.ndarray:
    """The first 8 bytes of each identity."""
    column = identities.cast(pa.binary(16))
    return np.frombuffer(column.buffers()[1] or b"", np.uint64)[2 * column.offset :][: 2 * len(column) : 2]


def _named(events: pa.RecordBatch, days: set[int], names: np.ndarray) -> pa.RecordBatch:
    """Without those on some days whose names are not there; names are sorted."""
    mine = _names(events["identity"])
    places = np.searchsorted(names, mine)
    is_there = np.zeros(len(mine), bool)
    inside = places < len(names)
    is_there[inside] = names[places[inside]] == mine[inside]
    stays = is_there | ~np.isin(utc_days(events["time"]), sorted(days))
    return events if stays.all() else events.filter(pa.array(stays))


_TWINS = (
    _EVENTS
    + """
WHERE time >= fromUnixTimestamp64Micro({first:Int64}, 'UTC') AND time <= fromUnixTimestamp64Micro({last:Int64}, 'UTC')
  AND hex(substring(identity, 1, 12)) IN {names:Array(String)}
"""
)
_TWIN_KEYS = """
SELECT rating_key_id, rating_key FROM rating_keys FINAL WHERE rating_key_id IN {ids:Array(UInt64)}
"""
_TWINS_AT_ONCE = 5_000


def archived_twins(url: str, events: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Archived events with the ids of some events, at the times that these span."""
    times = np.asarray(events["time"].cast(pa.int64()))
    names = [identity[:12].hex().upper() for identity in events["identity"].to_pylist()]
    for start in range(0, len(names), _TWINS_AT_ONCE):
        some = names[start : start + _TWINS_AT_ONCE]
        rows = clickhouse.query(url, _TWINS, {"first": int(times.min()), "last": int(times.max()), "names": some})
        if rows.num_rows:
            ids = pc.list_flatten(rows["rating_keys"]).unique().to_pylist()
            yield from _with_keys(rows, clickhouse.query(url, _TWIN_KEYS, {"ids": ids}))


def recalled(url: str, parameters: dict[str, object]) -> Iterator[pa.RecordBatch]:
    """Archived events of accounts in a span of time, in the schema of attributed events, without payload."""
    rows = clickhouse.query(url, _SELECT, parameters)
    if rows.num_rows:
        yield from _with_keys(rows, clickhouse.query(url, _KEYS, parameters))


def _with_keys(rows: pa.Table, keys: pa.Table) -> Iterator[pa.RecordBatch]:
    ids = np.asarray(keys["rating_key_id"])
    order = np.argsort(ids)
    texts = keys["rating_key"].to_pylist()
    texts = [texts[place] for place in order.tolist()]
    ids = ids[order]
    for batch in rows.to_batches():
        wanted = np.asarray(batch["rating_keys"].flatten())
        codes = np.searchsorted(ids, wanted)
        if (len(wanted) and not (codes < len(ids)).all()) or not (ids[codes] == wanted).all():
            raise clickhouse.DatabaseError(
                "usage_events names rating keys that rating_keys does not have: the archive is damaged"
            )
        yield _attributed(batch, symbols(codes, texts))


def _attributed(batch: pa.RecordBatch, keys: pa.Array) -> pa.RecordBatch:
    lists = batch["rating_keys"].offsets
    offsets = pa.array(np.asarray(lists) - lists[0].as_py(), pa.int32())
    nothing = {
        "payload": pa.array([b""] * batch.num_rows, pa.binary()),
        "origin": symbols(np.zeros(batch.num_rows, np.int32), [""]),
        "position": pa.array(np.zeros(batch.num_rows, np.int64)),
        "rating_keys": pa.ListArray.from_arrays(offsets, keys),
    }
    arrays = []
    for item in ATTRIBUTED:
        column = nothing.get(item.name)
        if column is None:
            column = batch[item.name]
            if pa.types.is_list(item.type):
                values = column.flatten()
                values = values.dictionary_encode() if pa.types.is_dictionary(item.type.value_type) else values
                column = pa.ListArray.from_arrays(offsets, values.cast(item.type.value_type))
            elif pa.types.is_dictionary(item.type) and not pa.types.is_dictionary(column.type):
                column = column.dictionary_encode().cast(item.type)
            else:
                column = column.cast(item.type)
        arrays.append(column)
    return pa.RecordBatch.from_arrays(arrays, schema=ATTRIBUTED)
