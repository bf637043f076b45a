"""The command `meterline metrics`."""

from __future__ import annotations

import gc
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from meterline.runners.flink import cluster as clusters
from meterline.runners.flink.rest import Flink
from meterline.runners.metrics import exposition
from meterline.runners.metrics.exposition import Sample
from meterline.runners.options import DEFAULT_DATABASE, Url

DAYS = 62  # A month, and the one before it.
err = Console(stderr=True)


def metrics(
    clickhouse: Url = DEFAULT_DATABASE,
    rest_url: Annotated[
        str | None, typer.Option(envvar="METERLINE_FLINK_REST_URL", help="Flink's REST API, to be asked, too.")
    ] = None,
    flink_folder: Annotated[
        Path | None, typer.Option(help="In place of --rest-url: the folder of a cluster on this machine.")
    ] = None,
    days: Annotated[
        int, typer.Option(min=1, max=36_500, help="How far back events and line items are compared.")
    ] = DAYS,
    serve: Annotated[
        int | None,
        typer.Option(min=0, max=65535, metavar="PORT", help="Answer at /metrics until Ctrl-C; 0: a free port."),
    ] = None,
    listen: Annotated[str, typer.Option(help="With --serve: an address of this machine.")] = "127.0.0.1",
    every: Annotated[
        float, typer.Option(min=0, help="With --serve: ask the database at most once in so many seconds.")
    ] = 15,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of Prometheus's text.")] = False,
) -> None:
    """Print what is stored as numbers for Prometheus: events, rejects, whether line items count all that is
    archived, runs and leases; and of Flink jobs, checkpoints and watermarks.

    The alerts on them, and what to do then: docs/operations.md, «What to watch».
    """
    from meterline.transforms.clickhouse import check_exists

    if rest_url and flink_folder:
        raise typer.BadParameter("give one of --rest-url and --flink-folder")
    check_exists(clickhouse)
    flink = clusters.load(flink_folder).flink if flink_folder else Flink(rest_url) if rest_url else None
    if serve is None:
        samples = list(_collected(clickhouse, flink, days))
        if as_json:
            sys.stdout.write(json.dumps([one.to_json() for one in samples], indent=2) + "\n")
        else:
            sys.stdout.write(exposition.text(samples))
        return
    if as_json:
        raise typer.BadParameter("--json is for printing once; --serve answers in Prometheus's text")
    if clickhouse.startswith("chdb:"):
        raise typer.BadParameter(
            "--serve would keep an embedded database for itself. Offer it to many: `meterline clickhouse serve`, "
            "and give its http://… as --clickhouse; or print the metrics once, when nothing else runs"
        )
    _serve(listen, serve, Collector(clickhouse, flink, days, every))


def _collected(url: str, flink: Flink | None, days: int) -> Iterator[Sample]:
    from meterline.runners.metrics import sources

    yield from sources.of_clickhouse(url, days)
    if flink:
        yield from sources.of_flink(flink)


class Collector:
    """Asks both sources, one request at a time, and not more often than it is to; what does not answer is down."""

    def __init__(self, url: str, flink: Flink | None, days: int, every: float) -> None:
        self._url, self._flink, self._days, self._every = url, flink, days, every
        self._lock = threading.Lock()
        self._text, self._next = "", 0.0

    def text(self) -> str:
        with self._lock:
            if time.monotonic() >= self._next:
                self._text = exposition.text(self._samples())
                self._next = time.monotonic() + self._every
            return self._text

    def _samples(self) -> list[Sample]:
        from meterline.runners.metrics import sources

        found = self._asked("clickhouse", lambda: sources.of_clickhouse(self._url, self._days))
        if flink := self._flink:
            found += self._asked("flink", lambda: sources.of_flink(flink))
        return found

    def _asked(self, name: str, ask: Callable[[], Iterator[Sample]]) -> list[Sample]:
        try:
            return list(ask())
        except Exception as error:  # noqa: BLE001 — One source must not take the other's numbers with it.
            err.print(str(error) or repr(error), markup=False, highlight=False, soft_wrap=True)
            return [Sample(f"meterline_{name}_up", 0)]


def _serve(listen: str, port: int, collector: Collector) -> None:
    gc.enable()  # The command line goes without until a job runs; this one runs for days.
    try:
        server = ThreadingHTTPServer((listen, port), _handler(collector))
    except OSError as error:
        raise typer.BadParameter(
            f"cannot listen on {listen}:{port}: {error.strerror}; choose an address of this machine, another port, or 0"
        ) from None

    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    server.daemon_threads = True
    signal.signal(signal.SIGTERM, end)
    try:
        typer.echo(f"http://{listen}:{server.server_port}/metrics")
        sys.stdout.flush()
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        return
    finally:
        server.server_close()


def _handler(collector: Collector) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.partition("?")[0] == "/metrics":
                self._answer(200, exposition.CONTENT_TYPE, collector.text())
            else:
                self._answer(404, "text/plain; charset=utf-8", "the metrics are at /metrics\n")

        def _answer(self, status: int, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """A line for each scrape says nothing."""

    return Handler
