"""Runs the jobs in this process and says what they did."""

from __future__ import annotations

import glob
import importlib.metadata
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from meterline.pipelines import invoice_accounts, rate_usage
from meterline.schemas.arrow import MICROSECONDS
from meterline.schemas.calendars import longest_days
from meterline.schemas.catalog import Catalog
from meterline.schemas.event import EARLIEST_TIME, microseconds
from meterline.schemas.records import RatingKey
from meterline.transforms import clickhouse
from meterline.transforms.archive import Span
from meterline.transforms.lease import held
from meterline.transforms.progress import seen
from meterline.transforms.rules.attribution import Directory, directory
from meterline.transforms.rules.fees import period_label


class InputError(ValueError):
    """What the user gave cannot be used; the text says what came, what was expected and what to do."""


# Of a run that has begun.
NOT_FINISHED = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class RateReport:
    """Where each record of a run went: the conservation law.

    `rejected` is by (stage, reason). A rating key that was rejected (stage `rate`) is no record, and counts apart.
    Where batches were rated each is one of the `runs`, and `run_id` that of the last; empty where none was.
    """

    run_id: str
    received_time: datetime
    inputs: tuple[str, ...]
    records: int
    accepted: int
    duplicates: int
    rejected: dict[tuple[str, str], int]
    rejected_keys: int
    line_items: int
    seconds: float
    runs: int = 1

    @property
    def adds_up(self) -> bool:
        return self.records == self.accepted + self.duplicates + sum(self.rejected.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "run_id": self.run_id or None,
            "runs": self.runs,
            "received_time": self.received_time.isoformat(),
            "inputs": list(self.inputs),
            "records": self.records,
            "accepted": self.accepted,
            "duplicates": self.duplicates,
            "rejected": {f"{stage}/{reason}": count for (stage, reason), count in sorted(self.rejected.items())},
            "rejected_rating_keys": self.rejected_keys,
            "line_items_written": self.line_items,
            "adds_up": self.adds_up,
            "seconds": round(self.seconds, 3),
        }


def find_files(patterns: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """The files that glob patterns name, each once, and their size in bytes.

    Raises:
      InputError: a pattern names no file.
    """
    sizes: dict[str, int] = {}
    for pattern in patterns:
        try:
            if "://" in pattern:
                found = {one.path: one.size_in_bytes for one in FileSystems.match([pattern])[0].metadata_list}
            else:
                names = [name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name)]
                found = {
                    name: os.path.getsize(name) for name in names or ([pattern] if os.path.isfile(pattern) else [])
                }
                for name in found:
                    with open(name, "rb"):
                        pass
        except (BeamIOError, ValueError, OSError) as error:
            raise InputError(f"--input {pattern}: cannot be read: {clickhouse.first_line(error)}") from None
        if not found:
            if os.path.isdir(pattern):
                raise InputError(f"--input {pattern}: no such file (a folder: add /**/* or /*.ndjson)")
            # A pipe could be read once only, and a device has no end.
            what = "no regular file; store its content in one first" if os.path.exists(pattern) else "no such file"
            raise InputError(f"--input {pattern}: {what}")
        for name in found:
            if not name.isascii() and name != name.encode("utf-8", "replace").decode():
                raise InputError(f"--input {pattern}: the name {name!r} is not UTF-8; rename the file")
        sizes |= found
    return tuple(sorted(sizes)), sum(sizes.values())


def rate_files(
    patterns: Sequence[str],
    catalog: Catalog,
    url: str,
    *,
    now: datetime,
    horizon: timedelta | None = None,
    console: Console | None = None,
    recorded_as: tuple[str, ...] | None = None,
) -> RateReport:
    """Rate files of usage events into a database.

    Args:
      now: When the files count as received; recorded with the run.
      horizon: Oldest accepted age of an event; none for no bound.
      console: Where progress is shown; none for nowhere.
      recorded_as: What the log of runs calls the input; none for the files' names.
    """
    paths, size = find_files(patterns)
    clickhouse.ready(url)
    with held(url, "rate_usage") as lease, _display(console, size):
        options = rate_usage.Options(
            paths, catalog, url, microseconds(now), horizon, has_archive=has_archive(url), run_id=lease.holder
        )
        return rate_batch(options, catalog, recorded_as or paths, now)


def check_retention(url: str, catalog: Catalog) -> None:
    """Refuse a catalog with billing periods that are longer than the archive is kept: they could not be rated right.

    Raises:
      InputError: the retention of the archive is too short for a cycle.
    """
    longest = max((one.cycle for one in catalog.subscriptions), key=longest_days, default="monthly")
    # Any retention is long enough for months, and a database that was never used has none.
    if longest_days(longest) <= longest_days("monthly"):
        return
    clickhouse.ready(url)
    days, needed = clickhouse.retention_days(url), clickhouse.min_retention_days(longest)
    if days and days < needed:
        raise InputError(
            f"the catalog has billing periods that are {longest}, and archived events are kept for {days} days, "
            f"expected at least {needed}: late usage is rated together with the archived events of its billing "
            f"period. Keep them longer: meterline migrate --retention-days {needed}"
        )


def has_archive(url: str) -> bool:
    """Whether earlier runs archived something; the caller holds the lease, or an earlier run may still do so."""
    return clickhouse.query(url, "SELECT 1 FROM usage_events LIMIT 1").num_rows > 0


_START = """
SELECT toUnixTimestamp64Milli(greatest(now64(3), (SELECT max(started_at) FROM runs) + INTERVAL 1 MILLISECOND)) AS start
"""


def next_start(url: str) -> datetime:
    """When a run begins that begins now: by the database's clock, and after all others, as the last one may write."""
    milliseconds = clickhouse.query(url, _START)["start"][0].as_py()
    return EARLIEST_TIME + timedelta(milliseconds=milliseconds)


def rate_batch(
    options: rate_usage.Options, catalog: Catalog, recorded_as: tuple[str, ...], now: datetime
) -> RateReport:
    """Run the job over input that has an end, in this process, and log it; the caller holds the lease."""
    from meterline.runners import direct

    started, began = next_start(options.clickhouse), time.monotonic()
    begun = report_of(options.run_id, {}, recorded_as, now, 0)
    clickhouse.insert(options.clickhouse, "runs", run_row(begun, started, NOT_FINISHED, catalog))
    counters = direct.run(lambda pipeline: rate_usage.build(pipeline, options))
    seconds = time.monotonic() - began
    report = report_of(options.run_id, counters, recorded_as, now, seconds)
    clickhouse.insert(
        options.clickhouse, "runs", run_row(report, started, started + timedelta(seconds=seconds), catalog)
    )
    return report


def rerate_archive(period: str, catalog: Catalog, url: str, *, console: Console | None = None) -> tuple[int, int]:
    """Recompute the line items of a billing period from its archive; how many events were read and rows written.

    Args:
      period: A label like 2026-10: usage whose billing period starts in that month of its calendar, unpriced usage too.
    """
    from meterline.runners import direct

    clickhouse.ready(url)
    book = directory(catalog)
    texts = clickhouse.query(url, "SELECT DISTINCT rating_key FROM rating_keys").column("rating_key").to_pylist()
    keys = [key for key in map(RatingKey.parse, texts) if _label(key, book) == period]
    spans = {
        Span(key.tenant_id, key.billing_account_id, int(key.period_start.timestamp()), int(key.period_end.timestamp()))
        for key in keys
    }
    if not spans:
        return 0, 0
    options = rate_usage.Options((), catalog, url, 0)
    with held(url, "rate_usage"), _display(console, 0):
        counters = direct.run(lambda pipeline: rate_usage.rebuild(pipeline, options, sorted(spans)))
    return counters.get("recall/events", 0), counters.get("rate/line_items", 0)


def _label(key: RatingKey, book: Directory) -> str | None:
    return period_label(key, book) if key.subscription_id else f"{key.period_start:%Y-%m}"


def report_of(
    run_id: str, counters: dict[str, int], inputs: tuple[str, ...], now: datetime, seconds: float
) -> RateReport:
    """Where the records of a run went, by the counters of its stages."""
    outcomes = {"records", "accepted", "duplicate", "line_items"}
    rejected = {
        (stage, reason): count
        for (stage, _, reason), count in ((name.partition("/"), count) for name, count in counters.items())
        if reason not in outcomes and stage in ("read", "validate", "attribute", "void", "deduplicate", "rate")
    }
    return RateReport(
        run_id=run_id,
        received_time=now,
        inputs=inputs,
        records=counters.get("validate/records", 0) + counters.get("read/records", 0),
        accepted=counters.get("deduplicate/accepted", 0),
        duplicates=counters.get("deduplicate/duplicate", 0),
        rejected={key: count for key, count in rejected.items() if key[0] != "rate"},
        rejected_keys=sum(count for key, count in rejected.items() if key[0] == "rate"),
        line_items=counters.get("rate/line_items", 0),
        seconds=seconds,
    )


def run_row(report: RateReport, started: datetime, finished: datetime, catalog: Catalog) -> pa.Table:
    milliseconds = pa.timestamp("ms", tz="UTC")
    rejected = [(f"{stage}/{reason}", count) for (stage, reason), count in sorted(report.rejected.items())]
    return pa.table(
        {
            "run_id": [report.run_id],
            "started_at": pa.array([started], milliseconds),
            "finished_at": pa.array([finished], milliseconds),
            "received_time": pa.array([report.received_time], MICROSECONDS),
            "inputs": pa.array([list(report.inputs)], pa.list_(pa.string())),
            "catalog_digest": [catalog.digest],
            "version": [importlib.metadata.version("meterline")],
            "records": pa.array([report.records], pa.uint64()),
            "accepted": pa.array([report.accepted], pa.uint64()),
            "duplicates": pa.array([report.duplicates], pa.uint64()),
            "rejected": pa.array([rejected], pa.map_(pa.string(), pa.uint64())),
            "line_items": pa.array([report.line_items], pa.uint64()),
        }
    )


@contextmanager
def _display(console: Console | None, size: int) -> Iterator[None]:
    """Show what the job has done so far, twice a second, while it runs."""
    if console is None or not console.is_terminal:
        yield
        return
    seen.bytes_read = seen.records = seen.rows_stored = 0
    over = threading.Event()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        reading = progress.add_task("reading", total=max(size, 1), done="")
        storing = progress.add_task("storing", total=None, done="")

        def watch() -> None:
            while not over.wait(0.5):
                progress.update(reading, completed=seen.bytes_read, done=f"{seen.records:,} records")
                progress.update(storing, done=f"{seen.rows_stored:,} rows")

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


@dataclass(frozen=True)
class InvoiceReport:
    """What a run of the invoice job did: how many statements became drafts or invoices, or bill nothing; and why some
    could not be converted to their invoice's currency, so that nothing was made of them."""

    period: str
    drafts: int
    issued: int
    nothing_to_bill: int
    not_ended: int
    not_converted: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def make_invoices(options: invoice_accounts.Options) -> InvoiceReport:
    """Make, or issue, the invoices of a billing period."""
    from meterline.runners import direct

    clickhouse.ready(options.clickhouse)
    with held(options.clickhouse, "invoice_accounts"):
        counters, texts = direct.run_and_tell(lambda pipeline: invoice_accounts.build(pipeline, options))
    count: Callable[[str], int] = lambda name: counters.get(f"invoice/{name}", 0)  # noqa: E731
    counts = count("draft"), count("issued"), count("nothing_to_bill"), count("not_ended")
    return InvoiceReport(options.period, *counts, tuple(sorted(texts.get("invoice/not_converted", ()))))


@dataclass(frozen=True)
class Fingerprint:
    """The whole of what was rated, in a few numbers; two databases with equal ones hold the same line items."""

    line_items: int
    events: int
    amount: Decimal
    content: int


def fingerprint(url: str) -> Fingerprint:
    """Count and hash all line items and archived events."""
    items = clickhouse.query(
        url,
        "SELECT count() AS line_items, sum(toDecimal256(amount, 18)) AS total, "
        "groupBitXor(cityHash64(line_item_id, quantity_from, quantity_to, amount, event_count, revision, "
        "tiers.tier, tiers.quantity, tiers.amount)) AS content FROM line_items FINAL",
    ).to_pylist()[0]
    events = clickhouse.query(url, "SELECT count() AS events FROM usage_events FINAL").to_pylist()[0]["events"]
    return Fingerprint(items["line_items"], events, items["total"], items["content"])
