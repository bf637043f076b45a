"""What a line that is no charge was computed from, in words; and from what one that is a charge was converted."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from meterline.runners.explanation import Conversion
from meterline.runners.tables import money, number


def adjustment_words(kind: str, terms: str, currency: str) -> str:
    """The computation that a line's `terms` record (docs/rules.md, section 18), as one line of text."""
    if not terms:
        return "does not apply any more: what was billed is given back"
    return _WORDS[kind](json.loads(terms), currency)


def _rollover(terms: dict[str, Any], currency: str) -> str:
    quantity, included, carried, used = (number(Decimal(terms[name])) for name in _UNITS)
    left_by = ", ".join(f"{number(Decimal(units))} of {label}" for label, units in terms["left_by"].items())
    full, reduced = (number(Decimal(terms[name])) for name in ("full", "reduced"))
    worth = f" {terms['from']} × {number(Decimal(terms['rate']))}" if "rate" in terms else ""
    return (
        f"{quantity} used, {included} included, {carried} left over ({left_by}): {used} of them taken, "
        f"{reduced} in place of {full}{worth}, both rounded"
    )


_UNITS = ("quantity", "included", "carried", "used")


def conversion(terms: str) -> Conversion | None:
    """What the `terms` of a charge's line record; None where it is in the currency of its prices."""
    if not terms:
        return None
    found = json.loads(terms)
    of, total, rate = (Decimal(found[name]) for name in ("of", "total" if "total" in found else "of", "rate"))
    return Conversion(found["from"], of, total, rate, found["at"])


def conversion_words(one: Conversion, rounded: Decimal, currency: str) -> str:
    """The computation of a whole rating key."""
    worth = f"{number(one.total)} {one.currency} × {number(one.rate)} = {money(rounded, currency)}"
    return f"{worth}, by the rate in force at {one.at}"


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


def _drawn(terms: dict[str, Any], currency: str) -> str:
    of, available, total = (money(Decimal(terms[name]), currency) for name in ("of", "available", "total"))
    return f"{total} of the {available} that were left pay for what there was of {of}"


def _prepayment(terms: dict[str, Any], currency: str) -> str:
    return f"{money(Decimal(terms['amount']), currency)} for the whole term, to be drawn from"


def _true_up(terms: dict[str, Any], currency: str) -> str:
    amount, spent = (money(Decimal(terms[name]), currency) for name in ("amount", "spent"))
    return f"{amount} were promised, {spent} were spent: the rest is due"


def _overage(terms: dict[str, Any], currency: str) -> str:
    of, beyond, posted = (money(Decimal(terms[name]), currency) for name in ("of", "beyond", "posted"))
    more = number(Decimal(terms["factor"]) - 1)
    return f"{beyond} beyond the commitment × {more} more, less {posted} in other periods; at most {of} × {more}"


def _percent(terms: dict[str, Any]) -> str:
    return f"{number(Decimal(terms['percent']))} %"


_WORDS = {
    "rollover": _rollover,
    "discount": _discount,
    "prepayment": _prepayment,
    "prepaid": _drawn,
    "true_up": _true_up,
    "overage": _overage,
    "credit": _drawn,
    "tax": _tax,
    "included_tax": _included_tax,
}
