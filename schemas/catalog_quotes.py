"""What to write in place of a number or boolean that YAML takes for one where text is expected."""

from __future__ import annotations

import re
from decimal import Decimal

from meterline.schemas.event import plain_text

COMPARED = ("where", "where_not", "when")
"""Fields whose texts are compared with properties of events in their string form (docs/rules.md, section 1)."""
_DECIMAL = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,2})?")


def in_quotes(written: str, boolean: bool | None, is_compared: bool) -> str:
    """How to write a scalar as text.

    Args:
      boolean: What YAML reads it as; None for a number.
      is_compared: Whether the text is compared with the string form of properties, in which 1.0 is 1.
    """
    reads = "a number" if boolean is None else str(boolean).lower()
    said = f"{written} must be in quotes, YAML reads it as {reads}: write "
    form = _string_form(written, boolean) if is_compared else written
    if form == written:
        return f"{said}'{written}'"
    kind = "that number, however an event writes it" if boolean is None else "the boolean"
    return f"{said}'{form}' for {kind}, or '{written}' for a text"


def _string_form(written: str, boolean: bool | None) -> str:
    if boolean is not None:
        return str(boolean).lower()
    return plain_text(Decimal(written)) if _DECIMAL.fullmatch(written) else written
