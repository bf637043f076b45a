"""The example of a bill with everything on it comes out as its README says."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

from tests.command import Command

FOLDER = Path(__file__).parents[2] / "examples" / "from-charges-to-total"
LINES = [
    ("charge", "Calls", "250.00"),
    ("charge", "Platform", "100.00"),
    ("discount", "Ten percent on calls: Calls", "-25.00"),
    ("discount", "Welcome: Calls", "-13.85"),
    ("discount", "Welcome: Platform", "-6.15"),
    ("true_up", "Minimum spend", "195.00"),
    ("credit", "Startup programme", "-50.00"),
    ("tax", "VAT", "85.50"),
]


def test_every_line_of_the_example_is_as_it_says(meterline: Command) -> None:
    place = ("--catalog", FOLDER, "--clickhouse", meterline.url)
    meterline("rate", "--input", FOLDER / "october.ndjson", *place, "--now", "2026-11-02T00:00:00Z")
    made = meterline("invoice", "--period", "2026-10", *place, "--now", "2026-11-02T00:00:00Z", "--issue", "--json")
    (invoice,) = json.loads(made.out)["invoices"]
    found = [(line["kind"], line["description"], Decimal(line["amount"])) for line in invoice["lines"]]
    assert found == [(kind, what, Decimal(amount)) for kind, what, amount in LINES]
    assert Decimal(invoice["total"]) == Decimal("535.50")
    readme = (FOLDER / "README.md").read_text()
    for _, _, amount in LINES:
        assert amount.replace("-", "−") in readme or amount.removeprefix("-") in readme
    assert meterline("audit", *place).code == 0
    told = " ".join(meterline("explain", "acme-2026-10-EUR-1", *place).out.split())
    assert "true up acme-minimum: 500.00 EUR were promised, 305.00 EUR were spent: the rest is due" in told
