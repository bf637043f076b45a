"""meter: attributed events → usage by rating key and cell, aggregated before the shuffle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import apache_beam as beam
import msgspec
import numpy as np
import pyarrow as pa
import xxhash
from apache_beam.transforms.window import GlobalWindow
from apache_beam.typehints.decorators import no_annotations
from apache_beam.utils.windowed_value import WindowedValue

from meterline.schemas.event import microseconds
from meterline.schemas.meters import Aggregation, Meter
from meterline.schemas.records import RatingKey
from meterline.transforms.blocks import compiled
from meterline.transforms.catalogs import Catalogs, meters_of
from meterline.transforms.columns import code_column, decimal_limbs, distinct
from meterline.transforms.rules.aggregation import Cell, Usage, add
from meterline.transforms.rules.attribution import directory
from meterline.transforms.rules.gauges import Stretch
from meterline.transforms.rules.percentiles import Intervals, intervals_above

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
        self._totals.add(events, catalogs)
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

    def add(self, events: pa.RecordBatch, catalogs: Catalogs) -> None:
        """Add attributed events; of meters that no catalog has any more nothing is added."""
        self._catalogs = catalogs
        self._held.append(events.select(_READ))
        offsets = events["rating_keys"].offsets
        self._held_slots += offsets[len(offsets) - 1].as_py() - offsets[0].as_py()
        if self._held_slots > _HELD_SLOTS:
            self._add_held()

    def _add_held(self) -> None:
        held, self._held, self._held_slots = self._held, [], 0
        if len(held) == 1:
            self._add(held[0], meters_of(self._catalogs))
        elif held:
            together = pa.Table.from_batches(held).unify_dictionaries().combine_chunks()
            for batch in together.to_batches():
                self._add(batch, meters_of(self._catalogs))

    def _add(self, events: pa.RecordBatch, meters: Mapping[str, Meter]) -> None:
        lists = events["rating_keys"]
        starts = np.asarray(lists.offsets)
        if starts[-1] - starts[0] > _MAX_SLOTS and len(lists) > 1:
            half = len(lists) // 2
            self._add(events.slice(0, half), meters)
            self._add(events.slice(half), meters)
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
        slots = _Slots(events, row, cell_of_slot, len(first), parsed, key, meters, self._catalogs)

        by_aggregation: dict[Aggregation, list[Any]] = {}
        for place, at in enumerate(first.tolist()):
            one = parsed[key[at]]
            meter = meters.get(one.meter_id)
            if meter is None:  # Archived, and the catalog has the meter no more.
                continue
            aggregation = meter.aggregation
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
    keys: list[RatingKey]
    key: np.ndarray
    meters: Mapping[str, Meter]
    catalogs: Catalogs

    def values(self, aggregation: Aggregation) -> list[Any]:
        """The aggregated value of each cell, as rules/aggregation.py says; those of other meters mean nothing."""
        match aggregation:
            case Aggregation.COUNT:
                return [None] * self.cells
            case Aggregation.SUM | Aggregation.AVERAGE:
                return self._sums()
            case Aggregation.DISTINCT:
                return self._distinct()
            case Aggregation.LATEST:
                return self._latest()
            case Aggregation.TIME_WEIGHTED_SUM:
                return self._gauges()
            case Aggregation.PERCENTILE:
                return self._intervals()
            case _:
                return self._extremes(aggregation)

    def _sums(self) -> list[int]:
        """Exact sums: of 10^-12 units a quantity has less than 10^32, so `_MAX_SLOTS` of them fit the 10^38 of Arrow's
        type (which wraps beyond them without a word)."""
        return _added(self.cell, self.events["quantities"].flatten(), self.cells)

    def _of(self, aggregation: Aggregation) -> np.ndarray:
        """The slots of meters with an aggregation."""
        meters = [self.meters.get(key.meter_id) for key in self.keys]
        ours = [one is not None and one.aggregation is aggregation for one in meters]
        return np.flatnonzero(np.asarray(ours, bool)[self.key])

    def _intervals(self) -> list[Any]:
        """The sums of each cell's intervals."""
        slots = self._of(Aggregation.PERCENTILE)
        terms = [interval_terms(key, self.meters.get(key.meter_id)) for key in self.keys]
        starts, lengths, above = np.asarray(terms, np.int64)[self.key[slots]].T
        seconds = np.asarray(self.events["time"].cast(pa.int64()))[self.row[slots]] // 1_000_000
        number = (seconds - starts) // lengths
        cell = self.cell[slots]
        first, group = distinct(cell * (int(number.max(initial=0)) + 1) + number)
        sums = _added(group, self.events["quantities"].flatten().take(pa.array(slots)), len(first))
        found: list[Any] = [None] * self.cells
        for at, amount in zip(first.tolist(), sums):
            if found[cell[at]] is None:
                found[cell[at]] = Intervals(int(above[at]), {})
            found[cell[at]].sums[int(number[at])] = amount
        return found

    def _gauges(self) -> list[Any]:
        """The samples of each cell."""
        slots = self._of(Aggregation.TIME_WEIGHTED_SUM)
        rows, some = self.row[slots], pa.array(slots)
        columns = self.events.select(["time", "id", "source", "account_id"]).take(pa.array(rows))
        times = columns["time"].cast(pa.int64()).to_pylist()
        names = (columns[name].to_pylist() for name in ("id", "source", "account_id"))
        series = self.events["counted_values"].flatten().take(some).to_pylist()
        quantities = _ints(self.events["quantities"].flatten().take(some))
        ends = Ends(self.catalogs)
        found: list[Any] = [None] * self.cells
        for cell, key, time, id, source, account, name, quantity in zip(
            self.cell[slots].tolist(), self.key[slots].tolist(), times, *names, series, quantities
        ):
            gauges = found[cell] = {} if found[cell] is None else found[cell]
            until = ends.of(self.keys[key], account, time)
            gauges.setdefault((account, name), []).append(Stretch(time, time, id, source, quantity, until))
        return [gauges and {name: tuple(sorted(some)) for name, some in gauges.items()} for gauges in found]

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


@dataclass
class Ends:
    """Until when samples may hold; stretches of time that were met are kept."""

    catalogs: Catalogs
    _known: dict[tuple[str, str], dict[int, int]] = field(default_factory=dict)  # the start of a stretch by its end

    def of(self, key: RatingKey, account_id: str, time: int) -> int:
        """When the value that a sample says at a time ends at the latest; both in microseconds."""
        known = self._known.setdefault((key.text, account_id), {})
        for end, start in known.items():
            if start <= time < end:
                return end
        instant = datetime.fromtimestamp(time // 1_000_000, UTC)
        book = directory(self.catalogs.known()[0])
        end = microseconds(book.holds_until(key, account_id, instant))
        known[end] = min(time, known.get(end, time))
        return end


class IntervalTerms(NamedTuple):
    """The intervals of a key's percentile: the start of the first and the length of all, in seconds, and how many lie
    above the one that is billed."""

    start: int = 0
    length: int = 1
    above: int = 0


def interval_terms(key: RatingKey, meter: Meter | None) -> IntervalTerms:
    if meter is None or meter.percentile is None or meter.interval_seconds is None:
        return IntervalTerms()
    start, end = int(key.period_start.timestamp()), int(key.period_end.timestamp())
    above = intervals_above(meter.percentile, end - start, meter.interval_seconds)
    return IntervalTerms(start, meter.interval_seconds, above)


def _added(groups: np.ndarray, quantities: pa.Array, count: int) -> list[int]:
    """The exact sums of quantities by group, which are numbered from 0 in the order in which they come first."""
    if loops := compiled():
        limbs = np.ascontiguousarray(decimal_limbs(quantities)).view(np.uint64)
        return _whole(loops.sums(np.ascontiguousarray(groups), limbs, count))
    table = pa.table({"cell": groups, "quantity": quantities})
    sums = table.group_by("cell", use_threads=False).aggregate([("quantity", "sum")])["quantity_sum"]
    return _ints(sums.combine_chunks())


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
        case Aggregation.PERCENTILE:
            return value.above, [(number, str(amount)) for number, amount in sorted(value.sums.items())]
        case Aggregation.TIME_WEIGHTED_SUM:
            return [(*name, [_packed_stretch(one) for one in some]) for name, some in sorted(value.items())]
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
        case Aggregation.PERCENTILE:
            return Intervals(value[0], {number: int(amount) for number, amount in value[1]})
        case Aggregation.TIME_WEIGHTED_SUM:
            return {(account, name): tuple(map(_unpacked_stretch, some)) for account, name, some in value}
        case _:
            return int(value)


def _packed_stretch(one: Stretch) -> tuple[Any, ...]:
    return one._replace(quantity=str(one.quantity), area=str(one.area))  # type: ignore[arg-type]


def _unpacked_stretch(packed: list[Any]) -> Stretch:
    one = Stretch(*packed)
    return one._replace(quantity=int(one.quantity), area=int(one.area))
