"""Which run a stream is: what may go on from which state, who holds the database, and which run is the last."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from meterline.runners import jobs, stream
from meterline.runners.demo import RECEIVED, quickstart, usage_lines
from meterline.runners.flink.jobs import is_state_of
from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_files import load_catalog
from meterline.transforms import catalogs, clickhouse, lease, write
from meterline.transforms.catalogs import ChangedCatalogError
from meterline.transforms.lease import LeaseError, RunGuard, held
from tests.transforms.test_catalogs import with_another_meter

SUBSCRIPTION = "projects/p/subscriptions/usage"


@pytest.fixture
def prices() -> Catalog:
    return load_catalog(quickstart() / "catalog")


@pytest.fixture(autouse=True)
def forgotten() -> None:
    lease._guarding.cache_clear()
    catalogs._state.cache_clear()


@contextmanager
def taken(url: str, prices: Catalog, job: str, state_of: str | None = None, **more: Any) -> Iterator[stream.Stream]:
    """A run of which an engine took a job, perhaps one that goes on from the state of another."""
    known = state_of.__eq__ if state_of else None
    with stream.begun(SUBSCRIPTION, prices, url, state_of=known, **more) as begun:
        begun.taken(job)
        yield begun


def claims(url: str) -> int:
    sql = "SELECT count() AS n FROM leases FINAL WHERE name = 'rate_usage' AND expires_at > now64(3)"
    return int(clickhouse.query(url, sql)["n"][0].as_py())


def expire(url: str) -> None:
    clickhouse.command(url, "TRUNCATE TABLE leases")


def rate_a_file(url: str, prices: Catalog, folder: Path, **more: Any) -> None:
    file = folder / "usage.ndjson"
    file.write_bytes(usage_lines()[0])
    jobs.rate_files([str(file)], prices, url, now=RECEIVED, **more)


def test_a_run_goes_on_from_the_state_of_its_latest_job_alone(server: str, prices: Catalog) -> None:
    with taken(server, prices, "first") as one:
        pass
    with taken(server, prices, "second", state_of="first") as other:
        assert other.run_id == one.run_id
    with (
        pytest.raises(jobs.InputError, match="not that of job second, the latest of run"),
        taken(server, prices, "third", state_of="first"),
    ):
        pass
    with taken(server, prices, "third", state_of="second") as last:
        assert last.run_id == one.run_id


def test_what_another_run_stored_is_in_no_state(server: str, prices: Catalog, tmp_path: Path) -> None:
    with taken(server, prices, "first"):
        pass
    expire(server)
    # As the engine that keeps no state does, batch by batch: with the subscription as its input.
    rate_a_file(server, prices, tmp_path, recorded_as=(SUBSCRIPTION,))
    with (
        pytest.raises(jobs.InputError, match=r"is no stream of .* with a state"),
        taken(server, prices, "second", state_of="first"),
    ):
        pass


def test_a_run_that_no_engine_took_has_not_begun(server: str, prices: Catalog) -> None:
    with taken(server, prices, "first") as one:
        pass
    expire(server)
    with pytest.raises(OSError, match="job server"), stream.begun(SUBSCRIPTION, prices, server):
        raise OSError("the job server does not answer")
    assert claims(server) == 0
    with taken(server, prices, "second", state_of="first") as other:
        assert other.run_id == one.run_id


@pytest.mark.parametrize("changed", [{"horizon": timedelta(days=60)}, {"horizon": timedelta(days=3)}, {"shards": 64}])
def test_a_state_belongs_to_a_horizon_and_a_number_of_shards(
    server: str, prices: Catalog, changed: dict[str, Any]
) -> None:
    with taken(server, prices, "first"):
        pass
    with (
        pytest.raises(jobs.InputError, match=f"was made for events of at most 35 days and {stream.SHARDS} shards"),
        taken(server, prices, "second", state_of="first", **changed),
    ):
        pass


def test_what_was_received_before_keeps_its_catalog_when_the_run_goes_on(server: str, prices: Catalog) -> None:
    newer = with_another_meter(prices)
    with taken(server, prices, "first") as one:
        before = one.catalogs
    with taken(server, newer, "second", state_of="first") as other:
        assert other.catalogs == before
        assert before.as_of(before.since).digest == prices.digest
        assert before.as_of(before.since + 60_000_000).digest == newer.digest
    with taken(server, newer, "third", state_of="second") as last:
        assert last.catalogs == before
    assert clickhouse.query(server, "SELECT count() AS n FROM catalogs FINAL")["n"][0].as_py() == 2


def test_a_run_that_goes_on_adds_its_meters_up_as_before(server: str, prices: Catalog) -> None:
    with taken(server, prices, "first"):
        pass
    meter = next(one for one in prices.meters if one.aggregation == "sum")
    meters = [one.model_copy(update={"aggregation": "max"}) if one is meter else one for one in prices.meters]
    parts = {name: getattr(prices, name) for name in Catalog.model_fields}
    with (
        pytest.raises(ChangedCatalogError, match=rf"meter '{meter.id}' has another aggregation"),
        taken(server, Catalog(**parts | {"meters": tuple(meters)}), "second", state_of="first"),
    ):
        pass


def test_the_workers_hold_the_database_when_the_command_has_ended(server: str, prices: Catalog, tmp_path: Path) -> None:
    with taken(server, prices, "first"):
        pass
    assert claims(server) == 1
    time.sleep(2.1)  # Not young any more.
    with pytest.raises(LeaseError, match="another rate_usage job holds"):
        rate_a_file(server, prices, tmp_path)


def test_a_run_that_may_not_write_claims_nothing(server: str, prices: Catalog) -> None:
    with taken(server, prices, "first") as old:
        pass
    expire(server)
    with taken(server, prices, "second") as new:
        pass
    expire(server)
    with pytest.raises(LeaseError, match=f"run {new.run_id} has begun since"):
        RunGuard(server, old.run_id).check()
    assert claims(server) == 0
    RunGuard(server, new.run_id).check()
    assert claims(server) == 1


def test_the_last_run_is_the_last_whatever_clocks_say(server: str, prices: Catalog) -> None:
    with taken(server, prices, "first"):
        pass
    expire(server)
    # The clock of the machine that began it was ahead.
    clickhouse.command(server, "INSERT INTO runs SELECT * REPLACE (now64(3) + INTERVAL 1 DAY AS started_at) FROM runs")
    with taken(server, prices, "second") as new:
        pass
    RunGuard(server, new.run_id).check()
    assert jobs.next_start(server) > datetime.now(UTC) + timedelta(hours=23)


def test_an_insert_that_hung_is_not_tried_again_when_another_run_has_begun(
    server: str, prices: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    with taken(server, prices, "first") as old:
        pass
    guard, tries = RunGuard(server, old.run_id), []

    def hangs(table: str, rows: Any) -> None:
        tries.append(table)
        # So long that the claim has ended, and another run began.
        lease._guarding(guard)._next = 0.0
        expire(server)
        clickhouse.command(
            server, "INSERT INTO runs SELECT * REPLACE ('other' AS run_id, now64(3) AS started_at) FROM runs"
        )
        raise OSError("timed out")

    insert = write._InsertFn(server, {"rejects": lambda _: clickhouse.query(server, "SELECT 1 AS n")}, guard)
    insert.start_bundle()
    insert.process("anything")
    monkeypatch.setattr(clickhouse.connect(server), "insert_arrow", hangs)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(LeaseError, match="run other has begun since"):
        insert.finish_bundle()
    assert tries == ["rejects"]


def test_a_file_looks_for_an_archive_when_nobody_else_may_write(
    server: str, prices: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(jobs, "has_archive", lambda url: bool(seen.append(claims(url))))
    rate_a_file(server, prices, tmp_path)
    assert seen == [1]


def test_an_embedded_database_has_runs_in_order_too(database: str) -> None:
    with held(database, "rate_usage") as one:
        assert len(one.holder) == 32
    assert jobs.next_start(database) < datetime.now(UTC) + timedelta(minutes=1)


JOB = "5f2c0a9d3b7e4c1f8a6d0e9b2c4f7a11"


@pytest.mark.parametrize(
    ("path", "is_its"),
    [
        pytest.param(f"file:/flink/savepoints/savepoint-{JOB[:6]}-1c9c0f0b7e2a", True, id="a savepoint"),
        pytest.param(f"s3://b/savepoint-{JOB[:6]}-1c9c0f0b7e2a/", True, id="elsewhere"),
        pytest.param(f"file:/flink/checkpoints/{JOB}/chk-17", True, id="a retained checkpoint"),
        pytest.param(f"file:/flink/checkpoints/{JOB}/chk-17/_metadata", True, id="its file"),
        pytest.param("file:/flink/savepoints/savepoint-0f2c0a-1c9c0f0b7e2a", False, id="another's savepoint"),
        pytest.param(f"file:/flink/checkpoints/0{JOB[1:]}/chk-17", False, id="another's checkpoint"),
        pytest.param(f"file:/flink/checkpoints/{JOB}/shared", False, id="no checkpoint"),
        pytest.param("", False, id="nothing"),
    ],
)
def test_a_state_tells_whose_it_is(path: str, is_its: bool) -> None:
    assert is_state_of(path, JOB) is is_its
