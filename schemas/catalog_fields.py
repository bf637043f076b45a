"""What catalog records are made of: ids, exact numbers, instants, currencies; and how a misplaced part is reported."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache
from importlib import resources
from itertools import pairwise, takewhile
from typing import Annotated, Any, Protocol

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    Strict,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from meterline.schemas.calendars import CYCLE_PATTERN, MAX_CYCLE_DAYS, Calendar
from meterline.schemas.currency import MINOR_UNITS
from meterline.schemas.event import EARLIEST_TIME, LATEST_TIME

PRICE_PLACES = 18
QUANTITY_PLACES = 12
MAX_PRICE = Decimal(10) ** 18
MAX_QUANTITY = Decimal(10) ** 26

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
PATH_PATTERN = r"^[^.\s]+(\.[^.\s]+)*$"
DECIMAL_PATTERN = r"^[0-9]+(\.[0-9]+)?$"
DATE_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
INSTANT_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-][0-9]{2}:[0-9]{2})$"


class Record(BaseModel):
    """Base of all catalog records: immutable, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Id = Annotated[
    str,
    StringConstraints(pattern=ID_PATTERN),
    Field(description="Letters, digits, '.', '_' and '-'; at most 100; starts with a letter or digit."),
]
Name = Annotated[str, Field(description="What people call it; shown on invoices.")]
PropertyPath = Annotated[
    str,
    StringConstraints(pattern=PATH_PATTERN, max_length=200),
    Field(description="Path of a property inside the event's data, parts joined by '.'."),
]


def misplaced(message: str, at: tuple[str | int, ...], also: tuple[str | int, ...] = ()) -> PydanticCustomError:
    """An error of one part of the value checked: `at` leads to the part, `also` to what it clashes with."""
    return PydanticCustomError("misplaced", "{message}", {"message": message, "at": at, "also": also})


def check_end(start: datetime | None, end: datetime | None, at: tuple[str, ...] = ("end",)) -> None:
    """Refuse a stretch of time that ends before it has begun."""
    if start is not None and end is not None and end <= start:
        message = f"ends at {end.isoformat()}, it must end after its start {start.isoformat()}"
        raise misplaced(message, at=at, also=("start",))


class _Dated(Protocol):
    @property
    def effective_from(self) -> datetime: ...


def check_dates(dated: Sequence[_Dated], list_name: str, *, by_day: bool = False) -> None:
    """Refuse entries that do not take effect one after the other; `by_day`: each on a UTC day of its own."""
    for number, (earlier, later) in enumerate(pairwise(one.effective_from for one in dated), start=1):
        if later.date() <= earlier.date() if by_day else later <= earlier:
            after = "on a later day (UTC) than" if by_day else "after"
            raise misplaced(
                f"takes effect at {later.isoformat()}, it must be {after} the one that stands before it",
                at=(list_name, number, "effective_from"),
                also=(list_name, number - 1, "effective_from"),
            )


def _exact(value: Any) -> Any:
    if isinstance(value, float):
        raise ValueError(
            f"{value!r} is a floating-point number; write it in quotes so that it stays exact: '{value!r}'"
        )
    if isinstance(value, bool) or not isinstance(value, (int, str, Decimal)):
        raise ValueError(f"expected a decimal number in quotes, got {type(value).__name__}")
    if isinstance(value, str) and not re.fullmatch(DECIMAL_PATTERN, value.removeprefix("-")):
        raise ValueError(f"{value!r} is no decimal number, expected digits and a point, like '0.003'")
    return value


def _places(limit: int, ceiling: Decimal) -> AfterValidator:
    def check(value: Decimal) -> Decimal:
        _, digits, exponent = value.as_tuple()
        assert isinstance(exponent, int)
        decimals = -exponent - len(list(takewhile(lambda digit: digit == 0, reversed(digits))))
        if value and decimals > limit:
            raise ValueError(f"{value:f} has {decimals} decimals, at most {limit} are kept exactly")
        if value.copy_abs() >= ceiling:
            raise ValueError(f"{value} is too large, it must be below {ceiling:.0E}")
        return value

    return AfterValidator(check)


def _not_negative(value: Decimal) -> Decimal:
    if value.is_signed():
        raise ValueError(f"must not be negative, got {value}")
    return value


def positive(value: Decimal) -> Decimal:
    if value <= 0:
        raise ValueError(f"must be more than 0, got {value}")
    return value


def decimal_schema(description: str) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "type": ["string", "integer"],
            "pattern": DECIMAL_PATTERN,
            "minimum": 0,
            "description": description,
        }
    )


Exact = BeforeValidator(_exact)
# As `_exact` reads it: Decimal's own text of 0.0000002 is 2E-7.
Written = PlainSerializer(lambda number: f"{number:f}", return_type=str, when_used="json")
Price = Annotated[
    Decimal,
    Exact,
    Written,
    _places(PRICE_PLACES, MAX_PRICE),
    AfterValidator(_not_negative),
    decimal_schema("Currency units (dollars, not cents), in quotes; at most 18 decimals."),
]
Quantity = Annotated[
    Decimal,
    Exact,
    Written,
    _places(QUANTITY_PLACES, MAX_QUANTITY),
    AfterValidator(_not_negative),
    decimal_schema("Units of the meter, in quotes; at most 12 decimals."),
]
PositiveQuantity = Annotated[Quantity, AfterValidator(positive)]


def _share(name: str, places: int) -> Any:
    return (
        Exact,
        Written,
        _places(PRICE_PLACES - places, MAX_PRICE),
        AfterValidator(_not_negative),
        decimal_schema(f"{name} of the amount, in quotes; at most {PRICE_PLACES - places} decimals."),
    )


Percent = Annotated[Decimal, *_share("Percent", 2)]
BasisPoints = Annotated[Decimal, *_share("Basis points (hundredths of a percent)", 4)]


def _written_instant(value: Any) -> Any:
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str):
        raise ValueError(f"expected an instant like 2026-01-01T00:00:00Z, got {type(value).__name__}")
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        raise ValueError(f"{value} is a date, expected an instant: write {value}T00:00:00Z")
    if re.fullmatch(INSTANT_PATTERN, f"{value}Z"):
        raise ValueError(f"{value} has no time zone, write for example {value}Z")
    if not re.fullmatch(INSTANT_PATTERN, value):
        raise ValueError(f"{value!r} is no instant in whole seconds, expected one like 2026-01-01T00:00:00Z")
    try:
        return datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError(f"{value} does not exist: {error}") from None


def _instant(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError(f"{value.isoformat()} has no time zone, write for example {value.isoformat()}Z")
    if value.microsecond:
        raise ValueError(f"{value.isoformat()} has a fraction of a second, instants are whole seconds")
    if not EARLIEST_TIME <= value < LATEST_TIME:
        raise ValueError(f"{value.isoformat()} lies outside the years 1970 to 2199")
    return value.astimezone(UTC)


Instant = Annotated[
    datetime,
    BeforeValidator(_written_instant),
    AfterValidator(_instant),
    WithJsonSchema(
        {
            "type": "string",
            "format": "date-time",
            "pattern": INSTANT_PATTERN,
            "description": "An instant, RFC 3339 with its offset, whole seconds.",
        }
    ),
]


def _written_date(value: Any) -> Any:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    if not isinstance(value, str) or not re.fullmatch(DATE_PATTERN, value):
        raise ValueError(f"expected a date like 2026-10-31, got {value!r}")
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise ValueError(f"{value} does not exist") from None


def _date(value: date) -> date:
    if not EARLIEST_TIME.date() <= value < LATEST_TIME.date():
        raise ValueError(f"{value} lies outside the years 1970 to 2199")
    return value


LocalDate = Annotated[
    date,
    BeforeValidator(_written_date),
    AfterValidator(_date),
    WithJsonSchema({"type": "string", "format": "date", "pattern": DATE_PATTERN, "description": "A local date."}),
]


def _cycle(value: str) -> str:
    if not re.fullmatch(CYCLE_PATTERN, value):
        raise ValueError(f"expected weekly, monthly, quarterly, yearly or a number of days like '10 days', got {value}")
    if Calendar(cycle=value).days > MAX_CYCLE_DAYS:
        raise ValueError(f"a period has at most {MAX_CYCLE_DAYS} days, got {value}")
    return value


Cycle = Annotated[str, AfterValidator(_cycle), WithJsonSchema({"type": "string", "pattern": CYCLE_PATTERN})]


@cache
def _zones() -> frozenset[str]:
    return frozenset(resources.files("tzdata").joinpath("zones").read_text(encoding="utf-8").split())


def zone(value: str) -> str:
    """Refuse what is no IANA time zone."""
    if value not in _zones():
        raise ValueError(f"{value!r} is no IANA time zone, expected one like 'Europe/Berlin'")
    return value


def currency(value: str) -> str:
    """Refuse what is no ISO 4217 currency with a minor unit."""
    if value not in MINOR_UNITS:
        raise ValueError(f"{value!r} is no ISO 4217 currency, expected a code like 'USD'")
    return value


Flag = Annotated[bool, Strict()]
Currency = Annotated[
    str,
    AfterValidator(currency),
    WithJsonSchema({"type": "string", "pattern": "^[A-Z]{3}$", "description": "ISO 4217 code."}),
]


def unless(default: Any) -> Any:
    """A field that is written only where it has another value: a catalog that does not use it keeps its digest."""
    return Field(exclude_if=lambda value: value == default)
