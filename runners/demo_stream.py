"""The demo of a stream: a real trace of LLM requests, published as it happened but faster, and rated as it flows.

The trace is moved to now, with the duplicates, conflicts and broken events that `meterline demo` has, and with some
events that come days late. At the end the line items are compared with those of one batch run over the same events.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.rule import Rule
from rich.text import Text

from meterline.runners import pubsub, tables
from meterline.runners.demo import quickstart, usage_lines
from meterline.runners.direct_stream import HORIZON, BatchSize, rate_subscription
from meterline.runners.emulator import emulator
from meterline.runners.jobs import InputError, RateReport
from meterline.runners.publish import Producer
from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_files import load_catalog
from meterline.schemas.event import EARLIEST_TIME, parse_time
from meterline.transforms import clickhouse

TOPIC = "projects/meterline-demo/topics/usage"
SUBSCRIPTION = "projects/meterline-demo/subscriptions/rating"
_MARK = ".meterline-demo-stream"
_LATE_BY = timedelta(days=2)
_ONE_IN = 89  # events that come late
_EVENTS_PER_MESSAGE = 20
_TIME = re.compile(rb'("time": ?")(2023-11-16T[0-9:.]+Z)(")')
_ID = re.compile(rb'"id": ?"req-(\d+)"')
ITEMS = """
SELECT line_item_id, quantity_from, quantity_to, amount, event_count, revision, tiers.tier, tiers.quantity, tiers.amount
FROM line_items FINAL ORDER BY ALL
"""


@dataclass(frozen=True)
class Traffic:
    """What is published: `early` while it happens, `late` behind it, and `conflicting` when all of these are rated, for
    who comes first decides between two events of one id."""

    early: list[bytes]
    late: list[bytes]
    conflicting: list[bytes]

    @property
    def all(self) -> list[bytes]:
        return [*self.early, *self.late, *self.conflicting]


def traffic(end: datetime) -> Traffic:
    """The demo's events, moved so that the trace ends at an instant; the same for the same instant."""
    lines = usage_lines()
    last = max(parse_time(found[2].decode()) for line in lines if (found := _TIME.search(line)))
    by = end - (EARLIEST_TIME + timedelta(microseconds=last))
    made = Traffic([], [], [])
    first: dict[bytes, Any] = {}
    for line in lines:
        name = _ID.search(line)
        is_late = name is not None and int(name[1]) % _ONE_IN == 0
        moved = _TIME.sub(partial(_moved, by=by - _LATE_BY if is_late else by), line)
        if name is not None and _conflicts(first, name[1], moved):
            made.conflicting.append(moved)
        else:
            (made.late if is_late else made.early).append(moved)
    return made


def _moved(found: re.Match[bytes], by: timedelta) -> bytes:
    moment = EARLIEST_TIME + timedelta(microseconds=parse_time(found[2].decode())) + by
    return found[1] + f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z".encode() + found[3]


def _conflicts(first: dict[bytes, Any], name: bytes, line: bytes) -> bool:
    try:
        event = json.loads(line)
    except ValueError:
        return False
    return bool(first.setdefault(name, event) != event)


@dataclass
class _Flow:
    """How far the stream is; `published` grows in one thread, the rest in another."""

    published: int = 0
    records: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    batches: int = 0
    line_items: int = 0
    amount: Decimal = Decimal(0)
    failure: BaseException | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def lag(self) -> int:
        """Records that were published and are not accounted for yet."""
        return self.published - self.accepted - self.duplicates - self.rejected

    def rated(self, report: RateReport, url: str) -> None:
        self.records += report.records
        self.accepted += report.accepted
        self.duplicates += report.duplicates
        self.rejected += sum(report.rejected.values())
        self.batches += 1
        sql = "SELECT count() AS items, sum(toDecimal256(amount, 18)) AS amount FROM line_items FINAL"
        (row,) = clickhouse.query(url, sql).to_pylist()
        self.line_items, self.amount = row["items"], row["amount"]


def run(folder: Path, out: Console, *, seconds: float = 30.0) -> bool:
    """Run the demo; whether stream and batch gave the same line items.

    Raises:
      InputError: the folder holds something else than this demo.
      PubSubError: Java or the emulator is not on this machine.
    """
    if folder.exists() and not (folder / _MARK).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and holds no demo of a stream; choose another with --folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _MARK).touch()
    catalog_folder = folder / "catalog"
    shutil.copytree(quickstart() / "catalog", catalog_folder)
    catalog = load_catalog(catalog_folder)
    url = f"chdb://{folder}/db"
    out.print(Rule("[bold]Meterline demo[/]: a real LLM service, rated while it runs", align="left"))
    events = traffic(datetime.now(UTC).replace(microsecond=0))
    with emulator(folder / "emulator.log") as host:
        pubsub.create_topic(TOPIC)
        pubsub.create_subscription(SUBSCRIPTION, TOPIC)
        out.print(
            f"\n[bold]1. Stream[/] {len(events.all):,} events through the Pub/Sub emulator at {host}: an hour in "
            f"{seconds:g} s, {len(events.late):,} of them {_LATE_BY.days} days late",
            highlight=False,
        )
        flow = _streamed(events, seconds, catalog, url, out)
    out.print(f"\n[bold]2. Check[/] against one batch run over the same {len(events.all):,} events", highlight=False)
    same = _same_as_batch(events, folder, url)
    if same and flow.lag == 0:
        out.print(f"[green]✓ the same {flow.line_items:,} line items[/], to the last digit, tier and revision")
    else:
        out.print(f"[red]✗ stream and batch differ[/]: compare chdb://{folder}/db and chdb://{folder}/batch")
    out.print(
        f'\nLook around: meterline query "SELECT * FROM line_items FINAL LIMIT 5" --clickhouse {url}',
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return same and flow.lag == 0


def _streamed(events: Traffic, seconds: float, catalog: Catalog, url: str, out: Console) -> _Flow:
    flow = _Flow()
    publishing = threading.Thread(target=_publish, args=(events, seconds, flow), daemon=True)
    with _display(flow, out) as show:

        def on_batch(report: RateReport) -> None:
            flow.rated(report, url)
            show()

        publishing.start()
        try:
            rate_subscription(
                SUBSCRIPTION,
                catalog,
                url,
                size=BatchSize(seconds=0.5),
                wait_seconds=0.5,
                stop=flow.stop,
                on_batch=on_batch,
            )
        finally:
            flow.stop.set()
            publishing.join()
    if flow.failure:
        raise flow.failure
    return flow


def _publish(events: Traffic, seconds: float, flow: _Flow) -> None:
    """Publish in the order of time, then what conflicts; and end the stream when all of it is rated."""
    try:
        with Producer(TOPIC, events_per_message=_EVENTS_PER_MESSAGE) as producer:
            pause = seconds / len(events.early)
            started = time.monotonic()
            for place, line in enumerate(events.early):
                if (ahead := place * pause - (time.monotonic() - started)) > 0.05 and flow.stop.wait(ahead):
                    return
                producer.send(line)
                flow.published += 1
            for lines in (events.late, events.conflicting):
                for line in lines:
                    producer.send(line)
                    flow.published += 1
                producer.flush()
                while flow.lag > 0:
                    if flow.stop.wait(0.1):
                        return
    except BaseException as error:  # noqa: BLE001 — told by the thread that waits
        flow.failure = error
    finally:
        flow.stop.set()


@contextmanager
def _display(flow: _Flow, out: Console) -> Iterator[Callable[[], None]]:
    """Show the flow: on a terminal as a table that moves, else a line for each batch."""
    if not out.is_terminal:
        yield lambda: out.print(_line(flow), highlight=False, soft_wrap=True)
        return
    over = threading.Event()
    with Live(_table(flow), console=out, auto_refresh=False) as live:

        def watch() -> None:
            while not over.wait(0.25):
                live.update(_table(flow), refresh=True)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield lambda: None
        finally:
            over.set()
            watcher.join()
            live.update(_table(flow), refresh=True)


def _line(flow: _Flow) -> str:
    return (
        f"batch {flow.batches}: {flow.published:,} published, {flow.accepted:,} accepted, "
        f"{flow.duplicates:,} duplicates, {flow.rejected:,} rejected, lag {flow.lag:,}; "
        f"{flow.line_items:,} line items, {tables.money(flow.amount, 'USD')}"
    )


def _table(flow: _Flow) -> Group:
    made = tables.table("", "", ">records", "")
    made.add_row("published", tables.number(flow.published), "by the gateway, to the topic")
    made.add_row(
        "accepted", tables.number(flow.accepted), f"in {flow.batches:,} batches, each stored, then acknowledged"
    )
    made.add_row("duplicates", tables.number(flow.duplicates), "came before with the same content")
    made.add_row("rejected", tables.number(flow.rejected), "kept with reason and bytes")
    made.add_row("lag", tables.number(flow.lag), "published, and not accounted for yet")
    amount = Text.assemble(
        (tables.number(flow.line_items), "bold"), " line items, ", (tables.money(flow.amount, "USD"), "bold")
    )
    return Group(made, amount)


def _same_as_batch(events: Traffic, folder: Path, url: str) -> bool:
    """Rate the events as one file, in a process of its own: an embedded database is one to a process."""
    usage, batch = folder / "usage.ndjson", f"chdb://{folder}/batch"
    usage.write_bytes(b"\n".join(events.all) + b"\n")
    age = str(HORIZON.days)
    words = ["rate", "--input", str(usage), "--catalog", str(folder / "catalog"), "--max-age-days", age, "--json"]
    _meterline(*words, "--clickhouse", batch)
    expected = _meterline("query", ITEMS, "--format", "tsv", "--clickhouse", batch)
    return expected == clickhouse.read_only(url, ITEMS, "TSVWithNames")


def _meterline(*words: str) -> str:
    command = [sys.executable, "-m", "meterline.runners.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"meterline {words[0]} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout
