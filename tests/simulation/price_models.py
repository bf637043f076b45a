"""Worlds whose charges have prices of every model. What is generated for a seed stays as it is, but for the prices."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from decimal import Decimal
from random import Random
from typing import Any

from .generator import World, make_price, make_tiers, price_text

Price = dict[str, Any]
VALUES = ("eu", "us-east", "", "", "größer", "\u0000", "true", "false", "1", "1.5", "-0.25", "100000000000000000000")


def with_every_model(world: World, seed: int) -> World:
    """The world with other prices for its metered charges."""
    rng = Random(f"prices {seed}")
    catalog = deepcopy(world.catalog)
    by_id = {meter["id"]: meter for meter in catalog["meters"]}
    meters = {
        charge["id"]: by_id[charge["meter"]]
        for plan in catalog["plans"]
        for charge in plan["charges"]
        if "meter" in charge
    }
    for card in catalog["rate_cards"]:
        for version in card["versions"]:
            for charge, price in version["prices"].items():
                if price["model"] != "fixed":
                    version["prices"][charge] = any_price(rng, meters[charge])
    return replace(world, catalog=catalog)


def any_price(rng: Random, meter: dict[str, Any]) -> Price:
    dimensions: list[str] = meter.get("dimensions", [])
    if rng.random() < 0.2 and meter["aggregation"] not in ("time_weighted_sum", "percentile"):
        return _time_of_day(rng, meter)
    if not dimensions or rng.random() < 0.5:
        return _flat_price(rng, meter)
    rows: list[dict[str, Any]] = []
    for _ in range(rng.randint(1, 4)):
        when = {path: rng.choice(VALUES) for path in rng.sample(dimensions, rng.randint(1, len(dimensions)))}
        if not any(row["when"].items() <= when.items() for row in rows):
            rows.append({"when": when, "price": _flat_price(rng, meter)})
    # With a default: usage without a price is rejected.
    return {"model": "matrix", "rows": rows, "default": _flat_price(rng, meter)}


def _time_of_day(rng: Random, meter: dict[str, Any]) -> Price:
    return {
        "model": "time_of_day",
        "bands": [
            {
                "name": f"band-{number}",
                "times": [_times(rng) for _ in range(rng.randint(1, 2))],
                "price": _flat_price(rng, meter),
            }
            for number in range(rng.randint(1, 3))
        ],
        "default": _flat_price(rng, meter),
    }


def _times(rng: Random) -> dict[str, Any]:
    times: dict[str, Any] = {}
    if rng.random() < 0.6:
        times["days"] = rng.sample(["mon", "tue", "wed", "thu", "fri", "sat", "sun"], rng.randint(1, 5))
    if rng.random() < 0.7:
        times["from"] = rng.choice(["00:00", "00:30", "02:15", "08:00", "12:00"])
    if rng.random() < 0.7:
        times["to"] = rng.choice(["12:01", "18:30", "20:00", "23:59", "24:00"])
    return times or {"from": "06:00"}


def _flat_price(rng: Random, meter: dict[str, Any]) -> Price:
    models = [make_price, _stairstep, _packaged_tiers]
    if meter["aggregation"] not in ("count", "distinct"):
        models += [_percentage, _graduated_percentage, _dynamic]
    price = rng.choice(models)(rng)
    if rng.random() < 0.3 and price["model"] != "package":
        price["included"] = rng.choice(["0", "1", "7.5", "20", "0.000000000001", "1000000"])
    if rng.random() < 0.3:
        price["fee_per_event"] = price_text(rng)
    if not meter.get("dimensions") and rng.random() < 0.4:
        limits = sorted((price_text(rng) for _ in range(2)), key=Decimal)
        for limit, amount in zip(rng.choice([["minimum"], ["maximum"], ["minimum", "maximum"]]), limits):
            price[limit] = amount
    return price


def _percentage(rng: Random) -> Price:
    return {"model": "percentage", **_share(rng)}


def _graduated_percentage(rng: Random) -> Price:
    tiers = [
        {name: text for name, text in tier.items() if name != "unit_price"} | _share(rng) for tier in make_tiers(rng)
    ]
    price: Price = {"model": "graduated_percentage", "tiers": tiers}
    if rng.random() < 0.5:
        price["first_tier_flat_at_zero"] = rng.choice(["true", "false"])
    return price


def _dynamic(rng: Random) -> Price:
    return {"model": "dynamic"} | ({"multiplier": price_text(rng)} if rng.random() < 0.7 else {})


def _share(rng: Random) -> dict[str, str]:
    return rng.choice([{"percent": rng.choice(["2.9", "0.0000000000000001", "100", "0"])}, {"basis_points": "37.5"}])


def _stairstep(rng: Random) -> Price:
    bounds = [tier.get("up_to") for tier in make_tiers(rng)]
    steps = [{**({"up_to": bound} if bound else {}), "price": price_text(rng)} for bound in bounds]
    price: Price = {"model": "stairstep", "steps": steps}
    if rng.random() < 0.5:
        price["first_step_at_zero"] = rng.choice(["true", "false"])
    return price


def _packaged_tiers(rng: Random) -> Price:
    price: Price = {"model": rng.choice(["graduated", "volume"]), "tiers": make_tiers(rng)}
    for tier in price["tiers"]:
        if rng.random() < 0.6:
            tier.pop("unit_price", None)
            tier["package_price"] = price_text(rng)
            tier["package_size"] = rng.choice(["1", "3", "0.7", "10", "0.001"])
            if rng.random() < 0.6:
                tier["round"] = rng.choice(["up", "down"])
    if rng.random() < 0.4:
        price["first_tier_flat_at_zero"] = rng.choice(["true", "false"])
    if rng.random() < 0.3:
        price["per"] = rng.choice(["1000", "7", "0.001"])
    return price
