"""The example of a negotiated contract comes out as its page says."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from rich.console import Console

from meterline.pipelines.invoice_accounts import Options
from meterline.runners.audit import audit
from meterline.runners.explain import explain
from meterline.runners.explain_tree import render
from meterline.runners.invoices import invoices_of, lines_of
from meterline.runners.jobs import make_invoices, rate_files
from meterline.runners.tables import invoice_lines
from meterline.schemas.catalog_files import load_catalog

FOLDER = Path(__file__).parents[2] / "examples" / "enterprise-contract"
NOW = datetime(2027, 2, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("period", "expected"),
    [
        pytest.param(
            "2026-01",
            {
                ("tokens", "trial:contract:start"): "0.00",
                ("tokens", "contract:start"): "10.00",
                ("requests", "trial:2026-01"): "0.00",
                ("requests", "2026-01"): "0.00",
                ("platform", "trial:2026-01"): "0.00",
                ("platform", "2026-01"): "274.19",
            },
            id="a trial",
        ),
        pytest.param(
            "2026-11",
            {
                ("tokens", "contract:start"): "10.00",
                ("requests", "2026-01"): "0.00",
                ("requests", "scale-plus/2026-01"): "0.00",
                ("platform", "2026-01"): "250.00",
                ("platform", "scale-plus/2026-01"): "400.00",
                ("support", "scale-plus/2026-01"): "150.00",
            },
            id="a change of plan",
        ),
        pytest.param(
            "2027-01",
            {
                ("tokens", "contract:year-2"): "2.00",
                ("requests", "scale-plus/2026-01"): "0.00",
                ("platform", "scale-plus/2026-01"): "800.00",
                ("support", "scale-plus/2026-01"): "300.00",
            },
            id="the second year",
        ),
    ],
)
def test_the_example_comes_out_to_the_cent(database: str, period: str, expected: dict[tuple[str, str], str]) -> None:
    catalog = load_catalog(FOLDER)
    report = rate_files([str(FOLDER / "usage.ndjson")], catalog, database, now=NOW)
    assert report.accepted == 7
    make_invoices(Options(period, catalog, database, NOW, issue=True))
    (head,) = invoices_of(database, period)
    lines = lines_of(database, head)
    assert {(line["charge_id"], line["rate_card_version"]): line["amount"] for line in lines} == {
        about: Decimal(amount) for about, amount in expected.items()
    }
    assert all(not law.broken for law in audit(database, catalog))
    texts = {
        (line["charge_id"], line["rate_card_version"]): explain(database, line["invoice_line_id"], catalog).found[0]
        for line in lines
    }
    assert all(line.price.source == "catalog" for line in texts.values())  # type: ignore[union-attr]
    if period == "2026-11":
        assert texts["requests", "scale-plus/2026-01"].price.text == (  # type: ignore[union-attr]
            "per unit: 0.10 for 1,000 request; in force from 2026-11-15 23:00 to its end (UTC), quantities count from "
            "there"
        )
        assert texts["platform", "2026-01"].fee.prorated == 250  # type: ignore[union-attr]
    if period == "2026-01":
        assert {line["description"] for line in lines} >= {"Tokens", "Tokens, trial", "Platform fee, trial"}


def test_tiers_that_carry_over_have_one_line_for_the_period(database: str, tmp_path: Path) -> None:
    text = (FOLDER / "catalog.yaml").read_text().replace("    trial:", "    tiers_at_change: carry_over\n    trial:")
    (tmp_path / "catalog.yaml").write_text(text.replace("up_to: 1000,", "up_to: 2,"))
    catalog = load_catalog(tmp_path)
    rate_files([str(FOLDER / "usage.ndjson")], catalog, database, now=NOW)
    make_invoices(Options("2026-11", catalog, database, NOW, issue=True))
    (head,) = invoices_of(database, "2026-11")
    found = {line["charge_id"]: line for line in lines_of(database, head) if line["meter_id"]}
    assert {name: line["rate_card_version"] for name, line in found.items()} == {
        "requests": "carried:",
        "tokens": "carried:",
    }
    shown = Console(width=200, record=True, file=io.StringIO())
    shown.print(invoice_lines(head, lines_of(database, head)))
    for one in found.values():
        shown.print(render(explain(database, one["invoice_line_id"], catalog)))
        shown.print(render(explain(database, one["invoice_line_id"], None)))
    text = shown.export_text()
    assert "in force" in text
    assert "carried" not in text
    # Two of 0.40, one of 0.10 for 1,000.
    assert found["requests"]["exact_amount"] == Decimal("0.0009")
    assert all(not law.broken for law in audit(database, catalog))
    line = explain(database, found["requests"]["invoice_line_id"], catalog).found[0]
    assert line.price.text == (  # type: ignore[union-attr]
        "prices of 2026-01: graduated, per 1,000: (0, 2] at 0.40; (2, ∞) at 0.20; from 2026-11-15 23:00 UTC prices of "
        "2026-01, plan scale-plus: per unit: 0.10 for 1,000 request; quantities go on from what was used before"
    )
    assert line.price.source == "catalog"  # type: ignore[union-attr]
    assert [item.price.text.partition(":")[0] for item in line.line_items] == [  # type: ignore[union-attr]
        "prices of 2026-01",
        "prices of 2026-01",
        "prices of 2026-01, plan scale-plus",
    ]
