"""`meterline metrics` says what is stored, in Prometheus's format, and the alerts ask for nothing else."""

from __future__ import annotations

import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
import yaml

from meterline.runners import direct
from meterline.runners.demo import RECEIVED, quickstart, usage_lines
from meterline.runners.flink.rest import Flink
from meterline.runners.jobs import RateReport, rate_files
from meterline.runners.metrics import command, exposition, sources
from meterline.runners.metrics.exposition import FAMILIES, Sample
from meterline.schemas.catalog_files import load_catalog
from meterline.transforms import clickhouse
from meterline.transforms.lease import held
from meterline.transforms.write import WITHIN_SECONDS, WriteRows
from tests.command import Command

ROOT = Path(__file__).parent.parent.parent
LATER = RECEIVED + timedelta(days=1)

# --- the text format, read by its rules --------------------------------------------------------------------

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"'
_SAMPLE = re.compile(rf"({_NAME})(?:\{{({_LABEL}(?:,{_LABEL})*)\}})? (-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)")
_HEAD = re.compile(rf"# (HELP|TYPE) ({_NAME}) (.*)")
Key = tuple[str, frozenset[tuple[str, str]]]


def parsed(text: str) -> dict[Key, float]:
    """What a strict reader of the format understands: families in one piece, HELP and TYPE before, no sample twice."""
    assert text.endswith("\n")
    found: dict[Key, float] = {}
    seen: list[str] = []
    heads: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        if head := _HEAD.fullmatch(line):
            what, name, said = head.groups()
            assert name not in seen, line
            assert what not in heads.setdefault(name, {}), line
            assert not re.search(r"\\(?![\\n])", said), line
            heads[name][what] = said
            continue
        sample = _SAMPLE.fullmatch(line)
        assert sample, line
        name = sample[1]
        if not seen or seen[-1] != name:
            assert name not in seen, f"{name} is in two pieces"
            assert heads[name].keys() == {"HELP", "TYPE"}, line
            assert heads[name]["TYPE"] in ("gauge", "counter"), line
            seen.append(name)
        labels = {label: _unescaped(value) for label, value in re.findall(_LABEL, sample[2] or "")}
        key = name, frozenset(labels.items())
        assert key not in found, line
        found[key] = float(sample[7])
    return found


def _unescaped(value: str) -> str:
    return re.sub(r"\\(.)", lambda one: {"n": "\n"}.get(one[1], one[1]), value)


def value(found: dict[Key, float], name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_labels_are_escaped() -> None:
    odd = 'a "quoted"\nline \\n with \\ and {braces},="x"'
    text = exposition.text([Sample("meterline_rejects", 2, {"stage": odd, "reason": "ü"})])
    assert parsed(text) == {("meterline_rejects", frozenset({("stage", odd), ("reason", "ü")})): 2}


def test_each_family_comes_in_one_piece_and_says_its_type() -> None:
    mixed = [Sample(name, place, {"job": "a"}) for place, name in enumerate(FAMILIES)]
    mixed += [Sample(name, 0.5, {"job": "b"}) for name in reversed(FAMILIES)]
    assert len(parsed(exposition.text(mixed))) == 2 * len(FAMILIES)
    for name, (kind, help) in FAMILIES.items():
        assert re.fullmatch(f"meterline_{_NAME}", name), name
        assert (kind == "counter") == name.endswith("_total"), name
        assert help.endswith("."), name


# --- what is stored ---------------------------------------------------------------------------------------


@pytest.fixture
def rated(database: str, tmp_path: Path) -> tuple[str, RateReport]:
    file = tmp_path / "usage.ndjson"
    file.write_bytes(b"\n".join(usage_lines()[:2_000]))
    catalog = load_catalog(quickstart() / "catalog")
    return database, rate_files([str(file)], catalog, database, now=RECEIVED)


def stored(url: str, now: datetime = LATER, days: int = 62) -> dict[Key, float]:
    return parsed(exposition.text(sources.of_clickhouse(url, days, now)))


def test_the_numbers_are_those_of_the_run(rated: tuple[str, RateReport]) -> None:
    url, report = rated
    found = stored(url)
    assert value(found, "meterline_accepted_events") == report.accepted > 0
    assert value(found, "meterline_line_items") == report.line_items
    rejected = sum(report.rejected.values())
    assert rejected == sum(count for (name, _), count in found.items() if name == "meterline_rejects") > 0
    for (stage, reason), count in report.rejected.items():
        assert value(found, "meterline_rejects", stage=stage, reason=reason) == count
        labels = {"outcome": "rejected", "stage": stage, "reason": reason}
        assert value(found, "meterline_run_records_total", **labels) == count
    records = {name: count for (one, name), count in found.items() if one == "meterline_run_records_total"}
    assert sum(records.values()) == report.records
    meters = clickhouse.query(url, "SELECT sum(length(rating_keys)) AS n FROM usage_events FINAL")["n"][0].as_py()
    assert value(found, "meterline_counts", where="archive") == meters > report.accepted
    assert value(found, "meterline_counts", where="line_items") == meters
    assert value(found, "meterline_conservation_difference") == 0
    assert value(found, "meterline_runs", state="finished") == 1
    assert value(found, "meterline_runs", state="unfinished") == 0
    assert 0 <= value(found, "meterline_last_run_age_seconds") < 600
    age = (datetime.now(UTC) - RECEIVED).total_seconds()
    assert value(found, "meterline_newest_event_age_seconds") == pytest.approx(age, abs=600)


ITEM = "SELECT * REPLACE ({}) FROM line_items FINAL WHERE meter_id = 'requests' ORDER BY line_item_id LIMIT 1"
DAMAGE = {
    "a count too high": (f"INSERT INTO line_items {ITEM.format('event_count + 3 AS event_count')}", 3),
    "a count as voided": (f"INSERT INTO line_items {ITEM.format('voided_count + 2 AS voided_count')}", 2),
    "a line item too many": (
        f"INSERT INTO line_items {ITEM.format('window_start - 3600 AS window_start, 5 AS event_count')}",
        5,
    ),
    "a voided event that line items count": (
        "INSERT INTO voids SELECT tenant_id, time, source, id, '', 'v', time FROM usage_events LIMIT 1",
        None,
    ),
}


@pytest.mark.parametrize(("sql", "events"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_shows_as_a_difference(sql: str, events: int | None, rated: tuple[str, RateReport]) -> None:
    url, _ = rated
    assert value(stored(url), "meterline_conservation_difference") == 0
    clickhouse.command(url, sql)
    difference = value(stored(url), "meterline_conservation_difference")
    assert difference == events if events else difference > 0


def test_events_without_line_items_are_a_difference_once_they_are_settled(rated: tuple[str, RateReport]) -> None:
    url, _ = rated
    clickhouse.command(url, "TRUNCATE TABLE line_items")
    just_now = stored(url, RECEIVED + sources.SETTLING - timedelta(seconds=1))
    assert value(just_now, "meterline_conservation_difference") == 0
    assert value(just_now, "meterline_counts", where="line_items") == 0
    settled = stored(url, RECEIVED + sources.SETTLING + timedelta(seconds=1))
    assert value(settled, "meterline_conservation_difference") == value(settled, "meterline_counts", where="archive")


def test_only_the_days_asked_for_are_looked_at(rated: tuple[str, RateReport]) -> None:
    url, report = rated
    clickhouse.command(url, DAMAGE["a count too high"][0])
    found = stored(url, RECEIVED + timedelta(days=100))
    for name in ("meterline_accepted_events", "meterline_line_items", "meterline_conservation_difference"):
        assert value(found, name) == 0
    assert value(found, "meterline_runs", state="finished") == 1
    assert value(stored(url, RECEIVED + timedelta(days=100), 200), "meterline_accepted_events") == report.accepted


def test_an_empty_database_has_numbers_but_no_ages(database: str) -> None:
    found = stored(database)
    assert value(found, "meterline_conservation_difference") == 0
    assert not [name for name, _ in found if name.endswith("_age_seconds")]


def test_who_holds_a_lease_is_told(server: str) -> None:
    with held(server, "rate_usage", holder="run"):
        found = stored(server)
        assert value(found, "meterline_lease_holders", job="rate_usage") == 1
        assert value(found, "meterline_lease_holders", job="invoice_accounts") == 0
        (remaining,) = (count for (name, _), count in found.items() if name == "meterline_lease_remaining_seconds")
        assert 30 < remaining <= 60
    assert value(stored(server), "meterline_lease_holders", job="rate_usage") == 0


# --- the counters of steps --------------------------------------------------------------------------------


def _table(elements: list[Any]) -> pa.Table:
    received = pa.array(elements, pa.timestamp("us", tz="UTC"))
    return pa.table({"digest": ["x"] * len(elements), "received_time": received})


def test_inserts_are_counted_with_rows_retries_and_delay(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third try stores the rows of three events, received now, 10 and 400 seconds ago."""
    calls = []

    class Client:
        def insert_arrow(self, table: str, rows: pa.Table) -> None:
            calls.append(table)
            if len(calls) < 3:
                raise OSError("connection reset")

    monkeypatch.setattr(clickhouse, "connect", lambda url: Client())
    monkeypatch.setattr(clickhouse.time, "sleep", lambda seconds: None)
    now = datetime.now(UTC)
    received = [now + timedelta(seconds=2), now - timedelta(seconds=10), now - timedelta(seconds=400)]

    def build(pipeline: beam.Pipeline) -> None:
        rows = pipeline | beam.Create(received, reshuffle=False)
        rows | WriteRows("http://localhost", {"usage_events": _table}, is_live=True)

    counters = direct.run(build)
    assert len(calls) == 3
    assert counters.pop("write/usage_events_milliseconds") >= 0
    assert counters == {
        "write/usage_events_rows": 3,
        "write/usage_events_inserts": 1,
        "write/usage_events_retries": 2,
        "write/usage_events_within_5s": 1,
        "write/usage_events_within_30s": 2,
        "write/usage_events_within_300s": 2,
    }


# --- Flink ------------------------------------------------------------------------------------------------

STARTED = datetime(2026, 10, 1, tzinfo=UTC)
ANSWERS: dict[str, Any] = {
    "/jobs/overview": {
        "jobs": [
            {"jid": "1", "name": "rating", "state": "RUNNING", "start-time": STARTED.timestamp() * 1000},
            {"jid": "2", "name": "young", "state": "RESTARTING", "start-time": STARTED.timestamp() * 1000},
            {"jid": "3", "name": "over", "state": "CANCELED", "start-time": STARTED.timestamp() * 1000},
        ]
    },
    "/jobs/1/checkpoints": {
        "counts": {"completed": 5, "failed": 2, "restored": 1},
        "latest": {"completed": {"id": 5, "trigger_timestamp": (STARTED.timestamp() + 60) * 1000}},
    },
    "/jobs/2/checkpoints": {"counts": {"completed": 0, "failed": 0, "restored": 0}, "latest": {"completed": None}},
    "/jobs/1/metrics?get=numRestarts": [{"id": "numRestarts", "value": "3"}],
    "/jobs/2/metrics?get=numRestarts": [],
    "/jobs/1": {"vertices": [{"id": "a"}, {"id": "b"}, {"id": "c"}, {"id": "d"}]},
    "/jobs/2": {"vertices": []},
    "/jobs/1/vertices/a/watermarks": [],
    # Flink's first, Beam's first, Beam's last.
    "/jobs/1/vertices/b/watermarks": [{"value": "-9223372036854775808"}, {"value": "-9223372036854775"}],
    "/jobs/1/vertices/c/watermarks": [{"value": "9223371950454775"}],
    "/jobs/1/vertices/d/watermarks": [
        {"value": str(int(STARTED.timestamp() + 70) * 1000)},
        {"value": str(int(STARTED.timestamp() + 80) * 1000)},
    ],
}


@pytest.fixture
def flink_url() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(ANSWERS[self.path]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_jobs_checkpoints_and_watermarks_are_told(flink_url: str) -> None:
    found = parsed(exposition.text(sources.of_flink(Flink(flink_url), STARTED + timedelta(seconds=100))))

    def of(name: str) -> dict[str, float]:
        return {
            dict(labels)["job"]: count for (one, labels), count in found.items() if one == f"meterline_flink_{name}"
        }

    assert of("job_running") == {"rating": 1, "young": 0}
    assert of("restarts_total") == {"rating": 3, "young": 0}
    assert of("failed_checkpoints_total") == {"rating": 2, "young": 0}
    assert of("checkpoint_age_seconds") == {"rating": 40, "young": 100}
    assert of("watermark_lag_seconds") == {"rating": 30}


# --- the command ------------------------------------------------------------------------------------------


def test_the_command_prints_text_or_json(
    rated: tuple[str, RateReport], meterline: Command, flink_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("metrics", "--clickhouse", meterline.url, "--days", 36_500)
    said = meterline(*words, "--rest-url", flink_url)
    found = parsed(said.out)
    assert value(found, "meterline_accepted_events") == rated[1].accepted
    assert value(found, "meterline_flink_up") == 1
    told = json.loads(meterline(*words, "--json").out)
    assert {"name": "meterline_accepted_events", "labels": {}, "value": rated[1].accepted} in told
    assert {one["name"] for one in told} <= FAMILIES.keys()


def test_what_cannot_be_used_is_told(meterline: Command, tmp_path: Path) -> None:
    assert meterline("metrics", "--clickhouse", "http://127.0.0.1:1/default").code == 3
    assert meterline("metrics", "--clickhouse", meterline.url, "--rest-url", "http://127.0.0.1:1").code == 3
    said = meterline("metrics", "--clickhouse", meterline.url, "--serve", 0)
    assert (said.code, "meterline clickhouse serve" in said.err) == (2, True)
    said = meterline("metrics", "--clickhouse", meterline.url, "--flink-folder", tmp_path / "none")
    assert (said.code, "there is no Flink cluster" in said.err) == (3, True)


def test_served_numbers_say_what_is_down_and_are_kept_for_a_while(
    rated: tuple[str, RateReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, report = rated
    asked = command.Collector(url, Flink("http://127.0.0.1:1"), 36_500, 60)
    with ThreadingHTTPServer(("127.0.0.1", 0), command._handler(asked)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_port}"
        try:
            with urllib.request.urlopen(f"{at}/metrics", timeout=60) as answer:
                assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
                first = answer.read().decode()
            found = parsed(first)
            assert value(found, "meterline_accepted_events") == report.accepted
            assert value(found, "meterline_flink_up") == 0
            monkeypatch.setattr(sources, "of_clickhouse", lambda url, days: pytest.fail("asked again"))
            assert urllib.request.urlopen(f"{at}/metrics", timeout=60).read().decode() == first
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(at, timeout=60)
        finally:
            server.shutdown()


def test_a_database_that_does_not_answer_is_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    asked = command.Collector("http://127.0.0.1:1/default", None, 62, 0)
    assert parsed(asked.text()) == {("meterline_clickhouse_up", frozenset()): 0}


# --- the alerts -------------------------------------------------------------------------------------------

RULES = [
    rule
    for group in yaml.safe_load((ROOT / "runners/metrics/alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
_WORDS = {"sum", "rate", "increase", "absent", "vector", "or", "unless", "on", "by", "offset", "min", "max", "time"}


def asked_for(expression: str) -> set[str]:
    """The metrics of an expression in PromQL: names that are neither labels, durations nor words of the language."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(by|on)\s*\([^)]*\)|offset \w+", " ", expression)
    return set(re.findall(rf"(?<![\w.]){_NAME}", bare)) - _WORDS


def test_alerts_ask_for_metrics_that_are_there() -> None:
    flink = set(re.findall(r"`(flink_[a-zA-Z_0-9]+)`", OPERATIONS))
    table = r"write_(usage_events|line_items|rating_keys|voids|rejects)_(rows|inserts|milliseconds|retries)"
    for rule in RULES:
        names = asked_for(rule["expr"])
        assert names, rule
        for name in names:
            of_a_table = re.fullmatch(rf"flink_taskmanager_job_task_operator_{table}", name)
            within = re.fullmatch(r".*_write_usage_events_within_(\d+)s", name)
            if of_a_table:
                name = name.replace(of_a_table[1], "usage_events")
            if within:
                assert int(within[1]) in WITHIN_SECONDS
                name = name.replace(f"_{within[1]}s", "_5s")
            assert name in FAMILIES or name in flink, (rule["alert"], name)


def test_a_metric_that_nobody_exposes_would_be_found() -> None:
    expression = 'sum by (job) (rate(meterline_lost{stage="x"}[5m] offset 1d)) / sum(flink_other) > 0.5 or vector(0)'
    assert asked_for(expression) == {"meterline_lost", "flink_other"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_has_a_summary_a_severity_and_a_runbook(rule: dict[str, Any]) -> None:
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"]
    entry = OPERATIONS.partition(f"\n#### {rule['alert']}\n")[2].partition("\n#")[0]
    assert len(entry.split()) > 20, "docs/operations.md says what to do"


def test_the_runbook_has_no_alert_that_does_not_exist() -> None:
    assert re.findall(r"\n#### (\w+)\n", OPERATIONS) == [rule["alert"] for rule in RULES]
