"""Where the numbers come from: the tables, and Flink's REST API."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from meterline.runners.audit import counts
from meterline.runners.flink.rest import ENDED, Flink
from meterline.runners.metrics.exposition import Sample
from meterline.transforms import clickhouse

# A line item follows its events within a pane and a bundle; this long after, it is missing.
SETTLING = timedelta(minutes=5)
# Both are in the table `leases`.
JOBS = ("rate_usage", "invoice_accounts")

_EVENTS = """
SELECT count() AS events, dateDiff('millisecond', max(received_time), now64(6)) / 1000 AS age
FROM usage_events FINAL WHERE time >= {since:DateTime64(0, 'UTC')}
"""
_ITEMS = "SELECT count() AS items FROM line_items FINAL WHERE period_start >= {since:DateTime64(0, 'UTC')}"
_REJECTS = "SELECT stage, reason, count() AS records FROM rejects FINAL GROUP BY ALL ORDER BY ALL"
_RUNS = """
SELECT countIf(is_over) AS finished, countIf(NOT is_over) AS unfinished, sum(accepted) AS accepted,
       sum(duplicates) AS duplicates, sumMap(rejected) AS rejected,
       dateDiff('millisecond', max(started_at), now64(3)) / 1000 AS age
FROM (SELECT *, toYear(finished_at) > 1970 AS is_over FROM runs FINAL)
"""
_LEASES = """
SELECT name, holder, host, dateDiff('millisecond', started_at, now64(3)) / 1000 AS age,
       dateDiff('millisecond', now64(3), expires_at) / 1000 AS remaining
FROM leases FINAL WHERE expires_at > now64(3) ORDER BY name, started_at, holder
"""


def of_clickhouse(url: str, days: int, now: datetime | None = None) -> Iterator[Sample]:
    """What is stored.

    Args:
      days: Events of the last so many days are counted, and billing periods that began in them. What has to be read
        grows with it.
      now: None for the clock's.

    Raises:
      DatabaseError: ClickHouse cannot be used.
    """
    clickhouse.ready(url)
    now = now or datetime.now(UTC)
    since = {"since": (now - timedelta(days=days)).replace(microsecond=0)}

    def rows(sql: str) -> list[dict[str, Any]]:
        return clickhouse.query(url, sql, since).to_pylist()

    events, runs = rows(_EVENTS)[0], rows(_RUNS)[0]
    yield Sample("meterline_clickhouse_up", 1)
    yield Sample("meterline_accepted_events", events["events"])
    if events["events"]:
        yield Sample("meterline_newest_event_age_seconds", events["age"])
    law = counts(url, since["since"], now - SETTLING)
    yield Sample("meterline_counts", law.archived, {"where": "archive"})
    yield Sample("meterline_counts", law.counted, {"where": "line_items"})
    yield Sample("meterline_conservation_difference", law.difference)
    yield Sample("meterline_line_items", rows(_ITEMS)[0]["items"])
    for row in rows(_REJECTS):
        yield Sample("meterline_rejects", row["records"], {"stage": row["stage"], "reason": row["reason"]})
    yield from _runs(runs)
    leases = rows(_LEASES)
    for job in JOBS:
        yield Sample("meterline_lease_holders", sum(row["name"] == job for row in leases), {"job": job})
    for row in leases:
        labels = {"job": row["name"], "holder": row["holder"], "host": row["host"]}
        yield Sample("meterline_lease_age_seconds", row["age"], labels)
        yield Sample("meterline_lease_remaining_seconds", row["remaining"], labels)


def _runs(row: dict[str, Any]) -> Iterator[Sample]:
    for state in ("finished", "unfinished"):
        yield Sample("meterline_runs", row[state], {"state": state})
    if row["finished"] + row["unfinished"]:
        yield Sample("meterline_last_run_age_seconds", row["age"])

    def records(count: int, outcome: str, stage: str = "", reason: str = "") -> Sample:
        return Sample("meterline_run_records_total", count, {"outcome": outcome, "stage": stage, "reason": reason})

    yield records(row["accepted"], "accepted")
    yield records(row["duplicates"], "duplicate")
    for name, count in sorted(dict(row["rejected"]).items()):
        stage, _, reason = name.partition("/")
        yield records(count, "rejected", stage, reason)


# Of a task that has seen no watermark yet they say one long before 1970, and of one that ended one long after now.
_END = 1 << 52


def of_flink(flink: Flink, now: datetime | None = None) -> Iterator[Sample]:
    """What Flink's REST API says of jobs that have not ended.

    Raises:
      RestError: it does not answer.
    """
    jobs = [job for job in flink.jobs() if job.state not in ENDED]
    yield Sample("meterline_flink_up", 1)
    for job in jobs:
        label = {"job": job.name}
        yield Sample("meterline_flink_job_running", int(job.state == "RUNNING"), label)
        checkpoints = flink.checkpoints(job.id)
        yield Sample("meterline_flink_restarts_total", flink.restarts(job.id), label)
        yield Sample("meterline_flink_failed_checkpoints_total", checkpoints.failed, label)
        now_or_then = now or datetime.now(UTC)
        age = now_or_then - (checkpoints.completed_at or job.started)
        yield Sample("meterline_flink_checkpoint_age_seconds", age.total_seconds(), label)
        watermarks = [one for one in flink.watermarks(job.id) if 0 < one < _END]
        if watermarks:
            lag = now_or_then.timestamp() - min(watermarks) / 1000
            yield Sample("meterline_flink_watermark_lag_seconds", round(lag, 3), label)
