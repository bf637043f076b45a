"""Seeded worlds with meters of every kind through the real stages under faults, compared with the auditor's books.

`METERLINE_METER_SEEDS` says how many are tried, `METERLINE_SEED` names the one to try alone.
"""

from __future__ import annotations

from collections import Counter

import pytest

from . import chaos
from .auditor import audit
from .generator import generate
from .meter_kinds import with_every_meter


@pytest.mark.parametrize("seed", chaos.seeds("METERLINE_METER_SEEDS", 60))
def test_no_fault_changes_a_quantity_of_any_meter(seed: int, clickhouse_url: str) -> None:
    chaos.check_or_replay(seed, clickhouse_url, __file__, with_every_meter)


def test_the_worlds_have_filters_that_take_some_events_and_values_that_are_computed() -> None:
    fed: Counter[int] = Counter()
    computed = 0
    for seed in range(20):
        world = with_every_meter(generate(seed), seed)
        books = audit(world.records, world.catalog, world.received, world.horizon)
        fed.update(len(event.readings) for event in books.accepted)
        expressions = {meter["id"] for meter in world.catalog["meters"] if "expression" in meter}
        computed += sum(len(expressions & event.readings.keys()) for event in books.accepted)
    assert {"average", "time_weighted_sum", "percentile"} <= {
        meter["aggregation"]
        for seed in range(5)
        for meter in with_every_meter(generate(seed, 0), seed).catalog["meters"]
    }
    assert fed[0] > 20, "events that no filter takes"
    assert len(fed) > 4
    assert computed > 500


def test_other_meters_leave_the_records_of_a_world_alone() -> None:
    plain = generate(3)
    altered = with_every_meter(plain, 3)
    assert plain == generate(3)
    assert altered.records == plain.records
    assert {name: part for name, part in altered.catalog.items() if name not in ("meters", "rate_cards")} == {
        name: part for name, part in plain.catalog.items() if name not in ("meters", "rate_cards")
    }
