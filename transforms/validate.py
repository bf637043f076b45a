"""validate: blocks of records → columns of events, and rejects with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.typehints.decorators import no_annotations

from meterline.schemas.catalog import Catalog
from meterline.schemas.records import Reject
from meterline.transforms import coders  # noqa: F401 — registers how batches are encoded
from meterline.transforms.blocks import Block
from meterline.transforms.catalogs import Catalogs
from meterline.transforms.scan import Scanner
from meterline.transforms.shape import EventShape


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


def _by_catalog(block: Block, catalogs: Catalogs) -> Iterator[tuple[Catalog, Block]]:
    """The records by the catalog that was in force when they were received; nearly always it is one."""
    if isinstance(block.received_time, int):
        yield catalogs.as_of(block.received_time), block
        return
    times, time_of_record = np.unique(block.received_time, return_inverse=True)
    in_force = [catalogs.as_of(time) for time in times.tolist()]
    digests = [one.digest for one in in_force]
    for place, digest in enumerate(digests):
        if digests.index(digest) == place:
            records = np.flatnonzero(np.asarray([one == digest for one in digests])[time_of_record])
            yield in_force[place], block if len(records) == len(time_of_record) else block.take(records)


class _ValidateFn(beam.DoFn):
    def __init__(self, horizon: timedelta | None) -> None:
        self._horizon = horizon

    def setup(self) -> None:
        self._scanner: Scanner | None = None
        self._digest = ""

    def process(self, block: Block, catalogs: Catalogs) -> Iterator[Any]:
        for catalog, part in _by_catalog(block, catalogs):
            yield from self._validate(part, catalog)

    def _validate(self, block: Block, catalog: Catalog) -> Iterator[Any]:
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
                    *block.place(place),
                ),
            )
        if scanned.events.num_rows:
            yield scanned.events.append_column("origin", block.origins(scanned.places)).append_column(
                "position", pa.array(block.positions[scanned.places])
            )
