"""A Flink cluster by its REST API, wherever it runs."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from meterline.runners.flink.home import FlinkError

# A job in one of these does not come back.
ENDED = ("FINISHED", "FAILED", "CANCELED")


class RestError(FlinkError):
    """Flink's REST API does not answer, or refuses; `status` is HTTP's, None where nobody answers."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Job:
    """`state` is Flink's: CREATED, RUNNING, RESTARTING, FAILING, CANCELLING, FINISHED, FAILED, CANCELED, …"""

    id: str
    name: str
    state: str
    started: datetime


@dataclass(frozen=True)
class Failure:
    """One failure of a job.

    Args:
      message: What went wrong: the user's Python error if there is one, else the innermost Java one.
      is_user_code: Whether a step of the pipeline raised it.
      task: The Flink task that failed.
      raw: All that Flink says.
    """

    at: datetime
    message: str
    is_user_code: bool
    task: str
    raw: str


@dataclass(frozen=True)
class Checkpoints:
    """Counts since the job was submitted; a restarted JobManager counts anew, except that ids of checkpoints go on.

    Args:
      completed_id: Of the latest completed one, 0 for none.
      completed_at: When that one began.
      path: Where it lies, if it can be resumed from.
      restored: How often the job was restored from one.
      restored_id: The latest it was restored from.
      seconds: How long the latest completed one took.
    """

    completed: int
    failed: int
    completed_id: int
    path: str | None
    restored: int
    restored_id: int | None
    seconds: float = 0.0
    completed_at: datetime | None = None


class Flink:
    """The REST API at a URL such as http://localhost:8081."""

    def __init__(self, url: str, timeout: float = 10) -> None:
        self.url, self._timeout = url.rstrip("/"), timeout
        try:
            parts = urllib.parse.urlsplit(url)
            is_one = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
        except ValueError:
            is_one = False
        if not is_one or parts.username:
            raise FlinkError("expected the URL of Flink's REST API, like http://HOST:8081, without a user", code=2)

    def overview(self) -> dict[str, Any]:
        return self._call("/overview")

    def task_managers(self) -> list[dict[str, Any]]:
        return self._call("/taskmanagers")["taskmanagers"]

    def jobs(self) -> list[Job]:
        """All jobs that the cluster remembers, the latest first."""
        found = [
            Job(one["jid"], one["name"], one["state"], _instant(one["start-time"]))
            for one in self._call("/jobs/overview")["jobs"]
        ]
        return sorted(found, key=lambda job: job.started, reverse=True)

    def job(self, id: str) -> Job:
        one = self._call(f"/jobs/{id}")
        return Job(one["jid"], one["name"], one["state"], _instant(one["start-time"]))

    def failures(self, id: str, limit: int = 20) -> list[Failure]:
        """The latest failures of a job, the newest first."""
        history = self._call(f"/jobs/{id}/exceptions?maxExceptions={limit}").get("exceptionHistory") or {}
        return [
            Failure(
                _instant(entry["timestamp"]),
                cause(entry.get("stacktrace") or ""),
                _python(entry.get("stacktrace") or "") is not None,
                entry.get("taskName") or "",
                entry.get("stacktrace") or "",
            )
            for entry in history.get("entries", [])
        ]

    def checkpoints(self, id: str) -> Checkpoints:
        told = self._call(f"/jobs/{id}/checkpoints")
        latest = told.get("latest") or {}
        done, restored = latest.get("completed") or {}, latest.get("restored") or {}
        path = done.get("external_path")
        return Checkpoints(
            told["counts"]["completed"],
            told["counts"]["failed"],
            done.get("id", 0),
            path if path and path.startswith(("file:", "gs:", "s3:", "hdfs:", "abfs")) else None,
            told["counts"]["restored"],
            restored.get("id"),
            done.get("end_to_end_duration", 0) / 1000,
            _instant(done["trigger_timestamp"]) if "trigger_timestamp" in done else None,
        )

    def restarts(self, id: str) -> int:
        """How often Flink restarted a job, since the JobManager did."""
        found = self._call(f"/jobs/{id}/metrics?get=numRestarts")
        return int(float(found[0]["value"])) if found else 0

    def watermarks(self, id: str) -> list[int]:
        """The input watermarks of a job's tasks, each that of its slowest subtask, in milliseconds since 1970."""
        found = []
        for vertex in self._call(f"/jobs/{id}")["vertices"]:
            marks = [int(one["value"]) for one in self._call(f"/jobs/{id}/vertices/{vertex['id']}/watermarks")]
            found += [min(marks)] if marks else []
        return found

    def cancel(self, id: str) -> None:
        """Cancel a job; its retained checkpoints stay."""
        self._call(f"/jobs/{id}?mode=cancel", "PATCH")

    def savepoint(self, id: str, folder: str | None = None, seconds: float = 600) -> str:
        """Save a job's state while it runs on.

        A job that goes on from there knows nothing of what was read and acknowledged since; `stop` is for that.

        Args:
          folder: A URI that all TaskManagers reach; default: the cluster's `state.savepoints.dir`.

        Returns:
          Where it lies, for `options(savepoint=…)`.

        Raises:
          RestError: it failed, or took longer than `seconds`.
        """
        return self._saved(id, folder, False, seconds)

    def stop(self, id: str, folder: str | None = None, seconds: float = 600) -> str:
        """End a job with a savepoint, from which it can go on, and see it end.

        Not by Flink's own «stop with savepoint»: to Beam's sources that is the end of the world. They send the last
        watermark, all windows close and all state is gone before the savepoint is made.
        """
        # Flink makes no checkpoint between this savepoint and the end, so nothing more is acknowledged.
        place = self._saved(id, folder, True, seconds)
        self.wait(id)
        return place

    def wait(self, id: str, states: tuple[str, ...] = ENDED, seconds: float = 60) -> str:
        """The state of a job once it is one of `states`."""
        deadline = time.monotonic() + seconds
        while (state := self.job(id).state) not in states:
            if time.monotonic() > deadline:
                raise RestError(f"job {id} is {state} after {seconds:.0f} s, expected {' or '.join(states)}")
            time.sleep(0.2)
        return state

    def _saved(self, id: str, folder: str | None, and_cancel: bool, seconds: float) -> str:
        asked = {"cancel-job": and_cancel, **({"target-directory": folder} if folder else {})}
        request = self._call(f"/jobs/{id}/savepoints", "POST", asked)["request-id"]
        deadline = time.monotonic() + seconds
        while True:
            told = self._call(f"/jobs/{id}/savepoints/{request}")
            if told["status"]["id"] == "COMPLETED":
                done = told["operation"]
                if done.get("failure-cause"):
                    raise RestError(f"the savepoint failed: {cause(done['failure-cause'].get('stack-trace') or '')}")
                return done["location"]
            if time.monotonic() > deadline:
                raise RestError(f"the savepoint of job {id} is not done after {seconds:.0f} s")
            time.sleep(0.2)

    def _call(self, path: str, method: str = "GET", body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            # Not through a proxy that the environment names: it would be asked for this machine's own addresses.
            opener = _DIRECT if _is_local(self.url) else urllib.request.build_opener()
            with opener.open(request, timeout=self._timeout) as answer:
                text = answer.read()
            return json.loads(text) if text else {}
        except urllib.error.HTTPError as error:
            text = error.read().decode("utf-8", "replace")
            try:
                said = "\n".join(cause(one) for one in json.loads(text)["errors"] if one)
            except (ValueError, KeyError, TypeError):
                said = text[:500]
            raise RestError(
                f"Flink at {self.url} answers {error.code} to {method} {path}: {said}", error.code
            ) from None
        except (OSError, ValueError) as error:
            raise RestError(f"Flink's REST API does not answer at {self.url}: {error}") from None


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _is_local(url: str) -> bool:
    return urllib.parse.urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def _instant(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _python(stacktrace: str) -> str | None:
    """The Python traceback in a Java one, from its first line to the error's message; None when there is none."""
    begin = stacktrace.rfind("Traceback (most recent call last):")
    if begin < 0:
        return None
    kept: list[str] = []
    for line in stacktrace[begin:].splitlines():
        if re.match(r"\s*(at [\w$.<>/]+\(|\.\.\. \d+ more|Suppressed: |Caused by: )", line):
            break
        kept.append(line.rstrip())
    while kept and not kept[-1]:
        kept.pop()
    return "\n".join(kept)


def cause(stacktrace: str, lines: int = 5) -> str:
    """What went wrong, without Java's noise: the last lines of the Python error, or the innermost Java cause."""
    python = _python(stacktrace)
    if python is not None:
        return "\n".join(python.splitlines()[1:][-lines:])
    causes = [line for line in stacktrace.splitlines() if line and not re.match(r"\s+(at |\.\.\. )", line)]
    inner = [line for line in causes if line.startswith("Caused by: ")]
    first = inner[-1].removeprefix("Caused by: ") if inner else (causes[0] if causes else "")
    return re.sub(r"^(?:[a-z][\w$]*\.)+(?=[A-Z])", "", first)[:2_000]
