"""rate: usage by rating key → line items, priced in keyed state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import apache_beam as beam
import msgspec
import xxhash
from apache_beam.coders import BytesCoder
from apache_beam.metrics import Metrics
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.typehints.decorators import no_annotations
from apache_beam.utils.timestamp import Duration, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from meterline.schemas.event import Reason
from meterline.schemas.meters import Aggregation
from meterline.schemas.records import LineItem, RatingKey, Reject
from meterline.transforms.catalogs import Catalogs, meters_of
from meterline.transforms.logs import Bag, Log, Value
from meterline.transforms.meter import Pane, UsageByCell
from meterline.transforms.rules.aggregation import FOLDED, add, cumulative
from meterline.transforms.rules.attribution import Priced, directory
from meterline.transforms.rules.line_items import line_items
from meterline.transforms.rules.money import MoneyError, QuantityError
from meterline.transforms.rules.prices.parts import NoPriceError, RateCardError


class Rated(NamedTuple):
    line_items: beam.PCollection[LineItem]
    rejects: beam.PCollection[Reject]


# Rating keys share the state of so many keys of Beam for each shard of `deduplicate`.
_SHARDS = 16
# So much usage is held until a bundle ends, and what is more passed on.
_MAX_HELD_BYTES = 16 << 20


@dataclass
class RateUsage(beam.PTransform):
    """Price each key's usage; a pane re-emits the cells that changed, or were not written, and all after them.

    Over files all usage of a key comes at once. In a stream it is what a bundle of `meter` has of it: to wait for more
    is a step with state of its own (docs/decisions/0015-a-stream-rates-by-bundle.md).

    Args:
      keep: How long after its end a billing period may get usage; none where input is bounded, and each key comes once.
      shards: Of a stream: those of `deduplicate`.
    """

    catalog: beam.pvalue.AsSingleton
    keep: timedelta | None = None
    shards: int = 1

    @no_annotations
    def expand(self, usage: beam.PCollection[tuple[bytes, bytes]]) -> Rated:
        if self.keep is None:
            rated = usage | "ByKey" >> beam.GroupByKey() | "Rate" >> self._step(_RateFn())
        else:
            sharding = beam.ParDo(_ShardFn(self.shards * _SHARDS)).with_output_types(tuple[bytes, bytes])
            rated = usage | "ByShard" >> sharding | "RateShards" >> self._step(_RateShardFn(self.keep))
        forever = (rated[name] | f"Forever_{name}" >> beam.WindowInto(GlobalWindows()) for name in Rated._fields)
        return Rated(*forever)

    def _step(self, rate: beam.DoFn) -> Any:
        return beam.ParDo(rate, self.catalog).with_outputs("rejects", main="line_items")


class _RateFn(beam.DoFn):
    """Rate keys whose usage is all there."""

    def __init__(self) -> None:
        self._rater = Rater()

    def process(self, keyed: tuple[bytes, Iterable[bytes]], catalogs: Catalogs) -> Iterator[Any]:
        return self._rater.rate(keyed, catalogs)


class _ShardFn(beam.DoFn):
    """What a bundle has of the rating keys of each shard and end of a period, in one element unless it is much."""

    def __init__(self, shards: int) -> None:
        self._shards = shards

    def start_bundle(self) -> None:
        self._held: dict[bytes, list[tuple[bytes, bytes]]] = {}
        self._bytes = 0

    def process(self, keyed: tuple[bytes, bytes]) -> Iterator[tuple[bytes, bytes]]:
        self._held.setdefault(shard_of(keyed[0], self._shards), []).append(keyed)
        self._bytes += len(keyed[1])
        if self._bytes > _MAX_HELD_BYTES:
            yield from self._taken()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        window = GlobalWindow()
        for keyed in self._taken():
            yield WindowedValue(keyed, window.start, (window,))

    def _taken(self) -> Iterator[tuple[bytes, bytes]]:
        held = self._held
        self.start_bundle()
        for shard, panes in held.items():
            yield shard, msgspec.msgpack.encode(panes)


def shard_of(rating_key: bytes, shards: int) -> bytes:
    """The key of Beam that has the state of a rating key in a stream."""
    end = int(RatingKey.parse(rating_key.decode()).period_end.timestamp())
    return b"%d/%d" % (xxhash.xxh3_64_intdigest(rating_key) % shards, end)


class _RateShardFn(beam.DoFn):
    """State, per shard and end of a billing period: what `Rater` keeps of each rating key, in two logs."""

    HOT = BagStateSpec("hot", BytesCoder())
    COLD = BagStateSpec("cold", BytesCoder())
    OVER = TimerSpec("over", TimeDomain.WATERMARK)

    def __init__(self, keep: timedelta) -> None:
        self._rater = Rater(keep)

    def process(
        self,
        keyed: tuple[bytes, bytes],
        catalogs: Catalogs,
        hot: Any = beam.DoFn.StateParam(HOT),
        cold: Any = beam.DoFn.StateParam(COLD),
        over: Any = beam.DoFn.TimerParam(OVER),
    ) -> Iterator[Any]:
        of_key: dict[bytes, list[bytes]] = {}
        for text, packed in msgspec.msgpack.decode(keyed[1]):
            of_key.setdefault(text, []).append(packed)
        hots, colds = Log(hot), Log(cold)
        for text, panes in of_key.items():
            yield from self._rater.rate((text, panes), catalogs, Value(hots, text), Bag(colds, text), over)
        # Whatever is laid apart, what is at hand changes with it: one number does for both.
        number = hots.next_number
        hots.write(number)
        colds.write(number)

    @on_timer(OVER)
    def forget(
        self,
        hot: Any = beam.DoFn.StateParam(HOT),
        cold: Any = beam.DoFn.StateParam(COLD),
    ) -> None:
        hot.clear()
        cold.clear()


# Cells of a state that each pane reads and writes, which is most of what it costs: those of the last hours, and so many
# of before.
_HOT_SECONDS = 2 * 3_600
_HOT_CELLS = 8


class Rater:
    """Rates the usage of a key, and of a stream keeps it, by cell. Of a long period the old cells lie apart, and a pane
    reads only what they add up to, unless late usage is for them.

    Args:
      keep: How long after its end a billing period may get usage; none where nothing is kept.
    """

    def __init__(self, keep: timedelta | None = None) -> None:
        self._keep = keep

    def rate(
        self,
        keyed: tuple[bytes, Iterable[bytes]],
        catalogs: Catalogs,
        hot: Any = None,
        cold: Any = None,
        over: Any = None,
    ) -> Iterator[Any]:
        """Line items, and rejects.

        Args:
          hot, cold: State of the rating key: a cell that holds a value, and a bag.
          over: A timer, at which both may go.
        """
        text, packed = keyed
        key = RatingKey.parse(text.decode())
        aggregation, priced = _terms(key, catalogs)
        stored = hot.read() if self._keep is not None else None
        usage, first, has_cold = Pane.unpacked(aggregation, stored) if stored else Pane({})
        panes = [Pane.unpacked(aggregation, one) for one in packed]
        if has_cold and _reaches_back(panes, usage):
            usage = {cell: one for cell, one in usage.items() if cell != FOLDED}
            for part in cold.read():
                for cell, one in Pane.unpacked(aggregation, part).usage.items():
                    add(aggregation, usage, cell, one)
            cold.clear()
            has_cold = False
        wanted = []
        for pane in panes:
            for cell, one in pane.usage.items():
                add(aggregation, usage, cell, one)
            wanted += [since for since in (pane.since, first if pane.is_archived else None) if since]
        if self._keep is not None:
            if not stored:
                over.set(Timestamp(int(key.period_end.timestamp())) + Duration(self._keep.total_seconds()))
            recent, old = _split(aggregation, usage, has_cold)
            if old:
                cold.add(Pane(old).packed(aggregation))
            since = min([*wanted, first] if first else wanted, default=None)
            hot.write(Pane(recent, since, has_cold or bool(old)).packed(aggregation))
        if not wanted:
            return
        if key.charge_id and priced is None:
            yield _reject(text, Reason.NO_PRICE, f"the catalog has no price (any more) for {text.decode()}")
            return
        try:
            # All or nothing: of a key that is rejected no line item is written.
            items = list(line_items(key, aggregation, priced, usage, since=min(wanted)))
        except NoPriceError as error:
            yield _reject(text, Reason.NO_PRICE, str(error))
            return
        except (QuantityError, MoneyError, RateCardError) as error:
            yield _reject(text, Reason.QUANTITY_OVERFLOW, str(error))
            return
        Metrics.counter("rate", "line_items").inc(len(items))
        yield from items


def _terms(key: RatingKey, catalogs: Catalogs) -> tuple[Aggregation, Priced | None]:
    """How the usage of a key adds up, and what it costs, by the newest catalog that says so."""
    for known in (catalogs.known, catalogs.look):
        for catalog in known():
            book = directory(catalog)
            if not key.charge_id and key.meter_id in book.meters:
                return book.meters[key.meter_id].aggregation, None
            priced = book.price_of(key.subscription_id, key.charge_id, key.rate_card_version, key.dimensions)
            if priced and key.meter_id in book.meters:
                return book.meters[key.meter_id].aggregation, priced
    return meters_of(catalogs)[key.meter_id].aggregation, None


def _reaches_back(panes: list[Pane], hot: UsageByCell) -> bool:
    """Whether panes have usage, or line items to be written, of cells before the hot ones."""
    hottest = min(cell for cell in hot if cell != FOLDED)
    return any(pane.is_archived or any(cell < hottest for cell in pane.usage) for pane in panes)


def _split(aggregation: Aggregation, usage: UsageByCell, has_cold: bool) -> tuple[UsageByCell, UsageByCell]:
    """The cells that are kept at hand, with what those before add up to; and those to be laid apart: none, or many."""
    cells = sorted(usage)
    before = [cell for cell in cells if cell.window_start < cells[-1].window_start - _HOT_SECONDS]
    if len(before) <= _HOT_CELLS:
        return usage, {}
    *_, (_, _, folded) = cumulative(aggregation, ((cell, usage[cell]) for cell in before))
    # What is folded in is there already, but for what came folded from the archive.
    old = {cell: usage[cell] for cell in before if not (has_cold and cell == FOLDED)}
    return {FOLDED: folded, **{cell: usage[cell] for cell in cells[len(before) :]}}, old


def _reject(key: bytes, reason: Reason, message: str) -> beam.pvalue.TaggedOutput:
    Metrics.counter("rate", reason).inc()
    return beam.pvalue.TaggedOutput("rejects", Reject("rate", reason, message, key, "rating_key", 0, 0))
