"""Plays seeds in processes that are killed with SIGKILL while they write to an embedded ClickHouse of their own.

    python -m tests.simulation.killed SEED …

This process loads everything and never connects; each attempt is a fork of it. The kill comes a few milliseconds after
some statement of the attempt has begun, and so mostly inside of ClickHouse. The next attempt begins with the run that
was killed, without state. The exit code is 1 where the books and the tables differ.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
import zoneinfo
from pathlib import Path
from random import Random
from typing import Any

from meterline.transforms import clickhouse

from . import chaos
from .ledger import compare, stored

KILLS = 3
MAX_STATEMENTS = 40


class Reporting(chaos.Faults):
    """Nothing fails but the whole process; tells the parent what it does."""

    report: int

    def strike(self, place: str) -> bool:
        os.write(self.report, b".")
        return False


def attempt(seed: int, number: int, folder: Path, report: int) -> None:
    """Rate what is not rated yet, and compare in the end."""
    url = f"chdb://{folder / 'db'}"
    clickhouse.ready(url)
    scenario = chaos.imagine(seed)
    rng = Random(f"attempt {number} of {seed}")
    faults = Reporting(rng, 0, "")
    faults.report = report
    sink = chaos.Sink(url, rng, faults, at_once=True, archived=True)
    done = folder / "done"
    with chaos.submitted(scenario, url, sink) as job:
        for run, arrivals in enumerate(scenario.inputs):
            if run >= (done.stat().st_size if done.exists() else 0):
                chaos.Run(job, scenario, sink, rng, f"run {run}", arrivals).finish()
                with done.open("ab") as file:
                    file.write(b".")
    compare(stored(url), scenario.books, scenario.world.catalog)


def play(seed: int) -> tuple[int, bool]:
    """How often it was killed, and whether it came out right."""
    rng = Random(f"kills of {seed}")
    kills = 0
    with tempfile.TemporaryDirectory() as folder:
        while True:
            reading, report = os.pipe()
            child = os.fork()
            if not child:
                os.close(reading)  # so that a report fails, and the attempt ends, when the parent is gone
                os._exit(_attempted(seed, kills, Path(folder), report))
            os.close(report)
            if kills < KILLS and _has_begun(reading, rng.randint(1, MAX_STATEMENTS)):
                time.sleep(rng.uniform(0, 0.01))
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            os.close(reading)
            if not os.WIFSIGNALED(status):
                return kills, status == 0
            kills += 1


def _attempted(*args: Any) -> int:
    try:
        attempt(*args)
    except BaseException:  # noqa: BLE001  (nothing may go up into the code of the process that was forked)
        traceback.print_exc()
        return 1
    return 0


def _has_begun(reading: int, statements: int) -> bool:
    return all(os.read(reading, 1) for _ in range(statements))


if __name__ == "__main__":
    zoneinfo.reset_tzpath(to=[])
    failed = []
    for seed in map(int, sys.argv[1:]):
        kills, is_right = play(seed)
        print(f"seed {seed}: killed {kills} times", flush=True)
        if not is_right:
            failed.append(seed)
    if failed:
        sys.exit(f"replay it: .venv/bin/python -m tests.simulation.killed {' '.join(map(str, failed))}")
