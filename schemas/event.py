"""The usage event: a CloudEvents 1.0 record, and the reading of one such record from JSON text.

`parse_event` is the slow path: it reads one record and says exactly what is wrong with it. The
vectorised reader (`transforms/scan.py`) gives the same answers for blocks of records; whatever it is not sure
about it hands to this module.

Source: CloudEvents 1.0.2 and its JSON format; RFC 3339; RFC 3986; docs/rules.md, section 1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from ipaddress import IPv6Address
from typing import Annotated, Any, NoReturn

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from meterline.schemas.expressions import Expression

MAX_RECORD_BYTES = 1_048_576
MAX_NESTING = 64
MAX_NUMBER_CHARACTERS = 4_000
MAX_ID_CHARACTERS = 512
MAX_ATTRIBUTE_CHARACTERS = 1_024
MAX_TENANT_CHARACTERS = 100
MAX_DIMENSION_CHARACTERS = 256
MAX_EVENT_QUANTITY = Decimal(10) ** 20
QUANTITY_PLACES = 12
DEFAULT_TENANT = "default"
EARLIEST_TIME = datetime(1970, 1, 1, tzinfo=UTC)
LATEST_TIME = datetime(2200, 1, 1, tzinfo=UTC)


class Reason(StrEnum):
    """Why a record cannot go on. The closed list of reason codes, in the order of the checks."""

    UNREADABLE = "unreadable"
    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    MISSING_FIELD = "missing_field"
    BAD_ATTRIBUTE = "bad_attribute"
    BAD_TIME = "bad_time"
    TOO_OLD = "too_old"
    IN_FUTURE = "in_future"
    UNKNOWN_TYPE = "unknown_type"
    BAD_QUANTITY = "bad_quantity"
    BAD_DIMENSION = "bad_dimension"
    UNKNOWN_SUBJECT = "unknown_subject"
    UNKNOWN_EVENT = "unknown_event"
    CONFLICT = "conflict"
    QUANTITY_OVERFLOW = "quantity_overflow"
    NO_PRICE = "no_price"


_PRECEDENCE = {reason: place for place, reason in enumerate(Reason)}


class EventError(ValueError):
    """A record that is no acceptable event: `reason` is the code, the text says what came."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Number:
    """A JSON number as it was written; turning it into a float would lose what was billed."""

    text: str


NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", re.ASCII)
# RFC 3986, appendix B: how any text falls into scheme, authority, path, query and fragment; and what each may hold.
_URI_PARTS = re.compile(r"(?:([^:/?#]+):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.DOTALL)
_ESCAPED = r"%[0-9A-Fa-f]{2}"
_UNRESERVED_OR_DELIMITER = r"A-Za-z0-9\-._~!$&'()*+,;="
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*")
_AUTHORITY = re.compile(
    rf"(?:(?:[{_UNRESERVED_OR_DELIMITER}:]|{_ESCAPED})*@)?"
    rf"(?:\[(?:(?P<ipv6>[0-9A-Fa-f:.]+)|[vV][0-9A-Fa-f]+\.[{_UNRESERVED_OR_DELIMITER}:]+)\]"
    rf"|(?:[{_UNRESERVED_OR_DELIMITER}]|{_ESCAPED})*)(?::[0-9]*)?"
)
_PATH = re.compile(rf"(?:[{_UNRESERVED_OR_DELIMITER}:@/]|{_ESCAPED})*")
_QUERY = re.compile(rf"(?:[{_UNRESERVED_OR_DELIMITER}:@/?]|{_ESCAPED})*")
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z\-]+"  # RFC 9110
_JSON_MEDIA_TYPE = re.compile(
    rf"[ \t]*{_TOKEN}/(?:{_TOKEN}\+)?json[ \t]*(?:;.*)?", re.ASCII | re.DOTALL | re.IGNORECASE
)
_ATTRIBUTE_NAME = re.compile(r"[a-z0-9]{1,50}")
# Control characters, surrogates and noncharacters, which the CloudEvents type system leaves out of String.
FORBIDDEN_CHARACTERS = re.compile(
    "[\u0000-\u001f\u007f-\u009f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"
    + "".join(chr(plane * 0x10000 + 0xFFFE) + chr(plane * 0x10000 + 0xFFFF) for plane in range(1, 17))
    + "]"
)
_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)


def _shorten(value: object, limit: int = 80) -> str:
    text = value.text[: limit + 1] if isinstance(value, Number) else repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


# --- JSON ---------------------------------------------------------------------------------------


def _number(text: str) -> Number:
    if len(text) > MAX_NUMBER_CHARACTERS:
        raise EventError(
            Reason.MALFORMED, f"a number has {len(text)} characters, at most {MAX_NUMBER_CHARACTERS} are read"
        )
    return Number(text)


def _no_constant(text: str) -> NoReturn:
    raise EventError(Reason.MALFORMED, f"{text} is no JSON value")


_DECODER = json.JSONDecoder(parse_float=_number, parse_int=_number, parse_constant=_no_constant)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


def _nesting(text: str) -> int:
    depth = deepest = 0
    for character in _STRING.sub("", text):
        if character in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "}]":
            depth -= 1
    return deepest


def parse_json(record: bytes) -> Any:
    """Read JSON text with its numbers kept as written.

    Raises:
      EventError: `malformed`, saying where.

    Source: RFC 8259.
    """
    try:
        text = record.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EventError(
            Reason.MALFORMED, f"not UTF-8: byte 0x{record[error.start]:02x} at offset {error.start}"
        ) from None
    text = text.strip(" \t\r\n")
    if text.count("{") + text.count("[") > MAX_NESTING and _nesting(text) > MAX_NESTING:
        raise EventError(Reason.MALFORMED, f"nested deeper than {MAX_NESTING} levels")
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise EventError(Reason.MALFORMED, f"not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise EventError(Reason.MALFORMED, f"nested deeper than {MAX_NESTING} levels") from None


# --- attributes ---------------------------------------------------------------------------------


def _bad(message: str) -> PydanticCustomError:
    return PydanticCustomError(Reason.BAD_ATTRIBUTE.value, "{message}", {"message": message})


def _missing(message: str) -> PydanticCustomError:
    return PydanticCustomError(Reason.MISSING_FIELD.value, "{message}", {"message": message})


def _string(limit: int) -> BeforeValidator:
    def check(value: Any) -> Any:
        if not isinstance(value, str):
            raise _bad(f"expected a string, got {_shorten(value)}")
        if len(value) > limit:
            raise _bad(f"has {len(value)} characters, at most {limit} are allowed")
        if found := FORBIDDEN_CHARACTERS.search(value):
            raise _bad(f"holds the character U+{ord(found[0]):04X}, which CloudEvents does not allow")
        return value

    return BeforeValidator(check)


def _is_uri_reference(value: str) -> bool:
    match = _URI_PARTS.fullmatch(value)
    assert match, "every text falls into such parts"
    scheme, authority, path, query, fragment = match.groups()
    if scheme is None and ":" in path.partition("/")[0]:
        return False  # It would be read as the scheme's end.
    if authority is not None:
        host = _AUTHORITY.fullmatch(authority)
        if not host or (host["ipv6"] and not _is_ipv6(host["ipv6"])):
            return False
    return (
        (scheme is None or _SCHEME.fullmatch(scheme) is not None)
        and _PATH.fullmatch(path) is not None
        and all(_QUERY.fullmatch(part or "") for part in (query, fragment))
    )


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def _uri_reference(value: str) -> str:
    if not _is_uri_reference(value):
        raise _bad(f"expected a URI-reference (RFC 3986), got {_shorten(value)}")
    return value


def _absolute_uri(value: str) -> str:
    match = _URI_PARTS.fullmatch(value)
    assert match, "every text falls into such parts"
    if match[1] is None or match[5] is not None or not _is_uri_reference(value):
        raise _bad(f"expected an absolute URI without fragment, got {_shorten(value)}")
    return value


def _json_media_type(value: str) -> str:
    if not _JSON_MEDIA_TYPE.fullmatch(value):
        raise _bad(f"expected a JSON media type such as application/json, got {_shorten(value)}")
    return value


def _version(value: str) -> str:
    if value != "1.0":
        raise _bad(f"expected '1.0', got {_shorten(value)}")
    return value


def parse_time(text: str) -> int:
    """Microseconds since 1970 of an RFC 3339 timestamp; digits beyond six are cut off.

    Raises:
      EventError: `bad_time`: no RFC 3339 timestamp, a day or time that does not exist, or outside 1970–2199.
    """
    match = _RFC3339.fullmatch(text)
    if not match:
        raise EventError(
            Reason.BAD_TIME, f"expected an RFC 3339 timestamp like 2026-10-01T12:30:00Z, got {_shorten(text)}"
        )
    year, month, day, hour, minute, second, fraction, sign, offset_hours, offset_minutes = match.groups()
    try:
        moment = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second), tzinfo=UTC)
        offset = timedelta(0)
        if sign:
            if int(offset_hours) > 23 or int(offset_minutes) > 59:
                raise ValueError(f"offset {sign}{offset_hours}:{offset_minutes} does not exist")
            offset = timedelta(hours=int(offset_hours), minutes=int(offset_minutes)) * (-1 if sign == "-" else 1)
        moment = moment - offset
    except (ValueError, OverflowError) as error:
        raise EventError(Reason.BAD_TIME, f"{text} does not exist: {error}") from None
    if not EARLIEST_TIME <= moment < LATEST_TIME:
        raise EventError(Reason.BAD_TIME, f"{text} is outside the years 1970 to 2199")
    return microseconds(moment) + int((fraction or "0")[:6].ljust(6, "0"))


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970, exactly."""
    return (moment - EARLIEST_TIME) // timedelta(microseconds=1)


def _time(value: str) -> str:
    try:
        parse_time(value)
    except EventError as error:
        raise PydanticCustomError(error.reason.value, "{message}", {"message": str(error)}) from None
    return value


Text = Annotated[str, _string(MAX_ATTRIBUTE_CHARACTERS)]


class Event(BaseModel):
    """One usage event. Further keys are CloudEvents extension attributes."""

    model_config = ConfigDict(frozen=True, extra="allow")

    specversion: Annotated[str, _string(MAX_ATTRIBUTE_CHARACTERS), AfterValidator(_version)] = Field(
        description="Version of CloudEvents: '1.0'."
    )
    id: Annotated[str, _string(MAX_ID_CHARACTERS)] = Field(
        description="With source, the identity: derive it from your own record, so that a retry sends the same."
    )
    source: Annotated[Text, AfterValidator(_uri_reference)] = Field(description="URI-reference of who counted.")
    type: Text = Field(description="What happened; meters count events by type.")
    time: Annotated[Text, AfterValidator(_time)] = Field(description="When it happened (RFC 3339).")
    subject: Text = Field(description="Who or what used it: an account's id or one of its subjects.")
    data: dict[str, Any] = Field(description="The numbers and dimensions; numbers may be given as strings.")
    tenantid: Annotated[str, Field(max_length=MAX_TENANT_CHARACTERS)] = Field(
        DEFAULT_TENANT, description="Extension: whose catalog applies."
    )
    datacontenttype: Annotated[Text, AfterValidator(_json_media_type)] | None = None
    dataschema: Annotated[Text, AfterValidator(_absolute_uri)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _context(cls, record: Any) -> Any:
        """Attributes of any name: null is absent, names and extension values are CloudEvents'."""
        record = {name: value for name, value in record.items() if value is not None}
        if record.get("tenantid") == "":
            del record["tenantid"]
        for name in _REQUIRED:
            if record.get(name, "") == "":
                raise _missing(f"{name}: is {'an empty string' if name in record else 'absent or null'}")
        for name, value in record.items():
            if name == "data_base64":
                raise _bad("data_base64: usage must come as JSON in `data`")
            if not _ATTRIBUTE_NAME.fullmatch(name):
                raise _bad(f"attribute name {_shorten(name)}: expected 1 to 50 characters of a-z and 0-9")
            if name not in cls.model_fields:
                _check_extension(name, value)
        if not isinstance(record["data"], dict):
            raise _bad(f"data: expected a JSON object, got {_shorten(record['data'])}")
        tenant = record.get("tenantid", DEFAULT_TENANT)
        if not isinstance(tenant, str) or len(tenant) > MAX_TENANT_CHARACTERS or FORBIDDEN_CHARACTERS.search(tenant):
            raise _bad(
                f"tenantid: expected a string of at most {MAX_TENANT_CHARACTERS} characters, got {_shorten(tenant)}"
            )
        return record


_REQUIRED = ("specversion", "id", "source", "type", "time", "subject", "data")


def _check_extension(name: str, value: Any) -> None:
    if isinstance(value, bool):
        return
    if isinstance(value, Number):
        if re.fullmatch(r"-?[0-9]{1,10}", value.text) and -(2**31) <= int(value.text) < 2**31:
            return
        raise _bad(f"{name}: expected an integer of 32 bits, got {_shorten(value)}")
    if not isinstance(value, str):
        raise _bad(f"{name}: expected a string, boolean or integer, got {_shorten(value)}")
    if len(value) > MAX_ATTRIBUTE_CHARACTERS:
        raise _bad(f"{name}: has {len(value)} characters, at most {MAX_ATTRIBUTE_CHARACTERS} are allowed")
    if found := FORBIDDEN_CHARACTERS.search(value):
        raise _bad(f"{name}: holds the character U+{ord(found[0]):04X}, which CloudEvents does not allow")


def parse_event(record: bytes) -> Event:
    """One event from the bytes of one JSON object.

    Raises:
      EventError: with the first reason of docs/rules.md, section 1, that applies (up to `bad_time`).
    """
    if len(record) > MAX_RECORD_BYTES:
        raise EventError(Reason.TOO_LARGE, f"the record has {len(record)} bytes, at most {MAX_RECORD_BYTES} are read")
    value = parse_json(record)
    if not isinstance(value, dict):
        raise EventError(Reason.MALFORMED, f"expected a JSON object, got {_shorten(value)}")
    try:
        return Event.model_validate(value)
    except ValidationError as error:
        raise _first_reason(error) from None


def _first_reason(error: ValidationError) -> EventError:
    problems = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(part) for part in problem["loc"])
        kind, message = problem["type"], problem["msg"]
        reason = Reason(kind) if kind in set(Reason) else Reason.BAD_ATTRIBUTE
        problems.append((_PRECEDENCE[reason], reason, f"{place}: {message}" if place else message))
    _, reason, message = min(problems, key=lambda problem: problem[0])
    return EventError(reason, message)


# --- values in data -----------------------------------------------------------------------------


def lookup(data: dict[str, Any], path: tuple[str, ...]) -> Any:
    """The value at a property path; None where it is absent."""
    value: Any = data
    for part in path:
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def _decimal(text: str) -> Decimal | None:
    """The exact value, or None where it is beyond 10^±100, where no quantity or dimension lies."""
    try:
        value = Decimal(text)
    except InvalidOperation:  # an exponent too large for the decimal module
        mantissa = text.lower().partition("e")[0]
        return None if any(digit in "123456789" for digit in mantissa) else Decimal(0)
    if not value:
        return Decimal(0)
    _, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    while digits[-1] == 0:
        digits, exponent = digits[:-1], exponent + 1
    if value.adjusted() >= 100 or -exponent > 100:
        return None
    return Decimal((value.as_tuple().sign, digits, exponent))


def exact_quantity(value: Any) -> Decimal:
    """The value of a meter: not negative, below 10^20, at most 12 decimals.

    Raises:
      EventError: `bad_quantity`.
    """
    text = value.text if isinstance(value, Number) else value
    if value is None:
        raise EventError(Reason.BAD_QUANTITY, "is absent or null, expected a number")
    if not isinstance(text, str) or not NUMBER.fullmatch(text):
        raise EventError(Reason.BAD_QUANTITY, f"expected a number, or a string that is one, got {_shorten(value)}")
    number = _decimal(text) if len(text) <= MAX_NUMBER_CHARACTERS else None
    return _kept_exactly(number, _shorten(value))


def _kept_exactly(number: Decimal | None, shown: str) -> Decimal:
    if number is None or number >= MAX_EVENT_QUANTITY:
        raise EventError(
            Reason.BAD_QUANTITY,
            f"{shown} is out of range: quantities lie below 10^20 and have at most {QUANTITY_PLACES} decimals",
        )
    if number < 0:
        raise EventError(Reason.BAD_QUANTITY, f"{shown} is negative; usage is corrected by voiding events")
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    if -exponent > QUANTITY_PLACES:
        raise EventError(
            Reason.BAD_QUANTITY, f"{shown} has {-exponent} decimals, at most {QUANTITY_PLACES} are kept exactly"
        )
    return number


def computed_quantity(expression: Expression, values: Mapping[str, Decimal]) -> Decimal:
    """The value of a meter with an expression, within the limits of `exact_quantity`.

    Args:
      values: The properties that it reads, by path.

    Raises:
      EventError: `bad_quantity`.
    """
    value = expression.value_of(values)
    scaled = value * 10**_COMPUTED_PLACES
    is_out_of_range = scaled.denominator != 1 or abs(value) >= MAX_EVENT_QUANTITY
    number = None if is_out_of_range else _decimal(f"{scaled.numerator}E-{_COMPUTED_PLACES}")
    return _kept_exactly(number, "the result" if number is None else _shorten(Number(f"{number:f}")))


# More decimals than this are out of range anyway.
_COMPUTED_PLACES = 100


def plain_text(number: Decimal) -> str:
    """An exact decimal without exponent and trailing zeros: 1.50 → 1.5, 1E+2 → 100, -0 → 0."""
    text = f"{number:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def instant_text(value: datetime) -> str:
    """An instant in UTC as RFC 3339 writes it, with Z."""
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _scalar_text(value: Any) -> str | None:
    if isinstance(value, str):
        return None if re.search("[\ud800-\udfff]", value) else value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Number):
        number = _decimal(value.text)
        return None if number is None else plain_text(number)
    return None


def dimension_text(value: Any) -> str:
    """The string form of a dimension; absent and null are the empty string.

    Raises:
      EventError: `bad_dimension`.
    """
    if value is None:
        return ""
    text = _scalar_text(value)
    if text is None:
        raise EventError(Reason.BAD_DIMENSION, f"expected a string, number or boolean, got {_shorten(value)}")
    if len(text) > MAX_DIMENSION_CHARACTERS:
        raise EventError(
            Reason.BAD_DIMENSION,
            f"has {len(text)} characters, at most {MAX_DIMENSION_CHARACTERS} are allowed",
        )
    return text


def filter_text(value: Any) -> str | None:
    """The string form of a property that a filter asks for; None where it has none, and so is no value."""
    return "" if value is None else _scalar_text(value)


def distinct_text(value: Any) -> str:
    """The string form of a value that a distinct meter counts.

    Raises:
      EventError: `bad_quantity`.
    """
    text = None if isinstance(value, bool) else _scalar_text(value)
    if not text:
        raise EventError(
            Reason.BAD_QUANTITY,
            f"a distinct meter counts non-empty strings and numbers, got {_shorten(value)}",
        )
    return text
