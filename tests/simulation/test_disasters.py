"""ClickHouse dies, the disk is full, a folder cannot be written to or is another's, a newer Meterline made the tables.

Each time: a clear sentence on stderr, exit code 3, no traceback; and once the disaster is over, the same command
completes: the rows are those of runs that nothing happened to. `METERLINE_FUZZ` says how often ClickHouse dies, at
random places: 8 times by default.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from meterline.runners.clickhouse_server.server import Handler
from meterline.runners.demo import quickstart, usage_lines
from meterline.transforms import clickhouse, write
from tests.command import NOW, Command, Said
from tests.conftest import empty_tables
from tests.fuzz import replayable
from tests.served import served

DEATHS = max(1, int(os.environ.get("METERLINE_FUZZ", "10000")) // 1250)
LATER = "2024-01-01T00:00:00Z"
CATALOG = quickstart() / "catalog"
ROWS = {
    "line_items": "SELECT * FROM line_items FINAL ORDER BY ALL",
    "usage_events": "SELECT * EXCEPT (received_time, payload, run_id), hex(payload) FROM usage_events FINAL "
    "ORDER BY ALL",
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
    assert said.err.splitlines()[-1].startswith("error: "), said.err
    assert said.err.count("\n") <= 2, said.err  # The embedded engine may print a line of its own.
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


class Mortal(Handler):
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
            self._answer = lambda *answer: None  # type: ignore[method-assign]
            super().do_POST()
        elif self.life.way == "half":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n1")
            self.wfile.flush()
        elif self.life.way == "proxy":
            body = self._incoming()
            while body.read():
                pass
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
        job = "invoice" if round % 2 else "rate"

        def words(url: str) -> list[object]:
            return issue(url) if job == "invoice" else rate(usage, url)

        def prepare() -> None:
            empty_tables(database)
            if job == "invoice":
                assert meterline(*rate(usage, database)).code == 0

        if job not in UNDISTURBED:
            prepare()
            life = Life()
            with mortal(database, life) as url:
                assert meterline(*words(url)).code == 0
            UNDISTURBED[job] = life.answered, rows_of(database)
        requests, expected = UNDISTURBED[job]
        prepare()
        with mortal(database, Life(rng.randrange(requests), WAYS[round % len(WAYS)])) as url:
            failed(meterline(*words(url)), "127.0.0.1")
            failed(meterline(*reading(url)[round % 4]), "127.0.0.1")
        # A lease that the dead could not give back ends after a minute.
        clickhouse.connect(database).command("TRUNCATE TABLE leases")
        with mortal(database, Life()) as url:
            assert meterline(*words(url)).code == 0
        found = rows_of(database)
        assert expected["invoices" if job == "invoice" else "line_items"]
        for table, rows in expected.items():
            assert without_origin(found[table]) == without_origin(rows), table


# By job: the requests that it makes of a server, and the rows that it leaves.
UNDISTURBED: dict[str, tuple[int, dict[str, list[dict[str, Any]]]]] = {}


def without_origin(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Rows without the name of the file, which lies elsewhere each time, and what hashes it."""
    kept = [{k: v for k, v in row.items() if k not in ("origin", "reject_id")} for row in rows]
    return sorted(repr(sorted(row.items())) for row in kept)


# --- a folder that cannot be used -----------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "meterline.runners.cli"]


def run(words: list[object]) -> Said:
    """The command in a process of its own: an embedded engine opens one folder only."""
    done = subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stdout + done.stderr
    return Said(done.returncode, done.stdout, done.stderr)


_ASK = """
import sys, json
from meterline.transforms import clickhouse
print(json.dumps([clickhouse.read_only(sys.argv[1], sql, "TSV") for sql in sys.argv[2:]]))
"""


def stored_in(folder: Path) -> dict[str, str]:
    asking = [sys.executable, "-c", _ASK, f"chdb://{folder}", *ROWS.values()]
    asked = subprocess.run(asking, capture_output=True, text=True, timeout=120, check=True)
    return dict(zip(ROWS, json.loads(asked.stdout)))


def same(folder: Path, undisturbed: dict[str, str], invoiced: bool) -> None:
    for table, rows in stored_in(folder).items():
        if invoiced or table not in ("invoices", "invoice_lines", "postings"):
            assert rows == undisturbed[table], table


@pytest.fixture(scope="module")
def usage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_usage(tmp_path_factory.mktemp("usage"), 9_000)


@pytest.fixture(scope="module")
def undisturbed(usage: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is stored when both jobs ran and nothing happened."""
    folder = tmp_path_factory.mktemp("undisturbed") / "db"
    for words in (rate(usage, f"chdb://{folder}"), issue(f"chdb://{folder}")):
        assert run(words).code == 0
    return stored_in(folder)


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Callable[[str], None]]:
    """A disk of its own at a folder; gives a function that mounts it anew with other options."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here: that needs root")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("options", ["size=1m", "size=3m", "size=20m,nr_inodes=200"])
def test_what_a_full_disk_broke_off_the_same_command_completes(
    options: str, usage: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    url = f"chdb://{tmp_path}/db"
    with small_disk(tmp_path, options) as remount:
        failed(run(rate(usage, url)), str(tmp_path), "o space" if "inodes" in options else "not enough space")
        remount("size=64m,nr_inodes=100000")
        assert run(rate(usage, url)).code == 0
        same(tmp_path / "db", undisturbed, invoiced=False)


def test_a_disk_that_is_full_or_read_only_when_invoices_are_made(
    usage: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    url = f"chdb://{tmp_path}/db"
    with small_disk(tmp_path, "size=64m") as remount:
        remount("ro")
        failed(run(rate(usage, url)), f"{tmp_path} cannot be written to")
        remount("rw")
        assert run(rate(usage, url)).code == 0
        with (tmp_path / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError):  # noqa: PT012
            while True:
                ballast.write(bytes(4096))
        failed(run(issue(url)), str(tmp_path), "not enough space")
        assert run(reading(url)[0]).code == 0
        remount("ro")
        for words in (issue(url), reading(url)[0]):
            failed(run(words), f"{tmp_path}/db cannot be written to")
        remount("rw")
        (tmp_path / "ballast").unlink()
        assert run(issue(url)).code == 0
        same(tmp_path / "db", undisturbed, invoiced=True)


@pytest.mark.parametrize("place", ["file", "file/a/b"])
def test_a_folder_behind_a_file_is_told_as_such(place: str, usage: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    failed(run(rate(usage, f"chdb://{tmp_path}/{place}")), f"{tmp_path}/file is no folder")


def test_a_second_process_on_one_folder_is_told_so_and_disturbs_nothing(
    usage: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    url = f"chdb://{tmp_path}/db"
    holding = [
        sys.executable,
        "-c",
        f"from meterline.transforms import clickhouse as c; c.ready({url!r}); input(print('held'))",
    ]
    with subprocess.Popen(holding, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdin
        assert holder.stdout.readline() == b"held\n"
        for words in (rate(usage, url), issue(url), reading(url)[0]):
            failed(run(words), "another process has this folder open")
        holder.stdin.write(b"\n")
    # Two that start at once: one of them, at least, does its work, and what it did is whole.
    both = [subprocess.Popen([*COMMAND, *map(str, rate(usage, url))], stderr=subprocess.PIPE) for _ in range(2)]
    said = [(one.communicate(timeout=120)[1].decode(), one.returncode) for one in both]
    assert 0 in [code for _, code in said]
    assert all(code == 0 or (code == 3 and "another process" in text) for text, code in said), said
    same(tmp_path / "db", undisturbed, invoiced=False)


def test_a_database_of_a_newer_version_is_refused_by_every_command(
    database: str, meterline: Command, tmp_path: Path
) -> None:
    usage = write_usage(tmp_path, 50)
    client = clickhouse.connect(database)
    number = len(clickhouse.migrations()) + 1
    client.command(f"INSERT INTO schema_migrations VALUES ({number}, '{number:04}_future', 'x', now())")
    try:
        with served(database) as server:
            for url in (database, server):
                for words in (rate(usage, url), issue(url), ["migrate", "--clickhouse", url], *reading(url)[1:]):
                    failed(meterline(*words), f"schema {number}", "use the newer Meterline")
        assert clickhouse.query(database, ROWS["usage_events"]).num_rows == 0
    finally:
        client.command(f"ALTER TABLE schema_migrations DELETE WHERE number = {number} SETTINGS mutations_sync = 2")
    assert json.loads(meterline(*rate(usage, database)).out)["adds_up"]
