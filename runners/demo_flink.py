"""What the demo of a stream needs to run on Flink: a cluster of its own, and a database that its workers reach."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from meterline.runners.flink import cluster, home, jobs
from meterline.runners.flink.rest import RestError
from meterline.runners.pubsub.emulator import end as end_process
from meterline.runners.pubsub.emulator import launch
from meterline.schemas.catalog import Catalog
from meterline.transforms import clickhouse

_START_SECONDS = 60


def missing() -> str:
    """What is not on this machine that Flink needs, in a sentence; empty where nothing is."""
    try:
        home.java()
        home.find_maven()
    except home.FlinkError as error:
        return str(error)
    return ""


def end(folder: Path) -> None:
    """End what a demo that was killed may have left running."""
    if (folder / "flink" / "cluster.json").exists():
        cluster.down(folder / "flink")


@contextmanager
def rating(
    subscription: str, catalog: Catalog, folder: Path, emulator: str, say: Callable[[str], None]
) -> Iterator[str]:
    """A job on Flink that rates the subscription as long as the context lasts; the URL of its database.

    Raises:
      FlinkError: the cluster cannot be started, or refuses the job.
    """
    from meterline.runners.flink.rate import Settings, rate_on_flink

    say("starting it takes about half a minute; the first time Maven fetches about 270 MB")
    with _database(folder) as url:
        try:
            cluster.up(folder / "flink", cluster.Settings(slots=1), say)
            settings = Settings(checkpoint_seconds=1, pubsub_emulator=emulator, detach=True)
            job = rate_on_flink(subscription, catalog, url, jobs.local(folder / "flink"), settings, say)
            _await_workers(job)
            yield url
        finally:
            end(folder)


def _await_workers(job: jobs.Submitted) -> None:
    """Until the first checkpoint: then all of the job's workers are there."""
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        with suppress(RestError):  # A job that begins has none to tell of yet.
            if job.flink.checkpoints(job.id).completed:
                return
        time.sleep(0.2)


@contextmanager
def _database(folder: Path) -> Iterator[str]:
    ready, log = folder / "database.json", folder / "database.log"
    words = [
        "clickhouse",
        "serve",
        "--clickhouse",
        f"chdb://{folder / 'db'}",
        "--port",
        "0",
        "--ready-file",
        str(ready),
    ]
    server = launch([sys.executable, "-m", "meterline.runners.cli", *words], log)
    try:
        until = time.monotonic() + _START_SECONDS
        while not ready.exists():
            if server.poll() is not None or time.monotonic() > until:
                raise clickhouse.DatabaseError(f"`meterline clickhouse serve` does not start; its log is {log}")
            time.sleep(0.1)
        yield str(json.loads(ready.read_text())["url"])
    finally:
        clickhouse.connect.cache_clear()
        end_process(server, seconds=20)
