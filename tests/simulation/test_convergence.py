"""Seeded worlds through the real job and Beam's in-process runner, compared with the auditor's books to the last digit.

It is slower than test_chaos.py, and fails nowhere, but has the real wiring, files and runner.
`METERLINE_RUNNER_SEEDS` says how many worlds are tried, `METERLINE_SEED` names the one to try alone.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.conftest import empty_tables

from .auditor import audit, void_record
from .delivery import Treatment, load, many_files, one_file, run
from .generator import World, generate
from .ledger import Row, compare, stored

SEEDS = range(int(os.environ.get("METERLINE_RUNNER_SEEDS", "16")))
if "METERLINE_SEED" in os.environ:
    SEEDS = range(int(os.environ["METERLINE_SEED"]), int(os.environ["METERLINE_SEED"]) + 1)
FEW = SEEDS[: max(1, len(SEEDS) // 10)]


@contextmanager
def replayable(seed: int, test: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        command = f"METERLINE_SEED={seed} .venv/bin/python -m pytest tests/simulation/test_convergence.py -k {test}"
        raise AssertionError(f"seed {seed}: {error}\nreplay it: {command}") from error


def world_of(seed: int, conflicts: bool) -> World:
    return generate(seed, events=60 + seed * 37 % 240, conflicts=conflicts)


@pytest.mark.parametrize("seed", SEEDS)
def test_any_delivery_gives_the_books(seed: int, database: str, tmp_path: Path) -> None:
    with replayable(seed, "any_delivery"):
        rng = Random(seed)
        world = world_of(seed, conflicts=False)
        catalog = load(world, tmp_path / "catalog")
        records, paths = many_files(world, tmp_path / "files", rng)
        books = audit(records, world.catalog, world.received, world.horizon)

        counters = run(world, catalog, paths, database, Treatment.random(rng))
        first = stored(database)
        compare(first, books, world.catalog, counters)

        # The same files once more, treated otherwise: all events are known, no row changes.
        counters = run(world, catalog, rng.sample(paths, len(paths)), database, Treatment.random(rng))
        again = stored(database)
        compare(again, books, world.catalog, counters, rated_before=True)
        assert again == first


@pytest.mark.parametrize("seed", SEEDS[::4])
def test_files_rated_one_after_the_other_give_the_books(seed: int, database: str, tmp_path: Path) -> None:
    with replayable(seed, "one_after_the_other"):
        rng = Random(seed)
        world = world_of(seed, conflicts=False)
        catalog = load(world, tmp_path / "catalog")
        records, paths = many_files(world, tmp_path / "files", rng)
        counters: Counter[str] = Counter()
        for path in paths:
            counters.update(run(world, catalog, [path], database, Treatment.random(rng)))
        books = audit(records, world.catalog, world.received, world.horizon)
        compare(stored(database), books, world.catalog, counters)


@pytest.mark.parametrize("seed", SEEDS[::2])
def test_of_conflicting_events_the_first_counts(seed: int, database: str, tmp_path: Path) -> None:
    with replayable(seed, "conflicting"):
        world = world_of(seed, conflicts=True)
        catalog = load(world, tmp_path / "catalog")
        how = Treatment.random(Random(seed))
        records, path = one_file(world, tmp_path)
        counters = run(world, catalog, [path], database, how)
        books = audit(records, world.catalog, world.received, world.horizon)
        compare(stored(database), books, world.catalog, counters)


@pytest.mark.parametrize("seed", SEEDS[::4])
def test_voids_give_the_books_whatever_came_before_them(seed: int, database: str, tmp_path: Path) -> None:
    with replayable(seed, "voids_give"):
        rng = Random(seed)
        world = world_of(seed, conflicts=False)
        catalog = load(world, tmp_path / "catalog")
        half = len(world.records) // 2
        first, path = one_file(replace(world, records=world.records[:half]), tmp_path / "first")
        rest, rest_path = one_file(replace(world, records=world.records[half:]), tmp_path / "rest")
        known = audit(first, world.catalog, world.received, world.horizon).accepted
        voids = [void_record(event) for event in rng.sample(known, len(known) // rng.randint(1, 6))]
        voids += [void_record(replace(event, id=f"no {event.id}"[:512])) for event in known[:1]]
        voids += [void_record(event, "again") for event in known[:2]]
        rng.shuffle(voids)
        voids_path = tmp_path / "voids.ndjson"
        voids_path.write_bytes(b"".join(void + b"\n" for void in voids))
        books = audit([*first, *voids, *rest], world.catalog, world.received, world.horizon)
        tables = []
        for order in ([path, voids_path, rest_path], [path, rest_path, voids_path]):
            empty_tables(database)
            counters: Counter[str] = Counter()
            for one in order:
                counters.update(run(world, catalog, [one], database, Treatment.random(rng)))
            compare(stored(database), books, world.catalog, counters)
            run(world, catalog, [path], database, Treatment.random(rng))
            tables.append(stored(database)["line_items"])
        assert tables[0] == tables[1]


@pytest.mark.parametrize("seed", FEW)
def test_no_treatment_changes_a_row(seed: int, database: str, tmp_path: Path) -> None:
    with replayable(seed, "treatment"):
        world = world_of(seed, conflicts=True)
        catalog = load(world, tmp_path / "catalog")
        _, path = one_file(world, tmp_path)
        rows = []
        for how in (
            Treatment(),
            Treatment(vectorised=False),
            Treatment(shards=3, block_bytes=300),
            Treatment(shards=7, block_bytes=4000, panes_apart=True),
        ):
            empty_tables(database)
            run(world, catalog, [path], database, how)
            rows.append({table: _comparable(found) for table, found in stored(database).items()})
        assert rows[0]["line_items"]
        for other in rows[1:]:
            assert other == rows[0]


def _comparable(rows: list[Row]) -> list[Row]:
    """Messages may be worded otherwise, and each run has its own id."""
    return [{name: value for name, value in row.items() if name not in ("message", "run_id")} for row in rows]
