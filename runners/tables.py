"""How results look on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from rich import box
from rich.table import Table

from meterline.runners.jobs import RateReport
from meterline.transforms.rules.money import minor_units


def table(title: str, *columns: str, caption: str | None = None) -> Table:
    """An empty table; a column whose name starts with `>` is aligned to the right."""
    made = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        caption=caption,
        caption_justify="left",
        pad_edge=False,
    )
    for column in columns:
        right = column.startswith(">")
        made.add_column(column.removeprefix(">"), justify="right" if right else "left", no_wrap=right, overflow="fold")
    return made


def number(value: Decimal | int) -> str:
    """An exact number with thousands apart and without trailing zeros."""
    text = f"{value:,f}" if isinstance(value, Decimal) else f"{value:,}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def money(value: Decimal, currency: str) -> str:
    """A rounded amount, with the minor unit's decimals."""
    places = Decimal(1).scaleb(-minor_units(currency))
    return f"{value.quantize(places, ROUND_HALF_EVEN):,f} {currency}"


def conservation(report: RateReport) -> Table:
    """Where every record went; the parts add up to what came in."""
    made = table("Where every record went", "outcome", ">records", "meaning")
    made.add_row("accepted", number(report.accepted), "counted in one line item for each meter it feeds, and archived")
    made.add_row("duplicate", number(report.duplicates), "came before with the same content; changes nothing")
    for (stage, reason), count in sorted(report.rejected.items()):
        made.add_row(f"rejected: {reason}", number(count), f"at {stage}; kept with its bytes in the table rejects")
    made.add_section()
    total = report.accepted + report.duplicates + sum(report.rejected.values())
    verdict = "[green]= all records read[/]" if report.adds_up else f"[red]≠ {number(report.records)} records read[/]"
    made.add_row("sum", number(total), verdict)
    return made


def invoices(rows: Sequence[dict[str, Any]], period: str) -> Table:
    made = table(f"Invoices of {period}", "number", "account", "status", "kind", ">lines", ">total")
    for row in rows:
        made.add_row(
            row["number"] or "(draft)",
            row["billing_account_id"],
            row["status"],
            row["kind"].replace("_", " "),
            number(row["lines"]),
            money(row["total"], row["currency"]),
        )
    return made


def invoice_lines(head: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Table:
    name = head["number"] or "draft"
    made = table(
        f"{head['kind'].replace('_', ' ').capitalize()} {name} · {head['billing_account_id']}",
        "charge",
        "used by",
        "prices of",
        ">quantity",
        "unit",
        ">exact",
        ">amount",
    )
    for row in rows:
        late = "" if row["reason"] in ("usage", "fee") else f" ({row['reason'].replace('_', ' ')})"
        made.add_row(
            row["description"] + late,
            row["account_id"],
            row["rate_card_version"],
            number(row["quantity"]),
            row["unit"],
            number(row["exact_amount"]),
            money(row["amount"], row["currency"]),
        )
    made.add_section()
    made.add_row(
        "total",
        "",
        "",
        "",
        "",
        number(sum((row["exact_amount"] for row in rows), Decimal(0))),
        money(head["total"], head["currency"]),
    )
    return made


def answer(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> Table:
    """The answer of a query."""
    made = table("", *columns)
    for row in rows:
        made.add_row(*("" if row[name] is None else str(row[name]) for name in columns))
    return made
