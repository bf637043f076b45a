"""What parts of Meterline cost: state, late events, inserts, reading the archive, a small file. See README.md."""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from apache_beam.transforms.window import IntervalWindow
from events import catalog, shared_folder, write_events
from main_job import RECEIVED, _Bag

from meterline.schemas.catalog import Catalog
from meterline.transforms import archive, attribute, clickhouse, deduplicate, meter, rate, read, recall, validate, write

_MONTH = datetime(2026, 10, 1, tzinfo=UTC)  # Of 31 days.
_AFTER = int(datetime(2026, 11, 2, tzinfo=UTC).timestamp()) * 1_000_000


_KEEP = timedelta(days=67)


class _Timer:
    """Stands for a timer that does not fire."""

    def set(self, instant: Any) -> None:
        pass


class _State:
    """Stands for a state cell of one key."""

    def __init__(self) -> None:
        self._value: bytes | None = None

    def read(self) -> bytes | None:
        return self._value

    def write(self, value: bytes) -> None:
        self._value = value


class _Rated(tuple[_State, _Bag, _Timer]):
    """Stands for the state that `rate` keeps of one key in a stream."""

    def __new__(cls) -> _Rated:
        return super().__new__(cls, (_State(), _Bag(), _Timer()))


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """User and system time of all threads while `work` runs, and what it returns."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


# --- the stages, without Beam --------------------------------------------------------------------


def main_outputs(outputs: Any) -> list[Any]:
    return [output for output in outputs or () if type(output).__name__ != "TaggedOutput"]


def attributed(part: read.Part, received: int, prices: Catalog) -> Iterator[Any]:
    """Batches of a part of a file: read, validated, attributed."""
    validating, attributing = validate._ValidateFn(None), attribute._AttributeFn()
    validating.setup()
    attributing.setup()
    for block in main_outputs(read._ReadFn().process(part, received)):
        for batch in main_outputs(validating.process(block, prices)):
            yield from main_outputs(attributing.process(batch, prices))


def deduplicated(batches: Iterator[Any], states: dict[Any, list[_Bag]]) -> Iterator[Any]:
    """The events of batches that are new; the keys' states are left in `states`."""
    sharding, deduplicating = deduplicate._ShardFn(1), deduplicate._DeduplicateFn(None, 1)
    for batch in batches:
        for stamped in sharding.process(batch):
            window = IntervalWindow(stamped.timestamp, stamped.timestamp + 86_400)
            cells = states.setdefault((stamped.value[0], window), [_Bag() for _ in deduplicate._CELLS])
            yield from main_outputs(deduplicating.process(stamped.value, window, *cells))


def metered(batches: Iterator[Any], prices: Catalog) -> dict[bytes, list[bytes]]:
    """Packed usage by rating key."""
    totals = meter._MeterFn()
    totals.setup()
    usage: dict[bytes, list[bytes]] = {}
    for batch in batches:
        for key, packed in totals.process(batch, prices):
            usage.setdefault(key, []).append(packed)
    for stamped in totals.finish_bundle():
        usage.setdefault(stamped.value[0], []).append(stamped.value[1])
    return usage


# --- the measures --------------------------------------------------------------------------------


def states_and_inserts(source: Path, folder: Path) -> dict[str, float]:
    """Bytes of state, and line items stored in a second, of the benchmark's day."""
    prices = catalog()
    seen: dict[Any, list[_Bag]] = {}
    usage = metered(deduplicated(attributed(read.Part(str(source), 0, -1), RECEIVED, prices), seen), prices)
    identities = sum(len(run) for cells in seen.values() for cell in cells for run in cell.read())
    accepted = _accepted(source)
    rating = rate.Rater(_KEEP)
    states = {key: _Rated() for key in usage}
    items = [item for keyed in usage.items() for item in main_outputs(rating.rate(keyed, prices, *states[keyed[0]]))]
    rated = sum(len(one) for hot, cold, _ in states.values() for one in (hot.read() or b"", *cold.read()))

    url = f"chdb://{folder / 'items'}"
    clickhouse.ready(url)
    storing = write._InsertFn(url, {"line_items": write.line_item_rows})
    storing.start_bundle()

    def store() -> None:
        for item in items:
            storing.process(item)
        storing.finish_bundle()

    cpu, _ = cpu_seconds(store)
    return {
        "state of deduplicate, bytes an event": identities / accepted,
        "state of rate, bytes a key and window": rated / len(items),
        "line items stored, a CPU second": len(items) / cpu,
    }


def _accepted(source: Path) -> int:
    return json.loads(source.with_suffix(".expected.json").read_text())["expected"]["accepted"]


def late_event(folder: Path) -> dict[str, float]:
    """What an event in the first hour of a period of 744 windows costs `rate`, and one in the last."""
    prices = catalog()

    def usage(hours: Iterator[int] | list[int], name: str) -> tuple[bytes, list[bytes]]:
        lines = folder / "late.ndjson"
        lines.write_text("".join(_event(f"{name}-{hour}", _MONTH + timedelta(hours=hour)) for hour in hours))
        found = metered(attributed(read.Part(str(lines), 0, -1), _AFTER, prices), prices)
        return next(keyed for keyed in found.items() if b"input_tokens" in keyed[0])

    rating = rate.Rater(_KEEP)

    def rated(event: tuple[bytes, list[bytes]]) -> tuple[float, list[Any]]:
        state = _Rated()
        list(rating.rate(whole, prices, *state))
        return cpu_seconds(lambda: list(rating.rate(event, prices, *state)))

    costs: dict[str, list[float]] = {"in time": [], "late": []}
    written = {}
    whole, last, first = usage(range(744), "whole"), usage([743], "last"), usage([0], "first")
    for _ in range(15):
        for name, event in (("in time", last), ("late", first)):
            cpu, items = rated(event)
            costs[name].append(cpu)
            written[name] = len(items)
    assert written == {"in time": 1, "late": 744}, written
    in_time, late = (statistics.median(costs[name]) for name in ("in time", "late"))
    return {
        "an event in time, ms in rate": in_time * 1e3,
        "a late event, ms in rate": late * 1e3,
        "a late event, times one in time": late / in_time,
    }


def _event(name: str, instant: datetime) -> str:
    data = {"model": "large", "input_tokens": 4_000, "output_tokens": 100}
    head = {"specversion": "1.0", "id": name, "source": "/late", "type": "com.example.llm.request.v1"}
    return json.dumps(head | {"subject": "account-0001", "time": f"{instant:%Y-%m-%dT%H:%M:%SZ}", "data": data}) + "\n"


def archive_read(source: Path, folder: Path) -> dict[str, float]:
    """Archived events that are added up, and compared with their line items, in a CPU second, as `recall` does it."""
    from peers.meterline import job

    url = f"chdb://{folder / 'archive'}"
    clickhouse.ready(url)
    prices = catalog()
    job(str(source), prices, url, RECEIVED)
    month = [int(datetime(2026, number, 1, tzinfo=UTC).timestamp()) for number in (9, 10)]
    spans = [archive.Span("default", account.id, *month) for account in prices.accounts]
    key, packed = recall.Touched(spans=spans).packed()
    cpu, found = cpu_seconds(
        lambda: list(recall._RecallFn(archive.Archive(url, "this run")).process((key, [packed]), prices))
    )
    assert not found, "all line items are as they should be"
    rows = _accepted(source)
    return {"archived events read back, a CPU second": rows / cpu}


def small_file(folder: Path, runs: int = 5) -> dict[str, float]:
    """The command `meterline rate` on a file of 1,000 events, from its start to its end."""
    source = folder / "small.ndjson"
    write_events(source, 1_000, 1)
    prices = folder / "prices"
    prices.mkdir(exist_ok=True)
    (prices / "catalog.yaml").write_text(yaml.safe_dump(catalog().model_dump(mode="json", exclude_unset=True)))
    walls, cpus = [], []
    for _ in range(runs):
        database = folder / "small"
        shutil.rmtree(database, ignore_errors=True)
        command = [sys.executable, "-m", "meterline.runners.cli", "rate", "--input", str(source), "--catalog"]
        command += [str(prices), "--clickhouse", f"chdb://{database}", "--now", "2026-09-15T00:00:00Z", "--json"]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        walls.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert json.loads(told)["accepted"] == _accepted(source), told
    return {
        "a file of 1,000 events, wall s": statistics.median(walls),
        "a file of 1,000 events, CPU s": statistics.median(cpus),
    }


def show(figures: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="parts")
    table.add_column("measure")
    table.add_column("", justify="right")
    for name, figure in figures.items():
        table.add_row(name, f"{figure:,.0f}" if figure >= 1_000 else f"{figure:,.2f}")
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=500_000, help="of the benchmark's day (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    shared = shared_folder()
    source = shared / f"events-{options.events}-1.ndjson"
    write_events(source, options.events, 1)
    with tempfile.TemporaryDirectory(dir=shared) as name:
        folder = Path(name)
        figures = small_file(folder) | late_event(folder) | states_and_inserts(source, folder)
        clickhouse.connect.cache_clear()
        figures |= archive_read(source, folder)
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if figures["state of deduplicate, bytes an event"] > 17:
        sys.exit("the state of deduplicate has more than 17 bytes an event")


if __name__ == "__main__":
    main()
