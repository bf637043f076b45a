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
from functools import lru_cache
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
      holder: Id of the run. Its processes share the claim.
      outlives: Whether the claim stays when this process is done, for others of the run.
    """

    url: str
    name: str
    seconds: float = SECONDS
    holder: str = field(default_factory=lambda: uuid.uuid4().hex)
    outlives: bool = False
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
        clickhouse.command(
            self.url,
            "INSERT INTO leases SELECT {name:String}, {holder:String}, {host:String}, {process:UInt32}, "
            "ifNull((SELECT minOrNull(started_at) FROM leases WHERE name = {name:String} AND holder = {holder:String}),"
            f" now64(3)), {expires}, {{version:UInt64}}",
            {**self._who(), "host": socket.gethostname(), "process": os.getpid(), "version": time.time_ns()},
        )

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
def held(url: str, name: str, seconds: float = SECONDS, holder: str = "") -> Iterator[Lease]:
    """Hold a database's lease, renewing it three times in its life; every insert in between checks it.

    Args:
      holder: Id of the run.

    Raises:
      LeaseError: another job holds it.
    """
    lease = Lease(url, name, seconds, holder or uuid.uuid4().hex)
    if url.startswith("chdb:"):
        yield lease
        return
    lease.acquire()
    _await_inserts(url)
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
            yield lease
        finally:
            over.set()
            renewing.join()
            if not lease.outlives:
                lease.release()


_INSERTING = """
SELECT count() AS inserts FROM system.processes
WHERE query_kind = 'Insert' AND current_database = currentDatabase() AND position(query, 'usage_events') > 0
"""


def _await_inserts(url: str) -> None:
    """Wait for what a job that died has sent to the archive: it is stored by now, or never will be.

    Raises:
      LeaseError: an insert does not end.
    """
    over = time.monotonic() + SECONDS
    while clickhouse.query(url, _INSERTING)["inserts"][0].as_py():
        if time.monotonic() > over:
            raise LeaseError(
                f"an insert into usage_events at {clickhouse.redacted(url)} that an earlier job began does not end; "
                "look for it in system.processes, and end it there (KILL QUERY)"
            )
        time.sleep(0.2)


# --- streams --------------------------------------------------------------------------------------------

_LAST = "SELECT run_id FROM runs ORDER BY started_at DESC, run_id LIMIT 1"


@dataclass(frozen=True)
class RunGuard:
    """Lets the workers of a run write as long as no other run has begun: their state does not know what that one did.

    Args:
      url: Of the database.
      run_id: Of the run, which is in the table `runs`.
    """

    url: str
    run_id: str

    def check(self) -> None:
        """Renews the claim, or takes it up again; asks the database three times in the life of one.

        Raises:
          LeaseError: another run holds the database, or has begun since this one did.
        """
        _guarding(self).check()


@lru_cache(maxsize=4)
def _guarding(guard: RunGuard) -> _Guarding:
    return _Guarding(guard)


class _Guarding:
    def __init__(self, guard: RunGuard) -> None:
        self._guard = guard
        self._lease = Lease(guard.url, "rate_usage", holder=guard.run_id)
        self._next = 0.0
        self._lock = threading.Lock()

    def check(self) -> None:
        with self._lock:
            if time.monotonic() < self._next:
                return
            self._refuse_unless_last()  # Before it claims, which would keep the run that may write from writing.
            if not self._guard.url.startswith("chdb:"):
                self._lease.acquire()
                try:
                    self._refuse_unless_last()
                except LeaseError:
                    self._lease.release()
                    raise
            self._next = time.monotonic() + SECONDS / 3

    def _refuse_unless_last(self) -> None:
        last = clickhouse.query(self._guard.url, _LAST)["run_id"].to_pylist()
        if last != [self._guard.run_id]:
            raise LeaseError(
                f"run {self._guard.run_id} must not go on from its state: run {last[0] if last else '(none)'} has "
                "begun since, and what it stored is not in that state. Start the stream without state"
            )
