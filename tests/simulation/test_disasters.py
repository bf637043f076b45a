"""ClickHouse dies, the disk is full, a folder cannot be written to, another process has it, or a newer Meterline made it.

Each time: a clear sentence on stderr, exit code 3, no traceback; and once the disaster is over, the same command
completes: the rows are those of runs that nothing happened to. `METERLINE_FUZZ` says how often ClickHouse dies, at
random places: 8 times by default.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from meterline.runners.demo import quickstart, usage_lines
from meterline.transforms import clickhouse, write
from tests.bridge import Bridge, served
from tests.command import NOW, Command, Said
from tests.conftest import empty_tables
from tests.fuzz import replayable

DEATHS = max(1, int(os.environ.get("METERLINE_FUZZ", "10000")) // 1250)
LATER = "2024-01-01T00:00:00Z"
CATALOG = quickstart() / "catalog"
ROWS = {
    "line_items": "SELECT * FROM line_items FINAL ORDER BY ALL",
    "usage_events": "SELECT * EXCEPT (received_time, payload), hex(payload) FROM usage_events FINAL ORDER BY ALL",
    "rating_keys": "SELECT * FROM rating_keys FINAL ORDER BY ALL",
    "rejects": "SELECT * EXCEPT (payload), hex(payload) FROM rejects FINAL ORDER BY ALL",
    "invoices": "SELECT * FROM invoices FINAL ORDER BY ALL",
    "invoice_lines": "SELECT * FROM invoice_lines FINAL ORDER BY ALL",
    "postings": "SELECT * FROM postings FINAL ORDER BY ALL",
}


def rate(usage: Path, url: str) -> list[object]:
    return ["rate", "--input", usage, "--catalog", CATALOG, "--clickhouse", url, "--now", NOW, "--json"]


def issue(url: str) -> list[object]:
    return [
        "invoice",
        "--period",
        "2023-11",
        "--issue",
        "--catalog",
        CATALOG,
        "--clickhouse",
        url,
        "--now",
        LATER,
        "--json",
    ]


def reading(url: str) -> list[list[object]]:
    """The commands that only read."""
    return [
        ["query", "SELECT 1", "--clickhouse", url],
        ["audit", "--catalog", CATALOG, "--clickhouse", url],
        ["explain", "req-00002", "--catalog", CATALOG, "--clickhouse", url],
        ["rejects", "count", "--clickhouse", url],
    ]


def failed(said: Said, *words: str) -> None:
    assert said.code == 3, said
    assert said.out == ""
    assert said.err.startswith("error: "), said.err
    assert said.err.count("\n") == 1, said.err
    for word in words:
        assert word in said.err


def write_usage(folder: Path, lines: int) -> Path:
    file = folder / "usage.ndjson"
    file.write_bytes(b"".join(line + b"\n" for line in [*usage_lines()[:lines], b"oops"]))
    return file


# --- a server that dies ---------------------------------------------------------------------------------


@dataclass
class Life:
    requests: int = 10**9
    way: str = "reset"
    answered: int = 0


class Mortal(Bridge):
    """Answers so many requests, and then dies in one of several ways."""

    life: Life

    def do_POST(self) -> None:
        self.life.answered += 1
        if self.life.answered <= self.life.requests:
            super().do_POST()
            return
        if self.life.answered == self.life.requests + 1:
            self._last_words()
        # A reset, not an orderly end; nobody listens any more.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RDWR) if self.life.way == "end" else self.connection.close()
        self.close_connection = True

    do_GET = do_POST

    def _last_words(self) -> None:
        if self.life.way == "stored":  # but never acknowledged
            self._answer = lambda status, data: None  # type: ignore[method-assign]
            super().do_POST()
        elif self.life.way == "half":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n1")
            self.wfile.flush()
        elif self.life.way == "proxy":
            self._body()
            self._answer(502, b"<html>Bad Gateway</html>")


WAYS = ["reset", "end", "stored", "half", "proxy"]


@contextmanager
def mortal(database: str, life: Life) -> Iterator[str]:
    """The URL of a server for the database."""
    with served(database, type("Mortal", (Mortal,), {"life": life})) as url:
        yield url


def rows_of(database: str) -> dict[str, list[dict[str, Any]]]:
    return {table: clickhouse.query(database, sql).to_pylist() for table, sql in ROWS.items()}


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the tries of an insert; and small inserts, so that there are more of them to die in."""
    monkeypatch.setattr(clickhouse, "time", SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 100)))
    monkeypatch.setattr(write, "MAX_ROWS", 20)


@pytest.mark.parametrize("round", range(DEATHS))
@pytest.mark.usefixtures("short_pauses")
def test_what_a_dying_server_broke_off_the_same_command_completes(
    round: int, database: str, meterline: Command, tmp_path: Path
) -> None:
    with replayable(round, "dying_server"):
        rng = Random(f"deaths {round}")
        usage = write_usage(tmp_path, 300)
        for words in (lambda url: rate(usage, url), issue):
            before = requests(meterline, database, usage, words)
            expected = rows_of(database)
            assert expected["line_items"]
            empty_tables(database)
            if words is issue:
                assert meterline(*rate(usage, database)).code == 0
            way = WAYS[round % len(WAYS)]
            with mortal(database, Life(rng.randrange(before), way)) as url:
                failed(meterline(*words(url)), "127.0.0.1")
                for asking in reading(url):
                    failed(meterline(*asking), "127.0.0.1")
            # A lease that the dead could not give back ends after a minute.
            clickhouse.connect(database).command("TRUNCATE TABLE leases")
            with mortal(database, Life()) as url:
                said = meterline(*words(url))
                assert said.code == 0, said
            assert rows_of(database) == expected
            empty_tables(database)


def requests(meterline: Command, database: str, usage: Path, words: Callable[[str], list[object]]) -> int:
    """How many requests the command makes of a server that lives, which is then left with the result."""
    if words is issue:
        assert meterline(*rate(usage, database)).code == 0
    life = Life()
    with mortal(database, life) as url:
        assert meterline(*words(url)).code == 0
        return life.answered
