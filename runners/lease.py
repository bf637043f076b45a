"""One rating job, and one invoice job, per database at a time: a lease in ClickHouse, renewed while the job runs.

Two jobs with different inputs would each know only half. ClickHouse has no compare-and-set, so a job claims first and
looks then: it holds the lease only if it sees no other claim. Of two jobs that claim at once at least one sees the
other, as each looks after its own claim is stored; both may give way, and try again after a random pause.

An embedded database needs none: its folder serves one process.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from meterline.transforms import clickhouse

SECONDS = 60
_TRIES = 3
# A claim this young may be that of a job which is about to give way.
_YOUNG_SECONDS = 2


class LeaseError(clickhouse.DatabaseError):
    """Another job holds the lease, or this one has lost it."""


@dataclass
class Lease:
    """A claim on a database.

    Args:
      name: Of the job.
      seconds: How long a claim lasts without renewal.
    """

    url: str
    name: str
    seconds: float = SECONDS
    holder: str = field(default_factory=lambda: uuid.uuid4().hex)
    _version: int = 0
    _until: float = 0.0

    def acquire(self) -> None:
        """Raises LeaseError when another job holds it."""
        for attempt in range(_TRIES):
            self.renew()
            others = self._others()
            if not others:
                return
            self.release()
            if attempt + 1 < _TRIES and all(other["age"] < _YOUNG_SECONDS for other in others):
                time.sleep(random.uniform(0.1, 1.0))
                continue
            other = others[0]
            raise LeaseError(
                f"another {self.name} job holds {clickhouse.redacted(self.url)}: process {other['process']} on "
                f"{other['host']}, since {other['started_at']:%Y-%m-%d %H:%M:%S} UTC. Wait until it is done; if it "
                f"died, its lease ends in {other['remaining']} s"
            )

    def renew(self) -> None:
        # From before the statement is sent, so that this job never believes in its lease longer than the server does.
        sent = time.monotonic()
        self._store(f"now64(3) + INTERVAL {int(self.seconds * 1000)} MILLISECOND")
        self._until = sent + self.seconds

    def release(self) -> None:
        self._until = 0.0
        self._store("now64(3) - INTERVAL 1 SECOND")

    def check(self) -> None:
        """Raises LeaseError when the lease was not renewed in time: another job may write by now."""
        if time.monotonic() >= self._until:
            raise LeaseError(
                f"this job lost its lease on {clickhouse.redacted(self.url)}, which could not be renewed in time; "
                "nothing more was written. Run it again: what it stored stays, and is completed"
            )

    def _store(self, expires: str) -> None:
        self._version += 1
        clickhouse.command(
            self.url,
            "INSERT INTO leases SELECT {name:String}, {holder:String}, {host:String}, {process:UInt32}, "
            f"{self._started()}, {expires}, {{version:UInt64}}",
            {**self._who(), "host": socket.gethostname(), "process": os.getpid(), "version": self._version},
        )

    def _started(self) -> str:
        if self._version == 1:
            return "now64(3)"
        return "(SELECT min(started_at) FROM leases WHERE name = {name:String} AND holder = {holder:String})"

    def _who(self) -> dict[str, Any]:
        return {"name": self.name, "holder": self.holder}

    def _others(self) -> list[dict[str, Any]]:
        sql = (
            "SELECT host, process, started_at, dateDiff('second', started_at, now64(3)) AS age, "
            "dateDiff('second', now64(3), expires_at) + 1 AS remaining FROM leases FINAL "
            "WHERE name = {name:String} AND holder != {holder:String} AND expires_at > now64(3) ORDER BY started_at"
        )
        return clickhouse.query(self.url, sql, self._who()).to_pylist()


@contextmanager
def held(url: str, name: str, seconds: float = SECONDS) -> Iterator[None]:
    """Hold a database's lease, renewing it three times in its life; every insert in between checks it.

    Raises:
      LeaseError: another job holds it.
    """
    if url.startswith("chdb:"):
        yield
        return
    lease = Lease(url, name, seconds)
    lease.acquire()
    over = threading.Event()

    def renew() -> None:
        while not over.wait(seconds / 3):
            try:
                lease.renew()
            except clickhouse.DatabaseError:
                continue  # Tried again, until `check` stops the job.

    renewing = threading.Thread(target=renew, daemon=True)
    renewing.start()
    with clickhouse.guarded_by(lease.check):
        try:
            yield
        finally:
            over.set()
            renewing.join()
            lease.release()
