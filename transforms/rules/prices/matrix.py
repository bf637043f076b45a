"""Prices by the values of dimensions."""

from __future__ import annotations

from collections.abc import Mapping

from meterline.schemas.catalog import Matrix, UsagePrice


def price_for(matrix: Matrix, dimensions: Mapping[str, str]) -> UsagePrice | None:
    """The price of the first row that fits, or the default; None where there is none.

    Args:
      dimensions: Value by path, '' where it is absent.

    Source: docs/rules.md, "Matrix".
    """
    for row in matrix.rows:
        if row.when.items() <= dimensions.items():
            return row.price
    return matrix.default
