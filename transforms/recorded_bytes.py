"""Recorded usage from the bytes of archived events: the stages' own functions read them again."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from meterline.schemas.event import Reason, microseconds
from meterline.transforms import clickhouse
from meterline.transforms.attribute import Attributor
from meterline.transforms.blocks import Block, Records
from meterline.transforms.meter import Totals
from meterline.transforms.recorded_parts import SECOND, Found, Part, live
from meterline.transforms.scan import Scanner
from meterline.transforms.shape import EventShape

# Of archived events, whether they came in time was decided when they came.
_RECEIVED = microseconds(datetime(2200, 1, 1, tzinfo=UTC))


def read_bytes(url: str, part: Part, types: Collection[str], found: Found) -> None:
    """Add the usage of a part's events of some types."""
    totals, attributor = Totals(), Attributor(found.book)
    scanner = Scanner(EventShape.of(found.book.catalog))
    sql = live(url, part, f"payload, {SECOND} AS second", "type IN {types:Array(String)}")
    table = clickhouse.query(url, sql, part.parameters | {"types": sorted(types)}, as_text=False)
    for batch in table.to_batches():
        records = _records(batch["payload"])
        block = Block(records, np.arange(len(records)), "", _RECEIVED)
        scanned = scanner.scan(records, _RECEIVED)
        in_days = found.in_days(batch["second"])
        for place, reason, _ in scanned.rejected:
            found.rejected[reason] += int(in_days[place])
        if scanned.events.num_rows:
            events = scanned.events.append_column("origin", block.origins(scanned.places))
            events = events.append_column("position", pa.array(scanned.places))
            attributed, unknown = attributor.attribute(events)
            times = np.asarray(unknown["time"].cast(pa.int64())) // 1_000_000
            found.rejected[Reason.UNKNOWN_SUBJECT] += int(found.in_days(times).sum())
            totals.add(attributed, found.book.catalog)
    for text, _, usages in totals.take():
        for usage in usages.values():
            found.add(text, usage)


def _records(payloads: pa.Array) -> Records:
    """A column of bytes as records, over one copy of them."""
    _, offsets, data = payloads.buffers()
    width = np.int64 if pa.types.is_large_binary(payloads.type) else np.int32
    bounds = np.frombuffer(offsets, width)[payloads.offset : payloads.offset + len(payloads) + 1].astype(np.int64)
    return Records(data.to_pybytes() if data is not None else b"", bounds[:-1], bounds[1:])
