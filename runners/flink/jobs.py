"""Jobs on Flink: where they go, with which options, and what becomes of them.

    target = local(folder)                              # or Target(…) for a cluster elsewhere
    chosen = options(target, "meterline-rate", parallelism=2)
    job = submit(build, target, chosen)                 # build(pipeline) adds the stages
    watch(job, print)                                   # until it ends, or fails again and again

`watch` asks Flink, not Beam's job server: the job server forgets a job when it dies, and takes one for failed whose
JobManager was away for a minute. A failing job says RUNNING or RESTARTING to both for ever.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.portability.api import beam_job_api_pb2
from apache_beam.runners.portability.portable_runner import PortableRunner

from meterline.runners.flink import cluster as clusters
from meterline.runners.flink.home import FlinkError
from meterline.runners.flink.rest import ENDED, Failure, Flink, RestError

_NO_CREDENTIALS = "org.apache.beam.sdk.extensions.gcp.auth.NoopCredentialFactory"
_BEAM_ENDED = (beam_job_api_pb2.JobState.FAILED, beam_job_api_pb2.JobState.CANCELLED)


class JobFailed(FlinkError):
    """A job ended badly, or fails again and again; `failure` is the latest one."""

    def __init__(self, message: str, failure: Failure | None = None) -> None:
        super().__init__(message, code=1)
        self.failure = failure


@dataclass(frozen=True)
class Target:
    """Where jobs go.

    Args:
      rest_url: Flink's REST API, as this machine reaches it.
      job_endpoint: HOST:PORT of Beam's job server.
      expansion_service: HOST:PORT of the expansion service, one that was started with `use_deprecated_read`.
      worker_pool: HOST:PORT of the Python worker pool, as a *TaskManager* reaches it: localhost:50000 for a sidecar.
    """

    rest_url: str
    job_endpoint: str
    expansion_service: str
    worker_pool: str

    @property
    def flink(self) -> Flink:
        return Flink(self.rest_url)


@dataclass(frozen=True)
class Submitted:
    """A job that Flink has taken."""

    id: str
    name: str
    flink: Flink


def local(folder: Path = clusters.DEFAULT_FOLDER) -> Target:
    """The cluster that `meterline flink up` started in a folder.

    Raises:
      FlinkError: there is none, a part of it is dead, or its workers would load another Meterline than this one.
    """
    found = clusters.load(folder)
    dead = [part.name for part in found.parts.values() if not part.alive]
    if len(dead) == len(found.parts):
        raise FlinkError(f"the Flink cluster in {found.folder} is down; `meterline flink up` starts it", code=2)
    if dead:
        raise FlinkError(
            f"{', '.join(dead)} of the cluster in {found.folder} is dead; `meterline flink start` mends it"
        )
    if found.code != clusters.code():
        raise FlinkError(
            f"the workers of the cluster in {found.folder} load Meterline {found.code}, and this is {clusters.code()}; "
            "`meterline flink start --part worker-pool` with this one lets them load it",
            code=2,
        )
    return Target(found.rest_url, found.job_endpoint, found.expansion_service, found.worker_pool)


_NUMBERS = ("checkpointing_interval", "min_pause_between_checkpoints", "max_bundle_size", "max_bundle_time_mills")
_SWITCHES = (
    *("finish_bundle_before_checkpointing", "externalized_checkpoints_enabled"),
    *("retain_externalized_checkpoints_on_cancellation", "allow_non_restored_state"),
)


class _JavaOptions(PipelineOptions):
    """Options of Beam's Java side, sent under the names that it knows.

    Python's own --pubsub_root_url is sent as `pubsubRootUrl`, which Java drops without a word. Those of Flink's runner
    are known to the job server, too; declared here, they are checked before it is asked.
    """

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        parser.add_argument("--java_pubsub_root_url", dest="pubsub_root_url")
        parser.add_argument("--java_credential_factory_class", dest="credential_factory_class")
        parser.add_argument("--savepoint_path")
        for name in _NUMBERS:
            parser.add_argument(f"--{name}", type=int)
        for name in _SWITCHES:
            # None, not False, where it was not said: then it is not sent.
            parser.add_argument(f"--{name}", action="store_true", default=None)


def options(
    target: Target,
    name: str,
    *,
    parallelism: int = 2,
    max_parallelism: int | None = None,
    checkpoint_seconds: float = 10,
    bundle_size: int = 5000,
    bundle_seconds: float = 0.1,
    workers: int = 1,
    savepoint: str | None = None,
    allow_non_restored_state: bool = False,
    pubsub_emulator: str | None = None,
    more: Sequence[str] = (),
) -> PipelineOptions:
    """Beam's options for a stream on Flink.

    Args:
      name: Of the job, as Flink shows it. The same name finds it again.
      parallelism: Slots that it takes, and readers of each subscription.
      max_parallelism: How far it can be scaled out when it is resumed, and then *also* how many readers each
        subscription has; without it, Flink's default (128) and as many readers as `parallelism`.
      checkpoint_seconds: Pub/Sub's messages are acknowledged, and repeated work after a crash reaches back, that far.
      bundle_size, bundle_seconds: A bundle is handed to Python when it has so many elements, or after so long.
      workers: Python processes of each TaskManager.
      savepoint: Where to resume from: a savepoint, or a retained checkpoint (`Flink.checkpoints(id).path`).
      allow_non_restored_state: Resume though the pipeline lost a step whose state the savepoint holds; it is dropped.
      pubsub_emulator: HOST:PORT; then no credentials are looked for either.
      more: Further options, as Beam takes them on a command line.
    """
    words = [
        f"--job_endpoint={target.job_endpoint}",
        "--environment_type=EXTERNAL",
        f"--environment_config={target.worker_pool}",
        "--streaming",
        f"--job_name={name}",
        f"--parallelism={parallelism}",
        f"--checkpointing_interval={round(checkpoint_seconds * 1000)}",
        f"--min_pause_between_checkpoints={round(checkpoint_seconds * 300)}",
        f"--max_bundle_size={bundle_size}",
        f"--max_bundle_time_mills={round(bundle_seconds * 1000)}",
        # What is in flight when the barrier comes belongs to the checkpoint.
        "--finish_bundle_before_checkpointing",
        "--externalized_checkpoints_enabled",
        "--retain_externalized_checkpoints_on_cancellation",
    ]
    if workers != 1:
        words.append(f"--sdk_worker_parallelism={workers}")
    if max_parallelism is not None:
        words.append(f"--max_parallelism={max_parallelism}")
    if savepoint is not None:
        words.append(f"--savepoint_path={savepoint}")
    if allow_non_restored_state:
        words.append("--allow_non_restored_state")
    if pubsub_emulator is not None:
        # Otherwise Java asks the metadata server of a machine in the cloud who it is.
        words.append(f"--java_pubsub_root_url=http://{pubsub_emulator}")
        words.append(f"--java_credential_factory_class={_NO_CREDENTIALS}")
    return PipelineOptions([*words, *more])


def check_free(target: Target, name: str) -> None:
    """Refuse a job's name that another one has.

    Raises:
      FlinkError: a job of this name runs, or Flink does not answer.
    """
    running = [job for job in target.flink.jobs() if job.name == name and job.state not in ENDED]
    if running:
        raise FlinkError(
            f"a job {name} is {running[0].state.lower()} already: {running[0].id}. Stop it first "
            f"(`meterline flink stop {name}`), or give this one another name",
            code=2,
        )


def is_state_of(path: str, job_id: str) -> bool:
    """Whether a savepoint, or a retained checkpoint, is a job's, by where Flink lays them: `…/savepoint-` and the first
    six digits of the job's id, `…/` and the whole id and `/chk-` and a number."""
    *_, folder, name = ("", *path.rstrip("/").split("/"))
    if name == "_metadata":
        return is_state_of(path.rstrip("/").removesuffix("/_metadata"), job_id)
    if name.startswith("savepoint-"):
        return name.startswith(f"savepoint-{job_id[:6]}-")
    return folder == job_id and re.fullmatch(r"chk-\d+", name) is not None


def submit(
    build: Callable[[beam.Pipeline], None], target: Target, chosen: PipelineOptions, seconds: float = 120
) -> Submitted:
    """Hand a pipeline to Flink; returns when Flink has taken it.

    Raises:
      FlinkError: the job server or Flink does not answer, or a job of this name runs already.
      JobFailed: the pipeline was refused.
    """
    flink, name = target.flink, chosen.get_all_options()["job_name"]
    check_free(target, name)
    before = {job.id for job in flink.jobs()}
    pipeline = beam.Pipeline(runner=PortableRunner(), options=chosen)
    assert chosen.view_as(StandardOptions).streaming
    try:
        build(pipeline)
        result: Any = pipeline.run()
    except grpc.FutureTimeoutError:
        raise FlinkError(f"the job server does not answer at {target.job_endpoint}") from None
    except grpc.RpcError as error:
        said = error.details() if isinstance(error, grpc.Call) else str(error)
        raise FlinkError(
            f"the job server at {target.job_endpoint} or the expansion service at {target.expansion_service} does not "
            f"answer: {said}"
        ) from None
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for job in flink.jobs():
            if job.name == name and job.id not in before:
                return Submitted(job.id, name, flink)
        asked = beam_job_api_pb2.GetJobStateRequest(job_id=result._job_id)
        if result._job_service.GetState(asked).state in _BEAM_ENDED:
            raise JobFailed(f"Flink refused the job {name}:\n{_refusal(result)}")
        time.sleep(0.3)
    raise FlinkError(f"Flink at {target.rest_url} has not taken the job {name} after {seconds:.0f} s")


def _refusal(result: Any) -> str:
    """What the job server said of a job that failed before Flink had it."""
    request = beam_job_api_pb2.JobMessagesRequest(job_id=result._job_id)
    errors = []
    for one in result._job_service.GetMessageStream(request):
        message = one.message_response
        if message.importance >= beam_job_api_pb2.JobMessage.JOB_MESSAGE_WARNING:
            errors += message.message_text.splitlines()[:1]
    return "\n".join(errors[-3:]) or "(it did not say why; see the log of the job server)"


def watch(
    job: Submitted,
    say: Callable[[str], None],
    *,
    repeats: int = 3,
    steady_seconds: float = 60,
    cancel: bool = False,
    poll_seconds: float = 2,
    forget_seconds: float = 30,
    until: Callable[[], bool] = lambda: False,
) -> str:
    """Follow a job until it ends, telling what happens to it.

    A failure of a machine, or one of the pipeline's own that does not come again, is told and then that the job
    recovered, and from which checkpoint. A step of the pipeline that fails `repeats` times with the same error is
    fatal, unless the job ran for `steady_seconds` and completed a checkpoint in between.

    Args:
      cancel: Cancel a job with a fatal failure; otherwise Flink goes on trying.
      forget_seconds: How long Flink may not know the job.
      until: Asked at each poll; once true, watching ends.

    Returns:
      The state that the job ended in (FINISHED or CANCELED), or its last when `until` was true.

    Raises:
      JobFailed: it ended in FAILED, has a fatal failure, or Flink knows it no longer.
    """
    seen = _Seen(repeats, steady_seconds)
    reached, known = True, time.monotonic()
    while True:
        try:
            state = job.flink.job(job.id).state
            failures = list(reversed(job.flink.failures(job.id)))
            checkpoints = job.flink.checkpoints(job.id)
        except RestError as error:
            # A JobManager that was just restarted has yet to find its jobs.
            if error.status == 404 and time.monotonic() - known > forget_seconds:
                raise JobFailed(f"Flink at {job.flink.url} does not know the job {job.id} any more") from None
            if reached:
                say(f"{error}; waiting for it")
            reached = False
            # Where nobody answers, nobody said that the job is gone.
            known = known if error.status == 404 else time.monotonic()
            time.sleep(poll_seconds)
            continue
        known = time.monotonic()
        if not reached:
            say("Flink answers again")
        reached = True
        seen.begin(failures, checkpoints.completed_id, checkpoints.restored_id)
        for one in filter(seen.is_new, failures):
            seen.add(one)
            last = (one.message.splitlines() or [""])[-1]
            say(f"{one.at:%H:%M:%S} {'failed' if one.is_user_code else 'lost'}: {last}")
        recovery = seen.progress(state, checkpoints.completed_id, checkpoints.restored_id)
        if recovery:
            say(recovery)
        if state in ENDED:
            if state == "FAILED":
                latest = seen.latest
                raise JobFailed(
                    f"the job {job.name} failed: {latest.message if latest else 'Flink does not say why'}", latest
                )
            return state
        if seen.fatal:
            latest = seen.latest
            assert latest is not None
            if cancel:
                job.flink.cancel(job.id)
            after = "it was cancelled" if cancel else f"Flink goes on trying; `meterline flink cancel {job.id}` ends it"
            raise JobFailed(
                f"the job {job.name} failed {seen.count} times alike, and gets no further ({after}):\n{latest.message}",
                latest,
            )
        if until():
            return state
        time.sleep(poll_seconds)


class _Seen:
    """What a watcher knows of a job's failures: whether they are new, come again, or are over."""

    def __init__(self, repeats: int, steady_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._repeats, self._steady, self._clock = repeats, steady_seconds, clock
        self._known: set[tuple[datetime, str]] = set()
        self._began = False
        self.latest: Failure | None = None
        self.count = 0
        self._kind = ""
        self._failed_at = 0.0
        self._checkpoint = self._checkpoint_then = 0
        self._restored: int | None = None
        self._recovering = self._moved = False

    def begin(self, failures: list[Failure], completed_id: int, restored_id: int | None) -> None:
        """The first look: what a job failed of long ago is over."""
        if self._began:
            return
        self._began, self._checkpoint, self._restored = True, completed_id, restored_id
        long_ago = datetime.now(UTC) - timedelta(seconds=self._steady)
        self._known |= {(one.at, one.task) for one in failures if one.at < long_ago}

    @property
    def fatal(self) -> bool:
        return self.count >= self._repeats

    def is_new(self, failure: Failure) -> bool:
        return (failure.at, failure.task) not in self._known

    def add(self, failure: Failure) -> None:
        self._known.add((failure.at, failure.task))
        # Parallel tasks meet the same error within moments of each other: that is one failure.
        if self.latest is not None and self.latest.message == failure.message and _near(self.latest.at, failure.at):
            return
        # What differs between two failures alike: numbers, ids, addresses.
        kind = re.sub(r"\d+|0x[0-9a-f]+", "#", failure.message.splitlines()[-1] if failure.message else "")
        if failure.is_user_code:
            self.count = self.count + 1 if kind == self._kind else 1
            self._kind = kind
        self.latest = failure
        self._recovering, self._failed_at, self._checkpoint_then = True, self._clock(), self._checkpoint

    def progress(self, state: str, completed_id: int, restored_id: int | None) -> str | None:
        """What to tell of a recovery, if there was one."""
        self._checkpoint = max(self._checkpoint, completed_id)
        moved = restored_id is not None and restored_id != self._restored
        self._restored = restored_id
        self._moved = moved or self._moved
        told = None
        further = self._checkpoint > self._checkpoint_then
        if state == "RUNNING" and (self._moved or (self._recovering and further)):
            where = f" from checkpoint {restored_id}" if restored_id is not None else ""
            told = f"{datetime.now(UTC):%H:%M:%S} recovered{where}"
            self._recovering = self._moved = False
        if (
            self.count
            and state == "RUNNING"
            and self._checkpoint > self._checkpoint_then
            and self._clock() - self._failed_at > self._steady
        ):
            self.count, self._kind = 0, ""
        return told


def _near(one: datetime, other: datetime) -> bool:
    return abs((one - other).total_seconds()) < 0.5
