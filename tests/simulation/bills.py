"""What an account owes for a period, once more: naive, and written from docs/rules.md, sections 9 and 18, alone.

Shares no code with `transforms/`. Amounts are whole numbers of minor units once they are rounded, else `Fraction`.
"""

from __future__ import annotations

import zoneinfo
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any

from .auditor import Catalog, by_id
from .auditor_allowances import Charge, taken
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
    kind: str = "charge"
    source: str = ""


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
    elsewhere: list[dict[str, Any]] = field(default_factory=list)
    earlier: list[dict[str, Any]] = field(default_factory=list)
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
    rollover(account)
    discounts(account)
    commitments(account)
    credits(account)
    taxes(account)
    return {name: amount for name, amount in account.lines.items() if amount}


def charges(account: Account, due: dict[Place, Fraction]) -> None:
    keys: dict[tuple[Any, ...], list[Place]] = defaultdict(list)
    for place in sorted(due):
        keys[(*vars(place).values(),)[:-3]].append(place)
    for places in keys.values():
        exact = [due[place] * worth(place, account) * account.unit for place in places]
        total = account.to_units(sum(exact, Fraction(0)) / account.unit)
        if sum(exact) < 0:
            parts = [-part for part in hand_out([-value for value in exact], -total)]
        else:
            parts = hand_out(exact, total)
        for place, part in zip(places, parts):
            account.net[place] = part
            account.lines["charge", "", place.subscription, place.charge, place.version, place.account] += part


def worth(place: Place, account: Account) -> Fraction:
    """What one of the charge's currency is in the invoice's: by the last instant of its period, or the first."""
    plan = by_id(account.catalog["plans"], by_id(account.catalog["subscriptions"], place.subscription)["plan"])
    card = by_id(account.catalog["rate_cards"], plan["rate_card"])
    if card["currency"] == account.currency:
        return Fraction(1)
    in_advance = card["versions"][0]["prices"][place.charge].get("billed") == "in_advance"
    at = place.start if in_advance else place.end - timedelta(microseconds=1)
    (table,) = (
        one["rates"]
        for one in account.catalog["exchange_rates"]
        if (one["from"], one["to"]) == (card["currency"], account.currency)
    )
    found = {instant(one["effective_from"]): one["rate"] for one in table}
    return Fraction(found[max(since for since in found if since <= at)])


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


def rollover(account: Account) -> None:
    """Each place has one unit; a unit beyond the included ones costs 1."""
    places: dict[Charge, list[Place]] = defaultdict(list)
    for place in account.net:
        places[Charge(place.subscription, place.charge, place.dimensions, place.start)].append(place)
    for charge, of_key in places.items():
        rows = [row for row in account.earlier if (row["subscription_id"], row["charge_id"]) == charge[:2]]
        used = {
            row["period_start"]: Fraction(row["quantity"]) for row in rows if row["dimensions"] == charge.dimensions
        }
        included, units = taken(charge, account.catalog, {**used, charge.start: Fraction(len(of_key))})
        if not units:
            continue
        full = max(len(of_key) - included, Fraction(0))
        rate = worth(of_key[0], account)
        off = account.to_units(full * rate) - account.to_units((full - units) * rate)
        off = min(off, sum(account.net[place] for place in of_key))
        if off > 0:
            account.take("rollover", charge.id, off, of_key)


# Discounts and coupons


def discounts(account: Account) -> None:
    found = account.catalog.get("discounts", [])
    for discount in sorted(found, key=lambda one: ("amount" in one, one["id"])):
        if "amount" in discount and discount["currency"] != account.currency:
            continue
        places = [place for place in account.net if holds(discount, place, account.catalog)]
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


# Periods of an account


def own_period(account: Account, label: str) -> tuple[datetime, datetime]:
    """That of the account's first subscription, looked for day by day around the month."""
    found = [one for one in account.catalog["subscriptions"] if one["account"] in (account.id, "team")]
    first = min(found, key=lambda one: (instant(one["start"]), one["id"]))
    day = datetime.fromisoformat(f"{label}-01T12:00:00+00:00") - timedelta(days=1)
    while True:
        start, end = period_of(day, first)
        if f"{start.astimezone(zoneinfo.ZoneInfo(first['time_zone'])):%Y-%m}" == label:
            return start, end
        day += timedelta(days=1)


def label_before(label: str) -> str:
    return f"{datetime.fromisoformat(f'{label}-01') - timedelta(days=1):%Y-%m}"


def posted_elsewhere(account: Account, kind: str, source: str) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for row in account.elsewhere:
        if (row["kind"], row["source"]) == (kind, source):
            found[row["label"]] += int(Fraction(row["amount"]) * account.unit)
    return found


def covers_row(record: dict[str, Any], row: dict[str, Any], catalog: Catalog) -> bool:
    plan = by_id(catalog["subscriptions"], row["subscription_id"])["plan"]
    wanted = (("charges", row["charge_id"]), ("meters", row["meter_id"]), ("plans", plan))
    return all(value in record[name] for name, value in wanted if record.get(name))


# Commitments


def commitments(account: Account) -> None:
    spend = dict(account.net)
    start, end = own_period(account, account.label)
    for one in sorted(account.catalog.get("commitments", []), key=lambda one: one["id"]):
        since, until = instant(one["start"]), instant(one["end"]) if one.get("end") else None
        mine = one["account"] == account.id and one["currency"] == account.currency
        if not mine or start < since or (until and start >= until):
            continue
        promised = int(Fraction(one["amount"]) * account.unit)
        covered = [place for place in spend if covers(one, place, account.catalog)]
        spent = sum(spend[place] for place in covered)
        in_term = {
            row["label"]: since <= own_period(account, row["label"])[0]
            and (until is None or own_period(account, row["label"])[0] < until)
            for row in account.elsewhere
        }
        other = sum(
            int(Fraction(row["amount"]) * account.unit)
            for row in account.elsewhere
            if row["kind"] in ("charge", "rollover", "discount")
            and in_term[row["label"]]
            and covers_row(one, row, account.catalog)
        )
        if one["kind"] == "minimum":
            stays = [
                sub
                for sub in account.catalog["subscriptions"]
                if instant(sub["start"]) < end and not (sub.get("end") and instant(sub["end"]) <= start)
            ]
            if not any(sub["account"] in (account.id, "team") for sub in stays):
                continue
            add_to_pay(account, "true_up", one["id"], max(promised - spent, 0), start, end)
            continue
        if one["kind"] == "postpaid" and until and until <= end:
            add_to_pay(account, "true_up", one["id"], max(promised - spent - other, 0), start, end)
        if one["kind"] == "prepaid":
            if own_period(account, label_before(account.label))[0] < since:
                add_to_pay(account, "prepayment", one["id"], promised, start, end)
            left = promised + sum(posted_elsewhere(account, "prepaid", one["id"]).values())
            draw(account, "prepaid", one["id"], left, covered)
        more = Fraction(one.get("overage_factor", "1")) - 1
        whole = account.to_units(max(spent + other - promised, 0) * more / account.unit)
        rest = whole - sum(posted_elsewhere(account, "overage", one["id"]).values())
        most = account.to_units(max(spent, 0) * more / account.unit)
        add_to_pay(account, "overage", one["id"], min(max(rest, 0), most), start, end)


def add_to_pay(account: Account, kind: str, source: str, amount: int, start: datetime, end: datetime) -> None:
    if amount:
        account.net[Place("default", account.id, "", "", "", "", start, end, (), account.id, kind, source)] = amount
        account.lines[kind, source, "", "", "", account.id] += amount


def draw(account: Account, kind: str, source: str, left: int, places: list[Place]) -> None:
    drawn = min(left, sum(account.net[place] for place in places))
    if drawn > 0:
        for place, part in account.shared(drawn, places).items():
            account.net[place] -= part
        account.lines[kind, source, "", "", "", account.id] -= drawn


# Credits


def credits(account: Account) -> None:
    start, end = own_period(account, account.label)
    endless = "9999-01-01T00:00:00+00:00"
    grants = account.catalog.get("grants", [])
    for grant in sorted(
        grants, key=lambda one: (one.get("priority", 100), instant(one.get("expires", endless)), one["id"])
    ):
        if grant["account"] != account.id or grant["currency"] != account.currency:
            continue
        if instant(grant["effective_from"]) >= end or instant(grant.get("expires", endless)) <= start:
            continue
        scoped = any(grant.get(name) for name in ("charges", "meters", "plans"))
        places = [
            place
            for place in account.net
            if place.kind != "prepayment"
            and (covers(grant, place, account.catalog) if place.kind == "charge" else not scoped)
        ]
        draw(account, "credit", grant["id"], left_of(grant, account, start), places)


def left_of(grant: dict[str, Any], account: Account, start: datetime) -> int:
    """The most that can be drawn in a period: tried out, by drawing it and looking whether a balance is below zero."""
    drawn: dict[int, int] = defaultdict(int)
    for label, amount in posted_elsewhere(account, "credit", grant["id"]).items():
        drawn[month_of(grant, own_period(account, label)[0])] -= amount
    month = month_of(grant, start)
    low, high = -1, 10**15
    while high - low > 1:
        tried = (low + high) // 2
        if holds_out(grant, account, {**drawn, month: drawn[month] + tried}):
            low = tried
        else:
            high = tried
    return max(low, 0)


def holds_out(grant: dict[str, Any], account: Account, drawn: dict[int, int]) -> bool:
    amount = int(Fraction(grant["amount"]) * account.unit)
    if grant.get("recurs", "never") == "never":
        return sum(drawn.values()) <= amount
    rollover = grant.get("rollover", {})
    least, most = (int(Fraction(rollover.get(name, "0")) * account.unit) for name in ("minimum", "maximum"))
    balance = amount
    for month in range(max(drawn) + 1):
        balance -= drawn.get(month, 0)
        if balance < 0:
            return False
        balance = amount + min(max(balance, least), most)
    return True


def month_of(grant: dict[str, Any], time: datetime) -> int:
    """Months walked from the start of the grant, one by one."""
    zone = grant.get("time_zone", "UTC")
    since = instant(grant["effective_from"])
    day = since.astimezone(zoneinfo.ZoneInfo(zone)).day
    month = 0
    at = period_of(since, {"time_zone": zone, "anchor_day": str(day)})[1]
    while at <= time:
        month += 1
        at = period_of(at, {"time_zone": zone, "anchor_day": str(day)})[1]
    return month


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
