"""A stream that stood still for 30 days: what waited comes in any order, some of it late, some of it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.test_stream import TestStream as Stream
from apache_beam.typehints.decorators import no_annotations
from apache_beam.utils.timestamp import Timestamp

from meterline.pipelines import rate_usage
from meterline.schemas.catalog import Catalog
from meterline.schemas.records import Reject
from meterline.transforms import clickhouse
from meterline.transforms.blocks import Block, Records
from meterline.transforms.read import Read

from .delivery import microseconds
from .test_streams import accepted, call, catalog, items, play  # noqa: F401 — catalog is a fixture

STOPPED = datetime(2026, 10, 10, tzinfo=UTC)
STARTED = STOPPED + timedelta(days=30)


@dataclass
class Backlog(beam.PTransform):
    """Messages, each with the time at which it was published; an instant alone is one that the watermark reaches."""

    steps: Sequence[tuple[datetime, list[bytes]] | datetime]

    @no_annotations
    def expand(self, begin: beam.pvalue.PBegin) -> Read:
        source = Stream()
        for number, step in enumerate(self.steps):
            if isinstance(step, datetime):
                source = source.advance_watermark_to(Timestamp.from_utc_datetime(step))
                continue
            published, records = step
            positions = np.full(len(records), number)
            block = Block(Records.of(records), positions, "stream", microseconds(published))
            source = source.add_elements([beam.window.TimestampedValue(block, published.timestamp())])
            source = source.advance_processing_time(60)
        messages = begin | source.advance_processing_time(3_600).advance_watermark_to_infinity()
        blocks = messages | "Blocks" >> beam.Map(lambda block: block).with_output_types(Block)
        rejects = messages | "Rejects" >> beam.FlatMap(lambda _: ()).with_output_types(Reject)
        return Read(blocks, rejects)


def rejected(url: str) -> list[tuple[str, str]]:
    rows = clickhouse.query(url, "SELECT reason, payload FROM rejects FINAL ORDER BY payload", as_text=False)
    return [(row["reason"].decode(), row["payload"].decode()) for row in rows.to_pylist()]


def days_before(published: datetime, days: int) -> bytes:
    time = published - timedelta(days=days)
    assert time.month == 10, "calls are of October"
    return call(time.day, 0, 1)


def test_what_waited_for_thirty_days_counts_once(database: str, catalog: Catalog) -> None:  # noqa: F811
    first = [call(day, 0, 1) for day in (1, 4, 5, 9)]
    published = {days: STARTED - timedelta(days=days) for days in (0, 1, 10, 29)}
    steps = [
        (STOPPED, first),
        STOPPED,
        # The newest come first, and the watermark goes on with them, ahead of what still waits.
        (STARTED, [call(31, 0, 1), days_before(published[0], 34), days_before(published[0], 36)]),
        STARTED,
        (published[10], [call(20, 0, 1), first[0], first[3]]),
        (published[29], [call(11, 0, 1), call(2, 0, 1)]),
        # What is 35 days old comes again, as it came thirty days ago.
        (published[1], [days_before(published[1], 35), first[1]]),
    ]
    play(database, catalog, Backlog(steps), "stream")  # type: ignore[arg-type]
    new = [call(31, 0, 1), days_before(STARTED, 34), call(20, 0, 1), call(11, 0, 1), call(2, 0, 1)]
    assert days_before(published[1], 35) == first[1]
    assert len(accepted(database, "stream")) == len(first) + len(new)
    assert [row[3] for row in items(database)] == list(range(1, 10)), "each counts once, and moves what is behind it"
    assert rejected(database) == [("too_old", days_before(STARTED, 36).decode())]


def test_the_check_above_can_fail(
    database: str,
    catalog: Catalog,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """State that ends with its period, while what waited is still to come. (Of windows that have ended the in-process
    runner drops nothing, as others do: test_chaos.py does, and test_deduplicate.py looks at how long they last.)"""
    monkeypatch.setattr(rate_usage.Options, "keep", timedelta(0))
    with pytest.raises(AssertionError):
        test_what_waited_for_thirty_days_counts_once(database, catalog)
