"""Seeded worlds through the real stages under faults of every permitted kind, compared with the auditor's books.

`METERLINE_SEEDS` says how many are tried, `METERLINE_SEED` names the one to try alone.
"""

from __future__ import annotations

import os

import pytest

from . import chaos

SEEDS = range(int(os.environ.get("METERLINE_SEEDS", "1000")))
if "METERLINE_SEED" in os.environ:
    SEEDS = range(int(os.environ["METERLINE_SEED"]), int(os.environ["METERLINE_SEED"]) + 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_fault_changes_a_row(seed: int, clickhouse_url: str) -> None:
    try:
        chaos.check(seed, clickhouse_url)
    except Exception as error:
        command = f"METERLINE_SEED={seed} .venv/bin/python -m pytest tests/simulation/test_chaos.py"
        raise AssertionError(f"seed {seed}: {error}\nreplay it: {command}") from error
