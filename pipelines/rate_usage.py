"""rate_usage: usage events in, rated line items and the archive out.

read ─▶ validate ─▶ attribute ─▶ void ─▶ deduplicate ─▶ meter ─▶ rate ─▶ line_items
 │         │          │          │ │          ▲ │                 ▲ │
 │         │          │          │ └▶ recall ─┴─┼─────────────────┘ │
 ▼         ▼          ▼          ▼              ▼                   ▼
rejects                     rating_keys, voids, usage_events     rejects
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import apache_beam as beam

from meterline.schemas.catalog import Catalog
from meterline.transforms.archive import Span
from meterline.transforms.attribute import AttributeEvents
from meterline.transforms.deduplicate import DeduplicateEvents
from meterline.transforms.meter import MeterUsage
from meterline.transforms.rate import RateUsage
from meterline.transforms.read import ReadFiles
from meterline.transforms.recall import RecallSpans, RecallUsage
from meterline.transforms.validate import ValidateEvents
from meterline.transforms.void import VoidEvents
from meterline.transforms.write import (
    WriteRows,
    line_item_rows,
    rating_key_rows,
    reject_rows,
    usage_event_rows,
    void_rows,
)


@dataclass(frozen=True)
class Options:
    """What one run of the job needs to know.

    Args:
      inputs: Files of usage events.
      catalog: Prices and customers.
      clickhouse: URL of the database.
      received_time: The run's `--now`, microseconds since 1970: what counts as the future does not depend on a clock.
      horizon: Oldest accepted age of an event; none for no bound (files).
      shards: Keys that deduplication is spread over.
      has_archive: Whether the database may hold events already. Where it surely does not, nothing has to be awaited
        before the first event is counted, and a run on one machine holds less in memory.
    """

    inputs: tuple[str, ...]
    catalog: Catalog
    clickhouse: str
    received_time: int
    horizon: timedelta | None = None
    shards: int = 1
    has_archive: bool = True


def build(pipeline: beam.Pipeline, options: Options) -> None:
    """The stages, in order. Tests call this; so does every runner."""
    catalog = beam.pvalue.AsSingleton(pipeline | "Catalog" >> beam.Create([options.catalog], reshuffle=False))

    read = pipeline | "Read" >> ReadFiles(list(options.inputs), options.received_time)
    validated = read.blocks | "Validate" >> ValidateEvents(catalog, options.horizon)
    attributed = validated.events | "Attribute" >> AttributeEvents(catalog)
    voided = attributed.events | "Void" >> VoidEvents(options.clickhouse)
    inputs = {"events": voided.events}
    archived: tuple[beam.PCollection[tuple[bytes, bytes]], ...] = ()
    if options.has_archive:
        # Behind attribute, as archived events are attributed already; before deduplicate, as they may come again.
        touching = {"events": voided.events, "touched": voided.touched}
        recalled = touching | "Recall" >> RecallUsage(options.clickhouse, catalog)
        inputs["identities"] = recalled.identities
        archived = (recalled.usage,)
    deduplicated = inputs | "Deduplicate" >> DeduplicateEvents(options.clickhouse, options.shards, options.horizon)
    fresh = deduplicated.events | "Meter" >> MeterUsage(catalog)
    rated = (fresh, *archived) | "Usage" >> beam.Flatten() | "Rate" >> RateUsage(catalog)

    # An archived event must never name a rating key that is not stored, nor one be archived that voids in vain.
    archive = {"rating_keys": rating_key_rows, "voids": void_rows, "usage_events": usage_event_rows}
    deduplicated.events | "WriteUsageEvents" >> WriteRows(options.clickhouse, archive)
    rated.line_items | "WriteLineItems" >> WriteRows(options.clickhouse, {"line_items": line_item_rows})
    stages = (read, validated, attributed, voided, deduplicated, rated)
    rejects = tuple(stage.rejects for stage in stages)
    rejects | "Rejects" >> beam.Flatten() | "WriteRejects" >> WriteRows(options.clickhouse, {"rejects": reject_rows})


def rebuild(pipeline: beam.Pipeline, options: Options, spans: Sequence[Span]) -> None:
    """Rate archived events alone: what is right stays as it is, what was damaged is mended.

    Args:
      spans: The billing periods wanted; events in them may feed others too, whose rows then know less and lose.
    """
    catalog = beam.pvalue.AsSingleton(pipeline | "Catalog" >> beam.Create([options.catalog], reshuffle=False))
    recalled = pipeline | "Recall" >> RecallSpans(options.clickhouse, catalog, list(spans))
    rated = recalled.usage | "Rate" >> RateUsage(catalog)
    rated.line_items | "WriteLineItems" >> WriteRows(options.clickhouse, {"line_items": line_item_rows})
    rated.rejects | "WriteRejects" >> WriteRows(options.clickhouse, {"rejects": reject_rows})
