"""Seeded worlds with prices of every model through the real stages under faults, compared with the auditor's books.

`METERLINE_PRICE_SEEDS` says how many are tried, `METERLINE_SEED` names the one to try alone.
"""

from __future__ import annotations

from collections import Counter

import pytest

from meterline.schemas.catalog_files import _PRICES

from . import chaos
from .generator import generate
from .price_models import with_every_model


@pytest.mark.parametrize("seed", chaos.seeds("METERLINE_PRICE_SEEDS", 60))
def test_no_fault_changes_an_amount_of_any_price_model(seed: int, clickhouse_url: str) -> None:
    chaos.check_or_replay(seed, clickhouse_url, __file__, with_every_model)


def test_the_worlds_have_prices_of_every_model() -> None:
    found = Counter(
        price["model"]
        for seed in range(30)
        for card in with_every_model(generate(seed, events=0), seed).catalog["rate_cards"]
        for version in card["versions"]
        for price in version["prices"].values()
    )
    assert set(found) == set(_PRICES)


def test_other_prices_leave_all_else_of_a_world_alone() -> None:
    plain = generate(3)
    altered = with_every_model(plain, 3)
    assert plain == generate(3)
    assert altered.records == plain.records
    assert {name: part for name, part in altered.catalog.items() if name != "rate_cards"} == {
        name: part for name, part in plain.catalog.items() if name != "rate_cards"
    }
