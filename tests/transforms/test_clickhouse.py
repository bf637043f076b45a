"""One door for an embedded database and a server: the same job over HTTP gives the same rows."""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import chdb
import pytest

from meterline.runners.demo import RECEIVED, quickstart, usage_lines
from meterline.runners.jobs import fingerprint, rate_files
from meterline.schemas.catalog_files import load_catalog
from meterline.transforms import clickhouse


class _Bridge(BaseHTTPRequestHandler):
    """As much of ClickHouse's HTTP interface as a client needs, answered by the test's embedded database."""

    protocol_version = "HTTP/1.1"
    connection_: Any
    lock = threading.Lock()

    def do_POST(self) -> None:
        url = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        body = self._body()
        sql = url.get("query", "")
        try:
            with self.lock:
                answer = self._insert(sql, body) if sql.startswith("INSERT") else self._ask(sql or body.decode(), url)
            self._answer(200, answer)
        except Exception as error:  # noqa: BLE001
            self._answer(500, str(error).encode())

    do_GET = do_POST

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _ask(self, sql: str, url: dict[str, str]) -> bytes:
        for name, value in url.items():
            if name.startswith("param_"):
                quoted = value.replace("\\", "\\\\").replace("'", "\\'")
                self.connection_.query(f"SET {name} = '{quoted}'")
        return self.connection_.query(sql, url.get("default_format", "TabSeparated")).bytes()

    def _insert(self, sql: str, body: bytes) -> bytes:
        with tempfile.NamedTemporaryFile() as file:
            file.write(body)
            file.flush()
            into, format = re.split(r"\s+FORMAT\s+", sql.strip(), flags=re.IGNORECASE)
            self.connection_.query(f"{into} FROM INFILE '{file.name}' FORMAT {format}")
        return b""

    def _answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(database: str) -> Iterator[str]:
    bridge = type("Bridge", (_Bridge,), {"connection_": chdb.connect(database.removeprefix("chdb://"))})
    http = ThreadingHTTPServer(("127.0.0.1", 0), bridge)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://user:secret@127.0.0.1:{http.server_port}/default"
    http.shutdown()
    thread.join()
    http.server_close()


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
