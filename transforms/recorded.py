"""Recorded usage under another catalog: what the archived events of a billing period are as usage of its rating keys.

The bytes of the events are read by the stages' own functions, part by part, and what comes out is one usage for each
rating key; nothing is stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from meterline.schemas.event import microseconds
from meterline.schemas.records import RatingKey
from meterline.schemas.voids import VOID_TYPE
from meterline.transforms import clickhouse
from meterline.transforms.attribute import Attributor
from meterline.transforms.blocks import Block, Records
from meterline.transforms.meter import Totals
from meterline.transforms.rules.aggregation import Usage, merge
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.fees import period_label
from meterline.transforms.rules.periods import Period, period_with_label, utc_days_of_label
from meterline.transforms.scan import Scanner
from meterline.transforms.shape import EventShape

# Events that are read at once: what is held in memory.
_AT_ONCE = 200_000
_DAY = 86_400
# Of archived events, whether they came in time was decided when they came.
_RECEIVED = microseconds(datetime(2200, 1, 1, tzinfo=UTC))


class Part(NamedTuple):
    """Archived events that are read together: those of some payers at seconds [start, end)."""

    tenant_id: str
    billing_accounts: tuple[str, ...]
    start: int
    end: int
    events: int

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "tenant": self.tenant_id,
            "accounts": list(self.billing_accounts),
            "start": self.start,
            "end": self.end,
        }


@dataclass
class Recorded:
    """What a period's archived events are under a catalog.

    Args:
      usage: By the text of the rating key.
      events: How many were looked at; some may lie in periods next to this one.
      rejected: Of the UTC days that name the period, those that the catalog would not accept, by reason.
    """

    usage: dict[str, Usage] = field(default_factory=dict)
    events: int = 0
    rejected: Counter[str] = field(default_factory=Counter)


def period_bounds(label: str, book: Directory) -> Period:
    """The time that the billing periods of a label cover together, those of unpriced usage too."""
    found = (period_with_label(label, calendar) for calendar in {one.calendar for one in book.catalog.subscriptions})
    periods = [utc_days_of_label(label), *(one for one in found if one is not None)]
    return Period(min(one.start for one in periods), max(one.end for one in periods), label)


_PAYERS = f"""
SELECT tenant_id, billing_account_id, count() AS events FROM usage_events
WHERE type != '{VOID_TYPE}' AND time >= fromUnixTimestamp64Second({{start:Int64}}, 'UTC')
  AND time < fromUnixTimestamp64Second({{end:Int64}}, 'UTC')
GROUP BY tenant_id, billing_account_id ORDER BY tenant_id, billing_account_id
"""


def parts(url: str, period: Period, at_once: int = _AT_ONCE) -> list[Part]:
    """The archived events of a stretch of time, cut by payer and, where one has very many, by time."""
    start, end = int(period.start.timestamp()), int(period.end.timestamp())
    made: list[Part] = []
    for row in clickhouse.query(url, _PAYERS, {"start": start, "end": end}).to_pylist():
        tenant, payer, events = row["tenant_id"], row["billing_account_id"], row["events"]
        last = made[-1] if made else None
        if last and last.tenant_id == tenant and last[2:4] == (start, end) and last.events + events <= at_once:
            accounts = (*last.billing_accounts, payer)
            made[-1] = last._replace(billing_accounts=accounts, events=last.events + events)
            continue
        pieces = min(-(-events // at_once), -(-(end - start) // _DAY))
        days = -(-(end - start) // _DAY // pieces) * _DAY
        for first in range(start, end, days):
            made.append(Part(tenant, (payer,), first, min(first + days, end), -(-events // pieces)))
    return made


_PAYLOADS = f"""
SELECT payload, toInt64(toUnixTimestamp64Second(toDateTime64(time, 0, 'UTC'))) AS second FROM usage_events FINAL
WHERE tenant_id = {{tenant:String}} AND billing_account_id IN {{accounts:Array(String)}} AND type != '{VOID_TYPE}'
  AND time >= fromUnixTimestamp64Second({{start:Int64}}, 'UTC')
  AND time < fromUnixTimestamp64Second({{end:Int64}}, 'UTC')
  AND (tenant_id, source, id, time) NOT IN (
      SELECT tenant_id, source, id, time FROM voids WHERE tenant_id = {{tenant:String}})
"""


@dataclass
class Reader:
    """Reads the archive of a period as usage under a catalog."""

    url: str
    book: Directory
    label: str
    found: Recorded = field(default_factory=Recorded)

    def __post_init__(self) -> None:
        self._days = utc_days_of_label(self.label)
        self._aggregations = {meter.id: meter.aggregation for meter in self.book.catalog.meters}
        self._labels: dict[tuple[str, datetime], str | None] = {}

    def read(self, part: Part) -> None:
        """Add the usage of a part."""
        totals, attributor = Totals(), Attributor(self.book)
        scanner = Scanner(EventShape.of(self.book.catalog))
        table = clickhouse.query(self.url, _PAYLOADS, part.parameters, as_text=False)
        for batch in table.to_batches():
            records = _records(batch["payload"])
            block = Block(records, np.arange(len(records)), "", _RECEIVED)
            scanned = scanner.scan(records, _RECEIVED)
            in_days = self._is_in_days(batch["second"])
            for place, reason, _ in scanned.rejected:
                self.found.rejected[reason] += bool(in_days[place])
            if scanned.events.num_rows:
                events = scanned.events.append_column("origin", block.origins(scanned.places))
                events = events.append_column("position", pa.array(scanned.places))
                attributed, unknown = attributor.attribute(events)
                seconds = unknown["time"].cast(pa.timestamp("s", tz="UTC"), safe=False)
                self.found.rejected["unknown_subject"] += int(self._is_in_days(seconds).sum())
                totals.add(attributed, self._aggregations)
            self.found.events += len(records)
        for text, _, usages in totals.take():
            for usage in usages.values():
                self._add(text, usage)

    def _is_in_days(self, seconds: pa.Array) -> np.ndarray:
        start, end = (int(instant.timestamp()) for instant in self._days[:2])
        found = np.asarray(seconds.cast(pa.int64()))
        return (found >= start) & (found < end)

    def _add(self, text: str, usage: Usage) -> None:
        key = RatingKey.parse(text)
        if self._label_of(key) == self.label:
            known = self.found.usage.get(text)
            self.found.usage[text] = usage if known is None else merge(self._aggregations[key.meter_id], known, usage)

    def _label_of(self, key: RatingKey) -> str | None:
        if not key.subscription_id:
            return f"{key.period_start:%Y-%m}"
        name = key.subscription_id, key.period_start
        if name not in self._labels:
            self._labels[name] = period_label(key, self.book)
        return self._labels[name]


def _records(payloads: pa.Array) -> Records:
    """A column of bytes as records, over one copy of them."""
    _, offsets, data = payloads.buffers()
    width = np.int64 if pa.types.is_large_binary(payloads.type) else np.int32
    bounds = np.frombuffer(offsets, width)[payloads.offset : payloads.offset + len(payloads) + 1].astype(np.int64)
    text = data.to_pybytes() if data is not None else b""
    return Records(text, bounds[:-1], bounds[1:])


def read(
    url: str, book: Directory, label: str, show: Callable[[int, int], None] = lambda done, events: None
) -> Recorded:
    """The usage of a period under a catalog.

    Args:
      show: Called again and again with how many archived events are read, and how many there are.
    """
    todo = parts(url, period_bounds(label, book))
    events, done = sum(part.events for part in todo), 0
    reader = Reader(url, book, label)
    for part in todo:
        show(done, events)
        reader.read(part)
        done += part.events
    return reader.found
