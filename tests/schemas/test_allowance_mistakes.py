"""Mistakes in what is carried over of included units are found at their line, in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.schemas.test_catalog_files import GOOD as BASE
from tests.schemas.test_catalog_files import SUBSCRIPTION, TOKENS_2, assert_reported, problems, write

ROLLING = "tokens: {model: per_unit, unit_price: '0.1', included: 100, included_rollover: {periods: 2, maximum: 50}}"
GOOD = BASE.replace(TOKENS_2, ROLLING)
PRICE = "rate card standard, version 2, price tokens"

MISTAKES = [
    ("included: 100,", "included: 0,",
     f"{PRICE}, included_rollover: `included` is missing, the units that are carried over"),
    ("periods: 2", "periods: 0", f"{PRICE}, included_rollover, periods: expected at least 1, got 0"),
    ("maximum: 50", "maximum: 0", f"{PRICE}, included_rollover, maximum: must be more than 0, got 0"),
    ("periods: 2", "period: 2", "unknown key 'period', did you mean 'periods'?"),
    ("included: 100,", "included: 100, minimum: 1, fee_per_event: '0.01',",
     f"{PRICE}, included_rollover: the minimum is of units and fees together, so that units alone have no price"),
    ("    unit: token\n", "    unit: token\n    dimensions: [model]\n",
     f"{PRICE}, included_rollover: would hold for each value of model by itself"),
    (SUBSCRIPTION, SUBSCRIPTION.replace("}", ", tiers_at_change: carry_over}"),
     f"{PRICE}: carries included units over, but prices of subscription s1 change within a period"),
    (SUBSCRIPTION, SUBSCRIPTION.replace("}", ", tiers_at_change: carry_over, prices: {" + ROLLING + "}}"),
     "subscription s1, price tokens: carries included units over, but"),
]  # fmt: skip


def test_a_good_catalog_has_no_problem(tmp_path: Path) -> None:
    assert problems(write(tmp_path, all=GOOD)) == []


@pytest.mark.parametrize(("old", "new", "expected"), MISTAKES, ids=[message for _, _, message in MISTAKES])
def test_a_mistake_is_reported_at_its_line(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert_reported(tmp_path, GOOD, old, new, expected)
