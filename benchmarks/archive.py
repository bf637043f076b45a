"""Rating the last day of a month whose other days are archived: time and memory by archived events. See README.md."""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from events import catalog, shared_folder, write_events

_DAYS = 29  # Of September before its last, on each of which the same events are archived.
_RECEIVED = int(datetime(2026, 10, 1, tzinfo=UTC).timestamp()) * 1_000_000

# The days of a month have the same rating keys. The payload stays away: no run reads it back.
_COPY = """
INSERT INTO usage_events
SELECT tenant_id, billing_account_id, account_id, time + INTERVAL day - 14 DAY, identity, source,
       concat(toString(day), '-', id), type, subject, rating_keys, quantities, counted_values, received_time, ''
FROM usage_events ARRAY JOIN arrayFilter(day -> day != 14, range(1, {days:UInt8} + 1)) AS day
WHERE toDate(time) = '2026-09-14'
"""


# --- in a process of its own --------------------------------------------------------------------


def prepare(day: str, last_day: str, database: str) -> dict[str, Any]:
    """Rate one day, archive its events on the others too, and rate these from the archive."""
    from peers.meterline import job

    from meterline.pipelines.rate_usage import Options, rebuild
    from meterline.runners.direct import run
    from meterline.transforms import clickhouse
    from meterline.transforms.archive import Span

    url = f"chdb://{database}"
    clickhouse.ready(url)
    job(day, catalog(), url, _RECEIVED)
    clickhouse.command(url, _COPY, {"days": _DAYS})
    clickhouse.command(url, "OPTIMIZE TABLE usage_events")
    month = [int(datetime(2026, number, 1, tzinfo=UTC).timestamp()) for number in (9, 10)]
    spans = [Span("default", account.id, *month) for account in catalog().accounts]
    counters = run(lambda pipeline: rebuild(pipeline, Options((), catalog(), url, _RECEIVED), spans))
    return {"archived": counters["recall/events"]}


def rate(day: str, last_day: str, database: str) -> dict[str, Any]:
    """Rate the last day, as `meterline rate` does where something is archived."""
    from meterline.pipelines.rate_usage import Options, build
    from meterline.runners.direct import run
    from meterline.transforms import clickhouse

    url = f"chdb://{database}"
    clickhouse.ready(url)
    started, began = time.process_time(), time.perf_counter()
    options = Options((last_day,), catalog(), url, _RECEIVED)
    counters = run(lambda pipeline: build(pipeline, options))
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu_seconds": used.ru_utime + used.ru_stime - started,
        "wall_seconds": time.perf_counter() - began,
        "memory_bytes": used.ru_maxrss * 1024,
        "accepted": counters["deduplicate/accepted"],
        "line_items": counters["rate/line_items"],
        "quantity": _quantity(url),
    }


def _quantity(url: str) -> int:
    """Input tokens of the month, by the line items."""
    from meterline.transforms import clickhouse

    sql = """SELECT toString(max(quantity_to)) AS reached FROM line_items FINAL
             WHERE meter_id = 'input_tokens' GROUP BY rating_key_id"""
    return sum(int(text.partition(".")[0]) for text in clickhouse.query(url, sql)["reached"].to_pylist())


def _in_a_child(task: str, *paths: Path) -> dict[str, Any]:
    told = paths[-1].with_suffix(".told.json")
    subprocess.run([sys.executable, __file__, "--task", task, *map(str, paths), str(told)], check=True)
    return json.loads(told.read_text())


# --- the figures --------------------------------------------------------------------------------


def measure(archived: int, folder: Path) -> dict[str, Any]:
    """The cost of the last day's run with and without the archive of the days before it.

    Args:
      archived: Events archived before, about; the last day has as many as each of them.
    """
    events = archived // _DAYS
    day, last_day = folder / f"events-{events}-1.ndjson", folder / f"last-{events}.ndjson"
    expected = write_events(day, events, 1)
    with day.open("rb") as lines, last_day.open("wb") as moved:
        moved.writelines(
            line.replace(b'"time":"2026-09-14', b'"time":"2026-09-30').replace(b'"id":"', b'"id":"30-')
            for line in lines
        )
    database, alone = folder / "month", folder / "alone"
    for path in (database, alone):
        shutil.rmtree(path, ignore_errors=True)
    prepared = _in_a_child("prepare", day, last_day, database)
    report = prepared | {"events": events, "with": _in_a_child("rate", day, last_day, database)}
    report["without"] = _in_a_child("rate", day, last_day, alone)
    for path in (database, alone):
        shutil.rmtree(path)
    last_day.unlink()
    wrong = [
        f"{what}: expected {wanted}, got {came}"
        for what, wanted, came in (
            ("archived", _DAYS * expected.accepted, prepared["archived"]),
            ("accepted", expected.accepted, report["with"]["accepted"]),
            ("input tokens", (_DAYS + 1) * expected.input_tokens, report["with"]["quantity"]),
            ("input tokens alone", expected.input_tokens, report["without"]["quantity"]),
        )
        if wanted != came
    ]
    if wrong:
        sys.exit("the totals are wrong:\n  " + "\n  ".join(wrong))
    return report


def show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"the last day of a month, {report['events']:,} events")
    for name in ("archived in the month", "line items written", "CPU s", "wall s", "memory MB"):
        table.add_column(name, justify="right")
    for archived, cost in ((0, report["without"]), (report["archived"], report["with"])):
        seconds = (f"{cost['cpu_seconds']:.1f}", f"{cost['wall_seconds']:.1f}")
        table.add_row(f"{archived:,}", f"{cost['line_items']:,}", *seconds, f"{cost['memory_bytes'] / 1e6:,.0f}")
    more = report["with"]["cpu_seconds"] - report["without"]["cpu_seconds"]
    bytes_each = (report["with"]["memory_bytes"] - report["without"]["memory_bytes"]) / report["archived"]
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    console.print(
        f"an archived event costs {more / report['archived'] * 1e6:.2f} µs of CPU and {bytes_each:.0f} bytes of memory"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archived", type=int, default=3_000_000, help="events archived (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--task", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task, *paths, told = options.task
        Path(told).write_text(json.dumps({"prepare": prepare, "rate": rate}[task](*paths)))
        return
    folder = shared_folder()
    report = measure(options.archived, folder)
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
