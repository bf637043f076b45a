"""`meterline rate --subscription`: on this machine, or on an engine that keeps its state."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from meterline.runners.dataflow.place import Place
from meterline.schemas.catalog import Catalog

if TYPE_CHECKING:  # Loading them loads Beam.
    from meterline.runners.dataflow.rate import Settings as DataflowSettings
    from meterline.runners.flink.rate import Settings
    from meterline.runners.jobs import RateReport


class Engine(StrEnum):
    direct = "direct"
    flink = "flink"
    dataflow = "dataflow"


def rate_here(
    subscription: str,
    catalog: Catalog,
    url: str,
    *,
    horizon: timedelta,
    until_empty: bool,
    max_batches: int | None,
    err: Console,
    is_quiet: bool,
) -> RateReport:
    """Rate a subscription batch by batch, until a signal, telling of each."""
    from meterline.runners.direct_stream import rate_subscription

    with _stopping(err) as stop:
        return rate_subscription(
            subscription,
            catalog,
            url,
            horizon=horizon,
            max_batches=max_batches,
            until_empty=until_empty,
            stop=stop,
            on_batch=None if is_quiet else lambda batch: err.print(_batch_line(batch), highlight=False),
        )


@dataclass(frozen=True)
class Elsewhere:
    """Where a Flink is that `meterline flink up` did not start."""

    rest_url: str | None
    job_endpoint: str | None
    expansion_service: str | None
    worker_pool: str | None


def rate_on_flink(
    subscription: str,
    catalog: Catalog,
    url: str,
    *,
    horizon: timedelta,
    folder: Path,
    elsewhere: Elsewhere,
    settings: Settings,
    err: Console,
) -> dict[str, Any]:
    """Submit the stream, and follow it; Ctrl-C leaves it running."""
    from meterline.runners.flink import jobs
    from meterline.runners.flink.rate import rate_on_flink as submit

    given = [name for name, value in vars(elsewhere).items() if value]
    if given and len(given) < len(vars(elsewhere)):
        missing = ", ".join(f"--{name.replace('_', '-')}" for name in vars(elsewhere) if name not in given)
        raise typer.BadParameter(f"a Flink elsewhere is told by all four of its addresses; missing: {missing}")
    target = jobs.Target(**vars(elsewhere)) if given else jobs.local(folder)

    def say(text: str) -> None:
        err.print(text, highlight=False, markup=False, soft_wrap=True)

    job = submit(subscription, catalog, url, target, settings, say, horizon)
    return {"job_id": job.id, "job_name": job.name, "rest_url": target.rest_url}


def rate_on_dataflow(
    subscription: str,
    catalog: Catalog,
    url: str,
    *,
    horizon: timedelta,
    place: Place,
    settings: DataflowSettings,
    err: Console,
) -> dict[str, Any]:
    """Submit the stream to Dataflow, which runs it from then on."""
    from meterline.runners.dataflow.rate import rate_on_dataflow as submit

    def say(text: str) -> None:
        err.print(text, highlight=False, markup=False, soft_wrap=True)

    job = submit(subscription, catalog, url, place, settings, say, horizon)
    return {"job_id": job.id, "job_name": job.name, "url": job.url} if job else {}


@contextmanager
def _stopping(err: Console) -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; the second time they interrupt."""
    stop = threading.Event()

    def end(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        err.print("finishing the batch under way; once more interrupts it", highlight=False)

    before = {one: signal.signal(one, end) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _batch_line(report: RateReport) -> str:
    rejected = sum(report.rejected.values())
    return (
        f"{report.records:,} records: {report.accepted:,} accepted, {report.duplicates:,} duplicates, {rejected:,} "
        f"rejected; {report.line_items:,} line items in {report.seconds:.1f} s"
    )
