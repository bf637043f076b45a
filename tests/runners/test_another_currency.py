"""The example of prices in dollars and credits comes out in euros as its README says."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

from tests.command import Command

FOLDER = Path(__file__).parents[2] / "examples" / "another-currency"
NOW = ("--now", "2026-11-02T00:00:00Z")
LINES = {
    "Calls": ("11.36", "12.3456 USD × 0.92"),
    "Images": ("3.88", "387.5 credits × 0.01"),
    "Platform": ("91.00", "100 USD × 0.91"),
}


def test_every_line_of_the_example_is_as_it_says(meterline: Command, tmp_path: Path) -> None:
    place = ("--catalog", FOLDER, "--clickhouse", meterline.url)
    meterline("rate", "--input", FOLDER / "october.ndjson", *place, *NOW)
    made = meterline("invoice", "--period", "2026-10", *place, *NOW, "--issue", "--json")
    (invoice,) = json.loads(made.out)["invoices"]
    found = {line["description"]: Decimal(line["amount"]) for line in invoice["lines"]}
    assert found == {name: Decimal(amount) for name, (amount, _) in LINES.items()}
    assert (invoice["currency"], Decimal(invoice["total"])) == ("EUR", Decimal("106.24"))
    told = " ".join(meterline("explain", "acme-2026-10-EUR-1", *place).out.split())
    readme = (FOLDER / "README.md").read_text()
    for amount, words in LINES.values():
        assert f"converted: {words} = {amount} EUR" in told
        assert words in readme
        assert amount in readme
    assert meterline("audit", *place).code == 0

    dearer = tmp_path / "catalog"
    dearer.mkdir()
    (dearer / "prices.yaml").write_text((FOLDER / "prices.yaml").read_text().replace('rate: "0.92"', 'rate: "1.92"'))
    words = ("--catalog", dearer, "--today", FOLDER, "--clickhouse", meterline.url)
    said = json.loads(meterline("simulate", "--period", "2026-10", *words, "--json").out)
    (total,) = said["totals"]
    # 12.3456 × 1.92 is 23.70.
    assert (total["currency"], Decimal(total["difference"])) == ("EUR", Decimal("12.34"))
