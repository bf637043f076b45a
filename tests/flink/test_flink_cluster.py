"""A stream on a real cluster loses nothing when a part of it is killed, and goes on from where it was.

What a kill must not hide: work was acknowledged before it, and state was restored after it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meterline.runners.flink import jobs, processes
from meterline.runners.flink.home import FlinkError
from meterline.runners.flink.rest import RestError
from tests.flink.conftest import FlinkCommand
from tests.flink.emulator import Emulator, Topic
from tests.flink.stream import stored, stream


def eventually(true: Callable[[], bool], what: str, seconds: float = 180) -> None:
    """Wait until something is true; a Flink that is recovering may not answer for a while."""
    began = time.monotonic()
    while True:
        with contextlib.suppress(RestError):
            if true():
                return
        assert time.monotonic() - began < seconds, f"not after {seconds} s: {what}"
        time.sleep(0.2)


def ids(folder: Path) -> set[str]:
    return {one["id"] for one in stored(folder)}


class Running:
    """A stream on the cluster, with its topic and what it wrote."""

    def __init__(self, flink: FlinkCommand, emulator: Emulator, folder: Path) -> None:
        self.flink, self.emulator, self.folder = flink, emulator, folder
        self.topic: Topic = emulator.topic()
        folder.mkdir()
        self.submit()

    def submit(self, savepoint: str | None = None, **more: str) -> None:
        target = jobs.local(self.flink.folder)
        name = f"stream-{uuid.uuid4().hex[:6]}"
        chosen = jobs.options(
            target, name, checkpoint_seconds=1, pubsub_emulator=self.emulator.address, savepoint=savepoint
        )
        build = stream(self.topic.subscription, target.expansion_service, self.folder, **more)
        self.job = jobs.submit(build, target, chosen)

    @property
    def checkpoint(self) -> int:
        return self.job.flink.checkpoints(self.job.id).completed_id

    def settle(self, wanted: set[str]) -> None:
        """Wait until all of it is written, and acknowledged: a checkpoint that began after it completed."""
        eventually(lambda: wanted <= ids(self.folder), f"{len(wanted)} ids are written")
        then = self.checkpoint
        eventually(lambda: self.checkpoint >= then + 2, "checkpoints complete")

    def worker(self) -> int:
        """The pid of a Python worker of this job."""
        return int(max(self.folder.glob("*.ndjson"), key=lambda file: file.stat().st_mtime).stem)


class Publishing(threading.Thread):
    """Publishes a hundred ids a second, until it is ended."""

    def __init__(self, topic: Topic) -> None:
        super().__init__(daemon=True)
        self._topic, self._ids, self._enough = topic, set[str](), threading.Event()

    def run(self) -> None:
        while not self._enough.is_set():
            batch = [f"b{len(self._ids) + n}" for n in range(50)]
            self._topic.publish(batch, 0.5)
            self._ids.update(batch)

    def end(self) -> set[str]:
        """What was published."""
        self._enough.set()
        self.join()
        return self._ids


@pytest.fixture
def running(flink: FlinkCommand, emulator: Emulator, tmp_path: Path) -> Iterator[Running]:
    stream = Running(flink, emulator, tmp_path / "written")
    yield stream
    if stream.job.flink.job(stream.job.id).state not in ("FINISHED", "CANCELED", "FAILED"):
        stream.job.flink.cancel(stream.job.id)
        stream.job.flink.wait(stream.job.id)


def test_messages_come_with_their_attributes_id_and_publish_time(running: Running, outside: list[str]) -> None:
    began = time.time()
    numbers = running.topic.publish(["one", "two"], tenant="acme")
    running.settle({"one", "two"})
    found = {one["id"]: one for one in stored(running.folder)}
    assert [found["one"]["message_id"], found["two"]["message_id"]] == numbers
    assert found["one"]["attributes"] == {"id": "one", "tenant": "acme"}
    assert began - 1 < found["one"]["published"] < time.time()
    # What was acknowledged is kept by RocksDB, in the cluster's folder.
    checkpoint = running.job.flink.checkpoints(running.job.id).path
    assert checkpoint is not None
    assert checkpoint.startswith(f"file:{running.flink.folder}/checkpoints/")
    # All of the cluster would have asked this proxy for the world outside.
    assert outside[1:] == []


@pytest.mark.parametrize("part", ["taskmanager", "worker", "jobmanager"])
def test_a_kill_loses_nothing(running: Running, part: str) -> None:
    flink, before = running.flink, {f"a{n}" for n in range(300)}
    running.topic.publish(sorted(before))
    running.settle(before)
    checkpoints = running.job.flink.checkpoints(running.job.id)
    assert (checkpoints.restored, len(stored(running.folder))) == (0, 300)
    publishing = Publishing(running.topic)
    told: list[str] = []
    over = threading.Event()
    watching = threading.Thread(
        daemon=True,
        target=jobs.watch,
        args=(running.job, told.append),
        kwargs={"until": over.is_set, "poll_seconds": 0.5},
    )
    watching.start()
    publishing.start()
    try:
        eventually(lambda: len(ids(running.folder)) > 500, "the stream is under way")
        dead = kill(running, part)
        if part != "worker":
            flink("status", code=3)
            assert f"{part}" in flink("start")
        eventually(lambda: running.job.flink.checkpoints(running.job.id).restored >= 1, "state is restored")
        restored = time.monotonic()
        count = len(ids(running.folder))
        eventually(lambda: len(ids(running.folder)) > count, "the stream goes on")
        took = f"restored {restored - dead:.1f} s after the kill, goes on after {time.monotonic() - dead:.1f} s"
        print(f"\n{part}: {took}")
    finally:
        after = publishing.end()
    running.settle(before | after)
    # State of before the kill: these are known.
    written = len(stored(running.folder))
    running.topic.publish(sorted(before))
    running.topic.publish(["last"])
    running.settle({"last"})
    assert len([one for one in stored(running.folder) if one["id"] in before]) == 300
    assert len(stored(running.folder)) == written + 1
    over.set()
    watching.join()
    assert any("recovered from checkpoint" in line for line in told), told


def kill(running: Running, part: str) -> float:
    """Kill a part with SIGKILL; when it was done."""
    now = time.monotonic()
    if part == "worker":
        os.kill(running.worker(), signal.SIGKILL)
        return now
    name = max(name for name in running.flink.cluster.parts if name.startswith(part))
    killed = running.flink.cluster.parts[name]
    os.kill(killed.pid, signal.SIGKILL)
    eventually(lambda: not killed.alive, "it is dead")
    return now


def test_an_error_of_a_step_that_comes_again_and_again_is_told(running: Running) -> None:
    running.topic.publish(["good"])
    running.settle({"good"})
    running.topic.publish(["bad-17"])
    with pytest.raises(jobs.JobFailed, match=r"failed 3 times alike(.|\n)*ValueError: cannot count bad-17") as told:
        jobs.watch(running.job, print, cancel=True)
    assert "at org.apache" not in str(told.value)
    assert told.value.failure is not None
    assert running.job.flink.wait(running.job.id) == "CANCELED"


def test_a_stream_goes_on_from_where_it_was_stopped(running: Running) -> None:
    """Nothing is lost that came while it was stopped, and nothing of before is forgotten."""
    before = {f"a{n}" for n in range(100)}
    running.topic.publish(sorted(before))
    running.settle(before)
    publishing = Publishing(running.topic)
    publishing.start()
    try:
        eventually(lambda: len(ids(running.folder)) > 300, "the stream is under way")
        place = running.flink("stop", running.job.name).splitlines()[-1]
        assert place.startswith(f"file:{running.flink.folder}/savepoints/")
        assert running.job.flink.job(running.job.id).state == "CANCELED"
        running.submit(savepoint=place)
    finally:
        after = publishing.end()
    running.topic.publish(sorted(before))
    running.settle(after)
    running.topic.publish(["last"])
    running.settle({"last"})
    assert len([one for one in stored(running.folder) if one["id"] in before]) == 100
    assert running.job.flink.checkpoints(running.job.id).restored == 1


def test_messages_with_one_label_are_one(flink: FlinkCommand, emulator: Emulator, tmp_path: Path) -> None:
    running = Running(flink, emulator, tmp_path / "unused")
    running.job.flink.cancel(running.job.id)
    running.job.flink.wait(running.job.id)
    running.folder = tmp_path / "written"
    running.folder.mkdir()
    running.submit(id_label="label")
    running.topic.publish(["one", "again"], label="equal")
    running.topic.publish(["other"], label="different")
    running.settle({"other"})
    assert len(ids(running.folder) & {"one", "again"}) == 1
    assert {one["message_id"] for one in stored(running.folder)} == {"equal", "different"}
    running.job.flink.cancel(running.job.id)
    running.job.flink.wait(running.job.id)


def test_a_pipeline_that_flink_refuses_is_an_error(flink: FlinkCommand, emulator: Emulator, tmp_path: Path) -> None:
    target = jobs.local(flink.folder)
    chosen = jobs.options(target, "refused", pubsub_emulator=emulator.address, savepoint=f"file://{tmp_path}/nothing")
    with pytest.raises(FlinkError, match="nothing"):
        jobs.watch(
            jobs.submit(stream(emulator.topic().subscription, target.expansion_service, tmp_path), target, chosen),
            print,
        )


def test_a_cluster_that_is_up_is_not_started_again(flink: FlinkCommand) -> None:
    assert "is up in" in flink("up", code=2)
    told = json.loads(flink("status", "--json").strip())
    assert (told["task_managers"], told["slots"]) == (2, 4)
    assert all(part["alive"] for part in told["parts"])


def test_down_leaves_no_process_and_up_goes_on(running: Running) -> None:
    """The last one: also children of a part that was killed are ended, and a job outlives its cluster."""
    flink = running.flink
    running.topic.publish(["one"])
    running.settle({"one"})
    pool, worker = flink.cluster.parts["worker-pool"], running.worker()
    os.kill(pool.pid, signal.SIGKILL)
    eventually(lambda: not pool.alive, "the pool is dead")
    assert processes.identity(worker) is not None
    living = flink.living()
    assert worker in living
    flink("down")
    assert [pid for pid in living if processes.identity(pid) is not None] == []
    assert "0 parts ended" in flink("down")
    flink("up")
    running.topic.publish(["one", "two"])
    running.settle({"two"})
    assert sorted(one["id"] for one in stored(running.folder)) == ["one", "two"]
