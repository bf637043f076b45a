"""What two processes on two cores gain over one, from the file to packed usage. See README.md."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from events import catalog, shared_folder, write_events


def stages(source: str, start: int, end: int) -> dict[str, float]:
    """Read, validate, attribute, deduplicate and meter a part of a file."""
    from main_job import RECEIVED
    from parts import attributed, deduplicated, metered

    from meterline.transforms.read import Part

    prices = catalog()
    cpu, began = time.process_time(), time.monotonic()
    states: dict[Any, Any] = {}
    usage = metered(deduplicated(attributed(Part(source, start, end), RECEIVED, prices), states), prices)
    return {
        "began": began,
        "ended": time.monotonic(),
        "cpu_seconds": time.process_time() - cpu,
        "identities": sum(len(state.read()) for state in states.values()) // 16,
        "keys": len(usage),
    }


def _at_once(source: Path, parts: list[tuple[int, int]]) -> list[dict[str, float]]:
    """A process for each part, each on a core of its own; all start together, as the stages begin after the imports."""
    cores = sorted(os.sched_getaffinity(0))
    children = [
        subprocess.Popen(
            [sys.executable, __file__, "--task", str(source), str(start), str(end), str(cores[place % len(cores)])],
            stdout=subprocess.PIPE,
        )
        for place, (start, end) in enumerate(parts)
    ]
    told = [child.communicate()[0] for child in children]
    assert not any(child.returncode for child in children), "a process failed"
    return [json.loads(text) for text in told]


def measure(source: Path) -> dict[str, Any]:
    size = source.stat().st_size
    (alone,) = _at_once(source, [(0, size)])
    both = _at_once(source, [(0, size // 2), (size // 2, size)])
    wall_alone = alone["ended"] - alone["began"]
    wall_both = max(one["ended"] for one in both) - min(one["began"] for one in both)
    return {
        "wall_seconds": {"one": wall_alone, "two": wall_both},
        "cpu_seconds": {"one": alone["cpu_seconds"], "two": sum(one["cpu_seconds"] for one in both)},
        "times_faster": wall_alone / wall_both,
        # What free cores would give: both processes' own work, without waiting for a core.
        "times_faster_on_free_cores": alone["cpu_seconds"] / max(one["cpu_seconds"] for one in both),
        "duplicates_across": sum(one["identities"] for one in both) - alone["identities"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=2_000_000, help="events to generate (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--task", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        source, start, end, core = options.task
        os.sched_setaffinity(0, {int(core)})
        print(json.dumps(stages(source, int(start), int(end))))
        return
    folder = shared_folder()
    source = folder / f"events-{options.events}-1.ndjson"
    write_events(source, options.events, 1)
    report = measure(source)
    walls, cpus = report["wall_seconds"], report["cpu_seconds"]
    print(
        f"{options.events:,} events from the file to packed usage: {walls['one']:.1f} s in one process, "
        f"{walls['two']:.1f} s in two ({report['times_faster']:.2f} times as fast, "
        f"{report['times_faster_on_free_cores']:.2f} by processor time; "
        f"CPU {cpus['one']:.1f} s and {cpus['two']:.1f} s); "
        f"{report['duplicates_across']:,} duplicates lie in different halves: only an exchange by shard finds them"
    )
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
