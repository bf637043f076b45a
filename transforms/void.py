"""void: look up what voiding events name; from here on they are events like all others, which feed no meter.

A voided event is never subtracted: `recall` reads the archive of the periods that it counted in and tells it apart, so
that their usage is computed anew without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.typehints.decorators import no_annotations

from meterline.schemas.event import EventError, Reason, microseconds
from meterline.schemas.records import Reject
from meterline.schemas.voids import VOID_SOURCE, VOID_TYPE, Void
from meterline.transforms.archive import Archive, archived_spans
from meterline.transforms.recall import Touched


class Voided(NamedTuple):
    """`touched` says which events are voided, and the periods that these counted in."""

    events: beam.PCollection[pa.RecordBatch]
    touched: beam.PCollection[tuple[str, bytes]]
    rejects: beam.PCollection[Reject]


@dataclass
class VoidEvents(beam.PTransform):
    """Pass attributed events on; of voiding ones those whose event is archived. The others are rejected here, before
    their identity is remembered, so that they can be sent again.

    Args:
      archive: What earlier runs stored: an event of the same run cannot be voided yet.
    """

    archive: Archive

    @no_annotations
    def expand(self, events: beam.PCollection[pa.RecordBatch]) -> Voided:
        look_up = beam.ParDo(_VoidFn(self.archive)).with_output_types(pa.RecordBatch)
        voided = events | "LookUp" >> look_up.with_outputs("touched", "rejects", main="events")
        touched = voided["touched"] | "Typed" >> beam.Map(lambda one: one).with_output_types(tuple[str, bytes])
        return Voided(voided["events"], touched, voided["rejects"])


class _VoidFn(beam.DoFn):
    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def process(self, events: pa.RecordBatch) -> Iterator[Any]:
        rows = voiding_rows(events)
        if not rows:
            yield events
            return
        voids: dict[int, Void] = {}
        wrong: dict[int, EventError] = {}
        for row in rows:
            try:
                voids[row] = Void.parse(events["payload"][row].as_py())
            except EventError as error:
                wrong[row] = error
        spans = archived_spans(self._archive, voids.values())
        for row, void in list(voids.items()):
            if void not in spans:
                del voids[row]
                wrong[row] = EventError(
                    Reason.UNKNOWN_EVENT,
                    f"no event is archived with source {void.event.source!r}, id {void.event.id!r} and this tenant, "
                    "subject and time; an event can be voided by a run after the one that accepted it",
                )
        for row in sorted(wrong):
            Metrics.counter("void", wrong[row].reason).inc()
            yield beam.pvalue.TaggedOutput("rejects", _reject(events, row, wrong[row]))
        if voids:
            periods = frozenset().union(*spans.values())
            touched = Touched(spans=periods, voids={void.event for void in voids.values()})
            yield beam.pvalue.TaggedOutput("touched", touched.packed())
        if wrong:
            keep = np.ones(events.num_rows, bool)
            keep[list(wrong)] = False
            events = events.filter(pa.array(keep))
        if events.num_rows:
            yield events


def voiding_rows(events: pa.RecordBatch) -> list[int]:
    """Which events are voiding ones, by their type or by their source, which no other may have."""
    rows: set[int] = set()
    for name, value in (("type", VOID_TYPE), ("source", VOID_SOURCE)):
        code = events[name].dictionary.index(value).as_py()
        if code >= 0:
            rows.update(np.flatnonzero(np.asarray(events[name].indices) == code).tolist())
    return sorted(rows)


def _reject(events: pa.RecordBatch, row: int, error: EventError) -> Reject:
    event = {name: events[name][row].as_py() for name in ("payload", "origin", "position", "received_time")}
    received = microseconds(event["received_time"])
    return Reject("void", error.reason, str(error), event["payload"], event["origin"], event["position"], received)
