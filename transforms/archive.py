"""Single events of the archive, found by name, as attributed events; with their payload only where it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from meterline.schemas.arrow import ATTRIBUTED
from meterline.schemas.event import microseconds
from meterline.schemas.records import RatingKey
from meterline.schemas.voids import VOID_TYPE, EventName, Void
from meterline.transforms import clickhouse
from meterline.transforms.columns import referenced, symbols

_AT_ONCE = 5_000


class Archive(NamedTuple):
    """The events that earlier runs archived. A run's own are its input: they are not read back.

    So what a run reads never changes while it runs, as one rating job runs at a time (transforms/lease.py): it may be
    read in parts, at any time and again, by any worker.

    Args:
      url: Of the database.
      run_id: Of the run that reads; empty to read all there is.
    """

    url: str
    run_id: str

    def query(self, sql: str, parameters: dict[str, Any]) -> pa.Table:
        """The answer to a statement with `EARLIER` among its conditions."""
        return clickhouse.query(self.url, sql, {**parameters, "run": self.run_id})


EARLIER = "({run:String} = '' OR run_id != {run:String})"


class Span(NamedTuple):
    """Seconds [start, end) in which an account's archived events are wanted."""

    tenant_id: str
    billing_account_id: str
    start: int
    end: int


def span_of(key: RatingKey) -> Span:
    """The billing period of a rating key."""
    start, end = int(key.period_start.timestamp()), int(key.period_end.timestamp())
    return Span(key.tenant_id, key.billing_account_id, start, end)


_EVENTS = """
SELECT tenant_id, source, id, type, subject, time, received_time, account_id, billing_account_id, identity,
       rating_keys, quantities, counted_values
FROM usage_events FINAL
"""


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
WHERE {EARLIER} AND tenant_id = {{tenant:String}} AND id IN {{ids:Array(String)}} AND type != '{VOID_TYPE}'
  AND time >= fromUnixTimestamp64Micro({{first:Int64}}, 'UTC')
  AND time <= fromUnixTimestamp64Micro({{last:Int64}}, 'UTC')
"""
)


def archived_spans(archive: Archive, voids: Iterable[Void]) -> dict[Void, set[Span]]:
    """The billing periods that voided events counted in; voids that name no archived event are left out.

    They are those of the archived event: its subject may have moved to another payer since.
    """
    found: dict[Void, set[Span]] = {}
    by_tenant: dict[str, list[Void]] = {}
    for void in sorted(voids):
        by_tenant.setdefault(void.event.tenant_id, []).append(void)
    for tenant, of_tenant in by_tenant.items():
        for start in range(0, len(of_tenant), _AT_ONCE):
            some = of_tenant[start : start + _AT_ONCE]
            times, ids = [void.event.time for void in some], [void.event.id for void in some]
            parameters = {"tenant": tenant, "ids": ids, "first": min(times), "last": max(times)}
            spans: dict[tuple[EventName, str], set[Span]] = {}
            for batch in _with_their_keys(archive.url, archive.query(_NAMED, parameters)):
                for row in batch.to_pylist():
                    keys = map(RatingKey.parse, row["rating_keys"])
                    name = EventName(tenant, microseconds(row["time"]), row["source"], row["id"])
                    spans[name, row["subject"]] = {span_of(key) for key in keys}
            found |= {void: spans[void.event, void.subject] for void in some if (void.event, void.subject) in spans}
    return found


_AT_TIMES = (
    _EVENTS
    + f"""
WHERE {EARLIER} AND tenant_id = {{tenant:String}} AND billing_account_id IN {{accounts:Array(String)}}
  AND toUnixTimestamp64Micro(time) IN {{times:Array(Int64)}}
"""
)


def archived_at_times_of(
    archive: Archive, names: Iterable[EventName], accounts: list[str]
) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """The events of a tenant's accounts at the instants of some events, and which of them these are."""
    by_time: dict[int, set[EventName]] = {}
    for name in names:
        by_time.setdefault(name.time, set()).add(name)
    times = sorted(by_time)
    for start in range(0, len(times), _AT_ONCE):
        some = times[start : start + _AT_ONCE]
        wanted = set().union(*(by_time[time] for time in some))
        tenant = next(iter(wanted)).tenant_id
        rows = archive.query(_AT_TIMES, {"tenant": tenant, "accounts": accounts, "times": some})
        for batch in _with_their_keys(archive.url, rows):
            yield batch, named(batch, wanted)


_TWINS = (
    _EVENTS.replace("counted_values", "counted_values, payload")
    + """
WHERE time >= fromUnixTimestamp64Micro({first:Int64}, 'UTC') AND time <= fromUnixTimestamp64Micro({last:Int64}, 'UTC')
  AND hex(substring(identity, 1, 12)) IN {names:Array(String)}
"""
)
_TWIN_KEYS = """
SELECT rating_key_id, rating_key FROM rating_keys FINAL WHERE rating_key_id IN {ids:Array(UInt64)}
"""


def archived_twins(url: str, events: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Archived events with the ids of some events, at the times that these span; with their payload."""
    times = np.asarray(events["time"].cast(pa.int64()))
    names = [identity[:12].hex().upper() for identity in events["identity"].to_pylist()]
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        rows = clickhouse.query(url, _TWINS, {"first": int(times.min()), "last": int(times.max()), "names": some})
        yield from _with_their_keys(url, rows)


def _with_their_keys(url: str, rows: pa.Table) -> Iterator[pa.RecordBatch]:
    if rows.num_rows:
        ids = pc.list_flatten(rows["rating_keys"]).unique().to_pylist()
        yield from _with_keys(rows, clickhouse.query(url, _TWIN_KEYS, {"ids": ids}))


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
            raise damaged()
        yield _attributed(batch, symbols(codes, texts))


def damaged() -> clickhouse.DatabaseError:
    return clickhouse.DatabaseError(
        "usage_events names rating keys that rating_keys does not have: the archive is damaged"
    )


def _attributed(batch: pa.RecordBatch, keys: pa.Array) -> pa.RecordBatch:
    lists = batch["rating_keys"].offsets
    offsets = pa.array(np.asarray(lists) - lists[0].as_py(), pa.int32())
    nothing = {
        "payload": pa.DictionaryArray.from_arrays(pa.array(np.zeros(batch.num_rows, np.int32)), pa.array([b""])),
        "origin": symbols(np.zeros(batch.num_rows, np.int32), [""]),
        "position": pa.array(np.zeros(batch.num_rows, np.int64)),
        "rating_keys": pa.ListArray.from_arrays(offsets, keys),
    }
    if "payload" in batch.schema.names:
        nothing["payload"] = referenced(batch["payload"].cast(pa.binary()))
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
