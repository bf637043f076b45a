"""A column of values is what each event's value is by itself, to the last digit, and refused alike."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meterline.schemas.arrow import QUANTITY
from meterline.schemas.event import EventError, computed_quantity
from meterline.schemas.expressions import Expression, parse_expression
from meterline.transforms.columns import decimal_limbs
from meterline.transforms.expressions import computed
from tests import strategies


def one_by_one(expression: Expression, rows: list[dict[str, Decimal]]) -> list[Decimal | None]:
    found: list[Decimal | None] = []
    for row in rows:
        try:
            found.append(computed_quantity(expression, row))
        except EventError:
            found.append(None)
    return found


def at_once(expression: Expression, rows: list[dict[str, Decimal]]) -> list[Decimal | None]:
    columns = {path: decimal_limbs(pa.array([row[path] for row in rows], QUANTITY)) for path in expression.paths}
    limbs, right = computed(expression, columns)
    column = pa.Array.from_buffers(QUANTITY, len(limbs), [None, pa.py_buffer(np.ascontiguousarray(limbs))])
    return [value if fine else None for value, fine in zip(column.to_pylist(), right.tolist())]


event_rows = st.lists(
    st.fixed_dictionaries(dict.fromkeys(strategies.EXPRESSION_PATHS, strategies.event_quantities)), min_size=1
)
LARGEST = Decimal("99999999999999999999.999999999999")


@settings(max_examples=500)
@given(strategies.expressions, event_rows)
@example("a * a * a - a * a * a + b", [{"a": LARGEST, "b": LARGEST, "c.d": LARGEST}])
@example("a * 1000000000 - b", [{"a": Decimal(9_223_372_037), "b": Decimal(0), "c.d": Decimal(0)}])
@example("round_to(a, 99999999999999999999)", [{"a": LARGEST, "b": LARGEST, "c.d": LARGEST}])
@example("round_to(a, 9223372036854775807) - a + a", [{"a": Decimal(9_000_000), "b": Decimal(0), "c.d": Decimal(0)}])
@example("round_to(a, 2) + b", [{"a": Decimal(one), "b": Decimal(0), "c.d": Decimal(0)} for one in (1, 3, 5)])
@example("ceil_to(a - b, 0.7)", [{"a": Decimal(0), "b": Decimal("0.7"), "c.d": Decimal(0)}])
def test_a_column_is_computed_as_each_row_is(text: str, rows: list[dict[str, Decimal]]) -> None:
    expression = parse_expression(text)
    assert at_once(expression, rows) == one_by_one(expression, rows)


def test_no_rows() -> None:
    limbs, right = computed(parse_expression("max(a, 1) * a"), {"a": np.zeros((0, 2), np.int64)})
    assert (limbs.shape, right.shape) == ((0, 2), (0,))
