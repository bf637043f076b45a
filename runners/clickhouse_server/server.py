"""ClickHouse's HTTP interface: requests, users, sessions, answers.

Source: ClickHouse's documentation of the HTTP interface; where a page is silent, what clickhouse-connect and
@clickhouse/client expect.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import json
import logging
import select
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, pairwise
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlsplit

from meterline.runners.clickhouse_server import formats, messages, statements
from meterline.runners.clickhouse_server.engine import (
    Engine,
    EngineError,
    Key,
    Kind,
    Link,
    check_no_format,
    check_reader,
    check_reader_sets,
    denied,
    identifier,
)

log = logging.getLogger("meterline.clickhouse.serve")

MAX_AT_WORK = 100
# Of them, so that those that write always find a place.
MAX_READERS_AT_WORK = 75
MAX_SESSIONS = 100
_MAX_STATEMENT = 64 << 20
_MAX_READERS_STATEMENT = 1 << 20
# External tables are held in memory.
_MAX_FORM = 256 << 20
_MAX_UNREAD = 64 << 20
_MAX_SESSION_SECONDS = 3600
_TICK_SECONDS = 0.25
_SOCKET_SECONDS = 600
# How long statements that are broken off have to end.
_BREAKING_SECONDS = 10
# Parameters of a request that are no settings of ClickHouse, or whose settings are this server's affair.
_OWN = {
    "query",
    "query_id",
    "database",
    "user",
    "password",
    "quota_key",
    "session_id",
    "session_timeout",
    "session_check",
    "close_session",
    "default_format",
    "wait_end_of_query",
    "buffer_size",
    "enable_http_compression",
    "http_zlib_compression_level",
    "send_progress_in_http_headers",
    "http_headers_progress_interval_ms",
    "client_protocol_version",
    "stacktrace",
    "async_insert",
    "wait_for_async_insert",
    "compress",
    "decompress",
    "role",
}
# ClickHouse's src/Server/HTTP/exceptionCodeToHTTPStatus.cpp, and 503 for too many queries; 500 for all others.
_STATUS = {
    code: status
    for status, codes in {
        400: (
            6,
            8,
            15,
            25,
            26,
            27,
            36,
            37,
            38,
            41,
            44,
            53,
            62,
            72,
            117,
            123,
            167,
            168,
            223,
            321,
            376,
            427,
            441,
            675,
            676,
        ),
        401: (194,),
        403: (192, 193, 497, 512, 516),
        404: (46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 152, 336, 511),
        408: (159,),
        411: (381,),
        413: (229,),
        415: (779,),
        501: (48,),
        503: (76, 202, 209, 439),
    }.items()
    for code in codes
}


class User(NamedTuple):
    name: str
    password: str
    is_reader: bool = False


class StillAtWork(Exception):
    """Statements that do not end though they were broken off; so many were."""

    def __init__(self, broken: int) -> None:
        super().__init__(f"{broken} statements were broken off")
        self.broken = broken


class Users:
    """Who may come in."""

    def __init__(self, users: Iterable[User]) -> None:
        self._users = {user.name: user for user in users}
        self.is_open = not all(user.password for user in self._users.values())

    def check(self, name: str | None, password: str) -> User:
        """Raises EngineError for anyone else."""
        user = self._users.get(name or "default")
        right = hmac.compare_digest((user.password if user else "").encode(), password.encode())
        if user and right:
            return user
        if name is None and not password:
            raise EngineError.named(194, "REQUIRED_PASSWORD", "default: Authentication failed: a password is required")
        raise EngineError.named(
            516,
            "AUTHENTICATION_FAILED",
            f"{name or 'default'}: Authentication failed: password is incorrect, or there is no user with such name.",
        )


@dataclass
class _Session:
    link: Link
    busy: bool = True
    until: float = 0.0


class Sessions:
    """Connections that stay with a client, for its SETs and temporary tables, until nobody asked for a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._open: dict[tuple[str, str], _Session] = {}
        self._lock = threading.Lock()

    @contextmanager
    def at_work(self, user: User, name: str, seconds: int, *, must_exist: bool, close: bool) -> Iterator[Link]:
        """Raises EngineError where the session is at work already, or should exist and does not."""
        key = (user.name, name)
        self.expire()
        with self._lock:
            session = self._open.get(key)
            if session is None:
                if must_exist:
                    raise EngineError.named(372, "SESSION_NOT_FOUND", f"Session {name} not found")
                if sum(owner == user.name for owner, _ in self._open) >= MAX_SESSIONS:
                    raise EngineError.named(
                        202, "TOO_MANY_SIMULTANEOUS_QUERIES", f"{MAX_SESSIONS} sessions of {user.name} are open: end "
                        "some with close_session=1, or ask without session_id"
                    )  # fmt: skip
                session = self._open[key] = _Session(self._engine.take(Key(user.is_reader)))
            elif session.busy:
                raise EngineError.named(373, "SESSION_IS_LOCKED", f"Session {name} is locked by a concurrent client")
            session.busy = True
        try:
            yield session.link
        finally:
            with self._lock:
                session.until = time.monotonic() + (0 if close else seconds)
                session.busy = False
            if close:
                self.expire()

    def expire(self, *, all: bool = False) -> None:
        now = time.monotonic()
        with self._lock:
            over = [key for key, one in self._open.items() if not one.busy and (all or one.until <= now)]
            links = [self._open.pop(key).link for key in over]
        for link in links:
            link.close()


def _check_size(text: bytes, most: int) -> None:
    if len(text) > most:
        raise EngineError.named(229, "QUERY_IS_TOO_LARGE", f"a statement of more than {most} bytes")


@dataclass
class Request:
    """What is asked for.

    Args:
      sql: The statement; of an INSERT, its head.
      data: An INSERT's rows; None for any other statement.
      format: Of the data, or of the answer where the statement names none.
      tables: External tables, by name: columns, format, rows.
    """

    sql: bytes = b""
    data: Iterable[bytes] | None = None
    format: str = "TabSeparated"
    tables: dict[str, tuple[str, str, bytes]] = field(default_factory=dict)


class Handler(BaseHTTPRequestHandler):
    """One connection of a client, and its requests one after the other."""

    protocol_version = "HTTP/1.1"
    server_version = "Meterline"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    timeout = _SOCKET_SECONDS
    server: Server

    # --- the request ---

    def do_POST(self) -> None:
        self._begun = False
        self._tag: str | None = None
        self._outgoing: messages.Outgoing | None = None
        self._viewed: Any = None
        self._parameters: dict[str, str] = {}
        self.query_id = ""
        self._body: messages.Incoming | None = None
        self._request = Request()
        self._user = "?"
        try:
            self._respond()
        except EngineError as error:
            self._fail(error)
        except messages.BodyError as error:
            self._fail(EngineError.named(1000, "POCO_EXCEPTION", str(error)))
        except OSError as error:  # Nobody listens any more.
            self.close_connection = True
            self._log(f"the client is gone: {error}")
        except Exception as error:  # noqa: BLE001  # Whatever it is, the client gets an answer, and the log a line.
            self._fail(EngineError.named(1002, "UNKNOWN_EXCEPTION", f"a fault of the server: {error!r}"))
        self._viewed = None
        self._drain()

    do_GET = do_HEAD = do_POST

    def _respond(self) -> None:
        url = urlsplit(self.path)
        if url.path in ("/ping", "/replicas_status"):
            self._answer_at_once(200, "Ok.\n")
            return
        if url.path != "/":
            self._answer_at_once(404, f"There is no handle {url.path}\n\nUse / for queries, /ping for health checks.\n")
            return
        if self.server.users.is_open:
            self._check_is_no_page()
        self._parameters = dict(parse_qsl(url.query, keep_blank_values=True, errors="surrogateescape"))
        if self.command != "POST" and "query" not in self._parameters:
            self._answer_at_once(200, "Ok.\n")
            return
        self._check_parameters()
        self.query_id = self._parameters.get("query_id") or str(uuid.uuid4())
        user = self.server.users.check(*self._credentials())
        self._user = user.name
        with self.server.at_work(self.connection, user):
            self._work(user)

    def _answer_at_once(self, status: int, text: str) -> None:
        """Without a look at the body, which may not be taken for the next request."""
        if set(self.headers.get_all("Content-Length", [])) - {"0"} or "Transfer-Encoding" in self.headers:
            self.close_connection = True
        else:
            self._body = messages.Incoming(self.rfile, 0)
        self._answer(status, text.encode(errors="replace"))

    def _check_is_no_page(self) -> None:
        """Where no password is asked for, a web page in a browser of this machine could send statements too."""
        site = self.headers.get("Sec-Fetch-Site", "none")
        if "Origin" in self.headers or site != "none":
            raise denied("A server without a password takes no requests of web pages (with an Origin): give it one")
        host = self.headers.get("Host", "localhost").strip()
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        try:
            is_loopback = ipaddress.ip_address(name).is_loopback
        except ValueError:
            is_loopback = name.lower() == "localhost"
        if not is_loopback:
            raise denied(f"A server without a password answers to loopback names alone, got Host {host!r}")

    def _check_parameters(self) -> None:
        for name, value in self._parameters.items():
            try:
                (name + value).encode()
            except UnicodeEncodeError:
                raise EngineError.named(
                    36, "BAD_ARGUMENTS", f"expected UTF-8 in the parameter {name!a} of the request, got other bytes"
                ) from None

    def _work(self, user: User) -> None:
        self._read(user)
        asked = self._parameters
        for name in ("compress", "decompress"):
            if asked.get(name) not in (None, "", "0", "false"):
                raise EngineError.named(
                    48, "NOT_IMPLEMENTED", f"{name}=1, ClickHouse's own framing of compressed data, is not offered: "
                    "use Accept-Encoding and Content-Encoding"
                )  # fmt: skip
        if asked.get("role"):
            raise EngineError.named(511, "UNKNOWN_ROLE", f"There is no role {asked['role']!r}")
        own = _OWN | {f"{name}_{what}" for name in self._request.tables for what in ("format", "structure", "types")}
        settings = {k: v for k, v in asked.items() if k not in own and not k.startswith("param_")}
        parameters = {k[6:]: v for k, v in asked.items() if k.startswith("param_")}
        check_no_format(settings)
        if user.is_reader:
            # The connection itself holds to `readonly`, whatever the request says.
            check_reader_sets(name for name in settings if name != "readonly")
        with self._link(user, settings) as link:
            try:
                with self.server.watched(self.connection, link):
                    answer = self._run(link, user, settings, parameters)
            except BaseException:
                link.spoilt = True
                raise
        # A client that has its answer may use its session again, and find it free.
        answer()

    def _credentials(self) -> tuple[str | None, str]:
        header = self.headers.get("Authorization", "")
        scheme, _, rest = header.partition(" ")
        if scheme.lower() == "basic":
            try:
                name, _, password = base64.b64decode(rest.strip(), validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError):
                raise EngineError.named(
                    516, "AUTHENTICATION_FAILED", "Authentication failed: the Authorization header cannot be read"
                ) from None
            return name, password
        if header:
            raise EngineError.named(
                516, "AUTHENTICATION_FAILED", f"Authentication failed: expected Basic authorization, got {scheme!r}"
            )
        for mapping, name, key in (
            (self.headers, "X-ClickHouse-User", "X-ClickHouse-Key"),
            (self._parameters, "user", "password"),
        ):
            if name in mapping or key in mapping:
                return mapping.get(name, "default"), mapping.get(key, "")
        return None, ""

    def _read(self, user: User) -> None:
        """The statement, and where an INSERT's data comes from."""
        most = _MAX_READERS_STATEMENT if user.is_reader else _MAX_STATEMENT
        self._body = self._incoming()
        body: messages.Readable = messages.decoded(self._body, self.headers.get("Content-Encoding", ""))
        tables: dict[str, tuple[str, str, bytes]] = {}
        kind = self.headers.get("Content-Type", "")
        if kind.lower().startswith("multipart/form-data"):
            tables = self._form(user, kind, body)
        asked = self._parameters
        format = asked.get("default_format") or self.headers.get("X-ClickHouse-Format")
        text = asked.get("query", "").encode("utf-8", "surrogateescape")
        insert = None
        if text:
            insert = statements.insert_of(text, whole=True) if statements.is_insert(text) else None
        else:
            looked = 0
            for piece in messages.pieces(body):
                text += piece
                if len(text) >= 2 * looked:  # Not at each piece, however small: that would be slow.
                    looked = len(text)
                    if statements.is_insert(text):
                        insert = statements.insert_of(text, whole=False)
                if insert:
                    break
                _check_size(text, most)
            if not insert and statements.is_insert(text):
                insert = statements.insert_of(text, whole=True)
        if insert:
            rest = text[insert.data_at :]
            data = chain([rest] if rest.strip(b" \t\r\n;") or not asked.get("query") else [], messages.pieces(body))
            self._request = Request(insert.head, data, insert.format or format or "Values", tables)
        else:
            _check_size(text, most)
            for piece in messages.pieces(body):
                text += piece if text.endswith(b"\n") else b"\n" + piece
                _check_size(text, most)
            self._request = Request(text, None, format or "TabSeparated", tables)
        if insert or user.is_reader:
            try:
                self._request.sql.decode()
            except UnicodeDecodeError:
                raise EngineError.named(
                    36, "BAD_ARGUMENTS", "expected UTF-8 in the statement: write other bytes as unhex('…')"
                ) from None

    def _incoming(self) -> messages.Incoming:
        """The body, whose end has to be as clear to this server as to a proxy before it."""
        lengths = self.headers.get_all("Content-Length", [])
        codings = self.headers.get_all("Transfer-Encoding", [])
        if codings:
            if lengths or [one.strip().lower() for one in codings] != ["chunked"]:
                raise messages.BodyError(f"expected Transfer-Encoding: chunked alone, got {', '.join(codings)!r}")
            return messages.Incoming(self.rfile, None)
        length = lengths[0].strip() if lengths else "0"
        if len(lengths) > 1 or not length.isdecimal():
            raise messages.BodyError(f"expected one number as Content-Length, got {', '.join(lengths)!r}")
        return messages.Incoming(self.rfile, int(length))

    def _form(self, user: User, kind: str, body: messages.Readable) -> dict[str, tuple[str, str, bytes]]:
        asked = self._parameters
        most = _MAX_READERS_STATEMENT if user.is_reader else _MAX_FORM
        whole = bytearray()
        for piece in messages.pieces(body):
            whole += piece
            if len(whole) > most:
                raise EngineError.named(229, "QUERY_IS_TOO_LARGE", f"a form of more than {most} bytes")
        found = messages.parts(kind, bytes(whole))
        if user.is_reader and any(part.is_file for part in found):
            raise denied("A read-only user may not send tables with a query")
        asked.update({part.name: part.data.decode("utf-8", "surrogateescape") for part in found if not part.is_file})
        self._check_parameters()
        tables = {}
        for part in found:
            if part.is_file:
                columns = asked.get(f"{part.name}_structure")
                if columns is None:
                    types = statements.split(asked.get(f"{part.name}_types", ""))
                    columns = ", ".join(f"_{at} {one}" for at, one in enumerate(types, 1))
                tables[part.name] = columns, asked.get(f"{part.name}_format", "TabSeparated"), part.data
        return tables

    @contextmanager
    def _link(self, user: User, settings: dict[str, str]) -> Iterator[Link]:
        asked = self._parameters
        database = asked.get("database") or self.headers.get("X-ClickHouse-Database") or ""
        name = asked.get("session_id")
        if not name:
            key = Key(user.is_reader, database, tuple(sorted(settings.items())))
            link = self.server.engine.take(key)
            try:
                yield link
            finally:
                self.server.engine.give_back(link)
            return
        seconds = asked.get("session_timeout", "60")
        if not seconds.isdecimal() or int(seconds) > _MAX_SESSION_SECONDS:
            raise EngineError.named(
                374, "INVALID_SESSION_TIMEOUT", f"Invalid session timeout: {seconds!r}, at most {_MAX_SESSION_SECONDS}"
            )
        must_exist, close = asked.get("session_check") == "1", asked.get("close_session") == "1"
        with self.server.sessions.at_work(user, name, int(seconds), must_exist=must_exist, close=close) as link:
            link.use_for_now(database)
            yield link

    # --- the statement ---

    def _run(self, link: Link, user: User, settings: dict[str, str], parameters: dict[str, str]) -> Callable[[], None]:
        """Run the statement; what gives the answer, or the end of one that went out in pieces."""
        request = self._request
        head = request.sql + b" VALUES" if request.data is not None else request.sql
        kind = link.kind(head)
        self._check(link, user, kind, settings)
        in_session = "session_id" in self._parameters
        if in_session:
            # A statement that changes the session finds it without what is only for now.
            link.set_for_now({} if kind.name == "CONTROL" else {k: v for k, v in settings.items() if k != "readonly"})
        link.spoilt = link.spoilt or kind.name not in ("READ_ONLY", "MUTATING") or bool(request.tables)
        for name, (columns, format, rows) in request.tables.items():
            table = identifier(name)
            link.run(f"CREATE OR REPLACE TEMPORARY TABLE {table} ({columns}) ENGINE = Memory")
            link.insert(f"INSERT INTO {table}".encode(), format, [rows])
        if request.data is not None:
            answer = self._insert(link, parameters)
        else:
            answer = self._query(link, kind, settings, parameters, in_session)
        if in_session:
            for name in request.tables:
                link.run(f"DROP TEMPORARY TABLE IF EXISTS {identifier(name)}")
            if kind.name == "CONTROL":
                link.look_up()
        return answer

    def _check(self, link: Link, user: User, kind: Kind, settings: Mapping[str, str]) -> None:
        """Raises EngineError for what may not be asked over HTTP, or by this user."""
        sql = self._request.sql
        words = statements.words(sql)
        check_no_format(statements.settings(sql, normal=False))
        if not words and self._request.data is None and not sql.strip():
            raise EngineError.named(62, "SYNTAX_ERROR", "Empty query")
        if kind.statements > 1:
            raise EngineError.named(62, "SYNTAX_ERROR", "Syntax error (Multi-statements are not allowed)")
        if kind.name == "UNKNOWN" and self._request.data is None:
            # It would be run up to the place that cannot be read.
            self.server.engine.spelt(sql)
        if user.is_reader:
            sql = self.server.engine.spelt(sql) if kind.name == "READ_ONLY" else sql
            check_reader(kind, sql)
            words = statements.words(sql)
        if ("into", "outfile") in pairwise(words):
            raise EngineError.named(358, "INTO_OUTFILE_NOT_ALLOWED", "INTO OUTFILE is not allowed")
        if "infile" in words and kind.name != "READ_ONLY":
            raise EngineError.named(78, "UNKNOWN_TYPE_OF_QUERY", "Query has infile and was send directly to server")
        if kind.name != "READ_ONLY" and statements.calls(sql, "input"):
            raise EngineError.named(
                48, "NOT_IMPLEMENTED", "the table function input is not offered: insert the rows first"
            )
        readonly = self.command != "POST" or settings.get("readonly", "0") != "0"
        if readonly and kind.name != "READ_ONLY" and words[:1] not in (["set"], ["use"]):
            raise EngineError.named(
                164,
                "READONLY",
                f"{user.name}: Cannot execute query in readonly mode. "
                "For queries over HTTP, method GET implies readonly. You should use method POST for modifying queries",
            )

    def _insert(self, link: Link, parameters: Mapping[str, str]) -> Callable[[], None]:
        request = self._request
        assert request.data is not None
        if parameters:
            link.spoilt = True
            link.set_parameters(parameters)
        rows, size = link.insert(request.sql, request.format, request.data)
        return self._whole(link, b"", None, {"written_rows": rows, "written_bytes": size})

    def _query(
        self, link: Link, kind: Kind, settings: Mapping[str, str], parameters: Mapping[str, str], in_session: bool
    ) -> Callable[[], None]:
        sql = self._request.sql
        own = statements.format_of(sql) if kind.name == "READ_ONLY" else None
        format = own or self._request.format
        words = statements.words(sql)
        waits = self._parameters.get("wait_end_of_query") == "1" or self.request_version == "HTTP/1.0"
        with self.server.ends_with_client(self.connection) if kind.name == "READ_ONLY" else nullcontext():
            can_stream = (
                kind.name == "READ_ONLY"
                and not waits
                and words[:1] in (["select"], ["with"], ["from"])
                and formats.is_streamed(format, chain(words, settings), in_session=in_session)
            )
            if can_stream and (answer := self._stream(link, sql, format, parameters)):
                return answer
            result = link.run(sql, format, parameters)
            data = result.get_memview().view() if result.size() else b""
            self._viewed = result  # The view does not keep what it looks at.
            numbers = {
                "read_rows": result.storage_rows_read(),
                "read_bytes": result.storage_bytes_read(),
                "written_rows": result.rows_written(),
                "written_bytes": result.bytes_written(),
                "result_rows": result.rows_read(),
                "result_bytes": result.size(),
                "elapsed_ns": int(result.elapsed() * 1e9),
            }
            has_rows = kind.name == "READ_ONLY" or len(data) > 0
            return self._whole(link, data, format if has_rows else None, numbers)

    def _stream(self, link: Link, sql: bytes, format: str, parameters: Mapping[str, str]) -> Callable[[], None] | None:
        """Answer in pieces; None where there is none, and the format says something even then."""
        stream = link.stream(sql, format, parameters)
        try:
            pieces = formats.joined(format, stream)
            first = next(pieces, None)
            if first is None and format.lower() == "arrowstream":
                return None
            second = next(pieces, None)
            if second is None:
                return self._whole(link, first or b"", format, link.numbers)
            self._tag = uuid.uuid4().hex[:16]
            encoding = self._encoding()
            self._head(200, {**self._about(link, format, {}), "X-ClickHouse-Exception-Tag": self._tag}, encoding, None)
            self._outgoing = messages.Outgoing(self.wfile, encoding, chunked=True)
            for piece in chain((first, second), pieces):
                self._outgoing.write(piece)
            return self._outgoing.end
        finally:
            stream.close()

    # --- the answer ---

    def _about(self, link: Link | None, format: str | None, numbers: Mapping[str, int]) -> dict[str, str]:
        names = ("read_rows", "read_bytes", "written_rows", "written_bytes", "total_rows_to_read", "result_rows")
        summary = {name: str(numbers.get(name, 0)) for name in (*names, "result_bytes", "elapsed_ns")}
        engine = self.server.engine
        about = {
            "Content-Type": formats.content_type(format or "TabSeparated"),
            "X-ClickHouse-Server-Display-Name": engine.name,
            "X-ClickHouse-Query-Id": quote(self.query_id, safe=" !#$&'()*+,/:;=?@[]{}|~"),
            "X-ClickHouse-Timezone": (link and link.time_zone) or engine.time_zone,
            "X-ClickHouse-Summary": json.dumps(summary, separators=(",", ":")),
        }
        if format:
            about["X-ClickHouse-Format"] = format
        return about

    def _whole(self, link: Link, data: Any, format: str | None, numbers: Mapping[str, int]) -> Callable[[], None]:
        encoding = self._encoding() if len(data) else None
        if encoding:
            data = messages.compressed(data, encoding)
        return partial(self._answer, 200, data, self._about(link, format, numbers), encoding)

    def _encoding(self) -> str | None:
        if self._parameters.get("enable_http_compression", "1") in ("0", "false"):
            return None
        return messages.accepted(self.headers.get("Accept-Encoding", ""))

    def _head(self, status: int, headers: Mapping[str, str], encoding: str | None, length: int | None) -> None:
        self._begun = True
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if encoding:
            self.send_header("Content-Encoding", encoding)
        if length is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _answer(
        self, status: int, data: Any, headers: Mapping[str, str] | None = None, encoding: str | None = None
    ) -> None:
        self._head(status, headers or {"Content-Type": "text/plain; charset=UTF-8"}, encoding, len(data))
        if self.command != "HEAD":
            self.wfile.write(data)
        self.wfile.flush()

    def _fail(self, error: EngineError) -> None:
        text = str(error)
        if "(version " not in text:
            text += f" (version {self.server.engine.version})"
        self._log(text)
        if self._body is None:
            self.close_connection = True  # Its body stands before the next request.
        try:
            if not self._begun:
                headers = self._about(None, None, {}) | {"X-ClickHouse-Exception-Code": str(error.code)}
                headers["Content-Type"] = "text/plain; charset=UTF-8"
                if error.code == 194:
                    headers["WWW-Authenticate"] = 'Basic realm="ClickHouse server HTTP API"'
                self._answer(_STATUS.get(error.code, 500), (text + "\n").encode(errors="replace"), headers)
                return
            self.close_connection = True
            if self._outgoing:
                said = text.encode(errors="replace")
                mark = (self._tag or "").encode()
                self._outgoing.write(
                    b"\r\n__exception__\r\n%b\r\n%b\n%d %b\r\n__exception__\r\n" % (mark, said, len(said) + 1, mark)
                )
                self._outgoing.end(broken=True)
                self.wfile.flush()
        except OSError:
            self.close_connection = True

    def _drain(self) -> None:
        """Read what is left of the body: the next request stands behind it, and some clients look up only then."""
        try:
            unread = 0
            while self._body and self._body.read() and not self.close_connection:
                unread += messages.PIECE
                self.close_connection = unread > _MAX_UNREAD
        except (messages.BodyError, OSError):
            self.close_connection = True

    def _log(self, what: str) -> None:
        said, asked = _shown(what, 400), _shown(self._request.sql[:400].decode(errors="replace"), 200)
        log.warning("%s %s %r: %s | %s", self.client_address[0], _shown(self._user, 80), self.query_id, said, asked)

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)


def _shown(text: str, most: int) -> str:
    """On one line of a log, and without what a terminal would obey."""
    line = " ".join(text.split())[:most]
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)


class Server(ThreadingHTTPServer):
    """The server; it listens when made, and serves once `serve_forever` runs.

    Args:
      host: An address.
      port: 0 for a free one.

    Raises:
      OSError: the address cannot be had.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, host: str, port: int, engine: Engine, users: Iterable[User], handler: type[Handler] = Handler
    ) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        self.engine = engine
        self.users = Users(users)
        self.sessions = Sessions(engine)
        self._working: dict[socket.socket, User] = {}
        self._watched: dict[socket.socket, Link] = {}
        self._ending_with_client: set[socket.socket] = set()
        self._changed = threading.Condition()
        self._stopping = False
        super().__init__((host, port), handler)
        threading.Thread(target=self._tick, daemon=True).start()

    @contextmanager
    def at_work(self, connection: socket.socket, user: User) -> Iterator[None]:
        """Raises EngineError while too many requests are at work."""
        with self._changed:
            readers = sum(one.is_reader for one in self._working.values())
            if self._stopping:
                raise EngineError.named(202, "TOO_MANY_SIMULTANEOUS_QUERIES", "the server is stopping")
            for most, at_work in (
                (MAX_AT_WORK, len(self._working)),
                (MAX_READERS_AT_WORK, readers if user.is_reader else 0),
            ):
                if at_work >= most:
                    raise EngineError.named(202, "TOO_MANY_SIMULTANEOUS_QUERIES", f"{at_work} queries are at work")
            self._working[connection] = user
        try:
            yield
        finally:
            with self._changed:
                del self._working[connection]
                self._changed.notify_all()

    @contextmanager
    def watched(self, connection: socket.socket, link: Link) -> Iterator[None]:
        """While a statement may run: so that it can be ended."""
        with self._changed:
            self._watched[connection] = link
        try:
            yield
        finally:
            with self._changed:
                del self._watched[connection]

    @contextmanager
    def ends_with_client(self, connection: socket.socket) -> Iterator[None]:
        """While a query runs that only reads: end it when its client hangs up."""
        with self._changed:
            self._ending_with_client.add(connection)
        try:
            yield
        finally:
            with self._changed:
                self._ending_with_client.discard(connection)

    def _tick(self) -> None:
        while not self._stopping:
            time.sleep(_TICK_SECONDS)
            self.sessions.expire()
            with self._changed:
                gone = [self._watched[connection] for connection in self._ending_with_client if _is_gone(connection)]
                # Under the lock: a connection is given back, and gets other work, after it was taken off the watch.
                self.engine.kill(gone)

    def stop(self, grace_seconds: float) -> int:
        """Take no more requests, wait for those at work, break off those that take longer, and close the database.

        Returns:
          How many were broken off.

        Raises:
          StillAtWork: some do not end. The database is open then, as closing it under a statement is a crash.
        """
        with self._changed:
            self._stopping = True
        self.shutdown()
        self.server_close()
        with self._changed:
            self._changed.wait_for(lambda: not self._working, grace_seconds)
            broken = len(self._working)
            began = time.monotonic()
            while self._working:
                after = time.monotonic() - began
                if after > _BREAKING_SECONDS:
                    raise StillAtWork(broken)
                self.engine.kill(self._watched.values())
                for connection in self._working:
                    with suppress(OSError):  # An insert whose data does not come, or an answer that nobody takes.
                        connection.shutdown(socket.SHUT_RD if after < _BREAKING_SECONDS / 2 else socket.SHUT_RDWR)
                self._changed.wait_for(lambda: not self._working, _TICK_SECONDS)
        self.sessions.expire(all=True)
        self.engine.close()
        return broken

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # A client that went is none.
            log.error("a fault while answering %s: %r", client_address, sys.exception())


def _is_gone(connection: socket.socket) -> bool:
    try:
        readable, _, _ = select.select([connection], [], [], 0)
        return bool(readable) and not connection.recv(1, socket.MSG_PEEK)
    except (OSError, ValueError):
        return True
