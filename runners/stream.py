"""The stream: messages of a Pub/Sub subscription, rated without end on an engine that keeps its state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import apache_beam as beam
import pyarrow as pa
from apache_beam.typehints.decorators import no_annotations

from meterline.pipelines import rate_usage
from meterline.runners.jobs import NOT_FINISHED, InputError, RateReport, next_start, run_row
from meterline.schemas.arrow import MICROSECONDS
from meterline.schemas.catalog import Catalog
from meterline.schemas.event import microseconds
from meterline.transforms import catalogs, clickhouse
from meterline.transforms.lease import held
from meterline.transforms.messages import BlocksOfMessages
from meterline.transforms.read import Read

HORIZON = timedelta(days=35)
SHARDS = 16


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


@dataclass
class Stream:
    """A run without end, as all who take part in it know it."""

    run_id: str
    subscription: str
    clickhouse: str
    catalogs: catalogs.PublishedCatalogs
    horizon: timedelta
    shards: int
    is_taken: bool = False

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

    def taken(self, job: str) -> None:
        """An engine has taken a job of the run: from now on the job has the run's state, and holds the lease.

        Args:
          job: What the engine calls it.
        """
        self.is_taken = True
        row = {
            "run_id": [self.run_id],
            "subscription": [self.subscription],
            "horizon_seconds": pa.array([int(self.horizon.total_seconds())], pa.uint64()),
            "shards": pa.array([self.shards], pa.uint32()),
            "catalog_digest": [self.catalogs.first],
            "catalog_since": pa.array([self.catalogs.since], pa.int64()).cast(MICROSECONDS),
            "job": [job],
            "version": pa.array([time.time_ns()], pa.uint64()),
        }
        clickhouse.insert(self.clickhouse, "streams", pa.table(row))


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
    state_of: Callable[[str], bool] | None = None,
    horizon: timedelta = HORIZON,
    shards: int = SHARDS,
) -> Iterator[Stream]:
    """Begin a run, or go on with the last one, and hold the database's lease for it while the context lasts. When an
    engine took a job of it (`Stream.taken`), the workers hold the lease after that; where none did, no run has begun.

    Args:
      state_of: To go on with the last run: whether the state that is gone on with is that of a job, by the name that
        `Stream.taken` was given. Without it the run is a new one, which has no state, and recalls the archive.
      horizon: Oldest accepted age of an event when received.
      shards: Keys that deduplication is spread over.

    Raises:
      InputError: the last run cannot be gone on with.
      LeaseError: another job holds the database.
    """
    clickhouse.ready(url)
    last = _to_go_on_with(url, subscription, state_of, horizon, shards) if state_of else None
    run_id = last["run_id"] if last else uuid4().hex
    with held(url, "rate_usage", holder=run_id) as lease:
        if last:
            # What came before is rated as it was: some of it comes again.
            handle = catalogs.PublishedCatalogs(url, last["catalog_digest"], microseconds(last["catalog_since"]))
            catalogs.check(url, catalog)
            if catalog.digest != catalogs.last_digest(url):
                catalogs.publish(url, catalog)
        else:
            handle = catalogs.PublishedCatalogs(url, catalog.digest, catalogs.publish(url, catalog, delay_seconds=0))
            started = next_start(url)
            report = RateReport(run_id, started, (subscription,), 0, 0, 0, {}, 0, 0, 0.0)
            clickhouse.insert(url, "runs", run_row(report, started, NOT_FINISHED, catalog))
        stream = Stream(run_id, subscription, url, handle, horizon, shards)
        try:
            yield stream
        finally:
            lease.outlives = stream.is_taken
            if not (last or stream.is_taken):
                clickhouse.command(url, _FORGET, {"run": run_id})


_FORGET = "ALTER TABLE runs DELETE WHERE run_id = {run:String} SETTINGS mutations_sync = 1"
_LAST = "SELECT run_id, inputs FROM runs FINAL ORDER BY started_at DESC, run_id LIMIT 1"
_BOUND = """
SELECT run_id, subscription, horizon_seconds, shards, catalog_digest, catalog_since, job
FROM streams FINAL WHERE run_id = {run:String}
"""


def _to_go_on_with(
    url: str, subscription: str, state_of: Callable[[str], bool], horizon: timedelta, shards: int
) -> dict[str, Any]:
    """What the last run is bound to, if that is what is asked for."""
    where, anew = clickhouse.redacted(url), "start the stream without going on from a state: it recalls the archive"
    last = clickhouse.query(url, _LAST).to_pylist()
    if not last:
        raise InputError(f"no run has begun in {where}: {anew}")
    run = last[0]["run_id"]
    bound = clickhouse.query(url, _BOUND, {"run": run}).to_pylist()
    if not bound or bound[0]["subscription"] != subscription:
        raise InputError(
            f"the last run in {where}, {run}, rated {', '.join(last[0]['inputs'])}, and is no stream of {subscription} "
            f"with a state. What it stored is in no state: {anew}"
        )
    if not state_of(bound[0]["job"]):
        raise InputError(
            f"the state is not that of job {bound[0]['job']}, the latest of run {run} in {where}: what was stored "
            f"since is not in it. Name that job's savepoint or checkpoint, or {anew}"
        )
    given = (int(horizon.total_seconds()), shards)
    if given != (bound[0]["horizon_seconds"], bound[0]["shards"]):
        days = bound[0]["horizon_seconds"] / 86_400
        raise InputError(
            f"the state of run {run} was made for events of at most {days:g} days and {bound[0]['shards']} shards, not "
            f"{given[0] / 86_400:g} days and {shards}. Go on with --max-age-days {days:g}, or {anew}"
        )
    return dict(bound[0])
