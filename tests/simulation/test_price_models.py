"""Seeded worlds with prices of every model through the real stages under faults, compared with the auditor's books.

`METERLINE_PRICE_SEEDS` says how many are tried, `METERLINE_SEED` names the one to try alone.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from meterline.schemas.catalog_files import _PRICES

from . import chaos
from .generator import generate
from .price_models import with_every_model

SEEDS = range(int(os.environ.get("METERLINE_PRICE_SEEDS", "60")))
if "METERLINE_SEED" in os.environ:
    SEEDS = range(int(os.environ["METERLINE_SEED"]), int(os.environ["METERLINE_SEED"]) + 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_fault_changes_an_amount_of_any_price_model(seed: int, clickhouse_url: str) -> None:
    try:
        chaos.check(seed, clickhouse_url, with_every_model)
    except Exception as error:
        command = f"METERLINE_SEED={seed} .venv/bin/python -m pytest tests/simulation/test_price_models.py"
        raise AssertionError(f"seed {seed}: {error}\nreplay it: {command}") from error


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
