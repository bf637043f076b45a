"""As much of ClickHouse's HTTP interface as a client needs, answered by the test's embedded database."""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import chdb


class Bridge(BaseHTTPRequestHandler):
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


@contextmanager
def served(database: str, handler: type[Bridge] = Bridge) -> Iterator[str]:
    """The URL of a server on loopback that answers for an embedded database."""
    bridge: Any = type("Served", (handler,), {"connection_": chdb.connect(database.removeprefix("chdb://"))})
    http = ThreadingHTTPServer(("127.0.0.1", 0), bridge)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://user:secret@127.0.0.1:{http.server_port}/default"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
        bridge.connection_.close()
