"""rate: usage by rating key → line items, priced in keyed state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.metrics import Metrics
from apache_beam.transforms.trigger import AccumulationMode, AfterProcessingTime, Repeatedly
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from apache_beam.transforms.window import GlobalWindows
from apache_beam.typehints.decorators import no_annotations

from meterline.schemas.catalog import Catalog
from meterline.schemas.event import Reason
from meterline.schemas.records import LineItem, RatingKey, Reject
from meterline.transforms.meter import Pane
from meterline.transforms.rules.aggregation import merge
from meterline.transforms.rules.attribution import directory
from meterline.transforms.rules.line_items import line_items
from meterline.transforms.rules.money import MoneyError, QuantityError
from meterline.transforms.rules.pricing import RateCardError


class Rated(NamedTuple):
    line_items: beam.PCollection[LineItem]
    rejects: beam.PCollection[Reject]


@dataclass
class RateUsage(beam.PTransform):
    """Price each key's usage; a pane re-emits the cells that changed, or were not written, and all after them."""

    catalog: beam.pvalue.AsSingleton
    pane_seconds: int = 5

    @no_annotations
    def expand(self, usage: beam.PCollection[tuple[bytes, bytes]]) -> Rated:
        rate = beam.ParDo(_RateFn(), self.catalog).with_outputs("rejects", main="line_items")
        rated = usage | "Collect" >> CollectPanes(self.pane_seconds) | "Rate" >> rate
        return Rated(rated["line_items"], rated["rejects"])


@dataclass
class CollectPanes(beam.PTransform):
    """All usage of a key at once where input is bounded, every few seconds where it is not."""

    pane_seconds: int

    @no_annotations
    def expand(self, usage: beam.PCollection[tuple[bytes, bytes]]) -> beam.PCollection[tuple[bytes, Iterable[bytes]]]:
        if not usage.is_bounded:
            usage = usage | "Panes" >> beam.WindowInto(
                GlobalWindows(),
                trigger=Repeatedly(AfterProcessingTime(self.pane_seconds)),
                accumulation_mode=AccumulationMode.DISCARDING,
            )
        return usage | "ByKey" >> beam.GroupByKey()


class _RateFn(beam.DoFn):
    """State, per rating key: its usage by cell."""

    USAGE = ReadModifyWriteStateSpec("usage", BytesCoder())

    def process(
        self,
        keyed: tuple[bytes, Iterable[bytes]],
        catalog: Catalog,
        state: Any = beam.DoFn.StateParam(USAGE),
    ) -> Iterator[Any]:
        text, panes = keyed
        key = RatingKey.parse(text.decode())
        book = directory(catalog)
        aggregation = book.meters[key.meter_id].aggregation
        stored = state.read()
        usage, first, _ = Pane.unpacked(aggregation, stored) if stored else Pane({})
        wanted = []
        for packed in panes:
            pane = Pane.unpacked(aggregation, packed)
            for cell, one in pane.usage.items():
                known = usage.get(cell)
                usage[cell] = one if known is None else merge(aggregation, known, one)
            wanted += [since for since in (pane.since, first if pane.is_archived else None) if since]
        written = [*wanted, first] if first else wanted
        state.write(Pane(usage, min(written, default=None)).packed(aggregation))
        if not wanted:
            return
        priced = book.price_of(key.subscription_id, key.charge_id, key.rate_card_version) if key.charge_id else None
        if key.charge_id and priced is None:
            yield _reject(text, Reason.NO_PRICE, f"the catalog has no price any more for {text.decode()}")
            return
        try:
            # All or nothing: of a key that is rejected no line item is written.
            items = list(line_items(key, aggregation, priced, usage, since=min(wanted)))
        except (QuantityError, MoneyError, RateCardError) as error:
            yield _reject(text, Reason.QUANTITY_OVERFLOW, str(error))
            return
        Metrics.counter("rate", "line_items").inc(len(items))
        yield from items


def _reject(key: bytes, reason: Reason, message: str) -> beam.pvalue.TaggedOutput:
    Metrics.counter("rate", reason).inc()
    return beam.pvalue.TaggedOutput("rejects", Reject("rate", reason, message, key, "rating_key", 0, 0))
