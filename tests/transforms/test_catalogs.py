"""Catalogs that come into force while a stream runs: which one an event meets depends on when it was received alone."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from meterline.runners.demo import quickstart
from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_files import load_catalog
from meterline.transforms import catalogs, clickhouse
from meterline.transforms.catalogs import DELAY_SECONDS, PublishedCatalogs, meters_of
from tests.command import Command

SECOND = 1_000_000


@pytest.fixture
def prices() -> Catalog:
    return load_catalog(quickstart() / "catalog")


@pytest.fixture(autouse=True)
def forgotten() -> None:
    catalogs._state.cache_clear()


def begun(url: str, catalog: Catalog) -> PublishedCatalogs:
    clickhouse.ready(url)
    return PublishedCatalogs(url, catalog.digest, catalogs.publish(url, catalog, delay_seconds=0))


def with_another_meter(catalog: Catalog) -> Catalog:
    meter = catalog.meters[0].model_copy(update={"id": "another"})
    parts = {name: getattr(catalog, name) for name in Catalog.model_fields}
    return Catalog(**parts | {"meters": (*catalog.meters, meter)})


def test_a_catalog_is_in_force_from_its_instant_on(database: str, prices: Catalog) -> None:
    handle = begun(database, prices)
    newer = with_another_meter(prices)
    since = catalogs.publish(database, newer)
    assert since > handle.since
    for received, wanted in ((0, prices), (handle.since, prices), (since - 1, prices), (since, newer)):
        assert handle.as_of(received).digest == wanted.digest
    assert [one.digest for one in handle.known()] == [newer.digest, prices.digest]
    assert "another" in meters_of(handle)


def test_workers_that_looked_at_different_times_say_the_same(database: str, prices: Catalog) -> None:
    handle = begun(database, prices)
    early = catalogs._State(handle)
    early.look()
    since = catalogs.publish(database, with_another_meter(prices))
    late = catalogs._State(handle)
    for received in (0, since - DELAY_SECONDS * SECOND, since - 1, since, since + 60 * SECOND):
        assert early.as_of(received).digest == late.as_of(received).digest


def test_a_worker_that_looks_while_a_catalog_is_stored_sees_it_in_time(
    database: str, prices: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = begun(database, prices)
    insert, worker = clickhouse.insert, catalogs._State(handle)

    def looked_at(url: str, table: str, rows: Any) -> None:
        worker.look()
        insert(url, table, rows)

    monkeypatch.setattr(clickhouse, "insert", looked_at)
    newer = with_another_meter(prices)
    assert worker.as_of(catalogs.publish(database, newer)).digest == newer.digest


def test_a_catalog_that_takes_too_long_to_store_is_told(
    database: str, prices: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(database, prices)
    monkeypatch.setattr(catalogs, "_STORING_SECONDS", 0)
    with pytest.raises(clickhouse.DatabaseError, match="publish it again"):
        catalogs.publish(database, with_another_meter(prices))


@pytest.mark.parametrize(
    "changed", [{"aggregation": "max"}, {"value": "output_tokens"}, {"unit": "kilotoken"}, {"where": {"model": ("x",)}}]
)
def test_a_meter_adds_up_as_it_did(database: str, prices: Catalog, changed: dict[str, str]) -> None:
    begun(database, prices)
    meter = next(one for one in prices.meters if one.value == "input_tokens")
    meters = tuple(one.model_copy(update=changed) if one is meter else one for one in prices.meters)
    parts = {name: getattr(prices, name) for name in Catalog.model_fields}
    with pytest.raises(
        catalogs.ChangedCatalogError, match=f"meter '{meter.id}' has another aggregation, value, filter or unit"
    ):
        catalogs.check(database, Catalog(**parts | {"meters": meters}))
    catalogs.check(database, with_another_meter(prices))


def test_a_stream_that_begins_later_begins_with_its_own_catalog(database: str, prices: Catalog) -> None:
    begun(database, with_another_meter(prices))
    assert begun(database, prices).as_of(0).digest == prices.digest


def test_a_handle_is_small_and_finds_its_catalogs_anew_in_each_worker(database: str, prices: Catalog) -> None:
    handle = begun(database, prices)
    handle.as_of(0)
    packed = pickle.dumps(handle)
    assert len(packed) < 500
    catalogs._state.cache_clear()
    assert pickle.loads(packed).as_of(0).digest == prices.digest


def test_a_catalog_that_was_deleted_stops_the_stream(database: str, prices: Catalog) -> None:
    handle = begun(database, prices)
    clickhouse.command(database, "TRUNCATE TABLE catalogs")
    with pytest.raises(clickhouse.DatabaseError, match="start the stream anew"):
        handle.as_of(0)


def test_the_command_refuses_a_version_that_was_edited(meterline: Command, tmp_path: Path) -> None:
    folder = tmp_path / "catalog"
    folder.mkdir()
    for file in (quickstart() / "catalog").iterdir():
        (folder / file.name).write_text(file.read_text())
    said = meterline("catalog", "publish", folder, "--clickhouse", meterline.url, "--json")
    assert said.code == 0, said.err
    assert '"in_force_from"' in said.out
    cards = folder / "rate_cards.yaml"
    text = cards.read_text()
    cards.write_text(text.replace('"2.50"', '"2.60"', 1))
    said = meterline("catalog", "publish", folder, "--clickhouse", meterline.url)
    assert said.code == 2
    assert "A version never changes once it is used" in said.err
