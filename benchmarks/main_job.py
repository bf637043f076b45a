"""What the main job costs: NDJSON files to line items and archive in an embedded ClickHouse. See README.md."""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

RECEIVED = 1_789_430_400_000_000  # 2026-09-15T00:00:00Z: the file came after its day.


@dataclass
class Cost:
    """Of a stage or of a whole run; memory is what the process held at most when a step of the stage ended."""

    cpu_seconds: float = 0.0
    memory_bytes: int = 0


@dataclass
class Meter:
    """Adds up what stages cost, in processor time of the whole process."""

    costs: dict[str, Cost] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        cost = self.costs.setdefault(name, Cost())
        cost.cpu_seconds += time.process_time() - start
        cost.memory_bytes = max(cost.memory_bytes, _held_bytes())


def _held_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class _Bag(list[bytes]):
    """Stands for a bag state of one key."""

    add = list.append

    def read(self) -> list[bytes]:
        return self


# --- in a process of its own --------------------------------------------------------------------


def run_job(source: str, url: str) -> dict[str, Any]:
    """The whole job, as `meterline rate` runs it."""
    from events import catalog

    from meterline.pipelines.rate_usage import Options, build
    from meterline.runners.direct import run
    from meterline.transforms import clickhouse

    clickhouse.ready(url)
    # As `meterline rate` does when it finds an empty database.
    options = Options((source,), catalog(), url, RECEIVED, has_archive=False)
    start = time.perf_counter()
    counters = run(lambda pipeline: build(pipeline, options))
    # Before the tables are looked at, which is no part of the job.
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "whole": asdict(Cost(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)),
        "wall_seconds": time.perf_counter() - start,
        "counters": counters,
        "stored": stored(url),
    }


def stored(url: str) -> dict[str, Any]:
    """What stands in the tables in the end."""
    from meterline.transforms import clickhouse

    def rows(sql: str) -> list[dict[str, Any]]:
        return clickhouse.query(url, sql).to_pylist()

    usage = "sum(toDecimal256(quantity_to, 12) - toDecimal256(quantity_from, 12))"
    items = rows(
        f"SELECT meter_id, toString({usage}) AS quantity, sum(event_count) AS events, count() AS rows "
        "FROM line_items FINAL GROUP BY meter_id"
    )
    archive = rows("SELECT count() AS rows, uniqExact(identity) AS identities FROM usage_events FINAL")
    rejects = rows("SELECT toString(reason) AS reason, count() AS rows FROM rejects FINAL GROUP BY reason")
    return {
        "line_items": {row.pop("meter_id"): row for row in items},
        "archive": archive[0],
        "rejects": {row["reason"]: row["rows"] for row in rejects},
    }


def run_stages(source: str, url: str) -> dict[str, Any]:
    """The job's functions in their order, on one block after another, without Beam between them."""
    meter = Meter()
    with meter.stage("start"):
        from apache_beam.transforms.window import IntervalWindow
        from events import catalog

        from meterline.pipelines import rate_usage  # noqa: F401
        from meterline.runners import direct  # noqa: F401
        from meterline.transforms import attribute, clickhouse, deduplicate, rate, read, recall, validate, write
        from meterline.transforms import meter as metering

        prices = catalog()
        clickhouse.ready(url)
        # Merges run at any time, and would be counted for the stage that runs then.
        clickhouse.connect(url).command("SYSTEM STOP MERGES")

    validating, attributing = validate._ValidateFn(None), attribute._AttributeFn()
    sharding, deduplicating = deduplicate._ShardFn(1), deduplicate._DeduplicateFn(None, 1)
    touching, totals = recall._TouchFn(), metering._MeterFn()
    rating = rate._RateFn()
    event_rows = partial(write.usage_event_rows, run_id="benchmark")
    archive = write._InsertFn(url, {"rating_keys": write.NewRatingKeys(), "usage_events": event_rows})
    items = write._InsertFn(url, {"line_items": write.line_item_rows})
    for prepared in (validating, attributing, totals):
        prepared.setup()
    for bundle in (touching, archive, items):
        bundle.start_bundle()
    seen: dict[Any, list[_Bag]] = {}
    usage: dict[bytes, list[bytes]] = {}

    def main(outputs: Any) -> list[Any]:
        return [output for output in outputs if type(output).__name__ != "TaggedOutput"]

    blocks = read._ReadFn().process(read.Part(source, 0, -1), RECEIVED)
    while True:
        with meter.stage("read"):
            block = next(blocks, None)
        if block is None:
            break
        with meter.stage("validate"):
            batches = main(validating.process(block, prices))
        with meter.stage("attribute"):
            batches = [one for batch in batches for one in main(attributing.process(batch, prices))]
        with meter.stage("recall"):
            for batch in batches:
                touching.process(batch)
        with meter.stage("shard and pack"):
            pieces = [piece for batch in batches for piece in sharding.process(batch)]
        with meter.stage("deduplicate"):
            batches = []
            for stamped in pieces:
                window = IntervalWindow(stamped.timestamp, stamped.timestamp + 86_400)
                cells = seen.setdefault((stamped.value[0], window), [_Bag() for _ in deduplicate._CELLS])
                batches += main(deduplicating.process(stamped.value, window, *cells))
        with meter.stage("meter"):
            for batch in batches:
                for key, packed in totals.process(batch, prices):
                    usage.setdefault(key, []).append(packed)
        with meter.stage("write archive"):
            for batch in batches:
                archive.process(batch)
    with meter.stage("recall"):
        list(touching.finish_bundle())
    with meter.stage("write archive"):
        archive.finish_bundle()
    with meter.stage("meter"):
        for keyed in totals.finish_bundle():
            usage.setdefault(keyed.value[0], []).append(keyed.value[1])
    with meter.stage("rate"):
        rated = [item for keyed in usage.items() for item in main(rating.process(keyed, prices))]
    with meter.stage("write line items"):
        for item in rated:
            items.process(item)
        items.finish_bundle()
    return {"stages": {name: asdict(cost) for name, cost in meter.costs.items()}}


def _in_a_child(task: str, source: Path, database: Path) -> dict[str, Any]:
    """What a task tells; in a process of its own, so that its memory and processor time are its own."""
    shutil.rmtree(database, ignore_errors=True)
    told = database.with_suffix(".told.json")
    subprocess.run([sys.executable, __file__, "--task", task, str(source), str(database), str(told)], check=True)
    return json.loads(told.read_text())


# --- the figures --------------------------------------------------------------------------------


def check(expected: Any, told: dict[str, Any]) -> list[str]:
    """What differs between what was generated and what was counted and stored."""
    counters, stored = told["counters"], told["stored"]
    rejected = {reason: rows for reason, rows in expected.rejects.items() if rows}
    wanted = {
        "records": expected.records,
        "accepted": expected.accepted,
        "duplicates": expected.duplicates,
        "rejects": rejected,
        "archive": {"rows": expected.accepted, "identities": expected.accepted},
        "quantities": {"input_tokens": expected.input_tokens, "output_tokens": expected.output_tokens},
        "events": {"input_tokens": expected.accepted, "output_tokens": expected.accepted},
    }
    items = stored["line_items"]
    came = {
        "records": counters.get("validate/records"),
        "accepted": counters.get("deduplicate/accepted"),
        "duplicates": counters.get("deduplicate/duplicate", 0),
        "rejects": stored["rejects"],
        "archive": stored["archive"],
        "quantities": {name: int(Decimal(row["quantity"])) for name, row in items.items()},
        "events": {name: row["events"] for name, row in items.items()},
    }
    return [f"{name}: expected {wanted[name]}, got {came[name]}" for name in wanted if wanted[name] != came[name]]


def show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    events = report["events"]
    table = Table(title=f"{events:,} events, {report['bytes'] / 1e6:,.0f} MB, {report['line_items']:,} line items")
    for name in ("stage", "CPU s", "M events / CPU s", "share", "memory MB"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    whole = report["whole"]["cpu_seconds"]
    rows = [*report["stages"].items(), ("Beam, copies, merges", report["rest"])]
    for name, cost in rows:
        seconds, memory = cost["cpu_seconds"], cost["memory_bytes"]
        rate = f"{events / seconds / 1e6:.2f}" if seconds > 0.005 else ""
        table.add_row(name, f"{seconds:.2f}", rate, f"{seconds / whole:.0%}", f"{memory / 1e6:,.0f}" if memory else "")
    table.add_section()
    peak = f"{report['whole']['memory_bytes'] / 1e6:,.0f}"
    table.add_row("whole job", f"{whole:.2f}", f"{events / whole / 1e6:.2f}", "100%", peak, style="bold")
    started = whole - report["stages"]["start"]["cpu_seconds"]
    table.add_row("without start", f"{started:.2f}", f"{events / started / 1e6:.2f}", f"{started / whole:.0%}", "")
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    console.print(f"wall clock of the whole job: {report['wall_seconds']:.1f} s; the totals are right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=2_000_000, help="events to generate (default: %(default)s)")
    parser.add_argument("--models", type=int, default=1, help="models that each account uses (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--keep", action="store_true", help="keep the database, and say where it is")
    parser.add_argument("--task", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task, source, database, told = options.task
        found = {"job": run_job, "stages": run_stages}[task](source, f"chdb://{database}")
        Path(told).write_text(json.dumps(found))
        return

    from events import shared_folder, write_events

    folder = shared_folder()
    source = folder / f"events-{options.events}-{options.models}.ndjson"
    expected = write_events(source, options.events, options.models)
    told = _in_a_child("job", source, folder / "job")
    if wrong := check(expected, told):
        sys.exit("the totals are wrong:\n  " + "\n  ".join(wrong))
    stages = _in_a_child("stages", source, folder / "stages")["stages"]
    known = sum(cost["cpu_seconds"] for cost in stages.values())
    report = {
        "events": options.events,
        "bytes": source.stat().st_size,
        "line_items": sum(row["rows"] for row in told["stored"]["line_items"].values()),
        "stages": stages,
        "rest": asdict(Cost(told["whole"]["cpu_seconds"] - known)),
        "whole": told["whole"],
        "wall_seconds": told["wall_seconds"],
    }
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    shutil.rmtree(folder / "stages")
    if options.keep:
        print(f"database: {folder / 'job'}")
    else:
        shutil.rmtree(folder / "job")


if __name__ == "__main__":
    main()
