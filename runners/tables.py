"""How results look on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from meterline.runners.explanation import visible
from meterline.runners.price_names import column_of
from meterline.schemas.event import plain_text
from meterline.transforms.rules.money import minor_units

if TYPE_CHECKING:  # Loading the jobs loads Beam, which takes a second.
    from meterline.runners.audit import Finding
    from meterline.runners.jobs import RateReport
    from meterline.runners.voids import Candidate, VoidReport


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
        made.add_column(
            shown(column.removeprefix(">")), justify="right" if right else "left", no_wrap=right, overflow="fold"
        )
    return made


def shown(text: str) -> Text:
    """Text that came from outside: no markup in it, and no control characters that a terminal would obey."""
    return Text(visible(text))


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


def to_be_voided(one: Candidate) -> RenderableType:
    """The event that is meant."""
    text = f"event {one.name.id} of {one.name.source}, {one.time}: {one.type}, used by {one.account_id}"
    return shown(f"{text}, paid by {one.billing_account_id}")


def voided(report: VoidReport) -> RenderableType:
    """What a void moved."""
    if report.is_new:
        head = Text.assemble(("voided", "green"), shown(f": {report.reason}"), (f" · {report.void_id}", "cyan"))
    else:
        why, when = report.event.voided or (report.reason, report.run.received_time)
        head = Text.assemble("it was voided before", shown(f" ({when:%Y-%m-%d %H:%M} UTC: {why})"))
    parts: list[RenderableType] = [head]
    made = table("", "charge", ">quantity before", ">after", ">amount before", ">after", "currency")
    for one in report.moved:
        values = ", ".join(value for value in one.dimensions.values() if value)
        made.add_row(
            shown((one.charge_id or f"unpriced {one.meter_id}") + (f" ({values})" if values else "")),
            *map(number, (one.quantity_before, one.quantity_after, one.amount_before, one.amount_after)),
            one.currency,
        )
    if report.has_moved:
        parts.append(made)
    else:
        parts.append(Text("no quantity and no amount moved"))
    if report.invoices and (report.is_new or report.has_moved):
        parts.append(
            shown(f"issued and unchanged: {', '.join(report.invoices)}; the next invoice bills the difference")
        )
    return Group(*parts)


def finding(one: Finding) -> RenderableType:
    """A law in a line, and the first rows that break it."""
    if not one.broken:
        return Text.assemble(("holds   ", "green"), one.law, (f" · {one.counted}", "dim"))
    head = Text.assemble(("broken  ", "bold red"), one.law, f" · {one.broken:,} of {one.counted}; the first:")
    return Group(head, answer(one.rows, list(one.rows[0])))


def rejects(rows: Sequence[dict[str, Any]]) -> Table:
    made = table("Rejects", "id", "stage", "reason", "message", "from", "payload")
    for row in rows:
        text = row["payload"].decode("utf-8", "backslashreplace")
        made.add_row(
            row["reject_id"],
            row["stage"],
            row["reason"],
            shown(row["message"]),
            shown(f"{row['origin']}:{row['position']}"),
            shown(text[:60] + "…" * (len(text) > 60)),
        )
    return made


def reject_counts(rows: Sequence[dict[str, Any]]) -> Table:
    made = table("Rejects", "stage", "reason", ">records", "latest message")
    for row in rows:
        made.add_row(row["stage"], row["reason"], number(row["records"]), shown(row["message"]))
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
        late = "" if row["reason"] in ("usage", "fee", row["kind"]) else f" ({row['reason'].replace('_', ' ')})"
        made.add_row(
            shown(row["description"] + late),
            row["account_id"],
            column_of(row["rate_card_version"]),
            number(row["quantity"]) if row["kind"] == "charge" else "",
            shown(row["unit"]),
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
    numeric = {name for name in columns if rows and all(isinstance(row[name], (int, Decimal)) for row in rows)}
    made = table("", *(f">{name}" if name in numeric else name for name in columns))
    for row in rows:
        made.add_row(*(_cell(row[name]) for name in columns))
    return made


def _cell(value: Any) -> Text:
    if value is None:
        return Text("")
    return shown(plain_text(value) if isinstance(value, Decimal) else str(value))
