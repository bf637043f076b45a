"""A fuzzer over the rest of what `meterline rate` is given: catalogs, flags, names of files and databases.

Counted as `test_records_and_files.py` says: for each 500 mutated records come 10 catalogs and 10 command lines.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from meterline.runners.demo import quickstart
from tests.command import NOW, Command, Said
from tests.conftest import empty_tables
from tests.simulation import ledger
from tests.simulation.auditor import read_catalog
from tests.simulation.generator import catalog_yaml, generate

from . import ROUNDS, replayable
from .mutations import BYTES
from .reader import read
from .test_records_and_files import check_tables

CATALOGS = 10
COMMANDS = 10

EVENT = (
    b'{"specversion":"1.0","id":"1","source":"/gw","type":"com.example.llm.request.v1","subject":"acme-assist-chat",'
    b'"time":"2023-11-16T18:30:00Z","data":{"model":"large","input_tokens":5,"output_tokens":1}}\n'
)


def refused(said: Said, code: int, *words: str) -> None:
    """It ended with the code, and says why on stderr alone."""
    assert said.code == code, said
    assert said.out == ""
    assert said.err.strip()
    for word in words:
        assert word in said.err


# --- catalogs -----------------------------------------------------------------------------------

ODD: list[Any] = [
    *(None, "", "x", "~", "null", "true", "no", "0", "-1", "1e3", "0.1", "1" * 40, "NaN", ".inf", "0x1F", "1:30",
      "2026-10-01"),
    *("x" * 101, "x" * 10_000, "ü", "a b", "a.b", "../x", "\u202e", "{", "&a", "*a", "!!python/object:os.system",
      "|", "- x"),
    *([], {}, [[]], [{}], {"a": "b"}, ["x", "x"], {"": ""}, [None], [["x"] * 50], {"id": "x"}, ["1", {"a": []}]),
]  # fmt: skip


def changed(rng: Random, value: Any) -> Any:
    """The same tree with one place of it left out, doubled, renamed or replaced."""
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        kind = rng.random()
        if kind < 0.1:
            return value[:at] + value[at + 1 :]
        if kind < 0.2:
            return [*value, value[at]]
        return [*value[:at], changed(rng, value[at]), *value[at + 1 :]]
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.1:
            return {key: inner for key, inner in value.items() if key != name}
        if kind < 0.15:
            return {rng.choice([name + "s", "", "id", "x", "ü"]) if key == name else key: v for key, v in value.items()}
        if kind < 0.2:
            return {**value, rng.choice(["x", "", "tiers", "id", "end"]): rng.choice(ODD)}
        return {**value, name: changed(rng, value[name])}
    return rng.choice(ODD)


@pytest.mark.parametrize("round", ROUNDS)
def test_each_mutated_catalog_is_refused_or_priced_by(round: int, meterline: Command, tmp_path: Path) -> None:
    with replayable(round, "mutated_catalog"):
        rng = Random(f"catalogs {round}")
        world = generate(2000 + round, events=20, bad=0.1, conflicts=False)
        usage = tmp_path / "usage.ndjson"
        usage.write_bytes(b"".join(record + b"\n" for record in [b"{}", *world.records]))
        words = ["--clickhouse", meterline.url, "--now", world.received.isoformat(), "--json"]
        for number in range(CATALOGS):
            folder = tmp_path / f"catalog{number}"
            write_mutated(rng, world.catalog, folder)
            said = meterline("rate", "--input", usage, "--catalog", folder, *words)
            checked = json.loads(meterline("catalog", "check", folder, "--json").out)
            if not checked["ok"]:
                refused(said, 2, "the catalog has mistakes", str(checked["problems"][0]["message"])[:20])
                continue
            assert said.code == 0, said
            records, _ = read(str(usage), usage.read_bytes())
            read_so = replace(world, catalog=read_catalog(folder), horizon=None)
            check_tables(json.loads(said.out), ledger.stored(meterline.url), records, [], read_so)
            empty_tables(meterline.url)


def write_mutated(rng: Random, catalog: Any, folder: Path) -> None:
    folder.mkdir()
    for _ in range(rng.choice([1, 1, 2])):
        catalog = changed(rng, catalog)
    files = catalog_yaml(catalog) if isinstance(catalog, dict) else {"all.yaml": json.dumps(catalog)}
    for name, text in files.items():
        data = text.encode()
        spoilt = rng.choice(BYTES)(rng, data) if rng.random() < 0.1 else data
        (folder / name.replace("/", "_")).write_bytes(spoilt)


def bomb() -> str:
    """A catalog whose aliases name a billion strings."""
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    return "\n".join(rows)


NO_CATALOGS = {
    "empty": b"",
    "blank": b"\n \n# nothing\n",
    "null": b"null",
    "a list": b"[]",
    "a word": b"meters",
    "binary": bytes(range(256)),
    "UTF-16": "meters: []".encode("utf-16"),
    "NUL": b"meters: []\x00",
    "deep": b"meters: " + b"[" * 5000 + b"]" * 5000,
    "deep, open": b"[" * 100_000,
    "bomb of aliases": bomb().encode(),
    "cycle": b"meters: &a [*a]",
    "cycle of mappings": b"meters: [&a {id: x, event_type: *a}]",
    "merge of itself": b"meters: [&a {<<: *a}]",
    "unknown alias": b"meters: [*nowhere]",
    "unknown tag": b"meters: [!!python/object/apply:os.system [id]]",
    "unknown key": b"metres: []",
    "a key twice": b"meters: []\nmeters: []",
    "a list as key": b"? [a]\n: b",
    "two documents": b"meters: []\n---\nmeters: []",
    "tabs": b"meters:\n\t- {id: x}",
    "an integer of 100,000 digits": b"meters: [{id: " + b"9" * 100_000 + b"}]",
    "a line of 3 MB": b"meters: [{id: '" + b"x" * 3_000_000 + b"'}]",
    "1,000 wrong meters": b"meters:\n" + b"- {id: x}\n" * 1_000,
    "wrong types": b"meters: {}\nplans: 5\naccounts: no\nrate_cards: ''\nsubscriptions: 2026-01-01",
}


@pytest.mark.parametrize("data", NO_CATALOGS.values(), ids=NO_CATALOGS.keys())
def test_what_is_no_catalog_is_refused(data: bytes, meterline: Command, tmp_path: Path) -> None:
    (tmp_path / "usage.ndjson").write_bytes(EVENT)
    folder = tmp_path / "catalog"
    folder.mkdir()
    (folder / "all.yaml").write_bytes(data)
    words = ["--clickhouse", meterline.url, "--now", NOW, "--json"]
    refused(meterline("rate", "--input", tmp_path / "usage.ndjson", "--catalog", folder, *words), 2, "all.yaml")


# --- flags --------------------------------------------------------------------------------------

# Values of each flag, with the exit code that each leads to.
FLAGS: dict[str, dict[str, int]] = {
    "--now": {
        **dict.fromkeys(["", "now", "0", "2023-11-17", "2023-11-17T00:00:00", "2023-11-17T24:00:01Z",
          "1969-12-31T23:59:59Z"], 2),
        **dict.fromkeys(["2200-01-01T00:00:00Z", "9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00+23:00",
          "\x1b[31m", "Z"], 2),
        **dict.fromkeys(["9" * 100_000, "\udcff", "2023-11-17T00:00:00+99:00", "2023-02-30T00:00:00Z", "[/red]"], 2),
        **dict.fromkeys(["2023-11-17T00:00:00.123456789Z", "2023-11-17T23:59:59-12:00", "2199-12-31T23:59:59Z"], 0),
    },
    "--max-age-days": {
        **dict.fromkeys(["", "-1", "36501", "1e2", "abc", "0x10", "1.5", "9" * 5000, "\udcff", "[red]", "--json"], 2),
        **dict.fromkeys(["1", "36500", "007"], 0),
    },
    "--input": dict.fromkeys(["", "nowhere", "/", ".", "[", "**/nothing", "\udcff", "nowhere\n", "/dev/null",
      "foo://x", "://",
                              "nosuchfile://host/x", "~", "x" * 300, "x/" * 3000, "/dev/null/x", "\x1b[31m",
                                "[/red]"], 2),
    "--catalog": dict.fromkeys(["nowhere", "/dev/null", "\udcff", "x" * 300, "/dev/null/x", "[/red]",
      "/proc/self/mem"], 2),
    "--clickhouse": dict.fromkeys(["", "x", "chdb:", "chdb://", "mysql://x", "http://", "http://:80", "http://[::1",
                                   "http://127.0.0.1:99999", "http://127.0.0.1:-1", "http://127.0.0.1:x", "://", "http://[x]",
                                   "http://127.0.0.1:9", "https://u:secret@127.0.0.1:9/db", "\udcff",
                                     "http://\udcff/", "[/red]",
                                   "http://127.0.0.1:9/%zz", "http://a b:9", "http://u:sec:ret@127.0.0.1:9/a/b",
                                     "chdb", "//x"], 3),
    "--nothing": {"x": 2},
    "--json=x": {"": 2},
    "--period": {"2026-10": 2},
    "--from-archive": {"--json": 2},
    "stray": {"words": 2},
    "--": {"--json": 2},
}  # fmt: skip


def good_flags(meterline: Command, folder: Path) -> dict[str, object]:
    """What rates one event."""
    (folder / "usage.ndjson").write_bytes(EVENT)
    return {
        "--input": folder / "usage.ndjson",
        "--catalog": quickstart() / "catalog",
        "--clickhouse": meterline.url,
        "--now": NOW,
    }


@pytest.mark.parametrize(
    ("flag", "value", "code"), [(f, v, c) for f, values in FLAGS.items() for v, c in values.items()]
)
def test_each_odd_flag_is_refused_or_taken(
    flag: str, value: str, code: int, meterline: Command, tmp_path: Path
) -> None:
    flags = good_flags(meterline, tmp_path)
    flags.pop(flag, None)
    words = [word for pair in flags.items() for word in pair]
    said = meterline("rate", "--json", *words, flag, value)
    if code == 0:
        assert said.code == 0, said
        assert json.loads(said.out)["adds_up"]
    else:
        refused(said, code)
        assert "secret" not in said.err
        assert "fault" not in said.err


@pytest.mark.parametrize("round", ROUNDS)
def test_odd_flags_together_are_refused_once(round: int, meterline: Command, tmp_path: Path) -> None:
    """Several mistakes at once: one of their exit codes."""
    with replayable(round, "together"):
        rng = Random(f"flags {round}")
        flags = good_flags(meterline, tmp_path)
        for _ in range(COMMANDS):
            odd = {flag: rng.choice(list(FLAGS[flag])) for flag in rng.sample(list(FLAGS), rng.choice([2, 3]))}
            pairs = list({**flags, **odd}.items())
            rng.shuffle(pairs)
            said = meterline("rate", "--json", *(word for pair in pairs for word in pair))
            codes = {FLAGS[flag][value] for flag, value in odd.items()} - {0}
            if not codes:
                assert said.code == 0, said
                continue
            assert said.code in codes, said
            refused(said, said.code)


# --- files --------------------------------------------------------------------------------------


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


def a_socket(folder: Path) -> Path:
    place = os.path.relpath(folder / "socket")  # its path may have 107 characters
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(place)
    return folder / "socket"


def dangling(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "nowhere")
    return folder / "link"


def circular(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "link")
    return folder / "link"


NO_FILES = {
    "a FIFO": (fifo, "no regular file"),
    "a socket": (a_socket, "no regular file"),
    "a device": (lambda _: Path("/dev/zero"), "no regular file"),
    "a folder": (lambda folder: folder, "a folder"),
    "a link to nothing": (dangling, "no such file"),
    "a link to itself": (circular, "no such file"),
    "a file behind a file": (lambda folder: folder / "usage.ndjson" / "x", "no such file"),
    "a file that cannot be read": (lambda _: Path("/proc/self/mem"), "/proc/self/mem"),
}


@pytest.mark.parametrize(("make", "word"), NO_FILES.values(), ids=NO_FILES.keys())
def test_what_is_no_file_is_refused_and_waits_for_nothing(
    make: Any, word: str, meterline: Command, tmp_path: Path
) -> None:
    (tmp_path / "usage.ndjson").write_bytes(EVENT)
    said = meterline.rate(make(tmp_path), "--input", tmp_path / "usage.ndjson", "--json")
    refused(said, 2, word)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(meterline: Command, tmp_path: Path) -> None:
    (tmp_path / "usage.ndjson").write_bytes(EVENT)
    (tmp_path / "usage.ndjson").chmod(0)
    refused(meterline.rate(tmp_path / "usage.ndjson", "--json"), 2, "usage.ndjson", "ermission")


def test_a_file_whose_name_is_no_text_is_refused(meterline: Command, tmp_path: Path) -> None:
    (tmp_path / "\udcff.ndjson").write_bytes(EVENT)
    refused(meterline.rate(tmp_path / "*", "--json"), 2, "is not UTF-8", "\\udcff")


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "[", "*", "x" * 255, " ", "-", "a:b", "\\", "a\u0301", "%2F"])
def test_one_file_under_many_names_is_read_once(name: str, meterline: Command, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(EVENT + b"oops\n")
    words = ["--input", tmp_path / name, "--input", f"{tmp_path}/*"]
    report = json.loads(meterline.rate(tmp_path / name, *words, "--json").out)
    assert (report["records"], report["accepted"], report["rejected"]) == (2, 1, {"validate/malformed": 1})
    assert meterline("rejects", "list", "--clickhouse", meterline.url).code == 0
