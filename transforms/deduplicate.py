"""deduplicate: attributed events → each identity once, in keyed state.

The key is a shard of the identity's hash, the window a UTC day of event time, the state the packed, sorted identities:
16 bytes an event. It ends some time after its window, when no duplicate that is accepted can come any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.metrics import Metrics
from apache_beam.transforms.userstate import BagStateSpec
from apache_beam.transforms.window import FixedWindows, GlobalWindows, TimestampedValue
from apache_beam.typehints.decorators import no_annotations
from apache_beam.utils.timestamp import Duration, Timestamp

from meterline.schemas.event import EventError, Reason, microseconds, parse_json
from meterline.schemas.records import RatingKey, Reject
from meterline.transforms.archive import EARLIER, Archive, archived_twins
from meterline.transforms.columns import DAY_SECONDS, utc_days


class Deduplicated(NamedTuple):
    events: beam.PCollection[pa.RecordBatch]
    rejects: beam.PCollection[Reject]


@dataclass
class DeduplicateEvents(beam.PTransform):
    """Let the first event of an identity pass; archived events came before all others.

    Args:
      archive: What earlier runs stored; none where they stored nothing.
      shards: Number of keys: how many workers can share the work.
      keep: How long after its event time an event may come; none where input is bounded and state ends with the run.
    """

    archive: Archive | None = None
    shards: int = 1
    keep: timedelta | None = None

    @no_annotations
    def expand(self, events: beam.PCollection[pa.RecordBatch]) -> Deduplicated:
        """`events` are attributed."""
        lateness = Duration(seconds=int((self.keep or timedelta(0)).total_seconds()))
        deduplicated = (
            events
            | "Shard" >> beam.ParDo(_ShardFn(self.shards)).with_output_types(tuple[bytes, pa.RecordBatch])
            | "ByDay" >> beam.WindowInto(FixedWindows(DAY_SECONDS), allowed_lateness=lateness)
            | "Deduplicate"
            >> beam.ParDo(_DeduplicateFn(self.archive, self.shards))
            .with_output_types(pa.RecordBatch)
            .with_outputs("rejects", main="events")
        )
        return Deduplicated(
            *(
                deduplicated[name] | f"Forever_{name}" >> beam.WindowInto(GlobalWindows())
                for name in Deduplicated._fields
            )
        )


def _cut(events: pa.RecordBatch, shards: int) -> Iterator[tuple[int, int, pa.RecordBatch]]:
    """The rows of each UTC day and shard."""
    days = utc_days(events["time"])
    shard_of_row = identity_columns(events["identity"])[0] % np.uint64(shards)
    pieces, piece_of_row = np.unique(days * shards + shard_of_row.astype(np.int64), return_inverse=True)
    for number, piece in enumerate(pieces.tolist()):
        whole = len(pieces) == 1
        yield *divmod(piece, shards), events if whole else events.take(pa.array(np.flatnonzero(piece_of_row == number)))


class _ShardFn(beam.DoFn):
    """Cut batches by day and shard."""

    def __init__(self, shards: int) -> None:
        self._shards = shards

    def process(self, events: pa.RecordBatch) -> Iterator[Any]:
        for day, shard, part in _cut(events, self._shards):
            yield TimestampedValue((b"%d" % shard, part), Timestamp(day * DAY_SECONDS))


def identity_columns(identities: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each identity: 8 bytes and 4 bytes of the id's hash, and 4 bytes of the content's."""
    packed = np.frombuffer(identities.buffers()[1] or b"", np.uint32)
    packed = packed[4 * identities.offset : 4 * (identities.offset + len(identities))].reshape(-1, 4)
    high = np.ascontiguousarray(packed[:, :2]).view(np.uint64).reshape(-1)
    return high, packed[:, 2], packed[:, 3]


_SEEN = np.dtype([("high", np.uint64), ("low", np.uint32), ("content", np.uint32)])


class Seen:
    """A set of identities by the hash of the id; of each, the content that came first stays.

    It is kept in sorted runs, each more than twice as long as the next: what is added is merged with runs of its size,
    so that the cost of adding grows with the logarithm of what is there.

    Args:
      runs: As `runs` gave them.
    """

    def __init__(self, runs: Iterable[bytes] = ()) -> None:
        self.runs = list(runs)

    def add(self, identities: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Add identities in the order they came.

        Returns:
          Which were new, and for each the content that was first under its id.
        """
        came = np.empty(len(identities), _SEEN)
        came["high"], came["low"], came["content"] = identity_columns(identities)
        # The sort is stable, so the first of each id is the one that came first.
        order = np.argsort(came["high"], kind="stable")
        ranked = came[order]
        same_high, same_low = (ranked[part][1:] == ranked[part][:-1] for part in ("high", "low"))
        if (same_high & ~same_low).any():  # Rare: two ids with the same 64 bits.
            order = np.lexsort((came["low"], came["high"]))
            ranked = came[order]
            same_high, same_low = (ranked[part][1:] == ranked[part][:-1] for part in ("high", "low"))
        starts = np.ones(len(came), bool)
        starts[1:] = ~(same_high & same_low)
        firsts = ranked[starts]
        new = np.ones(len(firsts), bool)
        first_content = firsts["content"].copy()
        for packed in self.runs:
            run = np.frombuffer(packed, _SEEN)
            places, known = _find(run, firsts)
            first_content[known] = run["content"][places[known]]
            new &= ~known
        if new.any():
            self._keep(firsts[new])

        group = np.cumsum(starts) - 1
        is_new, content = np.empty(len(came), bool), np.empty(len(came), np.uint32)
        is_new[order], content[order] = starts & new[group], first_content[group]
        return is_new, content

    def _keep(self, run: np.ndarray) -> None:
        while self.runs and len(self.runs[-1]) <= 2 * run.nbytes:
            other = np.frombuffer(self.runs.pop(), _SEEN)
            run = np.insert(other, _find(other, run)[0], run)
        self.runs.append(run.tobytes())

    def __len__(self) -> int:
        return sum(map(len, self.runs)) // _SEEN.itemsize


def _find(run: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each identity is in a run, or is to be inserted, and whether it is there."""
    high, low = run["high"], run["low"]
    places = np.searchsorted(high, wanted["high"], side="left")
    # Two ids with the same 64 bits are rare; they stand side by side, in order of the other 32.
    behind = np.arange(len(wanted))
    while True:
        behind = behind[places[behind] < len(run)]
        at = places[behind]
        behind = behind[(high[at] == wanted["high"][behind]) & (low[at] < wanted["low"][behind])]
        if not len(behind):
            break
        places[behind] += 1
    known = places < len(run)
    at = places[known]
    known[known] = (high[at] == wanted["high"][known]) & (low[at] == wanted["low"][known])
    return places, known


_IDENTITIES = f"""
SELECT identity FROM usage_events
WHERE toYYYYMMDD(time) = {{day:UInt32}} AND {EARLIER}
  AND reinterpretAsUInt64(substring(identity, 1, 8)) % {{shards:UInt64}} = {{shard:UInt64}}
"""


# The runs of a key lie in cells of state by their length, each up to 32 times as long as those of the cell before
# (the last has all that are longer): a cell is written as a whole, and that of the long runs seldom changes.
_CELLS = tuple(BagStateSpec(f"seen_{number}", BytesCoder()) for number in range(5))


def _cell_of(run: bytes) -> int:
    return min((len(run) // _SEEN.itemsize).bit_length() // 5, len(_CELLS) - 1)


class _DeduplicateFn(beam.DoFn):
    """State, per shard and day: the identities seen, 16 bytes each, in runs. It begins with those that are archived."""

    def __init__(self, archive: Archive | None, shards: int) -> None:
        self._archive, self._shards = archive, shards

    def process(
        self,
        keyed: tuple[bytes, pa.RecordBatch],
        window: Any = beam.DoFn.WindowParam,
        cell_0: Any = beam.DoFn.StateParam(_CELLS[0]),
        cell_1: Any = beam.DoFn.StateParam(_CELLS[1]),
        cell_2: Any = beam.DoFn.StateParam(_CELLS[2]),
        cell_3: Any = beam.DoFn.StateParam(_CELLS[3]),
        cell_4: Any = beam.DoFn.StateParam(_CELLS[4]),
    ) -> Iterator[Any]:
        shard, events = keyed
        cells = (cell_0, cell_1, cell_2, cell_3, cell_4)
        # A bag gives its elements in any order; the runs' is that of their lengths.
        stored = [sorted(cell.read(), key=len, reverse=True) for cell in cells]
        runs = [run for of_cell in reversed(stored) for run in of_cell]
        seen = Seen(runs or self._archived(int(window.start) // DAY_SECONDS, int(shard)))
        is_new, first_content = seen.add(events["identity"])
        yield from self._told(events, is_new, first_content)
        for number, (cell, before) in enumerate(zip(cells, stored)):
            now = [run for run in seen.runs if _cell_of(run) == number]
            if now[: len(before)] != before:
                cell.clear()
                before = []
            for run in now[len(before) :]:
                cell.add(run)
        if is_new.any():
            yield events if is_new.all() else events.filter(pa.array(is_new))

    def _archived(self, day: int, shard: int) -> list[bytes]:
        """What earlier runs archived of a key.

        It may be read as state although state may be lost: what this run archived just before a crash is not in it.
        """
        if self._archive is None:
            return []
        number = int(str(np.datetime64(day, "D")).replace("-", ""))
        rows = self._archive.query(_IDENTITIES, {"day": number, "shard": shard, "shards": self._shards})
        seen = Seen()
        for batch in rows.to_batches():
            seen.add(batch["identity"])
        return seen.runs

    def _told(self, events: pa.RecordBatch, is_new: np.ndarray, first_content: np.ndarray) -> Iterator[Any]:
        """Count events by what became of them, and reject the conflicts."""
        content = identity_columns(events["identity"])[2]
        doubtful = np.flatnonzero(~is_new & (content != first_content))
        same = self._same_but_for_meters(events.take(pa.array(doubtful))) if len(doubtful) and self._archive else []
        conflicts = [row for row in doubtful.tolist() if events["identity"][row].as_py() not in same]
        Metrics.counter("deduplicate", "accepted").inc(int(is_new.sum()))
        Metrics.counter("deduplicate", "duplicate").inc(int((~is_new).sum()) - len(conflicts))
        for row in conflicts:
            Metrics.counter("deduplicate", Reason.CONFLICT).inc()
            yield beam.pvalue.TaggedOutput("rejects", _conflict(events, row, first_content[row], content[row]))

    def _same_but_for_meters(self, events: pa.RecordBatch) -> set[bytes]:
        """Identities of events that equal the archived one of their id in all but what the catalog adds.

        The hash of the content covers the meters of the catalog, so it changes when a meter is added; a copy of an
        older event is a duplicate all the same. That the two feed other meters may also be the work of a filter, so
        what they say must be the same.
        """
        assert self._archive is not None
        archived = {
            batch["identity"][row].as_py()[:12]: (batch, row)
            for batch in archived_twins(self._archive.url, events)
            for row in range(batch.num_rows)
        }
        same = set()
        for row, identity in enumerate(events["identity"].to_pylist()):
            batch, place = archived.get(identity[:12], (None, 0))
            if batch is None or any(
                events[part][row].as_py() != batch[part][place].as_py() for part in ("time", "type", "subject")
            ):
                continue
            mine, first = _metered(events, row), _metered(batch, place)
            both = mine.keys() & first.keys()
            payloads = events["payload"][row].as_py(), batch["payload"][place].as_py()
            if all(mine[meter] == first[meter] for meter in both) and _say_the_same(*payloads):
                same.add(identity)
        return same


def _say_the_same(one: bytes, other: bytes) -> bool:
    try:
        return one == other or parse_json(one)["data"] == parse_json(other)["data"]
    except EventError:  # Bytes that were erased say nothing.
        return False


def _metered(events: pa.RecordBatch, row: int) -> dict[str, tuple[Any, ...]]:
    """By meter: the dimensions, quantity and counted value of an event."""
    keys = (RatingKey.parse(text) for text in events["rating_keys"][row].as_py())
    values = zip(events["quantities"][row].as_py(), events["counted_values"][row].as_py())
    return {key.meter_id: (key.said, *value) for key, value in zip(keys, values)}


def _conflict(events: pa.RecordBatch, row: int, first: int, came: int) -> Reject:
    event = {name: events[name][row].as_py() for name in ("id", "source", "payload", "origin", "position")}
    return Reject(
        "deduplicate",
        Reason.CONFLICT,
        f"id {event['id']!r} of source {event['source']!r} came before with other content "
        f"(content hash {first:08x} then, {came:08x} now)",
        event["payload"],
        event["origin"],
        event["position"],
        microseconds(events["received_time"][row].as_py()),
    )
