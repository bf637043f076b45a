"""recall: the archived events of the billing periods that new events touch join the input.

State is a cache of the archive: a run that starts without state, on the day after, or after a crash, sees the events
that are stored already, and so writes the rows that one run over all events would write (docs/exactly_once.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import apache_beam as beam
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.typehints.decorators import no_annotations

from meterline.schemas.arrow import ATTRIBUTED
from meterline.schemas.event import microseconds
from meterline.schemas.records import RatingKey
from meterline.schemas.voids import VOID_TYPE, EventName, Void
from meterline.transforms import clickhouse
from meterline.transforms.columns import code_column, symbols, utc_days


class Span(NamedTuple):
    """Seconds [start, end) in which an account's archived events are wanted."""

    tenant_id: str
    billing_account_id: str
    start: int
    end: int


class Touched(NamedTuple):
    """What some events touch: billing periods, (tenant, UTC day), and the events that they void."""

    spans: Collection[Span] = ()
    days: Collection[tuple[str, int]] = ()
    voids: Collection[EventName] = ()

    def packed(self) -> tuple[str, bytes]:
        """All under one key, for it is read together."""
        return "touched", msgspec.msgpack.encode([sorted(some) for some in self])

    @classmethod
    def together(cls, packed: Iterable[bytes]) -> Self:
        parts = [msgspec.msgpack.decode(one) for one in packed]
        return cls(
            {Span(*span) for spans, _, _ in parts for span in spans},
            {(tenant, day) for _, days, _ in parts for tenant, day in days},
            {EventName(*name) for _, _, voids in parts for name in voids},
        )


class Recalled(NamedTuple):
    """Archived events, apart those that count and those that were `voided`; `identities` are just that, with the time,
    of all archived events of a day."""

    events: beam.PCollection[pa.RecordBatch]
    voided: beam.PCollection[pa.RecordBatch]
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
    def expand(self, inputs: dict[str, beam.PCollection[Any]]) -> Recalled:
        """`inputs` has attributed `events`, and what voiding events have `touched`."""
        touched = inputs["events"] | "Touch" >> beam.ParDo(_TouchFn()).with_output_types(tuple[str, bytes])
        together = (touched, inputs["touched"]) | "All" >> beam.Flatten() | "Together" >> beam.GroupByKey()
        return _recall(together, self.url)


@dataclass
class RecallSpans(beam.PTransform):
    """Read the archive of given spans, as attributed events."""

    url: str
    spans: list[Span]

    @no_annotations
    def expand(self, begin: beam.pvalue.PBegin) -> Recalled:
        key, packed = Touched(self.spans).packed()
        return _recall(begin | "Spans" >> beam.Create([(key, [packed])], reshuffle=False), self.url)


def _recall(touched: beam.PCollection[tuple[str, Iterable[bytes]]], url: str) -> Recalled:
    recall = beam.ParDo(_RecallFn(url)).with_output_types(pa.RecordBatch)
    recalled = touched | "Recall" >> recall.with_outputs("voided", "identities", main="events")
    return Recalled(*(recalled[name] for name in Recalled._fields))


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
            self._spans.add(span_of(RatingKey.parse(text)))
        tenants, tenant = code_column(events["tenant_id"])
        days = utc_days(events["time"])
        for pair in np.unique(tenant * 100_000 + days).tolist():
            self._days.add((tenants[pair // 100_000], pair % 100_000))

    def finish_bundle(self) -> Iterator[beam.utils.windowed_value.WindowedValue]:
        if self._days:
            packed = Touched(self._spans, self._days).packed()
            window = beam.window.GlobalWindow()
            yield beam.utils.windowed_value.WindowedValue(packed, window.start, (window,))


def span_of(key: RatingKey) -> Span:
    start, end = int(key.period_start.timestamp()), int(key.period_end.timestamp())
    return Span(key.tenant_id, key.billing_account_id, start, end)


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


_VOIDS = """
SELECT DISTINCT tenant_id, toUnixTimestamp64Micro(time) AS time, source, id FROM voids
WHERE tenant_id = {tenant:String}
  AND voids.time >= fromUnixTimestamp64Second({start:Int64}, 'UTC')
  AND voids.time < fromUnixTimestamp64Second({end:Int64}, 'UTC')
"""
_IDENTITIES = """
SELECT identity, time FROM usage_events
WHERE tenant_id = {tenant:String} AND toYYYYMMDD(time) IN {days:Array(UInt32)}
"""


class _RecallFn(beam.DoFn):
    def __init__(self, url: str) -> None:
        self._url = url

    def process(self, touched: tuple[str, Iterable[bytes]]) -> Iterator[Any]:
        spans, tenant_days, voids = Touched.together(touched[1])
        days: dict[str, set[int]] = {}
        for tenant, day in tenant_days:
            days.setdefault(tenant, set()).add(day)
        alike: dict[tuple[str, int, int], list[str]] = {}
        for span in joined(spans):
            alike.setdefault((span.tenant_id, span.start, span.end), []).append(span.billing_account_id)
        for (tenant, start, end), accounts in alike.items():
            parameters = {"tenant": tenant, "accounts": accounts, "start": start, "end": end}
            # Known already, or of this run, which stores them only later.
            stored = clickhouse.query(self._url, _VOIDS, parameters)
            names = {EventName(**row) for row in stored.to_pylist()}.union(voids)
            for batch in recalled(self._url, parameters):
                Metrics.counter("recall", "events").inc(batch.num_rows)
                is_voided = named(batch, names)
                if not is_voided.any():
                    yield batch
                    continue
                yield batch.filter(pa.array(~is_voided))
                yield beam.pvalue.TaggedOutput("voided", batch.filter(pa.array(is_voided)))
        for tenant, some_days in days.items():
            numbers = [int(str(np.datetime64(day, "D")).replace("-", "")) for day in sorted(some_days)]
            rows = clickhouse.query(self._url, _IDENTITIES, {"tenant": tenant, "days": numbers})
            for batch in rows.to_batches():
                yield beam.pvalue.TaggedOutput("identities", batch)


def named(events: pa.RecordBatch, names: set[EventName]) -> np.ndarray:
    """Which events are called so."""
    found = np.zeros(events.num_rows, bool)
    times = np.asarray(events["time"].cast(pa.int64()))
    for row in np.flatnonzero(np.isin(times, [name.time for name in names])).tolist():
        tenant, source, id = (events[part][row].as_py() for part in ("tenant_id", "source", "id"))
        found[row] = EventName(tenant, int(times[row]), source, id) in names
    return found


_NAMED = (
    _EVENTS
    + f"""
WHERE tenant_id = {{tenant:String}} AND id IN {{ids:Array(String)}} AND type != '{VOID_TYPE}'
  AND time >= fromUnixTimestamp64Micro({{first:Int64}}, 'UTC')
  AND time <= fromUnixTimestamp64Micro({{last:Int64}}, 'UTC')
"""
)


def archived_spans(url: str, voids: Iterable[Void]) -> dict[Void, set[Span]]:
    """The billing periods that voided events counted in; voids that name no archived event are left out.

    They are those of the archived event: its subject may have moved to another payer since.
    """
    found: dict[Void, set[Span]] = {}
    by_tenant: dict[str, list[Void]] = {}
    for void in sorted(voids):
        by_tenant.setdefault(void.event.tenant_id, []).append(void)
    for tenant, of_tenant in by_tenant.items():
        for start in range(0, len(of_tenant), _NAMED_AT_ONCE):
            some = of_tenant[start : start + _NAMED_AT_ONCE]
            times, ids = [void.event.time for void in some], [void.event.id for void in some]
            parameters = {"tenant": tenant, "ids": ids, "first": min(times), "last": max(times)}
            spans: dict[tuple[EventName, str], set[Span]] = {}
            for batch in _with_their_keys(url, clickhouse.query(url, _NAMED, parameters)):
                for row in batch.to_pylist():
                    keys = map(RatingKey.parse, row["rating_keys"])
                    name = EventName(tenant, microseconds(row["time"]), row["source"], row["id"])
                    spans[name, row["subject"]] = {span_of(key) for key in keys}
            found |= {void: spans[void.event, void.subject] for void in some if (void.event, void.subject) in spans}
    return found


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
_NAMED_AT_ONCE = 5_000


def archived_twins(url: str, events: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Archived events with the ids of some events, at the times that these span."""
    times = np.asarray(events["time"].cast(pa.int64()))
    names = [identity[:12].hex().upper() for identity in events["identity"].to_pylist()]
    for start in range(0, len(names), _NAMED_AT_ONCE):
        some = names[start : start + _NAMED_AT_ONCE]
        rows = clickhouse.query(url, _TWINS, {"first": int(times.min()), "last": int(times.max()), "names": some})
        yield from _with_their_keys(url, rows)


def _with_their_keys(url: str, rows: pa.Table) -> Iterator[pa.RecordBatch]:
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
        "payload": pa.DictionaryArray.from_arrays(pa.array(np.zeros(batch.num_rows, np.int32)), pa.array([b""])),
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
