"""One job per database: the second is told who holds it, and a holder that lost its lease writes nothing more."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from meterline.runners.demo import RECEIVED, quickstart, usage_lines
from meterline.runners.jobs import rate_files
from meterline.schemas.catalog_files import load_catalog
from meterline.transforms import clickhouse
from meterline.transforms.lease import Lease, LeaseError, held
from meterline.transforms.write import reject_rows


def test_a_second_job_is_refused_and_told_who_holds_the_database(server: str, tmp_path: Path) -> None:
    file = tmp_path / "usage.ndjson"
    file.write_bytes(usage_lines()[0])
    catalog = load_catalog(quickstart() / "catalog")
    with held(server, "rate_usage"):
        time.sleep(2.1)  # Not young any more: refused at once.
        with pytest.raises(
            LeaseError, match=rf"process {os.getpid()} on .*, since .* UTC\. Wait until it is done"
        ) as told:
            rate_files([str(file)], catalog, server, now=RECEIVED)
        assert "secret" not in str(told.value)
    rate_files([str(file)], catalog, server, now=RECEIVED)


def test_a_lease_that_is_not_renewed_ends(server: str) -> None:
    dead = Lease(server, "rate_usage", seconds=0.5)
    dead.acquire()
    time.sleep(0.6)
    with pytest.raises(LeaseError, match="lost its lease"):
        dead.check()
    with held(server, "rate_usage"):
        pass


def test_a_job_that_lost_its_lease_stops_writing(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = reject_rows([])
    with held(server, "rate_usage", seconds=0.6):
        clickhouse.insert(server, "rejects", rows)
        time.sleep(1.0)
        clickhouse._CHECKS[-1]()  # renewed meanwhile

        def broken(*_: object) -> None:
            raise clickhouse.DatabaseError("gone")

        with monkeypatch.context() as patch:
            patch.setattr(Lease, "_store", broken)
            time.sleep(0.9)
            with pytest.raises(LeaseError, match="lost its lease"):
                clickhouse._CHECKS[-1]()


def test_of_jobs_that_start_at_once_never_two_hold_the_lease(server: str) -> None:
    holding: list[int] = []
    most: list[int] = []

    def work() -> None:
        lease = Lease(server, "rate_usage")
        try:
            lease.acquire()
        except LeaseError:
            return
        holding.append(1)
        most.append(len(holding))
        time.sleep(0.05)
        holding.pop()
        lease.release()

    for _ in range(3):
        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert max(most) == 1


def test_an_embedded_database_needs_no_lease(database: str) -> None:
    with held(database, "rate_usage"), held(database, "rate_usage"):
        pass
    assert clickhouse.query(database, "SELECT count() AS n FROM leases").column("n")[0].as_py() == 0
