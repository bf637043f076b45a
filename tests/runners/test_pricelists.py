"""Published price lists: what their sources say that an example costs is what the invoice says, to the cent."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from meterline.transforms import clickhouse
from tests.command import Command

FOLDER = Path(__file__).parents[2] / "examples" / "pricelists"

# By example: the total of the invoice, and of its lines the exact amounts that are not 0.
EXAMPLES = {
    "aws-ebs/12-hours": (
        "3.82",
        {"Storage": "3.131333333333333333", "IOPS above 3000": "0.690666666666666667"},
    ),
    "aws-lambda/example-1": ("18.74", {"Compute": "18.337", "Requests": "0.4"}),
    "aws-lambda/example-2": ("11.63", {"Compute": "5.8345", "Requests": "5.8"}),
    "aws-s3-egress/example": ("1356.80", {"Data transfer out": "1356.8"}),
    "card-payments/example": ("77.99", {"Card payments (online)": "76.59", "Card payments (terminal)": "1.4"}),
    "claude-api/standard": (
        "1125.00",
        {
            "Input tokens (claude-opus-4-6, standard)": "500",
            "Output tokens (claude-opus-4-6, standard)": "625",
        },
    ),
    "claude-api/batch": (
        "562.50",
        {"Input tokens (claude-opus-4-6, batch)": "250", "Output tokens (claude-opus-4-6, batch)": "312.5"},
    ),
    "claude-api/long-context": (
        "1.54",  # 1.545, each line rounded
        {
            "Input tokens (claude-sonnet-4-6, standard, long)": "1.5",
            "Output tokens (claude-sonnet-4-6, standard, long)": "0.045",
        },
    ),
    "claude-api/cached": (
        "0.16",
        {
            "Input tokens (claude-sonnet-4-6, standard)": "0.036",
            "Cache writes for 5 minutes (claude-sonnet-4-6, standard)": "0.03",
            "Cache reads (claude-sonnet-4-6, standard)": "0.054",
            "Output tokens (claude-sonnet-4-6, standard)": "0.0375",
        },
    ),
    "copilot-business/400-licenses": ("12600.00", {"Licenses": "7600", "AI credits": "5000"}),
    "deepseek-api/a-million-each": (
        "7.98",  # 7.986, each line rounded
        {
            "Input tokens, cache hit (peak)": "0.044",
            "Input tokens, cache hit": "0.022",
            "Input tokens, cache miss (peak)": "1.32",
            "Input tokens, cache miss": "0.66",
            "Output tokens (peak)": "3.96",
            "Output tokens": "1.98",
        },
    ),
    "supabase-logs/example-12gb": ("38.50", {"Pro plan": "25", "Micro compute": "10", "Logs ingested": "3.5"}),
    "supabase-logs/example-2gb": ("35.00", {"Pro plan": "25", "Micro compute": "10"}),
    "telecom-calls/45-seconds": ("0.04", {"Calls": "0.04"}),
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_published_example_costs_what_its_source_says(meterline: Command, example: str) -> None:
    catalog = (FOLDER / example).parent
    database = ("--catalog", catalog, "--clickhouse", meterline.url, "--json", "--now", "2026-12-01T00:00:00Z")
    rated = json.loads(meterline("rate", "--input", f"{FOLDER / example}.ndjson", *database).out)
    assert rated["accepted"] == rated["records"] > 0
    assert rated["rejected"] == {}
    (invoice,) = json.loads(meterline("invoice", "--period", "2026-10", *database).out)["invoices"]
    total, lines = EXAMPLES[example]
    exact = {line["description"]: Decimal(line["exact_amount"]) for line in invoice["lines"]}
    assert {name: amount for name, amount in exact.items() if amount} == {
        name: Decimal(amount) for name, amount in lines.items()
    }
    assert Decimal(invoice["total"]) == Decimal(total)
    audited = meterline("audit", "--catalog", catalog, "--clickhouse", meterline.url)
    assert audited.code == 0, audited.out


def test_an_explanation_says_what_a_meter_counts(meterline: Command) -> None:
    catalog = FOLDER / "aws-ebs"
    place = ("--catalog", catalog, "--clickhouse", meterline.url)
    meterline("rate", "--input", catalog / "12-hours.ndjson", *place, "--now", "2026-12-01T00:00:00Z")
    said = meterline("explain", "12-hours-2", *place)
    assert "iops: a sample of 0 (vol-1) → iops" in said.out
    words = "counts the sum of max(iops - 3000, 0), each times the hours it holds, of events volume.provisioned"
    assert words in " ".join(said.out.split())
    # Until the volume is deleted it holds to the end of October; then the rest is taken back.
    sql = "SELECT meter_id, quantity_to FROM line_items FINAL ORDER BY meter_id, window_start"
    reached = [tuple(row.values()) for row in clickhouse.query(meterline.url, sql).to_pylist()]
    assert reached == [("iops", 4_476_500), ("iops", 84_000), ("storage", 1_279_000), ("storage", 24_000)]


def test_an_explanation_shows_what_is_beside_the_tiers(meterline: Command) -> None:
    catalog = FOLDER / "card-payments"
    place = ("--catalog", catalog, "--clickhouse", meterline.url)
    meterline("rate", "--input", catalog / "example.ndjson", *place, "--now", "2026-12-01T00:00:00Z")
    made = json.loads(meterline("invoice", "--period", "2026-10", *place, "--json").out)
    line = next(one for one in made["invoices"][0]["lines"] if "online" in one["description"])
    said = meterline("explain", line["invoice_line_id"], *place)
    assert said.code == 0
    assert "percentage: 2.9 % of the amount; 0.30 more for each event" in said.out
    assert "beside the tiers" in said.out


def test_every_example_is_run_and_every_list_names_its_source() -> None:
    examples = {str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.ndjson")}
    assert examples == set(EXAMPLES)
    for prices in FOLDER.rglob("prices.yaml"):
        head = prices.read_text().partition("meters:")[0]
        assert "https://" in head.replace("yaml-language-server", "")
        assert "read 2026-11-28" in " ".join(head.split())
        assert f"`{prices.parent.name}`" in (FOLDER / "README.md").read_text()
        assert yaml.safe_load(prices.read_text())["rate_cards"]
