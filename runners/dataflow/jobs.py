"""Jobs on Dataflow: with which options they run, which ones there are, and their submission.

Streaming Engine and the portable runner are what Dataflow has for streams in Python: there is nothing to choose.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import google.auth
from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    ProfilingOptions,
    SetupOptions,
    WorkerOptions,
)
from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
from apache_beam.runners.dataflow.internal import apiclient
from google.api_core.exceptions import GoogleAPIError
from google.auth.exceptions import GoogleAuthError
from google.cloud import dataflow

from meterline.runners.dataflow.place import DataflowError, Place

_NAME = r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"
_PACKAGES = (".whl", ".tar.gz", ".tar", ".zip")
# What Meterline says itself, by its own options or because nothing else is right.
_OURS = {
    "project",
    "region",
    "job_name",
    "staging_location",
    "temp_location",
    "update",
    "sdk_container_image",
    "extra_packages",
}
AT_LEAST_ONCE = "streaming_mode_at_least_once"

# A template's own job has its name while it is launched: it is queued.
_ENDED = {
    dataflow.JobState.JOB_STATE_UNKNOWN,
    dataflow.JobState.JOB_STATE_STOPPED,
    dataflow.JobState.JOB_STATE_DONE,
    dataflow.JobState.JOB_STATE_FAILED,
    dataflow.JobState.JOB_STATE_CANCELLED,
    dataflow.JobState.JOB_STATE_UPDATED,
    dataflow.JobState.JOB_STATE_DRAINED,
}


@dataclass(frozen=True)
class Submitted:
    """A job that Dataflow has taken."""

    id: str
    name: str
    url: str


def default_name(subscription: str) -> str:
    """The name of a subscription's job: what updates it finds it by the same."""
    said = re.sub(r"[^a-z0-9]+", "-", subscription.rpartition("/")[2].lower()).strip("-")
    return f"meterline-{said}"[:63].rstrip("-")


def options(
    place: Place,
    name: str,
    *,
    update: bool = False,
    worker_image: str | None = None,
    packages: Sequence[str] = (),
    more: Sequence[str] = (),
) -> PipelineOptions:
    """Beam's options for a stream on Dataflow.

    Args:
      name: Of the job. A job of this name that runs can be updated.
      update: Whether the job takes the place, and the state, of the one that runs.
      worker_image: A container image that holds Meterline; else workers install `packages` on Beam's own image.
      packages: Wheels or source distributions of Meterline (and what else is wanted), as local files or gs://….
      more: Further options of Beam's, as NAME=VALUE or NAME.

    Raises:
      DataflowError: an option is unknown, or would break a law.
    """
    if not re.fullmatch(_NAME, name):
        raise DataflowError(
            f"a job's name has small letters, digits and -, 63 at most, begins with a letter and does not end with -: "
            f"got {name!r}",
            code=2,
        )
    if bool(worker_image) == bool(packages):
        raise DataflowError(
            "workers need Meterline: give --worker-image (an image that holds it), or --worker-package (a wheel, "
            "`pip wheel --no-deps .`, or a source distribution), one of the two",
            code=2,
        )
    for package in packages:
        if not package.endswith(_PACKAGES):
            raise DataflowError(f"--worker-package: expected {', '.join(_PACKAGES)}, got {package!r}", code=2)
        if "://" not in package and not Path(package).is_file():
            raise DataflowError(f"--worker-package {package}: no such file", code=2)
    words = [
        "--runner=DataflowRunner",
        "--streaming",
        f"--project={place.project}",
        f"--region={place.region}",
        f"--staging_location={place.staging_location}",
        f"--temp_location={place.temp_location}",
        f"--job_name={name}",
        *([f"--sdk_container_image={worker_image}"] if worker_image else ()),
        *(f"--extra_package={package}" for package in packages),
        *(["--update"] if update else ()),
        *_checked(more),
    ]
    chosen = PipelineOptions(words)
    check_laws(chosen)
    mapping = chosen.view_as(GoogleCloudOptions).transform_name_mapping
    if mapping is not None and not update:
        raise DataflowError("transform_name_mapping is for --update: a new job has no steps to be taken over", code=2)
    return chosen


def check_laws(chosen: PipelineOptions) -> None:
    """Refuse what Dataflow offers and Meterline's laws do not bear.

    Raises:
      DataflowError: it is asked for.
    """
    cloud = chosen.view_as(GoogleCloudOptions)
    experiments = chosen.view_as(DebugOptions).experiments or []
    if AT_LEAST_ONCE in (*(cloud.dataflow_service_options or ()), *experiments):
        raise DataflowError(
            f"{AT_LEAST_ONCE}: Dataflow would hand usage on more than once, and it would be billed as often; leave it "
            "out (exactly once is the default)",
            code=2,
        )
    if cloud.create_from_snapshot:
        raise DataflowError(
            "create_from_snapshot: what was archived after the snapshot is not in its state. Leave it out: a job "
            "without state recalls the archive",
            code=2,
        )


def _checked(more: Sequence[str]) -> list[str]:
    """Beam drops options that it does not know without a word."""
    words = ["--" + one.removeprefix("--") for one in more]
    parser = _Parser(add_help=False, allow_abbrev=False)
    for part in (GoogleCloudOptions, WorkerOptions, DebugOptions, SetupOptions, ProfilingOptions):
        part._add_argparse_args(parser)
    for word in words:
        found, unknown = parser.parse_known_args([word])
        if unknown:
            raise DataflowError(f"--dataflow-option {word[2:]}: Beam has no such option for Dataflow", code=2)
        ours = [name for name in _OURS if getattr(found, name) != parser.get_default(name)]
        if ours:
            raise DataflowError(f"--dataflow-option {word[2:]}: Meterline has an option of its own for that", code=2)
    return words


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise DataflowError(f"--dataflow-option: {message}", code=2)


def pipeline(chosen: PipelineOptions) -> beam.Pipeline:
    """An empty pipeline of these options, which Beam has checked, and whether credentials can be had.

    Raises:
      DataflowError: Beam refuses the options; there are no credentials.
    """
    cloud = chosen.view_as(GoogleCloudOptions)
    try:
        if not cloud.no_auth:
            google.auth.default(scopes=cloud.gcp_oauth_scopes)
        return beam.Pipeline(runner=DataflowRunner(), options=chosen)
    except GoogleAuthError as error:
        raise DataflowError(
            f"no credentials for Google Cloud: {str(error).rstrip('.')}. Run `gcloud auth application-default login`"
        ) from None
    except ValueError as error:
        raise DataflowError(f"Beam refuses the options: {' '.join(str(error).split())}", code=2) from None
    except GoogleAPIError as error:
        raise DataflowError(f"Google Cloud does not answer: {_said(error)}") from None


def name(chosen: PipelineOptions) -> str:
    """Of the job, with its project and region."""
    cloud = chosen.view_as(GoogleCloudOptions)
    return f"{cloud.job_name} in {cloud.project}, {cloud.region}"


def check_name(chosen: PipelineOptions, resumes: bool) -> None:
    """Refuse a start where a job of this name is active, and an update where none runs.

    Before a run begins: a new one would end that of the job that is there.

    Raises:
      DataflowError: it is so, or Dataflow does not answer.
    """
    cloud = chosen.view_as(GoogleCloudOptions)
    request = dataflow.ListJobsRequest(
        project_id=cloud.project, location=cloud.region, filter=dataflow.ListJobsRequest.Filter.ACTIVE
    )
    try:
        # Beam's own look-up asks for ever where it finds none.
        listed = apiclient.DataflowApplicationClient(chosen)._jobs_client.list_jobs(request)
        there = [
            job
            for job in listed
            if job.name == cloud.job_name
            and job.current_state not in _ENDED
            and job.current_state != dataflow.JobState.JOB_STATE_QUEUED
        ]
    except (GoogleAPIError, GoogleAuthError) as error:
        raise DataflowError(_refused(cloud, error)) from None
    running = [job for job in there if job.current_state == dataflow.JobState.JOB_STATE_RUNNING]
    told = ", ".join(f"{job.id} is {_state(job)}" for job in there) or "there is none"
    where = name(chosen)
    if resumes and (len(running) != 1 or len(there) != 1):
        raise DataflowError(
            f"--update takes the place of a job that runs: of {where} {told}. After a drain start without --update: "
            "the state is gone, the archive is recalled",
            code=2,
        )
    if there and not resumes:
        raise DataflowError(
            f"a job {where} is there already: {told}. Give --update to replace it and keep its state, drain it and "
            "wait until it is drained, or give this one another name",
            code=2,
        )


def submit(empty: beam.Pipeline, build: Callable[[beam.Pipeline], None]) -> Submitted | None:
    """Stage a pipeline and hand it to Dataflow; none where the options say that only its template is to be written.

    Args:
      empty: What `pipeline` gave.

    Raises:
      DataflowError: it cannot be staged, or Dataflow refuses it.
    """
    cloud = empty.options.view_as(GoogleCloudOptions)
    build(empty)
    region, project = cloud.region, cloud.project
    try:
        result: Any = empty.run()
    except apiclient.DataflowJobAlreadyExistsError as error:
        raise DataflowError(str(error), code=2) from None
    except (GoogleAPIError, GoogleAuthError, OSError) as error:
        raise DataflowError(_refused(cloud, error)) from None
    if not result.has_job:
        return None
    job = result.job_id()
    return Submitted(
        job, cloud.job_name, f"https://console.cloud.google.com/dataflow/jobs/{region}/{job}?project={project}"
    )


def _refused(cloud: GoogleCloudOptions, error: Exception) -> str:
    return f"Dataflow in {cloud.project}, {cloud.region} cannot be used: {_said(error)}"


def _said(error: Exception) -> str:
    return " ".join(str(getattr(error, "message", None) or error).split())


def _state(job: Any) -> str:
    return str(job.current_state.name).removeprefix("JOB_STATE_").lower()
