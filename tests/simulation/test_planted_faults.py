"""The chaos simulation can fail: each of these defects, put into the real code, is found within some seeds.

`python -m pytest tests/simulation/test_planted_faults.py -rP` prints which seed finds each, and what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest

from meterline.pipelines import rate_usage
from meterline.schemas import records
from meterline.schemas.records import LineItem, RatingKey
from meterline.transforms import attribute, deduplicate, meter, rate, recall, write
from meterline.transforms.archive import Archive
from meterline.transforms.rules import aggregation
from meterline.transforms.rules.attribution import directory
from meterline.transforms.rules.line_items import line_items

from . import chaos, ledger
from .ledger import Different

Plant = Callable[[pytest.MonkeyPatch], None]
ItemsBefore = dict[tuple[int, str], LineItem]


# --- what is written again ------------------------------------------------------------------------------


def _change_items(patch: pytest.MonkeyPatch, change: Callable[[LineItem, LineItem | None], LineItem | None]) -> None:
    """Pass on of each line item what `change` makes of it and of the one that the state before would have given."""
    process = rate.Rater.rate

    def changed(
        self: Any, keyed: Any, catalog: Any, hot: Any = None, cold: Any = None, over: Any = None
    ) -> Iterator[Any]:
        before = _items(keyed[0], catalog, [*filter(None, [hot.read()]), *cold.read()] if hot else [])
        for output in process(self, keyed, catalog, hot, cold, over):
            told = change(output, before.get((output.window_start, output.account_id)))
            if told is not None:
                yield told

    patch.setattr(rate.Rater, "rate", changed)


def _items(text: bytes, catalog: Any, stored: list[bytes]) -> ItemsBefore:
    key, book = RatingKey.parse(text.decode()), directory(catalog)
    kind = book.meters[key.meter_id].aggregation
    priced = (
        book.price_of(key.subscription_id, key.charge_id, key.rate_card_version, key.dimensions)
        if key.charge_id
        else None
    )
    usage: meter.UsageByCell = {}
    for packed in stored:
        part = meter.Pane.unpacked(kind, packed)
        for cell, one in part.usage.items():
            # What is folded in the first part lies unfolded in the others.
            if not (part.is_archived and cell == aggregation.FOLDED):
                aggregation.add(kind, usage, cell, one)
    items = line_items(key, kind, priced, usage)
    return {(item.window_start, item.account_id): item for item in items}


def deltas_instead_of_absolute_rows(patch: pytest.MonkeyPatch) -> None:
    """A row says what its pane added; who reads the table would have to add rows up."""

    def delta(item: LineItem, before: LineItem | None) -> LineItem:
        if before is None:
            return item
        return item._replace(
            amount=item.amount - before.amount,
            event_count=item.event_count - before.event_count,
            revision=item.revision - before.revision,
        )

    _change_items(patch, delta)


def later_windows_not_emitted_again(patch: pytest.MonkeyPatch) -> None:
    """Late usage moves the windows after it, but only the one that it fell into is written."""
    _change_items(
        patch, lambda item, before: None if before is not None and before.event_count == item.event_count else item
    )


def unchanged_amounts_not_emitted_again(patch: pytest.MonkeyPatch) -> None:
    """A row whose amount and quantities did not move keeps a revision that knows too few events."""

    def says(item: LineItem) -> tuple[Any, ...]:
        return item.amount, item.quantity_from, item.quantity_to

    _change_items(patch, lambda item, before: None if before is not None and says(before) == says(item) else item)


def revision_counts_the_whole_key(patch: pytest.MonkeyPatch) -> None:
    def told(*args: Any, **options: Any) -> Iterator[LineItem]:
        items = list(line_items(*args, **options))
        for item in items:
            yield item._replace(revision=items[-1].revision)

    patch.setattr(rate, "line_items", told)


def no_revision(patch: pytest.MonkeyPatch) -> None:
    """Of two rows the one that was inserted last stands."""
    to_arrow = write.line_item_rows

    def rows(items: list[LineItem]) -> pa.Table:
        return to_arrow([item._replace(revision=0) for item in items])

    patch.setattr(write, "line_item_rows", rows)


def voided_events_add_one_to_the_revision(patch: pytest.MonkeyPatch) -> None:
    """So a row that knows a void has the revision of the one before."""
    patch.setattr(aggregation.Usage, "revision", property(lambda self: self.event_count + self.voided_count))


# --- what is known of the past --------------------------------------------------------------------------


def _archive_of(patch: pytest.MonkeyPatch, stage: type, archive: Callable[[Archive], Archive | None]) -> None:
    """Let a stage read another part of the archive."""
    init = stage.__init__

    def changed(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        if self._archive and self._archive.run_id:  # `rate --from-archive` reads all there is.
            self._archive = archive(self._archive)

    patch.setattr(stage, "__init__", changed)


def ids_read_back_as_state(patch: pytest.MonkeyPatch) -> None:
    """Identities are read with those of the run itself: the archive is ahead of what was counted when a bundle or a
    checkpoint is tried again."""
    _archive_of(patch, deduplicate._DeduplicateFn, lambda archive: archive._replace(run_id=""))


def usage_of_the_own_run_recalled(patch: pytest.MonkeyPatch) -> None:
    """What a run stored before it recalls counts twice."""
    _archive_of(patch, recall._RecallFn, lambda archive: archive._replace(run_id=""))


def archived_rows_without_run(patch: pytest.MonkeyPatch) -> None:
    """So that they are an earlier run's to the one that wrote them."""
    rows = write.usage_event_rows
    patch.setattr(write, "usage_event_rows", lambda batches, run_id: rows(batches, "nobody"))


def archive_not_recalled(patch: pytest.MonkeyPatch) -> None:
    process = recall._RecallFn.process

    def nothing(self: Any, *args: Any) -> Iterator[Any]:
        return process(self, *args) if self._anew else iter(())

    patch.setattr(recall._RecallFn, "process", nothing)


def archive_not_recalled_by_streams(patch: pytest.MonkeyPatch) -> None:
    process = recall._RecallFn.process

    def nothing(self: Any, *args: Any) -> Iterator[Any]:
        return iter(()) if self._whole else process(self, *args)

    patch.setattr(recall._RecallFn, "process", nothing)


def identities_not_recalled(patch: pytest.MonkeyPatch) -> None:
    _archive_of(patch, deduplicate._DeduplicateFn, lambda archive: None)


def identities_of_one_shard_recalled(patch: pytest.MonkeyPatch) -> None:
    sql = deduplicate._IDENTITIES.replace("= {shard:UInt64}", "= 0 * {shard:UInt64}")
    patch.setattr(deduplicate, "_IDENTITIES", sql)


def first_touch_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A stream recalls a billing period each time it is touched, and counts it again."""
    process = recall._FirstTouchFn.process

    def forgetful(self: Any, keyed: Any, known: Any, over: Any) -> Iterator[Any]:
        known.clear()
        return process(self, keyed, known, over)

    patch.setattr(recall._FirstTouchFn, "process", forgetful)


def first_touch_forgotten_at_the_end_of_the_period(patch: pytest.MonkeyPatch) -> None:
    """Usage comes for a period long after it has ended."""
    init = recall._FirstTouchFn.__init__
    patch.setattr(recall._FirstTouchFn, "__init__", lambda self, keep: init(self, timedelta(0)))


def usage_forgotten_at_the_end_of_the_period(patch: pytest.MonkeyPatch) -> None:
    init = rate.Rater.__init__
    patch.setattr(rate.Rater, "__init__", lambda self, keep=None: init(self, keep and timedelta(0)))


def recalled_folded_by_streams(patch: pytest.MonkeyPatch) -> None:
    """What a stream recalls is not whole: later usage may fall into what is folded."""
    init = recall._RecallFn.__init__

    def folding(self: Any, archive: Archive, anew: bool = False, whole: bool = False) -> None:
        init(self, archive, anew)

    patch.setattr(recall._RecallFn, "__init__", folding)


# --- what lies apart ------------------------------------------------------------------------------------


def cold_usage_left_out(patch: pytest.MonkeyPatch) -> None:
    """Late usage is added to what is at hand, and the cells between it and them are not written again."""
    patch.setattr(rate, "_reaches_back", lambda panes, hot: False)


def folded_twice(patch: pytest.MonkeyPatch) -> None:
    """What is folded at hand is laid apart too."""
    split = rate._split
    patch.setattr(rate, "_split", lambda kind, usage, has_cold: split(kind, usage, False))


def folded_lost(patch: pytest.MonkeyPatch) -> None:
    """What is laid apart the second time is folded alone."""
    split = rate._split

    def alone(kind: Any, usage: Any, has_cold: bool) -> Any:
        recent, old = split(kind, usage, has_cold)
        if old and has_cold:
            *_, (_, _, folded) = aggregation.cumulative(kind, sorted(old.items()))
            recent = {**recent, aggregation.FOLDED: folded}
        return recent, old

    patch.setattr(rate, "_split", alone)


# --- what is voided -------------------------------------------------------------------------------------


def voids_of_the_run_not_recalled(patch: pytest.MonkeyPatch) -> None:
    packed = recall.Touched.packed
    patch.setattr(recall.Touched, "packed", lambda self: packed(self._replace(voids=())))


def voids_of_earlier_runs_not_recalled(patch: pytest.MonkeyPatch) -> None:
    query = chaos.Sink.query

    def forgetful(self: Any, url: str, sql: str, *args: Any) -> pa.Table:
        return query(self, url, sql.replace("FROM voids", "FROM (SELECT * FROM voids WHERE 0) AS voids"), *args)

    patch.setattr(chaos.Sink, "query", forgetful)


def voids_written_behind_the_archive(patch: pytest.MonkeyPatch) -> None:
    """A voiding event that is archived is a duplicate when its run is tried again."""
    init = write._InsertFn.__init__

    def reordered(self: Any, url: str, to_arrow: dict[str, Any], *rest: Any) -> None:
        init(self, url, dict(sorted(to_arrow.items(), key=lambda one: one[0] == "voids")), *rest)

    patch.setattr(write._InsertFn, "__init__", reordered)


# --- when state ends ------------------------------------------------------------------------------------


def dedup_state_ends_a_day_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rate_usage, "SLACK", rate_usage.SLACK - timedelta(days=1))


def dedup_state_ends_a_day_early_where_nothing_is_dropped(patch: pytest.MonkeyPatch) -> None:
    """The same by a timer of its own: the state is gone, and what comes again counts again."""
    run = chaos.Run
    advance = run._advance

    def forgetful(self: Any, worker: Any, now: Any) -> None:
        advance(self, worker, now)
        early = now.watermark + 86_400_000_000
        for key in [key for key in now.state.seen if self.job.windowing.has_ended(key[1], early)]:
            del now.state.seen[key]

    patch.setattr(run, "_advance", forgetful)


# --- identity -------------------------------------------------------------------------------------------


def identity_cut_to_16_bits(patch: pytest.MonkeyPatch) -> None:
    exact = attribute.identities

    def cut(*args: Any) -> pa.Array:
        return pa.array([one[:2] + bytes(10) + one[12:] for one in exact(*args).to_pylist()], pa.binary(16))

    patch.setattr(attribute, "identities", cut)


def rating_key_id_cut_to_16_bits(patch: pytest.MonkeyPatch) -> None:
    exact = records.rating_key_id
    for module in (records, write):
        patch.setattr(module, "rating_key_id", lambda text: exact(text) & 0xFFFF)


# --- bundles --------------------------------------------------------------------------------------------


def usage_kept_between_bundles(patch: pytest.MonkeyPatch) -> None:
    """A bundle's usage goes out with a later one, so that it is lost with the worker."""
    flush = meter.Totals.flush

    def lazy(self: meter.Totals) -> Iterable[Any]:
        return flush(self) if self.cells > 10 else iter(())

    patch.setattr(meter.Totals, "flush", lazy)


def archive_written_after_the_bundle(patch: pytest.MonkeyPatch) -> None:
    """What is acknowledged before it is stored is lost with the worker."""
    flush = write._InsertFn._flush

    def lazy(self: Any) -> None:
        if "usage_events" in self._to_arrow:
            ready, self._ready = getattr(self, "_ready", []), self._held
            self._held = ready
        flush(self)

    patch.setattr(write._InsertFn, "_flush", lazy)


def unseen(plant: Plant) -> Plant:
    """The defect where nobody looks at the revisions themselves, but only at what they are there for."""

    def blind(patch: pytest.MonkeyPatch) -> None:
        plant(patch)
        patch.setattr(ledger, "COPIED", tuple(name for name in ledger.COPIED if name != "revision"))

    blind.__name__ = f"unseen_{plant.__name__}"
    return blind


# Each defect, and a seed that found it. After a change to the worlds another one may: it is looked for, and printed.
RECORD = [
    (deltas_instead_of_absolute_rows, 2),
    (later_windows_not_emitted_again, 2),
    (unseen(later_windows_not_emitted_again), 2),
    (unchanged_amounts_not_emitted_again, 2),
    (unseen(unchanged_amounts_not_emitted_again), 16),
    (revision_counts_the_whole_key, 0),
    (unseen(no_revision), 2),
    (voided_events_add_one_to_the_revision, 5),
    (unseen(voided_events_add_one_to_the_revision), 45),
    (ids_read_back_as_state, 23),
    (usage_of_the_own_run_recalled, 1),
    (archived_rows_without_run, 1),
    (archive_not_recalled, 3),
    (archive_not_recalled_by_streams, 3),
    (identities_not_recalled, 1),
    (identities_of_one_shard_recalled, 3),
    (first_touch_forgotten, 3),
    (first_touch_forgotten_at_the_end_of_the_period, 25),
    (usage_forgotten_at_the_end_of_the_period, 4),
    (recalled_folded_by_streams, 2),
    (cold_usage_left_out, 12),
    (folded_twice, 100),
    (folded_lost, 100),
    (voids_of_the_run_not_recalled, 5),
    (voids_of_earlier_runs_not_recalled, 17),
    (voids_written_behind_the_archive, 131),
    (dedup_state_ends_a_day_early, 31),
    (dedup_state_ends_a_day_early_where_nothing_is_dropped, 25),
    (identity_cut_to_16_bits, 900),
    (rating_key_id_cut_to_16_bits, 100),
    (usage_kept_between_bundles, 0),
    (archive_written_after_the_bundle, 1),
]
LARGE = [seed for seed in range(2_000) if chaos.is_large(seed)]


@pytest.mark.parametrize(("plant", "seed"), RECORD, ids=lambda value: getattr(value, "__name__", ""))
def test_chaos_finds(plant: Plant, seed: int, clickhouse_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    others = LARGE if chaos.is_large(seed) else range(300)
    for tried in [seed, *others]:
        try:
            chaos.check(tried, clickhouse_url)
        except Different as difference:
            print(f"{plant.__name__} is found by seed {tried} (recorded: {seed}): {difference}")
            return
    pytest.fail(f"no seed noticed {plant.__name__}")
