"""attribute: columns of events → the same with account, identity and, for each meter, rating key and quantity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.typehints.decorators import no_annotations

from meterline.schemas.arrow import ATTRIBUTED, QUANTITY
from meterline.schemas.event import Reason, microseconds
from meterline.schemas.meters import Aggregation, Meter
from meterline.schemas.records import RatingKey, Reject
from meterline.transforms.catalogs import Catalogs
from meterline.transforms.columns import (
    code_column,
    decimal_limbs,
    distinct,
    hash_each,
    hash_ids,
    mix,
    symbols,
    taken,
)
from meterline.transforms.rules.attribution import Directory, Segment, directory
from meterline.transforms.shape import text_column, value_column

_KEPT_KEYS = 100_000


class Attributed(NamedTuple):
    events: beam.PCollection[pa.RecordBatch]
    rejects: beam.PCollection[Reject]


@dataclass
class AttributeEvents(beam.PTransform):
    """Say for each event who pays and under which price; events of unknown subjects are rejected here, before
    their identity is remembered, so that they can be sent again once the catalog knows the subject."""

    catalog: beam.pvalue.AsSingleton

    @no_annotations
    def expand(self, events: beam.PCollection[pa.RecordBatch]) -> Attributed:
        attribute = beam.ParDo(_AttributeFn(), self.catalog).with_output_types(pa.RecordBatch)
        attributed = events | "Attribute" >> attribute.with_outputs("rejects", main="events")
        return Attributed(attributed["events"], attributed["rejects"])


class _AttributeFn(beam.DoFn):
    def setup(self) -> None:
        self._attributor: Attributor | None = None
        self._digest = ""

    def process(self, events: pa.RecordBatch, catalogs: Catalogs) -> Iterator[Any]:
        # Of a batch all events were received under one catalog.
        catalog = catalogs.as_of(events["received_time"][0].value)
        if self._attributor is None or self._digest != catalog.digest:
            self._attributor, self._digest = Attributor(directory(catalog)), catalog.digest
        attributed, unknown = self._attributor.attribute(events)
        for row in unknown.to_pylist():
            Metrics.counter("attribute", Reason.UNKNOWN_SUBJECT).inc()
            message = f"no account of tenant {row['tenant_id']!r} has the subject {row['subject']!r}"
            yield beam.pvalue.TaggedOutput(
                "rejects",
                Reject(
                    "attribute",
                    Reason.UNKNOWN_SUBJECT,
                    message,
                    row["payload"],
                    row["origin"],
                    row["position"],
                    microseconds(row["received_time"]),
                ),
            )
        if attributed.num_rows:
            yield attributed


@dataclass
class Attributor:
    """Attributes whole batches; segments of time that were met are kept, sorted, for one search over a batch."""

    directory: Directory
    _texts: dict[tuple[int | str, ...], str] = field(default_factory=dict)
    _timelines: dict[tuple[str, str], int] = field(default_factory=dict)
    _found: list[tuple[int, int, Segment]] = field(default_factory=list)
    _starts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    _ends: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def attribute(self, events: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """The attributed events (`ATTRIBUTED`), and those whose subject no account has."""
        accounts, account_of_row = self._accounts(events)
        known = account_of_row >= 0
        unknown = events.filter(pa.array(~known))
        if not known.all():
            events, account_of_row = events.filter(pa.array(known)), account_of_row[known]
        types, type_of_row = code_column(events["type"])
        seconds = np.asarray(events["time"].cast(pa.int64())) // 1_000_000

        fed, counts, took = self._fed(events, types, type_of_row)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        total = int(offsets[-1])
        key_codes = np.zeros(total, np.int32)
        keys: dict[str, int] = {}
        value_codes = np.zeros(total, np.int32)
        values: dict[str, int] = {"": 0}
        quantities = np.zeros((total, 2), np.int64)
        quantities[:, 0] = 10**12

        for meter, rows, place in fed:
            slots = offsets[rows] + place
            key_codes[slots] = self._keys(events, rows, meter, accounts, account_of_row, seconds, keys)
            if (column := text_column(meter)) is not None:
                texts, codes = code_column(events[column])
                table = np.asarray([values.setdefault(text, len(values)) for text in texts], np.int32)
                value_codes[slots] = table[codes[rows]]
            if meter.aggregation not in (Aggregation.COUNT, Aggregation.DISTINCT):
                quantities[slots] = decimal_limbs(events[value_column(meter)])[rows]

        lists = pa.array(offsets, pa.int32())
        billing = [self.directory.billing_account_of(account) for account in accounts]
        columns = {
            "account_id": symbols(account_of_row, accounts),
            "billing_account_id": symbols(account_of_row, billing),
            "rating_keys": pa.ListArray.from_arrays(lists, symbols(key_codes, list(keys))),
            "quantities": pa.ListArray.from_arrays(
                lists, pa.Array.from_buffers(QUANTITY, total, [None, pa.py_buffer(quantities)])
            ),
            "counted_values": pa.ListArray.from_arrays(lists, symbols(value_codes, list(values))),
        }
        content = self._content_hash(
            events, offsets, key_codes, list(keys), value_codes, list(values), quantities, took
        )
        columns["identity"] = identities(events, content)
        arrays = [columns[name] if name in columns else events[name] for name in ATTRIBUTED.names]
        return pa.RecordBatch.from_arrays(arrays, schema=ATTRIBUTED), unknown

    def _fed(
        self, events: pa.RecordBatch, types: list[str], type_of_row: np.ndarray
    ) -> tuple[list[tuple[Meter, np.ndarray, np.ndarray | int]], np.ndarray, np.ndarray | None]:
        """The meters that events feed, each with the rows and which of the row's meters it is; how many each row feeds;
        and, where there are filters, a number for each row that says what they took of it."""
        fed: list[tuple[Meter, np.ndarray, np.ndarray | int]] = []
        counts, took = np.zeros(len(type_of_row), np.int64), None
        # A filtered batch keeps the types of rejected rows in its dictionary.
        for code, name in enumerate(types):
            meters = self.directory.meters_by_type.get(name, ())
            rows = np.flatnonzero(type_of_row == code)
            if not any(meter.filter.conditions for meter in meters):
                fed += ((meter, rows, place) for place, meter in enumerate(meters))
                counts[rows] = len(meters)
                continue
            took = np.zeros(len(type_of_row), np.uint64) if took is None else took
            for meter in meters:
                some = rows
                if meter.filter.conditions:
                    is_taken = taken(meter.filter, events)[rows]
                    took[rows] = mix(took[rows], is_taken.astype(np.uint64))
                    some = rows[is_taken]
                fed.append((meter, some, counts[some]))
                counts[some] += 1
        return fed, counts, took

    def _accounts(self, events: pa.RecordBatch) -> tuple[list[str], np.ndarray]:
        """The accounts of the batch, and which of them each row is; −1 where no account has the subject."""
        tenants, tenant_of_row = code_column(events["tenant_id"])
        subjects, subject_of_row = code_column(events["subject"])
        first, pair_of_row = distinct(tenant_of_row * np.int64(len(subjects)) + subject_of_row)
        accounts: dict[str, int] = {}
        table = np.full(len(first), -1, np.int32)
        for place, (tenant, subject) in enumerate(zip(tenant_of_row[first].tolist(), subject_of_row[first].tolist())):
            account = self.directory.account_of(tenants[tenant], subjects[subject])
            if account is not None:
                table[place] = accounts.setdefault(account, len(accounts))
        return list(accounts), table[pair_of_row]

    def _keys(
        self,
        events: pa.RecordBatch,
        rows: np.ndarray,
        meter: Meter,
        accounts: list[str],
        account_of_row: np.ndarray,
        seconds: np.ndarray,
        keys: dict[str, int],
    ) -> np.ndarray:
        """Codes into `keys`, to which new rating keys are added, of a meter's rows."""
        timelines = np.asarray(
            [self._timelines.setdefault((account, meter.id), len(self._timelines)) for account in accounts], np.int64
        )
        segments = self._segments(timelines[account_of_row[rows]], seconds[rows], accounts, account_of_row[rows], meter)
        # One number for segment (and so account and tenant) and dimensions: a key's text is made once for each.
        first, code_of_row = distinct(segments)
        dimensions = []
        for path in meter.dimensions:
            texts, codes = code_column(events[f"d:{path}"])
            dimensions.append((texts, codes[rows]))
            first, code_of_row = distinct(code_of_row * np.int64(len(texts) or 1) + codes[rows])
        table = np.zeros(len(first), np.int32)
        for place, (at, segment) in enumerate(zip(first.tolist(), segments[first].tolist())):
            account = accounts[account_of_row[rows[at]]]
            key = self._key(account, meter, segment, tuple(texts[codes[at]] for texts, codes in dimensions))
            table[place] = keys.setdefault(key, len(keys))
        return table[code_of_row]

    def _key(self, account: str, meter: Meter, place: int, dimensions: tuple[str, ...]) -> str:
        """The text of a rating key; the texts made last are kept, as each batch needs most of them again."""
        line_start, _, segment = self._found[place]
        known = self._texts.get((line_start, *dimensions))
        if known is not None:
            return known
        if len(self._texts) >= _KEPT_KEYS:
            self._texts.clear()
        text = self._texts[line_start, *dimensions] = RatingKey(
            tenant_id=self.directory.accounts[account].tenant,
            billing_account_id=self.directory.billing_account_of(account),
            subscription_id=segment.subscription_id,
            charge_id=segment.charge_id,
            meter_id=meter.id,
            rate_card_version=segment.rate_card_version,
            period_start=segment.period_start,
            period_end=segment.period_end,
            dimensions=segment.dimensions(meter, dimensions),
        ).text
        return text

    def _segments(
        self, timelines: np.ndarray, seconds: np.ndarray, accounts: list[str], account_of_row: np.ndarray, meter: Meter
    ) -> np.ndarray:
        """The segment of each row, as an index into `_found`; segments not met before are looked up and kept."""
        # A timeline and an instant as one number: seconds up to the year 2200 take 33 bits.
        wanted = (timelines << 34) | seconds
        while True:
            place = np.searchsorted(self._starts, wanted, side="right") - 1
            missing = np.flatnonzero((place < 0) | (wanted >= self._ends[place]) if len(self._ends) else wanted >= 0)
            if not len(missing):
                return place
            _, first = np.unique(timelines[missing], return_index=True)
            for row in missing[first].tolist():
                instant = datetime.fromtimestamp(int(seconds[row]), UTC)
                segment = self.directory.segment_at(accounts[account_of_row[row]], meter.id, instant)
                line = int(timelines[row]) << 34
                self._found.append(
                    (line | int(segment.start.timestamp()), line | int(segment.end.timestamp()), segment)
                )
            self._order()

    def learn(self, known: Iterable[tuple[str, str, Segment]]) -> None:
        """Keep segments of accounts' usage of meters, so that they are not looked up one by one."""
        for account, meter_id, one in known:
            line = self._timelines.setdefault((account, meter_id), len(self._timelines)) << 34
            self._found.append((line | int(one.start.timestamp()), line | int(one.end.timestamp()), one))
        self._order()

    def _order(self) -> None:
        self._found.sort(key=lambda item: item[0])
        self._starts = np.asarray([start for start, _, _ in self._found], np.int64)
        self._ends = np.asarray([end for _, end, _ in self._found], np.int64)

    @staticmethod
    def _content_hash(
        events: pa.RecordBatch,
        offsets: np.ndarray,
        key_codes: np.ndarray,
        keys: list[str],
        value_codes: np.ndarray,
        values: list[str],
        quantities: np.ndarray,
        took: np.ndarray | None,
    ) -> np.ndarray:
        """32 bits of each event's content (docs/rules.md, "Identity"): equal for equal content, in any batch.

        The catalog is no part of it, so of a key only what the event said as its dimensions counts.
        """
        types, type_of_row = code_column(events["type"])
        subjects, subject_of_row = code_column(events["subject"])
        dimensions = [repr(RatingKey.parse(key).said) for key in keys]
        per_meter = mix(hash_each(dimensions)[key_codes], hash_each(values)[value_codes])
        per_meter = mix(per_meter, quantities[:, 0].view(np.uint64), quantities[:, 1].view(np.uint64))
        content = mix(
            np.asarray(events["time"].cast(pa.int64())).view(np.uint64),
            hash_each(types)[type_of_row],
            hash_each(subjects)[subject_of_row],
        )
        for number in range(int(np.diff(offsets).max(initial=0))):
            slots = offsets[:-1] + number
            fed = slots < offsets[1:]
            content[fed] = mix(content[fed], per_meter[slots[fed]])
        if took is not None:
            filtered = took != 0
            content[filtered] = mix(content[filtered], took[filtered])
        return (content >> np.uint64(32)).astype(np.uint32)


def identities(events: pa.RecordBatch, content: np.ndarray) -> pa.Array:
    """16 bytes an event: 12 of the hash of (tenant, source, id), then 4 of its content."""
    tenants, tenant_of_row = code_column(events["tenant_id"])
    sources, source_of_row = code_column(events["source"])
    first, prefix_of_row = distinct(tenant_of_row * np.int64(len(sources)) + source_of_row)
    # No part holds a control character, so the separator keeps them apart.
    texts = [f"{tenants[tenant_of_row[at]]}\x00{sources[source_of_row[at]]}\x00".encode() for at in first.tolist()]
    packed = hash_ids(texts, prefix_of_row, events["id"]).view(np.uint32)
    packed[:, 3] = content
    return pa.Array.from_buffers(pa.binary(16), len(packed), [None, pa.py_buffer(packed)])
