"""What a stream on Flink stores under kills of all its parts is what one clean run over the same events stores.

METERLINE_FIRE_SEED replays the kills of a run, METERLINE_FIRE_KILLS (those that count) and METERLINE_FIRE_EVENTS make a
smaller one, and METERLINE_FIRE_JSON names a file for the times that recoveries took.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from random import SystemRandom

import pytest

from tests.flink.conftest import FlinkCommand
from tests.flink.emulator import Emulator
from tests.flink.failing import ClickHouse, Proxy
from tests.flink.fire import Fire, Kill, Publishing, Stream, eventually, meterline, schedule, show, write
from tests.flink.usage import HORIZON, Usage, now, usage, write_catalog

SEED = os.environ.get("METERLINE_FIRE_SEED") or str(SystemRandom().randrange(10**6))
KILLS = int(os.environ.get("METERLINE_FIRE_KILLS", "20"))
EVENTS = int(os.environ.get("METERLINE_FIRE_EVENTS", "200000"))

# All columns but those that say which attempt it was, and which of several equal copies came first.
TABLES = {
    "line_items": "SELECT * FROM line_items FINAL",
    "usage_events": "SELECT * EXCEPT (run_id, received_time, payload), sipHash64(payload) FROM usage_events FINAL",
    "rating_keys": "SELECT * FROM rating_keys FINAL",
    "rejects": "SELECT DISTINCT stage, reason, payload FROM rejects FINAL",
}


@pytest.fixture
def clickhouse(tmp_path: Path, flink: FlinkCommand) -> Iterator[ClickHouse]:
    server = ClickHouse(tmp_path / "clickhouse", flink.environment)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def test_under_fire(
    flink: FlinkCommand,
    emulator: Emulator,
    clickhouse: ClickHouse,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    print(f"\nMETERLINE_FIRE_SEED={SEED} METERLINE_FIRE_KILLS={KILLS} METERLINE_FIRE_EVENTS={EVENTS}")
    began, moment, earlier = time.monotonic(), now(), list[bytes]()
    parts = [
        usage(f"{SEED}-{name}", events, moment, earlier)
        for name, events in (("fire", EVENTS), ("lost", EVENTS // 10), ("resumed", EVENTS // 10))
    ]
    files = [part.write(tmp_path / f"{number}.ndjson") for number, part in enumerate(parts)]
    catalog, topic, producers = write_catalog(tmp_path / "catalog"), emulator.topic(), Proxy(emulator.address)
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", producers.address)
    stream = Stream(flink, topic, emulator.address, clickhouse, catalog)
    kills, further = list[Kill](), dict[str, float]()

    def equals_the_batch(first: int) -> None:
        """What is stored is what one run over the first parts stores."""
        folder, environment = tmp_path / f"batch-{first}", flink.environment
        inputs = [word for file in files[:first] for word in ("--input", file)]
        bounds = ["--now", (moment + timedelta(hours=1)).isoformat(), "--max-age-days", HORIZON.days]
        database = ["--clickhouse", f"chdb://{folder}"]
        rated = meterline("rate", *inputs, "--catalog", catalog, *bounds, *database, environment=environment)
        assert rated.returncode == 0, rated.stdout + rated.stderr
        for table, sql in TABLES.items():
            batch = rows(sql, f"chdb://{folder}", environment)
            found = rows(sql, clickhouse.url, environment)
            extra, missing = sorted(set(found) - set(batch)), sorted(set(batch) - set(found))
            assert (len(found), extra[:3], missing[:3]) == (len(batch), [], []), (
                f"{table}: {len(extra)} rows too many, {len(missing)} missing of {len(batch)}"
            )
        known = clickhouse.ask("SELECT uniqExact(payload) FROM rejects")
        assert known == str(len(set.union(*(part.rejected for part in parts[:first]))))
        audited = meterline("audit", "--catalog", catalog, "--clickhouse", clickhouse.url, environment=environment)
        assert audited.returncode == 0, audited.stdout + audited.stderr

    try:
        further["first start"] = stream.start()
        under_fire(stream, parts[0], producers, kills)
        stream.settle(parts[0].accepted)
        print(f"{time.monotonic() - began:.0f} s: all is stored")
        equals_the_batch(1)
        print(f"{time.monotonic() - began:.0f} s: as by the batch")

        # The state is lost.
        publishing = Publishing(topic.path, parts[1], rounds=1, round_seconds=12)
        publishing.start()
        eventually(lambda: stream.stored() > parts[0].accepted + parts[1].accepted // 3, "some of it is stored")
        flink("cancel")
        shutil.rmtree(flink.folder / "checkpoints" / stream.job)
        further["started without state"] = stream.start()
        publishing.end()
        stream.settle(sum(part.accepted for part in parts[:2]))
        print(f"{time.monotonic() - began:.0f} s: all is stored, though the state was lost")
        equals_the_batch(2)

        # It is stopped, and goes on.
        publishing = Publishing(topic.path, parts[2], rounds=1, round_seconds=12)
        publishing.start()
        eventually(lambda: stream.stored() > sum(part.accepted for part in parts[:2]), "some of it is stored")
        place = flink("stop").splitlines()[-1]
        further["resumed"] = stream.start(resume=place)
        assert stream.restored == 1
        publishing.end()
        stream.settle(sum(part.accepted for part in parts))
        equals_the_batch(3)
        flink("stop")
        assert emulator.waiting(topic) == []
        print(f"{time.monotonic() - began:.0f} s: done")
    finally:
        print(show(kills, further, SEED))
        if file := os.environ.get("METERLINE_FIRE_JSON"):
            write(file, kills, further, SEED, EVENTS)
        flink.cancel_all()
        stream.proxy.cut()
        producers.cut()


def under_fire(stream: Stream, part: Usage, producers: Proxy, kills: list[Kill]) -> None:
    """Publish a part while all of the stream's parts are killed."""
    kinds = schedule(KILLS, SEED)
    publishing = Publishing(stream.topic.path, part, rounds=len(kinds))
    fire = Fire(stream, publishing, producers, SEED)
    eventually(lambda: stream.checkpoint, "the first checkpoint completes")
    publishing.start()
    for number, (kind, slow) in enumerate(kinds, 1):
        began = time.monotonic()
        kills.append(fire.kill(number, kind, slow))
        publishing.rounds -= 1
        seconds = time.monotonic() - began
        publishing.round_seconds += (seconds - publishing.round_seconds) / 3
        print(f"{number}: {kind}{', slow' if slow else ''}: {seconds:.0f} s", flush=True)
        assert kills[-1].stored_before > 0
        assert kills[-1].checkpoints_before > 1
    publishing.end()
    assert sum(one.counts for one in kills) >= KILLS


def rows(sql: str, url: str, environment: dict[str, str]) -> list[str]:
    asked = meterline("query", sql, "--clickhouse", url, "--format", "tsv", environment=environment)
    assert asked.returncode == 0, asked.stderr
    return asked.stdout.splitlines()
