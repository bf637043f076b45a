"""Fixtures that several tests share."""

from __future__ import annotations

import shutil
import tempfile
import zoneinfo
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from meterline.transforms import clickhouse
from tests.command import Command
from tests.served import served

# The oracles of the tests read time zones as the product does: from the pinned tzdata, not from the system.
zoneinfo.reset_tzpath(to=[])


# Machines that run tests are busy: how long one example takes says nothing.
settings.register_profile("meterline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("meterline")


@pytest.fixture(scope="session")
def clickhouse_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One embedded database for the whole test process: chdb opens only one folder in a process.

    It lies in memory where there is room: emptying tables of many partitions costs ten times as much on a disk.
    """
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > 1 << 30:
        folder = Path(tempfile.mkdtemp(prefix="meterline-", dir=memory))
    else:
        folder = tmp_path_factory.mktemp("clickhouse")
    url = f"chdb://{folder}"
    clickhouse.ready(url)
    yield url
    clickhouse.connect(url).close()
    for _ in range(3):  # The engine may still write.
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database(clickhouse_url: str) -> str:
    """The URL of a database whose tables are empty."""
    empty_tables(clickhouse_url)
    return clickhouse_url


def empty_tables(url: str) -> None:
    client = clickhouse.connect(url)
    for (name,) in client.query("SELECT name FROM system.tables WHERE database = currentDatabase()").result_rows:
        if name != "schema_migrations":
            client.command(f"TRUNCATE TABLE {name}")


@pytest.fixture
def server(database: str) -> Iterator[str]:
    """The same database behind ClickHouse's HTTP interface."""
    with served(database) as url:
        yield url


@pytest.fixture
def meterline(database: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(database, monkeypatch, capfd)
