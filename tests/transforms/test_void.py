"""Voiding events are looked up; all others pass untouched, without a question to the database."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest

from meterline.schemas.event import Reason
from meterline.schemas.records import Reject
from meterline.schemas.voids import VOID_SOURCE, VOID_TYPE, EventName, Void
from meterline.transforms import void as stage
from meterline.transforms.archive import Archive, Span, named
from meterline.transforms.recall import Touched
from meterline.transforms.void import _VoidFn
from meterline.transforms.write import void_rows
from tests.transforms.batches import START, Fed, Usage, batch, key_text

TIME = START * 1_000_000 + 5
KNOWN = Void(EventName("default", TIME, "/s", "known"), "acme", "wrong")
UNKNOWN = Void(EventName("default", TIME, "/s", "unknown"), "acme", "wrong")
SPAN = Span("default", "acme", 1, 2)


def voiding(*payloads: bytes) -> pa.RecordBatch:
    """A usage event, and then voiding events with these payloads."""
    events = [Usage(1, (Fed(key_text("sum")),), "usage"), *(Usage(5, (), f"v{n}") for n, _ in enumerate(payloads))]
    whole = batch(events)
    columns: dict[str, Any] = {
        "payload": [b"{}", *payloads],
        "type": ["call", *(VOID_TYPE for _ in payloads)],
        "source": ["/s", *(VOID_SOURCE for _ in payloads)],
    }
    for name, values in columns.items():
        column = pa.array(values)
        column = column if name == "payload" else column.dictionary_encode()
        whole = whole.set_column(
            whole.schema.get_field_index(name), whole.schema.field(name), column.cast(whole.schema.field(name).type)
        )
    return whole


def passed(events: pa.RecordBatch) -> tuple[list[pa.RecordBatch], list[Touched], list[Reject]]:
    out: dict[str, list[Any]] = {"events": [], "touched": [], "rejects": []}
    for element in _VoidFn(Archive("none://", "mine")).process(events):
        tagged = isinstance(element, beam.pvalue.TaggedOutput)
        out[element.tag if tagged else "events"].append(element.value if tagged else element)
    return out["events"], [Touched.together([packed]) for _, packed in out["touched"]], out["rejects"]


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        stage, "archived_spans", lambda archive, voids: {void: {SPAN} for void in voids if void == KNOWN}
    )


def test_a_batch_of_usage_passes_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "archived_spans", None)
    events = batch([Usage(1, (Fed(key_text("sum")),), "1")])
    ((same,), touched, rejects) = passed(events)
    assert same is events
    assert not touched
    assert not rejects
    assert void_rows([events]).num_rows == 0


@pytest.mark.usefixtures("archive")
def test_what_is_voided_and_the_periods_that_it_counted_in_are_told() -> None:
    (events,), (touched,), rejects = passed(voiding(KNOWN.record()))
    assert events["id"].to_pylist() == ["usage", "v0"]
    assert (set(touched.spans), set(touched.voids)) == ({SPAN}, {KNOWN.event})
    assert not rejects


@pytest.mark.usefixtures("archive")
def test_a_void_of_an_unknown_event_costs_only_itself() -> None:
    (events,), (touched,), rejects = passed(voiding(UNKNOWN.record(), KNOWN.record(), b'{"broken'))
    assert events["id"].to_pylist() == ["usage", "v1"]
    assert set(touched.voids) == {KNOWN.event}
    assert [(one.stage, one.reason, one.position) for one in rejects] == [
        ("void", Reason.UNKNOWN_EVENT, 1),
        ("void", Reason.MALFORMED, 3),
    ]
    assert rejects[0].payload == UNKNOWN.record()


@pytest.mark.usefixtures("archive")
def test_the_rows_of_voids_name_the_event_and_the_reason() -> None:
    (row,) = void_rows([voiding(KNOWN.record())]).to_pylist()
    assert (row["tenant_id"], row["source"], row["id"], row["reason"]) == ("default", "/s", "known", "wrong")
    assert row["void_id"] == KNOWN.id
    assert row["time"].timestamp() == pytest.approx(TIME / 1_000_000)


def test_an_event_is_named_by_all_four_parts() -> None:
    events = batch([Usage(5, (), "a"), Usage(6, (), "a"), Usage(5, (), "b"), Usage(5, (), "a", source="/t")])
    name = EventName("default", TIME, "/s", "a")
    assert named(events, {name, name._replace(tenant_id="other", id="b")}).tolist() == [True, False, False, False]
    assert not named(events, set()).any()
