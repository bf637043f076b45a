"""The stream: messages of a Pub/Sub subscription, rated without end on an engine that keeps its state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import apache_beam as beam
from apache_beam.typehints.decorators import no_annotations

from meterline.pipelines import rate_usage
from meterline.runners.jobs import NOT_FINISHED, InputError, RateReport, run_row
from meterline.schemas.catalog import Catalog
from meterline.transforms import catalogs, clickhouse
from meterline.transforms.lease import held
from meterline.transforms.messages import BlocksOfMessages
from meterline.transforms.read import Read

HORIZON = timedelta(days=35)
SHARDS = 32


@dataclass
class ReadMessages(beam.PTransform):
    """Blocks of what an engine's own source reads.

    Args:
      source: Yields `PubsubMessage`s with their attributes.
      subscription: Where the events are said to come from.
    """

    source: beam.PTransform
    subscription: str

    @no_annotations
    def expand(self, begin: beam.pvalue.PBegin) -> Read:
        messages = begin | "Messages" >> self.source
        return messages | "Blocks" >> BlocksOfMessages(self.subscription)


@dataclass(frozen=True)
class Stream:
    """A run without end, as all who take part in it know it."""

    run_id: str
    subscription: str
    clickhouse: str
    catalogs: catalogs.PublishedCatalogs
    horizon: timedelta
    shards: int

    def build(self, pipeline: beam.Pipeline, source: beam.PTransform) -> None:
        """The pipeline, reading from an engine's own source of messages."""
        options = rate_usage.Options(
            (),
            self.catalogs,
            self.clickhouse,
            0,
            self.horizon,
            shards=self.shards,
            source=ReadMessages(source, self.subscription),
            streaming=True,
            run_id=self.run_id,
        )
        rate_usage.build(pipeline, options)


def check_database(url: str, engine: str) -> None:
    """Refuse a database that only one process can open: an engine's workers are several.

    Raises:
      InputError: it is an embedded one.
    """
    if not url.startswith(("http://", "https://")):
        raise InputError(
            f"on {engine} several processes write, and {url.partition('://')[0]}:// serves one: expected "
            "--clickhouse http(s)://user:password@host:8123/database, a ClickHouse server that all workers reach"
        )


@contextmanager
def begun(
    subscription: str,
    catalog: Catalog,
    url: str,
    *,
    resumes: bool = False,
    horizon: timedelta = HORIZON,
    shards: int = SHARDS,
) -> Iterator[Stream]:
    """Begin a run, or go on with the last one, and hold the database's lease for it while the context lasts; after
    that the run's workers hold it.

    Args:
      resumes: Whether the run goes on from its state. Without state it is a new one, which recalls the archive.
      horizon: Oldest accepted age of an event when received.
      shards: Keys that deduplication is spread over; the state of a run belongs to their number.

    Raises:
      InputError: the last run cannot be gone on with.
      LeaseError: another job holds the database.
    """
    clickhouse.ready(url)
    run_id = _to_go_on_with(url, subscription) if resumes else uuid4().hex
    with held(url, "rate_usage", holder=run_id):
        since = catalogs.publish(url, catalog, delay_seconds=0)
        if not resumes:
            now = datetime.now(UTC)
            report = RateReport(run_id, now, (subscription,), 0, 0, 0, {}, 0, 0, 0.0)
            clickhouse.insert(url, "runs", run_row(report, now, NOT_FINISHED, catalog))
        handle = catalogs.PublishedCatalogs(url, catalog.digest, since)
        yield Stream(run_id, subscription, url, handle, horizon, shards)


_LAST = "SELECT run_id, inputs, started_at FROM runs FINAL ORDER BY started_at DESC, run_id LIMIT 1"


def _to_go_on_with(url: str, subscription: str) -> str:
    last = clickhouse.query(url, _LAST).to_pylist()
    if not last:
        raise InputError(f"no run has begun in {clickhouse.redacted(url)}: start the stream without --resume")
    if last[0]["inputs"] != [subscription]:
        raise InputError(
            f"the last run in {clickhouse.redacted(url)}, {last[0]['run_id']}, rated {', '.join(last[0]['inputs'])}, "
            f"not {subscription}. What it stored is not in the state that --resume names: start the stream without it"
        )
    return str(last[0]["run_id"])
