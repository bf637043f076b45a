"""How long after its publication an event is in ClickHouse, at several rates: Pub/Sub's emulator → Flink → the embedded
database behind HTTP, all on this machine. See README.md."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import yaml
import zstandard
from events import _lines, catalog

TOPIC = "projects/meterline-bench/topics/usage"
SUBSCRIPTION = "projects/meterline-bench/subscriptions/usage"
EVENTS_PER_MESSAGE = 200
_TIME = re.compile(rb'"time":"[^"]*"')


@dataclass(frozen=True)
class Figures:
    """Of one rate. Latencies are from handing an event to the publisher until a reader sees it, in seconds.

    `backlog_growth` is by how many events a second what is published and not yet rated grew in the second half.
    """

    wanted_rate: int
    seconds: float
    published: int
    published_rate: float
    archived_p50: float
    archived_p99: float
    rated_p50: float
    rated_p99: float
    backlog_growth: float

    @property
    def keeps_up(self) -> bool:
        """Whether the stream kept up with what was published, which was what was wanted."""
        return self.backlog_growth < 0.01 * self.wanted_rate and self.published_rate > 0.98 * self.wanted_rate


def measure(url: str, rate: int, seconds: float) -> Figures:
    """Publish at a rate, and look at the tables five times a second."""
    before = _stored(url)
    sent: list[tuple[float, int]] = []
    seen: list[tuple[float, int, int]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            at = time.monotonic()
            archived, rated = _stored(url)
            seen.append((at, archived - before[0], rated - before[1]))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    total = _publish(rate, seconds, sent)
    deadline = time.monotonic() + 120
    while (not seen or seen[-1][2] < total) and time.monotonic() < deadline:
        time.sleep(0.1)
    over.set()
    watcher.join()
    # The events of the first seconds find an engine that has idled.
    at, count = (np.asarray(column) for column in zip(*sent[len(sent) // 10 :]))
    when, *columns = (np.asarray(column) for column in zip(*seen))
    lags = []
    for column in columns:
        place = np.searchsorted(column, count)
        reached = np.append(when, np.inf)[place]
        lags.append(reached - at)
    half = at[len(at) // 2]
    backlog = [
        (moment, int(count[max(np.searchsorted(at, moment) - 1, 0)]) - rated)
        for moment, _, rated in seen
        if half <= moment <= at[-1]
    ]
    growth = float(np.polyfit(*zip(*backlog), 1)[0]) if len(backlog) > 2 else float("nan")
    return Figures(
        rate,
        seconds,
        total,
        total / (sent[-1][0] - sent[0][0]),
        *(float(np.quantile(lag, part)) for lag in lags for part in (0.5, 0.99)),
        growth,
    )


def sustained(url: str, rates: Iterable[int], seconds: float) -> Iterator[Figures]:
    """Publish for long, at falling rates, until the stream keeps up with one."""
    for rate in rates:
        found = measure(url, rate, seconds)
        yield found
        if found.keeps_up:
            return


def _stored(url: str) -> tuple[int, int]:
    """Events that are archived, and events that line items of one meter count."""
    from meterline.transforms import clickhouse

    sql = """SELECT (SELECT count() FROM usage_events) AS archived,
                    (SELECT sum(event_count) FROM line_items FINAL WHERE meter_id = 'input_tokens') AS rated"""
    row = clickhouse.query(url, sql).to_pylist()[0]
    return row["archived"], row["rated"] or 0


def _publish(rate: int, seconds: float, sent: list[tuple[float, int]]) -> int:
    """Different events at an even pace; when each message was handed over, and how many events went before its end."""
    from google.cloud import pubsub_v1

    client = pubsub_v1.PublisherClient()
    random = np.random.default_rng()
    began, total, under_way = time.monotonic(), 0, []
    lines: list[bytes] = []
    while (now := time.monotonic()) < began + seconds:
        if total > (now - began) * rate:
            time.sleep(0.002)
            continue
        if len(lines) < EVENTS_PER_MESSAGE:
            lines += _lines(random, 0, 10_000, 10_000, 1)[0]
        message, lines = _of_now(lines[:EVENTS_PER_MESSAGE]), lines[EVENTS_PER_MESSAGE:]
        total += len(message)
        sent.append((time.monotonic(), total))
        # As `Producer(compress="zstd")` sends them: Beam's Java source reads Base64, a character at a time.
        data = zstandard.compress(b"".join(message))
        attributes = {"content-type": "application/x-ndjson", "content-encoding": "zstd"}
        under_way.append(client.publish(TOPIC, data, **attributes))
    for one in under_way:
        one.result()
    return total


def _of_now(lines: list[bytes]) -> list[bytes]:
    """Events that happened in the last minute, as those of a stream do."""
    now = datetime.now(UTC)
    ages = [(now - timedelta(seconds=age)).strftime('"time":"%Y-%m-%dT%H:%M:%S.%fZ"').encode() for age in range(60)]
    return [_TIME.sub(ages[number % 60], line) for number, line in enumerate(lines)]


# --- everything around it ---------------------------------------------------------------------------


@contextmanager
def everything(folder: Path, parallelism: int) -> Iterator[str]:
    """Emulator, database, cluster and job; the database's URL."""
    from meterline.runners.pubsub import client as pubsub
    from meterline.runners.pubsub.emulator import emulator
    from meterline.transforms import clickhouse

    prices = folder / "prices"
    prices.mkdir()
    (prices / "catalog.yaml").write_text(yaml.safe_dump(catalog().model_dump(mode="json", exclude_unset=True)))
    ready = folder / "ready.json"
    command = [sys.executable, "-m", "meterline.runners.cli"]
    flink = ["--folder", str(folder / "flink")]
    with emulator() as host:
        environment = os.environ | {"PUBSUB_EMULATOR_HOST": host}
        pubsub.create_topic(TOPIC)
        pubsub.create_subscription(SUBSCRIPTION, TOPIC)
        serve = ["clickhouse", "serve", "--clickhouse", f"chdb://{folder / 'db'}", "--port", "0"]
        subprocess.run([*command, "migrate", "--clickhouse", f"chdb://{folder / 'db'}"], check=True, stdout=2)
        server = subprocess.Popen([*command, *serve, "--ready-file", str(ready)], stdout=2)
        try:
            subprocess.run([*command, "flink", "up", *flink, "--slots", str(parallelism)], check=True, stdout=2)
            while not ready.exists():
                time.sleep(0.1)
            url = json.loads(ready.read_text())["url"]
            rate = ["rate", "--subscription", SUBSCRIPTION, "--on", "flink", "--flink-folder", str(folder / "flink")]
            rate += ["--catalog", str(prices), "--clickhouse", url, "--detach"]
            rate += ["--parallelism", str(parallelism)]
            subprocess.run([*command, *rate], check=True, env=environment, stdout=2)
            clickhouse.connect(url)
            yield url
        finally:
            subprocess.run([*command, "flink", "down", "--forget", *flink], check=False, stdout=2)
            server.terminate()
            server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=int, nargs="+", default=[1_000, 10_000, 50_000], help="events a second")
    parser.add_argument("--seconds", type=float, default=60, help="at each rate")
    parser.add_argument("--sustain", type=int, nargs="*", default=[], help="falling rates, until one is kept up with")
    parser.add_argument("--sustain-seconds", type=float, default=300, help="at each of these")
    parser.add_argument("--parallelism", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    given = parser.parse_args()
    from rich.console import Console
    from rich.table import Table

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # So that nothing of it lives on.
    folder = Path(tempfile.mkdtemp(prefix="meterline-stream-"))
    found = []
    try:
        with everything(folder, given.parallelism) as url:
            measure(url, 1_000, 30)  # Workers have loaded what they need, and Java has compiled it.
            for rate in given.rates:
                found.append(measure(url, rate, given.seconds))
                print(found[-1], file=sys.stderr)
            for one in sustained(url, given.sustain, given.sustain_seconds):
                found.append(one)
                print(found[-1], file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = Table(
        "events/s wanted", "for s", "published/s", "archived p50", "p99", "rated p50", "p99 s", "backlog grows by"
    )
    for one in found:
        table.add_row(
            f"{one.wanted_rate:,}",
            f"{one.seconds:g}",
            f"{one.published_rate:,.0f}",
            *(f"{value:.2f}" for value in (one.archived_p50, one.archived_p99, one.rated_p50, one.rated_p99)),
            f"{one.backlog_growth:,.0f}/s",
        )
    Console(width=120).print(table)
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in found], indent=2))


if __name__ == "__main__":
    main()
