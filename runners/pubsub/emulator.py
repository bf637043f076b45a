"""Pub/Sub's emulator on this machine, for demos and tests.

It comes with the Google Cloud SDK and needs Java. It keeps everything in memory, and nothing of it outlives the process
that started it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meterline.runners.pubsub.client import PubSubError

JAR = "METERLINE_PUBSUB_EMULATOR_JAR"
HOST = "PUBSUB_EMULATOR_HOST"
_SDK = Path("/usr/lib/google-cloud-sdk")
_START_SECONDS = 60
_TRIES = 3
# Becomes Java, after asking Linux to end it when its parent ends; elsewhere the parent alone does.
_LAUNCH = """
import ctypes, os, signal, sys
try:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
except (AttributeError, OSError):
    pass
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def find_jar() -> Path:
    """Where the emulator is.

    Raises:
      PubSubError: nowhere.
    """
    if given := os.environ.get(JAR):
        if Path(given).is_file():
            return Path(given)
        raise PubSubError(f"{JAR} names {given}, which is no file")
    gcloud = shutil.which("gcloud")
    for sdk in ([Path(gcloud).resolve().parent.parent] if gcloud else []) + [_SDK]:
        if found := sorted(sdk.glob("platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar")):
            return found[-1]
    raise PubSubError(
        "the Pub/Sub emulator is not on this machine: `gcloud components install pubsub-emulator` (or the package "
        f"google-cloud-cli-pubsub-emulator) brings it, or {JAR} names its jar"
    )


def find_java() -> str:
    """The command that runs Java.

    Raises:
      PubSubError: there is none.
    """
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin") if home else None
    if found := found or shutil.which("java"):
        return found
    raise PubSubError("the Pub/Sub emulator needs Java 11 or newer; no `java` is on the PATH")


@contextmanager
def emulator(log: Path | None = None) -> Iterator[str]:
    """Run the emulator on a free port; clients made meanwhile go there, as `PUBSUB_EMULATOR_HOST` says so.

    Args:
      log: File for what it prints; none for one that goes with it.

    Returns:
      `127.0.0.1:PORT`.

    Raises:
      PubSubError: Java or the emulator is not there, or it does not start.
    """
    command = [find_java(), "-Xmx512m", "-jar", str(find_jar())]
    with tempfile.TemporaryDirectory(prefix="meterline-") as folder:
        log = log or Path(folder) / "emulator.log"
        process, host = _started(command, log)
        before = os.environ.get(HOST)
        os.environ[HOST] = host
        try:
            yield host
        finally:
            end(process)
            if before is None:
                os.environ.pop(HOST, None)
            else:
                os.environ[HOST] = before


def _started(command: list[str], log: Path) -> tuple[subprocess.Popen[bytes], str]:
    for _ in range(_TRIES):
        host = f"127.0.0.1:{_free_port()}"
        process = launch([*command, "--host=127.0.0.1", f"--port={host.rpartition(':')[2]}"], log)
        try:
            if _answers(process, host):
                return process, host
        except BaseException:
            end(process)
            raise
        end(process)  # Another program was faster to take the port.
    said = log.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"]
    raise PubSubError(f"the Pub/Sub emulator does not start: {said[-1]}")


def launch(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process that ends when this one does; `end` ends it before."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for its parent, which still has to finish.
        )


def _answers(process: subprocess.Popen[bytes], host: str) -> bool:
    until = time.monotonic() + _START_SECONDS
    name, _, port = host.rpartition(":")
    while time.monotonic() < until and process.poll() is None:
        try:
            with socket.create_connection((name, int(port)), timeout=1):
                return True
        except OSError:
            time.sleep(0.1)
    return False


def end(process: subprocess.Popen[bytes], seconds: float = 5) -> None:
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
