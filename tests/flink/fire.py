"""A stream under fire: it is published to, and killed in all its parts, and told how each time went."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meterline.runners.flink import processes
from meterline.runners.flink.rest import Checkpoints, Flink, RestError
from meterline.runners.pubsub.publish import Producer
from tests.flink.conftest import FlinkCommand
from tests.flink.emulator import Topic
from tests.flink.failing import ClickHouse, Proxy, kill
from tests.flink.usage import HORIZON, Usage

# What restores the job from a checkpoint, each as often as it stands here; and what the job may outlive without.
RESTORING = ("taskmanager", "worker", "jobmanager", "taskmanager", "worker")
OUTLIVED = ("clickhouse", "connection")
KINDS = (*dict.fromkeys(RESTORING), *OUTLIVED)
EVENTS_PER_MESSAGE = 250
PATIENCE_SECONDS = 300


def eventually(true: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """Wait until something is true, and return it; a Flink that is recovering may not answer for a while."""
    began = time.monotonic()
    while True:
        with contextlib.suppress(RestError):
            if found := true():
                return found
        assert time.monotonic() - began < seconds, f"not after {seconds} s: {what}"
        time.sleep(0.1)


class Publishing(threading.Thread):
    """Publishes usage, slowly enough to go on for as long as the kills do.

    Args:
      rounds: How many kills are to come.
    """

    def __init__(self, topic: str, usage: Usage, rounds: float, round_seconds: float = 20) -> None:
        super().__init__(daemon=True)
        self._topic, self._usage = topic, usage
        self.rounds, self.round_seconds = rounds, round_seconds
        self.sent: list[tuple[float, str]] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            with Producer(self._topic, events_per_message=EVENTS_PER_MESSAGE, linger_seconds=60) as producer:
                total = len(self._usage.lines)
                for start in range(0, total, EVENTS_PER_MESSAGE):
                    began = time.monotonic()
                    for line in self._usage.lines[start : start + EVENTS_PER_MESSAGE]:
                        producer.send(line)
                    producer.flush()
                    news = [id for id in self._usage.news[start : start + EVENTS_PER_MESSAGE] if id]
                    if news:
                        self.sent.append((began, news[-1]))
                    left = (total - start) // EVENTS_PER_MESSAGE + 1
                    while self.rounds and time.monotonic() < began + (self.rounds + 0.5) * self.round_seconds / left:
                        time.sleep(0.02)
        except BaseException as error:  # noqa: BLE001
            self._error = error

    def sent_after(self, instant: float) -> str | None:
        """An event whose message was not begun to be published before."""
        return next((id for began, id in list(self.sent) if began > instant), None)

    def end(self) -> None:
        """Publish the rest as fast as it goes."""
        self.rounds = 0
        self.join()
        if self._error is not None:
            raise self._error


@dataclass(frozen=True)
class Kill:
    """One kill, and what became of it; in seconds after it. It counts when work was acknowledged before it, and the job
    was restored from a checkpoint after it.

    Args:
      slow: Whether checkpoints were stretched.
      stored_before: Events stored since the last one, and
      checkpoints_before: checkpoints completed.
      checkpoint_seconds: How long the latest one took.
      restored: When the job was restored from a checkpoint; None where it only waited.
      goes_on: When an event was stored that was sent after that, and after what was killed was up again.
    """

    number: int
    kind: str
    slow: bool
    stored_before: int
    checkpoints_before: int
    checkpoint_seconds: float
    restored: float | None
    goes_on: float
    restores: int
    note: str

    @property
    def counts(self) -> bool:
        return (
            self.stored_before > 0 and self.checkpoints_before > 1 and (self.restored is not None or self.restores > 0)
        )


class Stream:
    """`meterline rate --subscription --on flink`, as an operator runs it."""

    def __init__(self, flink: FlinkCommand, topic: Topic, emulator: str, clickhouse: ClickHouse, catalog: Path) -> None:
        self.flink, self.topic, self.clickhouse, self._catalog = flink, topic, clickhouse, catalog
        self.proxy = Proxy(emulator)
        self.job = ""

    @property
    def rest(self) -> Flink:
        return self.flink.cluster.flink

    def start(self, resume: str | None = None, seconds: float = 120) -> float:
        """Submit it, again while the lease of an earlier one lasts; how long that took."""
        words = ["--subscription", self.topic.subscription, "--on", "flink", "--flink-folder", self.flink.folder]
        words += ["--clickhouse", self.clickhouse.url, "--catalog", self._catalog, "--checkpoint-seconds", "1"]
        words += ["--max-age-days", HORIZON.days, "--detach", "--json", *(["--resume", resume] if resume else [])]
        began = time.monotonic()
        while True:
            done = meterline("rate", *words, environment=self._environment)
            if done.returncode == 0:
                self.job = json.loads(done.stdout)["job_id"]
                return time.monotonic() - began
            assert done.returncode == 3, done.stdout + done.stderr
            assert "another rate_usage job holds" in done.stderr, done.stderr
            assert time.monotonic() - began < seconds, done.stderr
            time.sleep(2)

    @property
    def _environment(self) -> dict[str, str]:
        return {**self.flink.environment, "PUBSUB_EMULATOR_HOST": self.proxy.address}

    @property
    def checkpoints(self) -> Checkpoints:
        return eventually(lambda: self.rest.checkpoints(self.job), "Flink answers")

    @property
    def checkpoint(self) -> int:
        return self.checkpoints.completed_id

    @property
    def restored(self) -> int:
        return self.checkpoints.restored

    def stored(self) -> int:
        """How many different events."""
        sql = "SELECT uniqExact(identity) FROM usage_events"
        return int(eventually(lambda: self.clickhouse.ask(sql), "ClickHouse answers"))

    def has(self, id: str | None) -> bool:
        return id is not None and self.clickhouse.ask(f"SELECT count() > 0 FROM usage_events WHERE id = '{id}'") == "1"

    def failures(self) -> list[str]:
        with contextlib.suppress(RestError):
            return [one.message for one in self.rest.failures(self.job)]
        return []

    def settle(self, expected: int, quiet_seconds: float = 5) -> None:
        """Wait until all is stored, and nothing changes any more though checkpoints complete."""

        def all_stored() -> bool:
            found = self.stored()
            assert found <= expected, f"{found} events are stored, {expected} were accepted"
            return found == expected

        try:
            eventually(all_stored, f"{expected} events are stored")
        except AssertionError as error:
            told = f"stored: {self.stored()}; the job's failures: {self.failures()[:3]}"
            raise AssertionError(f"{error}; {told}") from None
        state, since, checkpoint = "", time.monotonic(), self.checkpoint
        began = since
        while time.monotonic() - since < quiet_seconds or self.checkpoint < checkpoint + 2:
            assert time.monotonic() - began < PATIENCE_SECONDS, f"line items go on to change: {self.failures()[:3]}"
            now = self.clickhouse.ask(
                "SELECT (SELECT (count(), sum(cityHash64(*))) FROM line_items FINAL), "
                "(SELECT count() FROM usage_events FINAL), (SELECT count() FROM rejects FINAL)"
            )
            if now != state or now is None:
                state, since, checkpoint = now or "", time.monotonic(), self.checkpoint
            time.sleep(0.3)


def meterline(*words: object, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "meterline.runners.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)


def schedule(kills: int, seed: str) -> list[tuple[str, bool]]:
    """Kinds of kills: so many that restore the job, and some more; half of each while checkpoints are stretched."""
    kinds = [RESTORING[n % len(RESTORING)] for n in range(kills)]
    kinds += [OUTLIVED[n % len(OUTLIVED)] for n in range(-(-kills * 3 // 10))]
    found = [(kind, bool(kinds[:n].count(kind) % 2)) for n, kind in enumerate(kinds)]
    random.Random(f"{seed} schedule").shuffle(found)
    return found


class Fire:
    """Kills parts of a stream, one after the other."""

    def __init__(self, stream: Stream, publishing: Publishing, producers: Proxy, seed: str) -> None:
        self._stream, self._publishing, self._producers = stream, publishing, producers
        self._random = random.Random(f"{seed} fire")

    def kill(self, number: int, kind: str, slow: bool) -> Kill:
        """Kill something once work is acknowledged, and see the stream go on."""
        stream = self._stream
        before, checkpoint = stream.stored(), stream.checkpoint
        # Some work is acknowledged: a checkpoint that began after it was stored is complete.
        eventually(lambda: stream.stored() > before, "work is stored")
        then = stream.checkpoint
        eventually(lambda: stream.checkpoint >= then + 2, "checkpoints complete")
        with ExitStack() as until_over:
            if slow:
                until_over.enter_context(stream.clickhouse.slow())
                then = stream.checkpoint
                eventually(lambda: stream.checkpoint > then, "a checkpoint completes in spite of a slow ClickHouse")
            time.sleep(self._random.uniform(0, 2))
            latest = stream.checkpoints
            stored, checkpoints, restored = stream.stored() - before, latest.completed_id - checkpoint, latest.restored
            began = time.monotonic()
            took_restore, note = getattr(self, f"_{kind}")(until_over, restored)
        # Not since the kill: what is left of the stream may go on for a while.
        since = time.monotonic()
        eventually(lambda: stream.has(self._publishing.sent_after(since)), "an event that was sent since is stored")
        goes_on = time.monotonic() - began
        restores = stream.restored - (0 if kind == "jobmanager" else restored)
        if took_restore is None and restores:
            note = f"failed over; {note}"
        return Kill(
            *(number, kind, slow, stored, checkpoints, latest.seconds),
            *(took_restore, goes_on, restores, note),
        )

    def _restored(self, began: float, before: int) -> float:
        eventually(lambda: self._stream.restored > before, "state is restored")
        return time.monotonic() - began

    def _taskmanager(self, until_over: ExitStack, restored: int) -> tuple[float, str]:
        # One that works: after a failure the job may have all of its slots on the other, and stays there.
        ids = [one["id"] for one in self._stream.rest.task_managers() if one["freeSlots"] < one["slotsNumber"]]
        working = [
            name
            for name, part in self._stream.flink.cluster.parts.items()
            if part.alive and any(id.startswith(f"{name}-") for id in ids)
        ]
        return self._part(self._random.choice(sorted(working)), until_over, restored)

    def _jobmanager(self, until_over: ExitStack, restored: int) -> tuple[float, str]:
        # A new one counts anew.
        return self._part("jobmanager", until_over, 0)

    def _part(self, name: str, until_over: ExitStack, restored: int) -> tuple[float, str]:
        part, began = self._stream.flink.cluster.parts[name], time.monotonic()
        kill(part.pid)
        eventually(lambda: not part.alive, "it is dead")
        time.sleep(self._random.uniform(0, 1))
        until_over.close()
        assert name in self._stream.flink("start")
        return self._restored(began, restored), name

    def _worker(self, until_over: ExitStack, restored: int) -> tuple[float, str]:
        pool = self._stream.flink.cluster.parts["worker-pool"]
        workers = [pid for pid in processes.members(pool.pid, pool.identity) if pid != pool.pid]
        assert workers, "the job has no Python worker"
        pid = busiest(workers)
        began = time.monotonic()
        kill(pid)
        time.sleep(self._random.uniform(0, 1))
        until_over.close()
        return self._restored(began, restored), f"1 of {len(workers)}"

    def _clickhouse(self, until_over: ExitStack, restored: int) -> tuple[float | None, str]:
        database = self._stream.clickhouse
        database.kill()
        until_over.close()
        with database.refused() as knocks:
            eventually(lambda: knocks, "the job misses ClickHouse")
            time.sleep(self._random.uniform(0, 4))
        began = time.monotonic()
        database.start()
        return None, f"{len(knocks)} refused, up again in {time.monotonic() - began:.1f} s"

    def _connection(self, until_over: ExitStack, restored: int) -> tuple[float | None, str]:
        proxies = (self._stream.proxy, self._producers)
        cut, _ = (one.cut() for one in proxies)
        before = self._stream.proxy.connections
        seconds = self._random.uniform(1, 6)
        time.sleep(seconds)
        until_over.close()
        for one in proxies:
            one.mend()
        assert cut, "the job had a connection"
        eventually(lambda: self._stream.proxy.connections > before, "the job connects again")
        return None, f"{cut} connections cut for {seconds:.1f} s"


def busiest(pids: list[int], seconds: float = 2) -> int:
    """The process that works most: one whose TaskManager has no slot of the job in use is there, and does nothing."""
    before = {pid: _processor_ticks(pid) for pid in pids}
    time.sleep(seconds)
    return max(sorted(pids), key=lambda pid: _processor_ticks(pid) - before[pid])


def _processor_ticks(pid: int) -> int:
    """What a process has used of processors; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def show(kills: list[Kill], further: dict[str, float], seed: str) -> str:
    lines = [
        f"seed {seed}",
        f"{'':>3} {'kind':<12} {'slow':<5} {'stored before':>13} {'checkpoint':>10} {'restored':>9} {'goes on':>8}",
    ]
    for one in kills:
        restored = "" if one.restored is None else f"{one.restored:.1f} s"
        lines.append(
            f"{one.number:>3} {one.kind:<12} {'slow' if one.slow else '':<5} {one.stored_before:>13,} "
            f"{one.checkpoint_seconds:>8.1f} s {restored:>9} "
            f"{one.goes_on:>6.1f} s  {one.note}"
        )
    for kind in KINDS:
        took = sorted(one.goes_on for one in kills if one.kind == kind)
        if took:
            middle = took[len(took) // 2]
            lines.append(f"{kind}: goes on after {took[0]:.1f} to {took[-1]:.1f} s, the middle one {middle:.1f} s")
    lines.append(f"{sum(one.counts for one in kills)} of {len(kills)} kills count: the job was restored after them")
    lines += [f"{what}: {seconds:.1f} s" for what, seconds in further.items()]
    return "\n".join(lines)


def write(file: str, kills: list[Kill], further: dict[str, float], seed: str, events: int) -> None:
    told = {"seed": seed, "events": events, "cores": os.cpu_count(), "seconds": further}
    told["kills"] = [dataclasses.asdict(one) for one in kills]
    Path(file).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
