"""A mistake between records of a catalog."""

from __future__ import annotations

from typing import NamedTuple

# From the catalog to a part of a record: the field of `Catalog`, the record's number, keys and numbers below.
Place = tuple[str, int, *tuple[str | int, ...]]


class Finding(NamedTuple):
    """A mistake `at` a place; `also` is the place it clashes with."""

    at: Place
    message: str
    also: Place | None = None
