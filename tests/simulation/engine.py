"""The stages of `rate_usage` driven by hand, bundle by bundle, as a runner drives them.

The one place of the simulation that knows the DoFns from inside. State, side inputs and the two shuffles belong to the
caller; a `Worker` holds what a worker holds, and is thrown away when a bundle fails, as Beam does it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache, partial
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.worker import statesampler
from apache_beam.transforms.window import WindowFn

from meterline.schemas.catalog import Catalog
from meterline.transforms import (
    archive,
    attribute,
    clickhouse,
    deduplicate,
    meter,
    rate,
    recall,
    scan,
    validate,
    void,
    write,
)
from meterline.transforms.blocks import Block, Records
from meterline.transforms.coders import BatchCoder

Usage = tuple[bytes, bytes]  # a rating key's text, and packed usage of it
SeenKey = tuple[bytes, Any]  # shard and window
BATCHES = BatchCoder()


class Piece(NamedTuple):
    """Encoded events of one key and window in the shuffle before `deduplicate`."""

    shard: bytes
    events: bytes
    window: Any
    received_time: int  # microseconds since 1970: it holds the watermark back


class Windowing(NamedTuple):
    """What the job tells the runner about the windows of `deduplicate`."""

    window_fn: WindowFn
    lateness_seconds: float

    def of(self, timestamp: Any) -> Any:
        (window,) = self.window_fn.assign(WindowFn.AssignContext(timestamp))
        return window

    def has_ended(self, window: Any, watermark: int) -> bool:
        """Whether a runner drops the window's state, and what comes for it; the watermark is in microseconds."""
        return window.max_timestamp().micros + self.lateness_seconds * 1e6 < watermark


@lru_cache
def declared_windowing(keep: timedelta | None) -> Windowing:
    """As it stands in the pipeline that the job builds."""
    pipeline = beam.Pipeline(runner=FnApiRunner())
    events = pipeline | beam.Create([])
    events | "Deduplicate" >> deduplicate.DeduplicateEvents(keep=keep)
    found: list[Any] = []

    class Visitor(beam.pipeline.PipelineVisitor):
        def visit_transform(self, node: Any) -> None:
            if node.full_label == "Deduplicate/ByDay":
                found.append(node.outputs[None].windowing)

    pipeline.visit(Visitor())
    (windowing,) = found
    return Windowing(windowing.windowfn, windowing.allowed_lateness.micros / 1e6)


class _Timer:
    """A timer on the watermark, in microseconds."""

    def __init__(self, timers: MutableMapping[Any, int], key: Any) -> None:
        self._timers, self._key = timers, key

    def set(self, time: Any) -> None:
        self._timers[self._key] = time.micros


class _Bag:
    """A cell that holds any number of elements, in no order that anybody may know."""

    def __init__(self, cells: MutableMapping[Any, tuple[bytes, ...]], key: Any) -> None:
        self._cells, self._key = cells, key

    def read(self) -> Iterator[bytes]:
        return iter(sorted(self._cells.get(self._key, ())))

    def add(self, element: bytes) -> None:
        self._cells[self._key] = (*self._cells.get(self._key, ()), element)

    def clear(self) -> None:
        self._cells.pop(self._key, None)


@dataclass(frozen=True)
class Job:
    """What was submitted; `windowing` comes from the job itself. It is a stream where state is kept for some time."""

    catalog: Catalog
    url: str
    horizon: timedelta | None
    keep: timedelta | None
    shards: int
    windowing: Windowing
    run_id: str


@dataclass
class State:
    """Keyed state and timers of a run."""

    seen: dict[SeenKey, tuple[bytes, ...]] = field(default_factory=dict)
    touched: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    hot: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    cold: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    touched_until: dict[bytes, int] = field(default_factory=dict)
    rated_until: dict[bytes, int] = field(default_factory=dict)

    def copy(self) -> State:
        return State(*(dict(cells) for cells in vars(self).values()))


class Worker:
    """The DoFns of a job after their setup. Each method is one bundle of one fused stage."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._validate = validate._ValidateFn(job.horizon)
        self._attribute = attribute._AttributeFn()
        mine, all = archive.Archive(job.url, job.run_id), archive.Archive(job.url, "")
        self._void = void._VoidFn(mine)
        self._touch = recall._TouchFn()
        self._shard = deduplicate._ShardFn(job.shards)
        self._first_touch = recall._FirstTouchFn(job.keep or timedelta(0))
        self._recall = recall._RecallFn(mine, whole=job.keep is not None)
        self._recall_anew = recall._RecallFn(all, anew=True)
        self._deduplicate = deduplicate._DeduplicateFn(mine, job.shards)
        self._meter = meter._MeterFn()
        self._sharding = rate._ShardFn(job.shards)
        self._rate = rate._RateFn() if job.keep is None else rate._RateShardFn(job.keep)
        keys_first = {"rating_keys": write.NewRatingKeys(), "voids": write.void_rows}
        event_rows = partial(write.usage_event_rows, run_id=job.run_id)
        self._archive = write._InsertFn(job.url, {**keys_first, "usage_events": event_rows})
        self._items = write._InsertFn(job.url, {"line_items": write.line_item_rows})
        self._rejects = write._InsertFn(job.url, {"rejects": write.reject_rows})
        for dofn in vars(self).values():
            if isinstance(dofn, beam.DoFn):
                dofn.setup()

    def attribute(self, blocks: Iterable[Block]) -> tuple[list[Piece], list[bytes]]:
        """validate, attribute, void, and the cut by shard and day; also what is touched, for `recall`."""
        self._start(self._validate, self._attribute, self._void, self._touch, self._shard, self._rejects)
        pieces: list[Piece] = []
        touched: list[bytes] = []
        for block in blocks:
            for events in self._main(self._validate.process(block, self._job.catalog)):
                for attributed in self._main(self._attribute.process(events, self._job.catalog)):
                    for voided in self._main(self._void.process(attributed), touched):
                        self._touch.process(voided)
                        pieces += self._pieces(voided, block.received_time)
        touched += [keyed.value[1] for keyed in self._finish(self._touch)]
        self._finish(self._rejects)
        return pieces, touched

    def _pieces(self, events: pa.RecordBatch, received_time: int) -> Iterator[Piece]:
        for stamped in self._shard.process(events):
            shard, part = stamped.value
            yield Piece(shard, BATCHES.encode(part), self._job.windowing.of(stamped.timestamp), received_time)

    def first_touches(self, touched: Sequence[bytes], state: State) -> list[bytes]:
        """Of a stream: what was not touched before."""
        self._start(self._first_touch)
        first: list[bytes] = []
        for packed in touched:
            # In an order that does not depend on how Python hashes.
            for key, spans in sorted(recall._by_end(("touched", packed))):
                cells = _Bag(state.touched, key), _Timer(state.touched_until, key)
                for _, some in self._first_touch.process((key, spans), *cells):
                    first += some
        return first

    def recall(self, touched: Sequence[bytes], anew: bool = False) -> list[Usage]:
        """The usage of archived events."""
        reading = self._recall_anew if anew else self._recall
        self._start(reading)
        return list(reading.process(("touched", touched), self._job.catalog)) if touched else []

    def deduplicate(self, pieces: Iterable[Piece], state: State) -> list[Usage]:
        """deduplicate and meter, and the inserts of events and conflicts."""
        self._start(self._deduplicate, self._meter, self._archive, self._rejects)
        usage: list[Usage] = []
        for shard, encoded, window, _ in pieces:
            keyed = shard, BATCHES.decode(encoded)
            cells = [_Bag(state.seen, (shard, window, number)) for number in range(len(deduplicate._CELLS))]
            for events in self._main(self._deduplicate.process(keyed, window, *cells)):
                usage += self._meter.process(events, self._job.catalog)
                self._archive.process(events)
        usage += [keyed.value for keyed in self._finish(self._meter)]
        self._finish(self._archive)
        self._finish(self._rejects)
        return usage

    def rate(self, panes: Iterable[tuple[bytes, list[bytes]]], state: State) -> None:
        """rate, and the insert of line items."""
        self._start(self._sharding, self._rate, self._items, self._rejects)
        if self._job.keep is None:
            items = [item for pane in panes for item in self._main(self._rate.process(pane, self._job.catalog))]
        else:
            items = list(self._rate_shards(panes, state))
        for item in items:
            self._items.process(item)
        self._finish(self._items)
        self._finish(self._rejects)

    def _rate_shards(self, panes: Iterable[tuple[bytes, list[bytes]]], state: State) -> Iterator[Any]:
        for text, packed in panes:
            for one in packed:
                assert list(self._sharding.process((text, one))) == []
        for keyed in self._finish(self._sharding):
            shard = keyed.value[0]
            cells = _Bag(state.hot, shard), _Bag(state.cold, shard), _Timer(state.rated_until, shard)
            yield from self._main(self._rate.process(keyed.value, self._job.catalog, *cells))

    def advance(self, watermark: int, state: State) -> None:
        """Let the timers up to the watermark fire."""
        for key in [key for key, time in state.touched_until.items() if time <= watermark]:
            del state.touched_until[key]
            self._first_touch.forget(_Bag(state.touched, key))
        for key in [key for key, time in state.rated_until.items() if time <= watermark]:
            del state.rated_until[key]
            self._rate.forget(_Bag(state.hot, key), _Bag(state.cold, key))
        for seen in [key for key in state.seen if self._job.windowing.has_ended(key[1], watermark)]:
            del state.seen[seen]

    def _main(self, outputs: Iterable[Any], touched: list[bytes] | None = None) -> Iterator[Any]:
        for output in outputs:
            match output:
                case beam.pvalue.TaggedOutput(tag="rejects"):
                    self._rejects.process(output.value)
                case beam.pvalue.TaggedOutput(tag="touched") if touched is not None:
                    touched.append(output.value[1])
                case _:
                    assert not isinstance(output, beam.pvalue.TaggedOutput), output.tag
                    yield output

    @staticmethod
    def _start(*dofns: beam.DoFn) -> None:
        for dofn in dofns:
            dofn.start_bundle()

    @staticmethod
    def _finish(dofn: beam.DoFn) -> list[Any]:
        return list(dofn.finish_bundle() or ())


def all_spans(url: str) -> list[bytes]:
    """What `meterline rate --from-archive` recalls, for all periods at once."""
    texts = clickhouse.query(url, "SELECT DISTINCT rating_key FROM rating_keys").column("rating_key").to_pylist()
    keys = map(recall.RatingKey.parse, texts)
    spans = {archive.span_of(key) for key in keys}
    return [recall.Touched(spans=spans).packed()[1]] if spans else []


def block(records: Sequence[bytes], first_position: int, origin: str, received_time: int) -> Block:
    """Records that came one after the other."""
    return Block(Records.of(records), np.arange(first_position, first_position + len(records)), origin, received_time)


class _Tracker:
    """What Beam's counters report to while a bundle runs."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters

    def update_metric(self, typed_name: Any, value: int) -> None:
        name = typed_name.metric_name
        self._counters[f"{name.namespace}/{name.name}"] += value


@contextmanager
def counting(counters: Counter[str]) -> Iterator[None]:
    """Let the job's counters count here."""
    before = statesampler.get_current_tracker()
    statesampler.set_current_tracker(_Tracker(counters))
    try:
        yield
    finally:
        statesampler.set_current_tracker(before)


@dataclass(frozen=True)
class Sizes:
    """After how much the stages pass on what they hold, also within a bundle; and which scanner is used."""

    max_rows: int = write.MAX_ROWS
    max_cells: int = meter._MAX_CELLS
    hot_cells: int = rate._HOT_CELLS
    vectorised: bool = True


@contextmanager
def between(
    insert: Callable[[str, str, pa.Table], None], query: Callable[..., pa.Table], sizes: Sizes
) -> Iterator[None]:
    """Put something between the stages and ClickHouse."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clickhouse, "insert", insert)
        patch.setattr(clickhouse, "query", query)
        patch.setattr(write, "MAX_ROWS", sizes.max_rows)
        patch.setattr(meter, "_MAX_CELLS", sizes.max_cells)
        patch.setattr(rate, "_HOT_CELLS", sizes.hot_cells)
        patch.setattr(rate, "_HOT_SECONDS", 60 * sizes.hot_cells)
        if not sizes.vectorised:
            patch.setattr(validate, "Scanner", partial(scan.Scanner, vectorised=False))
        yield
