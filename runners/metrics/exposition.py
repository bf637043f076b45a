"""What is exposed under which name, and Prometheus's text format.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/, «Text-based format», version 0.0.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# By name: its type, and what it says. Counts of the stored are gauges: a retention or a later --days lowers them.
FAMILIES: dict[str, tuple[str, str]] = {
    "meterline_clickhouse_up": ("gauge", "1 if ClickHouse answered."),
    "meterline_accepted_events": ("gauge", "Archived events whose time is in the days looked at."),
    "meterline_newest_event_age_seconds": ("gauge", "Since the newest archived event was received."),
    "meterline_counts": (
        "gauge",
        "Archived events, once for each meter they feed, and those that line items count or left out as voided.",
    ),
    "meterline_conservation_difference": (
        "gauge",
        "By how many events archive and line items differ, cell by cell, but for cells that got an event just now. "
        "It must be 0.",
    ),
    "meterline_line_items": ("gauge", "Line items of the billing periods that start in the days looked at."),
    "meterline_rejects": ("gauge", "Stored rejects."),
    "meterline_runs": ("gauge", "Runs by whether they finished; a stream that runs has not."),
    "meterline_last_run_age_seconds": ("gauge", "Since the last run began."),
    "meterline_run_records_total": (
        "counter",
        "Records of all finished runs by what became of them. Runs without end, on Flink, count in Flink.",
    ),
    "meterline_lease_holders": ("gauge", "Claims of a job on the database that have not ended; more than 1 cannot be."),
    "meterline_lease_age_seconds": ("gauge", "Since the holder of a lease took it."),
    "meterline_lease_remaining_seconds": ("gauge", "Until a lease ends, if it is not renewed."),
    "meterline_flink_up": ("gauge", "1 if Flink's REST API answered."),
    "meterline_flink_job_running": ("gauge", "1 if a job that has not ended is RUNNING."),
    "meterline_flink_restarts_total": ("counter", "How often a job was restarted."),
    "meterline_flink_failed_checkpoints_total": ("counter", "Checkpoints of a job that failed."),
    "meterline_flink_checkpoint_age_seconds": (
        "gauge",
        "Since the latest completed checkpoint of a job began; before the first one, since the job did.",
    ),
    "meterline_flink_watermark_lag_seconds": ("gauge", "How far the watermark of a job's slowest step is behind now."),
}


class Sample(NamedTuple):
    """A number under one of the names of `FAMILIES`."""

    name: str
    value: float
    labels: Mapping[str, str] = MappingProxyType({})

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "labels": dict(self.labels), "value": self.value}


def text(samples: Iterable[Sample]) -> str:
    """The samples in Prometheus's text format, each family with its help and type."""
    by_name: dict[str, list[Sample]] = {name: [] for name in FAMILIES}
    for one in samples:
        by_name[one.name].append(one)
    return "".join(f"{line}\n" for name, found in by_name.items() if found for line in _family(name, found))


def _family(name: str, samples: list[Sample]) -> Iterator[str]:
    kind, help = FAMILIES[name]
    yield f"# HELP {name} {_escaped(help)}"
    yield f"# TYPE {name} {kind}"
    for one in samples:
        labels = ",".join(f'{label}="{_escaped(value, quotes=True)}"' for label, value in one.labels.items())
        yield f"{name}{{{labels}}} {one.value}" if labels else f"{name} {one.value}"


def _escaped(value: str, quotes: bool = False) -> str:
    value = value.replace("\\", r"\\").replace("\n", r"\n")
    return value.replace('"', r"\"") if quotes else value
