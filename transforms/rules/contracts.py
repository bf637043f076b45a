"""Contracts: under which plan and price a subscription's charge is when, and what that is called in a rating key.

The field `rate_card_version` of a key says which price is meant, so that the key determines it from the catalog alone:

    2026-01             the version of the rate card of the subscription's plan
    plus/2026-01        the same of plan `plus`, which a change put it on
    contract:year-2     the subscription's own price of change `year-2`; `contract:start` from its start
    trial:2026-01       nothing, in a trial; what follows would be the price
    carried:            where tiers carry over: what is in force at the start of the usage window

Ids have neither sign, so that no two are alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from meterline.schemas.catalog import (
    FIRST_TERMS,
    AnyPrice,
    Fixed,
    PerUnit,
    Plan,
    Prices,
    RateCard,
    Subscription,
)
from meterline.schemas.event import LATEST_TIME

TRIAL = "trial:"
CARRIED = "carried:"
_OWN = "contract:"
_FREE = PerUnit(model="per_unit", unit_price=Decimal(0))


class Stretch(NamedTuple):
    """A stretch of time [start, end) in which a contract says the same of a charge.

    `own` names the subscription's own price, if it has one for the charge; else the rate card of the plan has.
    """

    start: datetime
    end: datetime
    plan: str
    own: str
    is_trial: bool


class Terms(NamedTuple):
    """The price of a charge in a stretch of time [start, end), and what it is called; none has no name."""

    start: datetime
    end: datetime
    name: str
    price: AnyPrice | None


def stretches_of(subscription: Subscription, charge_id: str) -> list[Stretch]:
    """What a contract says of a charge, from the subscription's start to its end.

    Source: docs/rules.md, "Contracts".
    """
    start, end = subscription.start, subscription.end or LATEST_TIME
    own = FIRST_TERMS if charge_id in subscription.prices else ""
    made = [Stretch(start, end, subscription.plan, own, False)]
    for change in subscription.changes:
        last = made[-1]
        own = change.name if charge_id in change.prices else last.own
        following = last._replace(start=subscription.begin_of(change), plan=change.plan or last.plan, own=own)
        if following[2:] != last[2:]:
            made[-1:] = [last._replace(end=following.start), following]
    trial_end = subscription.trial_end
    if trial_end is not None:
        made = [piece for one in made for piece in _cut(one, trial_end)]
    return [one._replace(end=min(one.end, end)) for one in made if one.start < end]


def _cut(stretch: Stretch, trial_end: datetime) -> Iterator[Stretch]:
    if stretch.start < trial_end:
        yield stretch._replace(end=min(stretch.end, trial_end), is_trial=True)
    if trial_end < stretch.end:
        yield stretch._replace(start=max(stretch.start, trial_end))


def terms_of(
    subscription: Subscription, charge_id: str, plans: Mapping[str, Plan], cards: Mapping[str, RateCard]
) -> list[Terms]:
    """The prices of a charge over time, also of versions; where the plan in force does not have the charge, none."""
    found = []
    for stretch in stretches_of(subscription, charge_id):
        if not any(charge.id == charge_id for charge in plans[stretch.plan].charges):
            continue
        start = stretch.start
        versions = () if stretch.own else cards[plans[stretch.plan].rate_card].versions
        for begin in (*(version.effective_from for version in versions), stretch.end):
            end = min(begin, stretch.end)
            if start < end:
                name, price = price_at(subscription, charge_id, stretch, start, plans, cards)
                found.append(Terms(start, end, name, price))
                start = end
    return found


def price_at(
    subscription: Subscription,
    charge_id: str,
    stretch: Stretch,
    instant: datetime,
    plans: Mapping[str, Plan],
    cards: Mapping[str, RateCard],
) -> tuple[str, AnyPrice | None]:
    """The price of a charge at an instant of a stretch, and what it is called."""
    price: AnyPrice | None
    if stretch.own:
        name, price = f"{_OWN}{stretch.own}", _own_prices(subscription, stretch.own).get(charge_id)
    else:
        versions = cards[plans[stretch.plan].rate_card].versions
        version = next((one for one in reversed(versions) if one.effective_from <= instant), None)
        price = version.prices.get(charge_id) if version else None
        name = version.version if version else ""
        if stretch.plan != subscription.plan:
            name = f"{stretch.plan}/{name}"
    if price is None:
        return "", None
    return (f"{TRIAL}{name}", free_of(price)) if stretch.is_trial else (name, price)


def price_called(
    subscription: Subscription, charge_id: str, name: str, plans: Mapping[str, Plan], cards: Mapping[str, RateCard]
) -> AnyPrice | None:
    """The price of a charge by its name in a rating key; None when the catalog does not have it (any more)."""
    if name.startswith(TRIAL):
        price = price_called(subscription, charge_id, name.removeprefix(TRIAL), plans, cards)
        return None if price is None else free_of(price)
    if name == CARRIED:  # In a trial, the only price that it may stand for, all prices are alike.
        return _FREE
    if name.startswith(_OWN):
        return _own_prices(subscription, name.removeprefix(_OWN)).get(charge_id)
    plan, version = plan_and_version(subscription, name)
    versions = cards[plans[plan].rate_card].versions if plan in plans else ()
    return next((one.prices.get(charge_id) for one in versions if one.version == version), None)


def plan_and_version(subscription: Subscription, name: str) -> tuple[str, str]:
    """The plan whose rate card has the price of a name, and the version."""
    plan, slash, version = name.removeprefix(TRIAL).partition("/")
    return (plan, version) if slash else (subscription.plan, plan)


def name_in_key(subscription: Subscription, name: str) -> str:
    """What a rating key of usage calls a price: the same for a whole period where tiers carry over."""
    if subscription.tiers_at_change == "restart" or not name:
        return name
    return f"{TRIAL}{CARRIED}" if name.startswith(TRIAL) else CARRIED


def plan_of(
    subscription: Subscription,
    charge_id: str,
    name: str,
    period_start: datetime,
    period_end: datetime,
    plans: Mapping[str, Plan],
) -> str:
    """The plan that a price belongs to by its name in a rating key of a billing period.

    A change of plan within the period leaves an own price, and prices that carry over: of such, the first plan that
    has the charge. Where terms tell that one from another the catalog is refused.

    Source: docs/rules.md, "Contracts".
    """
    called = name.removeprefix(TRIAL)
    if not called.startswith((_OWN, CARRIED)):
        return plan_and_version(subscription, name)[0]
    named = [
        one.plan
        for one in stretches_of(subscription, charge_id)
        if one.start < period_end
        and period_start < one.end
        and one.is_trial == name.startswith(TRIAL)
        and called in (CARRIED, f"{_OWN}{one.own}")
        and any(charge.id == charge_id for charge in plans[one.plan].charges)
    ]
    return named[0] if named else subscription.plan


def free_of(price: AnyPrice) -> Fixed | PerUnit:
    """What is due in a trial in place of a price: nothing, and it is shown when the price would be."""
    return price.model_copy(update={"amount": Decimal(0)}) if isinstance(price, Fixed) else _FREE


def own_prices(subscription: Subscription) -> Iterator[tuple[str, Prices]]:
    """The prices that a subscription has for itself, by the name of the change that brings them."""
    yield FIRST_TERMS, subscription.prices
    for change in subscription.changes:
        yield change.name, change.prices


def _own_prices(subscription: Subscription, own: str) -> Prices:
    return next((prices for name, prices in own_prices(subscription) if name == own), {})
