"""A subscription is rated batch by batch, and the line items are those of one run over all its events."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.api_core import exceptions as google

from meterline.runners import demo_flink, demo_stream, direct_stream
from meterline.runners.demo import EVENT_TYPE, quickstart
from meterline.runners.direct_stream import BatchSize, rate_subscription
from meterline.runners.flink import home
from meterline.runners.jobs import RateReport
from meterline.runners.pubsub import client as pubsub
from meterline.runners.pubsub.publish import Producer, usage_event
from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_files import load_catalog
from meterline.transforms import catalogs, clickhouse
from tests.command import Command
from tests.conftest import empty_tables
from tests.runners.conftest import Names
from tests.runners.test_publish import pulled

CATALOG = quickstart() / "catalog"
NOW = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
ITEMS = "SELECT * FROM line_items FINAL ORDER BY ALL"
SUBJECTS = ("acme-assist-chat", "acme-search-ranking", "globex-labs-agents")


def event(place: int, *, tokens: int | None = None, age: timedelta | None = None, **changes: Any) -> bytes:
    given: dict[str, Any] = {
        "id": f"e{place}",
        "source": "/gw",
        "type": EVENT_TYPE,
        "subject": SUBJECTS[place % 3],
        "time": NOW - (timedelta(minutes=7 * place) if age is None else age),
        "data": {
            "model": ("large", "small")[place % 2],
            "input_tokens": place * 1_000 if tokens is None else tokens,
            "output_tokens": 1,
        },
    }
    return usage_event(**{**given, **changes})


EVENTS = [event(place) for place in range(60)]


def publish(topic: str, events: Sequence[bytes], per_message: int = 3) -> None:
    with Producer(topic, events_per_message=per_message) as producer:
        for one in events:
            producer.send(one)
            if per_message == 1:
                producer.flush()  # in this order


def rate(names: Names, url: str, **options: Any) -> RateReport:
    catalog = load_catalog(CATALOG)
    return rate_subscription(names.subscription, catalog, url, until_empty=True, wait_seconds=2, **options)


def items(url: str) -> list[dict[str, Any]]:
    return clickhouse.query(url, ITEMS).to_pylist()


def items_of_a_file(meterline: Command, folder: Path, events: Sequence[bytes]) -> list[dict[str, Any]]:
    """The line items of one batch run; the database is emptied before."""
    empty_tables(meterline.url)
    file = folder / "usage.ndjson"
    file.write_bytes(b"\n".join(events) + b"\n")
    words = ("--input", file, "--catalog", CATALOG, "--clickhouse", meterline.url)
    assert meterline("rate", *words).code == 0
    return items(meterline.url)


def test_batches_give_the_line_items_of_one_run(meterline: Command, topic: Names, tmp_path: Path) -> None:
    twice = [*EVENTS, *EVENTS[::4]]
    publish(topic.topic, twice)
    batches: list[RateReport] = []
    total = rate(topic, meterline.url, size=BatchSize(messages=12), on_batch=batches.append)
    found = items(meterline.url)
    assert (total.records, total.accepted, total.duplicates) == (75, 60, 15)
    assert total.adds_up
    assert total.accepted == sum(one.accepted for one in batches)
    assert len(batches) >= 3
    logged = clickhouse.query(
        meterline.url, "SELECT run_id, inputs, records FROM runs FINAL ORDER BY started_at"
    ).to_pylist()
    assert (total.to_json()["run_id"], total.runs) == (logged[-1]["run_id"], len(logged))
    assert [one.run_id for one in batches] == [one["run_id"] for one in logged]
    assert sum(one["records"] for one in logged) == 75
    assert all(one["inputs"] == [topic.subscription] for one in logged)
    assert pulled(topic.subscription) == [], "all is acknowledged"
    assert found == items_of_a_file(meterline, tmp_path, twice)
    assert found


def test_a_catalog_that_is_published_is_in_force_without_a_restart(
    meterline: Command, topic: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = load_catalog(CATALOG)
    meter = catalog.meters[0].model_copy(update={"id": "another"})
    parts = {name: getattr(catalog, name) for name in Catalog.model_fields}
    newer = Catalog(**parts | {"meters": (*catalog.meters, meter)})
    publish(topic.topic, EVENTS[:6])

    def on_batch(report: RateReport) -> None:
        if report.records == 6:
            catalogs.publish(meterline.url, newer, delay_seconds=0)
            publish(topic.topic, EVENTS[6:8])

    monkeypatch.setattr(catalogs, "DELAY_SECONDS", catalogs._STORING_SECONDS)  # Look at each batch.
    rate(topic, meterline.url, on_batch=on_batch)
    used = clickhouse.query(meterline.url, "SELECT catalog_digest FROM runs FINAL ORDER BY started_at").to_pylist()
    assert [one["catalog_digest"] for one in used] == [catalog.digest, newer.digest]
    sql = "SELECT sum(event_count) AS n FROM line_items FINAL WHERE meter_id = 'another'"
    assert clickhouse.query(meterline.url, sql)["n"][0].as_py() == 2


def test_time_is_judged_by_the_time_of_publishing(meterline: Command, topic: Names) -> None:
    ages = [timedelta(days=34), timedelta(days=36), timedelta(minutes=-30), timedelta(hours=-3)]
    now = datetime.now(UTC)
    publish(topic.topic, [event(place, time=now - age) for place, age in enumerate(ages)])
    before = datetime.now(UTC)
    total = rate(topic, meterline.url)
    assert total.accepted == 2
    assert total.rejected == {("validate", "too_old"): 1, ("validate", "in_future"): 1}
    rejects = clickhouse.query(meterline.url, "SELECT origin, received_time FROM rejects FINAL").to_pylist()
    assert {one["origin"].partition("#")[0] for one in rejects} == {topic.subscription}
    assert all(now <= one["received_time"] <= before for one in rejects)


def test_messages_that_cannot_be_read_are_rejects_with_their_bytes(meterline: Command, topic: Names) -> None:
    cut = gzip.compress(EVENTS[0])[:-6]
    without_id = {f"ce-{name}": value for name, value in json.loads(EVENTS[1]).items() if name not in ("data", "id")}
    sent: list[tuple[bytes, dict[str, str]]] = [
        (cut, {"content-encoding": "gzip"}),
        (b"[%s" % EVENTS[0], {"content-type": "application/cloudevents-batch+json"}),
        (EVENTS[0], {"content-type": "text/csv"}),
        (b'{"model":"large"}', without_id),
        (b"{oops\n" + EVENTS[2], {"content-type": "application/x-ndjson"}),
    ]
    with pubsub.publisher() as client:
        for data, attributes in sent:
            client.publish(topic.topic, data, **attributes).result()
    total = rate(topic, meterline.url)
    assert (total.records, total.accepted) == (6, 1)
    assert total.adds_up
    table = clickhouse.query(meterline.url, "SELECT reason, payload FROM rejects FINAL", as_text=False).to_pylist()
    found = {
        (bytes(one["reason"]) if isinstance(one["reason"], bytes) else one["reason"].encode(), one["payload"])
        for one in table
    }
    assert {(reason, payload) for reason, payload in found if reason != b"missing_field"} == {
        (b"unreadable", cut),
        (b"unreadable", b"[%s" % EVENTS[0]),
        (b"unreadable", EVENTS[0]),
        (b"malformed", b"{oops"),
    }
    (record,) = [json.loads(payload) for reason, payload in found if reason == b"missing_field"]
    assert (record["subject"], record["data"]) == (SUBJECTS[1], {"model": "large"})
    assert pulled(topic.subscription) == []


def test_what_was_stored_and_not_acknowledged_comes_again_and_changes_nothing(
    meterline: Command, topic: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(topic.topic, [*EVENTS, b"{oops"])

    def refuse(self: Any) -> None:
        raise google.ServiceUnavailable("no acknowledgement came through")

    with monkeypatch.context() as patch:
        patch.setattr(direct_stream._Taken, "acknowledge", refuse)
        with pytest.raises(pubsub.PubSubError, match="no acknowledgement"):
            rate(topic, meterline.url)
    stored, rejects = items(meterline.url), clickhouse.query(meterline.url, "SELECT * FROM rejects FINAL").to_pylist()
    total = rate(topic, meterline.url)
    assert (total.accepted, total.duplicates, total.line_items) == (0, 60, 0)
    assert items(meterline.url) == stored
    assert clickhouse.query(meterline.url, "SELECT * FROM rejects FINAL").to_pylist() == rejects
    assert len(rejects) == 1
    assert stored == items_of_a_file(meterline, tmp_path, EVENTS)


def test_nothing_is_acknowledged_that_is_not_stored(
    meterline: Command, topic: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(topic.topic, EVENTS)
    whole = clickhouse.insert

    def insert(url: str, table: str, rows: Any) -> None:
        if table == "line_items":
            raise clickhouse.DatabaseError("the disk is full")
        whole(url, table, rows)

    with monkeypatch.context() as patch:
        patch.setattr(clickhouse, "insert", insert)
        with pytest.raises(clickhouse.DatabaseError, match="the disk is full"):
            rate(topic, meterline.url)
    total = rate(topic, meterline.url)
    assert total.records == 60, "all of it comes again, at once"
    assert items(meterline.url) == items_of_a_file(meterline, tmp_path, EVENTS)


KILLED = """
import os, signal, sys
from meterline.runners import cli, direct_stream
from meterline.runners.pubsub import client as pubsub
pubsub.ACK_DEADLINE_SECONDS = 1
def die(self):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv.pop(1) == "killed":
    direct_stream._Taken.acknowledge = die
cli.main()
"""


def test_a_kill_between_storing_and_acknowledging_changes_nothing(topic: Names, tmp_path: Path) -> None:
    """In processes of their own, with a database of their own."""

    def run(how: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, how, *words, "--clickhouse", "chdb://db"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)

    stream = ("rate", "--subscription", topic.subscription, "--catalog", str(CATALOG), "--until-empty", "--json")
    publish(topic.topic, EVENTS)
    assert run("killed", *stream).returncode == -signal.SIGKILL
    stored = run("query", "query", ITEMS, "--format", "tsv").stdout
    assert stored.count("\n") > 10
    again = run("again", *stream)
    assert again.returncode == 0, again.stderr
    report = json.loads(again.stdout)
    assert (report["accepted"], report["duplicates"], report["adds_up"]) == (0, 60, True)
    assert run("query", "query", ITEMS, "--format", "tsv").stdout == stored


def test_messages_are_kept_while_their_batch_is_rated(
    meterline: Command, topic: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a batch takes: the deadline for its acknowledgement is moved again and again, for all of it."""
    kept: list[list[str]] = []
    thrice = threading.Event()
    rated = direct_stream._rate

    def hold(self: Any, ids: list[str], seconds: int | None = None) -> None:
        held(self, ids, seconds)
        kept.append(ids)
        if len(kept) == 4:
            thrice.set()

    def slow(*words: Any) -> RateReport:
        assert thrice.wait(60)
        return rated(*words)

    held = direct_stream._Taken._hold
    monkeypatch.setattr(direct_stream, "KEEP_EVERY_SECONDS", 0.5)
    monkeypatch.setattr(direct_stream._Taken, "_hold", hold)
    monkeypatch.setattr(direct_stream, "_rate", slow)
    publish(topic.topic, EVENTS[:6])
    assert rate(topic, meterline.url, max_batches=1).records == 6
    assert sum(len(ids) == 2 for ids in kept) >= 3, "all that came, once they were there"


def test_the_lease_is_held_from_the_first_batch_to_the_last(
    meterline: Command, topic: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    @contextmanager
    def held(url: str, name: str) -> Iterator[None]:
        said.append(f"holds {name}")
        yield
        said.append("lets go")

    monkeypatch.setattr(direct_stream, "held", held)
    publish(topic.topic, EVENTS)
    rate(topic, meterline.url, size=BatchSize(messages=10), on_batch=lambda batch: said.append("batch"))
    first, *batches, last = said
    assert (first, last) == ("holds rate_usage", "lets go")
    assert batches == ["batch"] * len(batches)
    assert len(batches) >= 2


def test_events_of_one_id_and_other_content_are_conflicts_over_batches(meterline: Command, topic: Names) -> None:
    publish(topic.topic, [event(1, tokens=5), event(1, tokens=6), event(1, tokens=5)], per_message=1)
    total = rate(topic, meterline.url, size=BatchSize(messages=1))
    assert (total.accepted, total.duplicates, total.rejected) == (1, 1, {("deduplicate", "conflict"): 1})


# --- the command ----------------------------------------------------------------------------------


def test_a_signal_lets_the_batch_be_finished(topic: Names, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "meterline.runners.cli", "rate", "--subscription", topic.subscription]
    stream = subprocess.Popen(
        [*command, "--catalog", str(CATALOG), "--clickhouse", "chdb://db"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        publish(topic.topic, EVENTS[:30])
        assert stream.stderr is not None
        assert "30 records: 30 accepted" in stream.stderr.readline()
        stream.send_signal(signal.SIGTERM)
        out, err = stream.communicate(timeout=300)
    finally:
        stream.kill()
        stream.wait()
    assert stream.returncode == 0, err
    assert "finishing the batch under way" in err
    assert "= all records read" in out
    assert pulled(topic.subscription) == []


@pytest.mark.parametrize(
    ("subscription", "code", "says"),
    [
        ("projects/test/subscriptions/nowhere", 2, "has no subscription projects/test/subscriptions/nowhere"),
        ("usage", 2, "expected projects/PROJECT/subscriptions/NAME"),
    ],
)
def test_a_subscription_that_is_not_there(
    meterline: Command, topic: Names, subscription: str, code: int, says: str
) -> None:
    words = ("--catalog", CATALOG, "--clickhouse", meterline.url)
    said = meterline("rate", "--subscription", subscription, *words)
    assert said.code == code
    assert says in said.err


def test_the_demo_of_a_stream_ends_with_what_a_batch_gives(emulator_host: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "meterline.runners.cli", "demo-stream", "--here", "--seconds", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✓ the same" in done.stdout
    assert "lag 0" in done.stdout


def test_the_demo_knows_what_becomes_of_what_it_publishes() -> None:
    first, other = b'{"id": "a", "data": {"n": 1}}', b'{"id": "a", "data": {"n": 2}}'
    lines = [
        first,
        b'{"data": {"n": 1}, "id": "a"}',
        other,
        b'{"id": "unknown"}',
        b'{"id": ["a"]}',
        b"[1]",
        b"{",
        first,
    ]
    found = ["accepted", "duplicate", *["rejected"] * 5, "duplicate"]
    assert list(demo_stream.outcomes(lines, frozenset("a"))) == found


def test_the_demo_says_why_flink_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METERLINE_FLINK_HOME", str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda name: None if name == "mvn" else f"/usr/bin/{name}")
    monkeypatch.setattr(home, "java", lambda: Path("java"))
    assert "there is no Maven" in demo_flink.missing()


def test_the_demo_of_a_stream_leaves_other_folders_alone(meterline: Command, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    said = meterline("demo-stream", "--folder", tmp_path)
    assert said.code == 2
    assert "holds no demo" in said.err
    assert (tmp_path / "thesis.txt").exists()
