"""meter: attributed events → usage by rating key and cell, aggregated before the shuffle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import apache_beam as beam
import msgspec
import numpy as np
import pyarrow as pa
import xxhash
from apache_beam.transforms.window import GlobalWindow
from apache_beam.typehints.decorators import no_annotations
from apache_beam.utils.windowed_value import WindowedValue

from meterline.schemas.meters import Aggregation
from meterline.schemas.records import RatingKey
from meterline.transforms.blocks import compiled
from meterline.transforms.catalogs import Catalogs, meters_of
from meterline.transforms.columns import code_column, decimal_limbs, distinct
from meterline.transforms.rules.aggregation import Cell, Usage, add

UsageByCell = dict[Cell, Usage]
# Usage held in a worker before it is passed on; the end of a bundle passes on the rest.
_MAX_CELLS = 200_000
# Quantities that are added up at once; an event has one for each meter it feeds.
_MAX_SLOTS = 500_000
# So many are held before they are: the fewer cells are made and merged.
_HELD_SLOTS = 250_000
_READ = ["id", "source", "time", "account_id", "rating_keys", "quantities", "counted_values"]


@dataclass
class MeterUsage(beam.PTransform):
    """Aggregate each meter's usage; what leaves is (rating key, packed usage by cell)."""

    catalog: beam.pvalue.AsSingleton

    @no_annotations
    def expand(self, events: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[tuple[bytes, bytes]]:
        return events | "Meter" >> beam.ParDo(_MeterFn(), self.catalog).with_output_types(tuple[bytes, bytes])


class _MeterFn(beam.DoFn):
    def setup(self) -> None:
        self._totals = Totals()

    def process(self, events: pa.RecordBatch, catalogs: Catalogs) -> Iterator[tuple[bytes, bytes]]:
        catalogs.as_of(events["received_time"][len(events) - 1].value)  # Known from here on.
        aggregations = {name: meter.aggregation for name, meter in meters_of(catalogs).items()}
        self._totals.add(events, aggregations)
        if self._totals.cells > _MAX_CELLS:
            yield from self._totals.flush()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        window = GlobalWindow()
        for keyed in self._totals.flush():
            yield WindowedValue(keyed, window.start, (window,))


@dataclass
class Totals:
    """Usage by rating key and cell of the events added since the last flush."""

    _by_key: dict[str, tuple[Aggregation, UsageByCell]] = field(default_factory=dict)
    _held: list[pa.RecordBatch] = field(default_factory=list)
    _held_slots: int = 0
    cells: int = 0

    def add(self, events: pa.RecordBatch, aggregations: dict[str, Aggregation]) -> None:
        self._aggregations = aggregations
        self._held.append(events.select(_READ))
        offsets = events["rating_keys"].offsets
        self._held_slots += offsets[len(offsets) - 1].as_py() - offsets[0].as_py()
        if self._held_slots > _HELD_SLOTS:
            self._add_held()

    def _add_held(self) -> None:
        held, self._held, self._held_slots = self._held, [], 0
        if len(held) == 1:
            self._add(held[0], self._aggregations)
        elif held:
            together = pa.Table.from_batches(held).unify_dictionaries().combine_chunks()
            for batch in together.to_batches():
                self._add(batch, self._aggregations)

    def _add(self, events: pa.RecordBatch, aggregations: dict[str, Aggregation]) -> None:
        lists = events["rating_keys"]
        starts = np.asarray(lists.offsets)
        if starts[-1] - starts[0] > _MAX_SLOTS and len(lists) > 1:
            half = len(lists) // 2
            self._add(events.slice(0, half), aggregations)
            self._add(events.slice(half), aggregations)
            return
        row = np.repeat(np.arange(len(lists)), np.diff(starts))
        keys, key = code_column(lists.flatten())
        accounts, account_of_row = code_column(events["account_id"])
        seconds = np.asarray(events["time"].cast(pa.int64()))[row] // 1_000_000
        parsed = [RatingKey.parse(text) for text in keys]
        # The window's start: its hour, or the period's start inside that hour (docs/rules.md, section 4).
        period = np.asarray([int(one.period_start.timestamp()) for one in parsed], np.int64)
        window = np.maximum(seconds - seconds % 3_600, period[key]) if len(keys) else seconds

        windows, window_code = distinct(window)
        cell = (key * len(windows) + window_code) * max(len(accounts), 1) + account_of_row[row]
        first, cell_of_slot = distinct(cell)
        counts = np.bincount(cell_of_slot, minlength=len(first)).tolist()
        slots = _Slots(events, row, cell_of_slot, len(first), first)

        by_aggregation: dict[Aggregation, list[Any]] = {}
        for place, at in enumerate(first.tolist()):
            one = parsed[key[at]]
            aggregation = aggregations.get(one.meter_id)
            if aggregation is None:  # Archived, and the catalog has the meter no more.
                continue
            if aggregation not in by_aggregation:
                by_aggregation[aggregation] = slots.values(aggregation)
            usage = Usage(counts[place], by_aggregation[aggregation][place])
            target = Cell(int(window[at]), accounts[account_of_row[row[at]]])
            _, usages = self._by_key.setdefault(keys[key[at]], (aggregation, {}))
            self.cells += target not in usages
            add(aggregation, usages, target, usage)

    def take(self) -> Iterator[tuple[str, Aggregation, UsageByCell]]:
        """What was added, by rating key, and begin anew."""
        self._add_held()
        by_key, self._by_key, self.cells = self._by_key, {}, 0
        for text, (aggregation, usages) in by_key.items():
            yield text, aggregation, usages

    def flush(self) -> Iterator[tuple[bytes, bytes]]:
        """The same, packed."""
        for text, aggregation, usages in self.take():
            yield text.encode(), Pane(usages, min(usages)).packed(aggregation)


@dataclass
class _Slots:
    """What a batch's events give to meters: one slot for each event and meter, in groups of one cell."""

    events: pa.RecordBatch
    row: np.ndarray
    cell: np.ndarray
    cells: int
    first: np.ndarray

    def values(self, aggregation: Aggregation) -> list[Any]:
        """The aggregated value of each cell, as rules/aggregation.py says; those of other meters mean nothing."""
        match aggregation:
            case Aggregation.COUNT:
                return [None] * self.cells
            case Aggregation.SUM:
                return self._sums()
            case Aggregation.DISTINCT:
                return self._distinct()
            case Aggregation.LATEST:
                return self._latest()
            case _:
                return self._extremes(aggregation)

    def _sums(self) -> list[int]:
        """Exact sums: of 10^-12 units a quantity has less than 10^32, so `_MAX_SLOTS` of them fit the 10^38 of Arrow's
        type (which wraps beyond them without a word)."""
        quantities = self.events["quantities"].flatten()
        if loops := compiled():
            limbs = np.ascontiguousarray(decimal_limbs(quantities)).view(np.uint64)
            return _whole(loops.sums(self.cell, limbs, self.cells))
        table = pa.table({"cell": self.cell, "quantity": quantities})
        # In the order in which the cells come first, which is that of their numbers.
        sums = table.group_by("cell", use_threads=False).aggregate([("quantity", "sum")])["quantity_sum"]
        return _ints(sums.combine_chunks())

    def _extremes(self, aggregation: Aggregation) -> list[int]:
        pick = min if aggregation is Aggregation.MIN else max
        found: list[Any] = [None] * self.cells
        for cell, number in zip(self.cell.tolist(), _ints(self.events["quantities"].flatten())):
            known = found[cell]
            found[cell] = number if known is None else pick(known, number)
        return found

    def _latest(self) -> list[tuple[int, str, str, int]]:
        times = self.events["time"].cast(pa.int64()).to_pylist()
        ids, sources = self.events["id"].to_pylist(), self.events["source"].to_pylist()
        found: list[Any] = [None] * self.cells
        for cell, row, number in zip(self.cell.tolist(), self.row.tolist(), _ints(self.events["quantities"].flatten())):
            known = found[cell]
            if known is None or times[row] >= known[0]:
                mine = (times[row], ids[row], sources[row], number)
                found[cell] = mine if known is None else max(known, mine)
        return found

    def _distinct(self) -> list[frozenset[bytes]]:
        texts, codes = code_column(self.events["counted_values"].flatten())
        hashes = [xxhash.xxh3_128_digest(text.encode()) for text in texts]
        found: list[set[bytes]] = [set() for _ in range(self.cells)]
        for pair in np.unique(self.cell * len(texts) + codes).tolist():
            cell, code = divmod(pair, len(texts))
            found[cell].add(hashes[code])
        return [frozenset(values) for values in found]


def _ints(quantities: pa.Array) -> list[int]:
    """Quantities, which are not negative, in units of 10^-12."""
    return _whole(decimal_limbs(quantities).view(np.uint64))


def _whole(limbs: np.ndarray) -> list[int]:
    return [low + (high << 64) for low, high in limbs.tolist()]


class Pane(NamedTuple):
    """Usage of a rating key by cell, as it crosses the shuffle; and the state of `rate`.

    `since` is the first cell whose line item must be written, as those of all cells after it; none for none. Of a state
    it is the first that was written in its life. An archived pane may come behind fresh ones, whose rows it then moves.
    Of a state the last field says whether it has more cells, which lie apart.
    """

    usage: UsageByCell
    since: Cell | None = None
    is_archived: bool = False

    def packed(self, aggregation: Aggregation) -> bytes:
        rows = [
            (*cell, usage.event_count, usage.voided_count, _packed_value(aggregation, usage.value))
            for cell, usage in sorted(self.usage.items())
        ]
        return msgspec.msgpack.encode((rows, self.since, self.is_archived))

    @classmethod
    def unpacked(cls, aggregation: Aggregation, packed: bytes) -> Pane:
        rows, since, is_archived = msgspec.msgpack.decode(packed)
        usage = {
            Cell(window, account): Usage(count, _unpacked_value(aggregation, value), voided_count)
            for window, account, count, voided_count, value in rows
        }
        return cls(usage, Cell(*since) if since else None, is_archived)


def _packed_value(aggregation: Aggregation, value: Any) -> Any:
    # Integers go as text: sums outgrow the 64 bits of MessagePack.
    if value is None:
        return None
    match aggregation:
        case Aggregation.DISTINCT:
            return b"".join(sorted(value))
        case Aggregation.LATEST:
            return (*value[:3], str(value[3]))
        case _:
            return str(value)


def _unpacked_value(aggregation: Aggregation, value: Any) -> Any:
    if value is None:
        return None
    match aggregation:
        case Aggregation.DISTINCT:
            return frozenset(value[start : start + 16] for start in range(0, len(value), 16))
        case Aggregation.LATEST:
            return (*value[:3], int(value[3]))
        case _:
            return int(value)
