"""An explanation on a terminal: trees with small tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal, localcontext
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from meterline.runners import tables
from meterline.runners.adjustment_words import conversion_words
from meterline.runners.explain import MAX_FOUND
from meterline.runners.explanation import (
    Billing,
    Event,
    Explanation,
    Fee,
    Invoice,
    Line,
    LineItem,
    Reject,
    Standing,
    Tier,
    visible,
)
from meterline.runners.price_names import said_of
from meterline.schemas.event import instant_text
from meterline.transforms.rules.money import EXACT

_MOST_TEXT = 2_000
_ZERO = Decimal(0)


def render(explanation: Explanation) -> RenderableType:
    """The explanation as trees with small tables."""
    with localcontext(EXACT):
        trees = [_RENDER[type(one)](one) for one in explanation.found]
    parts: list[RenderableType] = []
    for tree in trees:
        parts += [Text(), tree] if parts else [tree]
    if explanation.more:
        parts.append(Text(f"… and more: the first {MAX_FOUND} are shown.", "dim"))
    return Group(*parts)


def _words(*parts: str | tuple[str, str]) -> Text:
    """One line of text, in styles; nothing in it is read as markup."""
    return Text.assemble(*(visible(one) if isinstance(one, str) else (visible(one[0]), one[1]) for one in parts))


def _id(text: str) -> tuple[str, str]:
    return (text, "cyan")


def _signed(value: Decimal) -> str:
    return f"{'+' if value > 0 else ''}{tables.number(value)}"


def _span(start: datetime, end: datetime) -> str:
    left, right = (f"{at:%Y-%m-%d %H:%M}" if not at.second else f"{at:%Y-%m-%d %H:%M:%S}" for at in (start, end))
    if left[:10] == right[:10]:
        right = right[11:]
    return f"[{left}, {right}) UTC"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _table(*columns: str) -> Table:
    """Columns as in `tables.table`, without lines: a tree has its own."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        right = column.startswith(">")
        made.add_column(column.removeprefix(">"), justify="right" if right else "left", no_wrap=right, overflow="fold")
    return made


def _render_invoice(one: Invoice) -> Tree:
    what = one.invoice_kind.replace("_", " ").capitalize()
    tree = Tree(
        _words(
            (f"{what} {one.number or '(draft)'}", "bold"),
            f" · {one.billing_account_id} · period {one.period} · ",
            (tables.money(one.total, one.currency), "bold"),
        )
    )
    corrects = f", corrects what was billed from {one.corrects} on" if one.corrects else ""
    tree.add(_words(f"{one.status} {instant_text(one.made_at)}{corrects} · ", _id(one.invoice_id)))
    charges: dict[tuple[str, str, str], list[Line]] = {}
    for line in one.lines:
        if line.line_kind == "charge":
            charges.setdefault((line.subscription_id, line.charge_id, line.rate_card_version), []).append(line)
    for (_, charge, version), lines in charges.items():
        texts = dict.fromkeys(line.price.text for line in lines)
        head = _words((charge, "bold"), f", {said_of(version)}: {'; '.join(texts)}")
        tree.add(Group(head, *_conversions(lines), _charge_table(lines)))
    adjustments: dict[tuple[str, str], list[Line]] = {}
    for line in one.lines:
        if line.line_kind != "charge":
            adjustments.setdefault((line.line_kind, line.source), []).append(line)
    for (kind, source), lines in adjustments.items():
        texts = dict.fromkeys(line.price.text for line in lines)
        head = _words((f"{kind.replace('_', ' ')} {source}", "bold"), f": {'; '.join(texts)}")
        tree.add(Group(head, _adjustment_table(lines)))
    total = sum((line.amount for line in one.lines), _ZERO)
    mark = ("✓ ", "green") if total == one.total else ("≠ ", "red")
    tree.add(_words(mark, f"each charge is rounded once, the lines add up to {tables.money(total, one.currency)}"))
    for line in one.lines:
        if line.came_after:
            tree.add(_words((f"line {line.line_number}: ", "bold"), *_after(line)))
    return tree


def _conversions(lines: Sequence[Line]) -> list[Text]:
    """What each rating key was converted from, once for all its accounts."""
    by_key = {line.rating_key_id: line for line in lines}
    return [
        _words(("converted: ", "bold"), conversion_words(line.conversion, line.rounding.rounded, line.currency))
        for line in by_key.values()
        if line.conversion
    ]


def _charge_table(lines: Sequence[Line]) -> Table:
    by_key: dict[str, list[Line]] = {}
    for line in lines:
        by_key.setdefault(line.rating_key_id, []).append(line)
    made = _table("used by", ">quantity", ">exact", ">amount", "explain further")
    made.columns[-1].min_width = 27
    for of_key in by_key.values():
        values = ", ".join(value for value in of_key[0].dimensions.values() if value)
        for line in of_key:
            late = "" if line.reason in ("usage", "fee") else f", {line.reason.replace('_', ' ')}"
            made.add_row(
                _words(line.account_id + (f" ({values})" if values else "") + late),
                tables.number(line.quantity),
                tables.number(line.exact_amount),
                tables.money(line.amount, line.currency).split()[0],
                _words(_id(line.invoice_line_id)),
            )
        if len(of_key) > 1 and not any(line.earlier for line in of_key):
            quantity, exact, amount = (
                sum((getattr(line, name) for line in of_key), _ZERO) for name in ("quantity", "exact_amount", "amount")
            )
            money = tables.money(amount, of_key[0].currency).split()[0]
            made.add_row("  together", tables.number(quantity), tables.number(exact), money, "", style="dim")
    return made


def _adjustment_table(lines: Sequence[Line]) -> Table:
    made = _table("what", "of", ">amount", "explain further")
    made.columns[-1].min_width = 27
    for line in lines:
        money = tables.money(line.amount, line.currency).split()[0]
        made.add_row(_words(line.description), _words(line.account_id), money, _words(_id(line.invoice_line_id)))
    return made


def _render_line(one: Line) -> Tree:
    tree = Tree(
        _words((one.description, "bold"), f" · {one.account_id} · ", (tables.money(one.amount, one.currency), "bold"))
    )
    where = f"draft {one.invoice_id}" if one.status == "draft" else f"invoice {one.invoice_number}"
    tree.add(
        _words(
            f"line {one.line_number} of ", _id(where), f" ({one.reason.replace('_', ' ')}) · ", _id(one.invoice_line_id)
        )
    )
    tree.add(_words(f"period {_span(one.period_start, one.period_end)}"))
    if one.line_kind == "charge":
        head = f"{one.charge_id}, {said_of(one.rate_card_version)}: "
    else:
        head = f"{one.line_kind.replace('_', ' ')} {one.source}: "
    tree.add(_words((head, "bold"), one.price.text))
    if one.meter:
        tree.add(_words((f"meter {one.meter_id}: ", "bold"), one.meter))
    if one.fee:
        tree.add(_words(_proration(one.fee)))
    if one.tiers:
        made = _table("tier", ">quantity", "× price", ">= amount")
        for tier in one.tiers:
            made.add_row(_bounds(tier), tables.number(tier.quantity), _times(tier), tables.number(tier.amount))
        total = sum((tier.amount for tier in one.tiers), _ZERO)
        made.add_row("sum", tables.number(one.standing.quantity), one.unit, tables.number(total), style="bold")
        tree.add(made)
    if one.conversion:
        words = conversion_words(one.conversion, one.rounding.rounded, one.currency)
        tree.add(_words(("converted: ", "bold"), words))
    if one.line_kind == "charge":
        tree.add(_words("rounded: ", *_rounded(one)))
    if one.came_after:
        tree.add(_words(*_after(one)))
    for title, billings in (("billed before", one.earlier), ("billed later", one.later)):
        if billings:
            tree.add(_billings(title, billings))
    if one.standing.line_items:
        items, events = _count(one.standing.line_items, "line item"), _count(one.standing.events, "event")
        text = f"{items} ({events}) add up to {tables.number(one.standing.amount)}"
        if 0 < len(one.line_items) < one.standing.line_items:
            text += f"; {len(one.line_items)} of them, by the largest amount:"
        branch = tree.add(_words(*([] if one.came_after else [("✓ ", "green")]), text))
        for item in one.line_items:
            _add_item(branch, item, short=True)
    return tree


def _render_line_item(one: LineItem) -> Tree:
    tree = Tree(_words(("Line item ", "bold"), _id(one.line_item_id), f" · {one.account_id} · "))
    assert isinstance(tree.label, Text)
    tree.label.append(f"{tables.number(one.amount)} {one.currency}".strip(), "bold")
    values = ", ".join(f"{path}={value}" for path, value in one.dimensions.items() if value)
    tree.add(
        _words(
            f"{one.charge_id or 'unpriced'} · meter {one.meter_id}" + (f" · {values}" if values else ""),
            f" · paid by {one.billing_account_id}",
        )
    )
    version = f"{said_of(one.rate_card_version)}: " if one.rate_card_version else ""
    tree.add(_words((version, "bold"), one.price.text))
    if one.meter:
        tree.add(_words((f"meter {one.meter_id}: ", "bold"), one.meter))
    _add_item(tree, one, short=False)
    if one.charge_id:
        tree.add(_billings("billed by", one.billed_by, one.standing, one.unit))
    return tree


def _add_item(tree: Tree, item: LineItem, *, short: bool) -> None:
    unit = f" {item.unit}" if item.unit else ""
    head = (
        f"{_span(item.window_start, item.window_end)} · {tables.number(item.quantity_from)} → "
        f"{tables.number(item.quantity_to)}{unit}"
    )
    name: tuple[str | tuple[str, str], ...] = (" · ", _id(item.line_item_id)) if short else ()
    node = tree.add(_words((head, "bold" if short else ""), *name))
    for tier in item.tiers:
        node.add(
            _words(f"{_bounds(tier)}: {tables.number(tier.quantity)} {_times(tier)} = {tables.number(tier.amount)}")
        )
    known = item.event_count + item.voided_count
    shown = f", the first {len(item.events)}:" if 0 < len(item.events) < known else ""
    voided = f" and {item.voided_count:,} voided" if item.voided_count else ""
    events = node.add(_words(f"{_count(item.event_count, 'event')}{voided}, revision {item.revision}{shown}"))
    for event in item.events:
        counted = f" ({event.counted_value})" if event.counted_value else ""
        told = _words(
            f"{event.time:%H:%M:%S.%f} ",
            _id(event.id),
            (" voided" if event.voided else "", "yellow"),
            f" · {event.subject} · {tables.number(event.quantity)}{unit}{counted} · {event.source}",
        )
        events.add(Group(told, _payload(event.payload, short=short)))


def _render_event(one: Event) -> Tree:
    tree = Tree(_words(("Event ", "bold"), _id(one.id), f" · {one.source} · ", (instant_text(one.time), "bold")))
    tenant = "" if one.tenant_id == "default" else f" · tenant {one.tenant_id}"
    used = "" if one.subject == one.account_id else f" (as {one.subject})"
    tree.add(_words(f"used by {one.account_id}{used} · paid by {one.billing_account_id}{tenant}"))
    tree.add(_words(f"{one.type} · received {instant_text(one.received_time)}"))
    tree.add(_payload(one.payload))
    if one.voids:
        tree.add(_words("voids the event ", _id(one.voids.id), f" of {one.voids.source}: {one.voids.reason}"))
    if one.voided:
        by = one.voided
        when = instant_text(by.voided_at)
        tree.add(_words((f"voided {when}", "bold yellow"), f", it counts no more: {by.reason} · ", _id(by.void_id)))
    if not one.usage and not one.voids:
        tree.add(_words("it feeds no meter: no filter takes it; it is archived, in no line item and on no invoice"))
    for usage in one.usage:
        counted = f" ({usage.counted_value})" if usage.counted_value else ""
        version = f", {said_of(usage.rate_card_version)}" if usage.rate_card_version else ""
        quantity = f"{tables.number(usage.quantity)} {usage.value_unit}".strip()
        if usage.unit and not usage.value_unit:
            quantity = f"a sample of {quantity}"
        node = tree.add(
            _words(
                (f"{usage.meter_id}: {quantity}", "bold"),
                f"{counted} → {usage.charge_id or 'unpriced: no charge prices it'}{version}",
            )
        )
        if usage.meter:
            node.add(_words(f"counts {usage.meter}"))
        if usage.line_item is None:
            node.add(_words("line item ", _id(usage.line_item_id), " is not rated yet"))
        else:
            item = usage.line_item
            amount = f"{tables.number(item.amount)} {item.currency}".strip()
            node.add(
                _words(
                    f"{'taken out of' if one.voided else 'counted in'} line item ",
                    _id(item.line_item_id),
                    f" · {_count(item.event_count, 'event')} · {amount}",
                )
            )
        if usage.charge_id:
            node.add(_billings("billed by", usage.billed_by, usage.standing, usage.unit))
    return tree


def _render_reject(one: Reject) -> Tree:
    tree = Tree(_words(("Rejected: ", "bold red"), (one.reason, "bold"), f" at {one.stage} · ", _id(one.reject_id)))
    tree.add(_words(one.message))
    tree.add(_words(f"from {one.origin}, position {one.position} · received {instant_text(one.received_time)}"))
    tree.add(_payload(one.payload))
    tree.add("it is in no line item and on no invoice; mended, it can be sent again")
    return tree


_RENDER: dict[type, Callable[[Any], Tree]] = {
    Invoice: _render_invoice,
    Line: _render_line,
    LineItem: _render_line_item,
    Event: _render_event,
    Reject: _render_reject,
}


def _payload(text: str, *, short: bool = False) -> RenderableType:
    """The original bytes; short, as much of them as fits one line."""
    shown = text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}… ({len(text):,} characters)"
    made = Text(visible(shown), "dim", overflow="ellipsis" if short else "fold", no_wrap=short)
    return Padding(made, (0, 0, 0, 2), expand=False)


def _bounds(tier: Tier) -> str:
    if tier.tier == 0:
        return "beside the tiers"
    if tier.above is None:
        return f"tier {tier.tier}"
    return f"({tables.number(tier.above)}, {'∞)' if tier.up_to is None else tables.number(tier.up_to) + ']'}"


def _times(tier: Tier) -> str:
    if tier.packages is not None:
        packages = "1 package" if tier.packages == 1 else f"{tables.number(tier.packages)} packages"
        price = f"→ {packages} × {tables.number(tier.unit_price)}"
    else:
        price = f"× {tables.number(tier.unit_price)}" if tier.per else f"at {tables.number(tier.unit_price)}"
    per = "" if tier.per in (None, 1) else f" / {tables.number(tier.per)}"
    return (
        price
        + per
        + (f" {'+' if tier.flat_fee > 0 else '−'} {tables.number(abs(tier.flat_fee))}" * bool(tier.flat_fee))
    )


def _proration(fee: Fee) -> str:
    if fee.covered_seconds == fee.period_seconds:
        return f"covers the whole period: {fee.amount:,f}"
    if fee.prorate == "none":
        return f"covers {_span(fee.covered_from, fee.covered_to)}, and is not prorated: {tables.number(fee.prorated)}"
    unit = {"second": "s", "day": "days"}[fee.prorate]
    return (
        f"covers {_span(fee.covered_from, fee.covered_to)}: {fee.amount:,f} × {fee.covered:,} {unit} / "
        f"{fee.whole:,} {unit} = {tables.number(fee.prorated)}"
    )


def _rounded(line: Line) -> tuple[str | tuple[str, str], ...]:
    rounding = line.rounding
    rounded, share, before, amount = (
        tables.money(value, line.currency)
        for value in (rounding.rounded, rounding.share, rounding.billed_before, line.amount)
    )
    text = f"the charge {tables.number(rounding.exact)} → {rounded}, once"
    if rounding.accounts > 1:
        text += (
            f"; of its {rounding.accounts} accounts this one has {tables.number(rounding.exact_share)} → "
            f"{share}, by largest remainder"
        )
    if not line.earlier:
        return (text,)
    return f"{text}; less {before} billed before = ", (amount, "bold")


def _after(line: Line) -> tuple[str | tuple[str, str], ...]:
    left = line.standing.not_billed_amount
    issued_later = any(one.status == "issued" for one in line.later)
    currency = line.conversion.currency if line.conversion else line.currency
    billed = "billed by later lines" if issued_later and not left else f"{_signed(left)} {currency} not yet billed"
    return (
        ("≠ ", "yellow"),
        f"usage that came after: {_signed(line.came_after)} {currency}, {billed}; "
        f"its line items say {tables.number(line.standing.amount)} now",
    )


def _billings(title: str, lines: Sequence[Billing], standing: Standing | None = None, unit: str = "") -> RenderableType:
    parts: list[RenderableType] = []
    for one in lines:
        parts.append(
            _words(
                f"{title} " if one.status == "issued" else "to be billed by draft ",
                _id(one.invoice_number or one.invoice_id),
                f" ({one.reason.replace('_', ' ')}, {_signed(one.quantity)})",
                f" · {tables.money(one.amount, one.currency)} · ",
                _id(one.invoice_line_id),
            )
        )
    if standing and (standing.not_billed_quantity or standing.not_billed_amount):
        units = f"{_signed(standing.not_billed_quantity)} {unit}".strip()
        parts.append(
            _words(("not yet billed", "yellow"), f" of this charge: {units}, {_signed(standing.not_billed_amount)}")
        )
    return Group(*parts) if parts else _words("nothing to bill")
