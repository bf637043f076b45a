"""A fuzzer over the whole command `meterline rate --input`: mutated events, and files damaged in every way.

What is counted: an input is a record with a verdict of its own, which the auditor of the simulation gives (rejected,
with which reason, or accepted, or a duplicate), a file, a catalog or a command line (the latter two in
`test_catalogs_and_flags.py`). `METERLINE_FUZZ` says how many mutated records there are, 10,000 by default; for each
500 of them come 12 files. `METERLINE_FUZZ_ROUND` names one round to try alone.

After each run: it ended with the right code, printed no traceback and one JSON document; each rejected record is in
`rejects` with its reason, place and bytes, each accepted one in the archive with its bytes, nothing else is there, the
line items are those of the auditor, and the run's conservation table adds up.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from meterline.transforms import read
from tests.command import Command
from tests.simulation import ledger
from tests.simulation.auditor import audit
from tests.simulation.delivery import FORMATS
from tests.simulation.generator import World, generate, write_catalog

from . import ROUNDS, replayable
from .mutations import mutated, spoilt_file
from .reader import Record
from .reader import read as read_file

RECORDS = 500
FILES = 12
NAMES = [
    "usage",
    "a b",
    "[1]",
    "it's {x} *",
    "ünï",
    "-",
    "?",
    "#%20",
    "a\nb",
    "\x1b[31m",
    "x" * 200,
    "x.gz",
    "$(id)",
    "🦜",
    "\\",
    "~",
]
CUTS = [(8 << 20, 64 << 20), (8 << 20, 64 << 20), (700, 64 << 20), (5000, 64 << 20), (700, 2000)]


def some_world(round: int, records: int) -> World:
    return generate(round, events=records, bad=0.1, conflicts=True)


@pytest.mark.parametrize("round", ROUNDS)
def test_each_mutated_record_has_its_verdict(round: int, meterline: Command, tmp_path: Path) -> None:
    with replayable(round, "mutated_record"):
        rng = Random(f"records {round}")
        world = some_world(round, RECORDS // 5)
        spoilt = [mutated(rng, rng.choice(world.records)) for _ in range(RECORDS)]
        records = world.records + spoilt
        rng.shuffle(records)
        folder = tmp_path / "files"
        folder.mkdir()
        for number, start in enumerate(range(0, len(records), RECORDS // 2)):
            part, form = records[start : start + RECORDS // 2], rng.choice(list(FORMATS))
            (folder / f"{number}.{form}").write_bytes(FORMATS[form](part))
        check_run(rng, world, folder, meterline, tmp_path)


@pytest.mark.parametrize("round", ROUNDS)
def test_each_damaged_file_is_read_as_far_as_it_goes(round: int, meterline: Command, tmp_path: Path) -> None:
    with replayable(round, "damaged_file"):
        rng = Random(f"files {round}")
        world = some_world(1000 + round, 60)
        folder = tmp_path / "files"
        folder.mkdir()
        for number in range(FILES):
            records = rng.sample(world.records, rng.choice([1, 3, 20]))
            text = FORMATS[rng.choice(["ndjson", "open", "crlf", "array"])](records)
            (folder / f"{rng.choice(NAMES)}{number}").write_bytes(spoilt_file(rng, text))
        check_run(rng, world, folder, meterline, tmp_path)


def check_run(rng: Random, world: World, folder: Path, meterline: Command, tmp_path: Path) -> None:
    """Rate the files of a folder, and look where each record went."""
    write_catalog(world.catalog, tmp_path / "catalog")
    words = ["--catalog", tmp_path / "catalog", "--clickhouse", meterline.url, "--now", world.received.isoformat()]
    if world.horizon:
        words += ["--max-age-days", world.horizon.days]
    fail = rng.random() < 0.5
    block, part = rng.choice(CUTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "BLOCK_BYTES", block)
        patch.setattr(read, "PART_BYTES", part)
        said = meterline("rate", "--input", f"{folder}/*", *words, "--json", *["--fail-on-rejects"] * fail)
    assert said.code in (0, 4), said.err
    report = json.loads(said.out)
    tables = ledger.stored(meterline.url)
    records, rests = expected(folder, tables["rejects"])
    assert said.code == (4 if fail and (report["rejected"] or report["rejected_rating_keys"]) else 0)
    check_tables(report, tables, records, rests, world)


def expected(folder: Path, rejects: list[dict[str, Any]]) -> tuple[list[Record], list[Record]]:
    """What the files hold, in the order of their names."""
    told = {row["origin"]: (row["position"], len(row["payload"])) for row in rejects if row["stage"] == "read"}
    records: list[Record] = []
    rests = []
    for path in sorted(map(str, folder.iterdir())):
        found, rest = read_file(path, Path(path).read_bytes(), told.get(path))
        records += found
        rests += [rest] if rest is not None else []
    return records, rests


def check_tables(
    report: dict[str, Any],
    tables: dict[str, list[dict[str, Any]]],
    records: Sequence[Record],
    rests: Sequence[Record],
    world: World,
) -> None:
    books = audit(records, world.catalog, world.received, world.horizon)
    wanted = Counter(
        (stage, reason, record.origin, record.position, bytes(record))  # type: ignore[attr-defined]
        for reason, stage, record in books.rejects
        if stage != "rate"
    )
    wanted.update(("read", "unreadable", rest.origin, rest.position, bytes(rest)) for rest in rests)
    rejects = [row for row in tables["rejects"] if row["stage"] != "rate"]
    names = ("stage", "reason", "origin", "position", "payload")
    ledger._same("rejects", [tuple(row[name] for name in names) for row in rejects], wanted.elements())
    ledger._same(
        "accepted",
        [row["payload"] for row in tables["usage_events"]],
        [bytes(event.payload) for event in books.accepted],
    )
    came = {
        "records": len(records) + len(rests),
        "accepted": len(books.accepted),
        "duplicates": books.duplicates,
        "rejected": dict(Counter(f"{stage}/{reason}" for stage, reason, *_ in wanted.elements())),
        "adds_up": True,
    }
    assert {name: report[name] for name in came} == came
    keys_rejected = sum(stage == "rate" for _, stage, _ in books.rejects)
    assert report["rejected_rating_keys"] == keys_rejected
    if not keys_rejected:  # Such a key has no line items for the events that it counts.
        counters = {"validate/records": len(records), **report["rejected"]}
        counters |= {"deduplicate/accepted": report["accepted"], "deduplicate/duplicate": report["duplicates"]}
        ledger.compare(
            {**tables, "rejects": [r for r in rejects if r["stage"] != "read"]}, books, world.catalog, counters
        )
