"""What only a whole catalog can show: references, clashes and gaps between its records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol, TypeVar

from meterline.schemas import catalog_allowance_checks, catalog_exchange_checks, catalog_money_checks
from meterline.schemas.catalog import (
    Account,
    AnyPrice,
    Catalog,
    Charge,
    Dynamic,
    Fixed,
    GraduatedPercentage,
    Matrix,
    Percentage,
    Plan,
    RateCard,
    Subscription,
    TimeOfDay,
)
from meterline.schemas.catalog_findings import Finding as Finding
from meterline.schemas.catalog_findings import Place
from meterline.schemas.meters import OF_THE_PERIOD, Aggregation, Meter


def findings(catalog: Catalog, broken: Mapping[str, Collection[str]], complete: bool = True) -> Iterator[Finding]:
    """Every mistake between records.

    Args:
      catalog: The records that are valid in themselves.
      broken: By field of `Catalog`, the ids of records that are not. To refer to one is no further mistake.
      complete: Whether there are no further records, so that one not found is a mistake.
    """
    yield from _equal_ids(catalog)
    if complete:
        yield from _unknown_references(catalog, broken)
    yield from _plans(catalog)
    if complete and not broken.get("plans"):
        yield from _prices_without_charge(catalog)
    yield from _accounts(catalog.accounts)
    yield from _contracts(catalog)
    yield from _carried_over(catalog)
    yield from catalog_allowance_checks.findings(catalog)
    yield from _overlaps(catalog)
    is_whole = complete and not any(broken.values())
    yield from catalog_money_checks.findings(catalog, is_whole)
    yield from catalog_exchange_checks.findings(catalog, is_whole)


def _equal_ids(catalog: Catalog) -> Iterator[Finding]:
    for section, kind in _KINDS.items():
        first: dict[str, int] = {}
        for number, record in enumerate(getattr(catalog, section)):
            if first.setdefault(record.id, number) != number:
                yield Finding((section, number, "id"), f"another {kind} has this id", (section, first[record.id], "id"))


_KINDS = {
    "meters": "meter",
    "rate_cards": "rate card",
    "plans": "plan",
    "accounts": "account",
    "subscriptions": "subscription",
    "discounts": "discount",
    "redemptions": "redemption",
    "tax_rates": "tax rate",
    "commitments": "commitment",
    "grants": "grant",
    "custom_units": "custom unit",
    "exchange_rates": "exchange rate",
}


def _unknown_references(catalog: Catalog, broken: Mapping[str, Collection[str]]) -> Iterator[Finding]:
    known = {section: {record.id for record in getattr(catalog, section)} for section in _KINDS}
    for at, section, name in _references(catalog):
        if name not in known[section] and name not in broken.get(section, ()):
            yield Finding(at, f"no {_KINDS[section]} has the id {name!r}")


def _references(catalog: Catalog) -> Iterator[tuple[Place, str, str]]:
    """Where a record names another, the field of `Catalog` that should hold it, and the id."""
    for number, plan in enumerate(catalog.plans):
        yield ("plans", number, "rate_card"), "rate_cards", plan.rate_card
        for position, charge in enumerate(plan.charges):
            if charge.meter is not None:
                yield ("plans", number, "charges", position, "meter"), "meters", charge.meter
    for number, account in enumerate(catalog.accounts):
        if account.parent is not None:
            yield ("accounts", number, "parent"), "accounts", account.parent
    for number, subscription in enumerate(catalog.subscriptions):
        yield ("subscriptions", number, "account"), "accounts", subscription.account
        yield ("subscriptions", number, "plan"), "plans", subscription.plan
        for position, change in enumerate(subscription.changes):
            if change.plan is not None:
                yield ("subscriptions", number, "changes", position, "plan"), "plans", change.plan
    yield from catalog_money_checks.references(catalog)
    yield from catalog_exchange_checks.references(catalog)


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


_Named = TypeVar("_Named", bound=_HasId)


def _by_id(records: Iterable[_Named]) -> dict[str, tuple[int, _Named]]:
    """Number and record by id; of equal ids the first."""
    found: dict[str, tuple[int, _Named]] = {}
    for number, record in enumerate(records):
        found.setdefault(record.id, (number, record))
    return found


def _plans(catalog: Catalog) -> Iterator[Finding]:
    cards = _by_id(catalog.rate_cards)
    meters = _by_id(catalog.meters)
    for number, plan in enumerate(catalog.plans):
        yield from _charges(number, plan)
        if plan.rate_card in cards:
            yield from _charges_and_prices(number, plan, *cards[plan.rate_card])
            for charge in plan.charges:
                if charge.meter in meters:
                    yield from _prices_and_meter(*cards[plan.rate_card], charge, *meters[charge.meter])


def _charges(number: int, plan: Plan) -> Iterator[Finding]:
    by_id: dict[str, int] = {}
    by_meter: dict[str, int] = {}
    for position, charge in enumerate(plan.charges):
        first = by_id.setdefault(charge.id, position)
        if first != position:
            yield Finding(
                ("plans", number, "charges", position, "id"),
                "another charge of the plan has this id",
                ("plans", number, "charges", first, "id"),
            )
        if charge.meter is None:
            continue
        first = by_meter.setdefault(charge.meter, position)
        if first != position:
            yield Finding(
                ("plans", number, "charges", position, "meter"),
                f"charge {plan.charges[first].id} bills the meter {charge.meter} already, usage would be billed twice",
                ("plans", number, "charges", first, "meter"),
            )


def _charges_and_prices(number: int, plan: Plan, card_number: int, card: RateCard) -> Iterator[Finding]:
    for position, charge in enumerate(plan.charges):
        at: Place = ("plans", number, "charges", position)
        if not any(charge.id in version.prices for version in card.versions):
            yield Finding(at, f"no version of rate card {card.id} has a price for it", ("rate_cards", card_number))
        for version_number, version in enumerate(card.versions):
            price = version.prices.get(charge.id)
            if price is None or isinstance(price, Fixed) == (charge.meter is None):
                continue
            price_at: Place = ("rate_cards", card_number, "versions", version_number, "prices", charge.id)
            if charge.meter is None:
                message = f"is {price.model}, but plan {plan.id} has no meter for the charge, expected fixed"
            else:
                message = (
                    f"is fixed, but plan {plan.id} bills the meter {charge.meter} with it, expected a price for usage"
                )
            yield Finding(price_at, message, at)


def _prices_and_meter(
    card_number: int, card: RateCard, charge: Charge, meter_number: int, meter: Meter
) -> Iterator[Finding]:
    """Prices that do not go with what the meter counts."""
    for position, version in enumerate(card.versions):
        at: Place = ("rate_cards", card_number, "versions", position, "prices", charge.id)
        yield from _any_price_and_meter(at, version.prices.get(charge.id), meter_number, meter)


def _any_price_and_meter(at: Place, price: AnyPrice | None, meter_number: int, meter: Meter) -> Iterator[Finding]:
    """The same for one price, or what chooses one."""
    if isinstance(price, TimeOfDay):
        if meter.aggregation in OF_THE_PERIOD:
            yield Finding(
                (*at, "model"),
                f"is time_of_day, but meter {meter.id} is a {meter.aggregation}, which is one of the whole period; "
                "expected a price that does not look at the clock",
                ("meters", meter_number, "aggregation"),
            )
        for number, band in enumerate(price.bands):
            place: Place = (*at, "bands", number, "price")
            yield from _price_and_meter(place, band.price, meter.dimensions, meter_number, meter)
        yield from _price_and_meter((*at, "default"), price.default, meter.dimensions, meter_number, meter)
    elif not isinstance(price, Matrix):
        yield from _price_and_meter(at, price, meter.dimensions, meter_number, meter)
    else:
        known = ", ".join(meter.dimensions) or "none"
        for number, row in enumerate(price.rows):
            for path in row.when:
                if path not in meter.dimensions:
                    yield Finding(
                        (*at, "rows", number, "when", path),
                        f"meter {meter.id} has no such dimension, expected one of {known}",
                        ("meters", meter_number, "dimensions"),
                    )
            free = [path for path in meter.dimensions if path not in row.when]
            yield from _price_and_meter((*at, "rows", number, "price"), row.price, free, meter_number, meter)
        yield from _price_and_meter((*at, "default"), price.default, meter.dimensions, meter_number, meter)


def _price_and_meter(
    at: Place, price: AnyPrice | None, free: Sequence[str], meter_number: int, meter: Meter
) -> Iterator[Finding]:
    """The same for one price; where dimensions are `free` to have any value, it holds for several rating keys."""
    for limit in ("minimum", "maximum", "included_rollover"):
        if free and getattr(price, limit, None) is not None:
            yield Finding(
                (*at, limit),
                f"would hold for each value of {', '.join(free)} by itself; leave it out, or bill a meter without "
                f"dimensions",
                ("meters", meter_number, "dimensions"),
            )
    counts = meter.aggregation in (Aggregation.COUNT, Aggregation.DISTINCT)
    if counts and isinstance(price, Percentage | GraduatedPercentage | Dynamic):
        yield Finding(
            (*at, "model"),
            f"is {price.model}, but meter {meter.id} counts ({meter.aggregation}); expected one that adds up amounts "
            f"(sum)",
            ("meters", meter_number, "aggregation"),
        )


def _contracts(catalog: Catalog) -> Iterator[Finding]:
    """Plans and prices of one subscription that do not go together."""
    plans, cards, meters = _by_id(catalog.plans), _by_id(catalog.rate_cards), _by_id(catalog.meters)
    for number, subscription in enumerate(catalog.subscriptions):
        if not (subscription.changes or subscription.prices):
            continue
        steps: list[tuple[Place, str | None, Mapping[str, AnyPrice]]] = [
            (("subscriptions", number), subscription.plan, subscription.prices),
            *(
                (("subscriptions", number, "changes", position), change.plan, change.prices)
                for position, change in enumerate(subscription.changes)
            ),
        ]
        charges: dict[str, tuple[Charge, Place]] = {}
        currency: tuple[str, Place] | None = None
        for at, name, _ in steps:
            if name not in plans:
                continue
            plan_number, plan = plans[name]
            if plan.rate_card in cards:
                card_number, card = cards[plan.rate_card]
                currency = currency or (card.currency, ("rate_cards", card_number, "currency"))
                if card.currency != currency[0]:
                    message = (
                        f"its rate card {card.id} is in {card.currency}, expected {currency[0]} as before the change"
                    )
                    yield Finding((*at, "plan"), message, currency[1])
            for position, charge in enumerate(plan.charges):
                place: Place = ("plans", plan_number, "charges", position)
                known, known_at = charges.setdefault(charge.id, (charge, place))
                if known.meter != charge.meter:
                    bills = [f"the meter {one.meter}" if one.meter else "a fixed fee" for one in (charge, known)]
                    message = (
                        f"charge {charge.id} is {bills[0]} in plan {plan.id}, expected {bills[1]} as before the change"
                    )
                    yield Finding((*at, "plan"), message, known_at)
        for at, _, prices in steps:
            for charge_id, price in prices.items():
                place = (*at, "prices", charge_id)
                if charge_id not in charges:
                    if all(name is None or name in plans for _, name, _ in steps):
                        yield Finding(place, "no plan of the subscription has a charge of this id")
                    continue
                charge, charge_at = charges[charge_id]
                if isinstance(price, Fixed) != (charge.meter is None):
                    expected = f"a price for usage of the meter {charge.meter}" if charge.meter else "fixed"
                    yield Finding(place, f"is {price.model}, expected {expected}", charge_at)
                elif charge.meter in meters:
                    yield from _any_price_and_meter(place, price, *meters[charge.meter])


def _carried_over(catalog: Catalog) -> Iterator[Finding]:
    """Changes of prices at which tiers carry over, and which would cut a usage window."""
    plans, cards = _by_id(catalog.plans), _by_id(catalog.rate_cards)
    for number, subscription in enumerate(catalog.subscriptions):
        if subscription.tiers_at_change == "restart":
            continue
        instants: dict[Place, datetime] = {}
        for position, change in enumerate(subscription.changes):
            when = "at" if change.contract_month is None else "contract_month"
            instants["subscriptions", number, "changes", position, when] = subscription.begin_of(change)
        for name in subscription.plans:
            if name in plans and plans[name][1].rate_card in cards:
                card_number, card = cards[plans[name][1].rate_card]
                for position, version in enumerate(card.versions):
                    at: Place = ("rate_cards", card_number, "versions", position, "effective_from")
                    instants[at] = version.effective_from
        for at, instant in instants.items():
            is_in_force = subscription.start < instant and (subscription.end is None or instant < subscription.end)
            if is_in_force and instant.minute + instant.second and not subscription.calendar.starts_at(instant):
                yield Finding(
                    at,
                    f"takes effect at {instant.isoformat()}, where tiers of subscription {subscription.id} carry over, "
                    "expected a full hour of UTC, or the start of a billing period: usage is priced by such hours",
                    ("subscriptions", number, "tiers_at_change"),
                )


def _prices_without_charge(catalog: Catalog) -> Iterator[Finding]:
    """Prices that no plan of their card bills; a card that no plan has yet may hold any."""
    charges: dict[str, set[str]] = defaultdict(set)
    for plan in catalog.plans:
        charges[plan.rate_card] |= {charge.id for charge in plan.charges}
    for number, card in enumerate(catalog.rate_cards):
        if card.id not in charges:
            continue
        for position, version in enumerate(card.versions):
            for charge_id in version.prices:
                if charge_id not in charges[card.id]:
                    yield Finding(
                        ("rate_cards", number, "versions", position, "prices", charge_id),
                        f"no plan with rate card {card.id} has a charge of this id",
                    )


def _accounts(accounts: tuple[Account, ...]) -> Iterator[Finding]:
    by_id = _by_id(accounts)
    claims: dict[tuple[str, str], tuple[int, Place]] = {}
    for number, account in enumerate(accounts):
        at: Place = ("accounts", number, "id")
        claims.setdefault((account.tenant, account.id), (number, at))
    for number, account in enumerate(accounts):
        for position, subject in enumerate(account.subjects):
            at = ("accounts", number, "subjects", position)
            other, other_at = claims.setdefault((account.tenant, subject), (number, at))
            if accounts[other].id != account.id:
                message = f"{subject!r} is a subject of account {accounts[other].id} already"
                yield Finding(at, message, other_at)
        if account.parent is None and not account.is_billed:
            yield Finding(
                ("accounts", number, "billed"),
                "neither the account nor one above it is billed, its usage would reach no invoice",
            )
        if account.parent in by_id:
            parent_number, parent = by_id[account.parent]
            if parent.tenant != account.tenant:
                yield Finding(
                    ("accounts", number, "tenant"),
                    f"is {account.tenant!r}, but its parent {parent.id} has the tenant {parent.tenant!r}",
                    ("accounts", parent_number, "tenant"),
                )
    for circle in _circles({name: account.parent for name, (_, account) in by_id.items()}):
        at = ("accounts", by_id[circle[0]][0], "parent")
        yield Finding(at, f"its parents form a circle: {' → '.join([*circle, circle[0]])}")


def _circles(parents: Mapping[str, str | None]) -> Iterator[list[str]]:
    """The circles of `parents`, each once."""
    done: set[str] = set()
    for start in parents:
        path: list[str] = []
        seen: set[str] = set()
        node: str | None = start
        while node is not None and node in parents and node not in seen and node not in done:
            path.append(node)
            seen.add(node)
            node = parents[node]
        if node is not None and node in seen:
            yield path[path.index(node) :]
        done |= seen


class _Held(NamedTuple):
    """A stretch of time in which a subscription bills a meter, and where the catalog says that it begins."""

    number: int
    start: datetime
    end: datetime | None
    at: Place


def _overlaps(catalog: Catalog) -> Iterator[Finding]:
    """Subscriptions of one account that bill one meter at the same time."""
    plans = _by_id(catalog.plans)
    by_meter: dict[tuple[str, str], list[_Held]] = defaultdict(list)
    for number, subscription in enumerate(catalog.subscriptions):
        last: dict[str, _Held] = {}
        for held, name in _plans_over_time(number, subscription):
            plan = plans[name][1] if name in plans else None
            # dict.fromkeys: a set of strings has another order in each run.
            for meter in dict.fromkeys(charge.meter for charge in plan.charges) if plan else ():
                if meter is None:
                    continue
                before = last.get(meter)
                last[meter] = held
                if before is not None and before.end == held.start:
                    by_meter[subscription.account, meter].remove(before)
                    last[meter] = before._replace(end=held.end)
                by_meter[subscription.account, meter].append(last[meter])
    clashes: dict[tuple[_Held, _Held], list[str]] = defaultdict(list)
    for (_, meter), group in by_meter.items():
        for first, second in _overlapping(group):
            clashes[first, second].append(meter)
    for (earlier, later), meters in clashes.items():
        name = catalog.subscriptions[earlier.number].id
        yield Finding(
            later.at,
            f"starts at {later.start.isoformat()} while subscription {name} of the same account bills "
            f"{', '.join(meters)} {'without end' if earlier.end is None else f'until {earlier.end.isoformat()}'}",
            ("subscriptions", earlier.number),
        )


def _plans_over_time(number: int, subscription: Subscription) -> Iterator[tuple[_Held, str]]:
    """The plans that a subscription is on, one after another."""
    at: Place = ("subscriptions", number, "start")
    begun, plan = _Held(number, subscription.start, subscription.end, at), subscription.plan
    for position, change in enumerate(subscription.changes):
        begin = subscription.begin_of(change)
        if change.plan is None or (subscription.end is not None and subscription.end <= begin):
            continue
        yield begun._replace(end=begin), plan
        begun = _Held(number, begin, subscription.end, ("subscriptions", number, "changes", position, "plan"))
        plan = change.plan
    yield begun, plan


def _overlapping(group: Iterable[_Held]) -> Iterator[tuple[_Held, _Held]]:
    """Each stretch that starts before the end of an earlier one, with the one that ends last."""
    last: _Held | None = None
    for held in sorted(group, key=lambda one: (one.start, one.number)):
        if last is None:
            last = held
            continue
        if last.end is None or held.start < last.end:
            yield last, held
        if last.end is not None and (held.end is None or held.end > last.end):
            last = held
