"""Random contracts: discounts, coupons and tax, and what the charges of an account come to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Any

from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_checks import findings
from meterline.schemas.records import RatingKey
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.billing.bill import Elsewhere
from meterline.transforms.rules.fees import Billed, BilledKey
from meterline.transforms.rules.invoicing import Statement

from .auditor import as_decimal
from .auditor_calendar import period_of
from .bills import Lines, Place

LABEL = "2026-03"
CURRENCIES = ("EUR", "EUR", "USD", "JPY", "KWD")
CHARGES = ("calls", "tokens", "seats", "fee")
DIMENSIONS: dict[str, list[tuple[tuple[str, str], ...]]] = {
    "tokens": [(), (("model", "large"),), (("model", "small"),)]
}
METERS = {"calls": "calls", "tokens": "tokens", "seats": "seats", "fee": ""}


@dataclass(frozen=True)
class World:
    """A catalog as it stands in YAML files, and what is due by charge."""

    catalog: dict[str, list[dict[str, Any]]]
    currency: str
    due: dict[Place, Fraction]
    elsewhere: tuple[Elsewhere, ...] = ()
    earlier: tuple[tuple[RatingKey, Decimal], ...] = ()

    @property
    def book(self) -> Directory:
        """The catalog, which has no mistake."""
        catalog = Catalog.model_validate(self.catalog)
        assert list(findings(catalog, {})) == []
        return Directory(catalog)

    def statement(self, posted: dict[BilledKey, Billed] | None = None, sequence: int = 0) -> Statement:
        due = {
            billed_key(place): Billed(as_decimal(Fraction(1), 12), as_decimal(amount, 18), self._other_currency(place))
            for place, amount in self.due.items()
        }
        paid = posted or {}
        earlier = dict(self.earlier)
        return Statement("default", "org", LABEL, self.currency, due, paid, sequence, self.elsewhere, earlier)

    def _other_currency(self, place: Place) -> str:
        """That of the charge's prices, where it is not the invoice's."""
        plan = next(one["plan"] for one in self.catalog["subscriptions"] if one["id"] == place.subscription)
        currency = next(one["currency"] for one in self.catalog["rate_cards"] if one["id"] == f"card-{plan}")
        return "" if currency == self.currency else str(currency)

    def shuffled(self, rng: Random) -> World:
        """The same, as if files and totals had come in another order."""
        catalog = {section: rng.sample(records, len(records)) for section, records in self.catalog.items()}
        due = dict(rng.sample(list(self.due.items()), len(self.due)))
        elsewhere = tuple(rng.sample(self.elsewhere, len(self.elsewhere)))
        earlier = tuple(rng.sample(self.earlier, len(self.earlier)))
        return replace(self, catalog=catalog, due=due, elsewhere=elsewhere, earlier=earlier)


def billed_key(place: Place) -> BilledKey:
    *names, account, kind, source = vars(place).values()
    return BilledKey(RatingKey._make(names), account, kind, source)


def lines_of(targets: dict[BilledKey, Any], digits: int) -> Lines:
    """Lines in the terms of `bills`."""
    lines: Lines = {}
    for one, target in targets.items():
        name = (
            one.kind,
            one.source,
            one.key.subscription_id,
            one.key.charge_id,
            one.key.rate_card_version,
            one.account_id,
        )
        units = Fraction(target.amount) * 10**digits
        assert units.denominator == 1, f"{one}: {target.amount} is no whole number of minor units"
        lines[name] = lines.get(name, 0) + int(units)
    return {name: amount for name, amount in lines.items() if amount}


def make(rng: Random) -> World:
    currency = rng.choice(CURRENCIES)
    plans = [
        {"id": plan, "rate_card": f"card-{plan}", "charges": [_charge(rng, charge) for charge in CHARGES]}
        for plan in ("basic", "scale")
    ]
    catalog: dict[str, list[dict[str, Any]]] = {
        "meters": [
            {"id": meter, "event_type": "call", "aggregation": "count", "unit": "one"}
            for meter in METERS.values()
            if meter
        ],
        "rate_cards": [_card(rng, f"card-{plan['id']}", currency) for plan in plans],
        "plans": plans,
        "accounts": [
            {"id": "org", **({"tax": _account_tax(rng)} if rng.random() < 0.8 else {})},
            {"id": "team", "parent": "org"},
            {"id": "other"},
        ],
        "subscriptions": [
            _subscription(rng, "org-basic", "org", "basic"),
            _subscription(rng, "team-scale", "team", "scale"),
        ],
        "tax_rates": _tax_rates(rng),
    }
    catalog["discounts"] = [_discount(rng, number, currency) for number in range(rng.randint(0, 5))]
    catalog["redemptions"] = [
        {"id": f"r-{number}", "discount": discount["id"], **by, "redeemed_at": _instant(rng)}
        for number, (discount, by) in enumerate(
            (discount, by)
            for discount in catalog["discounts"]
            if "code" in discount
            for by in rng.sample(
                [{"account": "org"}, {"account": "other"}, {"subscription": "team-scale"}], rng.randint(0, 2)
            )
        )
    ]
    catalog["commitments"] = [_commitment(rng, number, currency) for number in range(rng.choice([0, 0, 1, 2]))]
    for card in catalog["rate_cards"] if catalog["commitments"] else ():
        card["prices_include_tax"] = False
    catalog["grants"] = [_grant(rng, number, currency) for number in range(rng.choice([0, 0, 1, 3]))]
    found = due(rng, catalog)
    elsewhere, earlier = tuple(_elsewhere(rng, catalog, currency)), tuple(_earlier(rng, catalog))
    if rng.random() < 0.4:
        _set_exchange(rng, catalog, currency)
    return World(catalog, currency, found, elsewhere, earlier)


def _set_exchange(rng: Random, catalog: dict[str, list[dict[str, Any]]], currency: str) -> None:
    """Prices in another currency, or a custom unit, with rates that change at the bounds of periods."""
    sources = rng.sample([*(one for one in ("EUR", "USD", "JPY") if one != currency), "credits", "tokens"], 2)
    catalog["custom_units"] = [{"id": "credits"}, {"id": "tokens"}]
    catalog["exchange_rates"] = [_exchange_rate(rng, source, currency) for source in sources]
    cards = rng.sample(catalog["rate_cards"], rng.choice([1, 2, 2]))
    for card, source in zip(cards, sources):
        card["currency"] = source
        if rng.random() < 0.5:
            card["versions"][0]["prices"]["fee"]["billed"] = "in_advance"
    if any(card["currency"] in ("EUR", "USD", "JPY") for card in cards) or rng.random() < 0.5:
        catalog["accounts"][0]["invoice_currency"] = currency


def _exchange_rate(rng: Random, source: str, target: str) -> dict[str, Any]:
    since = {datetime(2024, 1, 1, tzinfo=UTC).isoformat(), *(_instant(rng) for _ in range(rng.randint(0, 3)))}
    values = ("1", "0.92", "0.000000000000000001", "151.4350", "0.333333333333333333", "12")
    entries = [{"effective_from": one, "rate": rng.choice(values)} for one in sorted(since)]
    return {"id": f"{source}-{target}", "from": source, "to": target, "rates": entries}


def _commitment(rng: Random, number: int, currency: str) -> dict[str, Any]:
    kind = rng.choice(["minimum", "postpaid", "prepaid"])
    made: dict[str, Any] = {"id": f"c-{number}", "account": "org", "kind": kind, "currency": currency, **_scope(rng)}
    made["amount"] = whole_amount(rng, currency)
    made["start"] = rng.choice(["2026-01-01T00:00:00+00:00", "2026-02-01T00:00:00+00:00", "2026-02-28T23:00:00+00:00"])
    made["end"] = rng.choice(["2026-04-01T00:00:00+00:00", "2026-04-30T22:00:00+00:00", "2027-01-01T00:00:00+00:00"])
    if kind != "minimum" and rng.random() < 0.6:
        made["overage_factor"] = rng.choice(["1.2", "1.001", "2"])
    return made


def _grant(rng: Random, number: int, currency: str) -> dict[str, Any]:
    made: dict[str, Any] = {"id": f"g-{rng.randint(0, 9)}-{number}", "account": rng.choice(["org", "org", "other"])}
    made |= {"currency": currency, "amount": whole_amount(rng, currency), **_scope(rng), "priority": rng.randint(1, 3)}
    made["effective_from"] = rng.choice(["2026-01-01T00:00:00+00:00", "2026-01-30T23:00:00+00:00", _instant(rng)])
    if rng.random() < 0.4:
        made["expires"] = rng.choice(["2026-11-01T00:00:00+00:00", "2026-09-15T00:00:00+00:00"])
    if rng.random() < 0.5:
        made |= {"recurs": "monthly", "time_zone": rng.choice(["UTC", "Europe/Berlin"])}
        if rng.random() < 0.6:
            made["rollover"] = rng.choice([{"maximum": "30"}, {"minimum": "10", "maximum": "1000000"}])
    return made


def _key(subscription: str = "", charge: str = "", meter: str = "") -> RatingKey:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return RatingKey("default", "org", subscription, charge, meter, "1" if charge else "", at, at, ())


def _elsewhere(rng: Random, catalog: dict[str, list[dict[str, Any]]], currency: str) -> Iterator[Elsewhere]:
    """What other periods have: charges, discounts of them, and what was drawn from grants, at most what there was."""
    for label in ("2026-01", "2026-02", "2026-04"):
        for charge in rng.sample(CHARGES, rng.randint(0, 2)):
            about = _key(rng.choice(["org-basic", "team-scale"]), charge, METERS[charge])
            yield Elsewhere(label, "charge", "", about, Decimal(whole_amount(rng, currency)))
            yield Elsewhere(label, "rollover", charge, about, -Decimal("2" if currency == "JPY" else "0.02"))
            yield Elsewhere(label, "discount", "d", about, -Decimal("1" if currency == "JPY" else "0.01"))
        for grant in catalog["grants"]:
            third = int(Decimal(grant["amount"]) * 100) // 3
            part = Decimal(rng.randint(0, third)) / 100
            yield Elsewhere(label, "credit", grant["id"], _key(), -(part // 1 if currency == "JPY" else part))
        for commitment in catalog["commitments"]:
            if commitment["kind"] != "minimum":
                part = Decimal(commitment["amount"]) / rng.choice([4, 10, 1000])
                part = part.quantize(Decimal(1 if currency == "JPY" else "0.01"), "ROUND_DOWN")
                yield Elsewhere(label, "prepaid", commitment["id"], _key(), -part)
                yield Elsewhere(label, "overage", commitment["id"], _key(), part)


def _earlier(rng: Random, catalog: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[RatingKey, Decimal]]:
    """What was used in some periods before."""
    for subscription in catalog["subscriptions"]:
        for month in (11, 12, 1, 2):
            day = datetime(2025 if month > 2 else 2026, month, min(subscription["anchor_day"], 28), 12, tzinfo=UTC)
            start, end = period_of(day, subscription)
            for charge, meter in METERS.items():
                for pair in DIMENSIONS.get(charge, [()]) if meter and rng.random() < 0.7 else ():
                    names = ("default", "org", subscription["id"], charge, meter, "1")
                    yield RatingKey(*names, start, end, pair), Decimal(rng.choice(["0", "0.4", "1", "1.7", "3"]))


def due(rng: Random, catalog: dict[str, list[dict[str, Any]]]) -> dict[Place, Fraction]:
    """Amounts of charges, for some dimensions and accounts. An account's part may be negative, a charge is not."""
    found: dict[Place, Fraction] = {}
    for subscription in catalog["subscriptions"]:
        anchor = subscription["anchor_day"]
        start, end = period_of(datetime(2026, 3, anchor, 12, tzinfo=UTC), subscription)
        for charge in rng.sample(CHARGES, rng.randint(0, len(CHARGES))):
            for pair in DIMENSIONS.get(charge, [()]):
                of_key = Place(
                    "default", "org", subscription["id"], charge, METERS[charge], "1", start, end, pair, "org"
                )
                amounts = [_amount(rng) for _ in range(rng.randint(1, 2))]
                if len(amounts) == 2 and rng.random() < 0.2:
                    amounts[1] = -amounts[0] * Fraction(rng.randint(0, 100), 100)
                for account, amount in zip(("org", "team"), amounts):
                    found[replace(of_key, account=account)] = Fraction(round(amount * 10**18), 10**18)
    return found


def _amount(rng: Random) -> Fraction:
    return rng.choice([
        Fraction(0), Fraction(rng.randint(0, 10**7), 1000), Fraction(rng.randint(0, 2000), 200), Fraction(1, 3),
        Fraction(rng.randint(0, 10**24), 10**18),
    ])  # fmt: skip


def _charge(rng: Random, charge: str) -> dict[str, Any]:
    made: dict[str, Any] = {"id": charge, **({"meter": METERS[charge]} if METERS[charge] else {})}
    return made | ({"product_code": rng.choice(["saas", "books"])} if rng.random() < 0.5 else {})


def _card(rng: Random, name: str, currency: str) -> dict[str, Any]:
    prices = {charge: _usage_price(rng) if METERS[charge] else {"model": "fixed", "amount": "1"} for charge in CHARGES}
    version = {"version": "1", "effective_from": "2020-01-01T00:00:00Z", "prices": prices}
    return {"id": name, "currency": currency, "versions": [version], "prices_include_tax": rng.random() < 0.3}


def _usage_price(rng: Random) -> dict[str, Any]:
    price: dict[str, Any] = {"model": "per_unit", "unit_price": "1"}
    if rng.random() < 0.4:
        price |= {"included": rng.choice(["0.4", "1", "1.5"]), "included_rollover": {}}
        if rng.random() < 0.5:
            price["included_rollover"]["periods"] = rng.randint(1, 3)
        if rng.random() < 0.4:
            price["included_rollover"]["maximum"] = rng.choice(["0.3", "0.7", "2"])
    return price


def _subscription(rng: Random, name: str, account: str, plan: str) -> dict[str, Any]:
    zone = rng.choice(["UTC", "Europe/Berlin", "America/New_York"])
    anchor = rng.choice([1, 1, 15, 31])
    return {
        "id": name,
        "account": account,
        "plan": plan,
        "start": "2025-01-01T00:00:00Z",
        "time_zone": zone,
        "anchor_day": anchor,
    }


def _instant(rng: Random) -> str:
    """Around the period, often just at its bounds."""
    at = rng.choice([
        datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 2, 28, 23, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC),
        datetime(2026, 3, 14, 23, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=rng.randint(0, 4000)),
    ])  # fmt: skip
    return at.isoformat()


def _scope(rng: Random) -> dict[str, Any]:
    scope: dict[str, Any] = {}
    if rng.random() < 0.4:
        scope["charges"] = rng.sample(CHARGES, rng.randint(1, 3))
    if rng.random() < 0.2:
        scope["meters"] = rng.sample(["calls", "tokens", "seats"], rng.randint(1, 2))
    if rng.random() < 0.2:
        scope["plans"] = [rng.choice(["basic", "scale"])]
    return scope


def whole_amount(rng: Random, currency: str) -> str:
    return (
        rng.choice(["1", "5", "100", "100000"]) if currency == "JPY" else rng.choice(["0.01", "1.5", "25", "9999.99"])
    )


def _discount(rng: Random, number: int, currency: str) -> dict[str, Any]:
    made: dict[str, Any] = {"id": f"d-{rng.randint(0, 9)}-{number}", **_scope(rng)}
    if rng.random() < 0.6:
        made["percent"] = rng.choice(["10", "0.1", "33.333333", "50", "100"])
    else:
        made |= {"amount": whole_amount(rng, currency), "currency": currency}
    if rng.random() < 0.4:
        made["code"] = f"CODE{number}"
    elif rng.random() < 0.5:
        made["start"] = _instant(rng)
        if rng.random() < 0.5:
            made["end"] = "2027-01-01T00:00:00+00:00"
    elif rng.random() < 0.3:
        made["accounts"] = rng.choice([["org"], ["other"], ["org", "other"]])
    elif rng.random() < 0.3:
        made["subscriptions"] = [rng.choice(["org-basic", "team-scale"])]
    if ("code" in made or "start" in made) and rng.random() < 0.5:
        made["periods"] = rng.randint(1, 3)
    return made


def _account_tax(rng: Random) -> dict[str, Any]:
    tax: dict[str, Any] = {"jurisdictions": rng.sample(["DE", "US-CA", "US-CA-SF"], rng.randint(1, 3))}
    if rng.random() < 0.3:
        tax |= {"treatment": rng.choice(["exempt", "reverse_charge"]), "note": "a number"}
    return tax


def _tax_rates(rng: Random) -> list[dict[str, Any]]:
    rates = []
    for jurisdiction in ("DE", "US-CA", "US-CA-SF"):
        for codes in rng.sample([[], ["saas"], ["books"]], rng.randint(1, 3)):
            entries = [{"effective_from": "2020-01-01T00:00:00Z", "percent": rng.choice(["19", "7.25", "0", "0.625"])}]
            if rng.random() < 0.4:
                at = rng.choice(
                    ["2026-03-15T00:00:00Z", "2026-04-01T00:00:00Z", "2026-03-31T22:00:00Z", "2027-01-01T00:00:00Z"]
                )
                entries.append({"effective_from": at, "percent": "16"})
            name = "-".join([jurisdiction, *codes])
            rates.append({"id": name, "jurisdiction": jurisdiction, "product_codes": codes, "rates": entries})
    return rates
