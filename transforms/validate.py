"""validate: blocks of records → columns of events, and rejects with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.typehints.decorators import no_annotations

from meterline.schemas.catalog import Catalog
from meterline.schemas.records import Reject
from meterline.transforms import coders  # noqa: F401 — registers how batches are encoded
from meterline.transforms.blocks import Block
from meterline.transforms.scan import EventShape, Scanner


class Validated(NamedTuple):
    events: beam.PCollection[pa.RecordBatch]
    rejects: beam.PCollection[Reject]


@dataclass
class ValidateEvents(beam.PTransform):
    """Read records as events; a bad one costs itself only.

    Args:
      catalog: Side input; its meters say which properties are read.
      horizon: Oldest accepted age of an event when received; none for no bound.
    """

    catalog: beam.pvalue.AsSingleton
    horizon: timedelta | None = None

    @no_annotations
    def expand(self, blocks: beam.PCollection[Block]) -> Validated:
        validate = beam.ParDo(_ValidateFn(self.horizon), self.catalog).with_output_types(pa.RecordBatch)
        validated = blocks | "Validate" >> validate.with_outputs("rejects", main="events")
        return Validated(validated["events"], validated["rejects"])


class _ValidateFn(beam.DoFn):
    def __init__(self, horizon: timedelta | None) -> None:
        self._horizon = horizon

    def setup(self) -> None:
        self._scanner: Scanner | None = None
        self._digest = ""

    def process(self, block: Block, catalog: Catalog) -> Iterator[Any]:
        if self._scanner is None or self._digest != catalog.digest:
            self._scanner, self._digest = Scanner(EventShape.of(catalog), self._horizon), catalog.digest
        scanned = self._scanner.scan(block.records, block.received_time)
        Metrics.counter("validate", "records").inc(len(block.records))
        for place, reason, message in scanned.rejected:
            Metrics.counter("validate", reason).inc()
            yield beam.pvalue.TaggedOutput(
                "rejects",
                Reject(
                    "validate",
                    reason,
                    message,
                    block.records[place],
                    block.origin,
                    int(block.positions[place]),
                    block.received_time,
                ),
            )
        if scanned.events.num_rows:
            origin = pa.DictionaryArray.from_arrays(pa.array([0] * scanned.events.num_rows, pa.int32()), [block.origin])
            yield scanned.events.append_column("origin", origin).append_column(
                "position", pa.array(block.positions[scanned.places])
            )
