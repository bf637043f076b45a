"""A run that is killed with SIGKILL, and run again, gives the rows of a run that nothing happened to: the command line
with the usage of the demo, against an undisturbed run; and generated worlds, against the auditor's books.

`METERLINE_KILL_SEEDS` says how often the command line is tried, `METERLINE_KILL_WORLDS` how many worlds.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from meterline.runners.demo import quickstart, usage_lines

KILLS = 3
SEEDS = int(os.environ.get("METERLINE_KILL_SEEDS", "2"))
WORLDS = int(os.environ.get("METERLINE_KILL_WORLDS", "10"))
COPIES = 6
ROWS = {
    "line_items": "SELECT * FROM line_items FINAL ORDER BY ALL",
    "usage_events": "SELECT * EXCEPT (received_time, run_id) FROM usage_events FINAL ORDER BY ALL",
    "voids": "SELECT * FROM voids FINAL ORDER BY ALL",
    "rejects": "SELECT * FROM rejects FINAL ORDER BY ALL",
}
COMMAND = [sys.executable, "-m", "meterline.runners.cli"]


@pytest.fixture(scope="module")
def usage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file: Path = tmp_path_factory.mktemp("killed") / "usage.ndjson"
    lines = usage_lines()
    with file.open("wb") as out:
        for copy in range(COPIES):
            out.writelines(line.replace(b"req-", b"r%d-" % copy) + b"\n" for line in lines)
    return file


def rate(usage: Path, folder: Path) -> subprocess.Popen[bytes]:
    words = [
        "rate",
        "--input",
        str(usage),
        "--catalog",
        str(quickstart() / "catalog"),
        "--clickhouse",
        f"chdb://{folder}",
    ]
    words += ["--now", "2023-11-17T00:00:00Z", "--json"]
    return subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def void(folder: Path) -> subprocess.Popen[bytes]:
    words = ["void", "--event", "r1-00001", "--reason", "a test", "--catalog", str(quickstart() / "catalog")]
    words += ["--clickhouse", f"chdb://{folder}", "--now", "2023-11-18T00:00:00Z", "--json"]
    return subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def complete(run: subprocess.Popen[bytes]) -> None:
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0, err.decode()


def rows(folder: Path) -> dict[str, str]:
    def ask(sql: str) -> str:
        words = ["query", sql, "--format", "tsv", "--clickhouse", f"chdb://{folder}"]
        return subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=True, timeout=120).stdout

    return {table: ask(sql) for table, sql in ROWS.items()}


@pytest.fixture(scope="module")
def undisturbed(usage: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    folder = tmp_path_factory.mktemp("undisturbed") / "db"
    started = time.monotonic()
    complete(rate(usage, folder))
    return rows(folder), time.monotonic() - started


def kill(run: subprocess.Popen[bytes], after: float) -> None:
    try:
        run.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        run.kill()
        run.communicate()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_killed_run_is_completed_by_the_same_command(
    seed: int, usage: Path, undisturbed: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    expected, seconds = undisturbed
    chance = random.Random(seed)
    for _ in range(KILLS):
        kill(rate(usage, tmp_path / "db"), chance.uniform(0.3, 1.0) * seconds)
    complete(rate(usage, tmp_path / "db"))
    found = rows(tmp_path / "db")
    for table, text in expected.items():
        assert found[table] == text, f"{table} differs; METERLINE_KILL_SEEDS={seed + 1} runs it again"


def test_a_killed_void_is_completed_by_the_same_command(usage: Path, tmp_path: Path) -> None:
    for name in ("expected", "rated"):
        complete(rate(usage, tmp_path / name))
    started = time.monotonic()
    complete(void(tmp_path / "expected"))
    seconds = time.monotonic() - started
    for share in (0.6, 0.75, 0.9):
        kill(void(tmp_path / "rated"), share * seconds)
    complete(void(tmp_path / "rated"))
    expected = rows(tmp_path / "expected")
    assert expected["voids"]
    assert rows(tmp_path / "rated") == expected


def test_worlds_whose_runs_are_killed_give_the_books() -> None:
    seeds = map(str, range(WORLDS))
    run = subprocess.run(
        [sys.executable, "-m", "tests.simulation.killed", *seeds],
        capture_output=True,
        check=False,
        text=True,
        timeout=60 + 30 * WORLDS,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stdout + run.stderr
    kills = sum(map(int, re.findall("killed ([0-9]+) times", run.stdout)))
    assert kills > WORLDS, run.stdout
