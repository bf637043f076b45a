"""How long `meterline explain` takes among 10 million line items. See README.md."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
from children import in_child

from meterline.runners.explain import NotFound, explain
from meterline.schemas.records import RatingKey
from meterline.transforms import clickhouse, write

MONTHS = [datetime(2026, number, 1, tzinfo=UTC) for number in (1, 2, 3, 4)]
HUGE_ACCOUNTS = 100
WIDE_METERS = 40
BUSY_EVENTS = 1_000_000
# How the parts of a partition lie: as large as merges leave them, then small ones. Days of a month, hours of a day.
DAYS = [(0, 12), (12, 24), (24, 27), (27, 29), (29, 31)]
HOURS = [(0, 20), (20, 22), (22, 23), (23, 24)]

# --- the database ---------------------------------------------------------------------------------


def rating_keys(payers: list[str]) -> list[RatingKey]:
    """Five for each payer and month: tokens in and out of two models, and requests; `wide` has many meters."""
    models = [(("model", name),) for name in ("large", "small")]
    usual = [(meter, model) for meter in ("input_tokens", "output_tokens") for model in models] + [("requests", ())]
    meters = {"wide": [(f"meter-{number:02}", ()) for number in range(WIDE_METERS)]}
    return [
        RatingKey("default", payer, f"{payer}-plan", meter, meter, "v1", start, end, dimensions)
        for payer in payers
        for start, end in pairwise(MONTHS)
        for meter, dimensions in meters.get(payer, usual)
    ]


# Each payer is its own account, but for one that pays for many. `busy` has one hour only, with many events.
_ACCOUNTS = f"""
SELECT payer, arrayJoin(payer = 'huge' ? arrayMap(n -> concat('huge-', leftPad(toString(n), 3, '0')),
                                                  range({HUGE_ACCOUNTS})) : [payer]) AS account
FROM (SELECT DISTINCT billing_account_id::String AS payer FROM rating_keys
      WHERE billing_account_id = 'busy' ? {{only:String}} = 'busy' : {{only:String}} = '')
"""
# An account has 8 events an hour, 4 of each model. An event has 100 tokens in and 10 out, or 1 for each of many meters.
_EVENTS = f"""
INSERT INTO usage_events (tenant_id, billing_account_id, account_id, time, identity, source, id, type, subject,
                          rating_keys, quantities, counted_values, received_time, payload)
SELECT 'default', payer, account, at, sipHash128(seed), number % 3 ? '/gateways/eu-1' : '/gateways/us-1' AS from,
       lower(hex(sipHash128('id', seed))) AS name, 'com.example.llm.request.v1', account, fed,
       arrayMap(n -> toDecimal128(length(fed) > 3 ? 1 : [100, 10, 1][n], 12), arrayEnumerate(fed)),
       arrayMap(n -> '', fed), at + toIntervalSecond(2),
       concat('{{"specversion":"1.0","id":"', name, '","source":"', from, '","type":"com.example.llm.request.v1",',
              '"subject":"', account, '","time":"', toString(at), 'Z","data":{{"input_tokens":100,',
              '"output_tokens":10}}}}')
FROM (
    SELECT payer, account, number, concat(account, '/', toString({{start:Int64}}), '/', toString(number)) AS seed,
           number % 2 ? small : large AS fed,
           fromUnixTimestamp64Micro({{start:Int64}} * 1000000 + intDiv(3600000000, {{per_hour:UInt64}}) * number
                                    + cityHash64(seed) % intDiv(3600000000, {{per_hour:UInt64}}), 'UTC') AS at
    FROM ({_ACCOUNTS}) AS accounts
    CROSS JOIN numbers({{per_hour:UInt64}} * {{hours:UInt64}}) AS numbers
    INNER JOIN (
        SELECT billing_account_id, groupArrayIf(rating_key_id, dimensions['model'] != 'small') AS large,
               groupArrayIf(rating_key_id, dimensions['model'] != 'large') AS small
        FROM (SELECT * FROM rating_keys ORDER BY meter_id)
        WHERE period_start = toStartOfMonth(toDateTime({{start:Int64}}, 'UTC')) GROUP BY billing_account_id
    ) AS keys ON keys.billing_account_id = payer
)
"""
_LINE_ITEMS = f"""
INSERT INTO line_items
SELECT tenant_id, billing_account_id, period_start, period_end, subscription_id, charge_id, meter_id, rate_card_version,
       dimensions, rating_key_id, start, start + toIntervalHour(1), account,
       concat('li_', substring(lower(hex(xxh3_128(concat(
           rating_key, '\\0', account, '\\0', toString(toUnixTimestamp(start)))))), 1, 24)),
       place * units, (place + 1) * units, units * 0.0000025::Decimal(38, 18), 'USD',
       [1, 2], [units - 1, 1], [0.0000025, 0.0000025], [0, 0], [(units - 1) * 0.0000025::Decimal(38, 18), 0.0000025],
       events, 0, events * (place + 1)
FROM (
    SELECT *, toDateTime(period_start, 'UTC') + toIntervalHour(hours.number) AS start,
           toUInt64(multiIf(payer = 'busy', {BUSY_EVENTS} / 2, payer = 'wide', 8, 4)
                    * (meter_id = 'requests' ? 2 : 1)) AS events,
           multiIf(meter_id = 'input_tokens', 100, meter_id = 'output_tokens', 10, 1) AS units_of_event,
           toDecimal128(events * units_of_event, 12) AS units,
           payer = 'huge' ? hours.number * {HUGE_ACCOUNTS} + toUInt64(substring(account, 6)) : hours.number AS place
    FROM (SELECT * FROM rating_keys WHERE period_start = {{month:DateTime('UTC')}}) AS keys
    INNER JOIN ({_ACCOUNTS}) AS accounts ON payer = keys.billing_account_id
    CROSS JOIN numbers({{first:UInt64}}, {{count:UInt64}}) AS hours
)
WHERE start < period_end
"""
# A first invoice for each payer and period, a second one for some that takes some back, and drafts that were replaced.
_HEADS = """
SELECT 'inv_' || substring(lower(hex(sipHash128(payer, month, attempt))), 1, 24) AS invoice_id, payer, month, attempt,
       attempt <= 2 ? attempt : 1 AS sequence
FROM (SELECT DISTINCT billing_account_id::String AS payer, period_start AS month FROM rating_keys) AS payers
CROSS JOIN (SELECT toUInt32(number + 1) AS attempt FROM numbers(5)) AS attempts
WHERE attempt != 2 OR cityHash64(payer, month) % 10 = 0
"""
_LINES = f"""
INSERT INTO invoice_lines
SELECT invoice_id, row_number() OVER (PARTITION BY invoice_id ORDER BY charge_id, rating_key_id, account_id),
       'il_' || substring(lower(hex(sipHash128(invoice_id, rating_key_id, account_id))), 1, 24), 'default', payer,
       account_id, subscription_id, charge_id, meter_id, 'v1', rating_key_id, dimensions, month, period_end, charge_id,
       '', attempt = 2 ? 0 : units, attempt = 2 ? total - round(total, 2) - 0.01 : total AS due,
       attempt = 2 ? -0.01 : round(due, 2), 'USD', attempt = 2 ? 'correction' : 'usage'
FROM (
    SELECT billing_account_id, period_start, any(period_end) AS period_end, account_id, rating_key_id,
           any(subscription_id) AS subscription_id, any(charge_id) AS charge_id, any(meter_id) AS meter_id,
           any(dimensions) AS dimensions, sum(quantity_to - quantity_from) AS units,
           sum(amount)::Decimal(76, 18) AS total
    FROM line_items WHERE period_start = {{month:DateTime('UTC')}}
    GROUP BY billing_account_id, period_start, account_id, rating_key_id
) AS items
INNER JOIN ({_HEADS}) AS heads ON payer = billing_account_id AND month = period_start
WHERE attempt != 2 OR meter_id = 'requests'
"""
_INVOICES = f"""
INSERT INTO invoices
SELECT invoice_id, concat(payer, '-', formatDateTime(month, '%Y-%m'), '-USD-', toString(sequence)), 'issued',
       sequence = 1 ? 'invoice' : 'credit_note', 'default', payer, formatDateTime(month, '%Y-%m'), sequence, 'USD',
       total, '', sequence = 1 ? '' : concat(payer, '-', formatDateTime(month, '%Y-%m'), '-USD-1'),
       month + toIntervalDay(32), 18446744073709551615
FROM ({_HEADS}) AS heads
INNER JOIN (SELECT invoice_id, sum(amount) AS total FROM invoice_lines GROUP BY invoice_id) AS lines USING (invoice_id)
WHERE attempt = sequence
"""
_VOIDS = """
INSERT INTO voids
SELECT tenant_id, time, source, id, 'sent by a test', concat('void-', id), received_time
FROM usage_events WHERE cityHash64(id) % 10000 = 0
"""
_REJECTS = """
INSERT INTO rejects
SELECT 'rej_' || substring(lower(hex(sipHash128(number))), 1, 24), 'validate',
       number % 2 ? 'malformed' : 'bad_quantity', 'expected a number',
       concat('{"specversion":"1.0","id":"', lower(hex(sipHash128('reject', number))), '","source":"/gateways/eu-1",',
              '"type":"com.example.llm.request.v1","subject":"account-', toString(number % 1000),
              '","data":{"input_tokens":-5,"output_tokens":', toString(cityHash64(number)), '}}'),
       'usage.ndjson', number, toDateTime64('2026-01-01 00:00:00', 6, 'UTC') + toIntervalSecond(number * 60)
FROM numbers({rejects:UInt64})
"""


def fill(url: str, payers: int, rejects: int) -> None:
    """Make the tables and their rows; the same rows and parts each time."""
    clickhouse.migrate(url)
    for table in ("usage_events", "line_items", "invoice_lines", "invoices"):
        # Parts stay as they are inserted: how many there are does not depend on when one looks.
        clickhouse.command(url, f"ALTER TABLE {table} MODIFY SETTING max_bytes_to_merge_at_max_space_in_pool = 1")
    names = [f"account-{number:04}" for number in range(payers)] + ["huge", "wide", "busy"]
    keys = rating_keys(names)
    texts = {"rating_key": [key.text for key in keys]}
    columns = write.key_columns(keys)
    clickhouse.insert(url, "rating_keys", pa.table(texts | columns))
    first_hour = {"start": int(MONTHS[0].timestamp()), "per_hour": BUSY_EVENTS, "hours": 1, "only": "busy"}
    clickhouse.command(url, _EVENTS, first_hour)
    clickhouse.command(url, _LINE_ITEMS, {"month": MONTHS[0], "first": 0, "count": 1, "only": "busy"})
    for month, end in pairwise(MONTHS):
        for first, last in DAYS:
            about = {"month": month, "first": first * 24, "count": (last - first) * 24, "only": ""}
            clickhouse.command(url, _LINE_ITEMS, about)
        clickhouse.command(url, _LINES, {"month": month})
        for day in range((end - month).days):
            for first, last in HOURS:
                start = int(month.timestamp()) + (day * 24 + first) * 3600
                about = {"start": start, "per_hour": 8, "hours": last - first, "only": ""}
                clickhouse.command(url, _EVENTS, about)
        print(f"{month:%Y-%m} is filled", file=sys.stderr)
    for sql in (_INVOICES, _VOIDS):
        clickhouse.command(url, sql)
    clickhouse.command(url, _REJECTS, {"rejects": rejects})


# --- the questions --------------------------------------------------------------------------------


def questions(url: str, each: int) -> dict[str, list[str]]:
    """Ids to ask for, by the kind of question; spread over accounts and periods, the same each time."""

    def ids(column: str, table: str, where: str) -> list[str]:
        sql = f"SELECT DISTINCT {column} AS id FROM {table} WHERE {where} ORDER BY cityHash64(id, 1) LIMIT {each}"
        return [row["id"] for row in clickhouse.query(url, sql).to_pylist()]

    usual = "billing_account_id NOT IN ('huge', 'wide', 'busy')"
    huge, busy = (f"billing_account_id = '{payer}'" for payer in ("huge", "busy"))
    issued = "invoice_id IN (SELECT invoice_id FROM invoices)"
    events = f"{usual} AND cityHash64(id) % 20000 = 7"
    return {
        "invoice by number": ids("number", "invoices", usual),
        "invoice by id": ids("invoice_id", "invoices", usual),
        "invoice line": ids("invoice_line_id", "invoice_lines", f"{usual} AND {issued}"),
        "line item": ids("line_item_id", "line_items", f"{usual} AND cityHash64(line_item_id) % 10000 = 7"),
        "event by id": ids("id", "usage_events", events),
        "event by SOURCE#ID": ids("concat(source, '#', id)", "usage_events", events),
        "voided event": ids("id", "voids", "1"),
        f"event of {WIDE_METERS} meters": ids("id", "usage_events", "billing_account_id = 'wide'"),
        f"invoice of {HUGE_ACCOUNTS * 5} lines": ids("number", "invoices", huge),
        "line of that invoice": ids("invoice_line_id", "invoice_lines", f"{huge} AND {issued}"),
        "line item of that account": ids(
            "line_item_id", "line_items", f"{huge} AND cityHash64(line_item_id) % 999 = 7"
        ),
        "event of that account": ids("id", "usage_events", f"{huge} AND cityHash64(id) % 9999 = 7"),
        f"line item of {BUSY_EVENTS:,} events": ids("line_item_id", "line_items", busy),
        f"line of {BUSY_EVENTS:,} events": ids("invoice_line_id", "invoice_lines", f"{busy} AND {issued}"),
        "unknown event": [f"no-such-event-{number}" for number in range(each)],
        "unknown line item": [f"li_{number:024x}" for number in range(each)],
        "unknown invoice": [f"account-{number:04}-2027-01-USD-1" for number in range(each)],
    }


@contextmanager
def counted(url: str) -> Iterator[list[str]]:
    """The statements that are sent while it is open."""
    client = clickhouse.connect(url)
    sent: list[str] = []
    originals = {name: getattr(client, name) for name in ("query", "query_arrow", "command")}
    depth = 0

    def counting(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(sql: str, *others: Any, **more: Any) -> Any:
            nonlocal depth
            if not depth:
                sent.append(sql)
            depth += 1
            try:
                return original(sql, *others, **more)
            finally:
                depth -= 1

        return call

    for name, original in originals.items():
        setattr(client, name, counting(original))
    try:
        yield sent
    finally:
        for name in originals:
            delattr(client, name)


def ask(url: str, id: str) -> tuple[float, float]:
    """Milliseconds until the answer is there, and of processor time for it."""
    start, cpu = time.perf_counter(), time.process_time()
    with suppress(NotFound):
        explain(url, id, None)
    return (time.perf_counter() - start) * 1e3, (time.process_time() - cpu) * 1e3


def measure(url: str, asked: dict[str, list[str]], times_each: int) -> dict[str, dict[str, float]]:
    # What ClickHouse remembers of the same question would be no measure; of some kinds there are but a few ids.
    clickhouse.SETTINGS["use_query_condition_cache"] = 0
    for ids in asked.values():  # What a process does once, and indexes that ClickHouse keeps in memory.
        ask(url, ids[-1])
    figures = {}
    for kind, ids in asked.items():
        with counted(url) as sent:
            ask(url, ids[-1])
        measured = [ask(url, id) for _ in range(-(-times_each // len(ids))) for id in ids]
        times = sorted(wall for wall, _ in measured)
        figures[kind] = {
            "queries": len(sent),
            "min ms": times[0],
            "p50 ms": statistics.median(times),
            "p95 ms": times[int(len(times) * 0.95)],
            "max ms": times[-1],
            "CPU ms": statistics.median(cpu for _, cpu in measured),
        }
    return figures


def command(url: str, id: str, runs: int = 5) -> float:
    """Seconds of the command as a whole, its process from start to end."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        called = [sys.executable, "-m", "meterline.runners.cli", "explain", id, "--clickhouse", url]
        subprocess.run(called, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def size(url: str) -> dict[str, dict[str, int]]:
    sql = (
        "SELECT table, sum(rows) AS rows, count() AS parts, uniq(partition) AS partitions, sum(bytes_on_disk) AS bytes "
        "FROM system.parts WHERE active AND database = currentDatabase() GROUP BY table ORDER BY table"
    )
    return {row.pop("table"): row for row in clickhouse.query(url, sql).to_pylist()}


def show(tables: dict[str, dict[str, int]], figures: dict[str, dict[str, float]], whole: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 110)
    made = Table("table", *(f"{name}" for name in ("rows", "parts", "partitions", "MB")))
    for name, row in tables.items():
        made.add_row(name, *(f"{row[one]:,}" for one in ("rows", "parts", "partitions")), f"{row['bytes'] / 1e6:,.0f}")
    console.print(made)
    made = Table("question", *(("queries", "min ms", "p50 ms", "p95 ms", "max ms", "CPU ms")))
    for name, row in figures.items():
        made.add_row(name, *(f"{value:,.0f}" for value in row.values()))
    console.print(made)
    for name, seconds in whole.items():
        console.print(f"the command as a whole, {name}: {seconds:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--payers", type=int, default=822, help="each has 10,800 line items (default: %(default)s)")
    parser.add_argument("--rejects", type=int, default=100_000, help="(default: %(default)s)")
    parser.add_argument("--questions", type=int, default=40, help="of each kind (default: %(default)s)")
    parser.add_argument("--only", default="", help="kinds of questions that contain this")
    parser.add_argument("--keep", type=Path, help="a folder for the database, to ask it again")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="meterline-explain-"))
    url = f"chdb://{folder / 'db'}"
    try:
        if not (folder / "filled").exists():
            shutil.rmtree(folder / "db", ignore_errors=True)
            folder.mkdir(exist_ok=True)
            start = time.perf_counter()
            in_child(fill, url, options.payers, options.rejects)
            (folder / "filled").touch()
            print(f"filled in {time.perf_counter() - start:.0f} s", file=sys.stderr)
        asked = {k: ids for k, ids in in_child(questions, url, options.questions).items() if options.only in k}
        whole = {kind: command(url, asked[kind][0]) for kind in ("invoice by number", "event by id") if kind in asked}
        figures = measure(url, asked, options.questions)
        tables = size(url)
        show(tables, figures, whole)
        if options.json:
            options.json.write_text(json.dumps({"tables": tables, "ms": figures, "command s": whole}, indent=2) + "\n")
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
