"""Meters: how events of one type become a quantity."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from meterline.schemas.catalog_fields import Id, Name, PositiveQuantity, PropertyPath, Record, decimal_schema, misplaced
from meterline.schemas.expressions import ExpressionError, parse_expression
from meterline.schemas.filters import Condition, Filter
from meterline.schemas.voids import RESERVED_TYPES


class Aggregation(StrEnum):
    """How the events of a usage window become one quantity. All merge in any order."""

    SUM = "sum"
    COUNT = "count"
    MIN = "min"
    MAX = "max"
    DISTINCT = "distinct"
    LATEST = "latest"
    AVERAGE = "average"
    TIME_WEIGHTED_SUM = "time_weighted_sum"
    PERCENTILE = "percentile"


# Their quantity is one of the whole billing period, and of nothing less.
OF_THE_PERIOD = (Aggregation.TIME_WEIGHTED_SUM, Aggregation.PERCENTILE)


def _expression(text: str) -> str:
    try:
        return parse_expression(text).text
    except ExpressionError as error:
        raise ValueError(str(error)) from None


def _one_or_more(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return value
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "expected text, or a list of texts")
    return [value]


FilterValues = Annotated[
    tuple[str, ...],
    Field(min_length=1),
    BeforeValidator(_one_or_more),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]


def _percent(value: Decimal) -> Decimal:
    if not 0 < value <= 100:
        raise ValueError(f"must be more than 0 and at most 100, got {value}")
    return value


Percentile = Annotated[
    PositiveQuantity, AfterValidator(_percent), decimal_schema("More than 0 and at most 100, in quotes.")
]


class Meter(Record):
    """How events of one type become a quantity."""

    id: Id
    name: Name = ""
    event_type: str = Field(min_length=1, description="The CloudEvents `type` this meter counts.")
    aggregation: Aggregation
    value: PropertyPath | None = Field(
        None,
        description="Property that holds the number (or, for distinct, the value counted); none for count.",
    )
    expression: Annotated[str, AfterValidator(_expression)] | None = Field(
        None,
        description="In place of `value`: the number computed from properties, with + - * ( ), decimals, min, max, "
        "ceil_to, floor_to and round_to, like 'max(seconds, 60) * 8'.",
    )
    where: dict[PropertyPath, FilterValues] = Field(
        {}, description="Only events whose properties have this value, or one of these; '' is absent."
    )
    where_not: dict[PropertyPath, FilterValues] = Field(
        {}, description="Only events whose properties have none of these values; '' is absent."
    )
    series: PropertyPath | None = Field(
        None, description="Of a time-weighted sum: the property that tells several gauges of one account apart."
    )
    percentile: Percentile | None = Field(None, description="Of percentile: which one, like '95'.")
    interval_seconds: int | None = Field(
        None, ge=60, le=86_400, strict=True, description="Of percentile: the intervals whose sums it is taken of."
    )
    unit: str = Field(min_length=1, description="What one unit is called, for example token.")
    dimensions: tuple[PropertyPath, ...] = Field((), description="Properties that are priced apart.")

    @model_validator(mode="after")
    def _value_fits(self) -> Meter:
        if self.event_type.startswith(RESERVED_TYPES):
            raise misplaced(f"types that begin with {RESERVED_TYPES!r} are Meterline's own", at=("event_type",))
        if self.aggregation is Aggregation.COUNT and self.value is not None:
            raise misplaced("a count meter counts events, it takes no `value`", at=("value",))
        if self.expression is not None:
            self._expression_fits(self.expression)
        elif self.aggregation is not Aggregation.COUNT and self.value is None:
            also = "" if self.aggregation is Aggregation.DISTINCT else ", or `expression`, to compute it from several"
            raise ValueError(f"a {self.aggregation} meter needs `value`, the property to read{also}")
        self._parameters_fit()
        for number, dimension in enumerate(self.dimensions):
            if dimension in self.dimensions[:number]:
                raise misplaced(f"{dimension!r} is named twice", at=("dimensions", number))
        return self

    def _parameters_fit(self) -> None:
        for key, aggregation, is_needed in (
            ("series", Aggregation.TIME_WEIGHTED_SUM, False),
            ("percentile", Aggregation.PERCENTILE, True),
            ("interval_seconds", Aggregation.PERCENTILE, True),
        ):
            value = getattr(self, key)
            if value is not None and self.aggregation is not aggregation:
                raise misplaced(f"is for {aggregation} meters, this one is {self.aggregation}", at=(key,))
            if value is None and is_needed and self.aggregation is aggregation:
                raise ValueError(f"a {aggregation} meter needs `{key}`")

    def _expression_fits(self, expression: str) -> None:
        if self.aggregation in (Aggregation.COUNT, Aggregation.DISTINCT):
            counts = "events" if self.aggregation is Aggregation.COUNT else "different values, which stand in `value`"
            raise misplaced(f"a {self.aggregation} meter counts {counts}; leave it out", at=("expression",))
        if self.value is not None:
            raise misplaced("the number stands in `value` already, leave one out", at=("expression",), also=("value",))

    @property
    def filter(self) -> Filter:
        """Which events of the type it counts."""
        return Filter(
            tuple(
                Condition(path, frozenset(values), is_one)
                for conditions, is_one in ((self.where, True), (self.where_not, False))
                for path, values in sorted(conditions.items())
            )
        )

    @property
    def counting(self) -> tuple[object, ...]:
        """What says how its usage adds up: it may not change within a billing period."""
        parameters = self.series, self.percentile, self.interval_seconds
        return self.aggregation, self.value, self.expression, self.filter, *parameters, self.unit
