"""The demo of a stream: a real trace of LLM requests, published as it happened but faster, and rated as it flows.

The trace is moved to now, with the duplicates, conflicts and broken events that `meterline demo` has, and with some
events that come days late. The line items are compared with those of one batch run over the same events.
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
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.rule import Rule
from rich.text import Text

from meterline.runners import demo_flink, tables
from meterline.runners.demo import quickstart, usage_lines
from meterline.runners.direct_stream import HORIZON, BatchSize, rate_subscription
from meterline.runners.jobs import InputError, RateReport
from meterline.runners.pubsub import client as pubsub
from meterline.runners.pubsub.emulator import emulator
from meterline.runners.pubsub.publish import Producer
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
_PATIENCE_SECONDS = 180
_TIME = re.compile(rb'("time": ?")(2023-11-16T[0-9:.]+Z)(")')
_ID = re.compile(rb'"id": ?"req-(\d+)"')
ITEMS = """
SELECT line_item_id, quantity_from, quantity_to, amount, event_count, revision, tiers.tier, tiers.quantity, tiers.amount
FROM line_items FINAL ORDER BY ALL
"""
_STORED = """
SELECT (SELECT uniqExact(identity) FROM usage_events) AS accepted, (SELECT count() FROM rejects FINAL) AS rejected,
       (SELECT count() FROM line_items FINAL) AS items,
       (SELECT sum(toDecimal256(amount, 18)) FROM line_items FINAL) AS amount
"""


# --- what is published ----------------------------------------------------------------------------------


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


class Batch(NamedTuple):
    """What one run over all events makes of them: the line items, as text, and the ids that are accepted."""

    items: str
    accepted: frozenset[str]


def batch(events: Traffic, folder: Path) -> Batch:
    """Rate the events as one file, in a process of its own: an embedded database is one to a process."""
    usage, url = folder / "usage.ndjson", f"chdb://{folder}/batch"
    usage.write_bytes(b"\n".join(events.all) + b"\n")
    age = str(HORIZON.days)
    words = ["rate", "--input", str(usage), "--catalog", str(folder / "catalog"), "--max-age-days", age, "--json"]
    _meterline(*words, "--clickhouse", url)
    ids = _meterline("query", "SELECT id FROM usage_events FINAL", "--format", "json", "--clickhouse", url)
    items = _meterline("query", ITEMS, "--format", "tsv", "--clickhouse", url)
    return Batch(items, frozenset(json.loads(row)["id"] for row in ids.splitlines()))


def _meterline(*words: str) -> str:
    command = [sys.executable, "-m", "meterline.runners.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"meterline {words[0]} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def outcomes(lines: list[bytes], accepted: frozenset[str]) -> Iterator[str]:
    """What becomes of each line: accepted, duplicate or rejected.

    Args:
      accepted: The ids of events that are accepted once; there is but one source for each.
    """
    first: dict[str, Any] = {}
    for line in lines:
        try:
            event = json.loads(line)
            id = event["id"]
        except (ValueError, KeyError, TypeError):
            id = None
        if not isinstance(id, str) or id not in accepted:
            yield "rejected"
        elif id not in first:
            first[id] = event
            yield "accepted"
        else:
            yield "duplicate" if first[id] == event else "rejected"


# --- the demo -------------------------------------------------------------------------------------------


@dataclass
class _Flow:
    """How far the stream is; what is published grows in one thread, the rest in another."""

    published: int = 0
    to_accept: int = 0
    copies: int = 0
    to_reject: int = 0
    accepted: int = 0
    rejected: int = 0
    line_items: int = 0
    amount: Decimal = Decimal(0)
    failure: BaseException | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def lag(self) -> int:
        """Records that were published and are not stored yet, as events or as rejects."""
        return self.to_accept - self.accepted + self.to_reject - self.rejected

    def sent(self, outcome: str) -> None:
        self.published += 1
        self.to_accept += outcome == "accepted"
        self.copies += outcome == "duplicate"
        self.to_reject += outcome == "rejected"

    def look(self, url: str) -> None:
        (row,) = clickhouse.query(url, _STORED).to_pylist()
        self.accepted, self.rejected, self.line_items = row["accepted"], row["rejected"], row["items"]
        self.amount = row["amount"] or Decimal(0)


def run(folder: Path, out: Console, *, seconds: float = 30.0, on_flink: bool | None = None) -> bool:
    """Run the demo; whether stream and batch gave the same line items.

    Args:
      seconds: How long the hour of the trace takes.
      on_flink: Whether a Flink cluster rates it, or this process; by default where Java and Maven are on the machine.

    Raises:
      InputError: the folder holds something else than this demo.
      PubSubError: Java or the emulator is not on this machine.
      FlinkError: the cluster cannot be started, or the job fails.
    """
    if folder.exists() and not (folder / _MARK).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and holds no demo of a stream; choose another with --folder")
    folder = folder.absolute()
    demo_flink.end(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _MARK).touch()
    catalog_folder = folder / "catalog"
    shutil.copytree(quickstart() / "catalog", catalog_folder)
    catalog = load_catalog(catalog_folder)
    out.print(Rule("[bold]Meterline demo[/]: a real LLM service, rated while it runs", align="left"))
    events = traffic(datetime.now(UTC).replace(microsecond=0))

    def say(text: str) -> None:
        out.print(text, highlight=False, soft_wrap=True)

    expected = batch(events, folder)
    say(
        f"\n[bold]1. Batch[/] {len(events.all):,} events as one file: {expected.items.count(chr(10)) - 1:,} line items "
        "that the stream must come to"
    )
    without = demo_flink.missing() if on_flink is None else None
    if without:
        say(f"   (Flink is left out, and the stream rated by this process: {without})")
    with emulator(folder / "emulator.log") as host:
        pubsub.create_topic(TOPIC)
        pubsub.create_subscription(SUBSCRIPTION, TOPIC)
        if on_flink or (on_flink is None and not without):
            say("\n[bold]2. Stream[/] on a Flink cluster of its own: a JobManager, two TaskManagers, Python workers")
            with demo_flink.rating(SUBSCRIPTION, catalog, folder, host, lambda text: say(f"   {text}")) as url:
                _announce(events, seconds, host, say)
                flow = _watched(events, expected, seconds, url, out)
        else:
            say("\n[bold]2. Stream[/] batch by batch, in this process")
            _announce(events, seconds, host, say)
            flow = _rated_here(events, expected, seconds, catalog, f"chdb://{folder}/db", out)
    say("\n[bold]3. Compare[/] what the stream stored with what the batch did")
    url = f"chdb://{folder}/db"
    same = clickhouse.read_only(url, ITEMS, "TSVWithNames") == expected.items and flow.lag == 0
    if same:
        say(f"[green]✓ the same {flow.line_items:,} line items[/], to the last digit, tier and revision")
    else:
        say(f"[red]✗ stream and batch differ[/]: compare chdb://{folder}/db and chdb://{folder}/batch")
    say(f'\nLook around: meterline query "SELECT * FROM line_items FINAL LIMIT 5" --clickhouse {url}')
    return same


def _announce(events: Traffic, seconds: float, host: str, say: Callable[[str], None]) -> None:
    say(
        f"   {len(events.all):,} events through the Pub/Sub emulator at {host}: an hour in {seconds:g} s, "
        f"{len(events.late):,} of them {_LATE_BY.days} days late"
    )


def _rated_here(events: Traffic, expected: Batch, seconds: float, catalog: Catalog, url: str, out: Console) -> _Flow:
    flow = _Flow()
    with _display(flow, out) as show, _publishing(events, expected, seconds, flow):

        def on_batch(report: RateReport) -> None:
            flow.look(url)
            show()

        rate_subscription(
            SUBSCRIPTION,
            catalog,
            url,
            size=BatchSize(seconds=0.5),
            wait_seconds=0.5,
            stop=flow.stop,
            on_batch=on_batch,
        )
    return flow


def _watched(events: Traffic, expected: Batch, seconds: float, url: str, out: Console) -> _Flow:
    """While others rate: look at the tables until all is there."""
    flow = _Flow()
    with _display(flow, out) as show, _publishing(events, expected, seconds, flow):
        before, since = -1, time.monotonic()
        while not flow.stop.wait(0.5):
            flow.look(url)
            show()
            if flow.published + flow.accepted + flow.rejected != before:
                before, since = flow.published + flow.accepted + flow.rejected, time.monotonic()
            elif time.monotonic() - since > _PATIENCE_SECONDS:
                raise InputError(
                    f"nothing was stored for {_PATIENCE_SECONDS} s, and {flow.lag:,} records are missing: `meterline "
                    "flink status --folder` with the demo's folder flink/ tells what the job's failure is"
                )
        # Line items follow what is archived.
        while time.monotonic() - since < _PATIENCE_SECONDS:
            flow.look(url)
            if clickhouse.read_only(url, ITEMS, "TSVWithNames") == expected.items:
                break
            time.sleep(0.5)
        show()
    return flow


@contextmanager
def _publishing(events: Traffic, expected: Batch, seconds: float, flow: _Flow) -> Iterator[None]:
    """Publish in the background; what goes wrong there, or inside, ends both."""
    known = list(outcomes(events.all, expected.accepted))
    publishing = threading.Thread(target=_publish, args=(events, known, seconds, flow), daemon=True)
    publishing.start()
    try:
        yield
    finally:
        flow.stop.set()
        publishing.join()
    if flow.failure:
        raise flow.failure


def _publish(events: Traffic, known: list[str], seconds: float, flow: _Flow) -> None:
    """Publish in the order of time, then what conflicts; and end the stream when all of it is stored."""
    outcome = iter(known)
    try:
        with Producer(TOPIC, events_per_message=_EVENTS_PER_MESSAGE) as producer:
            pause = seconds / len(events.early)
            started = time.monotonic()
            for place, line in enumerate(events.early):
                if (ahead := place * pause - (time.monotonic() - started)) > 0.05 and flow.stop.wait(ahead):
                    return
                producer.send(line)
                flow.sent(next(outcome))
            for lines in (events.late, events.conflicting):
                for line in lines:
                    producer.send(line)
                    flow.sent(next(outcome))
                producer.flush()
                while flow.lag > 0:
                    if flow.stop.wait(0.1):
                        return
    except BaseException as error:  # noqa: BLE001 — told by the thread that waits
        flow.failure = error
    finally:
        flow.stop.set()


# --- how it is shown ------------------------------------------------------------------------------------


@contextmanager
def _display(flow: _Flow, out: Console) -> Iterator[Callable[[], None]]:
    """Show the flow: on a terminal as a table that moves, else as a line every two seconds, and at the end."""
    if not out.is_terminal:
        told = [0.0]

        def tell(seconds: float = 2.0) -> None:
            if time.monotonic() > told[0] + seconds:
                told[0] = time.monotonic()
                out.print(f"   {_line(flow)}", highlight=False, soft_wrap=True)

        yield tell
        tell(0.0)
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
        f"{flow.published:,} published, {flow.accepted:,} accepted, {flow.rejected:,} rejected, lag {flow.lag:,}; "
        f"{flow.line_items:,} line items, {tables.money(flow.amount, 'USD')}"
    )


def _table(flow: _Flow) -> Group:
    made = tables.table("", "", ">records", "")
    made.add_row("published", tables.number(flow.published), "by the gateway, to the topic")
    made.add_row("of them copies", tables.number(flow.copies), "published before with the same content: must not count")
    made.add_row("accepted", tables.number(flow.accepted), "archived, and counted in line items")
    made.add_row("rejected", tables.number(flow.rejected), "kept with reason and bytes")
    made.add_row("lag", tables.number(flow.lag), "published, and not stored yet")
    amount = Text.assemble(
        (tables.number(flow.line_items), "bold"), " line items, ", (tables.money(flow.amount, "USD"), "bold")
    )
    return Group(made, amount)
