"""rate: usage by rating key → line items, priced in keyed state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.metrics import Metrics
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindows
from apache_beam.typehints.decorators import no_annotations
from apache_beam.utils.timestamp import Duration, Timestamp

from meterline.schemas.event import Reason
from meterline.schemas.meters import Aggregation
from meterline.schemas.records import LineItem, RatingKey, Reject
from meterline.transforms.catalogs import Catalogs, meters_of
from meterline.transforms.meter import Pane, UsageByCell
from meterline.transforms.rules.aggregation import FOLDED, add, cumulative
from meterline.transforms.rules.attribution import Priced, directory
from meterline.transforms.rules.line_items import line_items
from meterline.transforms.rules.money import MoneyError, QuantityError
from meterline.transforms.rules.prices.parts import NoPriceError, RateCardError


class Rated(NamedTuple):
    line_items: beam.PCollection[LineItem]
    rejects: beam.PCollection[Reject]


@dataclass
class RateUsage(beam.PTransform):
    """Price each key's usage; a pane re-emits the cells that changed, or were not written, and all after them.

    Args:
      keep: How long after its end a billing period may get usage; none where input is bounded, and each key comes once.
    """

    catalog: beam.pvalue.AsSingleton
    keep: timedelta | None = None

    @no_annotations
    def expand(self, usage: beam.PCollection[tuple[bytes, bytes]]) -> Rated:
        rate = beam.ParDo(_RateFn(self.keep), self.catalog).with_outputs("rejects", main="line_items")
        rated = usage | "Collect" >> CollectPanes(is_bounded=self.keep is None) | "Rate" >> rate
        forever = (rated[name] | f"Forever_{name}" >> beam.WindowInto(GlobalWindows()) for name in Rated._fields)
        return Rated(*forever)


@dataclass
class CollectPanes(beam.PTransform):
    """All usage of a key at once where input is bounded. Where it is not, what a bundle of `meter` has of it: to wait
    for more is a step with state of its own (docs/decisions/0015-a-stream-rates-by-bundle.md).
    """

    is_bounded: bool

    @no_annotations
    def expand(self, usage: beam.PCollection[tuple[bytes, bytes]]) -> beam.PCollection[tuple[bytes, Iterable[bytes]]]:
        if self.is_bounded:
            return usage | "ByKey" >> beam.GroupByKey()
        return usage | "Alone" >> beam.Map(_alone).with_output_types(tuple[bytes, Iterable[bytes]])


def _alone(keyed: tuple[bytes, bytes]) -> tuple[bytes, list[bytes]]:
    return keyed[0], [keyed[1]]


# Cells of a state that each pane reads and writes, which is most of what it costs: those of the last hours, and so many
# of before.
_HOT_SECONDS = 2 * 3_600
_HOT_CELLS = 8


class _RateFn(beam.DoFn):
    """State, per rating key: its usage by cell. Of a long period the old cells lie apart, and a pane reads only what
    they add up to, unless late usage is for them.

    Args:
      keep: How long after its end a billing period may get usage; none where the state ends with the run.
    """

    HOT = ReadModifyWriteStateSpec("usage", BytesCoder())
    COLD = BagStateSpec("cold", BytesCoder())
    OVER = TimerSpec("over", TimeDomain.WATERMARK)

    def __init__(self, keep: timedelta | None = None) -> None:
        self._keep = keep

    def process(
        self,
        keyed: tuple[bytes, Iterable[bytes]],
        catalogs: Catalogs,
        hot: Any = beam.DoFn.StateParam(HOT),
        cold: Any = beam.DoFn.StateParam(COLD),
        over: Any = beam.DoFn.TimerParam(OVER),
    ) -> Iterator[Any]:
        text, packed = keyed
        key = RatingKey.parse(text.decode())
        aggregation, priced = _terms(key, catalogs)
        stored = hot.read()
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

    @on_timer(OVER)
    def forget(
        self,
        hot: Any = beam.DoFn.StateParam(HOT),
        cold: Any = beam.DoFn.StateParam(COLD),
    ) -> None:
        hot.clear()
        cold.clear()


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
