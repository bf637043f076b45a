"""`meterline rate --on flink`: submit the stream, and follow it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from meterline.runners import stream
from meterline.runners.flink import jobs
from meterline.runners.flink.pubsub import ReadPubSub
from meterline.schemas.catalog import Catalog


@dataclass(frozen=True)
class Settings:
    """How the job runs.

    Args:
      name: Of the job; none for one that says the subscription.
      resume: Savepoint, or retained checkpoint, to go on from; none to start without state.
      detach: Whether to leave the job alone once it runs.
    """

    name: str | None = None
    parallelism: int = 2
    max_parallelism: int | None = None
    checkpoint_seconds: float = 10
    shards: int = stream.SHARDS
    resume: str | None = None
    pubsub_emulator: str | None = None
    detach: bool = False


def rate_on_flink(
    subscription: str,
    catalog: Catalog,
    url: str,
    target: jobs.Target,
    settings: Settings,
    say: Callable[[str], None],
    horizon: timedelta = stream.HORIZON,
) -> jobs.Submitted:
    """Submit the stream and, unless it is to be left alone, follow it until it ends.

    Raises:
      FlinkError: the cluster cannot be used; JobFailed: the job failed, or fails again and again.
      InputError: the last run cannot be gone on with; the database is an embedded one.
      DatabaseError: ClickHouse cannot be used, or another job holds it.
    """
    stream.check_database(url, "Flink")
    name = settings.name or "meterline-" + subscription.rpartition("/")[2]
    options = jobs.options(
        target,
        name,
        parallelism=settings.parallelism,
        max_parallelism=settings.max_parallelism,
        checkpoint_seconds=settings.checkpoint_seconds,
        savepoint=settings.resume,
        pubsub_emulator=settings.pubsub_emulator,
    )
    source = ReadPubSub(subscription, target.expansion_service)
    jobs.check_free(target, name)  # Before a run begins, which would end that of the other job.
    state_of = partial(jobs.is_state_of, settings.resume) if settings.resume else None
    with stream.begun(subscription, catalog, url, state_of=state_of, horizon=horizon, shards=settings.shards) as begun:
        job = jobs.submit(lambda pipeline: begun.build(pipeline, source), target, options)
        begun.taken(job.id)
        what = f"goes on from {settings.resume}" if settings.resume else "starts without state"
        say(f"job {job.name} ({job.id}) {what}, as run {begun.run_id}")
        if not settings.detach:
            state = jobs.watch(job, say)
            say(f"job {job.name} ended: {state.lower()}")
    return job
