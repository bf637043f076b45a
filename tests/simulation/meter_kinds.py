"""Worlds whose meters have filters, computed values and other aggregations. What is generated for a seed stays as it
is, but for the meters and their prices' free events."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from random import Random
from typing import Any

from .generator import DIMENSION_PATHS, World

Meter = dict[str, Any]
# Of what events say under the paths above, and what nobody says.
FILTER_VALUES = ("eu", "us-east", "EU", "", "größer", "true", "false", "1", "1.5", "0", "100000000000000000000", "none")
EXPRESSIONS = (
    "{0} * 2",
    "max({0}, 3)",
    "min(max({0} * 0.029 + 0.30, 0.50), 10)",
    "ceil_to({0}, 6)",
    "floor_to(  {0}, 0.7 )",
    "round_to({0} * 1.5, 0.01)",
    "({0} - 1) * 10",
    "{0} * 0.0000001",
    "{0} * min({0}, 9)",
    "{0} + {1}",
    "max({0}, {1}) - min({0}, {1})",
    "round_to({0}, 2) - floor_to({1}, 1) + 0.000000000001",
)


def with_every_meter(world: World, seed: int) -> World:
    """The world with other meters, which count events of the same types."""
    rng = Random(f"meters {seed}")
    catalog = deepcopy(world.catalog)
    values = {
        name: [meter["value"] for meter in catalog["meters"] if meter["event_type"] == name and counts(meter)]
        for name in {meter["event_type"] for meter in catalog["meters"]}
    }
    for meter in catalog["meters"]:
        if rng.random() < 0.5 and counts(meter):
            meter["aggregation"] = rng.choice(["average", "time_weighted_sum", "percentile"])
            if meter["aggregation"] == "time_weighted_sum" and rng.random() < 0.6:
                meter["series"] = rng.choice(DIMENSION_PATHS)
            if meter["aggregation"] == "percentile":
                meter["percentile"] = rng.choice(["95", "99.9", "99.99", "100", "100", "0.000000000001"])
                meter["interval_seconds"] = rng.choice(["300", "3600", "5000", "86400", "60"])
        if rng.random() < 0.5 and counts(meter):
            paths = [quoted(rng, path) for path in (meter["value"], rng.choice(values[meter["event_type"]]))]
            meter["expression"] = rng.choice(EXPRESSIONS).format(*paths)
            del meter["value"]
        for conditions in ("where", "where_not"):
            if rng.random() < 0.3:
                meter[conditions] = {
                    path: some_values(rng) for path in rng.sample(DIMENSION_PATHS, rng.choice([1, 1, 2]))
                }
    for card in catalog["rate_cards"]:
        for version in card["versions"]:
            for price in version["prices"].values():
                if price["model"] != "fixed" and rng.random() < 0.2:
                    price |= {"fee_per_event": "0.25", "free_events": rng.choice(["0", "1", "3"])}
    return replace(world, catalog=catalog)


def counts(meter: Meter) -> bool:
    """Whether it adds up quantities."""
    return meter["aggregation"] not in ("count", "distinct")


def quoted(rng: Random, path: str) -> str:
    return f"`{path}`" if rng.random() < 0.3 else path


def some_values(rng: Random) -> str | list[str]:
    if rng.random() < 0.4:
        return rng.choice(FILTER_VALUES)
    return rng.sample(FILTER_VALUES, rng.randint(1, 6))
