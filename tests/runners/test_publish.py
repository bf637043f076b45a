"""Events reach the topic, each exactly as it was handed over, or the caller learns which did not."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.pubsub_v1.types import PublishRequest, PublishResponse

from meterline.runners.pubsub import client as pubsub
from meterline.runners.pubsub import commands as pubsub_commands
from meterline.runners.pubsub.emulator import HOST, emulator, find_jar
from meterline.runners.pubsub.publish import MAX_MESSAGE_BYTES, NotPublished, Producer, event_id, usage_event
from meterline.runners.pubsub.tail import Seen
from meterline.schemas.event import EventError, Reason, parse_event
from meterline.transforms.messages import records_of
from tests.command import Command
from tests.runners.conftest import Names

NOON = datetime(2026, 10, 1, 12, tzinfo=UTC)


def event(id: str = "a", **changes: Any) -> bytes:
    given: dict[str, Any] = {
        "id": id,
        "source": "/gw",
        "type": "call",
        "subject": "customer-1",
        "time": NOON,
        "data": {"gigabytes": Decimal("0.10"), "region": "größe"},
    }
    return usage_event(**{**given, **changes})


def pulled(subscription: str) -> list[Any]:
    """All messages that are in a subscription; they are acknowledged."""
    found = []
    with pubsub.subscriber() as client:
        while some := client.pull(
            subscription=subscription, max_messages=1_000, return_immediately=True
        ).received_messages:
            client.acknowledge(subscription=subscription, ack_ids=[one.ack_id for one in some])
            found += [one.message for one in some]
    return found


def records(messages: list[Any]) -> list[bytes]:
    return [record for one in messages for record in records_of(one.data, dict(one.attributes))]


# --- building events ------------------------------------------------------------------------------


def test_an_event_says_exactly_what_was_given() -> None:
    made = event(time=NOON.astimezone(timezone(timedelta(hours=2))), tenant="acme", partitionkey="7")
    assert json.loads(made) == {
        "specversion": "1.0",
        "id": "a",
        "source": "/gw",
        "type": "call",
        "subject": "customer-1",
        "time": "2026-10-01T12:00:00.000000Z",
        "tenantid": "acme",
        "partitionkey": "7",
        "data": {"gigabytes": "0.10", "region": "größe"},
    }
    assert parse_event(made).data["gigabytes"] == "0.10"
    assert b"\n" not in made


@pytest.mark.parametrize(
    ("changes", "reason", "says"),
    [
        ({"data": {"gigabytes": 0.1}}, Reason.BAD_QUANTITY, "data.gigabytes: got 0.1, a float"),
        ({"data": {"a": {"b": [Decimal(1), 2.5]}}}, Reason.BAD_QUANTITY, "data.a.b: got 2.5"),
        ({"time": datetime(2026, 10, 1)}, Reason.BAD_TIME, "no time zone"),  # noqa: DTZ001
        ({"time": "yesterday"}, Reason.BAD_TIME, "RFC 3339"),
        ({"id": ""}, Reason.MISSING_FIELD, "id"),
        ({"source": "::"}, Reason.BAD_ATTRIBUTE, "URI-reference"),
        ({"subject": "a\x00b"}, Reason.BAD_ATTRIBUTE, "U+0000"),
        ({"Extension": "x"}, Reason.BAD_ATTRIBUTE, "a-z"),
    ],
)
def test_what_the_job_would_reject_is_refused_at_once(changes: dict[str, Any], reason: Reason, says: str) -> None:
    with pytest.raises(EventError) as caught:
        event(**changes)
    assert caught.value.reason is reason
    assert says in str(caught.value)


def test_an_id_is_the_same_for_the_same_record_and_another_for_another() -> None:
    row = {"request": "r-1", "attempt": 1, "at": NOON, "cost": Decimal("1.0"), "note": None}
    name = event_id(row, "request", "attempt")
    assert name == "1a06b02c4d36b1e5c69777949ffe2089", "ids that were sent must never change"
    assert name == event_id({**row, "note": "retried"}, "attempt", "request")
    others = [
        event_id({**row, "attempt": 2}, "request", "attempt"),
        event_id({**row, "attempt": "1"}, "request", "attempt"),
        event_id({"request": "r-1", "try": 1}, "request", "try"),
        event_id(row, "request"),
        event_id(row, "request", "attempt", "at", "cost", "note"),
    ]
    assert len({name, *others}) == 6
    elsewhere = {**row, "at": NOON.astimezone(timezone(timedelta(hours=-5)))}
    assert event_id(elsewhere, "at") == event_id(row, "at"), "an instant is the same in any zone"


@pytest.mark.parametrize("fields", [(), ("nothing",), ("cost",)])
def test_an_id_of_nothing_or_of_a_float_is_refused(fields: tuple[str, ...]) -> None:
    with pytest.raises(EventError, match="id: "):
        event_id({"cost": 0.5}, *fields)


# --- publishing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [None, "gzip", "zstd"])
@pytest.mark.parametrize("per_message", [1, 7, 500])
def test_events_are_published_in_messages(topic: Names, compress: Any, per_message: int) -> None:
    sent = [event(f"e{place}") for place in range(50)]
    with Producer(topic.topic, events_per_message=per_message, compress=compress, linger_seconds=60) as producer:
        for one in sent:
            producer.send(one)
        done = producer.flush()
    messages = pulled(topic.subscription)
    assert sorted(records(messages)) == sorted(sent)
    assert (done.events, done.messages) == (50, len(messages)) == (50, -(-50 // per_message))
    assert done.bytes == sum(len(one.data) for one in messages)


def test_a_slow_caller_s_events_do_not_wait_for_a_full_message(topic: Names) -> None:
    with Producer(topic.topic, linger_seconds=0.05) as producer:
        producer.send(event())
        with pubsub.subscriber() as client:  # waits until one is there
            found = client.pull(subscription=topic.subscription, max_messages=1, timeout=30).received_messages
    assert [one.message.data for one in found] == [event()]


def test_a_record_on_many_lines_stays_one_record(topic: Names) -> None:
    pretty = json.dumps(json.loads(event()), indent=2).encode()
    with Producer(topic.topic) as producer:
        producer.send(pretty)
        producer.send(event("b"))
    assert [json.loads(one)["id"] for one in records(pulled(topic.subscription))] == ["a", "b"]


def test_messages_stay_below_what_pubsub_takes(topic: Names) -> None:
    large = [event(str(place), data={"n": 1, "text": "x" * 900_000}) for place in range(20)]
    with Producer(topic.topic, message_bytes=MAX_MESSAGE_BYTES) as producer:
        for one in large:
            producer.send(one)
        with pytest.raises(EventError, match="at most 1048576"):
            producer.send(b"x" * 1_048_577)
    assert sorted(records(pulled(topic.subscription))) == sorted(large)


def test_what_was_not_published_comes_back(topic: Names) -> None:
    sent = [event(f"e{place}") for place in range(5)]
    with pytest.raises(NotPublished) as caught:
        publish("projects/test/topics/nowhere", sent)
    assert sorted(caught.value.events) == sorted(sent)
    assert "has no topic projects/test/topics/nowhere" in str(caught.value)


def publish(topic: str, sent: list[bytes], error: Exception | None = None) -> None:
    with Producer(topic, events_per_message=2) as producer:
        for one in sent:
            producer.send(one)
        if error:
            raise error


def test_an_error_of_the_caller_stays_the_error_and_what_was_sent_is_published(topic: Names) -> None:
    with pytest.raises(ZeroDivisionError):
        publish(topic.topic, [event()], ZeroDivisionError())
    assert records(pulled(topic.subscription)) == [event()]
    with pytest.raises(ZeroDivisionError) as caught:
        publish("projects/test/topics/nowhere", [event()], ZeroDivisionError())
    assert "1 events were not published" in caught.value.__notes__[0]


# --- a Pub/Sub with moods -------------------------------------------------------------------------


@contextmanager
def answering(answer: Callable[[PublishRequest, Any], PublishResponse]) -> Iterator[str]:
    """A server of which only Publish is there."""
    handler = grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=PublishRequest.deserialize,
        response_serializer=PublishResponse.serialize,
    )
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("google.pubsub.v1.Publisher", {"Publish": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def taken(request: PublishRequest) -> PublishResponse:
    return PublishResponse(message_ids=[str(place) for place, _ in enumerate(request.messages)])


def test_send_waits_while_pubsub_does_not_answer_and_drops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, came, handed = threading.Event(), [], []

    def answer(request: PublishRequest, context: Any) -> PublishResponse:
        gate.wait(60)
        came.extend(record for message in request.messages for record in records_of(message.data, {}))
        return taken(request)

    large = [event(str(place), data={"n": 1, "text": "x" * 500_000}) for place in range(60)]
    with answering(answer) as host:
        monkeypatch.setenv(HOST, host)
        producer = Producer("projects/test/topics/slow", memory_bytes=MAX_MESSAGE_BYTES)

        def send() -> None:
            for one in large:
                producer.send(one)
                handed.append(one)

        sending = threading.Thread(target=send)
        sending.start()
        sending.join(3)
        assert sending.is_alive()
        assert sum(map(len, handed)) <= MAX_MESSAGE_BYTES + (2 << 20), "under way, and the message being filled"
        gate.set()
        sending.join(60)
        assert producer.close().events == 60
    assert sorted(came) == sorted(large)


def test_a_message_is_tried_again_while_pubsub_is_out_of_order(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def answer(request: PublishRequest, context: Any) -> PublishResponse:
        calls.append(len(request.messages))
        if len(calls) < 4:
            context.abort(grpc.StatusCode.UNAVAILABLE, "come back later")
        return taken(request)

    with answering(answer) as host:
        monkeypatch.setenv(HOST, host)
        with Producer("projects/test/topics/moody") as producer:
            producer.send(event())
            assert producer.flush().events == 1
    assert len(calls) == 4


def test_a_message_that_is_refused_for_good_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: PublishRequest, context: Any) -> PublishResponse:
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "not yours")
        raise AssertionError

    with answering(answer) as host:
        monkeypatch.setenv(HOST, host)
        producer = Producer("projects/test/topics/locked")
        producer.send(event())
        with pytest.raises(NotPublished, match="not yours") as caught:
            producer.flush()
        assert caught.value.events == [event()]
        assert producer.close().events == 0, "what was told is the caller's"


# --- commands -------------------------------------------------------------------------------------


def test_publish_puts_files_of_any_format_into_the_topic_as_they_are(
    meterline: Command, topic: Names, tmp_path: Path
) -> None:
    lines = [event("a"), b'{"no": "event"}', event("b")]
    (tmp_path / "one.ndjson").write_bytes(b"\n".join(lines))
    (tmp_path / "two.json.gz").write_bytes(gzip.compress(b"[%s]" % event("c")))
    said = meterline("publish", tmp_path / "*.*", "--topic", topic.topic, "--batch", 2, "--compress", "zstd", "--json")
    report = json.loads(said.out)
    assert (said.code, report["events"], report["files"], report["problems"]) == (0, 4, 2, [])
    assert sorted(records(pulled(topic.subscription))) == sorted([*lines, event("c")])


def test_publish_says_what_of_a_damaged_file_was_not_published(
    meterline: Command, topic: Names, tmp_path: Path
) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"\n".join(event(str(place)) for place in range(3)) + b"\n")[:-8])
    said = meterline("publish", tmp_path / "cut.gz", "--topic", topic.topic)
    assert said.code == 2
    assert "not published" in said.err
    assert "breaks" in said.err
    assert len(records(pulled(topic.subscription))) == 3


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("publish", "nothing.ndjson", "--topic", "projects/test/topics/usage"), 2, "nothing.ndjson: no such file"),
        (("publish", __file__, "--topic", "projects/test/topics/nowhere"), 2, "has no topic"),
        (("publish", __file__, "--topic", "usage"), 2, "expected projects/PROJECT/topics/NAME"),
        (("tail", "--topic", "projects/test/topics/nowhere"), 2, "has no topic"),
    ],
)
def test_a_mistake_is_a_sentence(
    meterline: Command, topic: Names, words: tuple[str, ...], code: int, says: str
) -> None:
    said = meterline(*words)
    assert said.code == code
    assert says in said.err


def test_where_nothing_answers_it_is_said(meterline: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOST, "127.0.0.1:1")
    said = meterline("publish", __file__, "--topic", "projects/test/topics/usage")
    assert said.code == 3
    assert "no answer from the Pub/Sub emulator at 127.0.0.1:1" in said.err


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "meterline.runners.cli", *words]


def test_tail_shows_what_is_published_and_leaves_no_subscription(topic: Names) -> None:
    tail = subprocess.Popen(
        command("tail", "--topic", topic.topic, "--limit", "3"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert tail.stderr is not None
        assert "watching" in tail.stderr.readline()
        with Producer(topic.topic) as producer:
            for one in (event("first"), b"{oops", event("third")):
                producer.send(one)
        out, _ = tail.communicate(timeout=300)
    finally:
        tail.kill()
        tail.wait()
    assert tail.returncode == 0
    assert [("first" in line, "malformed" in line, "third" in line) for line in out.splitlines()] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]
    assert subscriptions(topic.topic) == [topic.subscription]
    assert len(records(pulled(topic.subscription))) == 3, "others still get every event"


def test_what_tail_prints_as_json_is_json() -> None:
    now = datetime.now(UTC)
    for record in (b"[1,2", b'{"bad":"\xff"}', b"\x1b]0;title\x07"):
        line = pubsub_commands._json_line(Seen(now, record, None, "no event"))
        assert json.loads(line)["problem"] == "no event"
        assert "\x1b" not in line


def test_a_subscription_of_another_topic_is_told(meterline: Command, topic: Names) -> None:
    other = f"{topic.topic}-other"
    said = meterline("pubsub", "create", "--topic", other, "--subscription", topic.subscription)
    assert said.code == 2
    assert f"is a subscription on {topic.topic}, not on {other}" in said.err
    said = meterline("pubsub", "create", "--topic", f"{other}-2", "--subscription", "bad")
    assert said.code == 2
    assert "created" not in said.out


def test_tail_ended_by_a_signal_leaves_no_subscription(topic: Names) -> None:
    tail = subprocess.Popen(command("tail", "--topic", topic.topic), stderr=subprocess.PIPE, text=True)
    try:
        assert tail.stderr is not None
        assert "watching" in tail.stderr.readline()
        assert len(subscriptions(topic.topic)) == 2
        tail.send_signal(signal.SIGTERM)
        assert tail.wait(300) == 0
    finally:
        tail.kill()
        tail.wait()
    assert subscriptions(topic.topic) == [topic.subscription]


def subscriptions(topic: str) -> list[str]:
    with pubsub.publisher() as client:
        return list(client.list_topic_subscriptions(topic=topic))


# --- the emulator ---------------------------------------------------------------------------------


def test_the_emulator_ends_with_the_process_that_started_it(emulator_host: str) -> None:
    program = (
        "import sys, time\nfrom meterline.runners.pubsub.emulator import emulator\n"
        "with emulator() as host:\n    print(host, flush=True)\n    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    host = parent.stdout.readline().strip()
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    (java,) = [int(one) for one in children if b"pubsub-emulator" in Path(f"/proc/{one}/cmdline").read_bytes()]
    assert host.startswith("127.0.0.1:")
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not _is_alive(java):
            return
        threading.Event().wait(0.1)
    os.kill(java, signal.SIGKILL)
    pytest.fail("the emulator outlived its parent")


def _is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_emulator_gives_the_environment_back(emulator_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOST, "before:1")
    with emulator() as host:
        assert os.environ[HOST] == host != emulator_host
    assert os.environ[HOST] == "before:1"


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METERLINE_PUBSUB_EMULATOR_JAR", str(tmp_path / "gone.jar"))
    with pytest.raises(pubsub.PubSubError, match="which is no file"):
        find_jar()
    monkeypatch.delenv("METERLINE_PUBSUB_EMULATOR_JAR")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(pubsub.PubSubError, match="needs Java"), emulator():
        pass
