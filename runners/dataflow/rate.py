"""`meterline rate --on dataflow`: submit the stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from meterline.runners import stream
from meterline.runners.dataflow import jobs
from meterline.runners.dataflow.place import DataflowError, Place
from meterline.schemas.catalog import Catalog


@dataclass(frozen=True)
class Settings:
    """How the job runs; `jobs.options` says more.

    Args:
      name: Of the job; none for one that says the subscription.
      update: Whether it takes the place of the job of this name, goes on from its state, and keeps its run.
    """

    name: str | None = None
    update: bool = False
    worker_image: str | None = None
    packages: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    shards: int = stream.SHARDS


def rate_on_dataflow(
    subscription: str,
    catalog: Catalog,
    url: str,
    place: Place,
    settings: Settings,
    say: Callable[[str], None],
    horizon: timedelta = stream.HORIZON,
) -> jobs.Submitted | None:
    """Submit the stream; Dataflow runs it from then on.

    Raises:
      DataflowError: Dataflow cannot be used as it was asked for.
      InputError: the last run cannot be gone on with; the database is an embedded one.
      DatabaseError: ClickHouse cannot be used, or another job holds it.
    """
    chosen = jobs.options(
        place,
        settings.name or jobs.default_name(subscription),
        update=settings.update,
        worker_image=settings.worker_image,
        packages=settings.packages,
        more=settings.more,
    )
    return start(
        subscription, catalog, url, chosen, say, resumes=settings.update, horizon=horizon, shards=settings.shards
    )


def start(
    subscription: str,
    catalog: Catalog,
    url: str,
    chosen: PipelineOptions,
    say: Callable[[str], None],
    *,
    resumes: bool,
    horizon: timedelta = stream.HORIZON,
    shards: int = stream.SHARDS,
) -> jobs.Submitted | None:
    """The same with Beam's options; what is wrong with what was given is found before a run begins."""
    stream.check_database(url, "Dataflow")
    source = messages(subscription)
    empty = jobs.pipeline(chosen)
    jobs.check_name(chosen, resumes)
    name = jobs.name(chosen)
    state_of = name.__eq__ if resumes else None  # One job of a name runs, and `check_name` found it.
    with stream.begun(subscription, catalog, url, state_of=state_of, horizon=horizon, shards=shards) as begun:
        job = jobs.submit(empty, lambda pipeline: begun.build(pipeline, source))
        begun.taken(name)
        what = "takes over the state of the one that runs" if resumes else "starts without state"
        if job:
            say(f"job {job.name} ({job.id}) {what}, as run {begun.run_id}: {job.url}")
        else:
            say(f"the job {what}, as run {begun.run_id}")
    return job


def messages(subscription: str) -> beam.PTransform:
    """Dataflow's own source. Without an `id_label` it deduplicates by the message's own id.

    Events have identities of their own: a label, which works for ten minutes, would cost a shuffle and tell no more.

    Raises:
      DataflowError: the subscription's name is none.
    """
    try:
        return beam.io.ReadFromPubSub(subscription=subscription, with_attributes=True, id_label=None)
    except ValueError:
        raise DataflowError(
            "a subscription is projects/PROJECT/subscriptions/NAME, with 6 to 30 small letters, digits and hyphens for "
            f"the project and 3 characters or more for the name; got {subscription!r}",
            2,
        ) from None
