"""The door to ClickHouse: one client for an embedded database (chdb) and for a server, and its numbered tables."""

from __future__ import annotations

import hashlib
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError

from meterline.schemas.calendars import longest_days
from meterline.transforms.progress import seen

SETTINGS: dict[str, int | str] = {
    # An insert is stored when it is acknowledged, or not at all.
    "async_insert": 0,
    # Rows of one key are made one by merges and by FINAL; to look for them in each insert too is slow.
    "optimize_on_insert": 0,
    # Rows of one key lie in one partition, in all tables.
    "do_not_merge_across_partitions_select_final": 1,
    # A file may hold events of more days, and so partitions, than the default of 100.
    "max_partitions_per_insert_block": 0,
    "date_time_input_format": "best_effort",
    "output_format_arrow_low_cardinality_as_dictionary": 1,
}
_TRIES = 5
T = TypeVar("T")


class DatabaseError(RuntimeError):
    """ClickHouse cannot be used: the text says what came, what was expected and what to do."""


class Migration(NamedTuple):
    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def redacted(url: str) -> str:
    """The URL without its password, for messages."""
    hidden = re.sub(r"//([^/:@]*):.*@", r"//\1:***@", url, flags=re.DOTALL)  # To the last @: one may be in it.
    return re.sub(r"([?&]password=)[^&]*", r"\1***", hidden)


@lru_cache(maxsize=4)
def connect(url: str) -> Client:
    """The process's client of a database; made after a fork, never before.

    Args:
      url: `chdb://PATH` (embedded: a folder, one process) or `http(s)://user:password@host:8123/database`.

    Raises:
      DatabaseError: the URL has another form, or nothing answers there.
    """
    return _client(url, SETTINGS)


def _client(url: str, settings: dict[str, int | str]) -> Client:
    try:
        parts = urlsplit(url)
        path = unquote(parts.netloc + parts.path)
        port = _port(url)
        if parts.scheme == "chdb" and path:
            check_folder(Path(path))
            return clickhouse_connect.get_client(interface="chdb", path=path, settings=dict(settings))
        if parts.scheme in ("http", "https") and parts.hostname:
            return clickhouse_connect.get_client(
                interface=parts.scheme,
                host=parts.hostname,
                port=port or (8443 if parts.scheme == "https" else 8123),
                username=unquote(parts.username or "default"),
                password=unquote(parts.password or ""),
                database=unquote(parts.path.strip("/")) or "default",
                settings=dict(settings),
                connect_timeout=10,
                autogenerate_session_id=False,  # A lease is renewed while the job's own statements run.
            )
    except (ClickHouseError, OSError, RuntimeError, ValueError) as error:
        raise DatabaseError(f"no ClickHouse answers at {redacted(url)}: {cause(error)}") from None
    raise DatabaseError(f"expected chdb://PATH or http(s)://user:password@host:8123/database, got {redacted(url)!r}")


def _port(url: str) -> int | None:
    """The port of a URL, if it has one."""
    try:
        return urlsplit(url).port if url.startswith("http") else None
    except ValueError:
        raise DatabaseError(
            f"{redacted(url)} has a port that is no number up to 65535; in a password / is written %2F, and @ is %40"
        ) from None


def check_exists(url: str) -> None:
    """For what would say of a database that is not there that all is well.

    Raises:
      DatabaseError: an embedded one has no folder yet.
    """
    parts = urlsplit(url)
    folder = Path(unquote(parts.netloc + parts.path))
    if parts.scheme == "chdb" and not folder.exists():
        raise DatabaseError(f"there is no database at {url}: `meterline migrate --clickhouse {url}` makes one")


def check_folder(folder: Path) -> None:
    """Raises OSError where no database can be; the engine would say that another process holds the folder."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is no folder")
    held = [place, *(folder / name for name in ("status", "store") if (folder / name).exists())]
    for one in held:
        if not os.access(one, os.W_OK):
            raise PermissionError(f"{one} cannot be written to, which the embedded engine needs even to read")


def cause(error: Exception) -> str:
    """What keeps a client from connecting, in the user's words where the cause is common."""
    text = str(error)
    if "Cannot lock file" in text or "Error initializing EmbeddedServer: ." in text:
        return "another process has this folder open; an embedded database serves one process at a time"
    if "HTTPConnection" in text or "Connection refused" in text:
        return "the connection was refused" if "refused" in text else "it does not answer"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """What an error says, without the server's stack trace."""
    text = str(error).strip() or type(error).__name__
    return re.sub(r"\s*\(version [^)]*\)|, Stack trace \(when copying.*", "", text.splitlines()[0])[:500]


# --- tables -------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def migrations() -> tuple[Migration, ...]:
    """The numbered SQL files, in order."""
    folder = resources.files("meterline.schemas") / "clickhouse"
    found = sorted(
        Migration(int(file.name[:4]), file.name.removesuffix(".sql"), file.read_text(encoding="utf-8"))
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    )
    assert [one.number for one in found] == list(range(1, len(found) + 1)), "migrations are numbered without gaps"
    return tuple(found)


_LEDGER = """CREATE TABLE IF NOT EXISTS schema_migrations (
    number UInt32, name String, checksum String, applied_at DateTime('UTC')
) ENGINE = ReplacingMergeTree ORDER BY number"""


def applied(client: Client) -> dict[int, tuple[str, str]]:
    """Number → (name, checksum) of the migrations that the database has."""
    if not client.command("EXISTS TABLE schema_migrations"):
        return {}
    rows = client.query("SELECT number, name, checksum FROM schema_migrations FINAL ORDER BY number").result_rows
    return {number: (name, checksum) for number, name, checksum in rows}


def _check(url: str, have: dict[int, tuple[str, str]]) -> None:
    known = {one.number: one for one in migrations()}
    for number, (name, checksum) in have.items():
        if number not in known:
            raise DatabaseError(
                f"the database at {redacted(url)} has schema {number} ({name}), this Meterline knows up to "
                f"{len(known)}: use the newer Meterline that made it"
            )
        if known[number].checksum != checksum:
            raise DatabaseError(
                f"migration {name} of the database at {redacted(url)} differs from this Meterline's: "
                f"expected checksum {known[number].checksum[:12]}, found {checksum[:12]}; "
                "a released migration is never edited, so one of the two is not a release"
            )


def migrate(url: str) -> list[Migration]:
    """Bring the tables up to this version; what was applied now.

    Raises:
      DatabaseError: the database is newer, or was made by other migrations of the same number.
    """
    client = connect(url)
    have = _guarded(url, lambda: applied(client))
    _check(url, have)
    done = []
    for one in migrations():
        if one.number in have:
            continue
        _guarded(url, lambda: client.command(_LEDGER))
        for statement in filter(None, map(_without_comments, one.sql.split(";\n"))):
            # A migration that was broken off left some of its tables, and no row; it is applied again from its start.
            again = re.sub(r"^CREATE TABLE (?!IF NOT)", "CREATE TABLE IF NOT EXISTS ", statement)
            _guarded(url, partial(client.command, again))
        row = [one.number, one.name, one.checksum, datetime.now(UTC)]
        columns = ["number", "name", "checksum", "applied_at"]
        _guarded(url, partial(client.insert, "schema_migrations", [row], columns))
        done.append(one)
    return done


# The archive of a touched period joins the input: it must reach back over the acceptance horizon of a stream (35 days)
# and the longest period that an event of that age can lie in, with a month to settle it.
MIN_RETENTION_DAYS = 35 + 31 + 31


def min_retention_days(cycle: str) -> int:
    """The same for periods of a cycle."""
    return MIN_RETENTION_DAYS - 31 + longest_days(cycle)


def set_retention(url: str, days: int | None) -> None:
    """Let archived events (and their personal data) go some days after their time; None: keep them.

    Raises:
      DatabaseError: the period is too short for late usage to be rated right.
    """
    if days is not None and days < MIN_RETENTION_DAYS:
        raise DatabaseError(
            f"the archive must be kept for {MIN_RETENTION_DAYS} days or more, got {days}: "
            "late usage is rated together with the archived events of its billing period"
        )
    client = ready(url)
    if days is None:
        if "TTL" in client.command("SHOW CREATE TABLE usage_events"):
            _guarded(url, lambda: client.command("ALTER TABLE usage_events REMOVE TTL"))
        return
    _guarded(url, lambda: client.command("ALTER TABLE usage_events MODIFY SETTING ttl_only_drop_parts = 1"))
    _guarded(url, lambda: client.command(f"ALTER TABLE usage_events MODIFY TTL toDateTime(time) + INTERVAL {days} DAY"))


def retention_days(url: str) -> int | None:
    """How many days archived events are kept after their time; None: without end."""
    found = re.search(r"TTL .*toIntervalDay\((\d+)\)", str(connect(url).command("SHOW CREATE TABLE usage_events")))
    return int(found[1]) if found else None


def _without_comments(statement: str) -> str:
    lines = [line for line in statement.splitlines() if not line.lstrip().startswith("--")]
    return "\n".join(lines).strip().rstrip(";")


def ready(url: str) -> Client:
    """The client of a database whose tables are of this version; an embedded one is brought there.

    Raises:
      DatabaseError: a server's tables are missing or of another version.
    """
    client = connect(url)
    if url.startswith("chdb:"):
        migrate(url)
        return client
    have = _guarded(url, lambda: applied(client))
    _check(url, have)
    if len(have) < len(migrations()):
        state = f"has schema {len(have)}" if have else "has no Meterline tables"
        raise DatabaseError(
            f"the database at {redacted(url)} {state}, this Meterline needs {len(migrations())}: "
            f"run `meterline migrate --clickhouse URL`"
        )
    return client


def _guarded(url: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except (ClickHouseError, OSError) as error:
        if (told := cause(error)) != first_line(error):
            raise DatabaseError(f"no ClickHouse answers at {redacted(url)}: {told}") from None
        raise DatabaseError(f"ClickHouse at {redacted(url)} refused: {told}") from None


# --- rows ---------------------------------------------------------------------------------------


def insert(url: str, table: str, rows: pa.Table) -> None:
    """Store rows; tried again, with growing pauses, when the connection fails.

    Raises:
      DatabaseError: at last. Nothing may depend on an insert being all or nothing: rows are written again.
    """
    if not rows.num_rows:
        return
    client = connect(url)
    for attempt in range(_TRIES):
        for check in tuple(_CHECKS):  # Other threads have theirs.
            check()
        try:
            if url.startswith("chdb:"):
                _insert_file(client, table, rows)
            else:
                client.insert_arrow(table, rows)
            seen.rows_stored += rows.num_rows
            return
        except (OperationalError, OSError) as error:
            if attempt == _TRIES - 1:
                raise DatabaseError(
                    f"could not store rows in {table} at {redacted(url)}: {first_line(error)}"
                ) from None
            _count_retry(table)
            time.sleep(2**attempt * (0.5 + random.random() / 2))
        except ClickHouseError as error:
            raise DatabaseError(f"ClickHouse at {redacted(url)} refused rows of {table}: {first_line(error)}") from None


def _count_retry(table: str) -> None:
    """As the counter `write/TABLE_retries` of the step that inserts; outside of a pipeline it counts nothing."""
    from apache_beam.metrics import Metrics  # Here, as most commands have no need of Beam, and it loads for a second.

    Metrics.counter("write", f"{table}_retries").inc()


def _insert_file(client: Client, table: str, rows: pa.Table) -> None:
    """Hand rows to the embedded ClickHouse in a file, as its client does after copying them twice."""
    with tempfile.TemporaryDirectory(prefix="meterline-") as folder:
        path = os.path.join(folder, "rows.arrow")
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, rows.schema) as writer:
            writer.write_table(rows)
        columns = ", ".join(f"`{name}`" for name in rows.column_names)
        quoted = path.replace("\\", "\\\\").replace("'", "\\'")
        client.command(f"INSERT INTO {table} ({columns}) FROM INFILE '{quoted}' FORMAT ArrowStream")


def command(url: str, sql: str, parameters: dict[str, Any] | None = None) -> None:
    """Run a statement.

    Raises:
      DatabaseError: with ClickHouse's message.
    """
    _guarded(url, lambda: connect(url).command(sql, parameters=parameters))


_CHECKS: list[Callable[[], None]] = []


@contextmanager
def guarded_by(check: Callable[[], None]) -> Iterator[None]:
    """Have every insert of this process call `check` first, which raises when nothing may be written any more."""
    _CHECKS.append(check)
    try:
        yield
    finally:
        _CHECKS.remove(check)


def query(url: str, sql: str, parameters: dict[str, Any] | None = None, *, as_text: bool = True) -> pa.Table:
    """The answer of a SELECT as an Arrow table.

    Args:
      as_text: Whether String columns are read as text; otherwise as bytes.

    Raises:
      DatabaseError: with ClickHouse's message.
    """
    return _guarded(url, lambda: connect(url).query_arrow(sql, parameters=parameters, use_strings=as_text))


@lru_cache(maxsize=4)
def _reader(url: str) -> Client:
    """A client that may only read."""
    return _client(url, SETTINGS | {"readonly": 2})


def read_only(url: str, sql: str, format: str) -> str:
    """The answer of a user's query, in one of ClickHouse's text formats; it cannot change anything.

    Raises:
      DatabaseError: with ClickHouse's message.
    """
    return _read(url, sql, lambda reader: reader.raw_query(sql, fmt=format).decode("utf-8", "replace"))


def read_only_rows(url: str, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The same as columns and rows."""
    result = _read(url, sql, lambda reader: reader.query(sql))
    return list(result.column_names), [tuple(row) for row in result.result_rows]


def _read(url: str, sql: str, ask: Callable[[Client], T]) -> T:
    _refuse_writes(sql)
    connect(url)
    try:
        _refuse_elsewhere(url, sql)
        return _guarded(url, lambda: ask(_reader(url)))
    except DatabaseError:
        _reader.cache_clear()  # A statement that broke off leaves the embedded engine's session in disorder.
        raise


# Table functions that read no file, server or process.
_HARMLESS = {
    "numbers",
    "numbers_mt",
    "zeros",
    "zeros_mt",
    "primes",
    "generateSeries",
    "generate_series",
    "values",
    "null",
}
_HARMLESS |= {
    "format",
    "generateRandom",
    "merge",
    "view",
    "viewIfPermitted",
    "viewExplain",
    "dictionary",
    "SQLStandardValues",
}


def _refuse_elsewhere(url: str, sql: str) -> None:
    """Refuse what reads files, other servers or processes: table functions, `file`, and paths in place of tables.

    ClickHouse's own parser finds them: it says the statement again in its own spelling, without comments, and its tree.
    """

    def ask(question: str) -> set[str]:
        return {
            row[0] for row in _guarded(url, lambda: _reader(url).query(question, parameters={"sql": sql}).result_rows)
        }

    (spelt,) = ask("SELECT formatQuerySingleLine({sql:String})")
    functions = ask("SELECT name FROM system.table_functions") - _HARMLESS | {"file"}
    databases = ask("SELECT name FROM system.databases")
    for line in _guarded(url, lambda: _reader(url).raw_query(f"EXPLAIN AST {spelt}")).decode().splitlines():
        called = re.match(r"\s*Function (\S+)", line)
        table = re.match(r"\s*TableIdentifier (.+)", line)
        own = table and re.fullmatch(r"(?:(\w+)\.)?\w+(?: \(.*\))?", table[1])
        if (called and called[1] in functions) or (table and not (own and (own[1] is None or own[1] in databases))):
            what = called[1] if called else table[1] if table else ""
            raise DatabaseError(f"expected a query of this database alone, got {what!r}, which reads from elsewhere")


_READS = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/|\()*(select|with|show|describe|desc|explain|exists)\b", re.IGNORECASE | re.DOTALL
)
_COMMENT = re.compile(r"--[^\n]*|#[^\n]*|/\*.*?\*/", re.DOTALL)
_FILE = re.compile(r"\binto\s+outfile\b", re.IGNORECASE)


def _refuse_writes(sql: str) -> None:
    """ClickHouse itself refuses to change tables for a reader; it would still write files."""
    if not _READS.match(sql) or _FILE.search(_COMMENT.sub(" ", sql)):
        raise DatabaseError(
            f"expected a SELECT (or SHOW, DESCRIBE, EXPLAIN) that changes nothing, got {sql.strip()[:60]!r}"
        )
