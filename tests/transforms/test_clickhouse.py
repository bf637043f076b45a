"""One door for an embedded database and a server: the same job over HTTP gives the same rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from meterline.runners.demo import RECEIVED, quickstart, usage_lines
from meterline.runners.jobs import fingerprint, rate_files
from meterline.schemas.catalog_files import load_catalog
from meterline.transforms import clickhouse


def test_rating_over_http_gives_the_rows_that_the_embedded_database_gets(
    server: str, database: str, tmp_path: Path
) -> None:
    file = tmp_path / "usage.ndjson"
    file.write_bytes(b"\n".join(usage_lines()))
    catalog = load_catalog(quickstart() / "catalog")
    rate_files([str(file)], catalog, database, now=RECEIVED)
    embedded = fingerprint(database)
    for table in ("line_items", "usage_events", "rating_keys"):
        clickhouse.connect(database).command(f"TRUNCATE TABLE {table}")
    report = rate_files([str(file)], catalog, server, now=RECEIVED)
    assert report.adds_up
    assert fingerprint(server) == embedded == fingerprint(database)
    assert embedded.events == 8_819


def test_a_server_without_tables_is_not_touched_but_told_how_to_get_them(server: str) -> None:
    client = clickhouse.connect(server)
    client.command("RENAME TABLE schema_migrations TO away")
    try:
        with pytest.raises(clickhouse.DatabaseError, match="run `meterline migrate"):
            clickhouse.ready(server)
    finally:
        client.command("RENAME TABLE away TO schema_migrations")


@pytest.mark.parametrize("url", ["", "meterline-db", "postgres://x", "http://", "chdb://"])
def test_an_odd_url_is_refused_with_the_expected_form(url: str) -> None:
    with pytest.raises(clickhouse.DatabaseError, match="expected chdb://PATH"):
        clickhouse.connect(url)


def test_a_migration_that_was_edited_is_refused(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    edited = [one._replace(sql=one.sql + " ") if one.number == 3 else one for one in clickhouse.migrations()]
    monkeypatch.setattr(clickhouse, "migrations", lambda: tuple(edited))
    with pytest.raises(clickhouse.DatabaseError, match=r"0003_line_items.*differs"):
        clickhouse.ready(database)


def test_a_migration_that_was_broken_off_is_applied_again(database: str) -> None:
    client = clickhouse.connect(database)
    last = clickhouse.migrations()[-1]
    before = client.command("SELECT groupArray(create_table_query) FROM system.tables WHERE database = 'default'")
    client.command(f"ALTER TABLE schema_migrations DELETE WHERE number = {last.number} SETTINGS mutations_sync = 2")
    assert clickhouse.migrate(database) == [last]
    assert clickhouse.migrate(database) == []
    after = client.command("SELECT groupArray(create_table_query) FROM system.tables WHERE database = 'default'")
    assert after == before


@pytest.mark.parametrize(
    "url",
    [
        "http://default:secret@127.0.0.1:1/default",
        "http://default:sec/secret@127.0.0.1:1/default",
        "http://default:secret@secret@127.0.0.1:1/default",
        "http://:secret@127.0.0.1:1/default",
        "http://127.0.0.1:1/default?user=default&password=secret&x=y",
    ],
)
def test_no_error_says_a_password(url: str) -> None:
    assert "secret" not in clickhouse.redacted(url)
    with pytest.raises(clickhouse.DatabaseError) as told:
        clickhouse.connect(url)
    assert "secret" not in str(told.value)
