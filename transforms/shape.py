"""Which properties of events the meters of a catalog read, and so which columns a batch of events has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from meterline.schemas.arrow import EVENTS, QUANTITY, SYMBOL
from meterline.schemas.catalog import Catalog
from meterline.schemas.expressions import parse_expression
from meterline.schemas.filters import EVERYTHING, Filter
from meterline.schemas.meters import Aggregation, Meter
from meterline.schemas.voids import VOID_TYPE

# In the order in which they are read: filters say whether an event has the others, and expressions are of quantities.
_KINDS = {"w": SYMBOL, "q": QUANTITY, "v": SYMBOL, "x": QUANTITY, "d": SYMBOL}


def text_column(meter: Meter) -> str | None:
    """The column that has the counted value of a meter: the value of a distinct one, the series of a gauge."""
    if meter.aggregation is Aggregation.DISTINCT:
        return f"v:{meter.value}"
    return f"d:{meter.series}" if meter.series else None


def value_column(meter: Meter) -> str:
    """The column that has what a meter counts; a count meter has none."""
    if meter.expression is not None:
        return f"x:{meter.expression}"
    return f"{'v' if meter.aggregation is Aggregation.DISTINCT else 'q'}:{meter.value}"


def _columns(meter: Meter) -> Iterator[str]:
    if meter.expression is not None:
        yield from (f"q:{path}" for path in parse_expression(meter.expression).paths)
    if meter.aggregation is not Aggregation.COUNT:
        yield value_column(meter)
    yield from (f"d:{path}" for path in (*meter.dimensions, *([meter.series] if meter.series else [])))


@dataclass(frozen=True)
class EventShape:
    """What the meters of a catalog read from events.

    Args:
      readings: By event type, the property columns that its events have, each with the filters of the meters that read
        it: an event has a value in it where one of them takes the event.
    """

    readings: dict[str, dict[str, frozenset[Filter]]]

    @classmethod
    def of(cls, catalog: Catalog) -> EventShape:
        readings: dict[str, dict[str, frozenset[Filter]]] = {VOID_TYPE: {}}
        for meter in catalog.meters:
            columns = readings.setdefault(meter.event_type, {})
            for path in meter.filter.paths:
                columns[f"w:{path}"] = frozenset({EVERYTHING})
            for column in _columns(meter):
                columns[column] = columns.get(column, frozenset()) | {meter.filter}
        return cls(readings)

    @cached_property
    def columns(self) -> dict[str, pa.DataType]:
        """Name and type of the property columns (schemas/arrow.py, `EVENTS`), in the order in which they are read."""
        names = sorted({column for columns in self.readings.values() for column in columns})
        return {name: kind for prefix, kind in _KINDS.items() for name in names if name.startswith(f"{prefix}:")}

    @cached_property
    def read_columns(self) -> dict[str, pa.DataType]:
        """Those of them that each hold one property."""
        return {name: kind for name, kind in self.columns.items() if not name.startswith("x:")}

    @cached_property
    def computed_columns(self) -> list[str]:
        """The others: `x:` and an expression."""
        return [name for name in self.columns if name.startswith("x:")]

    @cached_property
    def schema(self) -> pa.Schema:
        return pa.schema([*EVENTS, *(pa.field(name, kind) for name, kind in self.columns.items())])

    def readers(self, column: str) -> dict[str, frozenset[Filter]]:
        """By event type, the filters of the meters that read a column."""
        return {name: columns[column] for name, columns in self.readings.items() if column in columns}
