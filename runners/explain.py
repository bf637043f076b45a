"""Why was I charged? From an invoice to its lines, their line items and events, and from an event back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from typing import Any, TypeVar

from meterline.runners import meter_words, tables
from meterline.runners.adjustment_words import adjustment_words, conversion
from meterline.runners.explanation import (
    Billing,
    CountedEvent,
    Event,
    Explanation,
    Fee,
    Invoice,
    Line,
    LineItem,
    Price,
    Reject,
    Rounding,
    Standing,
    Tier,
    Usage,
    VoidedEvent,
    Voiding,
    visible,
)
from meterline.runners.price_names import said_of
from meterline.runners.price_words import TierTerms, tier_terms
from meterline.runners.prices_in_force import InForce, in_words_of, prices_of
from meterline.schemas.catalog import Catalog, Fixed
from meterline.schemas.meters import Aggregation
from meterline.schemas.records import RatingKey, line_item_id
from meterline.schemas.voids import VOID_SOURCE
from meterline.transforms import clickhouse
from meterline.transforms.rules.attribution import Directory, directory
from meterline.transforms.rules.fees import Share, fees_of
from meterline.transforms.rules.line_items import window_bounds
from meterline.transforms.rules.money import EXACT
from meterline.transforms.rules.period_labels import (
    LABEL_PATTERN,
    PeriodError,
    cycle_of_label,
    days_of_label,
    label_of,
    labels_near,
)
from meterline.transforms.rules.periods import Period

MAX_FOUND = 20
"""Events, or rejects, shown when more than one has the id."""
# So many events of a line item are read at once, to show the first.
_FEW = 1_000

T = TypeVar("T", Voiding, VoidedEvent)
_ZERO = Decimal(0)
# A source, the sign # and an event's id.
_LONGEST = 1_024 + 1 + 512
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND, _SECOND = timedelta(microseconds=1), timedelta(seconds=1)
# By the time zone a period starts up to a day before or after the date that names it, and a day that a zone skips adds
# another.
_OFF = timedelta(days=2)
_NUMBER = re.compile(rf"(?P<account>.+)-(?P<period>{LABEL_PATTERN})-(?P<currency>[A-Z]{{3}})-\d{{1,10}}", re.ASCII)


class NotFound(LookupError):
    """No invoice, line, line item, reject or event has the id; the text says which ids there are."""

    def __init__(self, id: str, hint: str = "") -> None:
        shown = visible(id if len(id) <= 80 else f"{id[:79]}…")
        super().__init__(
            f"nothing is called {shown!r}{hint}. What can be explained, and how to find some:\n"
            "  invoice number like acme-2026-10-USD-1, id inv_…  SELECT number, invoice_id FROM invoices FINAL\n"
            "  invoice line   il_…                     SELECT invoice_line_id, description FROM invoice_lines FINAL\n"
            "  line item      li_…                     SELECT line_item_id, account_id, amount FROM line_items FINAL\n"
            "  reject         rej_…                    SELECT reject_id, reason, message FROM rejects FINAL\n"
            "  event          its id, or SOURCE#ID     SELECT source, id, time FROM usage_events FINAL\n"
            'Ask with `meterline query "SELECT … LIMIT 10"`.'
        )


# --- finding ------------------------------------------------------------------------------------


def explain(url: str, id: str, catalog: Catalog | None, *, events: int = 5, line_items: int = 10) -> Explanation:
    """Say what something was charged for, or where an event went.

    Args:
      url: Of the database.
      id: An invoice's number or id, the id of an invoice line, a line item, a reject or an event. Events of several
        sources and tenants may share an id, all are told. `SOURCE#ID` names one, whatever its id looks like.
      catalog: Where prices and units are looked up; without, prices are what the line items recorded.
      events: At most so many of each line item, the first.
      line_items: At most so many of an invoice line, those with the largest amounts.

    Raises:
      NotFound: nothing has the id.
      DatabaseError: ClickHouse cannot be used.
    """
    clickhouse.ready(url)
    if not id or len(id) > _LONGEST or any("\ud800" <= one <= "\udfff" for one in id):
        raise NotFound(id)
    ask = _Question(url, directory(catalog) if catalog else None, events, line_items)
    with localcontext(EXACT):
        for pattern, look in _KINDS:
            if re.fullmatch(pattern, id) and (found := look(ask, id)):
                return Explanation(id, False, tuple(found))
        answers = _events(ask, id) or _rejects_with(ask, id)
    if not answers:
        raise NotFound(id)
    return Explanation(id, len(answers) > MAX_FOUND, tuple(answers[:MAX_FOUND]))


@dataclass(frozen=True)
class _Question:
    url: str
    book: Directory | None
    events: int
    line_items: int

    def rows(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        # Payloads may be any bytes; what else is text is decoded here.
        table = clickhouse.query(self.url, f"{sql} {_SETTINGS}", parameters)
        return [{name: _decoded(value) for name, value in row.items()} for row in table.to_pylist()]

    def unit(self, meter_id: str) -> str:
        return self.book.meters[meter_id].unit if self.book and meter_id in self.book.meters else ""

    def value_unit(self, meter_id: str) -> str:
        """Of an event's own value: a sample of a gauge is in another than the unit-hours that come of it."""
        meter = self.book.meters.get(meter_id) if self.book else None
        return "" if meter is None or meter.aggregation is Aggregation.TIME_WEIGHTED_SUM else meter.unit

    def meter(self, meter_id: str) -> str:
        return meter_words.in_words(self.book.meters[meter_id]) if self.book and meter_id in self.book.meters else ""


def _decoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, (list, tuple)):
        return tuple(_decoded(one) for one in value)
    return value


# An id is looked for in a filter of each part: sooner when all filters are asked before the first rows are read.
# (Said in the statement: the embedded client asks three times for a setting that it is handed.)
_SETTINGS = "SETTINGS use_skip_indexes_on_data_read = 0, output_format_arrow_string_as_string = 0"
# Filters on the sort key stand in PREWHERE: all rows that FINAL makes one are alike in it, so it may be looked at
# first; the other columns are read of what is left.
_HEAD = """
SELECT invoice_id, number, toString(status) AS status, toString(kind) AS invoice_kind, tenant_id, billing_account_id,
       period, sequence, currency, total, corrects, toDateTime64(made_at, 0, 'UTC') AS made_at
FROM invoices FINAL
"""
_IN_ORDER = "ORDER BY period, sequence"
_LINE = """
SELECT invoice_id, line_number, invoice_line_id, tenant_id, billing_account_id, account_id, subscription_id, charge_id,
       meter_id, rate_card_version, rating_key_id, dimensions, period_start,
       period_end, description, unit, quantity, exact_amount, amount, currency,
       reason, kind AS line_kind, source, terms
FROM invoice_lines FINAL
"""
_ITEM = """
SELECT line_item_id, tenant_id, billing_account_id, account_id, subscription_id, charge_id, meter_id,
       rate_card_version, rating_key_id, dimensions, period_start,
       period_end, window_start,
       window_end, quantity_from, quantity_to, amount, currency, tiers.tier,
       tiers.quantity, tiers.unit_price, tiers.flat_fee, tiers.amount, event_count, voided_count, revision
FROM line_items
"""
# The sort key of line_items, column by column.
_OF_KEYS = """
PREWHERE tenant_id = {tenant:String} AND billing_account_id = {payer:String}
  AND period_start >= {since:DateTime64(0, 'UTC')} AND period_start <= {until:DateTime64(0, 'UTC')}
  AND subscription_id IN {subscriptions:Array(String)} AND charge_id IN {charges:Array(String)}
  AND meter_id IN {meters:Array(String)} AND rate_card_version IN {versions:Array(String)}
  AND rating_key_id IN {keys:Array(UInt64)} AND account_id IN {accounts:Array(String)}
"""
# Sums are taken in 256 bits: ClickHouse wraps sums of Decimal(38) without a word.
_TOTALS = f"""
SELECT rating_key_id, account_id, count() AS line_items, sum(event_count) AS events,
       CAST(sum(toDecimal256(quantity_to, 12) - toDecimal256(quantity_from, 12)), 'Decimal(38, 12)') AS units,
       sum(toDecimal256(amount, 18)) AS total
FROM line_items FINAL {_OF_KEYS}
GROUP BY rating_key_id, account_id
"""
_TIERS = f"""
SELECT one.1 AS tier, one.3 AS unit_price,
       CAST(sum(toDecimal256(one.2, 12)), 'Decimal(38, 12)') AS quantity,
       sum(toDecimal256(one.4, 18)) AS flat_fee,
       sum(toDecimal256(one.5, 18)) AS amount
FROM (SELECT arrayJoin(arrayZip(tiers.tier, tiers.quantity, tiers.unit_price, tiers.flat_fee, tiers.amount)) AS one
      FROM line_items FINAL {_OF_KEYS})
GROUP BY tier, unit_price ORDER BY tier, unit_price
"""
# An event is archived once, but until the parts are merged a replay may show it twice.
_EVENTS_OF_ITEMS = """
SELECT arrayFirstIndex((since, until) -> toUnixTimestamp64Micro(time) >= since AND toUnixTimestamp64Micro(time) < until,
                       {{since:Array(Int64)}}, {{until:Array(Int64)}}) AS place,
       time, source, id, subject, payload, quantities[indexOf(rating_keys, {{key:UInt64}})] AS quantity,
       counted_values[indexOf(rating_keys, {{key:UInt64}})] AS counted_value
FROM (SELECT * FROM (SELECT * FROM usage_events
                     WHERE tenant_id = {{tenant:String}} AND billing_account_id = {{payer:String}}
                       AND account_id = {{account:String}} AND has(rating_keys, {{key:UInt64}}) AND ({windows})
                     {first})
      LIMIT 1 BY time, identity)
ORDER BY time, identity LIMIT {{limit:UInt64}} BY place
"""
_WINDOW = """(time >= fromUnixTimestamp64Micro({{since:Array(Int64)}}[{n}], 'UTC')
          AND time < fromUnixTimestamp64Micro({{until:Array(Int64)}}[{n}], 'UTC'))"""
# Reading in order ends here; LIMIT BY would read on. Enough for a replay in each of a hundred parts.
_FIRST = "ORDER BY time, identity LIMIT {limit:UInt64} * 100"
_EVENTS_BY_ID = """
SELECT tenant_id, source, id, type, subject, time, received_time, account_id, billing_account_id, payload, rating_keys,
       quantities, counted_values
FROM usage_events
WHERE id IN {ids:Array(String)} AND (id = {id:String} OR concat(source, '#', id) = {id:String})
ORDER BY tenant_id, source, time LIMIT 1 BY tenant_id, source, id, time LIMIT {limit:UInt64}
"""
_VOIDS = """
SELECT tenant_id, time, source, id, reason, void_id, received_time AS voided_at
FROM voids FINAL
WHERE tenant_id IN {tenants:Array(String)}
  AND time IN (SELECT fromUnixTimestamp64Micro(arrayJoin({times:Array(Int64)}), 'UTC'))
"""
_REJECTS = (
    "SELECT reject_id, stage, reason, message, origin, position, received_time, payload FROM rejects FINAL PREWHERE "
)


def _invoice(ask: _Question, id: str) -> list[Invoice]:
    payer = "SELECT tenant_id, billing_account_id FROM invoices WHERE invoice_id = {id:String}"
    heads = ask.rows(f"{_HEAD} PREWHERE (tenant_id, billing_account_id) IN ({payer}) {_IN_ORDER}", id=id)
    return [_whole_invoice(ask, head, heads) for head in heads if head["invoice_id"] == id]


def _numbered_invoice(ask: _Question, number: str) -> list[Invoice]:
    parts = _NUMBER.fullmatch(number)
    assert parts
    where = "PREWHERE billing_account_id = {account:String} AND period IN {periods:Array(String)}"
    heads = ask.rows(f"{_HEAD} {where} {_IN_ORDER}", account=parts["account"], periods=_around(parts["period"]))
    return [_whole_invoice(ask, head, heads) for head in heads if head["number"] == number]


def _around(label: str) -> list[str]:
    """The label of a billing period, with those of the same form before and after."""
    try:
        first, last = days_of_label(label)
    except PeriodError:
        return [label]
    days = (first - timedelta(days=1), first, last + timedelta(days=1))
    return [label_of(day, cycle_of_label(label)) for day in days]


def _whole_invoice(ask: _Question, head: dict[str, Any], heads: Sequence[dict[str, Any]]) -> Invoice:
    """One of `heads`; its lines are read together with those that other invoices have about the same."""
    payer, periods = (head["tenant_id"], head["billing_account_id"]), _around(head["period"])
    near = [one for one in heads if (one["tenant_id"], one["billing_account_id"]) == payer and one["period"] in periods]
    about_the_same = "rating_key_id IN (SELECT rating_key_id FROM invoice_lines WHERE invoice_id = {id:String})"
    lines = _lines_of(ask, near, about_the_same, id=head["invoice_id"])
    rows = [line for line in lines if line["invoice_id"] == head["invoice_id"]]
    history, totals = _by_key(near, lines), _totals(ask, rows)
    return Invoice(**head, lines=tuple(_line(ask, row, history, totals, (), ()) for row in rows))


def _invoice_line(ask: _Question, id: str) -> list[Line]:
    # Found without FINAL, which would read all columns of all lines.
    where = "(SELECT invoice_id, line_number FROM invoice_lines WHERE invoice_line_id = {id:String})"
    rows = ask.rows(
        f"{_LINE} PREWHERE (invoice_id, line_number) IN {where} WHERE invoice_line_id = {{id:String}}", id=id
    )
    history = _history(ask, rows)
    counting = {one.invoice_line_id for lines in history.values() for _, one in lines}
    if rows and not any(row["invoice_line_id"] in counting for row in rows):
        raise NotFound(id, " any more: it was a line of a draft that has been made anew, and counts nowhere")
    largest = f"{_ITEM} FINAL {_OF_KEYS} ORDER BY abs(amount) DESC, window_start LIMIT {{n:UInt64}}"
    found = []
    for row in rows:
        keys = _of_keys([row])
        tiers, items = ask.rows(_TIERS, **keys), ask.rows(largest, **keys, n=ask.line_items)
        items.sort(key=lambda item: item["window_start"])
        found.append(_line(ask, row, history, _totals(ask, [row]), tiers, _line_items(ask, items)))
    return found


def _line_item(ask: _Question, id: str) -> list[LineItem]:
    # Without FINAL, so that only the index is read: all rows of one id are revisions of one line item.
    where = "WHERE line_item_id = {id:String} ORDER BY revision DESC LIMIT 1"
    rows = ask.rows(_ITEM + where, id=id)
    return list(_line_items(ask, rows, _history(ask, rows), _totals(ask, rows)))


def _events(ask: _Question, id: str) -> list[Event]:
    # SOURCE#ID: both may hold the sign, so every place where it could part them is tried.
    ids = [id, *(id[place + 1 :] for place, sign in enumerate(id) if sign == "#")][:100]
    rows = ask.rows(_EVENTS_BY_ID, ids=ids, id=id, limit=MAX_FOUND + 1)
    voids = _voids(ask, rows)
    voided = {(one["tenant_id"], one["time"], one["source"], one["id"]): one for one in voids}
    voiding = {(one["tenant_id"], one["time"], VOID_SOURCE, one["void_id"]): one for one in voids}
    for row in rows:
        name = (row["tenant_id"], row["time"], row["source"], row["id"])
        row["voided"] = _picked(Voiding, voided.get(name))
        row["voids"] = _picked(VoidedEvent, voiding.get(name))
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["tenant_id"], row["billing_account_id"]), []).append(row)
    return [event for group in groups.values() for event in _attributed(ask, group)]


def _voids(ask: _Question, events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The voids at the times of events: of these, by these, or of others."""
    if not events:
        return []
    times = sorted({_micros(event["time"]) for event in events})
    return ask.rows(_VOIDS, tenants=sorted({event["tenant_id"] for event in events}), times=times)


def _micros(instant: datetime) -> int:
    return (instant - _EPOCH) // _MICROSECOND


def _picked(kind: type[T], row: Mapping[str, Any] | None) -> T | None:
    return kind(**{field.name: row[field.name] for field in fields(kind)}) if row else None  # type: ignore[arg-type]


def _attributed(ask: _Question, events: list[dict[str, Any]]) -> list[Event]:
    """Events of one billing account."""
    sql = "SELECT DISTINCT rating_key FROM rating_keys WHERE rating_key_id IN {ids:Array(UInt64)}"
    texts = [row["rating_key"] for row in ask.rows(sql, ids=[key for event in events for key in event["rating_keys"]])]
    payer = events[0]["tenant_id"], events[0]["billing_account_id"]
    keys = {key.id: key for key in map(RatingKey.parse, texts) if (key.tenant_id, key.billing_account_id) == payer}
    if not keys:
        return [_event(event, ()) for event in events]
    abouts = [{"rating_key_id": id, **{name: getattr(key, name) for name in _KEY_COLUMNS}} for id, key in keys.items()]
    accounts = {event["account_id"] for event in events}
    history, totals = _history(ask, abouts), _totals(ask, abouts, accounts)
    starts = {
        window_bounds(keys[id], int(event["time"].timestamp()))[0]
        for event in events
        for id in event["rating_keys"]
        if id in keys
    }
    windows = "window_start IN (SELECT toDateTime64(arrayJoin({windows:Array(Int64)}), 0, 'UTC'))"
    parameters = _of_keys(abouts, accounts) | {"windows": sorted(starts)}
    rows = ask.rows(f"{_ITEM} FINAL {_OF_KEYS} AND {windows}", **parameters)
    items = {item.line_item_id: item for item in (_item(ask, row, (), None, ()) for row in rows)}

    def usage(event: dict[str, Any], place: int, key: RatingKey) -> Usage:
        seconds = int(event["time"].timestamp())
        name = line_item_id(key.text, event["account_id"], window_bounds(key, seconds)[0])
        about = (key.id, event["account_id"])
        billed_by = tuple(billing for account, billing in history.get(key.id, ()) if account == event["account_id"])
        return Usage(
            meter_id=key.meter_id,
            subscription_id=key.subscription_id,
            charge_id=key.charge_id,
            rate_card_version=key.rate_card_version,
            rating_key_id=str(key.id),
            dimensions=dict(key.dimensions),
            meter=ask.meter(key.meter_id),
            period_start=key.period_start,
            period_end=key.period_end,
            quantity=event["quantities"][place],
            unit=ask.unit(key.meter_id),
            value_unit=ask.value_unit(key.meter_id),
            counted_value=event["counted_values"][place],
            line_item_id=name,
            line_item=items.get(name),
            standing=_standing(totals.get(about), billed_by),
            billed_by=billed_by,
        )

    return [
        _event(
            event,
            tuple(usage(event, place, keys[id]) for place, id in enumerate(event["rating_keys"]) if id in keys),
        )
        for event in events
    ]


def _event(row: dict[str, Any], usage: tuple[Usage, ...]) -> Event:
    names = [field.name for field in fields(Event) if field.name != "usage"]
    return Event(**{name: row[name] for name in names}, usage=usage)


def _reject(ask: _Question, id: str) -> list[Reject]:
    return [Reject(**row) for row in ask.rows(_REJECTS + "reject_id = {id:String}", id=id)]


def _rejects_with(ask: _Question, id: str) -> list[Reject]:
    """Rejected records that hold the text as a JSON string: an event that is asked for, but was not accepted."""
    # A reject's id hashes its payload, so that rows of one id have the same.
    where = "position(payload, {quoted:String}) > 0 ORDER BY received_time DESC, reject_id LIMIT {limit:UInt64}"
    return [
        Reject(**row)
        for row in ask.rows(_REJECTS + where, quoted=json.dumps(id, ensure_ascii=False), limit=MAX_FOUND + 1)
    ]


_KINDS: tuple[tuple[str, Callable[[_Question, str], Sequence[Any]]], ...] = (
    (r"inv_[0-9a-f]{24}", _invoice),
    (r"il_[0-9a-f]{24}", _invoice_line),
    (r"li_[0-9a-f]{24}", _line_item),
    (r"rej_[0-9a-f]{24}", _reject),
    (_NUMBER.pattern, _numbered_invoice),
)


# --- from rows to records -----------------------------------------------------------------------

_KEY_COLUMNS = (
    *("tenant_id", "billing_account_id", "subscription_id", "charge_id", "meter_id", "rate_card_version"),
    *("period_start", "period_end"),
)


def _of_keys(rows: Sequence[Mapping[str, Any]], accounts: Iterable[str] | None = None) -> dict[str, Any]:
    """Parameters of `_OF_KEYS` for rows of one billing account, and for their accounts where no others are given."""
    starts = [row["period_start"] for row in rows]
    return {
        "tenant": rows[0]["tenant_id"],
        "payer": rows[0]["billing_account_id"],
        "since": min(starts),
        "until": max(starts),
        "subscriptions": sorted({row["subscription_id"] for row in rows}),
        "charges": sorted({row["charge_id"] for row in rows}),
        "meters": sorted({row["meter_id"] for row in rows}),
        "versions": sorted({row["rate_card_version"] for row in rows}),
        "keys": sorted({row["rating_key_id"] for row in rows}),
        "accounts": sorted({row["account_id"] for row in rows} if accounts is None else accounts),
    }


Totals = dict[tuple[int, str], dict[str, Any]]
History = dict[int, list[tuple[str, Billing]]]


def _totals(ask: _Question, rows: Sequence[Mapping[str, Any]], accounts: Iterable[str] | None = None) -> Totals:
    """By rating key and account: what the line items say now."""
    if not rows:
        return {}
    found = ask.rows(_TOTALS, **_of_keys(rows, accounts))
    return {(row["rating_key_id"], row["account_id"]): row for row in found}


def _history(ask: _Question, rows: Sequence[Mapping[str, Any]]) -> History:
    """By rating key: the lines of all invoices that count, with their accounts, in the order of the invoices."""
    if not rows:
        return {}
    starts = {row["period_start"] for row in rows}
    labels = {label for start in starts for label in labels_near((start - _OFF).date(), (start + _OFF).date())}
    payer = "tenant_id = {tenant:String} AND billing_account_id = {payer:String}"
    heads = ask.rows(
        f"{_HEAD} PREWHERE {payer} AND period IN {{labels:Array(String)}} {_IN_ORDER}",
        tenant=rows[0]["tenant_id"],
        payer=rows[0]["billing_account_id"],
        labels=sorted(labels),
    )
    keys = sorted({row["rating_key_id"] for row in rows})
    return _by_key(heads, _lines_of(ask, heads, "rating_key_id IN {keys:Array(UInt64)}", keys=keys))


def _lines_of(ask: _Question, heads: Sequence[dict[str, Any]], where: str, **parameters: Any) -> list[dict[str, Any]]:
    """Lines of invoices, in the order of these."""
    if not heads:
        return []
    place = {head["invoice_id"]: number for number, head in enumerate(heads)}
    lines = ask.rows(
        f"{_LINE} PREWHERE invoice_id IN {{ids:Array(String)}} WHERE {where}", ids=list(place), **parameters
    )
    return sorted(lines, key=lambda line: (place[line["invoice_id"]], line["line_number"]))


def _by_key(heads: Iterable[dict[str, Any]], lines: Iterable[dict[str, Any]]) -> History:
    by_id = {head["invoice_id"]: head for head in heads}
    history: History = {}
    for line in lines:
        head = by_id[line["invoice_id"]]
        billing = Billing(
            line["invoice_line_id"],
            head["invoice_id"],
            head["number"],
            head["status"],
            head["sequence"],
            head["made_at"],
            line["reason"],
            line["quantity"],
            line["exact_amount"],
            line["amount"],
            line["currency"],
            conversion(line["terms"]) if line["line_kind"] == "charge" else None,
        )
        history.setdefault(line["rating_key_id"], []).append((line["account_id"], billing))
    return history


def _due(lines: Iterable[Billing]) -> tuple[Decimal, Decimal]:
    """What was due, exactly, when the last of the lines was made; and what they bill together.

    A line's exact amount is what was due less the rounded amounts that earlier lines billed.
    """
    due = billed = _ZERO
    for line in lines:
        due = billed + line.exact_amount
        billed += line.amount
    return due, billed


def _priced(lines: Sequence[Billing]) -> Decimal:
    """The same in the currency of the prices."""
    converted = lines[-1].conversion if lines else None
    return _due(lines)[0] if converted is None else converted.amount


def _standing(total: Mapping[str, Any] | None, lines: Sequence[Billing], *, fee: bool = False) -> Standing:
    """Where a rating key and account stand. A fee, due without usage, has no line items: its lines say what is due."""
    issued = [line for line in lines if line.status == "issued"]
    billed_units = sum((line.quantity for line in issued), _ZERO)
    if total:
        units, amount = total["units"], total["total"]
    elif fee:
        units, amount = sum((line.quantity for line in lines), _ZERO), _priced(lines)
    else:
        units = amount = _ZERO
    return Standing(
        quantity=units,
        amount=amount,
        line_items=total["line_items"] if total else 0,
        events=int(total["events"]) if total else 0,
        not_billed_quantity=units - billed_units,
        not_billed_amount=amount - _priced(issued),
    )


def _line(
    ask: _Question,
    row: dict[str, Any],
    history: History,
    totals: Totals,
    tiers: Sequence[Mapping[str, Any]],
    items: tuple[LineItem, ...],
) -> Line:
    about = (row["rating_key_id"], row["account_id"])
    of_key = history.get(row["rating_key_id"], [])
    this = next(one for _, one in of_key if one.invoice_line_id == row["invoice_line_id"])
    until: dict[str, list[Billing]] = {}
    for account, one in of_key:
        if one.invoice_id == this.invoice_id or (one.status == "issued" and one.sequence < this.sequence):
            until.setdefault(account, []).append(one)
    own = [one for account, one in of_key if account == row["account_id"]]
    sums = {account: _due(lines) for account, lines in until.items()}
    exact, share = sums[row["account_id"]]

    is_charge = row["line_kind"] == "charge"
    prices = prices_of(ask.book, row) if is_charge else ()
    fee = _fee(ask.book, prices[0].price, row) if ask.book and prices and isinstance(prices[0].price, Fixed) else None
    used = is_charge and row["meter_id"] and any(one.quantity for one in own)
    standing = _standing(totals.get(about), own, fee=not used)
    return Line(
        **{name: row[name] for name in _LINE_COLUMNS},
        rating_key_id=str(row["rating_key_id"]),
        dimensions=dict(row["dimensions"]),
        meter=ask.meter(row["meter_id"]) if is_charge else "",
        invoice_number=this.invoice_number,
        status=this.status,
        sequence=this.sequence,
        price=_price(ask, row, prices, tiers) if is_charge else _computed(row),
        fee=fee,
        conversion=this.conversion,
        rounding=Rounding(
            exact=sum((due for due, _ in sums.values()), _ZERO),
            rounded=sum((billed for _, billed in sums.values()), _ZERO),
            accounts=len(sums),
            exact_share=exact,
            share=share,
            billed_before=share - this.amount,
        ),
        standing=standing,
        came_after=standing.amount - _priced(until[row["account_id"]]),
        tiers=_tiers(prices, tiers),
        line_items=items,
        earlier=tuple(one for one in own if one.sequence < this.sequence and one.status == "issued"),
        later=tuple(one for one in own if one.sequence > this.sequence),
    )


_LINE_COLUMNS = (
    *("invoice_line_id", "invoice_id", "line_number", "tenant_id", "billing_account_id", "account_id"),
    *("subscription_id", "charge_id", "meter_id", "rate_card_version", "period_start", "period_end", "description"),
    *("quantity", "unit", "exact_amount", "amount", "currency", "reason", "line_kind", "source"),
)


def _computed(row: Mapping[str, Any]) -> Price:
    """Of a line that is no charge: what it was computed from."""
    return Price(row["line_kind"], adjustment_words(row["line_kind"], row["terms"], row["currency"]), "terms")


def _line_items(
    ask: _Question, rows: list[dict[str, Any]], history: History | None = None, totals: Totals | None = None
) -> tuple[LineItem, ...]:
    counted = _counted_events(ask, rows)
    found = []
    for row in rows:
        standing: Standing | None = None
        billed_by: tuple[Billing, ...] = ()
        if history is not None and totals is not None:
            lines = history.get(row["rating_key_id"], [])
            billed_by = tuple(one for account, one in lines if account == row["account_id"])
            standing = _standing(totals.get((row["rating_key_id"], row["account_id"])), billed_by)
        found.append(_item(ask, row, tuple(counted.get(row["line_item_id"], ())), standing, billed_by))
    return tuple(found)


def _item(
    ask: _Question,
    row: dict[str, Any],
    events: tuple[CountedEvent, ...],
    standing: Standing | None,
    billed_by: tuple[Billing, ...],
) -> LineItem:
    columns = ("tier", "quantity", "unit_price", "flat_fee", "amount")
    tiers = [dict(zip(columns, values)) for values in zip(*(row[f"tiers.{column}"] for column in columns))]
    prices = prices_of(ask.book, row)
    rest = {name: value for name, value in row.items() if not name.startswith("tiers.")}
    return LineItem(
        **{
            **rest,
            "rating_key_id": str(row["rating_key_id"]),
            "dimensions": dict(row["dimensions"]),
            "meter": ask.meter(row["meter_id"]),
            "unit": ask.unit(row["meter_id"]),
            "price": _price(ask, row, prices, tiers),
            "tiers": _tiers(prices, tiers),
            "events": events,
            "standing": standing,
            "billed_by": billed_by,
        }
    )


def _counted_events(ask: _Question, items: Sequence[Mapping[str, Any]]) -> dict[str, list[CountedEvent]]:
    """By line item, of one rating key and account: its first events."""
    if not items or not ask.events:
        return {}
    # Few events are read together, for all their line items. Many are read in their order, and no further than told.
    few = [item for item in items if item["event_count"] + item["voided_count"] <= _FEW]
    rows = _first_events(ask, few) if few else []
    for item in items:
        if item not in few:
            rows += _first_events(ask, [item], _FIRST)
    voided = {(one["source"], one["id"], one["time"]) for one in _voids(ask, rows)}
    found: dict[str, list[CountedEvent]] = {}
    for row in sorted(rows, key=lambda row: (row["time"], row["source"], row["id"])):
        name = (row["source"], row["id"], row["time"])
        columns = {field.name: row[field.name] for field in fields(CountedEvent) if field.name != "voided"}
        found.setdefault(row["line_item_id"], []).append(CountedEvent(**columns, voided=name in voided))
    return found


def _first_events(ask: _Question, items: Sequence[Mapping[str, Any]], first: str = "") -> list[dict[str, Any]]:
    windows = " OR ".join(_WINDOW.format(n=n) for n in range(1, len(items) + 1))
    rows = ask.rows(
        _EVENTS_OF_ITEMS.format(windows=windows, first=first),
        tenant=items[0]["tenant_id"],
        payer=items[0]["billing_account_id"],
        account=items[0]["account_id"],
        key=items[0]["rating_key_id"],
        since=[_micros(item["window_start"]) for item in items],
        until=[_micros(item["window_end"]) for item in items],
        limit=ask.events,
    )
    tenant = items[0]["tenant_id"]
    return [{**row, "tenant_id": tenant, "line_item_id": items[row["place"] - 1]["line_item_id"]} for row in rows]


# --- prices in words ----------------------------------------------------------------------------


def _price(
    ask: _Question, row: Mapping[str, Any], prices: tuple[InForce, ...], tiers: Sequence[Mapping[str, Any]]
) -> Price:
    if not row["charge_id"]:
        return Price("", "no charge prices this usage; it is counted at amount 0", "none")
    if ask.book is not None and prices and all(_terms(prices, tier) for tier in tiers):
        text = in_words_of(ask.book, row, prices, ask.unit(row["meter_id"]))
        return Price(prices[0].price.model, text, "catalog")
    recorded = dict.fromkeys(f"tier {tier['tier']} at {tables.number(tier['unit_price'])}" for tier in tiers)
    if prices:
        why = f"the catalog now has other prices where these were the {said_of(row['rate_card_version'])}"
    elif ask.book is not None:
        why = f"the catalog does not have the {said_of(row['rate_card_version'])} of this charge any more"
    else:
        why = "the whole formula is in the catalog: --catalog FOLDER"
    return Price("", f"as recorded: {', '.join(recorded)} ({why})" if recorded else why, "recorded")


def _terms(prices: tuple[InForce, ...], tier: Mapping[str, Any]) -> TierTerms | None:
    """What the catalog says of a tier, where it still has the price that the tier was charged at."""
    found = (tier_terms(one.price, tier["tier"]) for one in prices)
    return next((terms for terms in found if terms and terms.unit_price == tier["unit_price"]), None)


def _tiers(prices: tuple[InForce, ...], tiers: Iterable[Mapping[str, Any]]) -> tuple[Tier, ...]:
    found = []
    for tier in tiers:
        terms = _terms(prices, tier) or TierTerms(tier["unit_price"])
        packages = None
        if terms.in_packages and terms.unit_price:
            packages = (tier["amount"] - tier["flat_fee"]) // terms.unit_price
        found.append(
            Tier(
                tier["tier"],
                terms.above,
                terms.up_to,
                tier["quantity"],
                terms.unit_price,
                terms.per,
                packages,
                tier["flat_fee"],
                tier["amount"],
            )
        )
    return tuple(found)


def _fee(book: Directory, price: Fixed, row: Mapping[str, Any]) -> Fee:
    period = Period(row["period_start"], row["period_end"], "")
    parts = [
        one
        for one in fees_of(book.subscriptions[row["subscription_id"]], period, book)
        if one.share is not None and (one.charge_id, one.name) == (row["charge_id"], row["rate_card_version"])
    ]
    shares = [one.share for one in parts if one.share is not None] or [Share(period.start, period.start, 0, 1)]
    return Fee(
        amount=price.amount,
        billed=price.billed,
        prorate=price.prorate,
        covered_from=shares[0].start,
        covered_to=shares[-1].end,
        covered_seconds=sum((share.end - share.start) // _SECOND for share in shares),
        period_seconds=(period.end - period.start) // _SECOND,
        covered=sum(share.part for share in shares),
        whole=shares[0].whole,
        prorated=sum((one.amount for one in parts), _ZERO),
    )
