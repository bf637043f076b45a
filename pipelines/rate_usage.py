"""rate_usage: usage events in, rated line items and the archive out.

read ─▶ validate ─▶ attribute ─▶ void ─▶ deduplicate ─▶ meter ─▶ rate ─▶ line_items
 │         │          │          │ │            │                 ▲ │
 │         │          │          │ └▶ recall ───┼─────────────────┘ │
 ▼         ▼          ▼          ▼              ▼                   ▼
rejects                     rating_keys, voids, usage_events     rejects
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import apache_beam as beam

from meterline.transforms.archive import Archive, Span
from meterline.transforms.attribute import AttributeEvents
from meterline.transforms.catalogs import Catalogs
from meterline.transforms.deduplicate import DeduplicateEvents
from meterline.transforms.lease import RunGuard
from meterline.transforms.meter import MeterUsage
from meterline.transforms.rate import RateUsage
from meterline.transforms.read import ReadFiles
from meterline.transforms.recall import RecallSpans, RecallUsage
from meterline.transforms.validate import ValidateEvents
from meterline.transforms.void import VoidEvents
from meterline.transforms.write import (
    NewRatingKeys,
    WriteRows,
    line_item_rows,
    reject_rows,
    usage_event_rows,
    void_rows,
)

# How long a message may wait before it is read, at most: Pub/Sub keeps none longer. A watermark may be ahead of
# those that wait, as they come in any order.
RETENTION = timedelta(days=31)
# Beyond that, so that no runner drops as late what `validate` accepts, nor forgets a period while usage is on its way.
SLACK = timedelta(days=1)


@dataclass(frozen=True)
class Options:
    """What one run of the job needs to know.

    Args:
      inputs: Files of usage events.
      catalog: Prices and customers; of a stream a handle to those that come into force while it runs.
      clickhouse: URL of the database.
      received_time: The run's `--now`, microseconds since 1970: what counts as the future does not depend on a clock.
      horizon: Oldest accepted age of an event; none for no bound (files).
      shards: Keys that deduplication is spread over; rating in streams over 16 times as many.
      has_archive: Whether the database may hold events of earlier runs. Where it surely does not, nobody asks it.
      source: What yields blocks and rejects in place of files.
      streaming: Whether it does so without end.
      run_id: Names the run in the archive. A job that goes on from its state keeps it; one without state has a new one.
    """

    inputs: tuple[str, ...]
    catalog: Catalogs
    clickhouse: str
    received_time: int
    horizon: timedelta | None = None
    shards: int = 1
    has_archive: bool = True
    source: beam.PTransform | None = None
    streaming: bool = False
    run_id: str = field(default_factory=lambda: uuid4().hex)

    @property
    def keep(self) -> timedelta | None:
        """How long state is kept after its time: until nothing can be accepted for it; none where input has an end."""
        return None if not self.streaming else (self.horizon or timedelta(0)) + RETENTION + SLACK

    @property
    def archive(self) -> Archive:
        return Archive(self.clickhouse, self.run_id)


def build(pipeline: beam.Pipeline, options: Options) -> None:
    """The stages, in order. Tests call this; so does every runner."""
    catalog: Any = options.catalog
    if not options.streaming:  # A catalog may be large; a stream's handle is small, and Flink's side inputs fail.
        catalog = beam.pvalue.AsSingleton(pipeline | "Catalog" >> beam.Create([options.catalog], reshuffle=False))

    read = pipeline | "Read" >> (options.source or ReadFiles(list(options.inputs), options.received_time))
    validated = read.blocks | "Validate" >> ValidateEvents(catalog, options.horizon)
    attributed = validated.events | "Attribute" >> AttributeEvents(catalog)
    voided = attributed.events | "Void" >> VoidEvents(options.archive)
    archived: tuple[beam.PCollection[tuple[bytes, bytes]], ...] = ()
    if options.has_archive:
        touching = {"events": voided.events, "touched": voided.touched}
        archived = (touching | "Recall" >> RecallUsage(options.archive, catalog, options.keep),)
    deduplicated = voided.events | "Deduplicate" >> DeduplicateEvents(
        options.archive if options.has_archive else None, options.shards, options.keep
    )
    fresh = deduplicated.events | "Meter" >> MeterUsage(catalog)
    rated = (fresh, *archived) | "Usage" >> beam.Flatten() | "Rate" >> RateUsage(catalog, options.keep, options.shards)

    # An archived event must never name a rating key that is not stored, nor one be archived that voids in vain.
    event_rows = partial(usage_event_rows, run_id=options.run_id)
    archive = {"rating_keys": NewRatingKeys(), "voids": void_rows, "usage_events": event_rows}
    guard = RunGuard(options.clickhouse, options.run_id) if options.streaming else None
    deduplicated.events | "WriteUsageEvents" >> WriteRows(options.clickhouse, archive, guard, options.streaming)
    rated.line_items | "WriteLineItems" >> WriteRows(options.clickhouse, {"line_items": line_item_rows}, guard)
    stages = (read, validated, attributed, voided, deduplicated, rated)
    rejects = tuple(stage.rejects for stage in stages)
    rejects | "Rejects" >> beam.Flatten() | "WriteRejects" >> WriteRows(options.clickhouse, {"rejects": reject_rows})


def rebuild(pipeline: beam.Pipeline, options: Options, spans: Sequence[Span]) -> None:
    """Rate archived events alone: what is right stays as it is, what was damaged is mended.

    Args:
      spans: The billing periods wanted; events in them may feed others too, whose rows then know less and lose.
    """
    catalog = beam.pvalue.AsSingleton(pipeline | "Catalog" >> beam.Create([options.catalog], reshuffle=False))
    recalled = pipeline | "Recall" >> RecallSpans(Archive(options.clickhouse, ""), catalog, list(spans))
    rated = recalled | "Rate" >> RateUsage(catalog)
    rated.line_items | "WriteLineItems" >> WriteRows(options.clickhouse, {"line_items": line_item_rows})
    rated.rejects | "WriteRejects" >> WriteRows(options.clickhouse, {"rejects": reject_rows})
