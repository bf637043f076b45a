"""What fails on purpose: connections that are cut, and a ClickHouse that is killed, or slow."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from meterline.runners.flink.cluster import free_ports

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Proxy:
    """Between clients and a server at HOST:PORT. Cut, it ends all connections, and refuses new ones until mended."""

    def __init__(self, server: str) -> None:
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.connections = 0
        self._port = next(free_ports())
        self._listener = self._listening(self._port)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def cut(self) -> int:
        """How many connections were cut."""
        with self._lock:
            _end(self._listener)
            count = len(self._open) // 2
            while self._open:
                one = self._open.pop()
                # An abort, as when the other machine is gone; not an orderly end.
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                _end(one)
        return count

    def mend(self) -> None:
        self._listener = self._listening(self._port)

    def _listening(self, port: int) -> socket.socket:
        listener = listen(port)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            try:
                server = socket.create_connection(self._server, timeout=5)
                server.settimeout(None)
            except OSError:
                client.close()
                continue
            with self._lock:
                if listener.fileno() < 0:
                    client.close()
                    server.close()
                    return
                self._open |= {client, server}
                self.connections += 1
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65_536):
                other.sendall(data)
        with self._lock:
            for end in (one, other):
                if end in self._open:
                    self._open.discard(end)
                    _end(end)


def listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    return listener


def _end(one: socket.socket) -> None:
    # Closing alone does not wake a thread that waits for it.
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


class ClickHouse:
    """`meterline clickhouse serve` on a folder and a port that it keeps."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._environment = folder, dict(environment)
        folder.mkdir()
        self.port = next(free_ports())
        self.url = f"http://127.0.0.1:{self.port}/default"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        ready = self._folder / "ready.json"
        ready.unlink(missing_ok=True)
        words = ["clickhouse", "serve", "--clickhouse", f"chdb://{self._folder / 'database'}", "--port", str(self.port)]
        with (self._folder / "serve.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "meterline.runners.cli", *words, "--ready-file", str(ready)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
            )
        deadline = time.monotonic() + 120
        while not ready.exists():
            assert self._process.poll() is None, (self._folder / "serve.log").read_text()
            assert time.monotonic() < deadline, "meterline clickhouse serve is not ready"
            time.sleep(0.05)
        assert json.loads(ready.read_text())["pid"] == self._process.pid

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def ask(self, sql: str) -> str | None:
        """The answer, without its last line feed; None when there is none."""
        url = f"http://127.0.0.1:{self.port}/?" + urllib.parse.urlencode({"query": sql})
        try:
            with _DIRECT.open(url, timeout=20) as answer:
                return answer.read().decode().removesuffix("\n")
        except OSError:
            return None

    @contextmanager
    def slow(self, stopped: float = 0.9, running: float = 0.25) -> Iterator[None]:
        """A server that stands still most of the time."""
        over = threading.Event()

        def stutter() -> None:
            while not over.is_set():
                process = self._process
                assert process is not None
                process.send_signal(signal.SIGSTOP)
                over.wait(stopped)
                process.send_signal(signal.SIGCONT)
                over.wait(running)

        thread = threading.Thread(target=stutter, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    @contextmanager
    def refused(self) -> Iterator[list[float]]:
        """While the server is dead: when somebody knocked at its port, and was turned away."""
        knocks: list[float] = []
        listener = listen(self.port)

        def turn_away() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()
                    knocks.append(time.monotonic())

        thread = threading.Thread(target=turn_away, daemon=True)
        thread.start()
        try:
            yield knocks
        finally:
            _end(listener)
            thread.join()


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
