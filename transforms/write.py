"""write: line items, archived events, rating keys and rejects → ClickHouse.

Rows are absolute, and their tables replace by key: writing one twice changes nothing. An insert that fails in the end
fails the bundle, so that nothing is acknowledged upstream before it is stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.typehints.decorators import no_annotations

from meterline.schemas.arrow import AMOUNT, MICROSECONDS, QUANTITY
from meterline.schemas.records import LineItem, RatingKey, Reject, rating_key_id
from meterline.schemas.voids import Void
from meterline.transforms import clickhouse
from meterline.transforms.columns import code_column
from meterline.transforms.lease import RunGuard
from meterline.transforms.void import voiding_rows

MAX_ROWS = 50_000
MAX_BYTES = 64 << 20
_KEPT_KEYS = 100_000
# Counted apart: what is stored so many seconds after it was received, or sooner.
WITHIN_SECONDS = (5, 30, 300)
_SECONDS = pa.timestamp("s", tz="UTC")
_TEXT_MAP = pa.map_(pa.string(), pa.string())


@dataclass
class WriteRows(beam.PTransform):
    """Store elements, many at a time.

    Args:
      url: Of the database.
      to_arrow: By the name of a table, from the elements of a batch to its rows; tables are written in this order.
      guard: Is asked before each attempt to insert, and raises when nothing may be written any more.
      is_live: Whether elements are received as they happen; then the delay until they are stored is counted.
    """

    url: str
    to_arrow: dict[str, Callable[[list[Any]], pa.Table]]
    guard: RunGuard | None = None
    is_live: bool = False

    @no_annotations
    def expand(self, rows: beam.PCollection[Any]) -> beam.PCollection[None]:
        return rows | "Insert" >> beam.ParDo(_InsertFn(self.url, self.to_arrow, self.guard, self.is_live))


class _InsertFn(beam.DoFn):
    def __init__(
        self,
        url: str,
        to_arrow: dict[str, Callable[[list[Any]], pa.Table]],
        guard: RunGuard | None = None,
        is_live: bool = False,
    ) -> None:
        self._url, self._to_arrow, self._guard, self._is_live = url, to_arrow, guard, is_live

    def start_bundle(self) -> None:
        self._held: list[Any] = []
        self._rows = self._bytes = 0

    def process(self, element: Any) -> None:
        self._held.append(element)
        rows, size = (element.num_rows, element.nbytes) if isinstance(element, pa.RecordBatch) else (1, 256)
        self._rows += rows
        self._bytes += size
        if self._rows >= MAX_ROWS or self._bytes >= MAX_BYTES:
            self._flush()

    def finish_bundle(self) -> None:
        self._flush()

    def _flush(self) -> None:
        if self._held:
            # Before each attempt: one that hung may come back when another run has begun.
            with clickhouse.guarded_by(self._guard.check) if self._guard else nullcontext():
                for table, to_arrow in self._to_arrow.items():
                    rows = to_arrow(self._held)
                    began = time.monotonic()
                    clickhouse.insert(self._url, table, rows)
                    if rows.num_rows:
                        _count(table, rows, time.monotonic() - began, self._is_live)
        self.start_bundle()


def _count(table: str, rows: pa.Table, seconds: float, is_live: bool) -> None:
    """Count an insert. The counters say what the distributions do, as Flink shows its reporters no distribution."""
    milliseconds = round(seconds * 1000)
    Metrics.counter("write", f"{table}_rows").inc(rows.num_rows)
    Metrics.counter("write", f"{table}_inserts").inc()
    Metrics.counter("write", f"{table}_milliseconds").inc(milliseconds)
    Metrics.distribution("write", f"{table}_insert_milliseconds").update(milliseconds)
    if is_live and "received_time" in rows.column_names:
        delays = time.time_ns() // 1000 - np.asarray(rows["received_time"].cast(pa.int64()))
        Metrics.distribution("write", f"{table}_delay_milliseconds").update(max(int(delays.max()) // 1000, 0))
        for within in WITHIN_SECONDS:
            Metrics.counter("write", f"{table}_within_{within}s").inc(int((delays <= within * 1_000_000).sum()))


def line_item_rows(items: list[LineItem]) -> pa.Table:
    lengths = [len(item.tiers) for item in items]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    tiers = [tier for item in items for tier in item.tiers]

    def nested(kind: pa.DataType, name: str) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, pa.array([getattr(tier, name) for tier in tiers], kind))

    return pa.table(
        {
            **key_columns([item.key for item in items]),
            "window_start": pa.array([item.window_start for item in items], _SECONDS),
            "window_end": pa.array([item.window_end for item in items], _SECONDS),
            "account_id": [item.account_id for item in items],
            "line_item_id": [item.id for item in items],
            "quantity_from": pa.array([item.quantity_from for item in items], QUANTITY),
            "quantity_to": pa.array([item.quantity_to for item in items], QUANTITY),
            "amount": pa.array([item.amount for item in items], AMOUNT),
            "currency": [item.currency for item in items],
            "tiers.tier": nested(pa.uint16(), "tier"),
            "tiers.quantity": nested(QUANTITY, "quantity"),
            "tiers.unit_price": nested(AMOUNT, "unit_price"),
            "tiers.flat_fee": nested(AMOUNT, "flat_fee"),
            "tiers.amount": nested(AMOUNT, "amount"),
            "event_count": pa.array([item.event_count for item in items], pa.uint64()),
            "voided_count": pa.array([item.voided_count for item in items], pa.uint64()),
            "revision": pa.array([item.revision for item in items], pa.uint64()),
        }
    )


def key_columns(keys: Iterable[RatingKey]) -> dict[str, Any]:
    """The columns of rating keys, and their ids."""
    keys = list(keys)
    # Rows of one key come together, and have one object: what is made for each is made once.
    places: dict[int, int] = {}
    codes = pa.array([places.setdefault(id(key), len(places)) for key in keys], pa.int32())
    different = list({id(key): key for key in keys}.values())
    names = ("tenant_id", "billing_account_id", "subscription_id", "charge_id", "meter_id", "rate_card_version")
    columns = {
        **{name: pa.array([getattr(key, name) for key in different], pa.string()) for name in names},
        "period_start": pa.array([key.period_start for key in different], _SECONDS),
        "period_end": pa.array([key.period_end for key in different], _SECONDS),
        "dimensions": pa.array([list(key.dimensions) for key in different], _TEXT_MAP),
        "rating_key_id": pa.array([key.id for key in different], pa.uint64()),
    }
    return {name: column.take(codes) for name, column in columns.items()}


def rating_key_rows(batches: list[pa.RecordBatch]) -> pa.Table:
    """The different rating keys of attributed events."""
    texts: set[str] = set()
    for batch in batches:
        keys, codes = code_column(batch["rating_keys"].flatten())
        texts |= {keys[code] for code in np.unique(codes).tolist()}
    ordered = sorted(texts)
    return pa.table(
        {
            "rating_key": ordered,
            **key_columns(map(RatingKey.parse, ordered)),
        }
    )


class NewRatingKeys:
    """The different rating keys of attributed events that this worker has not stored yet, for those of a stream are the
    same in every bundle. After an insert that failed nobody asks: Beam throws a worker's steps away then.
    """

    def __init__(self) -> None:
        self._stored: set[str] = set()

    def __call__(self, batches: list[pa.RecordBatch]) -> pa.Table:
        rows = rating_key_rows(batches)
        texts = rows["rating_key"].to_pylist()
        rows = rows.filter(pa.array([text not in self._stored for text in texts], pa.bool_()))
        if len(self._stored) > _KEPT_KEYS:
            self._stored.clear()
        self._stored.update(texts)
        return rows


def void_rows(batches: list[pa.RecordBatch]) -> pa.Table:
    """What the voiding events among attributed events void."""
    rows = [(batch, row) for batch in batches for row in voiding_rows(batch)]
    voids = [Void.parse(batch["payload"][row].as_py()) for batch, row in rows]
    received = [batch["received_time"][row].as_py() for batch, row in rows]
    return pa.table(
        {
            "tenant_id": pa.array([void.event.tenant_id for void in voids], pa.string()),
            "time": pa.array([void.event.time for void in voids], pa.int64()).cast(MICROSECONDS),
            "source": pa.array([void.event.source for void in voids], pa.string()),
            "id": pa.array([void.event.id for void in voids], pa.string()),
            "reason": pa.array([void.reason for void in voids], pa.string()),
            "void_id": pa.array([void.id for void in voids], pa.string()),
            "received_time": pa.array(received, MICROSECONDS),
        }
    )


def usage_event_rows(batches: list[pa.RecordBatch], run_id: str) -> pa.Table:
    """Attributed events as a run archives them."""
    rows = pa.Table.from_batches([_archived(batch) for batch in batches]).unify_dictionaries()
    run = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows.num_rows, np.int32)), pa.array([run_id]))
    return rows.append_column("run_id", run)


_ARCHIVED = [
    *("tenant_id", "billing_account_id", "account_id", "time", "identity", "source", "id", "type", "subject"),
    *("rating_keys", "quantities", "counted_values", "received_time", "payload"),
]


def _archived(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rating keys as their ids: a fixed width is written, and read back, several times faster. Counted values as plain
    strings, as the table has them: ClickHouse unpacks a dictionary inside a list slowly."""
    keys, codes = code_column(batch["rating_keys"].flatten())
    ids = np.asarray([rating_key_id(key) for key in keys], np.uint64)[codes] if keys else np.zeros(0, np.uint64)
    offsets = batch["rating_keys"].offsets
    starts = _from_zero(offsets)
    values = batch["counted_values"].flatten().cast(pa.string())
    columns = {
        "rating_keys": pa.ListArray.from_arrays(starts, pa.array(ids)),
        "counted_values": pa.ListArray.from_arrays(starts, values),
        "payload": batch["payload"].dictionary_decode(),
    }
    return pa.RecordBatch.from_pydict({name: columns[name] if name in columns else batch[name] for name in _ARCHIVED})


def _from_zero(offsets: pa.Array) -> pa.Array:
    numbers = np.asarray(offsets)
    return pa.array(numbers - numbers[0], pa.int32())


def reject_rows(rejects: list[Reject]) -> pa.Table:
    return pa.table(
        {
            "reject_id": [reject.id for reject in rejects],
            "stage": [reject.stage for reject in rejects],
            "reason": [str(reject.reason) for reject in rejects],
            "message": [reject.message.encode("utf-8", "backslashreplace").decode() for reject in rejects],
            "payload": pa.array([reject.payload for reject in rejects], pa.binary()),
            "origin": [reject.origin for reject in rejects],
            "position": pa.array([reject.position for reject in rejects], pa.uint64()),
            "received_time": pa.array([reject.received_time for reject in rejects], pa.int64()).cast(MICROSECONDS),
        }
    )
