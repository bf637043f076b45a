"""What an account owes for a period, once more: naive, and written from docs/rules.md, sections 9 and 18, alone.

Shares no code with `transforms/`. Amounts are whole numbers of minor units once they are rounded, else `Fraction`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from typing import Any

from .auditor import Catalog, by_id
from .auditor_calendar import given, instant, period_of

DIGITS = {"EUR": 2, "USD": 2, "JPY": 0, "KWD": 3}


@dataclass(frozen=True, order=True)
class Place:
    """What is charged, to whom."""

    tenant: str
    payer: str
    subscription: str
    charge: str
    meter: str
    version: str
    start: datetime
    end: datetime
    dimensions: tuple[tuple[str, str], ...]
    account: str


# kind, source, subscription, charge, version, account → minor units
Lines = dict[tuple[str, str, str, str, str, str], int]


@dataclass
class Account:
    """What is known beside the charges."""

    catalog: Catalog
    id: str
    label: str
    currency: str
    half_up: bool = False
    net: dict[Place, int] = field(default_factory=dict)
    lines: Lines = field(default_factory=lambda: defaultdict(int))

    @property
    def unit(self) -> int:
        return int(10 ** DIGITS[self.currency])

    def to_units(self, amount: Fraction) -> int:
        """Currency units to minor units, rounded once."""
        exact = abs(amount) * self.unit
        whole = exact.numerator // exact.denominator
        rest = exact - whole
        up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and (self.half_up or whole % 2 == 1))
        return (1 if amount >= 0 else -1) * (whole + up)

    def shared(self, total: int, places: list[Place]) -> dict[Place, int]:
        """In proportion to the net amounts: each part down to a whole unit, the units left over one by one."""
        weights = [self.net[place] for place in sorted(places)]
        whole = sum(weights)
        exact = [Fraction(total * weight, whole) if whole else Fraction(total, len(weights)) for weight in weights]
        return dict(zip(sorted(places), hand_out(exact, total)))

    def take(self, kind: str, source: str, off: int, places: list[Place]) -> None:
        for place, part in self.shared(off, places).items():
            self.net[place] -= part
            self.lines[kind, source, place.subscription, place.charge, place.version, place.account] -= part


def hand_out(exact: list[Fraction], total: int) -> list[int]:
    parts = [value.numerator // value.denominator for value in exact]
    while sum(parts) < total:
        # The one that lacks most gets a unit; of equals the first.
        lacking = [value - part for value, part in zip(exact, parts)]
        parts[lacking.index(max(lacking))] += 1
    return parts


def bill(account: Account, due: dict[Place, Fraction]) -> Lines:
    """All lines of a period together, but those of amount 0."""
    charges(account, due)
    discounts(account)
    taxes(account)
    return {name: amount for name, amount in account.lines.items() if amount}


def charges(account: Account, due: dict[Place, Fraction]) -> None:
    keys: dict[tuple[Any, ...], list[Place]] = defaultdict(list)
    for place in sorted(due):
        keys[(*vars(place).values(),)[:-1]].append(place)
    for places in keys.values():
        exact = [due[place] * account.unit for place in places]
        total = account.to_units(sum(exact, Fraction(0)) / account.unit)
        if sum(exact) < 0:
            parts = [-part for part in hand_out([-value for value in exact], -total)]
        else:
            parts = hand_out(exact, total)
        for place, part in zip(places, parts):
            account.net[place] = part
            account.lines["charge", "", place.subscription, place.charge, place.version, place.account] += part


def covers(record: dict[str, Any], place: Place, catalog: Catalog) -> bool:
    if record.get("charges") and place.charge not in record["charges"]:
        return False
    if record.get("meters") and place.meter not in record["meters"]:
        return False
    return not record.get("plans") or by_id(catalog["subscriptions"], place.subscription)["plan"] in record["plans"]


def starts_between(place: Place, catalog: Catalog, since: datetime) -> list[datetime]:
    """Starts of the billing periods from that which holds `since` up to that of the charge, walked one by one."""
    starts = []
    at = since
    while at < place.end:
        start, end = period_of(at, by_id(catalog["subscriptions"], place.subscription))
        starts.append(start)
        at = end
    return starts


# Discounts and coupons


def discounts(account: Account) -> None:
    found = account.catalog.get("discounts", [])
    for discount in sorted(found, key=lambda one: ("amount" in one, one["id"])):
        if "amount" in discount and discount["currency"] != account.currency:
            continue
        places = [place for place in account.net if place.charge and holds(discount, place, account.catalog)]
        of = sum(account.net[place] for place in places)
        if of <= 0:
            continue
        if "percent" in discount:
            off = account.to_units(Fraction(of, account.unit) * Fraction(discount["percent"]) / 100)
        else:
            off = min(of, int(Fraction(discount["amount"]) * account.unit))
        account.take("discount", discount["id"], off, places)


def holds(discount: dict[str, Any], place: Place, catalog: Catalog) -> bool:
    if not covers(discount, place, catalog):
        return False
    limit = int(discount["periods"]) if "periods" in discount else None
    if "code" in discount:
        for redemption in catalog.get("redemptions", []):
            by = redemption.get("account") == place.payer or redemption.get("subscription") == place.subscription
            at = instant(redemption["redeemed_at"])
            in_time = at < place.end and (limit is None or len(starts_between(place, catalog, at)) <= limit)
            if redemption["discount"] == discount["id"] and by and in_time:
                return True
        return False
    if discount.get("accounts") and place.payer not in discount["accounts"]:
        return False
    if discount.get("subscriptions") and place.subscription not in discount["subscriptions"]:
        return False
    start, end = given(discount, "start"), given(discount, "end")
    if (start and place.start < instant(start)) or (end and place.start >= instant(end)):
        return False
    if limit is None or start is None:
        return True
    return len([at for at in starts_between(place, catalog, instant(start)) if at >= instant(start)]) <= limit


# Tax


def taxes(account: Account) -> None:
    tax = by_id(account.catalog["accounts"], account.id).get("tax")
    if not tax or tax.get("treatment", "taxable") != "taxable":
        return
    on_top: dict[tuple[str, str, Fraction], int] = defaultdict(int)
    inside: dict[tuple[str, str, Fraction, Fraction], list[Place]] = defaultdict(list)
    for place, net in account.net.items():
        found = []
        for jurisdiction in tax["jurisdictions"]:
            rate = rate_of(jurisdiction, place, account.catalog)
            entries = [one for one in rate["rates"] if instant(one["effective_from"]) < place.end] if rate else []
            if rate and entries:
                found.append((rate["id"], entries[-1]["effective_from"][:10], Fraction(entries[-1]["percent"])))
        together = sum((percent for _, _, percent in found), Fraction(0))
        for one in found:
            if includes_tax(place, account.catalog):
                inside[(*one, together)].append(place)
            else:
                on_top[one] += net
    for (source, since, percent), of in on_top.items():
        amount = account.to_units(Fraction(of, account.unit) * percent / 100)
        account.lines["tax", source, "", "", since, account.id] += amount
    for (source, since, percent, together), places in inside.items():
        of = Fraction(sum(account.net[place] for place in places), account.unit)
        amount = account.to_units(of * percent / (100 + together))
        account.lines["included_tax", source, "", "", since, account.id] += amount
        for place, part in account.shared(amount, places).items():
            name = ("included_tax", source, place.subscription, place.charge, place.version, place.account)
            account.lines[name] -= part


def rate_of(jurisdiction: str, place: Place, catalog: Catalog) -> dict[str, Any] | None:
    code = None
    if place.subscription:
        plan = by_id(catalog["plans"], by_id(catalog["subscriptions"], place.subscription)["plan"])
        code = by_id(plan["charges"], place.charge).get("product_code")
    rates = [one for one in catalog.get("tax_rates", []) if one["jurisdiction"] == jurisdiction]
    special = [one for one in rates if code in one.get("product_codes", [])]
    return next(iter(special + [one for one in rates if not one.get("product_codes")]), None)


def includes_tax(place: Place, catalog: Catalog) -> bool:
    if not place.subscription:
        return False
    plan = by_id(catalog["plans"], by_id(catalog["subscriptions"], place.subscription)["plan"])
    return bool(by_id(catalog["rate_cards"], plan["rate_card"]).get("prices_include_tax", False))
