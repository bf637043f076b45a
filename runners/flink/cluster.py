"""A Flink cluster on this machine: its parts, its folder, and what keeps them together.

The folder holds all of it: `cluster.json` (ports, pids), `conf/`, `logs/` (one file a part), `checkpoints/`,
`savepoints/`, `high-availability/` and `zookeeper/` (so that jobs are found again after a JobManager died, or the whole
cluster was down) and `artifacts/`. Every part listens on loopback addresses, at ports that are chosen free, save the
job server and the expansion service, which Beam binds to all addresses, and the metrics, which Flink does.

    zookeeper          who leads, and which jobs there are; one small process, its program comes with Flink
    jobmanager         Flink's head and its REST API
    taskmanager-N      Flink's hands; Java steps run inside
    expansion-service  turns a Python pipeline's Java steps, such as reading Pub/Sub, into graph
    job-server         takes pipelines by Beam's job API
    worker-pool        starts Python workers, one for each TaskManager of a job
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import meterline.transforms
from meterline.runners.flink import home, processes
from meterline.runners.flink.home import FlinkError
from meterline.runners.flink.rest import Flink, RestError

DEFAULT_FOLDER = Path(".meterline-flink")
PORTS = ("rest", "job-server", "expansion-service", "worker-pool", "zookeeper", "rpc", "artifacts")
METRICS = "metrics-"  # And the name of a JobManager or TaskManager: the port of its Prometheus reporter.
_VERSION = 1
_FLINK = "org.apache.flink.runtime"
_OPENED = (
    *("java.lang", "java.util", "java.util.concurrent", "java.util.concurrent.atomic", "java.util.concurrent.locks"),
    *("java.net", "java.io", "java.nio", "sun.nio.ch", "java.lang.reflect", "java.text", "java.time", "sun.net.util"),
)


@dataclass(frozen=True)
class Settings:
    """What a cluster is made of; kept in its folder.

    Args:
      task_managers: How many; each has a Python worker of its own for each job.
      slots: Of each TaskManager; a job of parallelism P takes P of them.
      ports: Those that are not to be chosen free, by the names in `port_names`.
      options: Of Flink, in place of those in `flink-conf.yaml`.
    """

    task_managers: int = 2
    slots: int = 2
    ports: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def port_names(self) -> tuple[str, ...]:
        reporting = ("jobmanager", *(f"taskmanager-{n + 1}" for n in range(self.task_managers)))
        return (*PORTS, *(METRICS + name for name in reporting))


@dataclass(frozen=True)
class Part:
    """A process of the cluster; `pid` is 0 until it is started."""

    name: str
    port: int | None
    pid: int = 0
    identity: str = ""

    @property
    def alive(self) -> bool:
        return bool(self.identity) and processes.alive(self.pid, self.identity)


@dataclass
class Cluster:
    """A cluster's record, as its folder keeps it. `up`, `load` make one."""

    folder: Path
    settings: Settings
    ports: dict[str, int]
    parts: dict[str, Part]
    code: str = ""

    @property
    def rest_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['rest']}"

    @property
    def flink(self) -> Flink:
        return Flink(self.rest_url)

    @property
    def job_endpoint(self) -> str:
        return f"localhost:{self.ports['job-server']}"

    @property
    def expansion_service(self) -> str:
        return f"localhost:{self.ports['expansion-service']}"

    @property
    def worker_pool(self) -> str:
        return f"localhost:{self.ports['worker-pool']}"

    @property
    def metrics(self) -> dict[str, str]:
        """Where Prometheus asks the parts that report to it."""
        reporting = [name for name in self.parts if METRICS + name in self.ports]
        return {name: f"http://127.0.0.1:{self.ports[METRICS + name]}/metrics" for name in reporting}

    def log(self, part: str) -> Path:
        return self.folder / "logs" / f"{part}.log"

    def save(self) -> None:
        kept = {
            "version": _VERSION,
            "settings": dataclasses.asdict(self.settings),
            "ports": self.ports,
            "code": self.code,
            "parts": [dataclasses.asdict(part) for part in self.parts.values()],
        }
        # Replaced at once: who reads meanwhile reads a whole one.
        new = self.folder / "cluster.json.new"
        new.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        new.replace(self.folder / "cluster.json")


def load(folder: Path) -> Cluster:
    """The cluster that a folder keeps.

    Raises:
      FlinkError: there is none.
    """
    folder = folder.absolute()
    state = folder / "cluster.json"
    try:
        kept = json.loads(state.read_text(encoding="utf-8"))
        if kept["version"] != _VERSION:
            raise FlinkError(f"{state} is of version {kept['version']}, this Meterline knows {_VERSION}")
        parts = [Part(**part) for part in kept["parts"]]
        return Cluster(
            folder, Settings(**kept["settings"]), kept["ports"], {part.name: part for part in parts}, kept["code"]
        )
    except FileNotFoundError:
        raise FlinkError(f"there is no Flink cluster in {folder}; `meterline flink up` starts one") from None
    except (ValueError, KeyError, TypeError) as error:
        raise FlinkError(f"{state} cannot be read: {error!r}. End what runs by hand, and delete the folder") from None


def up(
    folder: Path, settings: Settings, say: Callable[[str], None] = lambda text: None, seconds: float = 120
) -> Cluster:
    """Start a cluster, and wait until each part answers.

    A folder that had a cluster before keeps its ports, where they are free, and its jobs go on where they were.

    Args:
      say: Told what happens.
      seconds: How long a part may take to answer.

    Raises:
      FlinkError: one is up in the folder; Java or Maven is missing; a part failed (with the end of its log).
    """
    folder = folder.absolute()
    with _alone(folder):
        before = load(folder) if (folder / "cluster.json").exists() else None
        if before and any(part.alive for part in before.parts.values()):
            dead = [part.name for part in before.parts.values() if not part.alive]
            mend = f"; {', '.join(dead)} is dead: `meterline flink start`" if dead else ""
            raise FlinkError(f"a cluster is up in {folder} already, {before.rest_url}{mend}", code=2)
        if before:
            _end(before)
        home.java()
        home.assemble(say)
        ports = _ports(settings, before.ports if before else {})
        names = ["zookeeper", "jobmanager", *(f"taskmanager-{n + 1}" for n in range(settings.task_managers))]
        names += ["expansion-service", "job-server", "worker-pool"]
        own = {"jobmanager": ports["rest"]}
        parts = {name: Part(name, own.get(name, ports.get(name))) for name in names}
        cluster = Cluster(folder, settings, ports, parts)
        _configure(cluster)
        _start(cluster, names, say, seconds)
        return cluster


def start(folder: Path, parts: Iterable[str] = (), say: Callable[[str], None] = lambda text: None) -> list[str]:
    """Start what is dead, or, if parts are named, those (ended first if they live).

    Returns:
      The names of those started.

    Raises:
      FlinkError: there is no such part, or one failed.
    """
    load(folder)
    with _alone(folder.absolute()):
        cluster = load(folder)
        named = list(parts)
        for name in named:
            if name not in cluster.parts:
                raise FlinkError(f"there is no part {name!r}; there are {', '.join(cluster.parts)}", code=2)
        wanted = [name for name, part in cluster.parts.items() if name in named or (not named and not part.alive)]
        # Of a dead one, too: its children may live.
        processes.end((cluster.parts[name].pid, cluster.parts[name].identity) for name in wanted)
        _start(cluster, wanted, say, 120)
        return wanted


def down(folder: Path) -> list[str]:
    """End all of a cluster. What it keeps stays, and its jobs go on after the next `up`.

    Returns:
      The names of the parts that were alive.
    """
    load(folder)
    with _alone(folder.absolute()):
        return _end(load(folder))


def _end(cluster: Cluster) -> list[str]:
    living = [part.name for part in cluster.parts.values() if part.alive]
    # The JobManager last but for ZooKeeper, or it would see its TaskManagers fail.
    ordered = list(cluster.parts.values())
    first = [part for part in ordered if part.name not in ("jobmanager", "zookeeper")]
    for group in (first, [cluster.parts["jobmanager"]], [cluster.parts["zookeeper"]]):
        processes.end((part.pid, part.identity) for part in group)
    for name, part in cluster.parts.items():
        cluster.parts[name] = dataclasses.replace(part, pid=0, identity="")
    cluster.save()
    return living


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One command at a time changes a cluster."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise FlinkError(f"the folder {folder} cannot be used: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FlinkError(
                f"another `meterline flink` command is at work in {folder}; wait until it is done"
            ) from None
        yield


def _ports(settings: Settings, before: Mapping[str, int]) -> dict[str, int]:
    """Each named port, else that of before if it is free, else any free one."""
    named, names = settings.ports, settings.port_names
    for name in named:
        if name not in names:
            raise FlinkError(f"there is no port {name!r}; there are {', '.join(names)}", code=2)
    chosen: dict[str, int] = {}
    free = free_ports()
    with contextlib.ExitStack() as held:
        for name in names:
            wanted = named.get(name) or before.get(name) or 0
            one = held.enter_context(socket.socket())
            # As the servers do, which do not mind connections of an earlier one that linger.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                if wanted in (0, *chosen.values()):
                    raise OSError
                one.bind(("127.0.0.1", wanted))
                chosen[name] = wanted
            except OSError:
                if named.get(name):
                    raise FlinkError(
                        f"port {wanted}, for {name}, is taken; name another, or 0 for a free one"
                    ) from None
                chosen[name] = next(port for port in free if port not in {*named.values(), *before.values()})
    return chosen


def free_ports() -> Iterator[int]:
    """Ports of this machine that are free, and that the system gives to nobody who asks for any: they are still free
    when Java gets around to take them, and after their owner died.
    """
    for port in random.sample(range(20_000, 32_000), 12_000):
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port


def _configure(cluster: Cluster) -> None:
    folder, ports = cluster.folder, cluster.ports
    for name in ("conf", "logs", "checkpoints", "savepoints", "high-availability", "zookeeper", "artifacts", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    own = {
        "jobmanager.rpc.port": ports["rpc"],
        "rest.port": ports["rest"],
        "taskmanager.numberOfTaskSlots": cluster.settings.slots,
        "state.checkpoints.dir": (folder / "checkpoints").as_uri(),
        "state.savepoints.dir": (folder / "savepoints").as_uri(),
        "high-availability.storageDir": (folder / "high-availability").as_uri(),
        "high-availability.zookeeper.quorum": f"localhost:{ports['zookeeper']}",
        "high-availability.jobmanager.port": ports["rpc"],
        "io.tmp.dirs": folder / "tmp",
        **cluster.settings.options,
    }
    common = (Path(__file__).parent / "flink-conf.yaml").read_text(encoding="utf-8")
    text = common + "\n# Of this cluster.\n" + "".join(f"{key}: {value}\n" for key, value in own.items())
    (folder / "conf" / "flink-conf.yaml").write_text(text, encoding="utf-8")
    zookeeper = {
        "dataDir": folder / "zookeeper",
        "clientPortAddress": "127.0.0.1",
        "clientPort": ports["zookeeper"],
        "tickTime": 1000,
        "admin.enableServer": "false",
        # Snapshots of a few kilobytes would pile up.
        "autopurge.snapRetainCount": 3,
        "autopurge.purgeInterval": 1,
    }
    text = "".join(f"{key}={value}\n" for key, value in zookeeper.items())
    (folder / "conf" / "zoo.cfg").write_text(text, encoding="utf-8")


def _command(cluster: Cluster, part: str) -> list[str]:
    folder, ports = cluster.folder, cluster.ports
    if part == "worker-pool":
        return [sys.executable, "-m", "meterline.runners.flink.worker_pool", str(ports[part])]
    conf = str(folder / "conf")
    # One started by an earlier Meterline has none, and takes Flink's own.
    reporter = ["-D", f"metrics.reporter.prom.port={ports[METRICS + part]}"] if METRICS + part in ports else []
    if part == "zookeeper":
        main = "org.apache.flink.shaded.zookeeper3.org.apache.zookeeper.server.ZooKeeperServerMain"
        return _java(cluster, ["-Xmx64m", "-XX:MaxMetaspaceSize=64m"], main, f"{conf}/zoo.cfg")
    if part == "jobmanager":
        main = f"{_FLINK}.entrypoint.StandaloneSessionClusterEntrypoint"
        sizes = ["-Xmx768m", "-XX:MaxMetaspaceSize=512m"]
        return _java(cluster, sizes, main, "--configDir", conf, "--executionMode", "cluster", *reporter)
    if part.startswith("taskmanager-"):
        sizes = ["-Xmx1100m", "-XX:MaxDirectMemorySize=512m", "-XX:MaxMetaspaceSize=512m"]
        own = ["-D", f"taskmanager.resource-id={part}-{time.time_ns():x}", *reporter]
        return _java(cluster, sizes, f"{_FLINK}.taskexecutor.TaskManagerRunner", "--configDir", conf, *own)
    if part == "expansion-service":
        # The native read of Pub/Sub is chosen here, not by the job's options.
        flags = ["--experiments=use_deprecated_read", "--defaultEnvironmentType=EMBEDDED", "--filesToStage="]
        main = "org.apache.beam.sdk.expansion.service.ExpansionService"
        return _java(cluster, ["-Xmx256m"], main, str(ports[part]), *flags)
    assert part == "job-server", part
    flags = [
        *(f"--flink-master=localhost:{ports['rest']}", f"--flink-conf-dir={conf}", "--job-host=localhost"),
        *(f"--job-port={ports[part]}", f"--artifact-port={ports['artifacts']}", "--expansion-port=-1"),
        # What a job brought along is needed for as long as Flink may restart it, which the job server does not know.
        *(f"--artifacts-dir={folder / 'artifacts'}", "--clean-artifacts-per-job=false"),
    ]
    return _java(cluster, ["-Xmx512m"], "org.apache.beam.runners.flink.FlinkJobServerDriver", *flags)


def _java(cluster: Cluster, flags: list[str], main: str, *arguments: str) -> list[str]:
    opened = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED]
    logging = ["-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS"]
    other = [f"-Djava.io.tmpdir={cluster.folder / 'tmp'}", "-XX:+ExitOnOutOfMemoryError"]
    return [
        str(home.java()),
        *flags,
        *other,
        *logging,
        *opened,
        "-cp",
        f"{home.home() / home.JARS}/*",
        main,
        *arguments,
    ]


def code() -> str:
    """Which Meterline this is: its version, and where it is loaded from."""
    where = Path(next(iter(meterline.transforms.__path__))).parent
    return f"{importlib.metadata.version('meterline')} in {where}"


def _start(cluster: Cluster, names: list[str], say: Callable[[str], None], seconds: float) -> None:
    """Start parts in an order in which each finds what it needs, and wait for them."""
    handles: dict[str, subprocess.Popen[bytes]] = {}
    for group in (["zookeeper"], [name for name in names if name != "zookeeper"]):
        here = [name for name in group if name in names]
        for name in here:
            pid, identity, handles[name] = processes.start(
                _command(cluster, name), cluster.log(name), os.environ, cluster.folder
            )
            cluster.parts[name] = dataclasses.replace(cluster.parts[name], pid=pid, identity=identity)
            if name == "worker-pool":
                cluster.code = code()
            # At once: whatever becomes of this command, `down` finds it.
            cluster.save()
        for name in here:
            _wait(cluster, name, seconds)
            say(f"{name} answers")


def _wait(cluster: Cluster, name: str, seconds: float) -> None:
    began, deadline = time.monotonic(), time.monotonic() + seconds
    while True:
        part = cluster.parts[name]
        # Asked in this order: an answer counts only if it came while our process lived.
        answers = _answers(cluster, name)
        if not part.alive:
            raise FlinkError(f"{name} ended after {time.monotonic() - began:.0f} s. {_tail(cluster.log(name))}")
        if answers:
            return
        if time.monotonic() > deadline:
            raise FlinkError(f"{name} does not answer after {seconds:.0f} s. {_tail(cluster.log(name))}")
        time.sleep(0.2)


def _answers(cluster: Cluster, name: str) -> bool:
    try:
        if name == "jobmanager":
            cluster.flink.overview()
            return True
        if name.startswith("taskmanager-"):
            return any(one["id"].startswith(f"{name}-") for one in cluster.flink.task_managers())
        with socket.create_connection(("localhost", cluster.ports[name]), timeout=2) as connection:
            if name == "zookeeper":
                connection.sendall(b"srvr")
                return connection.recv(64).startswith(b"Zookeeper version")
            return True
    except (OSError, RestError):
        return False


def _tail(log: Path, lines: int = 15) -> str:
    try:
        kept = log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return f"It left no log {log}"
    return "\n".join([f"The end of {log}:", *kept])


def forget(folder: Path) -> None:
    """Delete the folder of a cluster that is down, with its checkpoints and savepoints."""
    load(folder)
    with _alone(folder.absolute()):
        cluster = load(folder)
        if any(part.alive for part in cluster.parts.values()):
            raise FlinkError(f"the cluster in {folder} is up; `meterline flink down` first")
    shutil.rmtree(folder)


def status(cluster: Cluster) -> dict[str, Any]:
    """What is alive, what Flink has, and which jobs there are, as plain data.

    Returns:
      `parts` (name, pid, port, alive, metrics, log), `task_managers`, `slots`, `free_slots` and `jobs` (as
      `Flink.jobs`); of Flink None, and no jobs, where the JobManager does not answer.
    """
    parts = [
        {
            "part": part.name,
            "pid": part.pid or None,
            "port": part.port,
            "alive": part.alive,
            "metrics": cluster.metrics.get(part.name),
            "log": str(cluster.log(part.name)),
        }
        for part in cluster.parts.values()
    ]
    told: dict[str, Any] = {
        "folder": str(cluster.folder),
        "rest_url": cluster.rest_url,
        "code": cluster.code,
        "parts": parts,
    }
    try:
        if not cluster.parts["jobmanager"].alive:
            raise RestError("the JobManager is dead")
        overview, jobs = cluster.flink.overview(), [dataclasses.asdict(job) for job in cluster.flink.jobs()]
    except RestError:
        return {**told, "task_managers": None, "slots": None, "free_slots": None, "jobs": []}
    return {
        **told,
        "task_managers": overview["taskmanagers"],
        "slots": overview["slots-total"],
        "free_slots": overview["slots-available"],
        "jobs": jobs,
    }
