"""Each identity passes once: in any batches, over bundles, and late within the horizon."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.testing.test_pipeline import TestPipeline as InProcess
from apache_beam.testing.test_stream import TestStream as Stream
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import IntervalWindow, TimestampedValue
from hypothesis import given
from hypothesis import strategies as st

from meterline.schemas.event import Reason
from meterline.transforms import clickhouse, deduplicate
from meterline.transforms.archive import Archive
from meterline.transforms.coders import BatchCoder
from meterline.transforms.deduplicate import DAY_SECONDS, DeduplicateEvents, Seen
from meterline.transforms.write import rating_key_rows, usage_event_rows
from tests.transforms import batches
from tests.transforms.batches import START, Fed, Usage, batch, key_text

KEEP = timedelta(days=36)
DAY = DAY_SECONDS * 1_000_000


def identity(name: int, content: int = 0) -> bytes:
    """Of an id's hash and a content; names below 256 share their first 64 bits."""
    high, low = divmod(name, 256)
    return high.to_bytes(8, "little") + low.to_bytes(4, "little") + content.to_bytes(4, "little")


def event(name: int, content: int = 0, time: int = 0) -> Usage:
    return Usage(time, (Fed(key_text("count")),), f"e{name}/{content}", identity=identity(name, content))


# --- the set --------------------------------------------------------------------------------------------

names = st.one_of(st.integers(0, 6), st.integers(0, 1 << 70), st.sampled_from([255, 256, 257, (1 << 72) - 1]))
identities = st.lists(st.tuples(names, st.sampled_from([0, 1, 0xFFFFFFFF])), max_size=20)


@given(st.lists(identities, max_size=6))
def test_seen_is_a_set_that_keeps_the_first_content(came: list[list[tuple[int, int]]]) -> None:
    seen = Seen()
    plain: dict[int, int] = {}
    for one in came:
        seen = Seen(seen.runs)  # as it comes out of the state
        is_new, first = seen.add(pa.array([identity(*pair) for pair in one], pa.binary(16)))
        for (name, content), new, known in zip(one, is_new.tolist(), first.tolist()):
            assert new == (name not in plain)
            assert known == plain.setdefault(name, content)
    assert len(seen) == len(plain)
    assert all(len(longer) > 2 * len(shorter) for longer, shorter in pairwise(seen.runs))


@given(st.lists(identities, min_size=1, max_size=4))
def test_what_is_seen_does_not_depend_on_how_events_were_cut(came: list[list[tuple[int, int]]]) -> None:
    apart, together = Seen(), Seen()
    for one in came:
        apart.add(pa.array([identity(*pair) for pair in one], pa.binary(16)))
    together.add(pa.array([identity(*pair) for one in came for pair in one], pa.binary(16)))
    assert rows(apart) == rows(together)


def rows(seen: Seen) -> list[bytes]:
    packed = b"".join(seen.runs)
    return sorted(packed[start : start + 16] for start in range(0, len(packed), 16))


def test_state_is_16_bytes_an_event() -> None:
    packed = np.random.default_rng(1).integers(0, 256, (10_000, 16), np.uint8)
    seen = Seen()
    is_new, _ = seen.add(pa.Array.from_buffers(pa.binary(16), 10_000, [None, pa.py_buffer(packed)]))
    assert is_new.all()
    assert sum(map(len, seen.runs)) <= 17 * 10_000


def test_a_slice_of_identities_is_read_where_it_begins() -> None:
    whole = pa.array([identity(n) for n in range(5)], pa.binary(16))
    seen = Seen()
    seen.add(whole.slice(3))
    assert seen.add(whole)[0].tolist() == [True, True, True, False, False]


def test_batches_cross_the_shuffle_unchanged() -> None:
    events = batch([event(1), event(2, 1, DAY)])
    coder = BatchCoder()
    assert coder.decode(coder.encode(events)).equals(events)
    some = coder.decode(coder.encode(events.slice(1)))
    assert some.to_pylist() == events.slice(1).to_pylist()
    assert len(some["payload"].dictionary) == 1, "the bytes of rows that were dropped do not travel"


# --- the stage ------------------------------------------------------------------------------------------


def passed(events: pa.RecordBatch) -> list[str]:
    return list(events["id"].to_pylist())


def archived(url: str, events: Sequence[Usage], run_id: str) -> None:
    clickhouse.insert(url, "rating_keys", rating_key_rows([batch(events)]))
    clickhouse.insert(url, "usage_events", usage_event_rows([batch(events)], run_id))


def check(
    *pieces: Sequence[Usage],
    passes: list[str],
    rejects: Sequence[str] = (),
    archive: Archive | None = None,
    shards: int = 1,
) -> None:
    """Bounded input: the ids of what passes, and the rejects."""
    with InProcess() as pipeline:
        events = pipeline | "Events" >> beam.Create(list(map(batch, pieces)), reshuffle=False)
        out = events | DeduplicateEvents(archive, shards)
        assert_that(out.events | "E" >> beam.FlatMap(passed), equal_to(passes), label="events")
        told = out.rejects | beam.Map(lambda reject: f"{reject.reason} {reject.payload.decode()}")
        assert_that(told, equal_to(list(rejects)), label="rejects")


@pytest.mark.parametrize("shards", [1, 3])
def test_an_identity_passes_once(shards: int) -> None:
    pieces = [[event(1), event(2), event(1)], [event(2)], [event(300), event(2)]]
    check(*pieces, passes=["e1/0", "e2/0", "e300/0"], shards=shards)


def test_another_content_is_a_conflict() -> None:
    rejects = [f"{Reason.CONFLICT} e1/7", f"{Reason.CONFLICT} e1/8"]
    check([event(1), event(1, 7)], [event(1, 8), event(1)], passes=["e1/0"], rejects=rejects)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("address", ["database", "server"])
def test_what_earlier_runs_archived_came_first(shards: int, address: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(address)
    archived(url, [event(1), event(2), event(4, 0, DAY)], "earlier")
    archived(url, [event(5)], "earlier still")
    check(
        [event(1, 7), event(2), event(3)],
        [event(2), event(300), event(4), event(5)],
        archive=Archive(url, "mine"),
        passes=["e3/0", "e300/0", "e4/0"],
        rejects=[f"{Reason.CONFLICT} e1/7"],
        shards=shards,
    )


@pytest.mark.parametrize(
    ("payload", "came", "is_new_catalog"),
    [
        pytest.param(b'{"data":{"kind":"x","n":1}}', b'{ "data": {"n": 1, "kind": "x"}, "more": 1}', True, id="a copy"),
        pytest.param(b'{"data":{"kind":"x","n":1}}', b'{"data":{"kind":"y","n":1}}', False, id="another filter's"),
        pytest.param(b"", b'{"data":{"kind":"x","n":1}}', False, id="the bytes were erased"),
    ],
)
def test_a_copy_that_feeds_other_meters_is_a_duplicate_where_the_catalog_alone_has_changed(
    database: str, payload: bytes, came: bytes, is_new_catalog: bool
) -> None:
    first, second = event(1), event(1, 7)._replace(fed=(Fed(key_text("count")), Fed(key_text("sum"))))
    stored = said(batch([first]), payload)
    clickhouse.insert(database, "rating_keys", rating_key_rows([stored]))
    clickhouse.insert(database, "usage_events", usage_event_rows([stored], "earlier"))
    stage = deduplicate._DeduplicateFn(Archive(database, "mine"), 1)
    stage.start_bundle()
    rejects = list(stage.process((b"0", said(batch([second]), came)), WINDOW, *state()))
    assert [one.value.reason for one in rejects] == ([] if is_new_catalog else [Reason.CONFLICT])


def said(events: pa.RecordBatch, payload: bytes) -> pa.RecordBatch:
    """One event with its bytes."""
    return events.set_column(
        events.schema.get_field_index("payload"), "payload", pa.array([payload]).dictionary_encode()
    )


def test_what_the_same_run_archived_comes_again_as_its_input(database: str) -> None:
    """A bundle that is tried again: its events may be stored, and were not counted."""
    archived(database, [event(1)], "earlier")
    archived(database, [event(2), event(3)], "mine")
    check([event(1), event(2)], [event(3)], archive=Archive(database, "mine"), passes=["e2/0", "e3/0"])


def test_an_id_may_come_again_on_another_day() -> None:
    check([event(1), event(1, 0, DAY)], passes=["e1/0", "e1/0"])


def check_stream(*steps: Sequence[Usage] | int, passes: list[str], shards: int = 1) -> None:
    """What passes of a stream: each step is a bundle of events, or the day that the watermark reaches."""
    source = Stream().advance_watermark_to(START)
    for step in steps:
        if isinstance(step, int):
            source = source.advance_watermark_to(START + step * DAY_SECONDS)
        else:
            source = source.add_elements([TimestampedValue(batch(step), START)])
    with InProcess(options=PipelineOptions(["--streaming"])) as pipeline:
        out = pipeline | source.advance_watermark_to_infinity() | DeduplicateEvents(None, shards, KEEP)
        assert_that(out.events | beam.FlatMap(passed), equal_to(passes))


@pytest.mark.parametrize("shards", [1, 3])
def test_a_stream_remembers_over_bundles(shards: int) -> None:
    check_stream([event(1)], [event(1), event(2)], [event(2)], passes=["e1/0", "e2/0"], shards=shards)


@pytest.mark.parametrize("days", [1, 34, 36])
def test_as_long_as_state_is_kept_a_late_duplicate_is_caught_and_a_late_event_passes(days: int) -> None:
    check_stream([event(1)], days, [event(1), event(2)], passes=["e1/0", "e2/0"])


def test_no_runner_may_drop_what_may_still_come() -> None:
    """Dropped without a word: the tests' runner does not, so that the stream above would not show it."""
    pipeline = beam.Pipeline()
    pipeline | beam.Create([]) | DeduplicateEvents(keep=KEEP)
    lateness = {}

    class Visitor(PipelineVisitor):
        def visit_transform(self, applied: AppliedPTransform) -> None:
            if applied.full_label.endswith("ByDay"):
                lateness[applied.full_label] = applied.outputs[None].windowing.allowed_lateness

    pipeline.visit(Visitor())
    assert list(lateness.values()) == [KEEP.total_seconds()]


def state() -> list[batches.Bag]:
    return [batches.Bag() for _ in deduplicate._CELLS]


WINDOW = IntervalWindow(START // DAY_SECONDS * DAY_SECONDS, START // DAY_SECONDS * DAY_SECONDS + DAY_SECONDS)


def test_state_is_written_only_when_it_grew() -> None:
    cells = state()
    stage = deduplicate._DeduplicateFn(None, 1)
    stage.start_bundle()
    keyed = (b"0", batch([event(1), event(2)]))
    assert len(list(stage.process(keyed, WINDOW, *cells))) == 1
    assert [[len(run) for run in cell.values] for cell in cells] == [[32], [], [], [], []]
    for cell in cells:
        cell.add = cell.clear = None  # type: ignore[method-assign, assignment]
    assert list(stage.process(keyed, WINDOW, *cells)) == []


def test_of_much_state_little_is_written() -> None:
    """Were all of it written with each batch, it would be 200 times what comes."""
    cells, stage, written = state(), deduplicate._DeduplicateFn(None, 1), 0
    stage.start_bundle()
    for first in range(0, 20_000, 50):
        before = [list(cell.values) for cell in cells]
        events = batch([event(number) for number in range(first, first + 50)])
        assert sum(len(passes) for passes in stage.process((b"0", events), WINDOW, *cells)) == 50
        for old, cell in zip(before, cells):
            kept = old if cell.values[: len(old)] == old else []
            written += sum(map(len, cell.values[len(kept) :]))
    assert written < 15 * 20_000 * 16


def test_the_archive_is_asked_once_for_a_shard_and_day(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is state, with what came since."""
    archived(database, [event(1), event(2)], "earlier")
    cells, asked, query = state(), [], clickhouse.query
    monkeypatch.setattr(clickhouse, "query", lambda *args: asked.append(args) or query(*args))
    stage = deduplicate._DeduplicateFn(Archive(database, "mine"), 1)
    stage.start_bundle()
    for came, new in (([1], []), ([2, 1], []), ([1, 3], ["e3/0"]), ([3, 2], [])):
        events = stage.process((b"0", batch([event(name) for name in came])), WINDOW, *cells)
        assert [id for some in events for id in passed(some)] == new
    assert len(asked) == 1


def test_the_checks_above_can_fail() -> None:
    with pytest.raises(Exception, match="Failed assert"):
        check([event(1)], passes=["e2/0"])
    with pytest.raises(Exception, match="Failed assert"):
        check_stream([event(1)], passes=["e2/0"])
