"""Lines that are no charges, recomputed from the terms that they record: plain arithmetic, without the catalog."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Any

from meterline.transforms.rules.money import minor_units


@dataclass(frozen=True)
class Adjustment:
    """What the lines of one source come to, up to and with the last invoice that has some."""

    row: dict[str, Any]
    amount: Decimal
    terms: str

    @property
    def holds(self) -> bool:
        if not self.terms:  # It applies no more: all that was billed is given back.
            return self.amount == 0
        exact, sign = _exact(self.row["kind"], json.loads(self.terms))
        return any(self.amount == sign * one for one in _rounded(exact, self.row["currency"]))


def adjustments(rows: Sequence[dict[str, Any]]) -> Iterator[Adjustment]:
    """The adjustments that lines, in the order of their invoices, are about.

    An invoice without lines of a source left it as it was, so its terms are those of the last lines that it has.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        names = ("tenant_id", "billing_account_id", "period", "currency", "kind", "source")
        own = (row["rate_card_version"], str(row["dimensions"])) if row["kind"] == "tax" else ()
        # What is taken out of charges mirrors the line that shows the tax, both add up to 0.
        if row["kind"] != "included_tax":
            groups.setdefault((*(row[name] for name in names), *own), []).append(row)
    for lines in groups.values():
        last = lines[-1]
        yield Adjustment(last, sum((line["amount"] for line in lines), Decimal(0)), last["terms"])


def _exact(kind: str, terms: dict[str, Any]) -> tuple[Fraction, int]:
    """What it comes to, and whether it adds to the invoice or takes off."""
    of = Fraction(terms["of"])
    if kind == "discount":
        return (of * Fraction(terms["percent"]) / 100 if "percent" in terms else min(of, Fraction(terms["amount"]))), -1
    if "treatment" in terms:
        return Fraction(0), 1
    return of * Fraction(terms["percent"]) / 100, 1


def _rounded(exact: Fraction, currency: str) -> list[Decimal]:
    """To the minor unit, in either way that an invoice may have been rounded (`--rounding`)."""
    unit = 10 ** minor_units(currency)
    units, rest = divmod(exact * unit, 1)
    up = {ROUND_HALF_EVEN: rest > Fraction(1, 2) or (rest == Fraction(1, 2) and units % 2 == 1),
          ROUND_HALF_UP: rest >= Fraction(1, 2)}  # fmt: skip
    return [Decimal(units + one) / unit for one in up.values()]
