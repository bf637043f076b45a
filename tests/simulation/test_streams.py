"""The whole job as a stream, on Beam's in-process runner, over a database that holds what earlier runs archived.

That runner's counters leave out most bundles of a stream, so they are not looked at here. It fails nowhere;
test_chaos.py plays streams that do. `METERLINE_RUNNER_SEEDS` says how many worlds are tried.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_pipeline import TestPipeline as InProcess
from apache_beam.testing.test_stream import TestStream as Stream
from apache_beam.typehints.decorators import no_annotations
from apache_beam.utils.timestamp import Timestamp

from meterline.pipelines import rate_usage
from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_files import load_catalog
from meterline.schemas.records import Reject
from meterline.transforms import clickhouse
from meterline.transforms.blocks import Block, Records
from meterline.transforms.read import Read
from tests.conftest import empty_tables

from .auditor import audit
from .delivery import Treatment, load, microseconds, one_file, run
from .generator import World, generate, write_catalog
from .ledger import Row, compare, stored

SEEDS = range(max(2, int(os.environ.get("METERLINE_RUNNER_SEEDS", "16")) // 4))
HORIZON = timedelta(days=35)

# A step of a stream: records that come together, the time to which the watermark advances, or seconds that pass.
Step = list[bytes] | datetime | int


@dataclass
class Messages(beam.PTransform):
    """What a stream yields, each message received at one time."""

    steps: Sequence[Step]
    received: datetime

    @no_annotations
    def expand(self, begin: beam.pvalue.PBegin) -> Read:
        source, position = Stream(), 0
        for step in self.steps:
            match step:
                case datetime():
                    source = source.advance_watermark_to(Timestamp.from_utc_datetime(step))
                case int():
                    source = source.advance_processing_time(step)
                case records:
                    positions = np.arange(position, position := position + len(records))
                    block = Block(Records.of(records), positions, "stream", microseconds(self.received))
                    source = source.add_elements([beam.window.TimestampedValue(block, self.received.timestamp())])
        # Panes that were not due yet would keep the runner waiting for ever.
        messages = begin | source.advance_processing_time(3_600).advance_watermark_to_infinity()
        blocks = messages | "Blocks" >> beam.Map(lambda block: block).with_output_types(Block)
        rejects = messages | "Rejects" >> beam.FlatMap(lambda _: ()).with_output_types(Reject)
        return Read(blocks, rejects)


def play(url: str, catalog: Catalog, messages: Messages, name: str) -> None:
    """A stream without state, until no message comes any more."""
    began = pa.array([datetime.now(UTC)], pa.timestamp("ms", tz="UTC"))
    clickhouse.insert(url, "runs", pa.table({"run_id": [name], "started_at": began}))
    options = rate_usage.Options((), catalog, url, 0, HORIZON, shards=2, source=messages, streaming=True, run_id=name)
    with InProcess(options=PipelineOptions(["--streaming"])) as pipeline:
        rate_usage.build(pipeline, options)


# --- a case that can be followed by hand ----------------------------------------------------------------

RECEIVED = datetime(2026, 10, 20, tzinfo=UTC)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    tiers = [{"up_to": "10", "unit_price": "1"}, {"up_to": "20", "unit_price": "0.5"}, {"unit_price": "0.1"}]
    version = {
        "version": "v1",
        "effective_from": "2020-01-01T00:00:00Z",
        "prices": {"calls": {"model": "graduated", "tiers": tiers}},
    }
    subscription = {"id": "sub", "account": "acme", "plan": "plan", "start": "2020-01-01T00:00:00Z"}
    write_catalog(
        {
            "meters": [{"id": "calls", "event_type": "call", "aggregation": "sum", "unit": "call", "value": "n"}],
            "rate_cards": [{"id": "card", "currency": "EUR", "versions": [version]}],
            "plans": [{"id": "plan", "rate_card": "card", "charges": [{"id": "calls", "meter": "calls"}]}],
            "accounts": [{"id": "acme", "subjects": ["user:1"]}],
            "subscriptions": [{**subscription, "time_zone": "UTC"}],
        },
        tmp_path / "catalog",
    )
    return load_catalog(tmp_path / "catalog")


def call(day: int, hour: int, n: int) -> bytes:
    name = {"specversion": "1.0", "id": f"{day}.{hour}", "source": "/s", "type": "call", "subject": "user:1"}
    time = f"2026-10-{day:02}T{hour:02}:30:00Z"
    return json.dumps({**name, "time": time, "data": {"n": n}}).encode()


def rate_files(url: str, catalog: Catalog, file: Path, records: Iterable[bytes]) -> dict[str, int]:
    file.write_bytes(b"".join(record + b"\n" for record in records))
    world = World({}, [], RECEIVED, HORIZON)
    return run(world, catalog, [file], url, Treatment())


def accepted(url: str, run_id: str) -> list[str]:
    """The events that a run archived, twice where it did so twice."""
    found = clickhouse.query(
        url, "SELECT id FROM usage_events WHERE run_id = {run:String} ORDER BY id", {"run": run_id}
    )
    return list(found["id"].to_pylist())


def items(url: str) -> list[tuple[str, str, str, int]]:
    """Of each line item: day and hour, the quantities it goes from and to, the amount and the revision."""
    return [
        (
            f"{row['window_start']:%-d.%-H}",
            f"{row['quantity_from'].normalize():f}–{row['quantity_to'].normalize():f}",
            f"{row['amount'].normalize():f}",
            row["revision"],
        )
        for row in sorted(stored(url)["line_items"], key=lambda row: row["window_start"])
    ]


def same(tables: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """All but what names runs and places of records."""
    ours = ("run_id", "received_time", "origin", "position", "reject_id")
    return {
        table: sorted(({name: row[name] for name in row if name not in ours} for row in rows), key=str)
        for table, rows in tables.items()
    }


def test_a_stream_goes_on_where_the_archive_stands(database: str, catalog: Catalog, tmp_path: Path) -> None:
    archived = [call(2, 1, 4), call(2, 5, 4), call(9, 0, 4)]
    rate_files(database, catalog, tmp_path / "first", archived)
    assert items(database) == [("2.1", "0–4", "4", 1), ("2.5", "4–8", "4", 2), ("9.0", "8–12", "3", 3)]

    # What is archived comes again, alone and with something new: the tiers go on behind its 12 calls.
    again = [[archived[0]], 60, [archived[2], call(9, 3, 8)], 60, [archived[1]], 60]
    play(database, catalog, Messages(again, RECEIVED), "stream")
    assert accepted(database, "stream") == ["9.3"]
    known = items(database)
    assert known == [("2.1", "0–4", "4", 1), ("2.5", "4–8", "4", 2), ("9.0", "8–12", "3", 3), ("9.3", "12–20", "4", 4)]

    # Another stream. Late usage moves what comes behind it: in the archive, in its own panes, and once more later.
    late = [[call(9, 5, 2)], 60, [call(2, 4, 3), archived[0]], 60, RECEIVED + timedelta(days=30), [call(2, 0, 1)], 60]
    play(database, catalog, Messages(late, RECEIVED), "another stream")
    assert accepted(database, "another stream") == ["2.0", "2.4", "9.5"]
    assert items(database) == [
        ("2.0", "0–1", "1", 1),
        ("2.1", "1–5", "4", 2),
        ("2.4", "5–8", "3", 3),
        ("2.5", "8–12", "3", 4),
        ("9.0", "12–16", "2", 5),
        ("9.3", "16–24", "2.4", 6),
        ("9.5", "24–26", "0.2", 7),
    ]

    # The same as one run over files that knows it all.
    streamed = stored(database)
    empty_tables(database)
    everything = [*archived, call(9, 3, 8), call(9, 5, 2), call(2, 4, 3), call(2, 0, 1)]
    rate_files(database, catalog, tmp_path / "all", everything)
    assert same(stored(database)) == same(streamed)


def test_a_run_over_files_goes_on_where_a_stream_stood(database: str, catalog: Catalog, tmp_path: Path) -> None:
    play(database, catalog, Messages([[call(2, 1, 4)], 60, [call(2, 5, 8)], 60], RECEIVED), "stream")
    counters = rate_files(database, catalog, tmp_path / "rest", [call(2, 1, 4), call(2, 3, 4)])
    assert (counters["deduplicate/accepted"], counters["deduplicate/duplicate"]) == (1, 1)
    assert items(database) == [("2.1", "0–4", "4", 1), ("2.3", "4–8", "4", 2), ("2.5", "8–16", "5", 3)]


# --- worlds ---------------------------------------------------------------------------------------------


def steps(rng: Random, received: datetime, records: list[bytes]) -> list[Step]:
    """Records in bundles, while time passes: at most as much as a message may wait."""
    found: list[Step] = []
    watermark, latest = received - timedelta(days=1), received + rate_usage.RETENTION
    while records:
        size = rng.choice([1, 5, 20])
        found.append(records[:size])
        records = records[size:]
        if rng.random() < 0.6:
            found.append(rng.randint(1, 10))
        if rng.random() < 0.3:
            watermark = min(watermark + timedelta(hours=rng.choice([1, 30, 300])), latest)
            found.append(watermark)
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_files_and_streams_in_turn_give_the_books(seed: int, database: str, tmp_path: Path) -> None:
    """What one has archived comes to the next ones again."""
    rng = Random(f"streams {seed}")
    world = replace(generate(seed, events=60, conflicts=False), horizon=HORIZON)
    prices = load(world, tmp_path / "catalog")
    cuts = sorted(rng.sample(range(1, len(world.records)), 3))
    parts = [world.records[start:end] for start, end in zip([0, *cuts], [*cuts, None])]
    came: list[bytes] = []
    kinds = rng.sample(["files", "stream", "stream", "files"], 4)
    for number, (kind, part) in enumerate(zip(kinds, parts)):
        mine = [*part, *rng.sample(came, len(came) // 4), rng.choice(world.records)]
        rng.shuffle(mine)
        if kind == "stream":
            messages = Messages(steps(rng, world.received, mine), world.received)
            play(database, prices, messages, f"stream {number}")
        else:
            mine, path = one_file(replace(world, records=mine), tmp_path / str(number))
            run(world, prices, [path], database, Treatment.random(rng))
        came += mine
    books = audit(came, world.catalog, world.received, world.horizon)
    compare(stored(database), books, world.catalog)


def test_the_checks_above_can_fail(
    database: str, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgets(self: Any, *args: Any) -> Any:
        return iter(())

    monkeypatch.setattr("meterline.transforms.recall._RecallFn.process", forgets)
    with pytest.raises(AssertionError):
        test_a_stream_goes_on_where_the_archive_stands(database, catalog, tmp_path)
