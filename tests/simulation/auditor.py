"""The rules of billing once more: naive, slow, and written from docs/rules.md alone.

Simulations compare what the pipelines wrote with these books. Nothing here may be shared with
`transforms/`: a mistake must be made twice, independently, to go unseen. Numbers are `Fraction`,
times are instants in UTC, every section of the page has its section here.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import math
import re
import zoneinfo
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from .auditor_calendar import HOUR, given, instant, period_of, window_of, yes
from .auditor_contracts import begin_of, plan_at, price_at, trial_end

# A catalog as it stands in the YAML files: lists and dicts, every scalar a string.
Catalog = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Reading:
    """What one event says to one meter."""

    value: Fraction | str | None  # a quantity; the string form for distinct; None for count
    dimensions: tuple[tuple[str, str], ...]  # (path, value), in the meter's order
    series: str = ""


@dataclass(frozen=True)
class Event:
    """An accepted event."""

    tenant: str
    source: str
    id: str
    time: datetime
    type: str
    subject: str
    readings: dict[str, Reading]  # by meter id, of those whose filters take it
    account_id: str
    payload: bytes

    def content(self) -> tuple[object, ...]:
        """What may not differ between duplicates."""
        return (self.time, self.type, self.subject, self.readings)


# What names an accepted event: tenant, time, source, id.
Name = tuple[str, datetime, str, str]


def name_of(event: Event) -> Name:
    return event.tenant, event.time, event.source, event.id


class Arrival(NamedTuple):
    """A record, and when it was received."""

    record: bytes
    received: datetime


@dataclass
class Books:
    accepted: list[Event] = field(default_factory=list)
    duplicates: int = 0
    rejects: list[tuple[str, str, bytes]] = field(default_factory=list)  # reason, stage, payload
    line_items: list[dict[str, Any]] = field(default_factory=list)
    voided: set[Name] = field(default_factory=set)


class Rejected(Exception):
    def __init__(self, reason: str, stage: str = "validate") -> None:
        super().__init__(reason)
        self.reason = reason
        self.stage = stage


def audit(records: Sequence[bytes], catalog: Catalog, received: datetime, horizon: timedelta | None) -> Books:
    """Decide on every record and price what was accepted.

    Args:
      records: In the order of arrival, which decides only which of two conflicting events counts.
      catalog: As `read_catalog` gives it.
      received: When all the records came in.
      horizon: How old an event may be then; None for no bound.
    """
    return audit_arrivals([Arrival(record, received) for record in records], catalog, horizon)


def audit_arrivals(arrivals: Sequence[Arrival], catalog: Catalog, horizon: timedelta | None) -> Books:
    """The same for records that came in at different times."""
    books = Books()
    first_of_identity: dict[tuple[str, str, str, date], Event] = {}
    for record, received in arrivals:
        try:
            event = event_of(record, catalog, received, horizon)
            void = voided_by(event, books.accepted)
            identity = (event.tenant, event.source, event.id, event.time.date())
            first = first_of_identity.get(identity)
            if first is not None and first.content() != event.content():
                raise Rejected("conflict", "deduplicate")
        except Rejected as reject:
            books.rejects.append((reject.reason, reject.stage, record))
            continue
        if first is not None:
            books.duplicates += 1
        else:
            first_of_identity[identity] = event
            books.accepted.append(event)
            if void is not None:
                books.voided.add(void)
    rate(books, catalog)
    return books


def read_catalog(folder: str | Path) -> Catalog:
    """All YAML files below `folder` as one catalog: their lists put together, every scalar a string."""
    import yaml  # only here: the audit itself needs nothing but the standard library

    catalog: Catalog = {}
    for path in sorted(Path(folder).rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix in (".yaml", ".yml") and not hidden:
            content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader) or {}
            for kind, entries in content.items():
                catalog.setdefault(kind, []).extend(entries or [])
    return catalog


# Section 1: which records are events


@dataclass(frozen=True)
class Number:
    """A JSON number, as it was written."""

    text: str


REQUIRED = ("specversion", "id", "source", "type", "time", "subject", "data")
CONTEXT = ("specversion", "id", "source", "type", "time", "subject", "datacontenttype", "dataschema")

JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
JSON_NUMBER = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")
JSON_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
ATTRIBUTE_NAME = re.compile(r"[a-z0-9]{1,50}")
MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+/(?:[!#$%&'*+.^_`|~0-9a-z-]+\+)?json")
RFC_3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)


def event_of(record: bytes, catalog: Catalog, received: datetime, horizon: timedelta | None) -> Event:
    """The checks in the order of the table."""
    if len(record) > 1_048_576:
        raise Rejected("too_large")
    attributes = {name: value for name, value in json_object(record).items() if value is not None}
    for name in REQUIRED:
        if attributes.get(name, "") == "":
            raise Rejected("missing_field")
    check_attributes(attributes)
    time = time_of(attributes["time"])
    if horizon is not None and time < received - horizon:
        raise Rejected("too_old")
    if time > received + HOUR:
        raise Rejected("in_future")
    meters = [meter for meter in catalog["meters"] if meter["event_type"] == attributes["type"]]
    if not meters and attributes["type"] != VOID_TYPE:
        raise Rejected("unknown_type")
    data = attributes["data"]
    meters = [meter for meter in meters if takes(meter, data)]
    values = {meter["id"]: value_of(meter, data) for meter in meters}
    dimensions = {
        meter["id"]: tuple((path, dimension_of(path, data)) for path in meter.get("dimensions") or [])
        for meter in meters
    }
    series = {meter["id"]: dimension_of(meter["series"], data) if meter.get("series") else "" for meter in meters}
    tenant = attributes.get("tenantid") or "default"
    subject = attributes["subject"]
    for account in catalog["accounts"]:
        if tenant_of(account) == tenant and subject in [account["id"], *(account.get("subjects") or [])]:
            break
    else:
        raise Rejected("unknown_subject", "attribute")
    return Event(
        tenant,
        attributes["source"],
        attributes["id"],
        time,
        attributes["type"],
        subject,
        {meter["id"]: Reading(values[meter["id"]], dimensions[meter["id"]], series[meter["id"]]) for meter in meters},
        account["id"],
        record,
    )


def json_object(record: bytes) -> dict[str, Any]:
    try:
        text = record.decode("utf-8")
    except UnicodeDecodeError:
        raise Rejected("malformed") from None
    # Outside of its strings, valid JSON has brackets only around objects and arrays.
    # On text that is not valid these two checks may err: it is malformed anyway.
    outside = JSON_STRING.sub('""', text)
    depth = 0
    for character in outside:
        if character in "[{":
            depth += 1
        if character in "]}":
            depth -= 1
        if depth > 64:
            raise Rejected("malformed")
    if any(len(number) > 4000 for number in re.findall(r"[-+.0-9eE]+", outside)):
        raise Rejected("malformed")
    try:
        value = json.loads(text, parse_int=Number, parse_float=Number, parse_constant=no_json)
    except ValueError:
        raise Rejected("malformed") from None
    if not isinstance(value, dict):
        raise Rejected("malformed")
    return value


def no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def check_attributes(attributes: dict[str, Any]) -> None:
    bad = Rejected("bad_attribute")
    for name, value in attributes.items():
        if not ATTRIBUTE_NAME.fullmatch(name):  # data_base64 is such a name
            raise bad
        if name == "data":
            if not isinstance(value, dict):
                raise bad
        elif name in CONTEXT or name == "tenantid":
            if not isinstance(value, str):
                raise bad
        elif isinstance(value, Number):
            if not JSON_INTEGER.fullmatch(value.text) or not -(2**31) <= int(value.text) < 2**31:
                raise bad
        elif not isinstance(value, (str, bool)):
            raise bad
        if isinstance(value, str):
            if len(value) > {"id": 512, "tenantid": 100}.get(name, 1024):
                raise bad
            if any(forbidden(ord(character)) for character in value):
                raise bad
    if attributes["specversion"] != "1.0":
        raise bad
    if not URI_REFERENCE.fullmatch(attributes["source"]):
        raise bad
    if "dataschema" in attributes and not ABSOLUTE_URI.fullmatch(attributes["dataschema"]):
        raise bad
    if "datacontenttype" in attributes:
        media_type = attributes["datacontenttype"].split(";")[0].strip(" \t")
        if not media_type.isascii() or not MEDIA_TYPE.fullmatch(media_type.lower()):
            raise bad


def forbidden(code: int) -> bool:
    """Control characters, surrogates and noncharacters."""
    return (
        code <= 0x1F
        or 0x7F <= code <= 0x9F
        or 0xD800 <= code <= 0xDFFF
        or 0xFDD0 <= code <= 0xFDEF
        or code & 0xFFFE == 0xFFFE
    )


def time_of(text: str) -> datetime:
    match = RFC_3339.fullmatch(text)
    if not match:
        raise Rejected("bad_time")
    year, month, day, hour, minute, second, fraction, sign, offset_hours, offset_minutes = match.groups("")
    microsecond = (fraction + "000000")[:6]
    try:
        time = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second), int(microsecond), UTC)
        if sign:
            if int(offset_hours) > 23 or int(offset_minutes) > 59:
                raise Rejected("bad_time")
            offset = timedelta(hours=int(offset_hours), minutes=int(offset_minutes))
            time = time - offset if sign == "+" else time + offset
    except (ValueError, OverflowError):
        raise Rejected("bad_time") from None
    if not datetime(1970, 1, 1, tzinfo=UTC) <= time < datetime(2200, 1, 1, tzinfo=UTC):
        raise Rejected("bad_time")
    return time


def property_of(path: str, data: dict[str, Any]) -> Any:
    """The property under a path; None where it is absent."""
    value: Any = data
    for key in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def exact(text: str) -> Fraction | None:
    """The value of a JSON number; None if it is 10^100 or more or has more than 100 decimals."""
    match = JSON_NUMBER.fullmatch(text)
    assert match, text
    sign, whole, decimals, exponent = match.groups("")
    digits = whole + decimals
    power = int(exponent or "0") - len(decimals)
    power += len(digits) - len(digits.rstrip("0"))
    digits = digits.strip("0")
    if not digits:
        return Fraction(0)
    if -power > 100 or len(digits) + power > 100:
        return None
    return int(sign + digits) * Fraction(10) ** power


def string_form(value: Fraction) -> str:
    """Decimal digits without exponent and without trailing zeros."""
    scaled = abs(value) * 10**100
    assert scaled.denominator == 1
    digits = str(scaled.numerator).rjust(101, "0")
    text = digits[:-100] + ("." + digits[-100:]).rstrip("0").rstrip(".")
    return "-" + text if value < 0 else text


def takes(meter: dict[str, Any], data: dict[str, Any]) -> bool:
    """Whether the meter's filter takes an event."""
    for key, wanted in (("where", True), ("where_not", False)):
        for path, values in (meter.get(key) or {}).items():
            text = text_of(property_of(path, data))
            found = text is not None and text in ([values] if isinstance(values, str) else values)
            if found != wanted:
                return False
    return True


def text_of(raw: Any) -> str | None:
    """The string form of a property, of any length; None where it has none."""
    if isinstance(raw, str):
        return None if has_surrogate(raw) else raw
    try:
        return dimension_of("a", {"a": raw})
    except Rejected:
        return None


def value_of(meter: dict[str, Any], data: dict[str, Any]) -> Fraction | str | None:
    bad = Rejected("bad_quantity")
    if meter["aggregation"] == "count":
        return None
    if given(meter, "expression") is not None:
        value = computed(meter["expression"], data)
        if not 0 <= value < 10**20 or (value * 10**12).denominator != 1:
            raise bad
        return value
    raw = property_of(meter["value"], data)
    if meter["aggregation"] == "distinct":
        if isinstance(raw, str) and raw != "" and not has_surrogate(raw):
            return raw
        if isinstance(raw, Number):
            number = exact(raw.text)
            if number is not None:
                return string_form(number)
        raise bad
    return quantity_of(raw)


def computed(text: str, data: dict[str, Any]) -> Fraction:
    """The value of an expression. Its grammar is a part of Python's, but for the backticks: Python reads it, and runs
    nothing of it."""
    text = text.strip()
    quoted = text.split("`")[1::2]
    for number, path in enumerate(quoted):
        text = text.replace(f"`{path}`", f"quoted_{number}")

    def value(node: ast.AST) -> Fraction:
        source = ast.get_source_segment(text, node) or ""
        match node:
            case ast.Constant():
                return Fraction(source)
            case ast.Name() | ast.Attribute():
                path = quoted[int(source.removeprefix("quoted_"))] if source.startswith("quoted_") else source
                return quantity_of(property_of(path, data))
            case ast.BinOp(left, ast.Add(), right):
                return value(left) + value(right)
            case ast.BinOp(left, ast.Sub(), right):
                return value(left) - value(right)
            case ast.BinOp(left, ast.Mult(), right):
                return value(left) * value(right)
            case ast.Call(ast.Name(name), arguments):
                return function_of(name, [value(one) for one in arguments])
        raise AssertionError(f"{source} is no part of an expression")

    return value(ast.parse(text, mode="eval").body)


def function_of(name: str, values: list[Fraction]) -> Fraction:
    if name == "min":
        return sorted(values)[0]
    if name == "max":
        return sorted(values)[-1]
    number, step = values
    below = math.floor(number / step) * step
    above = below if below == number else below + step
    if name == "ceil_to":
        return above
    if name == "floor_to" or number - below < above - number:
        return below
    if number - below > above - number:
        return above
    return below if (below / step) % 2 == 0 else above


def quantity_of(raw: Any) -> Fraction:
    bad = Rejected("bad_quantity")
    if isinstance(raw, Number):
        text = raw.text
    elif isinstance(raw, str) and len(raw) <= 4000 and JSON_NUMBER.fullmatch(raw):
        text = raw
    else:
        raise bad
    quantity = exact(text)
    if quantity is None or not 0 <= quantity < 10**20 or (quantity * 10**12).denominator != 1:
        raise bad
    return quantity


def dimension_of(path: str, data: dict[str, Any]) -> str:
    bad = Rejected("bad_dimension")
    raw = property_of(path, data)
    if raw is None:
        return ""
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, Number):
        number = exact(raw.text)
        if number is None:
            raise bad
        return string_form(number)
    if not isinstance(raw, str) or len(raw) > 256 or has_surrogate(raw):
        raise bad
    return raw


def has_surrogate(text: str) -> bool:
    return any(0xD800 <= ord(character) <= 0xDFFF for character in text)


def _uri_grammar() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """RFC 3986, appendix A, line by line: URI-reference and absolute-URI."""
    unreserved = r"[A-Za-z0-9._~-]"
    pct_encoded = r"%[0-9A-Fa-f]{2}"
    sub_delims = r"[!$&'()*+,;=]"
    pchar = rf"(?:{unreserved}|{pct_encoded}|{sub_delims}|[:@])"
    query = fragment = rf"(?:{pchar}|[/?])*"
    segment = rf"{pchar}*"
    segment_nz = rf"{pchar}+"
    segment_nz_nc = rf"(?:{unreserved}|{pct_encoded}|{sub_delims}|@)+"
    path_abempty = rf"(?:/{segment})*"
    path_absolute = rf"/(?:{segment_nz}(?:/{segment})*)?"
    path_noscheme = rf"{segment_nz_nc}(?:/{segment})*"
    path_rootless = rf"{segment_nz}(?:/{segment})*"
    dec_octet = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9][0-9]|[0-9])"
    ipv4 = rf"{dec_octet}\.{dec_octet}\.{dec_octet}\.{dec_octet}"
    h16 = r"[0-9A-Fa-f]{1,4}"
    ls32 = rf"(?:{h16}:{h16}|{ipv4})"
    ipv6 = "|".join(
        [
            rf"(?:{h16}:){{6}}{ls32}",
            rf"::(?:{h16}:){{5}}{ls32}",
            rf"(?:{h16})?::(?:{h16}:){{4}}{ls32}",
            rf"(?:(?:{h16}:){{0,1}}{h16})?::(?:{h16}:){{3}}{ls32}",
            rf"(?:(?:{h16}:){{0,2}}{h16})?::(?:{h16}:){{2}}{ls32}",
            rf"(?:(?:{h16}:){{0,3}}{h16})?::{h16}:{ls32}",
            rf"(?:(?:{h16}:){{0,4}}{h16})?::{ls32}",
            rf"(?:(?:{h16}:){{0,5}}{h16})?::{h16}",
            rf"(?:(?:{h16}:){{0,6}}{h16})?::",
        ]
    )
    ipv_future = rf"[vV][0-9A-Fa-f]+\.(?:{unreserved}|{sub_delims}|:)+"
    reg_name = rf"(?:{unreserved}|{pct_encoded}|{sub_delims})*"  # every IPv4 address is one
    host = rf"(?:\[(?:{ipv6}|{ipv_future})\]|{reg_name})"
    userinfo = rf"(?:{unreserved}|{pct_encoded}|{sub_delims}|:)*"
    authority = rf"(?:{userinfo}@)?{host}(?::[0-9]*)?"
    scheme = r"[A-Za-z][A-Za-z0-9+.-]*"
    hier_part = rf"(?://{authority}{path_abempty}|{path_absolute}|{path_rootless}|)"
    relative_part = rf"(?://{authority}{path_abempty}|{path_absolute}|{path_noscheme}|)"
    absolute_uri = rf"{scheme}:{hier_part}(?:\?{query})?"
    relative_ref = rf"{relative_part}(?:\?{query})?(?:#{fragment})?"
    reference = rf"(?:{absolute_uri}(?:#{fragment})?|{relative_ref})"
    return re.compile(reference), re.compile(absolute_uri)


URI_REFERENCE, ABSOLUTE_URI = _uri_grammar()


# Section 3: attribution


def tenant_of(account: dict[str, Any]) -> str:
    return given(account, "tenant") or "default"


def by_id(entries: list[dict[str, Any]], wanted: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["id"] == wanted)


def account_and_ancestors(account_id: str, catalog: Catalog) -> list[dict[str, Any]]:
    account = by_id(catalog["accounts"], account_id)
    line = [account]
    while given(account, "parent"):
        account = by_id(catalog["accounts"], account["parent"])
        line.append(account)
    return line


def billing_account_of(account_id: str, catalog: Catalog) -> str:
    for account in account_and_ancestors(account_id, catalog):
        billed = yes(account, "billed") if given(account, "billed") else not given(account, "parent")
        if billed:
            return str(account["id"])
    return ""


@dataclass(frozen=True)
class Terms:
    """How one event is priced for one meter."""

    subscription_id: str
    charge_id: str
    version: str
    price: dict[str, Any] | None
    period: tuple[datetime, datetime]
    band: str | None = None  # of a price by time of day


def terms_of(event: Event, meter_id: str, catalog: Catalog) -> Terms:
    for account in account_and_ancestors(event.account_id, catalog):
        for subscription in catalog.get("subscriptions", []):
            if subscription["account"] != account["id"] or not in_force(subscription, event.time):
                continue
            plan = by_id(catalog["plans"], plan_at(subscription, event.time))
            for charge in plan["charges"]:
                if given(charge, "meter") == meter_id:
                    return priced_terms(event.time, subscription, charge, catalog)
    return unpriced_terms(event.time)


def in_force(subscription: dict[str, Any], time: datetime) -> bool:
    end = given(subscription, "end")
    return instant(subscription["start"]) <= time and (end is None or time < instant(end))


def priced_terms(time: datetime, subscription: dict[str, Any], charge: dict[str, Any], catalog: Catalog) -> Terms:
    found = price_at(subscription, charge["id"], time, catalog)
    if found is None:
        return unpriced_terms(time)
    name, price = found
    if given(subscription, "tiers_at_change") == "carry_over":
        name = "trial:carried:" if name.startswith("trial:") else "carried:"
    period = period_of(time, subscription)
    band = None
    if price["model"] == "time_of_day":
        band, price = band_and_price(price, time, given(subscription, "time_zone") or "UTC")
    return Terms(subscription["id"], charge["id"], name, price, period, band)


def unpriced_terms(time: datetime) -> Terms:
    return Terms("", "", "", None, period_of(time, {}))


# Section 14: voiding

VOID_TYPE = "meterline.void.v1"
VOID_SOURCE = "/meterline/void"


def void_id(name: Name) -> str:
    tenant, time, source, id = name
    since = time - datetime(1970, 1, 1, tzinfo=UTC)
    micros = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return "void_" + hashlib.sha256("\0".join([tenant, source, id, str(micros)]).encode()).hexdigest()[:24]


def void_record(event: Event, reason: str = "a reason") -> bytes:
    """The voiding event of an event, as somebody would send it."""
    record = {"specversion": "1.0", "type": VOID_TYPE, "source": VOID_SOURCE, "id": void_id(name_of(event))}
    record |= {"tenantid": event.tenant, "subject": event.subject, "time": event.time.isoformat()}
    return json.dumps({**record, "data": {"id": event.id, "source": event.source, "reason": reason}}).encode()


def voided_by(void: Event, accepted: list[Event]) -> Name | None:
    """What an event voids; None for usage."""
    if void.type != VOID_TYPE and void.source != VOID_SOURCE:
        return None
    if void.type != VOID_TYPE:
        raise Rejected("bad_attribute", "void")
    data = json_object(void.payload)["data"]
    for name in ("id", "source", "reason"):
        value = data.get(name)
        if not isinstance(value, str) or not 0 < len(value) <= 1024 or any(forbidden(ord(one)) for one in value):
            raise Rejected("missing_field", "void")
    named = (void.tenant, void.time, data["source"], data["id"])
    if (void.source, void.id) != (VOID_SOURCE, void_id(named)):
        raise Rejected("bad_attribute", "void")
    for event in accepted:
        if name_of(event) == named and event.subject == void.subject and event.type != VOID_TYPE:
            return named
    raise Rejected("unknown_event", "void")


# Section 5: quantities


def rate(books: Books, catalog: Catalog) -> None:
    keys: dict[tuple[Any, ...], list[tuple[Event, Terms]]] = {}
    for event in books.accepted:
        for meter_id, reading in event.readings.items():
            terms = terms_of(event, meter_id, catalog)
            key = (
                event.tenant,
                billing_account_of(event.account_id, catalog),
                terms.subscription_id,
                terms.charge_id,
                meter_id,
                terms.version,
                terms.period[0],
                dimensions_of(reading, terms),
            )
            keys.setdefault(key, []).append((event, terms))
    for key in sorted(keys):
        rate_key(books, key, keys[key], by_id(catalog["meters"], key[4]), catalog)


def dimensions_of(reading: Reading, terms: Terms) -> tuple[tuple[str, str], ...]:
    return reading.dimensions if terms.band is None else (*reading.dimensions, ("local time", terms.band))


def rate_key(
    books: Books,
    key: tuple[Any, ...],
    members: list[tuple[Event, Terms]],
    meter: dict[str, Any],
    catalog: Catalog,
) -> None:
    tenant, billing_account, subscription, charge, meter_id, version, period_start, dimensions = key
    cells: dict[tuple[datetime, str], list[Event]] = {}
    for event, terms in members:
        window = window_of(event.time, terms.period)
        cells.setdefault((window[0], event.account_id), []).append(event)
    opened = False
    revision = 0
    price = members[0][1].price
    if price is not None and price["model"] == "matrix":
        price = price_in(price, dict(dimensions))
        if price is None:
            books.rejects.append(("no_price", "rate", b""))
            return
    period = members[0][1].period
    line_items = []
    so_far: list[Event] = []
    quantity_from = Fraction(0)
    events_from = 0
    for window_start, account_id in sorted(cells):
        known = cells[window_start, account_id]
        events = [event for event in known if name_of(event) not in books.voided]
        revision += len(events) + 2 * (len(known) - len(events))
        so_far = so_far + events
        quantity_to = aggregate(meter, so_far, period, catalog)
        if quantity_to >= 10**26:
            books.rejects.append(("quantity_overflow", "rate", b""))
            return
        if version == "carried:" and events:
            # All usage of a window has one price: that in force then.
            of_window = next(terms.price for event, terms in members if event is events[0])
            assert all(terms.price == of_window for event, terms in members if event in events)
            price = price_in(of_window, dict(dimensions)) if of_window["model"] == "matrix" else of_window
        if price is None or not events:
            amount = Fraction(0)
        elif not opened:
            amount = charge_for(quantity_to, len(so_far), price)
        else:
            amount = charge_for(quantity_to, len(so_far), price) - charge_for(quantity_from, events_from, price)
        if abs(amount) >= 10**20:
            books.rejects.append(("quantity_overflow", "rate", b""))
            return
        line_items.append(
            {
                "tenant_id": tenant,
                "billing_account_id": billing_account,
                "account_id": account_id,
                "subscription_id": subscription,
                "charge_id": charge,
                "meter_id": meter_id,
                "rate_card_version": version,
                "dimensions": dict(dimensions),
                "period_start": period_start,
                "period_end": period[1],
                "window_start": window_start,
                "window_end": window_of(known[0].time, period)[1],
                "quantity_from": quantity_from,
                "quantity_to": quantity_to,
                "amount": amount,
                "event_count": len(events),
                "voided_count": len(known) - len(events),
                "revision": revision,
            }
        )
        opened = opened or bool(events)
        quantity_from = quantity_to
        events_from = len(so_far)
    books.line_items.extend(line_items)


def aggregate(
    meter: dict[str, Any], events: list[Event], period: tuple[datetime, datetime], catalog: Catalog
) -> Fraction:
    aggregation, meter_id = meter["aggregation"], meter["id"]
    if not events:
        return Fraction(0)
    values: list[Any] = [event.readings[meter_id].value for event in events]
    if aggregation == "count":
        return Fraction(len(events))
    if aggregation == "sum":
        return sum(values, Fraction(0))
    if aggregation == "min":
        return Fraction(min(values))
    if aggregation == "max":
        return Fraction(max(values))
    if aggregation == "distinct":
        return Fraction(len(set(values)))
    if aggregation == "latest":
        latest = max(events, key=lambda event: (event.time, event.id, event.source))
        value = latest.readings[meter_id].value
        assert isinstance(value, Fraction)
        return value
    if aggregation == "average":
        return to_12_places(sum(values, Fraction(0)) / len(values))
    if aggregation == "time_weighted_sum":
        return to_12_places(held(meter_id, events, catalog))
    if aggregation == "percentile":
        return percentile_of(meter, events, period)
    raise AssertionError(f"unknown aggregation {aggregation}")


def to_12_places(value: Fraction) -> Fraction:
    return Fraction(round(value * 10**12), 10**12)  # Python rounds fractions half-even


def held(meter_id: str, events: list[Event], catalog: Catalog) -> Fraction:
    """Unit-hours: each sample's value times the hours until the next one, or until its account's terms end."""
    series: dict[tuple[str, str], list[Event]] = {}
    for event in events:
        series.setdefault((event.account_id, event.readings[meter_id].series), []).append(event)
    total = Fraction(0)
    for samples in series.values():
        samples.sort(key=lambda event: (event.time, event.id, event.source))
        for sample, following in itertools.zip_longest(samples, samples[1:]):
            until = end_of_terms(sample, meter_id, catalog)
            if following is not None:
                until = min(until, following.time)
            value = sample.readings[meter_id].value
            assert isinstance(value, Fraction)
            total += value * Fraction(
                max(until - sample.time, timedelta(0)) // timedelta(microseconds=1), 3_600_000_000
            )
    return total


def end_of_terms(event: Event, meter_id: str, catalog: Catalog) -> datetime:
    """The first instant after an event at which usage of its account would have another rating key."""
    terms = terms_of(event, meter_id, catalog)
    instants = [terms.period[1]]
    for subscription in catalog.get("subscriptions", []):
        instants += [instant(subscription[name]) for name in ("start", "end") if given(subscription, name)]
        instants += [begin_of(change, subscription) for change in subscription.get("changes") or []]
        instants += [end for end in [trial_end(subscription)] if end is not None]
    for card in catalog["rate_cards"]:
        instants += [instant(version["effective_from"]) for version in card["versions"]]
    for moment in sorted(moment for moment in instants if event.time < moment < terms.period[1]):
        later = terms_of(replace(event, time=moment), meter_id, catalog)
        if (later.subscription_id, later.charge_id, later.version, later.period) != (
            *(terms.subscription_id, terms.charge_id, terms.version),
            terms.period,
        ):
            return moment
    return terms.period[1]


def percentile_of(meter: dict[str, Any], events: list[Event], period: tuple[datetime, datetime]) -> Fraction:
    """Of the sums of all intervals, those without usage too, that of the nearest rank."""
    length = timedelta(seconds=int(meter["interval_seconds"]))
    count = math.ceil((period[1] - period[0]) / timedelta(seconds=1) / int(meter["interval_seconds"]))
    sums: dict[int, Fraction] = {}
    for event in events:
        value = event.readings[meter["id"]].value
        assert isinstance(value, Fraction)
        number = (event.time - period[0]) // length
        sums[number] = sums.get(number, Fraction(0)) + value
    rank = math.ceil(Fraction(meter["percentile"]) / 100 * count)
    empty = count - len(sums)
    return Fraction(0) if rank <= empty else sorted(sums.values())[rank - empty - 1]


# Sections 6 and 7: amounts and price models


def charge_for(quantity: Fraction, events: int, price: dict[str, Any]) -> Fraction:
    """C(q, e), in currency units."""
    amount = model_charge(max(quantity - Fraction(given(price, "included") or "0"), Fraction(0)), price)
    bearing = max(events - int(given(price, "free_events") or "0"), 0)
    amount += bearing * Fraction(given(price, "fee_per_event") or "0")
    if given(price, "minimum") is not None:
        amount = max(amount, Fraction(price["minimum"]))
    if given(price, "maximum") is not None:
        amount = min(amount, Fraction(price["maximum"]))
    return amount


def model_charge(quantity: Fraction, price: dict[str, Any]) -> Fraction:
    """P(u)."""
    model = price["model"]
    if model == "package":
        return package_charge(quantity, price)
    if model == "stairstep":
        return stairstep_charge(quantity, price)
    if model == "percentage":
        return rounded(quantity * share_of(price))
    if model == "dynamic":
        return rounded(quantity * Fraction(given(price, "multiplier") or "1"))
    if model == "graduated_percentage":
        return graduated_percentage_charge(quantity, price)
    per = Fraction(given(price, "per") or "1")
    if model == "per_unit":
        return rounded(quantity * Fraction(price["unit_price"]) / per)
    flat_at_zero = yes(price, "first_tier_flat_at_zero")
    total = Fraction(0)
    lower = Fraction(0)
    for number, tier in enumerate(price["tiers"], start=1):
        up_to = given(tier, "up_to")
        upper = None if up_to is None else Fraction(up_to)
        flat_fee = Fraction(given(tier, "flat_fee") or "0")
        reached = quantity > lower or (number == 1 and flat_at_zero)
        inside = number == 1 if quantity == 0 else lower < quantity and (upper is None or quantity <= upper)
        if model == "graduated" and reached:
            units = (quantity if upper is None else min(quantity, upper)) - lower
            total += rounded(cost_in_tier(units, tier, per) + flat_fee)
        if model == "volume" and reached and inside:
            total += rounded(cost_in_tier(quantity, tier, per) + flat_fee)
        if upper is None:
            return total
        lower = upper
    raise AssertionError(f"unknown model {model} or tiers with an end")


def cost_in_tier(units: Fraction, tier: dict[str, Any], per: Fraction) -> Fraction:
    if given(tier, "package_size"):
        return packages_of(units, tier) * Fraction(tier["package_price"])
    return units * Fraction(given(tier, "unit_price") or "0") / per


def packages_of(units: Fraction, sold: dict[str, Any]) -> int:
    exactly = units / Fraction(sold["package_size"])
    full = exactly.numerator // exactly.denominator
    started = full if full == exactly else full + 1
    return full if given(sold, "round") == "down" else started


def package_charge(quantity: Fraction, price: dict[str, Any]) -> Fraction:
    paid = max(quantity - Fraction(given(price, "free_units") or "0"), Fraction(0))
    packages = max(packages_of(paid, price), int(given(price, "minimum_packages") or "0"))
    return packages * Fraction(price["package_price"])


def price_in(matrix: dict[str, Any], dimensions: dict[str, str]) -> dict[str, Any] | None:
    """The price of the first row that fits, else the default."""
    for row in matrix["rows"]:
        if all(dimensions.get(path) == value for path, value in row["when"].items()):
            price: dict[str, Any] = row["price"]
            return price
    return matrix.get("default")


def band_and_price(price: dict[str, Any], time: datetime, zone: str) -> tuple[str, dict[str, Any]]:
    """By what the clock of the zone shows at the event's time."""
    local = time.astimezone(zoneinfo.ZoneInfo(zone))
    day = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")[local.weekday()]
    clock = f"{local.hour:02}:{local.minute:02}"
    for band in price["bands"]:
        for times in band["times"]:
            since, until = given(times, "from") or "00:00", given(times, "to") or "24:00"
            if day in (times.get("days") or [day]) and since <= clock < until:
                return band["name"], band["price"]
    return "", price["default"]


def share_of(entry: dict[str, Any]) -> Fraction:
    if given(entry, "percent") is not None:
        return Fraction(entry["percent"]) / 100
    return Fraction(entry["basis_points"]) / 10_000


def graduated_percentage_charge(amount: Fraction, price: dict[str, Any]) -> Fraction:
    """Each part of the amount at the share of its tier, and the flat fee of each tier that is reached."""
    total = lower = Fraction(0)
    for number, tier in enumerate(price["tiers"]):
        upper = Fraction(tier["up_to"]) if given(tier, "up_to") else max(amount, lower)
        fee = Fraction(given(tier, "flat_fee") or "0")
        if amount > lower:
            total += rounded((min(amount, upper) - lower) * share_of(tier) + fee)
        elif number == 0 and yes(price, "first_tier_flat_at_zero"):
            total += fee
        lower = upper
    return total


def stairstep_charge(quantity: Fraction, price: dict[str, Any]) -> Fraction:
    if quantity == 0 and not yes(price, "first_step_at_zero"):
        return Fraction(0)
    for step in price["steps"]:
        up_to = given(step, "up_to")
        if up_to is None or quantity <= Fraction(up_to):
            return Fraction(step["price"])
    raise AssertionError("steps with an end")


def rounded(value: Fraction) -> Fraction:
    """Half-even to 18 decimals."""
    scaled = value * 10**18
    below = scaled.numerator // scaled.denominator
    rest = scaled - below
    up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and below % 2 == 1)
    return Fraction(below + 1 if up else below, 10**18)


def as_decimal(value: Fraction, places: int) -> Decimal:
    """An exact quantity (12 places) or amount (18 places), to print or to compare with a table."""
    scaled = value * 10**places
    assert scaled.denominator == 1, f"{value} has more than {places} decimals"
    return Decimal(scaled.numerator).scaleb(-places, Context(prec=200))
