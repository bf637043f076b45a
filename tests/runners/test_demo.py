"""The demo, as `make demo` runs it: the golden invoices, twice."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

from meterline.runners.demo import RECEIVED, quickstart, usage_lines
from tests.simulation.auditor import audit, read_catalog

GOLDEN = Path(__file__).parent.parent / "golden" / "demo_invoice_lines.tsv"
LINES = """
SELECT number, line_number, account_id, subscription_id, charge_id, rate_card_version, dimensions,
       toString(quantity) AS quantity, toString(exact_amount) AS exact_amount, toString(amount) AS amount,
       l.currency AS currency, reason, invoice_line_id
FROM invoice_lines AS l FINAL INNER JOIN invoices AS i FINAL USING (invoice_id)
WHERE status = 'issued' ORDER BY number, line_number
"""


def meterline(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "meterline.runners.cli", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


def test_the_demo_gives_the_golden_invoices_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    first = meterline(tmp_path, "demo")
    assert "= all records read" in first
    assert "≠" not in first
    url = "chdb://meterline-demo/db"
    golden = GOLDEN.read_text(encoding="utf-8")
    assert meterline(tmp_path, "query", LINES, "--format", "tsv", "--clickhouse", url) == golden
    second = meterline(tmp_path, "demo")
    assert "running it again changed nothing" in second
    assert meterline(tmp_path, "query", LINES, "--format", "tsv", "--clickhouse", url) == golden


def test_the_demo_leaves_other_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "meterline-demo").mkdir()
    (tmp_path / "meterline-demo" / "thesis.txt").write_text("precious")
    command = [sys.executable, "-m", "meterline.runners.cli", "demo", "--fresh"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "holds no demo" in done.stderr
    assert (tmp_path / "meterline-demo" / "thesis.txt").exists()


def test_the_golden_invoices_are_what_the_auditor_says() -> None:
    books = audit(usage_lines(), read_catalog(quickstart() / "catalog"), RECEIVED, None)
    usage: dict[tuple[str, ...], Fraction] = defaultdict(Fraction)
    for item in books.line_items:
        dimensions = ",".join(f"'{path}':'{value}'" for path, value in item["dimensions"].items())
        key = (item["account_id"], item["charge_id"], item["rate_card_version"], f"{{{dimensions}}}")
        usage[key] += Fraction(item["amount"])
    with GOLDEN.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["reason"] == "usage"]
    golden = {
        tuple(row[name] for name in ("account_id", "charge_id", "rate_card_version", "dimensions")): row for row in rows
    }
    priced = {key: amount for key, amount in usage.items() if key[1]}
    assert {key: Fraction(row["exact_amount"]) for key, row in golden.items()} == priced
