"""recall: what is archived of the billing periods that new events touch joins the input.

State is a cache of the archive: a run that starts without state, on the day after, or after a crash, counts the events
that are stored already, and so writes the rows that one run over all events would write (docs/exactly_once.md).
ClickHouse adds the archived events up by cell; of a rating key, what comes before the first cell that is touched, or
whose line item is not what it should be, is folded into one.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from functools import cached_property
from typing import Any, NamedTuple, Self

import apache_beam as beam
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from apache_beam.coders import BytesCoder
from apache_beam.metrics import Metrics
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, TimerSpec, on_timer
from apache_beam.typehints.decorators import no_annotations
from apache_beam.utils.timestamp import Duration, Timestamp

from meterline.schemas.event import microseconds
from meterline.schemas.meters import Aggregation
from meterline.schemas.records import RatingKey, rating_key_id
from meterline.schemas.voids import EventName
from meterline.transforms.archive import EARLIER, Archive, Span, archived_at_times_of, span_of
from meterline.transforms.catalogs import Catalogs, meters_of
from meterline.transforms.cells import Cells, digits_of, digits_of_numbers, whole
from meterline.transforms.columns import code_column
from meterline.transforms.meter import Ends, Pane, Totals, UsageByCell, interval_terms
from meterline.transforms.rules.aggregation import FOLDED, Cell, Usage, add, cumulative, quantity, scaled, voided
from meterline.transforms.rules.gauges import Stretch
from meterline.transforms.rules.line_items import window_bounds
from meterline.transforms.rules.percentiles import Intervals

# Keys that the first touches of billing periods that end together are spread over.
_SHARDS = 8
# Accounts that are read at once: what a worker holds in memory.
_ACCOUNTS = 250


class Touched(NamedTuple):
    """What some events touch: rating keys, each with the first second, and the events that they void; and further
    billing periods, of which all is wanted that is not written as it should be."""

    keys: Mapping[str, int] = {}
    spans: Collection[Span] = ()
    voids: Collection[EventName] = ()

    def packed(self) -> tuple[str, bytes]:
        """All under one key, for it is read together."""
        return "touched", msgspec.msgpack.encode((dict(self.keys), *(sorted(some) for some in self[1:])))

    @classmethod
    def together(cls, packed: Iterable[bytes]) -> Self:
        keys: dict[str, int] = {}
        spans: set[Span] = set()
        voids: set[EventName] = set()
        for one in packed:
            some, *others = msgspec.msgpack.decode(one)
            for key, second in some.items():
                keys[key] = min(second, keys.get(key, second))
            spans.update(Span(*span) for span in others[0])
            voids.update(EventName(*name) for name in others[1])
        return cls(keys, spans.union(span_of(RatingKey.parse(key)) for key in keys), voids)


@dataclass
class RecallUsage(beam.PTransform):
    """Read the archived usage of the billing periods that attributed events touch; packed, by rating key, as `meter`
    packs it. Where input is bounded, once they are all known; in a stream, of each when it is touched first.

    Args:
      keep: How long after its end a billing period may be touched; for streams.
    """

    archive: Archive
    catalog: beam.pvalue.AsSingleton
    keep: timedelta | None = None

    @no_annotations
    def expand(self, inputs: dict[str, beam.PCollection[Any]]) -> beam.PCollection[tuple[bytes, bytes]]:
        """`inputs` has attributed `events`, and what voiding events have `touched`."""
        touched = inputs["events"] | "Touch" >> beam.ParDo(_TouchFn()).with_output_types(tuple[str, bytes])
        if self.keep is None:
            together = (touched, inputs["touched"]) | "All" >> beam.Flatten() | "Together" >> beam.GroupByKey()
        else:
            by_end = touched | "ByEnd" >> beam.FlatMap(_by_end).with_output_types(tuple[bytes, bytes])
            first = beam.ParDo(_FirstTouchFn(self.keep)).with_output_types(tuple[str, list[bytes]])
            together = by_end | "First" >> first
        recall = beam.ParDo(_RecallFn(self.archive, whole=self.keep is not None), self.catalog)
        return together | "Recall" >> recall.with_output_types(tuple[bytes, bytes])


def _by_end(keyed: tuple[str, bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The touched billing periods by when they end, and by a part of the accounts."""
    by_end: dict[bytes, list[Span]] = {}
    for span in Touched.together([keyed[1]]).spans:
        shard = zlib.crc32(span.billing_account_id.encode()) % _SHARDS
        by_end.setdefault(b"%d %d" % (span.end, shard), []).append(span)
    for key, spans in by_end.items():
        yield key, Touched(spans=spans).packed()[1]


class _FirstTouchFn(beam.DoFn):
    """State: the billing periods that were touched before, 16 bytes each."""

    KNOWN = BagStateSpec("known", BytesCoder())
    OVER = TimerSpec("over", TimeDomain.WATERMARK)

    def __init__(self, keep: timedelta) -> None:
        self._keep = keep

    def process(
        self,
        keyed: tuple[bytes, bytes],
        known: Any = beam.DoFn.StateParam(KNOWN),
        over: Any = beam.DoFn.TimerParam(OVER),
    ) -> Iterator[tuple[str, list[bytes]]]:
        touched = Touched.together([keyed[1]])
        names = {xxhash.xxh3_128_digest(msgspec.msgpack.encode(span)): span for span in touched.spans}
        new = names.keys() - set(known.read())
        if new:
            for name in sorted(new):
                known.add(name)
            over.set(Timestamp(int(keyed[0].split()[0])) + Duration(self._keep.total_seconds()))
            key, packed = Touched(spans=[names[name] for name in sorted(new)]).packed()
            yield key, [packed]

    @on_timer(OVER)
    def forget(self, known: Any = beam.DoFn.StateParam(KNOWN)) -> None:
        known.clear()


@dataclass
class RecallSpans(beam.PTransform):
    """Read the archived usage of given spans, all of which is to be written anew."""

    archive: Archive
    catalog: beam.pvalue.AsSingleton
    spans: list[Span]

    @no_annotations
    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[tuple[bytes, bytes]]:
        key, packed = Touched(spans=self.spans).packed()
        spans = begin | "Spans" >> beam.Create([(key, [packed])], reshuffle=False)
        recall = beam.ParDo(_RecallFn(self.archive, anew=True), self.catalog)
        return spans | "Recall" >> recall.with_output_types(tuple[bytes, bytes])


class _TouchFn(beam.DoFn):
    """The rating keys that a bundle touches, each once."""

    def start_bundle(self) -> None:
        self._keys: dict[str, int] = {}

    def process(self, events: pa.RecordBatch) -> None:
        lists = events["rating_keys"]
        texts, codes = code_column(lists.flatten())
        seconds = np.asarray(events["time"].cast(pa.int64())) // 1_000_000
        firsts = np.full(len(texts), np.iinfo(np.int64).max)
        np.minimum.at(firsts, codes, np.repeat(seconds, np.diff(np.asarray(lists.offsets))))
        for text, first in zip(texts, firsts.tolist()):
            if first < self._keys.get(text, np.iinfo(np.int64).max):
                self._keys[text] = first

    def finish_bundle(self) -> Iterator[beam.utils.windowed_value.WindowedValue]:
        if self._keys:
            packed = Touched(self._keys).packed()
            window = beam.window.GlobalWindow()
            yield beam.utils.windowed_value.WindowedValue(packed, window.start, (window,))


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


class _RecallFn(beam.DoFn):
    """Args:
    anew: Whether all line items are to be written, not just those that are not what they should be.
    whole: Whether all usage of the spans is wanted, cell by cell, for it becomes state.
    """

    def __init__(self, archive: Archive, anew: bool = False, whole: bool = False) -> None:
        self._archive, self._anew, self._whole = archive, anew, whole

    def process(self, packed: tuple[str, Iterable[bytes]], catalogs: Catalogs) -> Iterator[tuple[bytes, bytes]]:
        touched = Touched.together(packed[1])
        alike: dict[tuple[str, int, int], list[str]] = {}
        for span in sorted(touched.spans) if self._whole else joined(touched.spans):
            alike.setdefault((span.tenant_id, span.start, span.end), []).append(span.billing_account_id)
        for (tenant, start, end), accounts in alike.items():
            for first in range(0, len(accounts), _ACCOUNTS):
                some = accounts[first : first + _ACCOUNTS]
                archived = _Archived(self._archive, catalogs, tenant, some, start, end, touched.voids, self._whole)
                if self._anew:
                    Metrics.counter("recall", "events").inc(archived.count())
                yield from archived.usage(touched.keys, self._anew)


# --- usage ----------------------------------------------------------------------------------------------

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
_EVENTS = f"""
FROM usage_events FINAL
WHERE tenant_id = {{tenant:String}} AND billing_account_id IN {{accounts:Array(String)}} AND {EARLIER}
  AND time >= fromUnixTimestamp64Second({{start:Int64}}, 'UTC')
  AND time < fromUnixTimestamp64Second({{end:Int64}}, 'UTC')
"""
_CELLS = f"""
SELECT key, intDiv(toUnixTimestamp64Micro(time), 3600000000) * 3600 AS hour, account_id, count() AS events,
       $value AS value$part
FROM (SELECT rating_keys, quantities, counted_values, time, account_id$names {_EVENTS} $live)
ARRAY JOIN rating_keys AS key, quantities AS quantity, counted_values AS counted
WHERE key IN (SELECT rating_key_id FROM rating_keys WHERE meter_id IN {{meters:Array(String)}})
GROUP BY key, hour, account_id$by
"""
# Added as Decimal256: a sum of Decimal128 wraps without a word.
_SUM = "sum(toDecimal256(quantity, 12))"
_ADDED_UP_ALONE = {
    Aggregation.MIN: "min(quantity)",
    Aggregation.MAX: "max(quantity)",
    Aggregation.LATEST: "max((toUnixTimestamp64Micro(time), id, source, quantity))",
    Aggregation.DISTINCT: "groupUniqArray(counted)",
    Aggregation.AVERAGE: _SUM,
}
# What else is looked at of them depends on the rating key.
_VALUES = {
    **_ADDED_UP_ALONE,
    Aggregation.TIME_WEIGHTED_SUM: "groupArray((toUnixTimestamp64Micro(time), id, source, counted, quantity))",
    Aggregation.PERCENTILE: _SUM,
}
# How ClickHouse adds up the quantities, or counted values, of a meter's events; `found_value` reads what comes out.
ADDED_UP = {Aggregation.SUM: _SUM, **_ADDED_UP_ALONE}
_NAMED = (Aggregation.LATEST, Aggregation.TIME_WEIGHTED_SUM)
# The number of the interval from the period's start.
_INTERVAL = """,
       intDiv(intDiv(toUnixTimestamp64Micro(time), 1000000) - transform(key, {keys:Array(UInt64)},
              {starts:Array(Int64)}, toInt64(0)), transform(key, {keys:Array(UInt64)}, {lengths:Array(Int64)},
              toInt64(1))) AS interval"""
_WRITTEN = """
SELECT rating_key_id AS key, toInt64(toUnixTimestamp64Second(window_start)) AS window, account_id,
       event_count AS events, voided_count AS voided, revision, quantity_from, quantity_to
FROM line_items FINAL
WHERE tenant_id = {tenant:String} AND billing_account_id IN {accounts:Array(String)}
  AND period_start >= fromUnixTimestamp64Second({start:Int64}, 'UTC')
  AND period_end <= fromUnixTimestamp64Second({end:Int64}, 'UTC')
"""
_COUNTED = f"SELECT count() AS events {_EVENTS}"


@dataclass
class _Archived:
    """What is archived of some accounts in a span of time."""

    archive: Archive
    catalogs: Catalogs
    tenant: str
    accounts: list[str]
    start: int
    end: int
    new_voids: Collection[EventName]
    whole: bool = False

    def __post_init__(self) -> None:
        self._parameters = {"tenant": self.tenant, "accounts": self.accounts, "start": self.start, "end": self.end}
        self._meters = meters_of(self.catalogs)
        self._keys: dict[int, tuple[str, RatingKey, Aggregation]] = {}
        for row in self._ask(_KEYS).to_pylist():
            key = RatingKey.parse(row["rating_key"])
            # One whose meter the catalog has no more keeps the line items it has.
            if self._is_wanted(span_of(key)) and key.meter_id in self._meters:
                self._keys[row["rating_key_id"]] = row["rating_key"], key, self._meters[key.meter_id].aggregation
        # Known already, or of this run, which stores them only later.
        names = {EventName(**row) for row in self._ask(_VOIDS).to_pylist()}.union(self.new_voids)
        self._voids = {name for name in names if name.tenant_id == self.tenant}
        self._apart = self._at_times_of_voids()

    def _is_wanted(self, period: Span) -> bool:
        if self.whole:  # Another period inside of the span is touched, and read, for itself.
            return (period.start, period.end) == (self.start, self.end)
        # Of a period that is not all in the span only a part would be read.
        return period.start >= self.start and period.end <= self.end

    def _ask(self, sql: str, **parameters: Any) -> pa.Table:
        return self.archive.query(sql, self._parameters | parameters)

    def count(self) -> int:
        return int(self._ask(_COUNTED)["events"][0].as_py())

    def usage(self, touched: Mapping[str, int], anew: bool) -> Iterator[tuple[bytes, bytes]]:
        """Of the keys that are touched, or have a line item that is not what it should be, their usage; or of all.

        Args:
          touched: By key, the first second.
          anew: Whether all line items of all keys are to be written.
        """
        cells = self._cells()
        wrong = np.arange(len(cells.key)) if anew else np.flatnonzero(~self._as_written(cells))
        keys, starts = np.unique(cells.key, return_index=True)
        ends = np.append(starts, len(cells.key))[1:]
        first_wrong = np.append(wrong, len(cells.key))[np.searchsorted(wrong, starts)]
        for id, start, end, broken in zip(keys.tolist(), starts.tolist(), ends.tolist(), first_wrong.tolist()):
            text, key, aggregation = self._keys[id]
            first = min(broken, end)
            if self.whole:
                first = start
            elif text in touched:
                window, _ = window_bounds(key, touched[text])
                first = min(first, start + int(np.searchsorted(cells.window[start:end], window)))
            elif first == end:
                continue
            usage = cells.usage(first, end, aggregation)
            if first > start:
                usage[FOLDED] = cells.folded(start, first, aggregation)
            pane = Pane(usage, cells.cell(broken) if broken < end else None, is_archived=True)
            yield text.encode(), pane.packed(aggregation)
        yield from self._others(touched, anew)

    def _at_times_of_voids(self) -> dict[int, UsageByCell]:
        """By key, the usage of the events at the instants of voided ones: they are looked at one by one."""
        totals = Totals()
        found: dict[int, UsageByCell] = {}
        for batch, is_voided in archived_at_times_of(self.archive, self._voids, self.accounts):
            totals.add(batch.filter(pa.array(~is_voided)), self.catalogs)
            for event in batch.filter(pa.array(is_voided)).to_pylist():
                for text in event["rating_keys"]:
                    id = rating_key_id(text)
                    if id in self._keys:
                        _, key, aggregation = self._keys[id]
                        window, _ = window_bounds(key, microseconds(event["time"]) // 1_000_000)
                        cell = Cell(window, event["account_id"])
                        add(aggregation, found.setdefault(id, {}), cell, voided(aggregation, 1))
        for text, aggregation, usages in totals.take():
            id = rating_key_id(text)
            if id in self._keys:
                for cell, usage in usages.items():
                    add(aggregation, found.setdefault(id, {}), cell, usage)
        return found

    def _ids(self, *aggregations: Aggregation) -> list[int]:
        return [id for id, (_, _, aggregation) in self._keys.items() if aggregation in aggregations]

    def _added_up(self, value: str, *aggregations: Aggregation) -> pa.Table:
        meters = [meter.id for meter in self._meters.values() if meter.aggregation in aggregations]
        sql = _CELLS.replace("$value", value)
        sql = sql.replace("$names", ", id, source" if set(aggregations) & set(_NAMED) else "")
        intervals: dict[str, Any] = {}
        if Aggregation.PERCENTILE in aggregations:
            keys = self._ids(Aggregation.PERCENTILE)
            terms = [interval_terms(self._keys[id][1], self._meters[self._keys[id][1].meter_id]) for id in keys]
            intervals = {"keys": keys, "starts": [one.start for one in terms], "lengths": [one.length for one in terms]}
        sql = sql.replace("$part", _INTERVAL if intervals else "").replace("$by", ", interval" if intervals else "")
        live = "AND toUnixTimestamp64Micro(time) NOT IN {times:Array(Int64)}" if self._voids else ""
        times = sorted({name.time for name in self._voids})
        parameters = {"meters": meters, **intervals, **({"times": times} if times else {})}
        table = self._ask(sql.replace("$live", live), **parameters)
        return table.unify_dictionaries().combine_chunks()

    def _cells(self) -> Cells:
        """The cells of keys that are sums, or counts: all quantities are added, of a count they are 1."""
        table = self._added_up(_SUM, Aggregation.SUM, Aggregation.COUNT)
        ids = np.asarray(sorted(self._ids(Aggregation.SUM, Aggregation.COUNT)), np.uint64)
        begins = np.asarray([span_of(self._keys[id][1]).start for id in ids.tolist()], np.int64)
        accounts, account = code_column(whole(table["account_id"]))
        key = np.asarray(table["key"], np.uint64)
        apart = [
            (id, cell, usage)
            for id, usages in self._apart.items()
            if self._keys[id][2] not in _VALUES
            for cell, usage in usages.items()
        ]
        names = sorted({*accounts, *(cell.account_id for _, cell, _ in apart)})
        rank = {name: place for place, name in enumerate(names)}
        known = np.isin(key, ids)
        key = key[known]
        added_up = (
            key,
            np.maximum(np.asarray(table["hour"])[known], begins[np.searchsorted(ids, key)]),
            np.asarray([rank[name] for name in accounts] or [0], np.int64)[account[known]],
            np.asarray(table["events"], np.int64)[known],
            np.zeros(len(key), np.int64),
            digits_of(whole(table["value"]))[known],
        )
        one_by_one = (
            np.asarray([id for id, _, _ in apart], np.uint64),
            np.asarray([cell.window_start for _, cell, _ in apart], np.int64),
            np.asarray([rank[cell.account_id] for _, cell, _ in apart], np.int64),
            np.asarray([usage.event_count for _, _, usage in apart], np.int64),
            np.asarray([usage.voided_count for _, _, usage in apart], np.int64),
            digits_of_numbers(
                [usage.event_count * 10**12 if usage.value is None else usage.value for _, _, usage in apart]
            ),
        )
        return Cells.sorted(names, *(np.concatenate(columns) for columns in zip(added_up, one_by_one)))

    def _value(self, aggregation: Aggregation, key: RatingKey, row: dict[str, Any]) -> Any:
        """What ClickHouse found, as rules/aggregation.py has it."""
        if aggregation is Aggregation.PERCENTILE:
            above = interval_terms(key, self._meters[key.meter_id]).above
            return Intervals(above, {row["interval"]: scaled(row["value"])})
        if aggregation is not Aggregation.TIME_WEIGHTED_SUM:
            return found_value(aggregation, row["value"])
        gauges: dict[tuple[str, str], list[Stretch]] = {}
        for time, id, source, series, number in map(_fields, row["value"]):
            one = Stretch(time, time, id, source, scaled(number), self._ends.of(key, row["account_id"], time))
            gauges.setdefault((row["account_id"], series), []).append(one)
        return {name: tuple(sorted(stretches)) for name, stretches in gauges.items()}

    @cached_property
    def _ends(self) -> Ends:
        return Ends(self.catalogs)

    @cached_property
    def _written(self) -> pa.Table:
        """The line items that are stored."""
        return self._ask(_WRITTEN).unify_dictionaries().combine_chunks()

    def _as_written(self, cells: Cells) -> np.ndarray:
        """Which cells' line items are stored as they should be, but for the price: that of a version never changes."""
        table = self._written
        names, account = code_column(whole(table["account_id"]))
        rank = {name: place for place, name in enumerate(cells.accounts)}
        ranks = np.asarray([rank.get(name, -1) for name in names] or [-1], np.int64)[account]
        keys = np.unique(cells.key)
        windows = np.unique(cells.window)
        there = (ranks >= 0) & np.isin(table["key"], keys) & np.isin(table["window"], windows)
        table, ranks = table.filter(pa.array(there)), ranks[there]

        def number(key: Any, window: Any, rank: np.ndarray) -> np.ndarray:
            """One number for each cell."""
            place = np.searchsorted(keys, np.asarray(key, np.uint64)) * np.int64(len(windows))
            return (place + np.searchsorted(windows, np.asarray(window))) * np.int64(len(cells.accounts)) + rank

        stored = number(table["key"], table["window"], ranks)
        order = np.argsort(stored)
        wanted = number(cells.key, cells.window, cells.account)
        place = np.searchsorted(stored, wanted, sorter=order)
        right = place < len(stored)
        at = order[place[right]]
        running = cells.running()
        before = running.copy()
        before[1:] = running[:-1]
        before[cells.starts] = 0
        right[right] = (
            (stored[at] == wanted[right])
            & (np.asarray(table["events"], np.int64)[at] == cells.events[right])
            & (np.asarray(table["voided"], np.int64)[at] == cells.voided[right])
            & (np.asarray(table["revision"], np.int64)[at] == cells.revision()[right])
            & (digits_of(whole(table["quantity_from"]))[at] == before[right]).all(axis=1)
            & (digits_of(whole(table["quantity_to"]))[at] == running[right]).all(axis=1)
        )
        return right

    def _others(self, touched: Mapping[str, int], anew: bool) -> Iterator[tuple[bytes, bytes]]:
        """The same of keys whose usage does not add up."""
        found = {id: dict(usages) for id, usages in self._apart.items() if self._keys[id][2] in _VALUES}
        for aggregation, value in _VALUES.items():
            if not self._ids(aggregation):
                continue
            for row in self._added_up(value, aggregation).to_pylist():
                if row["key"] not in self._keys:
                    continue
                key = self._keys[row["key"]][1]
                usage = Usage(row["events"], self._value(aggregation, key, row))
                cell = Cell(window_bounds(key, row["hour"])[0], row["account_id"])
                add(aggregation, found.setdefault(row["key"], {}), cell, usage)
        stored: dict[int, dict[Cell, tuple[Any, ...]]] = {}
        if found and not anew:
            ours = self._written.filter(pc.is_in(self._written["key"], pa.array(list(found), pa.uint64())))
            for key_id, window, account, *rest in zip(*(column.to_pylist() for column in ours.columns)):
                stored.setdefault(key_id, {})[Cell(window, account)] = tuple(rest)
        for id, usages in found.items():
            text, _, aggregation = self._keys[id]
            since = min(usages) if anew else _first_wrong(aggregation, usages, stored.get(id, {}))
            if self.whole or text in touched or since is not None:
                yield text.encode(), Pane(usages, since, is_archived=True).packed(aggregation)


def found_value(aggregation: Aggregation, value: Any) -> Any:
    """What ClickHouse found, as rules/aggregation.py has it."""
    match aggregation:
        case Aggregation.DISTINCT:
            return frozenset(xxhash.xxh3_128_digest(text.encode()) for text in value)
        case Aggregation.LATEST:
            *name, number = _fields(value)
            return (*name, scaled(number))
        case _:
            return scaled(value)


def _fields(value: Any) -> list[Any]:
    """Of a tuple of ClickHouse."""
    return list(value.values() if isinstance(value, dict) else value)


def _first_wrong(aggregation: Aggregation, usages: UsageByCell, stored: dict[Cell, tuple[Any, ...]]) -> Cell | None:
    """The first cell whose line item is not stored as it should be."""
    reached = Decimal(0)
    for cell, own, so_far in cumulative(aggregation, sorted(usages.items())):
        before, reached = reached, quantity(aggregation, so_far)
        if stored.get(cell) != (own.event_count, own.voided_count, so_far.revision, before, reached):
            return cell
    return None
