"""How long `meterline simulate` takes for a month of 10 million line items, and the memory it needs. See README.md."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
from children import in_child

from meterline.schemas.records import RatingKey
from meterline.transforms import clickhouse, write

START, END = datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)
DAYS, HOURS = 31, 744
MODELS = ("large", "small")
IN, OUT = 137, 29  # tokens of an event

# --- catalogs -------------------------------------------------------------------------------------

_METERS = """
meters:
  - {id: input_tokens, event_type: llm, aggregation: sum, value: input_tokens, unit: token, dimensions: [model]}
  - {id: output_tokens, event_type: llm, aggregation: sum, value: output_tokens, unit: token, dimensions: [model]}
  - {id: requests, event_type: llm, aggregation: count, unit: request}
"""
_LATENCY = "  - {id: latency, event_type: llm, aggregation: sum, value: latency_ms, unit: millisecond}\n"
TODAY = {
    "input_tokens": {"model": "per_unit", "unit_price": "0.0000025"},
    "output_tokens": {"model": "per_unit", "unit_price": "0.00001"},
    "requests": {"model": "per_unit", "unit_price": "0.0001"},
}
_TIERS = {"model": "graduated", "tiers": [{"up_to": "200000", "unit_price": "0"}, {"unit_price": "0.000003"}]}
_BY_MODEL = {
    "model": "matrix",
    "rows": [{"when": {"model": "large"}, "price": {"model": "per_unit", "unit_price": "0.00002"}}],
    "default": {"model": "per_unit", "unit_price": "0.000005"},
}
_BANDS = {
    "model": "time_of_day",
    "bands": [
        {
            "name": "office",
            "times": [{"days": ["mon", "tue", "wed", "thu", "fri"], "from": "08:00", "to": "18:00"}],
            "price": {"model": "per_unit", "unit_price": "0.000003"},
        }
    ],
    "default": {"model": "per_unit", "unit_price": "0.000002"},
}
NEW: dict[str, dict[str, Any]] = {
    "the catalog of today": TODAY,
    "tiers, and a price by model": TODAY | {"input_tokens": _TIERS, "output_tokens": _BY_MODEL},
    "a price by the clock": TODAY | {"input_tokens": _BANDS},
    "a meter that was not there": TODAY | {"latency": {"model": "per_unit", "unit_price": "0.000001"}},
}


def write_catalog(folder: Path, payers: list[str], prices: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    card = {
        "id": "list",
        "currency": "USD",
        "versions": [{"version": "v1", "effective_from": "2026-01-01T00:00:00Z", "prices": prices}],
    }
    plan = {"id": "list", "rate_card": "list", "charges": [{"id": meter, "meter": meter} for meter in prices]}
    (folder / "meters.yaml").write_text(_METERS + (_LATENCY if "latency" in prices else ""))
    sold = {"rate_cards": [card], "plans": [plan]}
    bought = {
        "accounts": [{"id": payer} for payer in payers],
        "subscriptions": [
            {"id": f"{payer}-list", "account": payer, "plan": "list", "start": "2026-01-01T00:00:00Z"}
            for payer in payers
        ],
    }
    for name, part in (("prices", sold), ("customers", bought)):
        (folder / f"{name}.yaml").write_text(json.dumps(part))  # JSON is YAML.


# --- the database ---------------------------------------------------------------------------------

_EVENTS = f"""
INSERT INTO usage_events (tenant_id, billing_account_id, account_id, time, identity, source, id, type, subject,
                          rating_keys, quantities, counted_values, received_time, payload)
SELECT 'default', payer, payer, at, sipHash128(seed), '/gateways/eu-1', lower(hex(sipHash128('id', seed))) AS name,
       'llm', payer, fed, arrayMap(n -> toDecimal128([{IN}, {OUT}, 1][n], 12), arrayEnumerate(fed)), ['', '', ''],
       at + toIntervalSecond(2),
       concat('{{"specversion":"1.0","id":"', name, '","source":"/gateways/eu-1","type":"llm","subject":"', payer,
              '","time":"', replaceOne(toString(at), ' ', 'T'), 'Z","data":{{"model":"', model,
              '","input_tokens":{IN},"output_tokens":{OUT},"latency_ms":', toString(cityHash64(seed) % 30000),
              ',"region":"eu","finish_reason":"stop","api_key":"key-', toString(cityHash64(seed) % 10000000), '"}}}}')
FROM (
    SELECT payer, model, fed, concat(payer, '/', toString({{start:Int64}}), '/', toString(number)) AS seed,
           fromUnixTimestamp64Micro({{start:Int64}} * 1000000 + intDiv(3600000000, {{per_hour:UInt64}}) * number
                                    + cityHash64(seed) % intDiv(3600000000, {{per_hour:UInt64}}), 'UTC') AS at
    FROM (
        SELECT keys.billing_account_id::String AS payer, models.model AS model,
               arraySort(groupArray((meter_id::String, rating_key_id))).2 AS fed
        FROM rating_keys AS keys CROSS JOIN (SELECT arrayJoin(['large', 'small']) AS model) AS models
        WHERE keys.dimensions['model'] IN ('', models.model) GROUP BY payer, model
    ) AS fed
    CROSS JOIN numbers({{per_hour:UInt64}} * 24) AS numbers
    WHERE (number % 2 ? 'small' : 'large') = model
)
"""
_LINE_ITEMS = f"""
INSERT INTO line_items
SELECT tenant_id, billing_account_id, period_start, period_end, subscription_id, charge_id, meter_id, rate_card_version,
       dimensions, rating_key_id, start, start + toIntervalHour(1), billing_account_id,
       concat('li_', substring(lower(hex(xxh3_128(concat(
           rating_key, '\\0', billing_account_id, '\\0', toString(toUnixTimestamp(start)))))), 1, 24)),
       place * units, (place + 1) * units, units * price AS amount, 'USD', [1], [units], [price], [0], [amount], events,
       0, events * (place + 1)
FROM (
    SELECT *, number AS place, toDateTime(period_start, 'UTC') + toIntervalHour(place) AS start,
           toUInt64({{per_hour:UInt64}} / (meter_id = 'requests' ? 1 : 2)) AS events,
           toDecimal128(events * multiIf(meter_id = 'input_tokens', {IN}, meter_id = 'output_tokens', {OUT}, 1), 12)
               AS units,
           toDecimal128(
               multiIf(meter_id = 'input_tokens', '0.0000025', meter_id = 'output_tokens', '0.00001', '0.0001'), 18
           ) AS price
    FROM rating_keys CROSS JOIN numbers({{first:UInt64}}, 24) AS numbers
)
"""


def fill(url: str, payers: list[str], per_hour: int) -> None:
    """Make the tables and their rows: what rating the events would store."""
    clickhouse.migrate(url)
    with_models = [(meter, (("model", name),)) for meter in ("input_tokens", "output_tokens") for name in MODELS]
    keys = [
        RatingKey("default", payer, f"{payer}-list", meter, meter, "v1", START, END, dimensions)
        for payer in payers
        for meter, dimensions in [*with_models, ("requests", ())]
    ]
    clickhouse.insert(
        url, "rating_keys", pa.table({"rating_key": [key.text for key in keys]} | write.key_columns(keys))
    )
    for day in range(DAYS):
        start = int(START.timestamp()) + day * 86_400
        clickhouse.command(url, _EVENTS, {"start": start, "per_hour": per_hour})
        clickhouse.command(url, _LINE_ITEMS, {"first": day * 24, "per_hour": per_hour})
    rows = clickhouse.query(
        url, "SELECT (SELECT count() FROM line_items) AS line_items, (SELECT count() FROM usage_events) AS events"
    ).to_pylist()[0]
    expected = {"line_items": len(keys) * HOURS, "events": len(payers) * HOURS * per_hour}
    if rows != expected:
        sys.exit(f"the tables are wrong: expected {expected}, got {rows}")


def due(prices: dict[str, Any], per_hour: int) -> dict[str, Decimal]:
    """What a payer's charges come to, exact, by hand; of latencies, which differ, nothing is said."""
    half, hours = HOURS * per_hour // 2, Decimal(1)
    tokens_in, tokens_out = half * IN * hours, half * OUT * hours
    found = {
        "input_tokens": 2 * tokens_in * Decimal("0.0000025"),
        "output_tokens": 2 * tokens_out * Decimal("0.00001"),
        "requests": 2 * half * Decimal("0.0001"),
    }
    if prices.get("output_tokens") is _BY_MODEL:
        found["input_tokens"] = 2 * max(tokens_in - 200_000, Decimal(0)) * Decimal("0.000003")
        found["output_tokens"] = tokens_out * Decimal("0.000025")
    if prices.get("input_tokens") is _BANDS:
        # October 2026 begins on a Thursday: 22 days from Monday to Friday, of 10 hours each.
        office = 220 * per_hour * IN
        rest = 2 * tokens_in - office
        found["input_tokens"] = office * Decimal("0.000003") + rest * Decimal("0.000002")
    return found


# --- the figures ----------------------------------------------------------------------------------


def measure(url: str, today: Path, new: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Cost of the command as a whole, its process from start to end, and what it says."""
    words = ["simulate", "--catalog", new, "--today", today, "--period", "2026-10", "--clickhouse", url, "--json"]
    command = [sys.executable, "-m", "meterline.runners.cli", *map(str, words)]
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said)
        _, status, used = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{' '.join(map(str, words))} ended with {status}")
        said.seek(0)
        found = json.load(said)
    cost = {
        "wall_seconds": time.perf_counter() - began,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "memory_bytes": used.ru_maxrss * 1024,
    }
    return cost, found


def check(found: dict[str, Any], name: str, payers: int, per_hour: int, events: int) -> None:
    wrong = []
    if found["recorded_events"] != events or found["would_be_rejected"] or found["refused_rating_keys"]:
        wrong.append(f"{found['recorded_events']:,} events were read of {events:,}")
    if len(found["accounts"]) != payers:
        wrong.append(f"{len(found['accounts']):,} accounts of {payers:,}")
    for side, prices in (("today", TODAY), ("new", NEW[name])):
        exact = due(prices, per_hour)
        for account in found["accounts"]:
            for charge in account["charges"]:
                expected = exact.get(charge["charge"])
                # Each rating key is rounded for itself, and a charge has up to four.
                if expected is not None and abs(Decimal(charge[side]) - expected) > Decimal("0.02"):
                    wrong.append(f"{account['account']} {charge['charge']} {side}: {charge[side]}, expected {expected}")
    if name == "the catalog of today" and any(Decimal(one["difference"]) for one in found["accounts"]):
        wrong.append("the catalog of today makes a difference")
    if wrong:
        sys.exit(f"{name}: what is said is wrong:\n  " + "\n  ".join(wrong[:5]))


def show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = (
        f"{report['line_items']:,} line items of a month, {report['events']:,} events, {report['payers']:,} accounts"
    )
    made = Table("the new catalog has", *("CPU s", "wall s", "memory MB"), title=title)
    for name, cost in report["costs"].items():
        figures = (f"{cost['cpu_seconds']:.1f}", f"{cost['wall_seconds']:.1f}", f"{cost['memory_bytes'] / 1e6:,.0f}")
        made.add_row(name, *figures)
    Console(width=None if sys.stdout.isatty() else 110).print(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--payers", type=int, default=2_700, help="each has 3,720 line items (default: %(default)s)")
    parser.add_argument("--per-hour", type=int, default=8, help="events of a payer in an hour (default: %(default)s)")
    parser.add_argument("--only", default="", help="catalogs whose name contains this")
    parser.add_argument("--keep", type=Path, help="a folder for the database, to ask it again")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    assert options.per_hour % 2 == 0, "events are of two models"
    folder = options.keep or Path(tempfile.mkdtemp(prefix="meterline-simulate-"))
    url = f"chdb://{folder / 'db'}"
    payers = [f"account-{number:05}" for number in range(options.payers)]
    try:
        if not (folder / "filled").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            began = time.perf_counter()
            in_child(fill, url, payers, options.per_hour)
            (folder / "filled").touch()
            print(f"filled in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        shutil.rmtree(folder / "catalogs", ignore_errors=True)
        costs = {}
        for number, (name, prices) in enumerate(NEW.items()):
            write_catalog(folder / "catalogs" / str(number), payers, prices)
            if options.only in name:
                cost, found = measure(url, folder / "catalogs" / "0", folder / "catalogs" / str(number))
                events = len(payers) * HOURS * options.per_hour
                check(found, name, len(payers), options.per_hour, events)
                costs[name] = cost
                print(f"{name}: {cost['wall_seconds']:.0f} s", file=sys.stderr)
        report = {
            "payers": len(payers),
            "line_items": len(payers) * 5 * HOURS,
            "events": len(payers) * HOURS * options.per_hour,
            "costs": costs,
        }
        show(report)
        if options.json:
            options.json.write_text(json.dumps(report, indent=2) + "\n")
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
