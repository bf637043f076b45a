"""Worlds whose subscriptions have cycles and fees of every kind. What is generated for a seed stays, but for these."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any

from .generator import World, price_text


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
