"""The commands around Pub/Sub: publish, tail, demo-stream, pubsub create, pubsub emulator."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from meterline.runners import tables
from meterline.runners.options import AsJson

if TYPE_CHECKING:  # Loading them loads Beam.
    from meterline.runners.pubsub.tail import Seen


class Packing(StrEnum):
    none = "none"
    gzip = "gzip"
    zstd = "zstd"


_Topic = Annotated[str, typer.Option("--topic", help="projects/PROJECT/topics/TOPIC.")]


def register(app: typer.Typer, out: Console, err: Console) -> None:
    """Add the commands to `meterline`; they print results to `out`, and what happens meanwhile to `err`."""
    group = typer.Typer(help="Topics, subscriptions and the emulator, for trying things out.", no_args_is_help=True)
    app.add_typer(group, name="pubsub")

    @app.command()
    def publish(
        files: Annotated[
            list[str], typer.Argument(help="Files of usage events (glob): NDJSON, .gz, .zst, JSON arrays, Parquet.")
        ],
        topic: _Topic,
        rate: Annotated[float | None, typer.Option(min=0.001, help="Events a second; default: no bound.")] = None,
        batch: Annotated[int, typer.Option(min=1, help="Events in a message.")] = 500,
        compress: Annotated[Packing, typer.Option(help="How messages are packed.")] = Packing.none,
        as_json: AsJson = False,
    ) -> None:
        """Publish files of usage events to a Pub/Sub topic, as they are.

        Publishing a file again is harmless: an event counts once by (tenant, source, id).
        """
        from meterline.runners.pubsub.publish_files import publish_files

        packing: Any = None if compress is Packing.none else compress.value
        with _progress(err, as_json) as on_progress:
            done = publish_files(
                files,
                topic,
                rate=rate,
                events_per_message=batch,
                compress=packing,
                on_progress=on_progress,
            )
        if as_json:
            counts = {**done.published._asdict(), "files": done.files, "problems": done.problems}
            _print_json({"topic": topic, **counts, "seconds": round(done.seconds, 3)}, out)
        else:
            made = tables.table("", "published to", ">files", ">events", ">messages", ">bytes", ">events/s")
            speed = round(done.published.events / max(done.seconds, 0.001))
            made.add_row(topic, *map(tables.number, (done.files, *done.published, speed)))
            out.print(made)
        for problem in done.problems:
            err.print(f"[red]not published:[/] {tables.shown(problem)}", highlight=False, soft_wrap=True)
        if done.problems:
            raise typer.Exit(2)

    @app.command()
    def tail(
        topic: _Topic,
        limit: Annotated[int | None, typer.Option(min=1, help="End after so many events.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print each record as a line of JSON.")] = False,
    ) -> None:
        """Show the events that are published to a topic from now on, until Ctrl-C.

        They come through a subscription of this command's own, which is deleted at the end: nobody misses one.
        """
        from meterline.runners.pubsub.tail import events_of, own_subscription

        with _interruptible(), own_subscription(topic) as subscription:
            err.print(f"watching {topic} through {subscription}; Ctrl-C ends", highlight=False, soft_wrap=True)
            _show(events_of(subscription), limit, as_json, out)

    @app.command("demo-stream")
    def demo_stream(
        folder: Annotated[Path, typer.Option(help="Where the demo keeps its database.")] = Path(
            "meterline-demo-stream"
        ),
        seconds: Annotated[float, typer.Option(min=1.0, help="How long the hour of the trace takes.")] = 30.0,
        flink: Annotated[
            bool | None,
            typer.Option(
                "--on-flink/--here",
                help="Rate on a Flink cluster, or batch by batch in this process.",
                show_default=False,
            ),
        ] = None,
    ) -> None:
        """Publish a real trace of LLM requests to a Pub/Sub emulator and rate it as it flows; needs Java.

        With duplicates, late events and broken ones. At the end the line items are compared with a batch run's. It runs
        on a Flink cluster of its own where Java and Maven are found, else in this process.
        """
        from meterline.runners.demo_stream import run

        if not run(folder, out, seconds=seconds, on_flink=flink):
            raise typer.Exit(1)

    @group.command()
    def create(
        topic: _Topic,
        subscription: Annotated[list[str] | None, typer.Option(help="Subscription on it. Repeatable.")] = None,
    ) -> None:
        """Create a topic, and subscriptions on it; what is there already stays."""
        from meterline.runners.pubsub import client as pubsub

        for name in subscription or ():
            pubsub.checked(name, "subscriptions")  # All names, before anything is created.
        _created(topic, pubsub.create_topic(topic), out)
        for name in subscription or ():
            _created(name, pubsub.create_subscription(name, topic), out)

    @group.command()
    def emulator() -> None:
        """Run the Pub/Sub emulator until Ctrl-C; what it holds goes with it. Needs Java and the Google Cloud SDK's."""
        from meterline.runners.pubsub.emulator import emulator as running

        with _interruptible(), running() as host:
            out.print(f"export PUBSUB_EMULATOR_HOST={host}", highlight=False)
            threading.Event().wait()


def _created(name: str, is_new: bool, out: Console) -> None:
    out.print(f"{'created' if is_new else 'is there'}: {name}", highlight=False, soft_wrap=True)


def _print_json(value: Any, out: Console) -> None:
    out.file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM end what runs inside, after it has tidied up."""

    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress(err: Console, is_quiet: bool) -> Iterator[Any]:
    if is_quiet or not err.is_terminal:
        yield None
        return
    columns = (SpinnerColumn(), TextColumn("publishing {task.fields[done]}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("", total=None, done="")
        yield lambda events, size: progress.update(task, done=f"{events:,} events, {size >> 20:,} MiB")


# --- tail ---------------------------------------------------------------------------------------

_ROWS = 20


def _show(events: Iterator[Seen | None], limit: int | None, as_json: bool, out: Console) -> None:
    shown: deque[Seen] = deque(maxlen=_ROWS)
    count, started = 0, time.monotonic()
    is_live = out.is_terminal and not as_json
    with Live(console=out, auto_refresh=False) if is_live else nullcontext() as live:
        for one in events:
            if one is not None:
                count += 1
                shown.append(one)
                if as_json:
                    print(_json_line(one), flush=True)
                elif live is None:
                    out.print(_line(one), soft_wrap=True)
            if live is not None:
                live.update(_events(shown, count, time.monotonic() - started), refresh=True)
            if count == limit:
                return


def _json_line(one: Seen) -> str:
    """The event as it came; what is none as a string beside what is wrong with it."""
    record = one.record.decode("utf-8", "backslashreplace")
    if one.event is None:
        return json.dumps({"problem": one.problem, "record": record})
    return record.replace("\n", " ")


def _events(shown: deque[Seen], count: int, seconds: float) -> Group:
    made = tables.table("", "published (UTC)", "time", "type", "subject", "id", "data")
    for one in shown:
        published = f"{one.published.astimezone(UTC):%H:%M:%S}"
        if one.event is None:
            made.add_row(published, Text("no event", "red"), "", "", "", tables.shown(one.problem))
        else:
            event = one.event
            made.add_row(published, *map(tables.shown, (event.time, event.type, event.subject, event.id, _data(one))))
    return Group(made, Text(f"{count:,} events, {count / max(seconds, 0.001):,.1f} a second"))


def _line(one: Seen) -> Text:
    published = f"{one.published.astimezone(UTC):%H:%M:%S}"
    if one.event is None:
        return Text.assemble(published, "  ", ("no event", "red"), "  ", tables.shown(one.problem))
    event = one.event
    return tables.shown("  ".join((published, event.time, event.type, event.subject, event.id, _data(one))))


def _data(one: Seen) -> str:
    """The event's data as it was written."""
    import msgspec

    data = msgspec.json.decode(one.record, type=dict[str, msgspec.Raw])["data"]
    return bytes(data).decode("utf-8", "replace")
