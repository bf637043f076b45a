"""A small catalog: one meter of each aggregation, each priced by a model whose price moves with the total."""

from __future__ import annotations

import pytest

from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_files import load_catalog
from tests.simulation.generator import write_catalog

AGGREGATIONS = (
    *("sum", "count", "min", "max", "distinct", "latest"),
    *("average", "time_weighted_sum", "percentile"),
)
PARAMETERS = {
    "time_weighted_sum": {"series": "disk"},
    "percentile": {"percentile": "99.9", "interval_seconds": "900"},
}
GRADUATED = {
    "model": "graduated",
    "first_tier_flat_at_zero": "true",
    "tiers": [{"up_to": "3", "flat_fee": "1"}, {"up_to": "10.5", "unit_price": "0.25"}, {"unit_price": "0.1"}],
}
VOLUME = {"model": "volume", "tiers": [{"up_to": "5", "unit_price": "2"}, {"unit_price": "1", "flat_fee": "0.5"}]}


@pytest.fixture(scope="session")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    charges = [{"id": f"c-{name}", "meter": name} for name in AGGREGATIONS]
    prices = {f"c-{name}": VOLUME if name in ("sum", "max") else GRADUATED for name in AGGREGATIONS}
    meters = []
    for name in AGGREGATIONS:
        meter = {"id": name, "event_type": "call", "aggregation": name, "unit": "unit", "dimensions": ["region"]}
        meter |= PARAMETERS.get(name, {})
        meters.append(meter if name == "count" else {**meter, "value": "user" if name == "distinct" else "n"})
    folder = tmp_path_factory.mktemp("catalog")
    write_catalog(
        {
            "meters": meters,
            "rate_cards": [
                {
                    "id": "card",
                    "currency": "EUR",
                    "versions": [{"version": "v1", "effective_from": "2020-01-01T00:00:00Z", "prices": prices}],
                }
            ],
            "plans": [{"id": "plan", "rate_card": "card", "charges": charges}],
            "accounts": [{"id": "acme"}, {"id": "web", "parent": "acme", "subjects": ["user:1"]}],
            "subscriptions": [
                {
                    "id": "sub",
                    "account": "acme",
                    "plan": "plan",
                    "start": "2020-01-01T00:00:00Z",
                    "time_zone": "Asia/Kolkata",
                }
            ],
        },
        folder,
    )
    return load_catalog(folder)
