"""Meterline beside other ways to do its main job: the same events, one core, the same rows in the end. See README.md."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from events import catalog, write_events
from main_job import RECEIVED, check, stored

_BEGAN = time.monotonic()

PEERS = {
    "meterline": "Meterline",
    "chdb_sql": "SQL in chdb",
    "duckdb_sql": "SQL in DuckDB",
}

# Ids are left out: each may name things as it likes.
_CONTENT = {
    "line items": """
        SELECT count(), toString(sum(toDecimal256(amount, 18))), sum(cityHash64(
            tenant_id, billing_account_id, period_start, period_end, subscription_id, charge_id, meter_id,
            rate_card_version, dimensions, window_start, window_end, account_id, quantity_from, quantity_to, amount,
            currency, tiers.tier, tiers.quantity, tiers.unit_price, tiers.flat_fee, tiers.amount, event_count, revision))
        FROM line_items FINAL""",
    "rating keys of line items": """
        SELECT count(), '', sum(cityHash64(rating_key, window_start)) FROM line_items FINAL JOIN
        (SELECT rating_key_id, rating_key FROM rating_keys FINAL) AS keys USING (rating_key_id)""",
    "archive": """
        SELECT count(), '', sum(cityHash64(
            tenant_id, billing_account_id, account_id, time, source, id, type, subject, quantities, counted_values,
            received_time, payload))
        FROM usage_events FINAL""",
    "rating keys of events": """
        SELECT count(), '', sum(cityHash64(rating_key, place, id))
        FROM (SELECT id, place, rating_key_id FROM usage_events FINAL
              ARRAY JOIN rating_keys AS rating_key_id, arrayEnumerate(rating_keys) AS place) AS events
        JOIN (SELECT rating_key_id, rating_key FROM rating_keys FINAL) AS keys USING (rating_key_id)""",
    "rejects": "SELECT count(), '', sum(cityHash64(stage, reason, payload, received_time)) FROM rejects FINAL",
}


# --- in a process of its own --------------------------------------------------------------------


def run(peer: str, source: str, database: str) -> dict[str, Any]:
    """What a peer makes of a file on one core, and what that costs."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    from meterline.transforms import clickhouse

    clickhouse.SETTINGS["max_threads"] = 1
    url = f"chdb://{database}"
    job = importlib.import_module(f"peers.{peer}").job
    prices = catalog()
    clickhouse.ready(url)
    started = time.process_time()
    counters = job(source, prices, url, RECEIVED)
    # Before the tables are looked at, which is no part of the job.
    used, wall = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - _BEGAN
    return {
        "start_cpu_seconds": started,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "wall_seconds": wall,
        "memory_bytes": used.ru_maxrss * 1024,
        "counters": counters,
        "stored": stored(url),
        "content": {name: clickhouse.connect(url).query(sql).result_rows[0] for name, sql in _CONTENT.items()},
    }


def _in_a_child(peer: str, source: Path, folder: Path) -> dict[str, Any]:
    database = folder / peer
    shutil.rmtree(database, ignore_errors=True)
    told = database.with_suffix(".told.json")
    command = [sys.executable, __file__, "--peer", peer, str(source), str(database), str(told)]
    subprocess.run(command, check=True)
    shutil.rmtree(database)
    return json.loads(told.read_text())


# --- the figures --------------------------------------------------------------------------------


def show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report['events']:,} events, {report['bytes'] / 1e6:,.0f} MB, one core")
    for name in ("", "M events / CPU s", "of Meterline", "CPU s", "of it start", "wall s", "memory MB"):
        table.add_column(name, justify="right" if name else "left")
    base = report["peers"]["meterline"]
    for peer, cost in report["peers"].items():
        rate = cost["events"] / cost["cpu_seconds"]
        table.add_row(
            PEERS[peer],
            f"{rate / 1e6:.3f}",
            f"{rate / (base['events'] / base['cpu_seconds']):.2f}",
            f"{cost['cpu_seconds']:.1f}",
            f"{cost['start_cpu_seconds']:.1f}",
            f"{cost['wall_seconds']:.1f}",
            f"{cost['memory_bytes'] / 1e6:,.0f}",
        )
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=2_000_000, help="events to generate (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--peer", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        *task, told = options.peer
        Path(told).write_text(json.dumps(run(*task)))
        return

    folder = Path(tempfile.gettempdir()) / "meterline-bench"
    folder.mkdir(exist_ok=True)
    source = folder / f"events-{options.events}-1.ndjson"
    expected = write_events(source, options.events, 1)
    report: dict[str, Any] = {"events": options.events, "bytes": source.stat().st_size, "peers": {}}
    content = None
    for peer, name in PEERS.items():
        told = _in_a_child(peer, source, folder)
        content = content or told["content"]
        wrong = check(expected, told)
        wrong += [
            f"{part}: Meterline has {content[part]}, this {rows}"
            for part, rows in told["content"].items()
            if rows != content[part]
        ]
        if wrong:
            sys.exit(f"what {name} stored is wrong:\n  " + "\n  ".join(wrong))
        report["peers"][peer] = {"events": options.events} | {
            k: v for k, v in told.items() if k not in ("stored", "content", "counters")
        }
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
