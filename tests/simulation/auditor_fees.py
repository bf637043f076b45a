"""What is due without usage (docs/rules.md, sections 8 and 12), for the auditor: naive, and sharing nothing with
`transforms/`."""

from __future__ import annotations

import itertools
from datetime import date, datetime, timedelta
from fractions import Fraction
from typing import Any, NamedTuple

from .auditor import Catalog, by_id, charge_for, rounded
from .auditor_calendar import first_days, first_instant, given, instant, label_of

DAY = timedelta(days=1)


class Fee(NamedTuple):
    """What is due in a period without usage, and from when on."""

    quantity: int
    amount: Fraction
    due_from: datetime


# subscription, charge, version, period start, period end
Key = tuple[str, str, str, datetime, datetime]


def fees(label: str, near: date, catalog: Catalog, used: set[tuple[str, str, datetime]]) -> dict[Key, Fee]:
    """All fees of the periods with a label, of those around a date.

    Args:
      used: Subscription, charge and period start of what has usage.
    """
    found: dict[Key, Fee] = {}
    for subscription in catalog.get("subscriptions", []):
        for start, end in periods_of(label, near, subscription):
            plan = by_id(catalog["plans"], subscription["plan"])
            versions = by_id(catalog["rate_cards"], plan["rate_card"])["versions"]
            opens = max(start, instant(subscription["start"]))
            begun = [version for version in versions if instant(version["effective_from"]) <= opens]
            if not begun or not covered_seconds(subscription, start, end):
                continue
            version = max(begun, key=lambda version: instant(version["effective_from"]))
            for charge in plan["charges"]:
                price = version["prices"].get(charge["id"])
                if price is None or price["model"] in ("matrix", "time_of_day"):
                    continue
                key = (subscription["id"], charge["id"], version["version"], start, end)
                if price["model"] == "fixed":
                    due_from = start if given(price, "billed") == "in_advance" else end
                    found[key] = Fee(1, prorated(price, subscription, start, end), due_from)
                elif (subscription["id"], charge["id"], start) not in used and charge_for(Fraction(0), 0, price):
                    found[key] = Fee(0, charge_for(Fraction(0), 0, price), end)
    return found


def periods_of(label: str, near: date, subscription: dict[str, Any]) -> list[tuple[datetime, datetime]]:
    zone = given(subscription, "time_zone") or "UTC"
    days = first_days(subscription, near)
    return [
        (first_instant(first, zone), first_instant(following, zone))
        for first, following in itertools.pairwise(days)
        if label_of(first, subscription) == label and first_instant(first, zone) < first_instant(following, zone)
    ]


def covered_seconds(subscription: dict[str, Any], start: datetime, end: datetime) -> int:
    """Of [start, end), those that the subscription covers."""
    last = min(end, instant(subscription["end"])) if given(subscription, "end") else end
    return max((last - max(start, instant(subscription["start"]))) // timedelta(seconds=1), 0)


def prorated(price: dict[str, Any], subscription: dict[str, Any], start: datetime, end: datetime) -> Fraction:
    amount = Fraction(price["amount"])
    way = given(price, "prorate") or "second"
    if way == "none":
        return rounded(amount)
    if way == "second":
        whole = (end - start) // timedelta(seconds=1)
        return rounded(amount * covered_seconds(subscription, start, end) / whole)
    # A day belongs to who has it at its end.
    zone = given(subscription, "time_zone") or "UTC"
    begin = max(start, instant(subscription["start"]))
    last = min(end, instant(subscription["end"])) if given(subscription, "end") else end
    covered = sum(begin < midnight <= last for midnight in midnights(start, end, zone))
    return rounded(amount * covered / len(midnights(start, end, zone)))


def midnights(start: datetime, end: datetime, zone: str) -> list[datetime]:
    """The ends of the local days of a period; a day that the clock skips ends when it would begin."""
    days = [start.date() + number * DAY for number in range(-3, (end - start).days + 4)]
    return [first_instant(day, zone) for day in days if start < first_instant(day, zone) <= end]
