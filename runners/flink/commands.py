"""The commands `meterline flink …`."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from meterline.runners.flink import cluster as clusters
from meterline.runners.flink.home import FlinkError
from meterline.runners.flink.rest import ENDED, Flink, Job, RestError
from meterline.runners.options import AsJson

app = typer.Typer(
    help="A Flink cluster on this machine, and jobs on it or elsewhere.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
out = Console(width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True)

Folder = Annotated[
    Path, typer.Option("--folder", envvar="METERLINE_FLINK_FOLDER", help="The folder of the local cluster.")
]
Url = Annotated[
    str | None,
    typer.Option("--rest-url", envvar="METERLINE_FLINK_REST_URL", help="REST API of a cluster elsewhere."),
]
JobName = Annotated[str | None, typer.Argument(help="Id or name of the job; not needed where only one runs.")]
Into = Annotated[
    str | None, typer.Option("--into", help="URI of the folder for the savepoint; default: that of the cluster.")
]


@app.command()
def up(
    folder: Folder = clusters.DEFAULT_FOLDER,
    task_managers: Annotated[
        int, typer.Option(min=1, max=64, help="TaskManagers; each takes about 0.7 GB, more under load.")
    ] = 2,
    slots: Annotated[int, typer.Option(min=1, max=64, help="Slots of each TaskManager.")] = 2,
    port: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A port that is not to be chosen free, like rest=8081; of {', '.join(clusters.PORTS)}, and "
            "metrics-jobmanager, metrics-taskmanager-1, …"
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="An option of Flink's, like heartbeat.timeout=30000. Repeatable.", metavar="NAME=VALUE"),
    ] = None,
) -> None:
    """Start a cluster, and wait until each part answers. Jobs of before go on."""
    ports = {}
    for one in port or ():
        name, _, number = one.partition("=")
        if not number.isdigit() or not 0 <= int(number) < 65536:
            raise typer.BadParameter(f"--port: expected NAME=NUMBER, like rest=8081, got {one!r}")
        ports[name] = int(number)
    options = dict[str, str]()
    for one in option or ():
        name, _, value = one.partition("=")
        if not name or not value:
            raise typer.BadParameter(f"--option: expected NAME=VALUE, like heartbeat.timeout=30000, got {one!r}")
        options[name] = value
    started = clusters.up(folder, clusters.Settings(task_managers, slots, ports, options), _say)
    out.print(
        f"Flink is up: {started.rest_url} (its pages and REST API); all of it is in {started.folder}", soft_wrap=True
    )


@app.command()
def start(
    folder: Folder = clusters.DEFAULT_FOLDER,
    part: Annotated[
        list[str] | None, typer.Option(help="Start this part anew, like taskmanager-1, also if it lives. Repeatable.")
    ] = None,
) -> None:
    """Start the parts of a cluster that are dead."""
    started = clusters.start(folder, part or (), _say)
    if not started:
        out.print("no part is dead")


@app.command()
def down(
    folder: Folder = clusters.DEFAULT_FOLDER,
    forget: Annotated[
        bool, typer.Option("--forget", help="Delete the folder, too: jobs, checkpoints and savepoints.")
    ] = False,
) -> None:
    """End all parts of a cluster. Its jobs go on after the next `up`, unless it is told to --forget them."""
    ended = clusters.down(folder)
    if forget:
        clusters.forget(folder)
    kept = f"{folder} is deleted" if forget else f"{folder} keeps its jobs and checkpoints"
    out.print(f"{len(ended)} parts ended; {kept}", highlight=False, soft_wrap=True)


@app.command()
def status(folder: Folder = clusters.DEFAULT_FOLDER, rest_url: Url = None, as_json: AsJson = False) -> None:
    """Show what is alive, and the jobs. Exit code 3 when a part is dead."""
    if rest_url:
        told: dict[str, Any] = {"rest_url": rest_url, "parts": []}
        flink = Flink(rest_url)
        overview = flink.overview()
        told["task_managers"], told["slots"] = overview["taskmanagers"], overview["slots-total"]
        told["free_slots"] = overview["slots-available"]
        told["jobs"] = [dataclasses.asdict(job) for job in flink.jobs()]
    else:
        found = clusters.load(folder)
        told, flink = clusters.status(found), found.flink
    for job in told["jobs"]:
        job |= _details(flink, job["id"])
    if as_json:
        sys.stdout.write(json.dumps(told, indent=2, default=_json_value) + "\n")
    else:
        _show(told)
    if any(not part["alive"] for part in told["parts"]):
        raise typer.Exit(3)


def _details(flink: Flink, id: str) -> dict[str, Any]:
    try:
        checkpoints, failures = flink.checkpoints(id), flink.failures(id, 1)
    except RestError:
        # A JobManager that was just restarted lists jobs that it has yet to recover.
        return {"checkpoint": None, "restored": 0, "latest_failure": None}
    latest = {"at": failures[0].at, "message": failures[0].message} if failures else None
    return {"checkpoint": checkpoints.completed_id or None, "restored": checkpoints.restored, "latest_failure": latest}


def _show(told: dict[str, Any]) -> None:
    if told["parts"]:
        parts = Table(title=f"Flink in {told['folder']}", box=box.SIMPLE_HEAD, title_justify="left")
        for column in ("part", "pid", "port", "alive", "for Prometheus", "log"):
            parts.add_column(column, overflow="fold")
        for part in told["parts"]:
            alive = "[green]yes[/]" if part["alive"] else "[red]no[/]"
            metrics = part["metrics"] or ""
            parts.add_row(part["part"], str(part["pid"] or ""), str(part["port"] or ""), alive, metrics, part["log"])
        out.print(parts)
    if told["task_managers"] is None:
        out.print("the JobManager does not answer: `meterline flink start` starts what is dead")
        return
    out.print(
        f"{told['task_managers']} TaskManagers registered at {told['rest_url']}, {told['slots']} slots, "
        f"{told['free_slots']} free",
        highlight=False,
    )
    if not told["jobs"]:
        out.print("no jobs")
        return
    jobs = Table(box=box.SIMPLE_HEAD)
    for column in ("job", "name", "state", "since", "checkpoint", "restored", "latest failure"):
        jobs.add_column(column, overflow="fold")
    for job in told["jobs"]:
        failure = job["latest_failure"]
        told_failure = f"{failure['at']:%H:%M:%S} {failure['message'].splitlines()[-1]}" if failure else ""
        since = f"{job['started']:%Y-%m-%d %H:%M:%S}"
        jobs.add_row(
            *(job["id"], job["name"], job["state"], since, str(job["checkpoint"] or ""), str(job["restored"])),
            told_failure,
        )
    out.print(jobs, markup=False)


@app.command()
def savepoint(
    job: JobName = None, folder: Folder = clusters.DEFAULT_FOLDER, rest_url: Url = None, into: Into = None
) -> None:
    """Save the state of a job, which runs on; prints where it lies. To go on from one, `stop` the job."""
    flink, found = _job(job, folder, rest_url)
    out.print(flink.savepoint(found.id, into), highlight=False, soft_wrap=True)


@app.command()
def stop(
    job: JobName = None, folder: Folder = clusters.DEFAULT_FOLDER, rest_url: Url = None, into: Into = None
) -> None:
    """Stop a job with a savepoint, from which it can go on; prints where it lies."""
    flink, found = _job(job, folder, rest_url)
    out.print(flink.stop(found.id, into), highlight=False, soft_wrap=True)


@app.command()
def cancel(job: JobName = None, folder: Folder = clusters.DEFAULT_FOLDER, rest_url: Url = None) -> None:
    """End a job at once. Its latest checkpoint stays, and it can go on from there."""
    flink, found = _job(job, folder, rest_url)
    flink.cancel(found.id)
    flink.wait(found.id)
    # Not before: only the very latest knows all that was acknowledged.
    latest = flink.checkpoints(found.id).path
    out.print(f"cancelled; its latest checkpoint is {latest or '(none)'}", highlight=False, soft_wrap=True)


def _job(wanted: str | None, folder: Path, rest_url: str | None) -> tuple[Flink, Job]:
    flink = Flink(rest_url) if rest_url else clusters.load(folder).flink
    running = [job for job in flink.jobs() if job.state not in ENDED]
    found = [job for job in running if wanted in (None, job.id, job.name)]
    if len(found) != 1:
        names = ", ".join(f"{job.name} ({job.id})" for job in running) or "none"
        which = "no job" if wanted is None else f"no job {wanted!r}"
        problem = f"{which} runs" if not found else "more than one job runs; name one"
        raise FlinkError(f"{problem}; running at {flink.url}: {names}", code=2)
    return flink, found[0]


def _say(text: str) -> None:
    err.print(text, highlight=False, soft_wrap=True)


def _json_value(value: Any) -> str:
    return value.isoformat().replace("+00:00", "Z") if hasattr(value, "isoformat") else str(value)
