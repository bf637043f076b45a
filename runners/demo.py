"""The demo: a real trace of LLM requests → usage events → line items → invoices → one line explained."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule

from meterline.pipelines.invoice_accounts import Options
from meterline.runners import tables
from meterline.runners.explain import explain
from meterline.runners.explain_tree import render
from meterline.runners.invoices import invoices_of, lines_of
from meterline.runners.jobs import InputError, fingerprint, make_invoices, rate_files
from meterline.schemas.catalog_files import load_catalog
from meterline.transforms import clickhouse

EVENT_TYPE = "com.example.llm.request.v1"
PERIOD = "2023-11"
# The trace is of November 2023; the demo rates it just after, and invoices when both periods have ended.
RECEIVED = datetime(2023, 11, 16, 20, 0, tzinfo=UTC)
INVOICED = datetime(2023, 12, 16, 0, 0, tzinfo=UTC)
_SEED = 2023
_PROJECTS = {
    "acme-search-ranking": 30,
    "acme-search-indexing": 15,
    "acme-assist-chat": 25,
    "acme-assist-code": 10,
    "globex-labs-agents": 20,
}
_MARK = ".meterline-demo"


def quickstart() -> Path:
    """The folder of the example that comes with the package."""
    return Path(str(resources.files("meterline.examples") / "quickstart"))


def trace() -> Iterator[tuple[str, int, int]]:
    """Time, input tokens and output tokens of each request."""
    packed = (quickstart() / "AzureLLMInferenceTrace_code.csv.gz").read_bytes()
    for row in csv.DictReader(io.StringIO(gzip.decompress(packed).decode())):
        yield row["TIMESTAMP"].replace(" ", "T") + "Z", int(row["ContextTokens"]), int(row["GeneratedTokens"])


def usage_lines() -> list[bytes]:
    """The trace as usage events, with the trouble that real producers make. The same at every call."""
    chance = random.Random(_SEED)
    subjects, weights = list(_PROJECTS), list(_PROJECTS.values())
    lines: list[bytes] = []
    for place, (time, tokens_in, tokens_out) in enumerate(trace()):
        event: dict[str, Any] = {
            "specversion": "1.0",
            "id": f"req-{place:05}",
            "source": "/gateways/eu-1",
            "type": EVENT_TYPE,
            "subject": chance.choices(subjects, weights)[0],
            "time": time,
            "data": {
                "model": chance.choices(("large", "small"), (70, 30))[0],
                "input_tokens": tokens_in,
                "output_tokens": tokens_out,
            },
        }
        lines.append(_line(event))
        if place % 45 == 7:  # sent twice, the second time a while later and as another serializer writes it
            again = json.dumps(event, separators=(",", ":"), sort_keys=True).encode()
            lines.append(again if place % 2 else lines[-1])
        if place % 1_400 == 3:  # the same id with other tokens
            lines.append(_line(event | {"data": event["data"] | {"output_tokens": tokens_out + 1}}))
        if place % 900 == 5:
            lines.append(_line(event | {"id": f"ghost-{place:05}", "subject": "acme-retired-project"}))
        if place % 1_100 == 9:
            lines.append(_line(event | {"id": f"bad-{place:05}", "data": event["data"] | {"input_tokens": -5}}))
        if place % 1_500 == 11:
            lines.append(_line(event | {"id": f"time-{place:05}", "time": "2023-02-31T12:00:00Z"}))
        if place % 1_000 == 13:
            lines.append(lines[-1][: 60 + place % 40])  # cut off by a crash
    # Late and out of order: one line in ten moves back by up to 2,000 places; the first of an id stays first.
    order = [place + chance.randrange(2_000) * (chance.random() < 0.1) for place in range(len(lines))]
    first: dict[bytes, int] = {}
    for place, line in enumerate(lines):
        name = line[line.find(b'"id"') : line.find(b'"id"') + 20]
        order[place] = max(order[place], first.setdefault(name, order[place]))
    return [lines[place] for place in sorted(range(len(lines)), key=lambda place: (order[place], place))]


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode()


def run(folder: Path, out: Console, *, fresh: bool = False) -> None:
    """Run the main job on the example and print what it did.

    Raises:
      InputError: the folder holds something else than a demo.
    """
    database = folder / "db"
    if folder.exists() and not (folder / _MARK).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and holds no demo; choose another with --folder")
    if fresh and folder.exists():
        shutil.rmtree(folder)
    (folder / "usage").mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()
    usage = folder / "usage" / "2023-11-16.ndjson"
    catalog_folder = folder / "catalog"
    if not catalog_folder.exists():
        shutil.copytree(quickstart() / "catalog", catalog_folder)
    url = f"chdb://{database}"

    out.print(Rule("[bold]Meterline demo[/]: an hour of a real LLM service, rated and invoiced", align="left"))
    usage.write_bytes(b"\n".join(usage_lines()) + b"\n")
    catalog = load_catalog(catalog_folder)
    clickhouse.ready(url)
    before = fingerprint(url)

    out.print(f"\n[bold]1. Rate[/] {usage} with the prices of {catalog_folder}", highlight=False)
    report = rate_files([str(usage)], catalog, url, now=RECEIVED, console=out)
    out.print(tables.conservation(report))
    after = fingerprint(url)
    _counted(url, after.events, out)

    out.print(f"[bold]2. Invoice[/] the billing period {PERIOD}", highlight=False)
    invoiced = make_invoices(Options(PERIOD, catalog, url, INVOICED, issue=True))
    heads = invoices_of(url, PERIOD)
    lines = [(head, line) for head in heads for line in lines_of(url, head)]
    for head in heads:
        out.print(tables.invoice_lines(head, [line for one, line in lines if one is head]))

    _adds_up(url, lines, out)

    out.print("[bold]3. Explain[/] one line of it, down to events", highlight=False)
    chosen = max(
        (line for _, line in lines if line["meter_id"]),
        key=lambda line: (line["exact_amount"], line["invoice_line_id"]),
    )
    found = explain(url, chosen["invoice_line_id"], catalog, events=2, line_items=2)
    out.print(Padding(render(found), (0, 0, 1, 0)))

    if before.line_items:
        same = before == after and not invoiced.issued
        verdict = (
            "[green]This was run before, and running it again changed nothing[/]: the same "
            f"{after.line_items:,} line items and {after.events:,} events to the last digit, no further invoice."
            if same
            else "[yellow]This was run before, and gave something else now[/]: its events or prices were changed."
        )
        out.print(verdict, highlight=False)
    else:
        out.print("Run it again: it will change nothing, and say so.", highlight=False)
    _go_on(folder, url, chosen["invoice_line_id"], out)


def _counted(url: str, archived: int, out: Console) -> None:
    """Each archived event is counted in one line item for each meter it feeds (here: all)."""
    sql = "SELECT meter_id, sum(event_count) AS events FROM line_items FINAL GROUP BY meter_id ORDER BY meter_id"
    rows = clickhouse.query(url, sql).to_pylist()
    made = tables.table("Archived events in line items", "meter", ">events counted", "")
    for row in rows:
        same = row["events"] == archived
        verdict = "[green]= events archived[/]" if same else f"[red]≠ {archived:,} events archived[/]"
        made.add_row(row["meter_id"], tables.number(row["events"]), verdict)
    out.print(made)


def _adds_up(url: str, lines: list[tuple[dict[str, Any], dict[str, Any]]], out: Console) -> None:
    """Line items and fees are the invoice lines, unrounded; the lines are the invoices, to the cent."""
    sql = "SELECT sum(toDecimal256(amount, 18)) AS amount FROM line_items FINAL"
    items = clickhouse.query(url, sql).column("amount")[0].as_py()
    fees = sum((line["exact_amount"] for _, line in lines if not line["meter_id"]), Decimal(0))
    exact = sum((line["exact_amount"] for _, line in lines), Decimal(0))
    rounded = sum((line["amount"] for _, line in lines), Decimal(0))
    totals = {head["invoice_id"]: head["total"] for head, _ in lines}
    made = tables.table("The money adds up", "", ">USD", "")
    made.add_row("line items", tables.number(items), "")
    made.add_row("fixed fees", tables.number(fees), "")
    verdict = "[green]= line items and fees[/]" if exact == items + fees else "[red]≠ line items and fees[/]"
    made.add_row("invoice lines, unrounded", tables.number(exact), verdict)
    verdict = "[green]= totals of the invoices[/]" if rounded == sum(totals.values()) else "[red]≠ totals[/]"
    made.add_row("invoice lines, each charge rounded once", tables.number(rounded), verdict)
    out.print(made)


def _go_on(folder: Path, url: str, line_id: str, out: Console) -> None:
    where = f"--clickhouse {url}"
    commands = (
        ("ask in SQL", f'meterline query "SELECT account_id, sum(amount) FROM line_items FINAL GROUP BY 1" {where}'),
        ("why this line?", f"meterline explain {line_id} --catalog {folder}/catalog {where}"),
        ("where did an event go?", f"meterline explain req-00042 --catalog {folder}/catalog {where}"),
        ("what was rejected?", f"meterline rejects list {where}"),
        (
            "rate your own file",
            "meterline rate --input 'usage/*.ndjson.gz' --catalog my-catalog --clickhouse chdb://my-db",
        ),
        ("check your own prices", "meterline catalog check my-catalog"),
    )
    out.print("\n[bold]Go on[/] (the command is .venv/bin/meterline when `make demo` installed it)", highlight=False)
    for what, command in commands:
        out.print(f"  {what}:\n    {command}", markup=False, highlight=False, soft_wrap=True)
