"""Worlds whose subscriptions have cycles and fees of every kind. What is generated for a seed stays, but for these."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from .auditor_contracts import begin_of, trial_end
from .generator import World, instant_text, make_price, near, price_text


def with_contracts(world: World, seed: int) -> World:
    """The world with other terms for its subscriptions."""
    rng = Random(f"contracts {seed}")
    catalog = deepcopy(world.catalog)
    for subscription in catalog["subscriptions"]:
        _set_cycle(rng, subscription, world)
    for card in catalog["rate_cards"]:
        for version in card["versions"]:
            for price in version["prices"].values():
                if price["model"] == "fixed":
                    _set_fee(rng, price)
    for subscription in catalog["subscriptions"]:
        _set_contract(rng, subscription, catalog, world)
    _carry_over(rng, catalog)
    if not any(price["model"] == "fixed" for price in _prices(catalog)):
        _add_fee(rng, catalog)
    return replace(world, catalog=catalog)


def _prices(catalog: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        price for card in catalog["rate_cards"] for version in card["versions"] for price in version["prices"].values()
    ]


def _set_cycle(rng: Random, subscription: dict[str, Any], world: World) -> None:
    cycle = rng.choice(["weekly", "monthly", "quarterly", "yearly", "days"])
    # So that periods begin among the events.
    near = (world.received - timedelta(days=rng.randint(-2, 12))).date()
    if cycle == "monthly" and rng.random() < 0.5:
        return
    subscription.pop("anchor_day", None)
    if cycle == "days":
        subscription["cycle"] = f"{rng.choice([1, 2, 3, 10, 30, 45, 366])} days"
        subscription["anchor"] = str(near)
        return
    if cycle != "monthly" or rng.random() < 0.5:
        subscription["cycle"] = cycle
    if rng.random() < 0.8:
        subscription["anchor"] = str(rng.choice([near, near, near.replace(year=near.year - 4, day=28)]))
    elif cycle != "weekly":
        subscription["anchor_day"] = str(rng.choice([1, near.day, 29, 31]))


def _set_contract(rng: Random, subscription: dict[str, Any], catalog: dict[str, Any], world: World) -> None:
    """Own prices, changes and trials; near the events, often at full hours."""
    moment = world.received - timedelta(days=6)
    plans = {plan["id"]: plan for plan in catalog["plans"]}
    cards = {card["id"]: card for card in catalog["rate_cards"]}
    first = plans[subscription["plan"]]
    # Others on the same meters: no two plans of an account may come to bill one meter.
    others = [
        plan
        for plan in plans.values()
        if {one.get("meter") for one in plan["charges"]} <= {one.get("meter") for one in first["charges"]}
        and cards[plan["rate_card"]]["currency"] == cards[first["rate_card"]]["currency"]
    ]
    charges = {charge["id"]: charge for plan in [first, *others] for charge in plan["charges"]}
    if rng.random() < 0.5:
        subscription["prices"] = _own(rng, charges)
    changes: list[dict[str, Any]] = []
    for number in range(rng.choice([0, 0, 1, 2, 3])):
        change: dict[str, Any] = {"name": f"change-{number}"}
        if rng.random() < 0.3:
            change["contract_month"] = str(rng.choice([2, 2, 3, 13, 17]))
        else:
            change["at"] = instant_text(rng, near(rng, moment, days=4))
        if rng.random() < 0.6 and others:
            change["plan"] = rng.choice(others)["id"]
        if rng.random() < 0.7 or "plan" not in change:
            change["prices"] = _own(rng, charges)
        changes.append(change)
    changes.sort(key=lambda change: begin_of(change, subscription))
    start = datetime.fromisoformat(subscription["start"])
    kept: list[dict[str, Any]] = []
    for change in changes:
        last = begin_of(kept[-1], subscription) if kept else start
        if begin_of(change, subscription) > last:
            kept.append(change)
    used = [first, *(plans[change["plan"]] for change in kept if "plan" in change)]
    sold = {charge["id"] for plan in used for charge in plan["charges"]}
    for terms in (subscription, *kept):
        prices = {charge: price for charge, price in terms.pop("prices", {}).items() if charge in sold}
        if prices:
            terms["prices"] = prices
    kept = [change for change in kept if "plan" in change or "prices" in change]
    if kept:
        subscription["changes"] = kept
    if rng.random() < 0.4:
        until = near(rng, moment, days=4)
        days = rng.choice([1, 14, 40])
        subscription["trial"] = {"until": instant_text(rng, until)} if rng.random() < 0.6 else {"days": str(days)}
        end = trial_end(subscription)
        if end is None or end <= start:
            del subscription["trial"]


def _carry_over(rng: Random, catalog: dict[str, Any]) -> None:
    """Some subscriptions whose tiers carry over; what changes their prices is moved to a full hour."""
    if rng.random() < 0.4:
        return
    for card in catalog["rate_cards"]:
        hours = [_hour(version["effective_from"]) for version in card["versions"]]
        if len(set(hours)) < len(hours):
            return
        for version, hour in zip(card["versions"], hours):
            version["effective_from"] = hour
    for subscription in catalog["subscriptions"]:
        changes = [change for change in subscription.get("changes", []) if "contract_month" not in change]
        hours = [_hour(change["at"]) for change in changes]
        start = datetime.fromisoformat(subscription["start"])
        if len(changes) < len(subscription.get("changes", [])) or len(set(hours)) < len(hours):
            continue
        if any(datetime.fromisoformat(hour) <= start for hour in hours) or rng.random() < 0.2:
            continue
        for change, hour in zip(changes, hours):
            change["at"] = hour
        subscription["tiers_at_change"] = "carry_over"


def _hour(text: str) -> str:
    """The full hour of UTC before an instant."""
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%dT%H:00:00Z")


def _own(rng: Random, charges: dict[str, Any]) -> dict[str, Any]:
    prices = {}
    for charge in rng.sample(sorted(charges), rng.randint(1, min(2, len(charges)))):
        if "meter" in charges[charge]:
            prices[charge] = make_price(rng)
        else:
            prices[charge] = {"model": "fixed", "amount": price_text(rng)}
            _set_fee(rng, prices[charge])
    return prices


def _set_fee(rng: Random, price: dict[str, Any]) -> None:
    if rng.random() < 0.6:
        price["billed"] = rng.choice(["in_advance", "in_arrears"])
    if rng.random() < 0.8:
        price["prorate"] = rng.choice(["second", "day", "none"])


def _add_fee(rng: Random, catalog: dict[str, Any]) -> None:
    for plan in catalog["plans"]:
        plan["charges"].append({"id": f"fee-{plan['id']}"})
    for card in catalog["rate_cards"]:
        charges = [f"fee-{plan['id']}" for plan in catalog["plans"] if plan["rate_card"] == card["id"]]
        for number, version in enumerate(card["versions"]):
            for charge in charges:
                if not number or rng.random() < 0.8:
                    version["prices"][charge] = {"model": "fixed", "amount": price_text(rng)}
                    _set_fee(rng, version["prices"][charge])
