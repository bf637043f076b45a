"""A sample of a gauge is told as one: the meter's unit is that of the unit-hours that come of it."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from meterline.runners.explain import explain
from meterline.runners.explain_tree import render
from meterline.runners.jobs import rate_files
from meterline.schemas.catalog_files import load_catalog

CATALOG = """
meters:
  - {id: stored, event_type: sample, aggregation: time_weighted_sum, value: gb, unit: GBh}
  - {id: most, event_type: sample, aggregation: max, value: gb, unit: GB}
rate_cards:
  - id: card
    currency: EUR
    versions:
      - version: v1
        effective_from: 2025-01-01T00:00:00Z
        prices: {stored: {model: per_unit, unit_price: "0.0333"}, most: {model: per_unit, unit_price: "1"}}
plans:
  - {id: plan, rate_card: card, charges: [{id: stored, meter: stored}, {id: most, meter: most}]}
accounts: [{id: north}]
subscriptions: [{id: s, account: north, plan: plan, start: 2026-01-01T00:00:00Z}]
"""


def test_a_sample_has_no_unit_of_hours(database: str, tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(CATALOG)
    head = {"specversion": "1.0", "id": "1", "source": "/g", "type": "sample", "subject": "north"}
    (tmp_path / "usage.ndjson").write_text(json.dumps({**head, "time": "2026-01-01T00:00:00Z", "data": {"gb": 40}}))
    catalog = load_catalog(tmp_path)
    rate_files([str(tmp_path / "usage.ndjson")], catalog, database, now=datetime(2026, 2, 10, tzinfo=UTC))
    shown = Console(width=200, record=True, file=io.StringIO())
    shown.print(render(explain(database, "1", catalog)))
    text = shown.export_text()
    assert "stored: a sample of 40 → stored" in text
    assert "most: 40 GB → most" in text
