"""What `meterline clickhouse serve` costs beside the embedded database itself. See README.md."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

ROWS = 100_000
WORK = f"SELECT count(), sum(cityHash64(number)) FROM numbers({300 * ROWS})"


def measured(url: str, repeats: int) -> dict[str, float]:
    """Median seconds of each kind of work."""
    from meterline.transforms import clickhouse

    client = clickhouse.connect(url)
    client.command(
        "CREATE OR REPLACE TABLE served (a UInt64, s String, d Decimal(38, 18)) ENGINE = MergeTree ORDER BY a"
    )
    amounts = pa.array(range(ROWS), pa.int64()).cast(pa.decimal128(38, 18))
    rows = pa.table({"a": pa.array(range(ROWS), pa.uint64()), "s": [f"event-{n}" for n in range(ROWS)], "d": amounts})
    work: dict[str, tuple[Callable[[], object], int]] = {
        "SELECT 1": (lambda: client.command("SELECT 1"), repeats * 10),
        f"insert {ROWS:,} rows": (lambda: clickhouse.insert(url, "served", rows), repeats),
        f"read {ROWS:,} rows": (lambda: clickhouse.query(url, f"SELECT * FROM served LIMIT {ROWS}"), repeats),
        "add up 30 million numbers": (lambda: client.command(WORK), repeats),
    }
    found = {}
    for name, (call, times) in work.items():
        call()
        seconds = []
        for _ in range(times):
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        found[name] = statistics.median(seconds)
    return found


def two_at_once(url: str) -> float:
    """How much longer two clients with the same work take together than one alone; 2 would be one after the other."""
    from meterline.transforms import clickhouse

    def ask() -> None:
        clickhouse._client(url, {"max_threads": 1}).command(WORK)

    def timed(count: int) -> float:
        threads = [threading.Thread(target=ask) for _ in range(count)]
        began = time.perf_counter()
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        return time.perf_counter() - began

    timed(1)
    alone = statistics.median(timed(1) for _ in range(5))
    return statistics.median(timed(2) for _ in range(5)) / alone


def in_a_process(url: str, repeats: int) -> dict[str, float]:
    """The embedded database keeps to one process: each measurement has its own."""
    words = [sys.executable, __file__, "--url", url, "--repeats", str(repeats)]
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.url:
        print(json.dumps(measured(given.url, given.repeats)))
        return
    with tempfile.TemporaryDirectory(prefix="meterline-") as folder:
        direct = in_a_process(f"chdb://{folder}/direct", given.repeats)
        ready = Path(folder, "ready.json")
        words = ["clickhouse", "serve", "--clickhouse", f"chdb://{folder}/served", "--port", "0", "--ready-file", ready]
        server = subprocess.Popen([sys.executable, "-m", "meterline.runners.cli", *map(str, words)])
        try:
            while not ready.exists() and server.poll() is None:
                time.sleep(0.05)
            url = json.loads(ready.read_text())["url"]
            served = in_a_process(url, given.repeats)
            together = two_at_once(url)
        finally:
            server.terminate()
            server.wait()
    print(f"{'':28}{'embedded':>12}{'served':>12}{'difference':>12}{'ratio':>8}")
    for name, seconds in direct.items():
        over = served[name] - seconds
        print(
            f"{name:28}{seconds * 1000:9.2f} ms{served[name] * 1000:9.2f} ms{over * 1000:9.2f} ms"
            f"{served[name] / seconds:7.2f}x"
        )
    print(f"two clients at once take {together:.2f} times as long as one alone")


if __name__ == "__main__":
    main()
