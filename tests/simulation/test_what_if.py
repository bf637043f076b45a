"""Seeded worlds, simulated under other catalogs: the amounts are those of rating the same events in an empty database.

`METERLINE_WHAT_IF_SEEDS` says how many worlds are tried, `METERLINE_SEED` names the one to try alone.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from meterline.pipelines.invoice_accounts import Options, line_item_totals
from meterline.runners.invoices import invoices_of as stored_invoices
from meterline.runners.jobs import make_invoices
from meterline.schemas.calendars import Calendar
from meterline.schemas.catalog import Catalog
from meterline.transforms import clickhouse, recorded
from meterline.transforms.recorded_columns import Columns
from meterline.transforms.recorded_parts import Found
from meterline.transforms.rules.attribution import directory
from meterline.transforms.rules.periods import billing_period, utc_days_of_label
from meterline.transforms.rules.what_if import invoices_of, of_payers, priced_usage
from tests.conftest import empty_tables

from . import chaos
from .auditor import audit, void_record
from .delivery import Treatment, load, one_file, run
from .generator import World, generate
from .meter_kinds import with_every_meter
from .other_catalogs import CHANGES, other_catalog

_LIVE = """
SELECT payload FROM usage_events FINAL WHERE NOT startsWith(type, 'meterline.')
  AND (tenant_id, source, id, time) NOT IN (SELECT tenant_id, source, id, time FROM voids)
"""


def rate_with_voids(world: World, catalog: Catalog, url: str, folder: Path, rng: Random) -> None:
    records, path = one_file(world, folder)
    run(world, catalog, [path], url, Treatment())
    known = audit(records, world.catalog, world.received, world.horizon).accepted
    voids = [void_record(event) for event in rng.sample(known, len(known) // rng.choice([3, 20]))]
    path = folder / "voids"
    path.write_bytes(b"".join(void + b"\n" for void in voids))
    run(world, catalog, [path], url, Treatment())


def labels_of(world: World, catalog: Catalog, rng: Random) -> list[str]:
    """Of some periods in which events of a world lie, and of the last month."""
    moments = [world.received - timedelta(days=days) for days in (2, 5, 8, 40)]
    calendars = [Calendar(), *(one.calendar for one in catalog.subscriptions)]
    labels = sorted({billing_period(moment, calendar).label for calendar in calendars for moment in moments})
    month = billing_period(moments[1], Calendar()).label
    return [month, *rng.sample(labels, min(2, len(labels)))]


@pytest.mark.parametrize("seed", chaos.seeds("METERLINE_WHAT_IF_SEEDS", 14))
def test_a_simulation_gives_what_rating_the_events_anew_would(seed: int, database: str, tmp_path: Path) -> None:
    rng, change = Random(seed), CHANGES[seed % len(CHANGES)]
    plain = world = generate(seed, events=60 + seed * 37 % 240)
    if seed % 4 == 3:  # Usage that was recorded by filters and expressions.
        world = with_every_meter(world, seed)
    other = replace(world, catalog=other_catalog(plain if change == "filters" else world, seed, change), horizon=None)
    today, new = load(world, tmp_path / "today"), load(other, tmp_path / "new")
    book = directory(new)
    rate_with_voids(world, today, database, tmp_path / "records", rng)
    labels = labels_of(world, new, rng)
    found = {label: recorded.read(database, book, label, today.meters).usage for label in labels}
    # The same from the bytes of all events, as where nobody knows what was recorded by which meter.
    assert {label: recorded.read(database, book, label, ()).usage for label in labels} == found
    priced = {label: priced_usage(usage, book).used for label, usage in found.items()}
    if change == "nothing":
        for label in labels:
            assert priced[label] == of_payers(line_item_totals(database, label, book))

    live = clickhouse.query(database, _LIVE, as_text=False)["payload"].to_pylist()
    empty_tables(database)
    if live:
        (tmp_path / "live").write_bytes(b"\n".join(live) + b"\n")
        run(other, new, [tmp_path / "live"], database, Treatment())
    for label in labels:
        assert priced[label] == of_payers(line_item_totals(database, label, book))
    for label in labels[:1]:
        make_invoices(Options(label, new, database, datetime.fromisoformat("2199-01-01T00:00:00Z"), parts=1))
        assert {
            (payer.tenant_id, payer.billing_account_id, payer.currency): invoice.total
            for payer, invoice in invoices_of(label, book, priced[label], "half_even").items()
        } == {
            (row["tenant_id"], row["billing_account_id"], row["currency"]): row["total"]
            for row in stored_invoices(database, label)
        }


def test_most_worlds_are_read_by_columns_and_some_by_bytes(tmp_path: Path) -> None:
    """Of the types that worlds have meters of, how many can be read by columns under another catalog."""
    found = {True: 0, False: 0}
    october = utc_days_of_label("2026-10")
    for seed in range(20):
        world = generate(seed, events=0)
        other = replace(world, catalog=other_catalog(world, seed, CHANGES[seed % len(CHANGES)]))
        today, new = load(world, tmp_path / f"today {seed}"), load(other, tmp_path / f"new {seed}")
        columns = Columns("", Found(directory(new), october), today.meters)
        for event_type in directory(new).meters_by_type:
            found[event_type in columns.types] += 1
    assert found[True] > 20
    assert found[False] > 0
