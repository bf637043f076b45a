"""Worlds that come in badly: cut into runs, shuffled, sent twice, late; runs that fail, fall back and are killed; rows
that reach ClickHouse late, twice and out of order. All of it from one seed, and nothing of it may change a row.

What may go wrong is what the Beam model and docs/exactly_once.md permit, and all of that:

- **Runs** start without state and recall the archive: those over files when they have read their input, streams each
  time they touch a billing period first. One runs at a time. A killed one is repeated with the same input; where only
  its line items were missing, `rate --from-archive` may complete them instead.
- **Bundles** are of any size. One that fails leaves no state and no output, but the rows it had inserted, in part or
  whole; it is tried again, perhaps as other bundles, by a new worker.
- **Checkpoints** hold everything a run is: position in its input, both shuffles, state, watermark, counters. An older
  one may be restored at any time: what came after it comes again, in other bundles and another order.
- **Order** is free, but in worlds where two events contend for one identity: there the events of a key keep theirs.
  Runs keep theirs also in worlds with voids: what is voided came in an earlier run, or will only in a later one.
- **The watermark** of a stream follows the time at which the oldest record on its way to `rate` was received, or runs
  ahead of it by less than messages may wait and a day. State of a window that has ended by the job's own allowed
  lateness is gone, and what comes for it is dropped.
- **Inserts** that were acknowledged are stored, and may be repeated much later. Of others, when the worker died, any
  part is stored: now, later or never; of events not after the next run has begun, which waits for that.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, time, timedelta
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pyarrow as pa

from meterline.pipelines import rate_usage
from meterline.transforms import clickhouse

from . import auditor, engine
from .auditor import Books
from .delivery import load, microseconds
from .generator import World, generate
from .ledger import TABLES, Different, compare, stored

# One world in 200 is large, so that identities collide where they are cut short.
LARGE, EVERY = 800, 200
MAX_FAULTS = 8
# Where most goes wrong in a world, so that each place has worlds in which it is tried again and again.
WEAK_SPOTS = ("", "query", "voids", "usage_events", "line_items", "stored", "commit")
ARCHIVE = ("rating_keys", "voids", "usage_events")
# Counters that say nothing of where a record went.
_ELSEWHERE = ("rate", "rec", "write")
BEGINNING = -(2**62)  # a watermark before all time


# --- what comes in --------------------------------------------------------------------------------------


class Scenario(NamedTuple):
    """A world and how it comes in.

    `inputs` are the records of each run in their order; `ordered` says whether that order decides anything, `in_turn`
    whether the order of the runs does. In a quiet one all is rated before something comes that was received later.
    """

    seed: int
    world: World
    inputs: list[list[auditor.Arrival]]
    ordered: bool
    in_turn: bool
    shards: int
    sizes: engine.Sizes
    ahead: timedelta
    fault_rate: float
    weak_spot: str
    is_stream: bool
    is_quiet: bool

    @property
    def books(self) -> Books:
        arrivals = [arrival for arrivals in self.inputs for arrival in arrivals]
        return auditor.audit_arrivals(arrivals, self.world.catalog, self.world.horizon)


def imagine(seed: int, altered: Callable[[World, int], World] | None = None) -> Scenario:
    """The scenario of a seed, always the same; `altered` may change the prices of its world."""
    rng = Random(f"chaos {seed}")
    ordered = rng.random() < 0.35
    world = generate(seed, LARGE if is_large(seed) else rng.randint(20, 60), conflicts=ordered)
    if altered is not None:
        world = altered(world, seed)
    arrivals = _received(rng, world)
    cuts = sorted(rng.randint(0, len(arrivals)) for _ in range(rng.choice([0, 0, 1, 1, 2])))
    inputs = [arrivals[start:end] for start, end in zip([0, *cuts], [*cuts, len(arrivals)])]
    if not ordered and rng.random() < 0.3:
        rng.shuffle(inputs)
    has_voids = len(inputs) > 1 and rng.random() < 0.5
    if has_voids:
        inputs = _voided(rng, world, inputs)
    sizes = engine.Sizes(
        rng.choice([10, 100, 50_000]), rng.choice([0, 5, 200_000]), rng.choice([0, 2, 64]), rng.random() < 0.8
    )
    ahead = timedelta(hours=rng.choice([0, 23, 23]))
    shards, rate, weak_spot = rng.choice([1, 3]), rng.choice([0, 0.02, 0.03, 0.04]), rng.choice(WEAK_SPOTS)
    # A stream has a horizon, and takes no voids.
    is_stream = world.horizon is not None and not has_voids and rng.random() < 0.8
    in_turn = ordered or has_voids
    is_quiet = is_stream and rng.random() < 0.4
    return Scenario(seed, world, inputs, ordered, in_turn, shards, sizes, ahead, rate, weak_spot, is_stream, is_quiet)


def is_large(seed: int) -> bool:
    return seed % EVERY == EVERY // 2


def _received(rng: Random, world: World) -> list[auditor.Arrival]:
    """The records in an order of arrival: some of them twice, some at the edge of the horizon."""
    records = world.records + rng.sample(world.records, len(world.records) // 8)
    rng.shuffle(records)
    moments = sorted(world.received + timedelta(minutes=rng.choice([0, 0, 50, 600])) for _ in range(3))
    arrivals = [auditor.Arrival(record, rng.choice(moments)) for record in records]
    if world.horizon is not None and rng.random() < 0.8:
        # What happened late on some day comes, or comes again, just before it is too old; some other records with it.
        dated = sorted(_dated(world, rng.sample(world.records, 20)), key=_time_of_day)
        if dated:
            edge, _ = dated[-1]
            late = [record for time, record in dated if time.date() == edge.date()] + rng.sample(records, 5)
            firsts = set(late[::2])
            arrivals = [arrival for arrival in arrivals if arrival.record not in firsts]
            for record in late:
                age = rng.choice([timedelta(0), timedelta(microseconds=1), timedelta(minutes=rng.randint(1, 40))])
                arrivals.append(auditor.Arrival(record, max(edge + world.horizon - age, moments[-1])))
    return sorted(arrivals, key=lambda arrival: arrival.received)


def _dated(world: World, records: list[bytes]) -> Iterator[tuple[datetime, bytes]]:
    """The good ones, with their times."""
    for record in records:
        try:
            yield auditor.event_of(record, world.catalog, world.received, world.horizon).time, record
        except auditor.Rejected:
            continue


def _time_of_day(dated: tuple[datetime, bytes]) -> tuple[time, bytes]:
    return dated[0].time(), dated[1]


def _voided(rng: Random, world: World, inputs: list[list[auditor.Arrival]]) -> list[list[auditor.Arrival]]:
    """The same with voiding events: of events that an earlier run has accepted, some of them twice, and, in vain, of
    what no run accepts, or only a later one. An event of the same run is left out: what went wrong decides whether it
    is archived by then.
    """

    def accepted(runs: int) -> dict[auditor.Name, auditor.Event]:
        arrivals = [arrival for arrivals in inputs[:runs] for arrival in arrivals]
        books = auditor.audit_arrivals(arrivals, world.catalog, world.horizon)
        return {auditor.name_of(event): event for event in books.accepted}

    known = [accepted(runs) for runs in range(len(inputs) + 1)]
    with_voids = []
    for run, arrivals in enumerate(inputs):
        named = _some(rng, known[run]) * rng.choice([1, 1, 2])
        named += _some(rng, {name: event for name, event in known[-1].items() if name not in known[run + 1]})[:2]
        named += [replace(event, id=f"no {event.id}"[:512]) for event in _some(rng, known[run])[:1]]
        arrivals = arrivals.copy()
        for event in named if arrivals else ():
            place = rng.randrange(len(arrivals))
            void = auditor.void_record(event, rng.choice(["a reason", "another"]))
            arrivals.insert(place, auditor.Arrival(void, arrivals[place].received))
        with_voids.append(arrivals)
    return with_voids


def _some(rng: Random, events: dict[auditor.Name, auditor.Event]) -> list[auditor.Event]:
    return rng.sample([events[name] for name in sorted(events)], len(events) // rng.randint(1, 8))


# --- what goes wrong ------------------------------------------------------------------------------------


class Crash(Exception):
    """A bundle is gone, with the worker that had it."""


class Killed(Exception):
    """A run is gone, with all it was."""


@dataclass
class Faults:
    """When something goes wrong."""

    rng: Random
    rate: float
    weak_spot: str
    left: int = MAX_FAULTS
    forgotten: int = 0  # how often a run began again from nothing but the archive

    def strike(self, place: str) -> bool:
        rate = 8 * self.rate if place == self.weak_spot else self.rate
        if self.left and self.rng.random() < rate:
            self.left -= 1
            return True
        return False

    def step(self, place: str) -> None:
        """The worker may fail here."""
        if self.strike(place):
            raise Crash


@dataclass
class Sink:
    """The way to ClickHouse.

    Rows are stored only when somebody asks for them, which nobody can tell from storing them at once, and is faster.
    """

    url: str
    rng: Random
    faults: Faults
    at_once: bool = False
    archived: bool = False
    _insert: Any = field(default_factory=lambda: clickhouse.insert)
    _query: Any = field(default_factory=lambda: clickhouse.query)
    _arrived: dict[str, list[pa.Table]] = field(default_factory=lambda: {table: [] for table in TABLES[::-1]})
    _late: list[tuple[str, pa.Table]] = field(default_factory=list)
    _last: list[tuple[str, pa.Table]] = field(default_factory=list)  # come when all else is over
    _visible: Random = field(default_factory=lambda: Random(0))

    def insert(self, url: str, table: str, rows: pa.Table) -> None:
        assert url == self.url
        self.let_late_rows_in(0.1)
        if self.faults.strike(table):
            some = rows.filter(pa.array([self.rng.random() < 0.5 for _ in range(rows.num_rows)], pa.bool_()))
            place = self.rng.choice(["stored", "stored", "late", "late", "lost"])
            part = self.rng.choice([rows, some])
            if place == "stored":
                self._store(table, part)
            elif place == "late":
                self._delay(table, part)
            raise Crash
        self._store(table, rows)
        if self.rng.random() < 0.15:
            self._delay(table, rows)
        self.faults.step("stored")

    def query(self, url: str, sql: str, *args: Any, **options: Any) -> pa.Table:
        assert url == self.url
        self.faults.step("query")
        self.let_late_rows_in(0.5)
        if "FROM line_items" in sql:
            self.flush(*TABLES)
        elif self._visible.random() < 0.3:
            # A run's own rows, which it must not see; those of earlier runs are stored.
            self.flush(*ARCHIVE)
        return self._shuffled(self._query(url, sql, *args, **options))

    def _shuffled(self, rows: pa.Table) -> pa.Table:
        """The same rows in an order, and in batches, that the seed decides: ClickHouse's threads give any.

        What the seed decides after it may not depend on their number: of rows that say the same some may be gone.
        """
        rng = Random(self.rng.random())
        texts = [str(sorted(row.items())) for row in rows.to_pylist()]
        order = sorted(range(len(texts)), key=lambda place: texts[place])
        rng.shuffle(order)
        cut = rng.randint(0, len(order))
        parts = [rows.take(pa.array(some, pa.int64())).combine_chunks() for some in (order[:cut], order[cut:])]
        return pa.concat_tables(parts)

    def begin(self) -> None:
        """A run begins: what an earlier one sent to the archive is stored by now, or never will be."""
        for waiting in (self._late, self._last):
            late = waiting.copy()
            waiting[:] = [(table, rows) for table, rows in late if table not in ARCHIVE]
            for table, rows in late:
                if table in ARCHIVE and self.rng.random() < 0.5:
                    self._store(table, rows)
        self.flush(*ARCHIVE)

    def _delay(self, table: str, rows: pa.Table) -> None:
        (self._late if self.rng.random() < 0.7 else self._last).append((table, rows))

    def let_late_rows_in(self, chance: float) -> None:
        while self._late and self.rng.random() < chance:
            self._store(*self._late.pop(self.rng.randrange(len(self._late))))

    def settle(self) -> None:
        """The end of all that was late; what nobody acknowledged may never come."""
        late = self._late + self._last
        self.rng.shuffle(late)
        for table, rows in late:
            if self.rng.random() < 0.8:
                self._store(table, rows)
        self.flush(*TABLES)

    def _store(self, table: str, rows: pa.Table) -> None:
        if rows.num_rows:
            self.archived |= table == "usage_events"
            self._arrived[table].append(rows)
        if self.at_once:
            self.flush(table)

    def flush(self, *tables: str) -> None:
        for table in tables:
            arrived, self._arrived[table] = self._arrived[table], []
            # Of rows with one key and revision the last insert wins, so not all go in one.
            cut = self.rng.randint(0, len(arrived)) if table == "line_items" else 0
            for some in (arrived[:cut], arrived[cut:]):
                if some:
                    self._insert(self.url, table, pa.concat_tables(some).unify_dictionaries())


# --- runs -----------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """All that a run is, but for its worker: what a checkpoint holds. Values in it are never changed, only replaced."""

    position: int = 0
    touched: list[tuple[bytes, int]] = field(default_factory=list)  # the number is when it was received, as in `since`
    pieces: list[engine.Piece] = field(default_factory=list)
    usage: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    since: dict[bytes, int] = field(default_factory=dict)
    state: engine.State = field(default_factory=engine.State)
    watermark: int = BEGINNING
    counters: Counter[str] = field(default_factory=Counter)

    def copy(self) -> Progress:
        mine = {name: value.copy() if hasattr(value, "copy") else value for name, value in vars(self).items()}
        return Progress(**mine)

    def has_archived(self, arrivals: list[auditor.Arrival]) -> bool:
        """Whether nothing but line items can be missing."""
        return self.position == len(arrivals) and not self.pieces

    def is_done(self, arrivals: list[auditor.Arrival]) -> bool:
        return self.has_archived(arrivals) and not self.usage and not self.touched

    def put(self, usage: list[engine.Usage], received: int) -> None:
        for key, packed in usage:
            self.usage[key] = (*self.usage.get(key, ()), packed)
            self.since[key] = min(received, self.since.get(key, received))

    def pending(self) -> list[int]:
        """When all of it was received that is on its way to `rate`."""
        return [*(piece.received_time for piece in self.pieces), *(at for _, at in self.touched), *self.since.values()]


@dataclass
class Run:
    """One attempt at an input, by a job that was submitted for it."""

    job: engine.Job
    scenario: Scenario
    sink: Sink
    rng: Random
    origin: str
    arrivals: list[auditor.Arrival]
    now: Progress = field(default_factory=Progress)

    def finish(self) -> None:
        """Bundle after bundle.

        Raises:
          Killed: somewhere between; `now` is what was committed.
        """
        self.job = replace(self.job, run_id=f"{self.rng.getrandbits(128):032x}")
        self.sink.begin()
        worker = engine.Worker(self.job)
        checkpoints = [self.now.copy()]
        while not self.now.is_done(self.arrivals):
            after = self.now.copy()
            try:
                with engine.counting(after.counters):
                    self._bundle(worker, after)
                self.sink.faults.step("commit")
            except Crash:
                worker = engine.Worker(self.job)
                match self.rng.choice(["bundle", "bundle", "checkpoint", "run", "run"]):
                    case "checkpoint":
                        self.now = self.rng.choice(checkpoints).copy()
                    case "run":
                        self.sink.faults.forgotten += 1
                        raise Killed from None
                continue
            self.now = after
            if self.rng.random() < 0.3:
                checkpoints.append(self.now.copy())

    def _bundle(self, worker: engine.Worker, now: Progress) -> None:
        """Some bundle that is due."""
        has_read = now.position == len(self.arrivals)
        is_stream = self.job.keep is not None
        due = []
        if not has_read and not (self.scenario.is_quiet and self._waits(now)):
            due.append(self._attribute)
        if now.pieces:
            due.append(self._deduplicate)
        if now.touched and (is_stream or has_read):
            due.append(self._recall)
        # Over files the usage of a key is all there when it is rated.
        if now.usage and (is_stream or not due):
            due.append(self._rate)
        self.rng.choice(due)(worker, now)

    def _waits(self, now: Progress) -> bool:
        """Whether what comes next was received later than something that is on its way."""
        return any(received < microseconds(self.arrivals[now.position].received) for received in now.pending())

    def _attribute(self, worker: engine.Worker, now: Progress) -> None:
        pieces, touched = worker.attribute(self._blocks(now))
        now.pieces += pieces
        if self.job.keep is not None:
            touched = worker.first_touches(touched, now.state)
        received = min((piece.received_time for piece in pieces), default=0)
        now.touched += [(one, received) for one in touched]

    def _recall(self, worker: engine.Worker, now: Progress) -> None:
        some = now.touched
        if self.job.keep is not None:
            self.rng.shuffle(some)
            some = some[: self.rng.randint(1, len(some))]
        now.touched = now.touched[len(some) :]
        # `meterline rate` leaves it out where nothing is archived.
        if self.sink.archived or self.rng.random() < 0.2:
            now.put(worker.recall([one for one, _ in some]), min(at for _, at in some))

    def _deduplicate(self, worker: engine.Worker, now: Progress) -> None:
        pieces = self._some_pieces(now)
        received = min((piece.received_time for piece in pieces), default=0)
        now.put(worker.deduplicate(pieces, now.state), received)
        self._advance(worker, now)

    def _rate(self, worker: engine.Worker, now: Progress) -> None:
        worker.rate(list(self._panes(now)), now.state)

    def _blocks(self, now: Progress) -> Iterator[engine.Block]:
        for _ in range(self.rng.randint(1, 4)):
            rest = self.arrivals[now.position : now.position + self.rng.choice([1, 15, 50, 200])]
            records = [arrival.record for arrival in rest if arrival.received == rest[0].received]
            if records:
                received_time = microseconds(rest[0].received)
                yield engine.block(records, now.position, self.origin, received_time)
                now.position += len(records)

    def _some_pieces(self, now: Progress) -> list[engine.Piece]:
        """Pieces out of the first shuffle; without those that come too late, as a runner drops them."""
        taken: list[engine.Piece] = []
        left: list[engine.Piece] = []
        waiting: set[engine.SeenKey] = set()
        wanted = self.rng.choice([1, 5, 20, 50])
        for piece in now.pieces:
            key = piece.shard, piece.window
            if len(taken) < wanted and key not in waiting and self.rng.random() < 0.7:
                taken.append(piece)
            else:
                left.append(piece)
                if self.scenario.ordered:
                    waiting.add(key)
        now.pieces = left
        if not self.scenario.ordered:
            self.rng.shuffle(taken)
        return [piece for piece in taken if not self.job.windowing.has_ended(piece.window, now.watermark)]

    def _panes(self, now: Progress) -> Iterator[tuple[bytes, list[bytes]]]:
        """Some usage of some keys out of the second shuffle, in any order."""
        keys = self.rng.sample(sorted(now.usage), min(len(now.usage), self.rng.choice([3, 20, 100, 300])))
        for key in keys:
            waiting = now.usage.pop(key)
            in_parts = self.job.keep is not None and self.rng.random() < 0.5
            pane = self.rng.sample(waiting, 1 if in_parts else len(waiting))
            if len(pane) < len(waiting):
                now.usage[key] = _without(waiting, pane)
            else:
                del now.since[key]
            yield key, pane

    def _advance(self, worker: engine.Worker, now: Progress) -> None:
        """Let the watermark of a stream follow what was received, and state end."""
        if self.job.keep is None or self.rng.random() < 0.2:
            return
        if pending := now.pending():
            ahead = (self.scenario.ahead + rate_usage.RETENTION) // timedelta(microseconds=1)
            now.watermark = max(now.watermark, min(pending) + ahead)
        worker.advance(now.watermark, now.state)


def _without(all_of_them: tuple[bytes, ...], some: list[bytes]) -> tuple[bytes, ...]:
    rest = list(all_of_them)
    for one in some:
        rest.remove(one)
    return tuple(rest)


# --- all of it ------------------------------------------------------------------------------------------


def check(seed: int, url: str, altered: Callable[[World, int], World] | None = None) -> None:
    """Play a seed, and compare what ClickHouse holds in the end with the auditor's books.

    Args:
      altered: As in `imagine`.

    Raises:
      Different: they are not equal to the last digit, or some record is nowhere.
    """
    empty(url)
    scenario = imagine(seed, altered)
    counters, forgotten = play(scenario, url)
    books = scenario.books
    compare(stored(url), books, scenario.world.catalog)
    account_for(books, counters, forgotten)


def seeds(variable: str, count: int) -> range:
    """As many as a variable of the environment says, else `count`; or the one that METERLINE_SEED names."""
    if seed := os.environ.get("METERLINE_SEED"):
        return range(int(seed), int(seed) + 1)
    return range(int(os.environ.get(variable, count)))


def check_or_replay(seed: int, url: str, file: str, altered: Callable[[World, int], World] | None = None) -> None:
    """The same for a test in a file of this folder: what fails says how to play it again."""
    try:
        check(seed, url, altered)
    except Exception as error:
        command = f"METERLINE_SEED={seed} .venv/bin/python -m pytest tests/simulation/{Path(file).name}"
        raise AssertionError(f"seed {seed}: {error}\nreplay it: {command}") from error


def empty(url: str) -> None:
    for table in TABLES:
        clickhouse.command(url, f"TRUNCATE TABLE {table}")


def play(scenario: Scenario, url: str) -> tuple[Counter[str], int]:
    """Rate the inputs; the counters of all runs that counted, and how many began again."""
    rng = Random(f"play {scenario.seed}")
    faults = Faults(rng, scenario.fault_rate, scenario.weak_spot)
    sink = Sink(url, rng, faults)
    counters: Counter[str] = Counter()
    complete_from_archive = rng.random() < 0.1
    with submitted(scenario, url, sink) as job:
        waiting = list(enumerate(scenario.inputs))
        while waiting:
            number, arrivals = waiting.pop(0)
            run = Run(job, scenario, sink, rng, f"run {number}", arrivals)
            try:
                run.finish()
            except Killed:
                if not run.now.has_archived(arrivals) or rng.random() < 0.5:
                    later = 0 if scenario.in_turn else rng.randint(0, len(waiting))
                    waiting.insert(later, (number, arrivals))
                    continue
                complete_from_archive = True
            counters += run.now.counters
        while complete_from_archive:
            run = Run(job, scenario, sink, rng, "", [])
            with engine.counting(Counter()):
                try:
                    sink.begin()
                    run.now.put(engine.Worker(job).recall(engine.all_spans(url), anew=True), 0)
                    run.finish()
                    break
                except (Crash, Killed):
                    continue
        sink.settle()
    return counters, faults.forgotten


@contextmanager
def submitted(scenario: Scenario, url: str, sink: Sink) -> Iterator[engine.Job]:
    """The job for a scenario, with the sink between it and ClickHouse."""
    with tempfile.TemporaryDirectory() as folder, engine.between(sink.insert, sink.query, scenario.sizes):
        horizon = scenario.world.horizon
        keep = horizon + rate_usage.RETENTION + rate_usage.SLACK if scenario.is_stream and horizon else None
        catalog, windowing = load(scenario.world, Path(folder)), engine.declared_windowing(keep)
        yield engine.Job(catalog, url, horizon, keep, scenario.shards, windowing, "")


def account_for(books: Books, counters: Counter[str], forgotten: int) -> None:
    """Every record that came is in one place, and the job's own counters say so."""
    expected = Counter(f"{stage}/{reason}" for reason, stage, _ in books.rejects)
    expected["validate/records"] = len(books.accepted) + books.duplicates + len(books.rejects)
    found = Counter({name: count for name, count in counters.items() if count and not name.startswith(_ELSEWHERE)})
    accepted, duplicates = found.pop("deduplicate/accepted", 0), found.pop("deduplicate/duplicate", 0)
    if found != expected or accepted + duplicates != len(books.accepted) + books.duplicates:
        raise Different(f"counters: the job counted {counters}, the books {expected}")
    # What a run had archived before it began again is known already.
    if accepted > len(books.accepted) or (accepted < len(books.accepted) and not forgotten):
        raise Different(f"{accepted} events were counted as accepted, the books have {len(books.accepted)}")
