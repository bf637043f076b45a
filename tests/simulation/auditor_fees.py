"""What is due without usage (docs/rules.md, sections 8 and 12), for the auditor: naive, and sharing nothing with
`transforms/`."""

from __future__ import annotations

import itertools
from datetime import date, datetime, timedelta
from fractions import Fraction
from typing import Any, NamedTuple

from .auditor import Catalog, by_id, charge_for, rounded
from .auditor_calendar import first_days, first_instant, given, instant, label_of
from .auditor_contracts import begin_of, is_in_trial, own_price_at, plan_at, price_at, trial_end

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
      used: Subscription, charge and period start of what has usage outside of a trial.
    """
    found: dict[Key, Fee] = {}
    for subscription in catalog.get("subscriptions", []):
        plans = [
            subscription["plan"],
            *(one["plan"] for one in subscription.get("changes") or [] if given(one, "plan")),
        ]
        charges = {charge["id"] for plan in plans for charge in by_id(catalog["plans"], plan)["charges"]}
        for start, end in periods_of(label, near, subscription):
            for charge in sorted(charges):
                of_charge(found, subscription, charge, start, end, catalog, used)
    return found


def of_charge(
    found: dict[Key, Fee],
    subscription: dict[str, Any],
    charge: str,
    start: datetime,
    end: datetime,
    catalog: Catalog,
    used: set[tuple[str, str, datetime]],
) -> None:
    paid_once = False
    for begin, last in pieces(subscription, charge, start, end, catalog):
        priced = price_at(subscription, charge, begin, catalog)
        if priced is None:
            continue
        name, price = priced
        if price["model"] != "fixed" and given(subscription, "tiers_at_change") == "carry_over":
            name = "carried:"
        key = (subscription["id"], charge, name, start, end)
        trial = is_in_trial(subscription, begin)
        if price["model"] == "fixed":
            part, whole = share(price, subscription, begin, last, start, end)
            if given(price, "prorate") == "none" and paid_once:
                part = 0
            paid_once = paid_once or (part > 0 and not trial)
            due_from = start if given(price, "billed") == "in_advance" else end
            before = found.get(key, Fee(1, Fraction(0), due_from))
            found[key] = before._replace(amount=before.amount + rounded(Fraction(price["amount"]) * part / whole))
        elif not trial and not paid_once:
            paid_once = True
            if price["model"] in ("matrix", "time_of_day") or (subscription["id"], charge, start) in used:
                continue
            if charge_for(Fraction(0), 0, price):
                found[key] = Fee(0, charge_for(Fraction(0), 0, price), end)


def pieces(
    subscription: dict[str, Any], charge: str, start: datetime, end: datetime, catalog: Catalog
) -> list[tuple[datetime, datetime]]:
    """The parts of a period in which the contract says the same of a charge, in the plans that have it."""
    begin = max(start, instant(subscription["start"]))
    last = min(end, instant(subscription["end"])) if given(subscription, "end") else end
    cuts = [begin_of(change, subscription) for change in subscription.get("changes") or []]
    cuts += [one for one in [trial_end(subscription)] if one is not None]
    moments = sorted({begin, *(cut for cut in cuts if begin < cut < last)}) if begin < last else []

    def says(moment: datetime) -> tuple[object, ...]:
        plan = plan_at(subscription, moment)
        return plan, own_price_at(subscription, charge, moment)[0], is_in_trial(subscription, moment)

    firsts = [next(group) for _, group in itertools.groupby(moments, key=says)]
    return [
        (first, following)
        for first, following in itertools.pairwise([*firsts, last])
        if any(one["id"] == charge for one in by_id(catalog["plans"], plan_at(subscription, first))["charges"])
    ]


def periods_of(label: str, near: date, subscription: dict[str, Any]) -> list[tuple[datetime, datetime]]:
    zone = given(subscription, "time_zone") or "UTC"
    days = first_days(subscription, near)
    return [
        (first_instant(first, zone), first_instant(following, zone))
        for first, following in itertools.pairwise(days)
        if label_of(first, subscription) == label and first_instant(first, zone) < first_instant(following, zone)
    ]


def share(
    price: dict[str, Any], subscription: dict[str, Any], begin: datetime, last: datetime, start: datetime, end: datetime
) -> tuple[int, int]:
    """Which part of the period [start, end) a fee in force for [begin, last) is due for."""
    way = given(price, "prorate") or "second"
    if way == "none":
        return 1, 1
    if way == "second":
        return (last - begin) // timedelta(seconds=1), (end - start) // timedelta(seconds=1)
    # A day belongs to who has it at its end.
    days = midnights(start, end, given(subscription, "time_zone") or "UTC")
    return sum(begin < midnight <= last for midnight in days), len(days)


def midnights(start: datetime, end: datetime, zone: str) -> list[datetime]:
    """The ends of the local days of a period; a day that the clock skips ends when it would begin."""
    days = [start.date() + number * DAY for number in range(-3, (end - start).days + 4)]
    return [first_instant(day, zone) for day in days if start < first_instant(day, zone) <= end]
