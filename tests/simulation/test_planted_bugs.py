"""The simulation can fail: each defect here is put into the real code, and the comparison must find it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from decimal import Context, Decimal
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from meterline.schemas.meters import Aggregation
from meterline.schemas.records import LineItem, Reject
from meterline.transforms import attribute, deduplicate, meter, rate, recall
from meterline.transforms.columns import symbols
from meterline.transforms.rules import aggregation, attribution, line_items, money, pricing
from meterline.transforms.rules.prices import parts
from tests.conftest import empty_tables

from .auditor import audit
from .delivery import Treatment, load, many_files, one_file, run
from .generator import generate
from .ledger import Different, compare, stored

Plant = Callable[[pytest.MonkeyPatch], None]


# --- amounts --------------------------------------------------------------------------------------------


def amounts_from_deltas(patch: pytest.MonkeyPatch) -> None:
    def delta(price: Any, start: Decimal, end: Decimal, *, opening: bool, **more: Any) -> Any:
        step = end - start
        return pricing.charge_interval(price, Decimal(0), abs(step), opening=True, **more)

    patch.setattr(line_items, "charge_interval", delta)


def tier_bound_off_by_one(patch: pytest.MonkeyPatch) -> None:
    """The unit at the bound falls into the higher tier."""

    def shifted(price: Any, start: Decimal, end: Decimal, *, opening: bool, **more: Any) -> Any:
        least = Decimal("1E-12")
        if hasattr(price, "tiers"):
            tiers = [tier.model_copy(update={"up_to": tier.up_to and tier.up_to - least}) for tier in price.tiers]
            price = price.model_copy(update={"tiers": tuple(tiers)})
        return pricing.charge_interval(price, start, end, opening=opening, **more)

    patch.setattr(line_items, "charge_interval", shifted)


def rounded_to_12_places(patch: pytest.MonkeyPatch) -> None:
    def coarse(numerator: Decimal | int, denominator: Decimal | int = 1) -> Decimal:
        return money.round_amount(numerator, denominator).quantize(Decimal("1E-12"), context=Context(prec=60))

    patch.setattr(parts, "round_amount", coarse)


def opening_fee_forgotten(patch: pytest.MonkeyPatch) -> None:
    def closed(price: Any, start: Decimal, end: Decimal, *, opening: bool, **more: Any) -> Any:
        return pricing.charge_interval(price, start, end, opening=False, **more)

    patch.setattr(line_items, "charge_interval", closed)


# --- quantities -----------------------------------------------------------------------------------------


def float_sum(patch: pytest.MonkeyPatch) -> None:
    exact = meter._Slots._sums

    def rough(self: Any) -> list[int]:
        return [round(number / 1e12 * 1e12) for number in exact(self)]

    patch.setattr(meter._Slots, "_sums", rough)


def latest_is_the_last_that_came(patch: pytest.MonkeyPatch) -> None:
    merge_values = aggregation._merge_values

    def last(kind: Aggregation, one: Any, other: Any) -> Any:
        return other if kind is Aggregation.LATEST else merge_values(kind, one, other)

    patch.setattr(aggregation, "_merge_values", last)


def every_window_starts_at_zero(patch: pytest.MonkeyPatch) -> None:
    def alone(kind: Aggregation, cells: Iterable[Any]) -> Iterator[Any]:
        for cell, usage in cells:
            yield cell, usage, usage

    patch.setattr(line_items, "cumulative", alone)


def distinct_adds_up(patch: pytest.MonkeyPatch) -> None:
    """Each cell's different values are added, so that a value is counted in every cell anew."""

    def summed(kind: Aggregation, cells: Iterable[Any]) -> Iterator[Any]:
        values: list[Any] = []
        for cell, usage, so_far in aggregation.cumulative(kind, cells):
            if kind is Aggregation.DISTINCT:
                values.extend(usage.value)
                yield cell, usage, so_far._replace(value=list(values))
            else:
                yield cell, usage, so_far

    patch.setattr(line_items, "cumulative", summed)


# --- windows and periods --------------------------------------------------------------------------------


def window_not_cut_at_the_period(patch: pytest.MonkeyPatch) -> None:
    def whole(key: Any, seconds: int) -> tuple[int, int]:
        return seconds - seconds % 3600, seconds - seconds % 3600 + 3600

    patch.setattr(line_items, "window_bounds", whole)


def period_in_utc(patch: pytest.MonkeyPatch) -> None:
    billing_period = attribution.billing_period
    patch.setattr(
        attribution,
        "billing_period",
        lambda instant, calendar: billing_period(instant, calendar._replace(time_zone="UTC")),
    )


def subscription_end_inclusive(patch: pytest.MonkeyPatch) -> None:
    """An event in the second after a subscription, a version or a period is still priced by it."""
    segment_at = attribution.Directory.segment_at

    def late(self: Any, account: str, meter_id: str, instant: Any) -> Any:
        segment = segment_at(self, account, meter_id, instant)
        return segment._replace(end=segment.end + timedelta(seconds=1))

    patch.setattr(attribution.Directory, "segment_at", late)


# --- what is written ------------------------------------------------------------------------------------


def revision_of_the_whole_key(patch: pytest.MonkeyPatch) -> None:
    def told(*args: Any, **options: Any) -> Iterator[LineItem]:
        items = list(line_items.line_items(*args, **options))
        for item in items:
            yield item._replace(revision=items[-1].revision)

    patch.setattr(rate, "line_items", told)


def later_cells_not_emitted_again(patch: pytest.MonkeyPatch) -> None:
    """Late usage moves the cells after it, but only the one that it fell into is written."""
    known: dict[tuple[str, int, str], int] = {}

    def only_touched(*args: Any, **options: Any) -> Iterator[LineItem]:
        for item in line_items.line_items(*args, **options):
            place = (item.key.text, item.window_start, item.account_id)
            if known.get(place) != item.event_count:
                known[place] = item.event_count
                yield item

    patch.setattr(rate, "line_items", only_touched)


def unchanged_amounts_not_emitted_again(patch: pytest.MonkeyPatch) -> None:
    """A row whose amount did not move keeps a revision that knows too few events."""
    known: dict[tuple[str, int, str], Any] = {}

    def only_moved(*args: Any, **options: Any) -> Iterator[LineItem]:
        for item in line_items.line_items(*args, **options):
            place = (item.key.text, item.window_start, item.account_id)
            says = (item.amount, item.quantity_from, item.quantity_to)
            if known.get(place) != says:
                known[place] = says
                yield item

    patch.setattr(rate, "line_items", only_moved)


def rejects_without_their_place(patch: pytest.MonkeyPatch) -> None:
    """The same bad record in two places becomes one row."""
    patch.setattr(Reject, "id", property(lambda self: f"{self.stage} {self.reason} {hash(self.payload)}"))


# --- identity -------------------------------------------------------------------------------------------


def _identities(patch: pytest.MonkeyPatch, change: Callable[[bytes], bytes]) -> None:
    exact = attribute.identities

    def changed(*args: Any) -> pa.Array:
        return pa.array([change(one) for one in exact(*args).to_pylist()], pa.binary(16))

    patch.setattr(attribute, "identities", changed)


def identity_of_8_bits(patch: pytest.MonkeyPatch) -> None:
    _identities(patch, lambda one: one[:1] + bytes(11) + one[12:])


def content_ignored(patch: pytest.MonkeyPatch) -> None:
    _identities(patch, lambda one: one[:12] + bytes(4))


def identity_without_source(patch: pytest.MonkeyPatch) -> None:
    exact = attribute.identities

    def anonymous(events: pa.RecordBatch, *rest: Any) -> pa.Array:
        place = events.schema.get_field_index("source")
        nobody = symbols([0] * events.num_rows, ["/"]) if events.num_rows else events["source"]
        return exact(events.set_column(place, "source", nobody), *rest)

    patch.setattr(attribute, "identities", anonymous)


def duplicates_pass_in_one_batch(patch: pytest.MonkeyPatch) -> None:
    add = deduplicate.Seen.add

    def lax(self: Any, identities: pa.Array) -> Any:
        is_new, content = add(self, identities)
        is_new[:] = is_new.any()
        return is_new, content

    patch.setattr(deduplicate.Seen, "add", lax)


def archive_not_recalled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recall._Archived, "usage", lambda *args: iter(()))


ANY = {"conflicts": False, "panes_apart": False, "one_by_one": False}
CONFLICTS = {**ANY, "conflicts": True}
APART = {**ANY, "panes_apart": True}
ONE_BY_ONE = {**ANY, "one_by_one": True}


@pytest.mark.parametrize(
    ("plant", "world"),
    [
        (amounts_from_deltas, ANY),
        (tier_bound_off_by_one, ANY),
        (rounded_to_12_places, ANY),
        (opening_fee_forgotten, ANY),
        (float_sum, ANY),
        (latest_is_the_last_that_came, APART),
        (every_window_starts_at_zero, ANY),
        (distinct_adds_up, ANY),
        (window_not_cut_at_the_period, ANY),
        (period_in_utc, ANY),
        (subscription_end_inclusive, ANY),
        (revision_of_the_whole_key, ANY),
        (later_cells_not_emitted_again, APART),
        (unchanged_amounts_not_emitted_again, APART),
        (rejects_without_their_place, ANY),
        (identity_of_8_bits, ANY),
        (content_ignored, CONFLICTS),
        (identity_without_source, CONFLICTS),
        (duplicates_pass_in_one_batch, ANY),
        (archive_not_recalled, ONE_BY_ONE),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_the_comparison_finds(
    plant: Plant, world: dict[str, bool], database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    for seed in range(12):
        empty_tables(database)
        try:
            _one_world(seed, database, tmp_path / str(seed), **world)
        except Different:
            return
    pytest.fail(f"no world noticed {plant.__name__}")


def _one_world(seed: int, database: str, folder: Path, *, conflicts: bool, panes_apart: bool, one_by_one: bool) -> None:
    world = generate(seed, events=250, conflicts=conflicts)
    catalog = load(world, folder / "catalog")
    how = Treatment(block_bytes=3000 if panes_apart else 1 << 20, panes_apart=panes_apart)
    if conflicts:
        records, path = one_file(world, folder)
        paths = [path]
    else:
        records, paths = many_files(world, folder, Random(seed))
    runs = [[path] for path in paths] if one_by_one else [paths]
    counters: dict[str, int] = {}
    for inputs in runs:
        for name, count in run(world, catalog, inputs, database, how).items():
            counters[name] = counters.get(name, 0) + count
    compare(stored(database), audit(records, world.catalog, world.received, world.horizon), world.catalog, counters)
