"""What runs on Flink, as far as it can be told without Java: `make test-flink` does the rest."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from apache_beam.runners.portability.portable_runner import JobServiceHandle

from meterline.runners.flink import cluster as clusters
from meterline.runners.flink import home, jobs, processes, rate
from meterline.runners.flink.cluster import Cluster, Part, Settings
from meterline.runners.flink.home import FlinkError
from meterline.runners.flink.jobs import JobFailed, Submitted, Target
from meterline.runners.flink.pubsub import ReadPubSub
from meterline.runners.flink.rest import Failure, Flink, RestError, cause
from meterline.runners.jobs import InputError
from meterline.schemas.catalog import Catalog
from tests.command import Command

ROOT = Path(__file__).parent.parent.parent
KUBERNETES = ROOT / "runners" / "flink" / "kubernetes"
TARGET = Target("http://localhost:8081", "localhost:8099", "localhost:8097", "localhost:50000")


@pytest.fixture
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a child, in a group of its own."""
    child = "import time; time.sleep(600)"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    deadline = time.monotonic() + 30
    while len(processes.members(process.pid, processes.identity(process.pid) or "")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_process_is_ended_with_its_children(sleeping: subprocess.Popen[bytes]) -> None:
    known_as = processes.identity(sleeping.pid)
    assert known_as is not None
    group = processes.members(sleeping.pid, known_as)
    assert processes.end([(sleeping.pid, known_as)]) == [sleeping.pid]
    assert [pid for pid in group if processes.identity(pid)] == []


def test_a_stranger_with_a_pid_used_again_is_left_alone(sleeping: subprocess.Popen[bytes]) -> None:
    assert processes.end([(sleeping.pid, "boot/1")]) == []
    assert sleeping.poll() is None
    assert not processes.alive(sleeping.pid, "boot/1")


def test_the_children_of_a_killed_process_are_ended(sleeping: subprocess.Popen[bytes]) -> None:
    known_as = processes.identity(sleeping.pid)
    assert known_as is not None
    (child,) = set(processes.members(sleeping.pid, known_as)) - {sleeping.pid}
    os.kill(sleeping.pid, signal.SIGKILL)
    sleeping.wait()
    assert processes.identity(child) is not None
    assert processes.end([(sleeping.pid, known_as)]) == [sleeping.pid]
    assert processes.identity(child) is None


def test_nobody_is_ended_where_nothing_was_started() -> None:
    """A part that was never started has pid 0, which to the system is the caller's own group."""
    assert processes.end([(0, "")]) == []


# The Java side.


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of the PATH; JAVA_HOME and the cache are empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "cat", "mkdir", "touch", "sleep"):
        found = next(Path(place) / name for place in ("/bin", "/usr/bin") if (Path(place) / name).exists())
        (folder / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.delenv("METERLINE_FLINK_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def program(path: Path, name: str, script: str) -> None:
    (path / name).write_text(f"#!{path}/sh\n{script}\n")
    (path / name).chmod(0o755)


def java(path: Path, version: str, otherwise: str = "exit 1") -> None:
    answer = f"""echo 'openjdk version "{version}" 2025-04-15' >&2; exit 0"""
    program(path, "java", f'if [ "$1" = -version ]; then {answer}; fi\n{otherwise}')


def maven(path: Path, script: str) -> None:
    find = 'for word in "$@"; do case $word in -DoutputDirectory=*) to=${word#*=};; esac; done'
    program(path, "mvn", f"{find}\n{script}")


@pytest.mark.parametrize("version", ["11.0.21", "17.0.15"])
def test_java_11_and_17_are_taken(path: Path, version: str) -> None:
    java(path, version)
    assert home.java() == path / "java"


@pytest.mark.parametrize(("version", "said"), [("1.8.0_392", "is Java 8"), ("21.0.1", "is Java 21"), ("25", "Java 25")])
def test_another_java_is_refused(path: Path, version: str, said: str) -> None:
    java(path, version)
    with pytest.raises(FlinkError, match=rf"needs Java 11 or 17, but .*{said}\. Set JAVA_HOME"):
        home.java()


def test_no_java_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FlinkError, match="there is no java on the PATH"):
        home.java()
    java(path, "17")
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    with pytest.raises(FlinkError, match="JAVA_HOME is /nowhere, which has no bin/java"):
        home.java()


def test_the_java_side_is_assembled_once(path: Path) -> None:
    maven(path, 'mkdir -p "$to"; touch "$to/flink.jar"')
    told: list[str] = []
    folder = home.assemble(told.append)
    assert (folder / home.JARS / "flink.jar").exists()
    assert "once" in told[0]
    (path / "mvn").unlink()
    assert home.assemble(told.append) == folder
    assert os.listdir(folder.parent) == [folder.name]
    # Of another version it is another one.
    (folder / "pom.xml").write_text("<project/>")
    with pytest.raises(FlinkError, match="no Maven"):
        home.assemble(told.append)


def test_what_maven_says_is_told(path: Path) -> None:
    maven(path, "echo '[ERROR] Could not resolve flink-runtime'; exit 1")
    with pytest.raises(FlinkError, match="Could not resolve flink-runtime"):
        home.assemble(lambda text: None)
    assert not home.is_assembled(home.home())


# A cluster and its record.


def recorded(folder: Path, *parts: Part, **more: Any) -> Cluster:
    folder.mkdir(exist_ok=True)
    ports = dict.fromkeys(clusters.PORTS, 1)
    found = Cluster(folder, Settings(), ports, {part.name: part for part in parts}, **{"code": clusters.code(), **more})
    found.save()
    return found


def me(name: str) -> Part:
    return Part(name, None, os.getpid(), processes.identity(os.getpid()) or "")


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = recorded(tmp_path, me("jobmanager"), Part("worker-pool", 3))
    assert clusters.load(tmp_path) == written
    assert [part.alive for part in written.parts.values()] == [True, False]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(None, "there is no Flink cluster in .*meterline flink up", id="none"),
        pytest.param("{", "cannot be read", id="cut off"),
        pytest.param("[]", "cannot be read", id="another thing"),
        pytest.param('{"version": 2}', "is of version 2", id="of a later version"),
    ],
)
def test_a_record_that_is_none_is_told(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "cluster.json").write_text(content)
    with pytest.raises(FlinkError, match=said):
        clusters.load(tmp_path)


def test_a_cluster_that_is_up_is_not_started_again(tmp_path: Path) -> None:
    recorded(tmp_path, me("jobmanager"), Part("worker-pool", 3))
    with pytest.raises(FlinkError, match=r"is up in .* already.*; worker-pool is dead: `meterline flink start`"):
        clusters.up(tmp_path, Settings())


def test_two_commands_do_not_change_one_cluster_at_once(tmp_path: Path) -> None:
    recorded(tmp_path)
    with clusters._alone(tmp_path), pytest.raises(FlinkError, match="is at work"):
        clusters.down(tmp_path)


def test_a_part_that_ends_is_told_with_the_end_of_its_log(path: Path, tmp_path: Path) -> None:
    java(path, "17.0.1", "echo 'the disk is full'; exit 7")
    maven(path, 'mkdir -p "$to"; touch "$to/flink.jar"')
    folder = tmp_path / "cluster"
    with pytest.raises(FlinkError, match=r"zookeeper ended after .*The end of .*/zookeeper\.log:\nthe disk is full"):
        clusters.up(folder, Settings())
    assert clusters.down(folder) == []


def test_a_part_that_does_not_answer_is_told_and_ended(path: Path, tmp_path: Path) -> None:
    java(path, "17.0.1", "echo 'still thinking'; exec sleep 600")
    maven(path, 'mkdir -p "$to"; touch "$to/flink.jar"')
    folder = tmp_path / "cluster"
    with pytest.raises(FlinkError, match=r"zookeeper does not answer after 0 s(.|\n)*still thinking"):
        clusters.up(folder, Settings(), seconds=0.3)
    part = clusters.load(folder).parts["zookeeper"]
    assert part.alive
    assert clusters.down(folder) == ["zookeeper"]
    assert not part.alive


def test_every_port_is_free_and_those_of_before_are_kept() -> None:
    settings = Settings(task_managers=2)
    chosen = clusters._ports(settings, {})
    # Three of them report to Prometheus.
    assert len(set(chosen.values())) == len(clusters.PORTS) + 3
    assert clusters._ports(settings, chosen) == chosen
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        assert clusters._ports(settings, {**chosen, "rest": taken})["rest"] != taken
        with pytest.raises(FlinkError, match=f"port {taken}, for rest, is taken"):
            clusters._ports(Settings(ports={"rest": taken}), {})
    with pytest.raises(FlinkError, match="there is no port 'web'; there are rest, "):
        clusters._ports(Settings(ports={"web": 1}), {})


def test_each_part_reports_to_prometheus_at_a_port_of_its_own(tmp_path: Path, path: Path) -> None:
    java(path, "17")
    settings = Settings(task_managers=2)
    ports = {name: 10_000 + place for place, name in enumerate(settings.port_names)}
    names = ("jobmanager", "taskmanager-1", "taskmanager-2")
    cluster = Cluster(tmp_path, settings, ports, {name: Part(name, None) for name in (*names, "job-server")})
    told = {
        name: re.findall(r"-D metrics.reporter.prom.port=(\d+)", " ".join(clusters._command(cluster, name)))
        for name in names
    }
    assert {name: f"http://127.0.0.1:{port}/metrics" for name, (port,) in told.items()} == cluster.metrics
    assert len(set(cluster.metrics.values())) == 3
    clusters._configure(cluster)
    conf = yaml.safe_load((tmp_path / "conf" / "flink-conf.yaml").read_text())
    assert conf["metrics.reporter.prom.factory.class"].endswith(".PrometheusReporterFactory")


@pytest.mark.skipif(not Path("/proc/sys/net/ipv4/ip_local_port_range").exists(), reason="Linux tells its range")
def test_no_port_is_one_that_others_are_given() -> None:
    """Between the death of a part and its new start, somebody who asks for any free port could get its."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert not [port for port in clusters._ports(Settings(), {}).values() if first <= port <= last]


def test_parts_listen_on_this_machine_and_keep_all_in_the_folder(tmp_path: Path) -> None:
    ports = {name: 10_000 + place for place, name in enumerate(clusters.PORTS)}
    cluster = Cluster(tmp_path, Settings(slots=3, options={"heartbeat.timeout": "30000"}), ports, {})
    clusters._configure(cluster)
    conf = yaml.safe_load((tmp_path / "conf" / "flink-conf.yaml").read_text())
    # Named by the operator, in place of what all clusters have.
    assert conf["heartbeat.timeout"] == 30_000
    for part in ("jobmanager", "taskmanager"):
        assert conf[f"{part}.bind-host"] == "localhost"
    assert conf["rest.bind-address"] == "localhost"
    assert conf["taskmanager.numberOfTaskSlots"] == 3
    assert conf["high-availability.zookeeper.quorum"] == f"localhost:{ports['zookeeper']}"
    for key in ("state.checkpoints.dir", "state.savepoints.dir", "high-availability.storageDir"):
        assert conf[key].startswith(f"file://{tmp_path}/")
    assert conf["execution.checkpointing.externalized-checkpoint-retention"] == "RETAIN_ON_CANCELLATION"
    zookeeper = (tmp_path / "conf" / "zoo.cfg").read_text()
    assert "clientPortAddress=127.0.0.1\n" in zookeeper
    assert f"clientPort={ports['zookeeper']}\n" in zookeeper


def test_no_part_of_that_name(tmp_path: Path) -> None:
    recorded(tmp_path, Part("jobmanager", 3))
    with pytest.raises(FlinkError, match="there is no part 'master'; there are jobmanager"):
        clusters.start(tmp_path, ["master"])


# Flink's REST API.

_STREAMING = "org.apache.beam.runners.flink.translation.wrappers.streaming"
_ERROR = """RuntimeException: Error received from SDK harness for instruction 5: Traceback (most recent call last):
  File "sdk_worker.py", line 313, in _execute
    response = task()
  File "prices.py", line 9, in process
    raise ValueError("cannot price 17 apples")
ValueError: cannot price 17 apples [while running 'Rate']
"""
PYTHON_FAILURE = f"""org.apache.flink.streaming.runtime.tasks.AsynchronousException: Caught exception while processing
\tat org.apache.flink.streaming.runtime.tasks.StreamTask$Handler.handleAsyncException(StreamTask.java:1601)
\t... 12 more
Caused by: java.lang.RuntimeException: Failed to finish remote bundle
\tat {_STREAMING}.ExecutableStageDoFnOperator$SdkHarnessDoFnRunner.finishBundle(ExecutableStageDoFnOperator.java:1)
\t... 14 more
Caused by: java.util.concurrent.ExecutionException: java.lang.{_ERROR}
\tat java.base/java.util.concurrent.CompletableFuture.reportGet(CompletableFuture.java:396)
Caused by: java.lang.{_ERROR}
\tat org.apache.beam.runners.fnexecution.control.FnApiControlClient.onNext(FnApiControlClient.java:1)
"""
MACHINE_FAILURE = """org.apache.flink.runtime.jobmaster.JobMasterException: TaskManager t-2 is no longer reachable.
\tat org.apache.flink.runtime.jobmaster.JobMaster$Listener.notifyTargetUnreachable(JobMaster.java:1)
"""


def test_the_cause_of_a_failure_is_the_python_error_without_java() -> None:
    assert cause(PYTHON_FAILURE).splitlines()[-1] == "ValueError: cannot price 17 apples [while running 'Rate']"
    assert "Java" not in cause(PYTHON_FAILURE)
    assert "\tat " not in cause(PYTHON_FAILURE)
    assert cause(MACHINE_FAILURE) == "JobMasterException: TaskManager t-2 is no longer reachable."
    assert cause("") == ""


class FakeFlink:
    """Answers as Flink 1.19 does; `answers` by path, and every request is kept."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, str, Any]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fake.asked.append((self.command, self.path, json.loads(body) if body else None))
                found = fake.answers.get(self.path.partition("?")[0])
                status = 200 if found is not None else 404
                text = json.dumps(found if found is not None else {"errors": ["Not found: the job", ""]}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PATCH = answer

            def log_message(self, *words: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def job(self, state: str, failures: list[tuple[float, str]] = [], completed: int = 0, restored: int = 0) -> None:  # noqa: B006
        one = {"jid": "a1", "name": "rate", "state": state, "start-time": 1_700_000_000_000}
        self.answers["/jobs/overview"] = {"jobs": [one]}
        self.answers["/jobs/a1"] = one
        entries = [
            {"timestamp": int(at * 1000), "stacktrace": trace, "taskName": "Rate (1/2)", "exceptionName": "x"}
            for at, trace in reversed(failures)
        ]
        self.answers["/jobs/a1/exceptions"] = {"exceptionHistory": {"entries": entries, "truncated": False}}
        self.answers["/jobs/a1/checkpoints"] = {
            "counts": {"restored": restored, "completed": completed, "failed": 0},
            "latest": {
                "completed": {"id": completed, "external_path": f"file:/c/chk-{completed}"} if completed else None,
                "restored": {"id": completed} if restored else None,
            },
        }


@pytest.fixture
def fake() -> Iterator[FakeFlink]:
    flink = FakeFlink()
    thread = threading.Thread(target=flink.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield flink
    flink.server.shutdown()
    flink.server.server_close()


def test_jobs_failures_and_checkpoints_are_read(fake: FakeFlink) -> None:
    fake.job("RUNNING", [(1, MACHINE_FAILURE), (2, PYTHON_FAILURE)], completed=7, restored=1)
    flink = Flink(fake.url)
    (job,) = flink.jobs()
    assert (job.id, job.name, job.state, job.started.year) == ("a1", "rate", "RUNNING", 2023)
    newest, oldest = flink.failures("a1")
    assert (newest.is_user_code, oldest.is_user_code) == (True, False)
    assert newest.at == datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC)
    found = flink.checkpoints("a1")
    assert (found.completed_id, found.restored, found.restored_id, found.path) == (7, 1, 7, "file:/c/chk-7")
    fake.job("RUNNING")
    assert flink.checkpoints("a1") == dataclasses.replace(
        found, completed=0, completed_id=0, path=None, restored=0, restored_id=None
    )


def test_a_savepoint_tells_where_it_lies_or_why_it_failed(fake: FakeFlink) -> None:
    fake.job("CANCELED")
    fake.answers["/jobs/a1/savepoints"] = {"request-id": "r"}
    place = "/jobs/a1/savepoints/r"
    fake.answers[place] = {"status": {"id": "COMPLETED"}, "operation": {"location": "file:/s/1"}}
    assert Flink(fake.url).savepoint("a1", "file:/mine") == "file:/s/1"
    assert fake.asked[0] == ("POST", "/jobs/a1/savepoints", {"cancel-job": False, "target-directory": "file:/mine"})
    assert Flink(fake.url).stop("a1") == "file:/s/1"
    # Flink's own «stop» would have Beam throw all state away first.
    assert ("POST", "/jobs/a1/savepoints", {"cancel-job": True}) in fake.asked
    assert not [one for one in fake.asked if one[1].endswith("/stop")]
    failure = {"class": "x", "stack-trace": "java.io.IOException: disk full\n\tat x.Y.z(Y.java:1)"}
    fake.answers[place] = {"status": {"id": "COMPLETED"}, "operation": {"failure-cause": failure}}
    with pytest.raises(RestError, match="the savepoint failed: IOException: disk full"):
        Flink(fake.url).stop("a1")


def test_a_flink_that_refuses_or_is_not_there_is_told(fake: FakeFlink) -> None:
    with pytest.raises(RestError, match=r"answers 404 to GET /jobs/b2: Not found: the job") as refused:
        Flink(fake.url).job("b2")
    assert refused.value.status == 404
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(RestError, match=f"does not answer at {url}"):
        Flink(url).overview()


# Jobs.

NOW = time.time() + 86_400  # What is new in a test is not long ago by then, however busy the machine is.


def sent(options: Any) -> dict[str, Any]:
    """What Java is sent, by its names, less what is Python's own default."""
    struct = JobServiceHandle.encode_pipeline_options(options.get_all_options(drop_default=True))
    return {key.removeprefix("beam:option:").removesuffix(":v1"): struct[key] for key in struct}


def test_the_options_of_a_stream() -> None:
    plain = {
        "job_endpoint": "localhost:8099",
        "environment_type": "EXTERNAL",
        "environment_config": "localhost:50000",
        "streaming": True,
        "job_name": "rate",
        "parallelism": "4",
        "checkpointing_interval": "10000",
        "min_pause_between_checkpoints": "3000",
        "max_bundle_size": "5000",
        "max_bundle_time_mills": "100",
        "finish_bundle_before_checkpointing": True,
        "externalized_checkpoints_enabled": True,
        "retain_externalized_checkpoints_on_cancellation": True,
    }
    assert sent(jobs.options(TARGET, "rate", parallelism=4)) == plain
    assert sent(
        jobs.options(TARGET, "rate", parallelism=4, pubsub_emulator="127.0.0.1:8085", more=["--temp_location=/t"])
    ) == {
        **plain,
        "pubsub_root_url": "http://127.0.0.1:8085",
        "credential_factory_class": "org.apache.beam.sdk.extensions.gcp.auth.NoopCredentialFactory",
        "temp_location": "/t",
    }
    resumed = jobs.options(
        TARGET, "rate", parallelism=4, max_parallelism=8, savepoint="file:/s", allow_non_restored_state=True, workers=2
    )
    assert sent(resumed) == {
        **plain,
        "max_parallelism": "8",
        "savepoint_path": "file:/s",
        "allow_non_restored_state": True,
        "sdk_worker_parallelism": "2",
    }


def test_an_embedded_database_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"on Flink several processes write, and chdb:// serves one: expected --clickhou"
    ):
        rate.rate_on_flink("usage", Catalog(), "chdb://meterline-db", TARGET, rate.Settings(), print)


@pytest.mark.parametrize("name", ["usage", "projects/p/subscriptions/usage", "projects/my-project/subscriptions/ab"])
def test_a_name_that_is_no_subscription_is_refused(name: str) -> None:
    with pytest.raises(FlinkError, match="a subscription is projects/PROJECT/subscriptions/NAME"):
        ReadPubSub(name, "localhost:8097")


def test_a_name_of_a_subscription_is_taken() -> None:
    ReadPubSub("projects/my-project/subscriptions/usage", "localhost:8097")


def test_a_local_cluster_must_be_whole_and_load_this_meterline(tmp_path: Path) -> None:
    recorded(tmp_path, me("jobmanager"), me("worker-pool"))
    assert jobs.local(tmp_path) == Target("http://127.0.0.1:1", "localhost:1", "localhost:1", "localhost:1")
    recorded(tmp_path, me("jobmanager"), me("worker-pool"), code="0.0.9 in /elsewhere")
    with pytest.raises(FlinkError, match=r"load Meterline 0\.0\.9 in /elsewhere.*start --part worker-pool"):
        jobs.local(tmp_path)
    recorded(tmp_path, me("jobmanager"), Part("worker-pool", 3))
    with pytest.raises(FlinkError, match=r"worker-pool of the cluster in .* is dead; `meterline flink start`"):
        jobs.local(tmp_path)
    recorded(tmp_path, Part("jobmanager", 3))
    with pytest.raises(FlinkError, match="is down; `meterline flink up`"):
        jobs.local(tmp_path)


def watched(fake: FakeFlink, scenes: list[tuple[Any, ...]], **more: Any) -> list[str]:
    """What is told of a job that goes through scenes (arguments of `FakeFlink.job`), one at each look."""
    told: list[str] = []
    left = list(scenes)

    def until() -> bool:
        if not left:
            return True
        fake.job(*left.pop(0))
        return False

    assert not until()
    jobs.watch(Submitted("a1", "rate", Flink(fake.url)), told.append, poll_seconds=0, until=until, **more)
    return told


def test_a_failure_that_comes_again_and_again_is_fatal(fake: FakeFlink) -> None:
    failures = [(NOW + at, PYTHON_FAILURE.replace("17", str(at))) for at in (10, 20, 30)]
    with pytest.raises(JobFailed, match=r"failed 3 times alike(.|\n)*ValueError: cannot price 30 apples") as fatal:
        watched(fake, [("RUNNING", failures[:n], 5) for n in range(4)])
    assert fatal.value.code == 1
    assert not [one for one in fake.asked if one[0] == "PATCH"]
    fake.answers["/jobs/a1"] = {}
    with pytest.raises(JobFailed, match="it was cancelled"):
        watched(fake, [("RESTARTING", failures, 5)], cancel=True)
    assert ("PATCH", "/jobs/a1?mode=cancel", None) in fake.asked


def test_a_failure_after_progress_is_not_fatal(fake: FakeFlink) -> None:
    failures = [(NOW + at, PYTHON_FAILURE) for at in (10, 20, 30, 40)]
    scenes: list[tuple[Any, ...]] = []
    for n in range(1, 5):
        scenes += [
            ("RESTARTING", failures[:n], n),
            ("RUNNING", failures[:n], n + 1, n),
            ("RUNNING", failures[:n], n + 1, n),
        ]
    told = watched(fake, scenes, steady_seconds=0)
    assert len([line for line in told if "failed: " in line]) == 4
    assert len([line for line in told if re.search("recovered from checkpoint", line)]) == 4


def test_a_recovery_is_told_once_the_job_runs(fake: FakeFlink) -> None:
    told = watched(fake, [("RUNNING", [], 5), ("INITIALIZING", [], 5, 1), ("RUNNING", [], 5, 1), ("RUNNING", [], 6, 1)])
    assert [line.split(" ", 1)[1] for line in told] == ["recovered from checkpoint 5", "recovered from checkpoint 6"]


def test_failures_of_machines_are_not_fatal(fake: FakeFlink) -> None:
    failures = [(NOW + at, MACHINE_FAILURE) for at in range(10, 60, 10)]
    told = watched(fake, [("RUNNING", failures[:n], 5) for n in range(6)])
    assert [line.split(" ", 1)[1] for line in told] == [
        "lost: JobMasterException: TaskManager t-2 is no longer reachable."
    ] * 5


def test_the_same_failure_of_two_tasks_counts_once(fake: FakeFlink) -> None:
    failures = [(NOW + at + apart, PYTHON_FAILURE) for at in (10.0, 20.0) for apart in (0, 0.05)]
    assert len(watched(fake, [("RUNNING", failures, 5)], repeats=3)) == 4


def test_what_failed_long_ago_is_over(fake: FakeFlink) -> None:
    failures = [(time.time() - 600 + at, PYTHON_FAILURE) for at in (10, 20, 30)]
    assert watched(fake, [("RUNNING", failures, 5, 1)] * 3) == []


def test_a_job_that_ended_is_told(fake: FakeFlink) -> None:
    fake.job("FINISHED")
    job = Submitted("a1", "rate", Flink(fake.url))
    assert jobs.watch(job, print) == "FINISHED"
    fake.job("FAILED", [(NOW, PYTHON_FAILURE)])
    with pytest.raises(JobFailed, match=r"the job rate failed: (.|\n)*ValueError: cannot price 17 apples"):
        jobs.watch(job, print)
    fake.answers.clear()
    with pytest.raises(JobFailed, match="does not know the job a1 any more"):
        jobs.watch(job, print, forget_seconds=0, poll_seconds=0)


def test_a_job_that_a_restarted_jobmanager_has_yet_to_find_is_waited_for(fake: FakeFlink) -> None:
    fake.job("FINISHED")
    there, told = dict(fake.answers), []
    fake.answers.clear()

    def say(text: str) -> None:
        told.append(text)
        fake.answers.update(there)

    assert jobs.watch(Submitted("a1", "rate", Flink(fake.url)), say, poll_seconds=0) == "FINISHED"
    assert len(told) == 2
    assert told[1] == "Flink answers again"


def test_one_failure_that_is_over_is_forgotten_after_a_while() -> None:
    now = 0.0
    seen = jobs._Seen(2, 60, lambda: now)
    at = datetime(2026, 1, 1, tzinfo=UTC)

    def fail(seconds: float) -> None:
        nonlocal now
        now = seconds
        seen.add(Failure(at + timedelta(seconds=seconds), "ValueError: 1", True, "t", ""))

    fail(1)
    now = 30
    seen.progress("RUNNING", 5, 4)
    fail(31)
    assert seen.fatal  # It ran for half a minute only.
    seen = jobs._Seen(2, 60, lambda: now)
    fail(100)
    now = 161
    seen.progress("RUNNING", 5, 4)
    fail(162)
    assert not seen.fatal


# The command.


def test_the_command_tells_mistakes(meterline: Command, tmp_path: Path, fake: FakeFlink) -> None:
    said = meterline("flink", "status", "--folder", tmp_path)
    assert (said.code, "there is no Flink cluster" in said.err) == (3, True)
    assert meterline("flink", "up", "--folder", tmp_path, "--port", "rest").code == 2
    fake.job("FINISHED")
    said = meterline("flink", "stop", "--rest-url", fake.url)
    assert (said.code, "no job runs; running at" in said.err) == (2, True)
    fake.job("RUNNING", completed=3)
    said = meterline("flink", "stop", "other", "--rest-url", fake.url)
    assert (said.code, "no job 'other' runs; running at" in said.err, "rate (a1)" in said.err) == (2, True, True)


def test_status_shows_a_cluster_elsewhere(meterline: Command, fake: FakeFlink) -> None:
    fake.job("RUNNING", [(1, PYTHON_FAILURE)], completed=7, restored=2)
    fake.answers["/overview"] = {"taskmanagers": 3, "slots-total": 6, "slots-available": 4}
    said = meterline("flink", "status", "--rest-url", fake.url, "--json")
    told = json.loads(said.out)
    assert (said.code, told["task_managers"], told["free_slots"]) == (0, 3, 4)
    (job,) = told["jobs"]
    assert (job["checkpoint"], job["restored"], job["started"]) == (7, 2, "2023-11-14T22:13:20Z")
    assert job["latest_failure"]["message"].endswith("ValueError: cannot price 17 apples [while running 'Rate']")
    said = meterline("flink", "status", "--rest-url", fake.url)
    assert "3 TaskManagers registered" in said.out
    assert "cannot price 17 apples" in said.out


def test_status_of_a_dead_cluster_fails(meterline: Command, tmp_path: Path) -> None:
    recorded(tmp_path, Part("jobmanager", 3))
    said = meterline("flink", "status", "--folder", tmp_path)
    assert (said.code, "the JobManager does not answer" in said.out) == (3, True)


# Kubernetes.


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERNETES / name).read_text(encoding="utf-8")))


def test_the_deployment_fits_the_operators_schema() -> None:
    schema = json.loads((Path(__file__).parent / "flinkdeployment.schema.json").read_text(encoding="utf-8"))
    (deployment,) = [one for one in manifests("cluster.yaml") if one["kind"] == "FlinkDeployment"]
    validator = jsonschema.Draft202012Validator(schema)
    assert [error.message for error in validator.iter_errors(deployment)] == []
    deployment["spec"]["taskManager"]["podTemplate"]["spec"]["containers"][0]["imagge"] = "x"
    assert len(list(validator.iter_errors(deployment))) == 1


def test_the_deployment_says_what_a_local_cluster_says() -> None:
    """Settings that decide whether work is lost are the same on both."""
    local = yaml.safe_load((ROOT / "runners/flink/flink-conf.yaml").read_text(encoding="utf-8"))
    (deployment,) = [one for one in manifests("cluster.yaml") if one["kind"] == "FlinkDeployment"]
    there = deployment["spec"]["flinkConfiguration"]
    for key in local:
        if key.startswith(("state.", "restart-strategy.", "execution.", "classloader.", "cluster.", "metrics.")):
            assert str(there[key]).lower() == str(local[key]).lower(), key
    opened = re.findall(r"java\.base/([\w.]+)=", there["env.java.opts.all"])
    assert tuple(opened) == clusters._OPENED
    # The pool is asked on the pod's own loopback address, by a port that the manifest and its probe name.
    (pool,) = deployment["spec"]["taskManager"]["podTemplate"]["spec"]["containers"]
    assert pool["args"] == ["python", "-m", "meterline.runners.flink.worker_pool", "50000"]
    assert "50000" in pool["readinessProbe"]["exec"]["command"][-1]


def test_the_services_lead_to_what_listens() -> None:
    deployment, service = manifests("services.yaml")
    containers = {one["name"]: one for one in deployment["spec"]["template"]["spec"]["containers"]}
    listening = {port["containerPort"] for one in containers.values() for port in one["ports"]}
    assert {port["port"] for port in service["spec"]["ports"]} == listening
    words = containers["job-server"]["command"]
    assert {"--job-port=8099", "--artifact-port=8098", "--expansion-port=-1"} <= set(words)
    assert "--experiments=use_deprecated_read" in containers["expansion-service"]["command"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
