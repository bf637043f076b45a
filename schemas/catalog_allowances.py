"""Allowances: what becomes of included units that are not used."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from meterline.schemas.catalog_fields import PositiveQuantity, Record, decimal_schema


class IncludedRollover(Record):
    """What of the included units a billing period leaves to the next ones."""

    maximum: (
        Annotated[PositiveQuantity, decimal_schema("At most so many units; all that are left unless set.")] | None
    ) = None
    periods: int = Field(
        1, ge=1, le=120, strict=True, description="In how many further billing periods they can be used."
    )
