"""Meterline beside other ways to do its main job: same events, one core, same rows in the end. See README.md."""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from events import Expected, catalog, shared_folder, write_events, write_parquet
from main_job import RECEIVED, check, stored

_BEGAN = time.monotonic()


class Peer(NamedTuple):
    """A module under `peers/` with a `job`, and the input that it gets."""

    label: str
    module: str
    format: str

    @property
    def name(self) -> str:
        return f"{self.module}-{self.format}"


PEERS = (
    Peer("Meterline", "meterline", "ndjson"),
    Peer("SQL in DuckDB", "duckdb_sql", "ndjson"),
    Peer("SQL in chdb", "chdb_sql", "ndjson"),
    Peer("Beam, event by event", "elementwise_beam", "ndjson"),
    Peer("Meterline, Parquet", "meterline", "parquet"),
    Peer("SQL in DuckDB, Parquet", "duckdb_sql", "parquet"),
)

# All columns but ids, which each may make as it likes. Of payloads made from Parquet the JSON counts, not its bytes.
_CONTENT = {
    "line items": """
        SELECT count(), toString(sum(toDecimal256(amount, 18))), sum(cityHash64(
            tenant_id, billing_account_id, period_start, period_end, subscription_id, charge_id, meter_id,
            rate_card_version, dimensions, window_start, window_end, account_id, quantity_from, quantity_to, amount,
            currency, tiers.tier, tiers.quantity, tiers.unit_price, tiers.flat_fee, tiers.amount, event_count,
            revision))
        FROM line_items FINAL""",
    "rating keys of line items": """
        SELECT count(), '', sum(cityHash64(rating_key, window_start)) FROM line_items FINAL JOIN
        (SELECT rating_key_id, rating_key FROM rating_keys FINAL) AS keys USING (rating_key_id)""",
    "archive": """
        SELECT count(), '', sum(cityHash64(
            tenant_id, billing_account_id, account_id, time, source, id, type, subject, quantities, counted_values,
            received_time, $payload))
        FROM usage_events FINAL""",
    "rating keys of events": """
        SELECT count(), '', sum(cityHash64(rating_key, place, id))
        FROM (SELECT id, place, rating_key_id FROM usage_events FINAL
              ARRAY JOIN rating_keys AS rating_key_id, arrayEnumerate(rating_keys) AS place) AS events
        JOIN (SELECT rating_key_id, rating_key FROM rating_keys FINAL) AS keys USING (rating_key_id)""",
    "rejects": "SELECT count(), '', sum(cityHash64(stage, reason, $payload, received_time)) FROM rejects FINAL",
}
_PAYLOAD = {
    "ndjson": "payload",
    "parquet": "JSONExtract(payload, 'id', 'String'), parseDateTimeBestEffort(JSONExtractString(payload, 'time')), "
    "JSONExtractRaw(payload, 'data')",
}


# --- in a process of its own --------------------------------------------------------------------


def run(module: str, source: str, database: str) -> dict[str, Any]:
    """What a peer makes of a file on one core, and what that costs."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    gc.disable()  # As the command does while it loads modules.
    from meterline.transforms import clickhouse

    clickhouse.SETTINGS["max_threads"] = 1
    url = f"chdb://{database}"
    job = importlib.import_module(f"peers.{module}").job
    prices = catalog()
    clickhouse.ready(url)
    started = time.process_time()
    counters = job(source, prices, url, RECEIVED)
    # Before the tables are looked at, which is no part of the job.
    used, wall = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - _BEGAN
    payload = _PAYLOAD[source.rpartition(".")[2]]
    client = clickhouse.connect(url)
    return {
        "cost": {
            "cpu_seconds": used.ru_utime + used.ru_stime,
            "start_cpu_seconds": started,
            "wall_seconds": wall,
            "memory_bytes": used.ru_maxrss * 1024,
        },
        "counters": counters,
        "stored": stored(url),
        "content": {
            part: [str(value) for value in client.query(sql.replace("$payload", payload)).result_rows[0]]
            for part, sql in _CONTENT.items()
        },
    }


def _in_a_child(peer: Peer, source: Path, folder: Path) -> dict[str, Any]:
    database = folder / peer.name
    shutil.rmtree(database, ignore_errors=True)
    told = folder / f"{peer.name}.told.json"
    subprocess.run([sys.executable, __file__, "--task", peer.module, str(source), str(database), str(told)], check=True)
    shutil.rmtree(database)
    return json.loads(told.read_text())


# --- the figures --------------------------------------------------------------------------------


def compare(events: int, elementwise_events: int, peers: tuple[Peer, ...], folder: Path) -> dict[str, Any]:
    """What each peer costs; ends the program where one stored something else than was generated, or than Meterline."""
    costs: list[dict[str, Any]] = []
    content: dict[tuple[str, int], dict[str, Any]] = {}

    def measure(peer: Peer, size: int) -> None:
        source, expected = _events(folder, size, peer.format)
        told = _in_a_child(peer, source, folder)
        # Meterline comes first on each input.
        _verify(peer, told, expected, content.setdefault((peer.format, size), told["content"]))
        costs.append({"peer": peer.module, "label": peer.label, "format": peer.format, "events": size, **told["cost"]})

    for peer in peers:
        size = min(events, elementwise_events) if peer.module == "elementwise_beam" else events
        if (peer.format, size) not in content and peer.module != "meterline":
            measure(Peer("Meterline", "meterline", peer.format), size)
        measure(peer, size)
    return {"events": events, "bytes": _events(folder, events, "ndjson")[0].stat().st_size, "peers": costs}


def _events(folder: Path, events: int, form: str) -> tuple[Path, Expected]:
    lines = folder / f"events-{events}-1.ndjson"
    expected = write_events(lines, events, 1)
    if form == "ndjson":
        return lines, expected
    rows = lines.with_suffix(".parquet")
    write_parquet(lines, rows)
    malformed = expected.rejects["malformed"]
    return rows, replace(expected, records=events - malformed, rejects=expected.rejects | {"malformed": 0})


def _verify(peer: Peer, told: dict[str, Any], expected: Expected, content: dict[str, Any]) -> None:
    wrong = check(expected, told) + [
        f"{part}: Meterline stored {content[part]}, this {rows}"
        for part, rows in told["content"].items()
        if rows != content[part]
    ]
    if wrong:
        sys.exit(f"what {peer.label} stored is wrong:\n  " + "\n  ".join(wrong))


def show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report['events']:,} events, {report['bytes'] / 1e6:,.0f} MB of NDJSON, one core")
    for name in ("", "M events / CPU s", "× Meterline", "CPU s", "of it start", "wall s", "memory MB"):
        table.add_column(name, justify="right" if name else "left")
    bases: dict[tuple[str, int], float] = {}
    for cost in report["peers"]:
        rate = cost["events"] / cost["cpu_seconds"]
        base = bases.setdefault((cost["format"], cost["events"]), rate)
        label = cost["label"] + _few(cost, report)
        seconds = [f"{cost[name]:.1f}" for name in ("cpu_seconds", "start_cpu_seconds", "wall_seconds")]
        table.add_row(label, f"{rate / 1e6:.3f}", f"{rate / base:.2f}", *seconds, f"{cost['memory_bytes'] / 1e6:,.0f}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print("line items, archive and rejects are the same in all of them, but for their ids")


def _few(cost: dict[str, Any], report: dict[str, Any]) -> str:
    return f" (of {cost['events']:,} events)" if cost["events"] != report["events"] else ""


def chart(report: dict[str, Any]) -> str:
    """Bars of events per CPU second, as SVG in colours that show on white and on black."""
    peers = report["peers"]
    rates = [cost["events"] / cost["cpu_seconds"] for cost in peers]
    title = f"Thousand events per CPU second: {report['events'] / 1e6:g} million events to line items and archive"
    parts = [f'<text x="0" y="16" font-weight="bold">{title}</text>']
    for place, (cost, rate) in enumerate(zip(peers, rates)):
        top, width = 30 + 30 * place, 400 * rate / max(rates)
        colour = "#e8590c" if cost["label"].startswith("Meterline") else "#6e7781"
        parts += [
            f'<text x="190" y="{top + 16}" text-anchor="end">{cost["label"]}</text>',
            f'<rect x="200" y="{top}" width="{width:.1f}" height="22" rx="2" fill="{colour}"/>',
            f'<text x="{208 + width:.1f}" y="{top + 16}">{rate / 1e3:,.0f}{_few(cost, report)}</text>',
        ]
    height = 40 + 30 * len(peers)
    size = f'width="720" height="{height}" viewBox="0 0 720 {height}"'
    style = 'font-family="system-ui, sans-serif" font-size="13" fill="#6e7781"'
    body = "\n  ".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style} role="img">\n  {body}\n</svg>\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=2_000_000, help="events to generate (default: %(default)s)")
    parser.add_argument("--large", action="store_const", const=8_000_000, dest="events", help="8 million events")
    parser.add_argument(
        "--elementwise-events", type=int, default=200_000, help="of them for Beam event by event (default: %(default)s)"
    )
    parser.add_argument("--only", action="append", choices=[one.name for one in PEERS], help="this peer and Meterline")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--svg", type=Path, help="draw them to this file")
    parser.add_argument("--task", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        *task, told = options.task
        Path(told).write_text(json.dumps(run(*task)))
        return
    folder = shared_folder()
    peers = tuple(one for one in PEERS if not options.only or one.name in options.only)
    report = compare(options.events, options.elementwise_events, peers, folder)
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if options.svg:
        options.svg.write_text(chart(report))


if __name__ == "__main__":
    main()
