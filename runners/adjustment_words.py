"""What a line that is no charge was computed from, in words."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from meterline.runners.tables import money, number


def adjustment_words(kind: str, terms: str, currency: str) -> str:
    """The computation that a line's `terms` record (docs/rules.md, section 18), as one line of text."""
    if not terms:
        return "does not apply any more: what was billed is given back"
    return _WORDS[kind](json.loads(terms), currency)


def _discount(terms: dict[str, Any], currency: str) -> str:
    of, total = (money(Decimal(terms[name]), currency) for name in ("of", "total"))
    if "percent" in terms:
        return f"{_percent(terms)} of {of} = {total} off, shared by what it is taken off"
    return (
        f"{number(Decimal(terms['amount']))} off {of}, at most all of it = {total} off, shared by what it is taken off"
    )


def _tax(terms: dict[str, Any], currency: str) -> str:
    of = money(Decimal(terms["of"]), currency)
    note = f" ({terms['note']})" if "note" in terms else ""
    match terms.get("treatment"):
        case "reverse_charge":
            return f"reverse charge: the customer owes {_percent(terms)} of {of}{note}"
        case "exempt":
            return f"exempt from {_percent(terms)} of {of}{note}"
    return f"{_percent(terms)} of {of}, rounded once{note}"


def _included_tax(terms: dict[str, Any], currency: str) -> str:
    whole = f"(100 + {number(Decimal(terms['included_percent']))})"
    of = money(Decimal(terms["of"]), currency)
    note = f" ({terms['note']})" if "note" in terms else ""
    return f"{of} include it: × {number(Decimal(terms['percent']))} / {whole}, rounded once{note}"


def _percent(terms: dict[str, Any]) -> str:
    return f"{number(Decimal(terms['percent']))} %"


_WORDS = {"discount": _discount, "tax": _tax, "included_tax": _included_tax}
