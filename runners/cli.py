"""The command `meterline`.

Exit codes: 0 done; 1 a fault of Meterline's own, or (audit, invoice --issue) a broken law; 2 what was given cannot be
used (arguments, catalog, files); 3 ClickHouse or Pub/Sub cannot be used; 4 done, but events were rejected (only with
--fail-on-rejects).
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
import json
import logging
import os
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from meterline.runners.clickhouse_server.command import app as clickhouse_app
from meterline.runners.dataflow.place import DataflowError, Place
from meterline.runners.flink.commands import app as flink_app
from meterline.runners.flink.home import FlinkError
from meterline.runners.imports import spare
from meterline.runners.metrics.command import metrics
from meterline.runners.options import DEFAULT_DATABASE, AsJson, CatalogFolder, Now, Rounding, Url
from meterline.runners.pubsub import commands as pubsub_commands
from meterline.runners.rate_stream import Elsewhere, Engine, rate_here, rate_on_dataflow, rate_on_flink
from meterline.runners.simulate import command as simulate_command
from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_files import CatalogError, catalog_json_schema, check_catalog, load_catalog
from meterline.transforms.rules.period_labels import LABELS

app = typer.Typer(
    name="meterline",
    help="Usage events in; rated line items and invoices out; every cent explainable.",
    epilog="Start with `meterline demo`. Exit codes: 0 done, 1 fault or broken law, 2 bad arguments, catalog or files, "
    "3 ClickHouse or Pub/Sub, 4 rejects (with --fail-on-rejects).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
catalog_app = typer.Typer(help="Check price catalogs, and publish them to streams.", no_args_is_help=True)
rejects_app = typer.Typer(help="List, count and export what was rejected.", no_args_is_help=True)
app.add_typer(catalog_app, name="catalog")
app.add_typer(rejects_app, name="rejects")
app.add_typer(flink_app, name="flink")
app.add_typer(clickhouse_app, name="clickhouse")

# Tables in a file or a pipe are as wide as they need to be; on a terminal they fit into it.
out = Console(width=None if sys.stdout.isatty() else 120)
err = Console(stderr=True)


def instant(text: str | None) -> datetime:
    """An RFC 3339 instant given by the user, or the clock's."""
    if text is None:
        return datetime.now(UTC)
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is not None and not 1970 <= found.astimezone(UTC).year < 2200:
            raise ValueError("outside the years 1970 to 2199")
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"expected an instant like 2026-11-01T00:00:00Z, got {text!r}") from None
    if found.tzinfo is None:
        raise typer.BadParameter(f"{text!r} has no time zone, write {text}Z for UTC")
    return found.astimezone(UTC)


def print_json(value: Any) -> None:
    """JSON for other programs: exact numbers are strings."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=_json_value) + "\n")


def _json_value(value: Any) -> Any:
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(importlib.metadata.version("meterline"))
        raise typer.Exit


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the demo keeps its events and database.")] = Path(
        "meterline-demo"
    ),
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete what an earlier demo left in the folder.")] = False,
) -> None:
    """Rate and invoice a real trace of LLM requests, and explain one line of an invoice."""
    from meterline.runners.demo import run

    run(folder, out, fresh=fresh)


@app.command()
def migrate(
    clickhouse: Url = DEFAULT_DATABASE,
    retention_days: Annotated[
        int | None,
        typer.Option(help="Let archived events go so many days after their time; 0 keeps them. Default: as it is."),
    ] = None,
) -> None:
    """Create the tables, or bring them to this version."""
    from meterline.transforms import clickhouse as database

    done = database.migrate(clickhouse)
    for one in done:
        out.print(f"applied {one.name}")
    newest = database.migrations()[-1].name
    out.print(f"{database.redacted(clickhouse)} is at schema {newest}" + ("" if done else "; nothing to do"))
    if retention_days is not None:
        database.set_retention(clickhouse, retention_days or None)
        kept = f"for {retention_days} days" if retention_days else "without end"
        out.print(f"archived events are kept {kept}", highlight=False)


@catalog_app.command("check")
def catalog_check(
    folder: Annotated[Path, typer.Argument(help="Folder of YAML files.")], as_json: AsJson = False
) -> None:
    """Report every mistake of a catalog with file and line."""
    catalog, problems = check_catalog(folder)
    if as_json:
        print_json({"ok": not problems, "problems": [dataclasses.asdict(one) for one in problems]})
    elif problems or catalog is None:
        for problem in problems:
            err.print(str(problem), markup=False, highlight=False, soft_wrap=True)
        err.print(f"[red]{len(problems)} mistake{'s' * (len(problems) != 1)}[/] in {folder}")
    else:
        out.print(
            f"{folder}: {len(catalog.meters)} meters, {len(catalog.rate_cards)} rate cards, "
            f"{len(catalog.plans)} plans, {len(catalog.accounts)} accounts, "
            f"{len(catalog.subscriptions)} subscriptions: no mistakes"
        )
    if problems:
        raise typer.Exit(2)


@catalog_app.command("publish")
def catalog_publish(
    folder: Annotated[Path, typer.Argument(help="Folder of YAML files.")],
    clickhouse: Url = DEFAULT_DATABASE,
    as_json: AsJson = False,
) -> None:
    """Let streams that run take a new catalog, without being started again.

    It is in force for events that are received some seconds from now on. A price that changes gets a new version in its
    rate card; versions that events were rated by never change.
    """
    prices = _catalog(folder)
    from meterline.schemas.event import EARLIEST_TIME
    from meterline.transforms import catalogs
    from meterline.transforms import clickhouse as database

    database.check_exists(clickhouse)
    database.ready(clickhouse)
    catalogs.check(clickhouse, prices)
    since = EARLIEST_TIME + timedelta(microseconds=catalogs.publish(clickhouse, prices))
    if as_json:
        print_json({"digest": prices.digest, "in_force_from": since})
        return
    out.print(
        f"catalog {prices.digest[:12]} is in force from {since:%Y-%m-%d %H:%M:%S} UTC on, in "
        f"{database.redacted(clickhouse)}",
        highlight=False,
        soft_wrap=True,
    )


@catalog_app.command("schema")
def catalog_schema() -> None:
    """Print the JSON Schema of a catalog file, for editors."""
    print_json(catalog_json_schema())


_FILES, _ARCHIVE = "--input", "--from-archive"
_HERE, _FLINK, _DATAFLOW = (f"--subscription --on {engine}" for engine in Engine)
# What each option of `rate` is for; the others are for all.
_IS_FOR = {
    **dict.fromkeys(("on",), (_HERE, _FLINK, _DATAFLOW)),
    **dict.fromkeys(("max_age_days",), (_FILES, _HERE, _FLINK, _DATAFLOW)),
    **dict.fromkeys(("now",), (_FILES,)),
    **dict.fromkeys(("fail_on_rejects",), (_FILES, _HERE)),
    **dict.fromkeys(("until_empty", "max_batches"), (_HERE,)),
    **dict.fromkeys(("job_name",), (_FLINK, _DATAFLOW)),
    **dict.fromkeys(("resume", "parallelism", "checkpoint_seconds", "detach", "flink_folder"), (_FLINK,)),
    **dict.fromkeys(("rest_url", "job_endpoint", "expansion_service", "worker_pool"), (_FLINK,)),
    **dict.fromkeys(("project", "region", "staging_location", "temp_location", "update"), (_DATAFLOW,)),
    **dict.fromkeys(("worker_image", "worker_package", "dataflow_option"), (_DATAFLOW,)),
}


def _refuse_what_is_not_for(what: str, context: typer.Context) -> None:
    """An option that would mean nothing is a mistake."""
    for name, for_what in _IS_FOR.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and what not in for_what:
            raise typer.BadParameter(f"--{name.replace('_', '-')} is for {' and for '.join(for_what)}, not for {what}")


@app.command()
def rate(
    context: typer.Context,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", help="Files of usage events (glob): NDJSON, .gz, .zst, JSON arrays, Parquet. Repeatable."
        ),
    ] = None,
    from_archive: Annotated[
        bool,
        typer.Option(
            "--from-archive", help="Recompute --period from its archive: mends, and otherwise changes nothing."
        ),
    ] = False,
    period: Annotated[str | None, typer.Option(help="With --from-archive: the billing period, like 2026-10.")] = None,
    catalog: CatalogFolder = Path("catalog"),
    clickhouse: Url = DEFAULT_DATABASE,
    now: Now = None,
    max_age_days: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=36_500,
            help="Reject events older than this when received; default: no bound for files, 35 for streams.",
        ),
    ] = None,
    subscription: Annotated[
        str | None,
        typer.Option(help="Rate what comes through projects/P/subscriptions/S.", rich_help_panel="Streams"),
    ] = None,
    on: Annotated[
        Engine,
        typer.Option(
            help="direct: here, batch by batch, without state. flink: on a cluster, `meterline flink up` or one "
            "elsewhere. dataflow: on Google Cloud.",
            rich_help_panel="Streams",
        ),
    ] = Engine.direct,
    until_empty: Annotated[
        bool,
        typer.Option("--until-empty", help="direct: end when nothing comes any more.", rich_help_panel="Streams"),
    ] = False,
    max_batches: Annotated[
        int | None, typer.Option(min=1, help="direct: end after so many batches.", rich_help_panel="Streams")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="flink: go on from this savepoint or retained checkpoint of the last run; without it, start "
            "without state, and recall the archive.",
            rich_help_panel="Streams",
        ),
    ] = None,
    job_name: Annotated[
        str | None,
        typer.Option(help="flink, dataflow: default: meterline- and the subscription.", rich_help_panel="Streams"),
    ] = None,
    parallelism: Annotated[int, typer.Option(min=1, help="flink: slots.", rich_help_panel="Streams")] = 2,
    checkpoint_seconds: Annotated[
        float,
        typer.Option(min=0.1, help="flink: from checkpoint to checkpoint.", rich_help_panel="Streams"),
    ] = 10,
    detach: Annotated[
        bool, typer.Option("--detach", help="flink: do not follow the job.", rich_help_panel="Streams")
    ] = False,
    flink_folder: Annotated[
        Path, typer.Option(help="Of the cluster on this machine.", rich_help_panel="Streams")
    ] = Path(".meterline-flink"),
    rest_url: Annotated[
        str | None, typer.Option(help="Flink elsewhere: its REST API.", rich_help_panel="Streams")
    ] = None,
    job_endpoint: Annotated[
        str | None, typer.Option(help="Flink elsewhere: HOST:PORT of Beam's job server.", rich_help_panel="Streams")
    ] = None,
    expansion_service: Annotated[
        str | None, typer.Option(help="Flink elsewhere: HOST:PORT.", rich_help_panel="Streams")
    ] = None,
    worker_pool: Annotated[
        str | None,
        typer.Option(
            help="Flink elsewhere: HOST:PORT of the Python workers, as a TaskManager sees it.",
            rich_help_panel="Streams",
        ),
    ] = None,
    project: Annotated[str | None, typer.Option(help="Of the job.", rich_help_panel="Dataflow")] = None,
    region: Annotated[str | None, typer.Option(help="Like europe-west1.", rich_help_panel="Dataflow")] = None,
    staging_location: Annotated[
        str | None, typer.Option(help="gs://BUCKET/FOLDER for what workers load.", rich_help_panel="Dataflow")
    ] = None,
    temp_location: Annotated[
        str | None, typer.Option(help="gs://BUCKET/FOLDER; default: the same.", rich_help_panel="Dataflow")
    ] = None,
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="Take the place, and the state, of the job of this name that runs.",
            rich_help_panel="Dataflow",
        ),
    ] = False,
    worker_image: Annotated[
        str | None, typer.Option(help="Container image that holds Meterline.", rich_help_panel="Dataflow")
    ] = None,
    worker_package: Annotated[
        list[str] | None,
        typer.Option(
            help="In place of an image: a wheel or source distribution. Repeatable.", rich_help_panel="Dataflow"
        ),
    ] = None,
    dataflow_option: Annotated[
        list[str] | None,
        typer.Option(help="Another option of Beam's, as NAME=VALUE or NAME. Repeatable.", rich_help_panel="Dataflow"),
    ] = None,
    fail_on_rejects: Annotated[
        bool, typer.Option("--fail-on-rejects", help="Exit with 4 if a record is rejected.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Rate usage events, of files or of a stream, into line items.

    Rating the same events again changes nothing: rows are absolute, and an event counts once by (tenant, source, id).
    """
    if from_archive + bool(inputs) + bool(subscription) != 1 or from_archive != bool(period):
        raise typer.BadParameter(
            "give one of --input FILES, --subscription projects/P/subscriptions/S, or --from-archive with --period, "
            "like 2026-10"
        )
    what = f"--subscription --on {on}" if subscription else _ARCHIVE if from_archive else _FILES
    _refuse_what_is_not_for(what, context)
    prices = _catalog(catalog)
    from meterline.runners.jobs import check_retention

    check_retention(clickhouse, prices)
    if subscription and on is Engine.dataflow:
        place = Place(project, region, staging_location, temp_location)
        from meterline.runners.dataflow.rate import Settings as DataflowSettings

        job = rate_on_dataflow(
            subscription,
            prices,
            clickhouse,
            horizon=timedelta(days=35 if max_age_days is None else max_age_days),
            place=place,
            settings=DataflowSettings(
                job_name, update, worker_image, tuple(worker_package or ()), tuple(dataflow_option or ())
            ),
            err=err,
        )
        if as_json:
            print_json(job)
        return
    if subscription and on is Engine.flink:
        from meterline.runners.flink.rate import Settings

        settings = Settings(
            job_name,
            parallelism,
            checkpoint_seconds=checkpoint_seconds,
            resume=resume,
            pubsub_emulator=os.environ.get("PUBSUB_EMULATOR_HOST"),
            detach=detach,
        )
        job = rate_on_flink(
            subscription,
            prices,
            clickhouse,
            horizon=timedelta(days=35 if max_age_days is None else max_age_days),
            folder=flink_folder,
            elsewhere=Elsewhere(rest_url, job_endpoint, expansion_service, worker_pool),
            settings=settings,
            err=err,
        )
        if as_json:
            print_json(job)
        return
    received = instant(now)
    from meterline.runners import tables
    from meterline.runners.jobs import rate_files, rerate_archive
    from meterline.transforms.rules.period_labels import cycle_of_label

    if from_archive and period:
        cycle_of_label(period)
        events, items = rerate_archive(period, prices, clickhouse, console=None if as_json else err)
        if as_json:
            print_json({"period": period, "archived_events": events, "line_items_written": items})
        else:
            out.print(
                f"{events:,} archived events read, {items:,} line items of {period} written anew", highlight=False
            )
        return
    if subscription:
        report = rate_here(
            subscription,
            prices,
            clickhouse,
            horizon=timedelta(days=35 if max_age_days is None else max_age_days),
            until_empty=until_empty,
            max_batches=max_batches,
            err=err,
            is_quiet=as_json,
        )
    else:
        assert inputs
        horizon = None if max_age_days is None else timedelta(days=max_age_days)
        report = rate_files(inputs, prices, clickhouse, now=received, horizon=horizon, console=None if as_json else err)
    if as_json:
        print_json(report.to_json())
    else:
        out.print(tables.conservation(report))
        out.print(f"{tables.number(report.line_items)} line items written in {report.seconds:.1f} s.", highlight=False)
        if report.rejected_keys:
            out.print(
                f"[red]{report.rejected_keys} rating keys could not be priced[/]: meterline rejects list --stage rate"
            )
        if report.rejected:
            out.print("See what was rejected: [bold]meterline rejects list[/]")
    if fail_on_rejects and (report.rejected or report.rejected_keys):
        raise typer.Exit(4)


_MEND = (
    "Void one of two events with one id (`meterline void`); repeat a run that broke off, or wait until it is done; "
    "`meterline rate --from-archive` mends line items."
)


@app.command()
def void(
    event: Annotated[str, typer.Option(help="The id of an accepted event.")],
    reason: Annotated[str, typer.Option(help="Why it shall count no more; kept with it.")],
    source: Annotated[str | None, typer.Option(help="Its source, where several events have the id.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Its tenant.")] = None,
    time: Annotated[str | None, typer.Option(help="Its time (RFC 3339), where the id was used again.")] = None,
    catalog: CatalogFolder = Path("catalog"),
    clickhouse: Url = DEFAULT_DATABASE,
    now: Now = None,
    as_json: AsJson = False,
) -> None:
    """Let an accepted event count no more: the usage of its periods is computed anew without it.

    The event stays archived, and a copy of it stays a duplicate. What was issued does not change: the next invoice of
    the period gives back the difference. A void is final; usage voided by mistake is sent again under a new id.
    """
    prices = _catalog(catalog)
    received = instant(now)
    from meterline.runners import tables, voids

    found = voids.find(clickhouse, event, source, tenant, instant(time) if time else None)
    if not as_json:
        out.print(tables.to_be_voided(found))
    report = voids.void_event(found, reason, prices, clickhouse, now=received, console=None if as_json else err)
    if as_json:
        print_json(report.to_json())
        return
    out.print(tables.voided(report))


@app.command()
def invoice(
    period: Annotated[str, typer.Option(help=f"Label of the billing period: {LABELS}.")],
    catalog: CatalogFolder = Path("catalog"),
    clickhouse: Url = DEFAULT_DATABASE,
    issue: Annotated[
        bool, typer.Option("--issue", help="Issue: number and post them. Otherwise drafts are made.")
    ] = False,
    interim: Annotated[bool, typer.Option("--interim", help="Issue although the period has not ended.")] = False,
    account: Annotated[list[str] | None, typer.Option(help="Only this billing account. Repeatable.")] = None,
    rounding: Annotated[Rounding, typer.Option(help="Of halves of a minor unit.")] = Rounding.half_even,
    now: Now = None,
    as_json: AsJson = False,
) -> None:
    """Turn line items into invoices: what should have been billed by now, less what was billed before.

    The audit comes first: where a law is broken, nothing is issued. Drafts can be made anew at any time. What was
    issued never changes; usage that comes later is billed by a further invoice, or given back by a credit note.
    """
    prices = _catalog(catalog)
    from meterline.pipelines.invoice_accounts import Options
    from meterline.runners import audit as laws
    from meterline.runners import tables
    from meterline.runners.invoices import coverage, invoices_of, lines_of
    from meterline.runners.jobs import make_invoices
    from meterline.transforms.rules.period_labels import cycle_of_label

    cycle_of_label(period)
    known = {one.id for one in prices.accounts if one.is_billed}
    for name in account or ():
        if name not in known:
            raise typer.BadParameter(f"--account: the catalog has no billed account {name!r}")
    broken = [one for one in laws.audit(clickhouse, prices, period, account or ()) if one.broken]
    told = {"broken_laws": [one.to_json() for one in broken]}
    if broken and not as_json:
        for one in broken:
            err.print(tables.finding(one))
    if broken and issue:
        if as_json:
            print_json({"period": period, "issued": 0, **told})
        err.print(
            f"[red]nothing was issued:[/] {len(broken)} broken law{'s' * (len(broken) != 1)}. {_MEND}", highlight=False
        )
        raise typer.Exit(1)
    report = make_invoices(
        Options(period, prices, clickhouse, instant(now), issue, interim, rounding.mode, tuple(account or ()))
    )
    heads = invoices_of(clickhouse, period)
    covered = coverage(period, prices)
    if as_json:
        invoices = [{**head, "lines": lines_of(clickhouse, head)} for head in heads]
        print_json({**report.to_json(), "covers": covered.to_json(), **told, "invoices": invoices})
        raise typer.Exit(1 if report.not_converted else 0)
    if covered.text:
        out.print(covered.text, highlight=False)
    for head in heads:
        out.print(tables.invoice_lines(head, lines_of(clickhouse, head)))
    out.print(tables.invoices(heads, period))
    done = f"{report.issued} issued" if issue else f"{report.drafts} drafts made"
    out.print(f"{done}; {report.nothing_to_bill} accounts with nothing (more) to bill.", highlight=False)
    if broken:
        out.print(
            f"[yellow]these drafts cannot be issued:[/] {len(broken)} broken law{'s' * (len(broken) != 1)}. {_MEND}",
            highlight=False,
        )
    if report.not_ended:
        out.print(
            f"[yellow]{report.not_ended} not issued, the period has not ended yet[/]; --interim issues what is due."
        )
    for reason in report.not_converted:
        err.print("[red]no invoice:[/]", end=" ")
        err.print(reason, markup=False, highlight=False, soft_wrap=True)
    if report.not_converted:
        raise typer.Exit(1)


@app.command()
def explain(
    id: Annotated[
        str, typer.Argument(help="Invoice number, or the id of an invoice, a line, a line item or an event.")
    ],
    catalog: CatalogFolder = Path("catalog"),
    clickhouse: Url = DEFAULT_DATABASE,
    as_json: AsJson = False,
) -> None:
    """Say why something was charged, down to the events; or where an event was billed."""
    from meterline.runners import explain as finding
    from meterline.runners.explain_tree import render

    prices = _catalog(catalog) if catalog.exists() else None
    found = finding.explain(clickhouse, id, prices)
    if as_json:
        print_json(found.to_json())
    else:
        out.print(render(found))


@app.command()
def audit(
    catalog: CatalogFolder = Path("catalog"), clickhouse: Url = DEFAULT_DATABASE, as_json: AsJson = False
) -> None:
    """Check the laws on what is stored, before invoicing; exit code 1 when one is broken."""
    from meterline.runners import audit as laws
    from meterline.runners import tables

    prices = _catalog(catalog) if catalog.exists() else None
    findings = []
    for finding in laws.audit(clickhouse, prices):
        findings.append(finding)
        if not as_json:
            out.print(tables.finding(finding))
    if as_json:
        print_json({"ok": not any(one.broken for one in findings), "laws": [one.to_json() for one in findings]})
    elif prices is None:
        out.print(f"amounts were not recomputed: there is no catalog at {catalog}")
    if any(one.broken for one in findings):
        raise typer.Exit(1)


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="A SELECT; read line_items, usage_events and invoices with FINAL.")],
    clickhouse: Url = DEFAULT_DATABASE,
    format: Annotated[str, typer.Option(help="table, json (lines), csv or tsv.")] = "table",
) -> None:
    """Ask the database in SQL (it changes nothing)."""
    from meterline.runners import tables
    from meterline.transforms import clickhouse as database

    if format not in ("table", "json", "csv", "tsv"):
        raise typer.BadParameter(f"--format: expected table, json, csv or tsv, got {format!r}")
    if format != "table":
        names = {"json": "JSONEachRow", "csv": "CSVWithNames", "tsv": "TSVWithNames"}
        sys.stdout.write(database.read_only(clickhouse, sql, names[format]))
        return
    columns, rows = database.read_only_rows(clickhouse, sql)
    out.print(tables.answer([dict(zip(columns, row)) for row in rows[:1_000]], columns))
    if len(rows) > 1_000:
        out.print(f"the first 1,000 of {len(rows):,} rows; --format csv prints all")


@rejects_app.command("count")
def rejects_count(clickhouse: Url = DEFAULT_DATABASE, as_json: AsJson = False) -> None:
    """Count rejects by stage and reason."""
    from meterline.runners import rejects, tables

    rows = rejects.counts(clickhouse)
    if as_json:
        print_json(rows)
        return
    out.print(tables.reject_counts(rows) if rows else "nothing was rejected")


_Reason = Annotated[str | None, typer.Option(help="Only this reason code.")]
_Stage = Annotated[str | None, typer.Option(help="Only this stage: read, validate, attribute, deduplicate, rate.")]


@rejects_app.command("list")
def rejects_list(
    clickhouse: Url = DEFAULT_DATABASE,
    reason: _Reason = None,
    stage: _Stage = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List rejects with their reasons."""
    from meterline.runners import rejects, tables

    rows = rejects.found(clickhouse, stage, reason, limit)
    if as_json:
        print_json(rows)
        return
    out.print(tables.rejects(rows) if rows else "nothing was rejected")


@rejects_app.command("export")
def rejects_export(
    file: Annotated[
        Path, typer.Argument(help="File to write, one record a line, byte for byte; - for standard output.")
    ],
    clickhouse: Url = DEFAULT_DATABASE,
    reason: _Reason = None,
    stage: _Stage = None,
) -> None:
    """Write rejected records out, to be mended and sent again."""
    from meterline.runners import rejects

    target = sys.stdout.buffer if str(file) == "-" else None
    count = rejects.export(clickhouse, target or file, stage, reason)
    err.print(f"{count} records written to {file}")


simulate_command.register(app, out, err, print_json)
pubsub_commands.register(app, out, err)
app.command()(metrics)


def _catalog(folder: Path) -> Catalog:
    return load_catalog(folder)


def main() -> None:
    """Run the command; a user's mistake is a sentence and an exit code, never a traceback."""
    # Until a job runs (runners.direct): modules are loaded, and nothing of them can be collected.
    gc.disable()
    if not any("dataflow" in argument for argument in sys.argv):
        spare()
    # What goes wrong in a stage is told once, below; Beam would print it with its own traceback.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    logging.getLogger().setLevel(logging.CRITICAL)
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)
    try:
        app()
    except SystemExit as ended:
        if ended.code == 130:  # Typer makes that of Ctrl-C, without a word.
            err.print("interrupted; running the same command again completes it")
        raise
    except CatalogError as error:
        for problem in error.problems:
            err.print(str(problem), markup=False, highlight=False, soft_wrap=True)
        err.print("[red]error:[/] the catalog has mistakes; `meterline catalog check DIR` lists them again")
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:  # noqa: BLE001
        sys.exit(_told(error))


def _told(error: Exception) -> int:
    from meterline.runners.explain import NotFound
    from meterline.runners.jobs import InputError
    from meterline.runners.pubsub.client import PubSubError, UnknownName
    from meterline.transforms.catalogs import ChangedCatalogError
    from meterline.transforms.clickhouse import DatabaseError
    from meterline.transforms.rules.period_labels import PeriodError

    message = str(error).split(" [while running '")[0]
    code = 1
    if isinstance(error, (FlinkError, DataflowError)):
        code = error.code
    elif isinstance(error, (InputError, ChangedCatalogError, PeriodError, NotFound, UnknownName, OSError)):
        code = 2
    elif isinstance(error, (DatabaseError, PubSubError)):
        code = 3
    err.print("[red]error:[/]", end=" ")
    if code == 1 and not isinstance(error, (FlinkError, DataflowError)) and not os.environ.get("METERLINE_DEBUG"):
        message = (
            f"{type(error).__name__}: {message}\nThis is a fault of Meterline. METERLINE_DEBUG=1 shows where it arose."
        )
    err.print(message, markup=False, highlight=False, soft_wrap=True)
    if os.environ.get("METERLINE_DEBUG"):
        raise error
    return code


if __name__ == "__main__":
    main()
