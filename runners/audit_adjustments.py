"""Lines that record terms, recomputed from these: plain arithmetic, without the catalog."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Any

from meterline.transforms.rules.money import minor_units

_OWN = {
    "charge": ("rating_key_id",),
    "tax": ("rate_card_version", "dimensions"),
    "included_tax": ("rate_card_version", "dimensions"),
    "rollover": ("subscription_id", "charge_id", "rate_card_version", "period_start", "dimensions"),
}
"""What lines of one kind and source are told apart by, where it is more than one amount that they share."""
_NO_NUMBERS = ("note", "treatment", "left_by", "from", "at")


@dataclass(frozen=True)
class Adjustment:
    """What the lines of one source, or of one rating key that is converted, come to, up to and with the last invoice
    that has some."""

    row: dict[str, Any]
    amount: Decimal
    terms: str

    @property
    def holds(self) -> bool:
        if not self.terms:  # It applies no more, or two sides of it cancel out: nothing is left of what was billed.
            return self.amount == 0
        terms = json.loads(self.terms)
        return self.amount in _amounts(self.row["kind"], terms, self.row["currency"])


def adjustments(rows: Sequence[dict[str, Any]]) -> Iterator[Adjustment]:
    """The adjustments that lines, in the order of their invoices, are about.

    An invoice without lines of a source left it as it was, so its terms are those of the last lines that it has.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    mirrored: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        name = tuple(row[column] for column in _NAMES)
        if row["kind"] == "included_tax":
            mirrored.setdefault(name, []).append(row)
        name = (*name, *(str(row[column]) for column in _OWN.get(row["kind"], ())))
        if row["kind"] != "included_tax" or not row["charge_id"]:
            groups.setdefault(name, []).append(row)
    for lines in groups.values():
        if lines[0]["kind"] == "charge" and not any(line["terms"] for line in lines):
            continue  # It was billed in the currency of its prices.
        # Of a charge whose accounts have lines each, one that has nothing of it any more may come last.
        ending = [line for line in lines if line["sequence"] == lines[-1]["sequence"]]
        last = next((line for line in reversed(ending) if line["terms"]), lines[-1])
        yield Adjustment(last, _sum(lines), last["terms"])
    # What a tax takes out of the charges that include it mirrors the lines that show it: nothing is left.
    for lines in mirrored.values():
        yield Adjustment(lines[-1], _sum(lines), "")


_NAMES = ("tenant_id", "billing_account_id", "period", "currency", "kind", "source")


def _sum(lines: Sequence[dict[str, Any]]) -> Decimal:
    return sum((line["amount"] for line in lines), Decimal(0))


def _amounts(kind: str, terms: dict[str, Any], currency: str) -> list[Decimal]:
    """What it may come to; more than one where the way of rounding matters (`--rounding`)."""
    exact = {name: Fraction(text) for name, text in terms.items() if name not in _NO_NUMBERS}
    match kind:
        case "charge":
            return _rounded(exact.get("total", exact["of"]) * exact["rate"], currency)
        case "rollover":
            if not _units_add_up(exact, terms["left_by"]):
                return []
            rate = exact.get("rate", Fraction(1))
            pairs = zip(_rounded(exact["full"] * rate, currency), _rounded(exact["reduced"] * rate, currency))
            return [-min(full - reduced, Decimal(terms["of"])) for full, reduced in pairs]
        case "discount" if "percent" in terms:
            return [-one for one in _rounded(exact["of"] * exact["percent"] / 100, currency)]
        case "discount":
            return _rounded(-min(exact["of"], exact["amount"]), currency)
        case "prepayment":
            return _rounded(exact["amount"], currency)
        case "prepaid" | "credit":
            return _rounded(-min(exact["of"], exact["available"]), currency)
        case "true_up":
            return _rounded(max(exact["amount"] - exact["spent"], Fraction(0)), currency)
        case "included_tax":
            return _rounded(exact["of"] * exact["percent"] / (100 + exact["included_percent"]), currency)
        case "overage":
            more = exact["factor"] - 1
            due = [
                max(one - Decimal(terms["posted"]), Decimal(0)) for one in _rounded(exact["beyond"] * more, currency)
            ]
            return [min(pair) for pair in zip(due, _rounded(max(exact["of"], Fraction(0)) * more, currency))]
    return [Decimal(0)] if "treatment" in terms else _rounded(exact["of"] * exact["percent"] / 100, currency)


def _units_add_up(exact: dict[str, Fraction], left_by: dict[str, str]) -> bool:
    """Whether no more units were used than there were, and than was asked for beyond the included ones."""
    beyond = max(exact["quantity"] - exact["included"], Fraction(0))
    return exact["carried"] == sum(map(Fraction, left_by.values())) and exact["used"] == min(beyond, exact["carried"])


def _rounded(exact: Fraction, currency: str) -> list[Decimal]:
    """To the minor unit: half even, and half up (away from zero)."""
    unit = 10 ** minor_units(currency)
    units, rest = divmod(abs(exact) * unit, 1)
    up = {ROUND_HALF_EVEN: rest > Fraction(1, 2) or (rest == Fraction(1, 2) and units % 2 == 1),
          ROUND_HALF_UP: rest >= Fraction(1, 2)}  # fmt: skip
    sign = -1 if exact < 0 else 1
    return [Decimal(sign * (units + one)) / unit for one in up.values()]
