"""A real Flink cluster and the Pub/Sub emulator, for `make test-flink`. Nothing is skipped: what is missing fails.

Java, Maven and the emulator are not needed for `make test`, which leaves this folder out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest

from meterline.runners.flink import cluster as clusters
from meterline.runners.flink import processes
from meterline.runners.flink.rest import ENDED
from tests.flink.emulator import Emulator

ROOT = Path(__file__).parent.parent.parent
collect_ignore_glob = [] if os.environ.get("METERLINE_FLINK_TESTS") else ["test_*.py"]


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with Emulator(tmp_path_factory.mktemp("emulator")) as running:
        yield running


@pytest.fixture(scope="session")
def outside() -> Iterator[list[str]]:
    """What anybody in the cluster asked of addresses that are not this machine's: the proxy that all of it uses."""
    asked: list[str] = []

    class Proxy(StreamRequestHandler):
        def handle(self) -> None:
            asked.append(self.rfile.readline(1000).decode("utf-8", "replace").strip())
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with ThreadingTCPServer(("127.0.0.1", 0), Proxy) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asked.append(f"listening at {server.server_address[1]}")
        yield asked
        server.shutdown()


class FlinkCommand:
    """Runs `meterline flink …` on one folder as an operator does, in a process of its own."""

    def __init__(self, folder: Path, proxy: str) -> None:
        self.folder = folder
        host, port = proxy.split(":")
        java = [f"-D{scheme}.proxy{what}" for scheme in ("http", "https") for what in (f"Host={host}", f"Port={port}")]
        self.environment = {
            **os.environ,
            # The workers import this folder's modules.
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "JAVA_TOOL_OPTIONS": " ".join(java),
            **dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), f"http://{proxy}"),
            "no_proxy": "localhost,127.0.0.1,::1",
        }

    def __call__(self, *words: object, code: int = 0) -> str:
        command = [
            sys.executable,
            "-m",
            "meterline.runners.cli",
            "flink",
            *map(str, words),
            "--folder",
            str(self.folder),
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=600, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    @property
    def cluster(self) -> clusters.Cluster:
        return clusters.load(self.folder)

    def cancel_all(self) -> None:
        """Cancel all jobs that have not ended."""
        rest = self.cluster.flink
        for job in rest.jobs():
            if job.state not in ENDED:
                rest.cancel(job.id)
                rest.wait(job.id)

    def living(self) -> list[int]:
        """Whatever lives of the cluster, workers included."""
        return [pid for part in self.cluster.parts.values() for pid in processes.members(part.pid, part.identity)]


@pytest.fixture(scope="session")
def flink(tmp_path_factory: pytest.TempPathFactory, outside: list[str]) -> Iterator[FlinkCommand]:
    command = FlinkCommand(tmp_path_factory.mktemp("flink") / "cluster", f"127.0.0.1:{outside[0].split()[-1]}")
    try:
        # A machine that runs tests is busy: parts that are slow to answer are not dead.
        command("up", "--option", "heartbeat.timeout=30000")
        yield command
    finally:
        if (command.folder / "cluster.json").exists():
            clusters.down(command.folder)
