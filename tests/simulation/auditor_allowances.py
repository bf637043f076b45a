"""What periods take of the included units that earlier ones left: naive, and written from docs/rules.md alone.

Shares no code with `transforms/`. Each charge has one price here, for all time.
"""

from __future__ import annotations

from datetime import datetime
from fractions import Fraction
from typing import NamedTuple

from .auditor import Catalog, by_id
from .auditor_calendar import instant, period_of


class Charge(NamedTuple):
    """A charge of a subscription in the billing period that starts at an instant."""

    subscription: str
    id: str
    dimensions: tuple[tuple[str, str], ...]
    start: datetime


def taken(charge: Charge, catalog: Catalog, used: dict[datetime, Fraction]) -> tuple[Fraction, Fraction]:
    """The included units of the charge, and how many it takes of those that earlier periods left.

    Walks from the first period, with what each left by the number of the period that it came from.
    """
    subscription = by_id(catalog["subscriptions"], charge.subscription)
    card = by_id(catalog["rate_cards"], by_id(catalog["plans"], subscription["plan"])["rate_card"])
    price = card["versions"][0]["prices"][charge.id]
    if "included_rollover" not in price:
        return Fraction(0), Fraction(0)
    included, rule = Fraction(price["included"]), price["included_rollover"]
    left: dict[int, Fraction] = {}
    at, number = instant(subscription["start"]), 0
    while True:
        start, end = period_of(at, subscription)
        left = {came: units for came, units in left.items() if number - came <= rule.get("periods", 1)}
        asked = max(used.get(start, Fraction(0)) - included, Fraction(0))
        took = Fraction(0)
        for came in sorted(left):
            units = min(left[came], asked - took)
            left[came] -= units
            took += units
        if start == charge.start:
            return included, took
        if start >= instant(subscription["start"]):
            left[number] = max(included - used.get(start, Fraction(0)), Fraction(0))
        if "maximum" in rule:
            # The youngest are kept; those that cannot be used any more do not count.
            room = Fraction(rule["maximum"])
            for came in sorted(left, reverse=True):
                fresh = number + 1 - came <= rule.get("periods", 1)
                left[came] = min(left[came], room) if fresh else Fraction(0)
                room -= left[came]
        at, number = end, number + 1
