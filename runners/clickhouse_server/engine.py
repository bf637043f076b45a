"""Connections to the embedded ClickHouse, one for each statement at work.

A connection of chdb is a session of ClickHouse: it has its own settings, current database and temporary tables, and
runs one statement at a time, beside those of other connections. So each request takes one of its own; those that are
as new are kept for the next request with the same settings.
"""

from __future__ import annotations

import itertools
import os
import re
import tempfile
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import chdb

from meterline.runners.clickhouse_server import statements

_IDLE = 32
_READER = "meterline_reader"
# chdb knows one user, `default`. What a read-only user may do is a role of its, and a connection can take that alone.
_CONFIG = "<clickhouse><user_directories><users_xml><path>{users}</path></users_xml></user_directories></clickhouse>"
_USERS = f"""<clickhouse>
  <profiles><default/></profiles>
  <quotas><default/></quotas>
  <roles>
    <meterline_writer><grants><query>GRANT ALL ON *.*</query></grants></meterline_writer>
    <{_READER}><grants><query>GRANT SELECT, SHOW, dictGet ON *.*</query></grants></{_READER}>
  </roles>
  <users><default>
    <password/><networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota>
    <grants><query>GRANT meterline_writer</query><query>GRANT {_READER}</query></grants>
  </default></users>
</clickhouse>"""
# Functions that ask for no right in an embedded engine, or read this process's own variables, or run a text as SQL.
_NOT_FOR_READERS = {"file", "python", "filesystem", "eval", "bigquery", "sqlite"}
# What a read-only user may set. It is a list of what may, as settings of ClickHouse are SQL (`select`), name files to
# read and to write (`format_template_row`, `output_format_schema`) and servers to call, and each release brings others.
_FOR_READERS = re.compile(
    r"""
      max_\w+ | (?!output_format_schema$)output_format_\w+ | date_time_\w+ | join_\w+ | group_by_\w+ | optimize_\w+
    | use_skip_indexes\w* | enable_optimize_\w+ | \w+_overflow_mode | format_(csv|tsv)_(delimiter|null_representation)
    | bool_(true|false)_representation | cast_keep_nullable | cast_string_to_(dynamic|variant)_use_inference
    | aggregate_functions_null_for_empty | transform_null_in
    | extremes | totals_mode | final | session_timezone | union_default_mode | prefer_column_name_to_alias
    | do_not_merge_across_partitions_select_final | allow_experimental_analyzer | enable_analyzer
    | input_format_null_as_default | cancel_http_readonly_queries_on_client_close
    """,
    re.VERBOSE | re.ASCII,
)
# The format is asked for in other ways: given as a setting, each piece of an answer would be in it for itself.
_FORMATS = {"format", "output_format", "input_format"}


class EngineError(Exception):
    """What ClickHouse answers to a statement that failed.

    Args:
      code: ClickHouse's number of the error.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    @classmethod
    def named(cls, code: int, name: str, message: str) -> EngineError:
        return cls(code, f"Code: {code}. DB::Exception: {message} ({name})")

    @classmethod
    def of(cls, error: Exception) -> EngineError:
        """From chdb's error, which has ClickHouse's message behind a word of its own."""
        text = str(error)
        found = re.search(r"Code: (\d+)\.", text)
        if found is None:
            return cls.named(1002, "UNKNOWN_EXCEPTION", text)
        return cls(int(found[1]), text[found.start() :].strip())


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (chdb.ChdbError, RuntimeError) as error:
        raise EngineError.of(error) from None


class Kind(NamedTuple):
    """What a statement would do.

    Args:
      name: READ_ONLY, MUTATING, MUTATING_GLOBAL, CONTROL (it changes the session, or the server), UNKNOWN.
    """

    name: str
    statements: int


class Key(NamedTuple):
    """What a connection starts with."""

    reader: bool = False
    database: str = ""
    settings: tuple[tuple[str, str], ...] = ()


class Link:
    """One connection. `label` names its statements in system.processes, so that another can end them."""

    _labels = itertools.count(1)

    def __init__(self, folder: str, key: Key) -> None:
        self.key = key
        self.label = f"meterline-{os.getpid()}-{next(self._labels)}"
        self.spoilt = False
        self.killable = True
        self.time_zone = dict(key.settings).get("session_timezone", "")
        # Of the last query answered in pieces.
        self.numbers: dict[str, int] = {}
        self._before: dict[str, str] = {}
        self._current = self._own = "default"
        with _errors():
            self.connection = chdb.connect(folder)
        try:
            if key.reader:
                self.run(f"SET ROLE {_READER}")
            settings = {"log_comment": self.label, "async_insert": "0", **dict(key.settings)}
            self.killable = settings["log_comment"] == self.label
            self.set(settings)
            if key.database:
                self.use(key.database)
            if key.reader:
                self.set({"readonly": "2"})
        except EngineError:
            self.close()
            raise

    def close(self) -> None:
        self.connection.close()

    def kind(self, sql: bytes) -> Kind:
        found = self.connection._conn.classify_query(sql.decode(errors="replace"))
        return Kind(found["query_class"].name, found["statement_count"])

    def run(self, sql: str | bytes, format: str = "TabSeparated", parameters: Mapping[str, str] | None = None) -> Any:
        """The whole result: chdb's object, with the bytes and the numbers of rows."""
        with _errors():
            return self.connection.query(sql, format, params=dict(parameters or {}))

    def stream(self, sql: bytes, format: str, parameters: Mapping[str, str]) -> Generator[bytes, None, None]:
        """The result in pieces, each of which the format can follow by another; closing it ends the query."""
        with _errors():
            stream = self.connection.send_query(sql, format, params=dict(parameters))
        self.numbers = dict.fromkeys(("read_rows", "read_bytes", "result_rows", "result_bytes"), 0)
        try:
            while True:
                with _errors():
                    piece = stream.fetch()
                if piece is None:
                    return
                self.numbers["read_rows"] += piece.storage_rows_read()
                self.numbers["read_bytes"] += piece.storage_bytes_read()
                self.numbers["result_rows"] += piece.rows_read()
                self.numbers["result_bytes"] += piece.size()
                yield piece.bytes()
        finally:
            with suppress(chdb.ChdbError):
                stream.cancel()

    def insert(self, head: bytes, format: str, data: Iterable[bytes]) -> tuple[int, int]:
        """Store rows as they come; the numbers of rows and bytes. Where the data breaks off, the insert is given up."""
        with _errors():
            inserter = self.connection.send_insert(head.decode(), format)
        with inserter:
            for piece in data:
                with _errors():
                    inserter.append(piece)
            with _errors():
                done = inserter.finish()
        return done.rows_written, done.bytes_written

    def set(self, settings: Mapping[str, str]) -> None:
        """For all statements that follow. Raises EngineError for an unknown setting, or one that may not be set."""
        if settings:
            self.run("SET " + ", ".join(f"{setting(name)} = {quoted(value)}" for name, value in settings.items()))

    def set_for_now(self, settings: Mapping[str, str]) -> None:
        """The same for the next statements alone: before another is set, the earlier values are back."""
        self.set(self._before)
        self._before = {}
        if settings:
            asked = ", ".join(f"toString(getSetting({quoted(setting(name))})) AS `{name}`" for name in settings)
            before = self.run(f"SELECT {asked}", "TSVRaw").bytes().decode().rstrip("\n").split("\t")
            self.set(settings)
            self._before = dict(zip(settings, before))

    def set_parameters(self, parameters: Mapping[str, str]) -> None:
        """For a statement whose call takes none."""
        for name, value in parameters.items():
            self.run(f"SET {setting('param_' + name)} = {quoted(value)}")

    def use(self, database: str) -> None:
        self.run(f"USE {identifier(database)}")
        self._current = database

    def use_for_now(self, database: str) -> None:
        """For the next statement alone; the session's own database where none is named."""
        if self._current != (database or self._own):
            self.use(database or self._own)

    def look_up(self) -> None:
        """What a SET or USE may have changed."""
        found = self.run("SELECT timezone(), currentDatabase()", "TSVRaw").bytes().decode().rstrip("\n").split("\t")
        self.time_zone, database = found
        if database != self._current:
            self._current = self._own = database


def quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def identifier(name: str) -> str:
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def escaped(text: str) -> str:
    """As ClickHouse expects the value of a parameter."""
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\0", "\\0")


def setting(name: str) -> str:
    if not re.fullmatch(r"\w+", name, re.ASCII):
        raise EngineError.named(115, "UNKNOWN_SETTING", f"Unknown setting {name!r}")
    return name


def denied(why: str) -> EngineError:
    return EngineError.named(497, "ACCESS_DENIED", f"Not enough privileges. {why}")


def check_reader(kind: Kind, sql: bytes) -> None:
    """Raises EngineError for what a read-only user may not do, and ClickHouse's role does not forbid it.

    Args:
      sql: As `Engine.spelt` gives it.
    """
    if kind.name != "READ_ONLY":
        raise denied("A read-only user may only read: SELECT, SHOW, DESCRIBE, …")
    for word in sorted(_NOT_FOR_READERS.intersection(statements.words(sql))):
        raise denied(f"A read-only user's query may not name {word!r}")
    if statements.calls(sql, "arrowstream"):  # As a format it may be named.
        raise denied("A read-only user's query may not call 'arrowstream'")
    check_reader_sets(statements.settings(sql, normal=True))


def check_reader_sets(names: Iterable[str]) -> None:
    """Raises EngineError for a setting that a read-only user may not change."""
    for name in names:
        if not _FOR_READERS.fullmatch(name):
            raise denied(f"A read-only user may not change the setting {name!r}")


def check_no_format(names: Iterable[str]) -> None:
    """Raises EngineError where a format is given as a setting."""
    for name in _FORMATS.intersection(names):
        what_to_do = "write FORMAT in the statement, or give default_format in the URL"
        raise EngineError.named(36, "BAD_ARGUMENTS", f"the setting {name!r} is not offered: {what_to_do}")


# For a statement of any length; other settings are as they are.
_PLAIN = Key(settings=(("max_query_size", "0"),))


class Engine:
    """The database of a folder.

    Args:
      readers: Whether there are read-only users. The engine learns of their role when it starts; in a process where it
        runs already, connecting as one fails.
    """

    def __init__(self, folder: str, *, readers: bool = False) -> None:
        self._folder = folder
        self._idle: dict[Key, list[Link]] = {}
        self._lock = threading.Lock()
        with tempfile.TemporaryDirectory(prefix="meterline-") as configured:
            options = ""
            if readers:
                users, config = Path(configured, "users.xml"), Path(configured, "config.xml")
                users.write_text(_USERS, encoding="utf-8")
                config.write_text(_CONFIG.format(users=users), encoding="utf-8")
                options = f"?config-file={config}"
            # Open as long as the server: with the last connection the engine stops.
            self._root = chdb.connect(folder + options)
        about = self._root.query("SELECT version(), timezone(), displayName()", "TSVRaw").bytes().decode()
        self.version, self.time_zone, self.name = about.rstrip("\n").split("\t")
        if readers:
            Link(folder, Key(reader=True)).close()

    def take(self, key: Key) -> Link:
        """A connection that is as new."""
        with self._lock:
            idle = self._idle.get(key)
            if idle:
                return idle.pop()
        return Link(self._folder, key)

    def give_back(self, link: Link) -> None:
        """Keep it for another request, unless its session is not as it was."""
        closing: list[Link] = [link]
        if not link.spoilt:
            with self._lock:
                self._idle.setdefault(link.key, []).append(link)
                closing = []
                if sum(map(len, self._idle.values())) > _IDLE:
                    oldest = next(iter(self._idle))
                    closing = self._idle.pop(oldest)
        for one in closing:
            one.close()

    def spelt(self, sql: bytes) -> bytes:
        """A statement as ClickHouse writes it: on one line, without comments, names as they are meant.

        It is asked on a connection without the user's settings, which could change the answer.

        Raises:
          EngineError: ClickHouse cannot read the statement.
        """
        link = self.take(_PLAIN)
        try:
            text = {"sql": escaped(sql.decode(errors="replace"))}
            found = bytes(link.run("SELECT formatQuerySingleLine({sql:String})", "RawBLOB", text).bytes())
        except EngineError as error:
            told = re.sub(r"(\. )?: In scope SELECT formatQuery.*(?= \(\w+\))", "", str(error), flags=re.DOTALL)
            raise EngineError(error.code, told) from None
        finally:
            self.give_back(link)
        if not found.strip():
            raise EngineError.named(62, "SYNTAX_ERROR", "the statement cannot be read")
        return found

    def kill(self, links: Iterable[Link]) -> None:
        """End their statements; each fails with QUERY_WAS_CANCELLED."""
        labels = ", ".join(quoted(link.label) for link in links if link.killable)
        if labels:
            with suppress(chdb.ChdbError):
                self._root.query(f"KILL QUERY WHERE Settings['log_comment'] IN ({labels}) ASYNC", "Null")

    def close(self) -> None:
        with self._lock:
            for link in itertools.chain.from_iterable(self._idle.values()):
                link.close()
            self._idle.clear()
        self._root.close()
