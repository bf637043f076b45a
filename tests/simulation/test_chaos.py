"""Seeded worlds through the real stages under faults of every permitted kind, compared with the auditor's books.

`METERLINE_SEEDS` says how many are tried, `METERLINE_SEED` names the one to try alone.
"""

from __future__ import annotations

import pytest

from . import chaos


@pytest.mark.parametrize("seed", chaos.seeds("METERLINE_SEEDS", 1000))
def test_no_fault_changes_a_row(seed: int, clickhouse_url: str) -> None:
    chaos.check_or_replay(seed, clickhouse_url, __file__)
