"""Other catalogs for a world: what its recorded usage may be priced by instead. A world stays as it is."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any

from .auditor import Catalog
from .contracts import with_contracts
from .generator import DIMENSION_PATHS, VALUE_PATHS, World, make_plans, make_subscriptions
from .meter_kinds import with_every_meter
from .price_models import with_every_model

CHANGES = ("nothing", "prices", "plans and subscriptions", "meters", "everything", "cycles", "filters")


def other_catalog(world: World, seed: int, change: str) -> Catalog:
    rng = Random(f"other catalog {seed}")
    catalog = deepcopy(world.catalog)
    if change == "nothing":
        return catalog
    if change == "cycles":
        catalog = with_contracts(world, seed + 1_000_000).catalog
        for subscription in catalog["subscriptions"]:  # Where tiers carry over nothing can be simulated.
            subscription.pop("tiers_at_change", None)
        return catalog
    if change == "filters":
        return with_every_meter(world, seed + 1_000_000).catalog
    day = (world.received - timedelta(days=6)).replace(hour=0, minute=0, second=0, microsecond=0)
    if change in ("meters", "everything"):
        catalog["meters"] = _meters(rng, catalog["meters"])
    if change == "everything":
        catalog["accounts"] = _accounts(rng, catalog["accounts"])
    if change != "prices":
        catalog["plans"], catalog["rate_cards"] = make_plans(rng, catalog["meters"], day)
        catalog["subscriptions"] = make_subscriptions(rng, catalog["accounts"], catalog["plans"], day)
    return with_every_model(replace(world, catalog=catalog), seed + 1_000_000).catalog


def _meters(rng: Random, meters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Others of the same events: some read what was recorded in another way, some what was not."""
    made = [meter for meter in meters if rng.random() < 0.9] or meters[:1]
    for number, meter in enumerate(made):
        if meter["aggregation"] not in ("count", "distinct") and rng.random() < 0.4:
            meter["aggregation"] = rng.choice(["sum", "min", "max", "latest", "count"])
            for of_another in ("percentile", "interval_seconds", "series"):
                meter.pop(of_another, None)
            if meter["aggregation"] == "count":
                meter.pop("value", None)
                meter.pop("expression", None)
        if meter.get("dimensions") and rng.random() < 0.4:
            meter["dimensions"] = rng.sample(meter["dimensions"], rng.randint(0, len(meter["dimensions"])))
        if rng.random() < 0.2:
            path = rng.choice(DIMENSION_PATHS)
            if path not in [*meter.get("dimensions", []), meter.get("value")]:
                meter["dimensions"] = [*meter.get("dimensions", []), path]
        if not meter.get("dimensions"):
            meter.pop("dimensions", None)
        if rng.random() < 0.3:
            meter["id"] = f"other_{number}"
    if rng.random() < 0.3:
        path = rng.choice(VALUE_PATHS)
        event_type = rng.choice(made)["event_type"]
        made.append({"id": "more", "event_type": event_type, "aggregation": "sum", "value": path, "unit": "unit"})
    return made


def _accounts(rng: Random, accounts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Some are gone, some are paid for by others; and there is a new one."""
    kept = [account for account in accounts if rng.random() < 0.85] or accounts[:1]
    for number, account in enumerate(kept):
        account.pop("parent", None)
        above = [one["id"] for one in kept[:number] if one.get("tenant") == account.get("tenant")]
        if above and rng.random() < 0.6:
            account["parent"] = rng.choice(above)
        else:
            account.pop("billed", None)
    return [*kept, {"id": "newcomer", "subjects": ["nobody else"]}]
