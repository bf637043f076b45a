"""`meterline clickhouse serve` is ClickHouse to its clients, keeps what it acknowledged, and knows who may do what."""

from __future__ import annotations

import base64
import gzip
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlencode

import clickhouse_connect
import lz4.frame
import numpy as np
import pyarrow as pa
import pytest
import zstandard
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError, StreamFailureError

from meterline.runners.clickhouse_server import formats, messages, statements
from meterline.runners.demo import quickstart, usage_lines

COMMAND = [sys.executable, "-m", "meterline.runners.cli"]
NODE_CLIENT = "@clickhouse/client@1.23.1"
NOW = "2023-11-17T00:00:00Z"


@dataclass
class Served:
    process: subprocess.Popen[bytes]
    port: int
    folder: Path
    said: Path

    @property
    def url(self) -> str:
        return f"http://boss:secret@127.0.0.1:{self.port}/default"

    def client(self, user: str = "boss", password: str = "secret", **options: object) -> Client:
        return clickhouse_connect.get_client(
            host="127.0.0.1", port=self.port, username=user, password=password, **options
        )

    def ask(
        self,
        sql: bytes | str = b"",
        *,
        method: str = "POST",
        user: str | None = "boss:secret",
        headers: dict[str, str] | None = None,
        **url: object,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        given = {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()} if user else {}
        body = sql.encode() if isinstance(sql, str) else sql
        connection.request(method, f"/?{urlencode(url)}", body=body, headers={**given, **(headers or {})})
        response = connection.getresponse()
        try:
            return Answer(response.status, dict(response.headers.items()), response.read())
        finally:
            connection.close()


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str | None:
        return self.headers.get("X-ClickHouse-Exception-Code")


@contextmanager
def serve(folder: Path, *words: object, passwords: bool = True) -> Iterator[Served]:
    """The command in a process of its own, killed at the end if it still runs."""
    work = folder.parent / f"serve-{uuid.uuid4().hex}"
    work.mkdir()
    (work / "boss").write_text("secret\n")
    (work / "analyst").write_text("look\n")
    ready, said = work / "ready.json", work / "said"
    given = ["--port", 0, "--ready-file", ready, "--clickhouse", f"chdb://{folder}", *words]
    if passwords:
        given += ["--user", "boss", "--password-file", work / "boss", "--read-only-user", f"analyst={work / 'analyst'}"]
    ready.write_text("of one that was killed")
    with said.open("wb") as file:
        process = subprocess.Popen([*COMMAND, "clickhouse", "serve", *map(str, given)], stdout=file, stderr=file)
    try:
        while not ready.exists() or "killed" in ready.read_text():
            assert process.poll() is None, said.read_text()
            time.sleep(0.05)
        about = json.loads(ready.read_text())
        assert about["pid"] == process.pid
        yield Served(process, about["port"], folder, said)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("served") / "db") as served:
        yield served


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def table(client: Client) -> str:
    name = f"t_{uuid.uuid4().hex}"
    client.command(f"CREATE TABLE {name} (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
    return name


def rows(count: int, start: int = 0) -> pa.Table:
    numbers = range(start, start + count)
    return pa.table({"a": pa.array(numbers, pa.uint64()), "s": [f"row {n}" for n in numbers]})


# --- ClickHouse's client for Python ---------------------------------------------------------------------


def test_the_client_stores_rows_in_all_its_ways(client: Client, table: str) -> None:
    assert client.insert(table, [[1, "x"], [2, "y\t'"]], column_names=["a", "s"]).written_rows == 2
    client.insert_arrow(table, rows(3, start=10))
    client.insert_df(table, rows(2, start=20).to_pandas())
    client.raw_insert(table, ["a", "s"], b"30,raw\n", fmt="CSV")
    client.raw_insert(table, ["a", "s"], gzip.compress(b"31\tzipped\n"), fmt="TSV", compression="gzip")
    client.command(f"INSERT INTO {table} VALUES (40, 'v;'), (41, 'INSERT')")
    client.command(f"INSERT INTO {table} (a) SELECT number + 50 FROM numbers(2)")
    found = client.query(f"SELECT a, s FROM {table} ORDER BY a").result_rows
    assert [a for a, _ in found] == [1, 2, 10, 11, 12, 20, 21, 30, 31, 40, 41, 50, 51]
    assert dict(found)[2] == "y\t'"


def test_the_client_reads_in_all_its_ways(client: Client, table: str) -> None:
    client.insert_arrow(table, rows(3))
    sql = f"SELECT a, s FROM {table} ORDER BY a"
    assert client.query(sql).result_rows == [(0, "row 0"), (1, "row 1"), (2, "row 2")]
    assert client.query(sql).summary["read_rows"] == "3"
    assert client.query_df(sql)["a"].tolist() == [0, 1, 2]
    assert client.query_arrow(sql, use_strings=True).to_pydict() == rows(3).to_pydict()
    assert client.query_np(f"SELECT a FROM {table} ORDER BY a").tolist() == [[0], [1], [2]]
    assert client.query(f"{sql} LIMIT 0").column_names == ("a", "s")
    assert client.command(f"SELECT count() FROM {table}") == 3
    assert client.raw_query(sql, fmt="CSVWithNames") == b'"a","s"\n0,"row 0"\n1,"row 1"\n2,"row 2"\n'
    assert json.loads(client.raw_query(sql, fmt="JSON"))["rows"] == 3
    assert client.query("SELECT 1 WHERE 0").result_rows == []


@pytest.mark.parametrize("session", [True, False])
def test_the_client_streams_what_is_too_much_at_once(server: Served, session: bool) -> None:
    with server.client(autogenerate_session_id=session) as client:
        sql = "SELECT number, toString(number) AS s FROM numbers(700000)"
        with client.query_row_block_stream(sql) as stream:
            assert sum(len(block) for block in stream) == 700_000
        with client.query_arrow_stream(sql) as stream:
            found = pa.concat_tables(pa.table(one) if not isinstance(one, pa.Table) else one for one in stream)
        assert found["number"].to_pylist() == list(range(700_000))
        with pytest.raises(StreamFailureError, match="non-zero"):
            read_all(client, "SELECT throwIf(number = 3000000) FROM numbers(4000000)")
        assert client.command("SELECT 1") == 1


def read_all(client: Client, sql: str) -> None:
    with client.query_row_block_stream(sql) as stream:
        for _ in stream:
            pass


def test_parameters_keep_their_values(client: Client) -> None:
    text = "it's\ta \\ 'quote'\n\0 Ω"
    sql = "SELECT {s:String}, {n:Array(Int64)}, {d:Decimal(38, 18)}, {t:Nullable(String)}"
    amount = Decimal("12345678901234567890.123456789012345678")
    (found,) = client.query(sql, {"s": text, "n": [1, -2], "d": amount, "t": None}).result_rows
    assert found == (text, [1, -2], amount, None)


def test_settings_hold_for_their_request_alone(server: Served) -> None:
    for session in (True, False):
        with server.client(autogenerate_session_id=session) as client:
            ask = "SELECT getSetting('max_block_size')"
            before = client.command(ask)
            assert client.query(ask, settings={"max_block_size": 4321}).result_rows == [(4321,)]
            assert client.command(ask) == before
            with pytest.raises(DatabaseError, match="UNKNOWN_SETTING"):
                client.command("SELECT 1 SETTINGS no_such_setting = 1")
    assert server.ask("SELECT 1", no_such_setting=1).code == "115"
    assert server.ask("SELECT 1", max_block_size="x' , max_threads = '1").status >= 400


def test_a_session_keeps_its_settings_and_tables_to_itself(server: Served) -> None:
    def ask(sql: str, session: str = "one", **url: object) -> Answer:
        return server.ask(sql, session_id=session, **url)

    assert ask("CREATE TEMPORARY TABLE mine (a UInt8)").status == 200
    assert ask("INSERT INTO mine VALUES (1), (2)").status == 200
    ask("SET max_block_size = 99")
    assert ask("SELECT sum(a), getSetting('max_block_size') FROM mine", max_threads=1).body == b"3\t99\n"
    assert ask("SELECT sum(a) FROM mine", max_block_size=7).body == b"3\n"
    assert ask("SELECT getSetting('max_block_size')").body == b"99\n"
    assert ask("SELECT * FROM mine", session="other").code == "60"
    assert server.ask("SELECT * FROM mine").code == "60"
    assert server.ask("SELECT 1", session_id="one", user="analyst:look").status == 200  # one of its own
    assert server.ask("SELECT * FROM mine", session_id="one", user="analyst:look").code in ("60", "497")
    assert server.ask("SELECT 1", session_id="new", session_check=1).code == "372"
    assert ask("SELECT 1", session="short", session_timeout=1).status == 200
    time.sleep(1.5)
    assert ask("SELECT 1", session="short", session_check=1).code == "372"
    assert ask("SELECT 1", session_timeout="x").code == "374"
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(ask, "SELECT sleep(1.5)")
        time.sleep(0.5)  # It has come first.
        codes = set()
        while not slow.done():
            codes.add(ask("SELECT 1").code)
        assert codes >= {"373"}
        assert slow.result().status == 200


def test_requests_do_not_wait_for_each_other(server: Served) -> None:
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(server.ask, "SELECT sleep(3)")
        assert server.ask("SELECT 1").body == b"1\n"
        assert not slow.done()
        assert slow.result().status == 200


def test_answers_to_many_at_once_are_each_ones_own(server: Served) -> None:
    def ask(client: int) -> None:
        for round in range(25):
            start, count = client * 1_000_000 + round, 1_000 * (1 + (client + round) % 40)
            sql = f"SELECT number FROM numbers({start}, {count})"
            url = {"wait_end_of_query": round % 2, "session_id": f"own {client}"} if round % 3 == 0 else {}
            answer = server.ask(sql, default_format="RowBinary", max_block_size=1 + round * 1000, **url)
            assert np.frombuffer(answer.body, "<u8").tolist() == list(range(start, start + count))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))


def test_clients_that_write_at_once_lose_nothing(server: Served, table: str) -> None:
    def write(writer: int) -> None:
        with server.client() as client:
            for batch in range(10):
                client.insert_arrow(table, rows(100, start=writer * 10_000 + batch * 100))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    assert server.ask(f"SELECT count(), uniqExact(a) FROM {table}").body == b"6000\t6000\n"


# --- another client -------------------------------------------------------------------------------------


def test_the_client_for_nodejs_works(server: Served, tmp_path: Path) -> None:
    if not shutil.which("npm"):
        if os.environ.get("CI"):
            pytest.fail("CI needs Node.js and npm for this test")
        pytest.skip("there is no npm here to install ClickHouse's client for Node.js")
    (tmp_path / "package.json").write_text('{"private": true}')
    words = ["npm", "install", "--no-audit", "--no-fund", "--silent", NODE_CLIENT]
    installed = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    if installed.returncode and not os.environ.get("CI"):
        pytest.skip(f"npm could not install {NODE_CLIENT}: {installed.stderr[-300:]}")
    assert installed.returncode == 0, installed.stderr
    shutil.copy(Path(__file__).with_name("clickhouse_client.mjs"), tmp_path)
    run = subprocess.run(
        ["node", "clickhouse_client.mjs", server.url, "look"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found.pop("refused")[0] == "497"
    assert found == {
        "ping": True,
        "written": "1000",
        "query_id": "of-node",
        "rows": [{"id": "1", "name": "n1"}, {"id": "2", "name": "n2"}, {"id": "3", "name": "n3"}],
        "count": [{"n": 1000}] if isinstance(found["count"][0]["n"], int) else [{"n": "1000"}],
        "streamed": 500_000,
        "unknown": ["60", "UNKNOWN_TABLE"],
        "broken_off": True,
        "temporary": [{"a": 7}],
        "read": [{"id": 999}] if isinstance(found["read"][0]["id"], int) else [{"id": "999"}],
    }


# --- the interface itself -------------------------------------------------------------------------------


def test_a_question_may_come_by_get_and_by_post(server: Served) -> None:
    assert server.ask(method="GET", query="SELECT 1").body == b"1\n"
    assert server.ask("SELECT 2").body == b"2\n"
    assert server.ask("1 + 2", query="SELECT").body == b"3\n"
    assert server.ask("SELECT currentDatabase()", database="system").body == b"system\n"
    assert server.ask("SELECT currentDatabase()", headers={"X-ClickHouse-Database": "system"}).body == b"system\n"
    assert server.ask("SELECT {a:String}", param_a="x\\ty").body == b"x\\ty\n"
    written = server.ask(method="GET", query="CREATE TABLE by_get (a UInt8) ENGINE = Memory")
    assert (written.status, written.code) == (500, "164")
    assert server.ask(method="GET", user=None).body == b"Ok.\n"


@pytest.mark.parametrize("path", ["/ping", "/replicas_status"])
def test_health_is_told_to_everyone(server: Served, path: str) -> None:
    for method in ("GET", "HEAD"):
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request(method, path)
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"Ok.\n" if method == "GET" else b"")
        connection.close()


def test_an_answer_says_what_it_is(server: Served) -> None:
    answer = server.ask("SELECT 1 AS a FORMAT JSONEachRow", query_id="mine", session_timezone="Europe/Berlin")
    assert answer.body == b'{"a":1}\n'
    headers = answer.headers
    assert headers["X-ClickHouse-Query-Id"] == "mine"
    assert headers["X-ClickHouse-Format"] == "JSONEachRow"
    assert headers["X-ClickHouse-Timezone"] == "Europe/Berlin"
    assert headers["X-ClickHouse-Server-Display-Name"]
    assert json.loads(headers["X-ClickHouse-Summary"])["result_rows"] == "1"
    assert headers["Content-Type"] == "application/x-ndjson; charset=UTF-8"
    assert server.ask("SELECT 1", default_format="CSV").headers["Content-Type"].startswith("text/csv")
    assert server.ask("SELECT 1 AS a", headers={"X-ClickHouse-Format": "JSONCompactEachRow"}).body == b"[1]\n"
    assert "X-ClickHouse-Format" not in server.ask("SET max_threads = 1").headers


@pytest.mark.parametrize(
    ("sql", "code", "status", "name"),
    [
        ("SELEC 1", 62, 400, "SYNTAX_ERROR"),
        ("", 62, 400, "SYNTAX_ERROR"),
        ("SELECT 1; SELECT 2", 62, 400, "SYNTAX_ERROR"),
        ("DROP TABLE system.one; nonsense (", 62, 400, "SYNTAX_ERROR"),
        ("SELECT * FROM nothing_here", 60, 404, "UNKNOWN_TABLE"),
        ("INSERT INTO nothing_here VALUES (1)", 60, 404, "UNKNOWN_TABLE"),
        ("SELECT nothing_here", 47, 404, "UNKNOWN_IDENTIFIER"),
        ("SELECT throwIf(1)", 395, 500, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
        ("SELECT 1 FORMAT Nothing", 73, 404, "UNKNOWN_FORMAT"),
        ("SELECT {a:UInt8}", 456, 500, "UNKNOWN_QUERY_PARAMETER"),
        ("SELECT 1 INTO OUTFILE '/tmp/never'", 358, 500, "INTO_OUTFILE_NOT_ALLOWED"),
        ("INSERT INTO nothing_here FROM INFILE '/etc/passwd' FORMAT CSV", 78, 404, "UNKNOWN_TYPE_OF_QUERY"),
        ("INSERT INTO nothing_here SELECT * FROM input('a Int8') FORMAT CSV 1", 48, 501, "NOT_IMPLEMENTED"),
    ],
)
def test_an_error_has_clickhouses_code_and_words(server: Served, sql: str, code: int, status: int, name: str) -> None:
    answer = server.ask(sql)
    assert (answer.code, answer.status) == (str(code), status), answer.body
    text = answer.body.decode()
    assert text.startswith(f"Code: {code}. DB::Exception: ")
    assert f"({name})" in text
    assert "(version " in text
    assert "Traceback" not in text
    assert f"Code: {code}" in server.said.read_text()


CODECS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "gzip": (gzip.compress, gzip.decompress),
    "zstd": (
        zstandard.ZstdCompressor().compress,
        lambda data: zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True).read(),
    ),
    "lz4": (lz4.frame.compress, lz4.frame.decompress),
    "br": (
        lambda data: pa.compress(data, codec="brotli", asbytes=True),
        lambda data: pa.CompressedInputStream(pa.BufferReader(data), "brotli").read(),
    ),
}


@pytest.mark.parametrize("encoding", CODECS)
def test_compressed_both_ways(server: Served, table: str, encoding: str) -> None:
    compress, decompress = CODECS[encoding]
    data = b"".join(b"%d\trow\n" % a for a in range(200_000))
    sent = {"Content-Encoding": encoding}
    assert server.ask(compress(data), query=f"INSERT INTO {table} FORMAT TSV", headers=sent).status == 200
    for waits in (0, 1):
        answer = server.ask(
            f"SELECT a, s FROM {table} ORDER BY a FORMAT TSV",
            headers={"Accept-Encoding": encoding},
            wait_end_of_query=waits,
        )
        assert answer.headers["Content-Encoding"] == encoding
        assert decompress(answer.body) == data
    plain = server.ask("SELECT 1", headers={"Accept-Encoding": encoding}, enable_http_compression=0)
    assert plain.body == b"1\n"
    for broken in (compress(data)[:-9], b"nonsense" * 100):
        answer = server.ask(broken, query=f"INSERT INTO {table} FORMAT TSV", headers=sent)
        assert (answer.status, answer.code) == (500, "1000")
    assert server.ask(f"SELECT count() FROM {table}").body == b"200000\n"


def test_deflate_and_the_unknown(server: Served, table: str) -> None:
    into = f"INSERT INTO {table} FORMAT TSV"
    assert server.ask(zlib.compress(b"1\tx\n"), query=into, headers={"Content-Encoding": "deflate"}).status == 200
    assert server.ask(b"1\tx\n", query=into, headers={"Content-Encoding": "rot13"}).code == "1000"
    assert server.ask(b"1\tx\n", query=into, decompress=1).code == "48"
    assert server.ask(f"SELECT count() FROM {table}").body == b"1\n"


@pytest.mark.parametrize(
    "format", ["Native", "ArrowStream", "TSV", "JSONEachRow", "RowBinary", "Parquet", "CSVWithNames"]
)
def test_pieces_are_the_whole(server: Served, format: str) -> None:
    """What is streamed has the same rows as what is answered at once."""
    for sql in ("SELECT number, toString(number % 7) AS s FROM numbers(300000)", "SELECT 1 AS a WHERE 0"):
        streamed = server.ask(f"{sql} FORMAT {format}").body
        whole = server.ask(f"{sql} FORMAT {format}", wait_end_of_query=1).body
        if format == "ArrowStream":
            assert pa.ipc.open_stream(streamed).read_all().equals(pa.ipc.open_stream(whole).read_all())
        elif format == "Native":
            assert hashed(server, streamed) == hashed(server, whole)
        elif format != "Parquet":  # It holds its offsets.
            assert streamed == whole


def hashed(server: Served, native: bytes) -> bytes:
    name = f"h_{uuid.uuid4().hex}"
    server.ask(f"CREATE TABLE {name} (number UInt64 DEFAULT 0, s String, a UInt8) ENGINE = Memory")
    assert (
        server.ask(native, query=f"INSERT INTO {name} FORMAT Native", input_format_skip_unknown_fields=1).status == 200
    )
    return server.ask(f"SELECT count(), sum(cityHash64(*)) FROM {name}").body


def test_an_answer_that_breaks_off_is_not_whole_to_anyone(server: Served) -> None:
    with pytest.raises(http.client.IncompleteRead) as broken:
        server.ask("SELECT throwIf(number = 3000000) FROM numbers(4000000) FORMAT TSV")
    assert b"__exception__" in broken.value.partial
    assert b"Code: 395" in broken.value.partial


def test_totals_and_extremes_are_in_the_answer(server: Served) -> None:
    sql = "SELECT number % 2 AS k, count() FROM numbers(10) GROUP BY k"
    assert server.ask(f"{sql} WITH TOTALS ORDER BY k").body == b"0\t5\n1\t5\n\n0\t10\n"
    assert server.ask(f"{sql} ORDER BY k", extremes=1).body == b"0\t5\n1\t5\n\n0\t5\n1\t5\n"


def test_tables_may_come_with_the_question(server: Served, client: Client) -> None:
    from clickhouse_connect.driver.external import ExternalData

    data = ExternalData(file_name="names.csv", data=b"1,one\r\n2,two\r\n", fmt="CSV", structure="id UInt8, name String")
    found = client.query("SELECT name FROM names ORDER BY id DESC", external_data=data).result_rows
    assert found == [("two",), ("one",)]
    assert server.ask("SELECT * FROM names").code == "60"


# --- who may do what ------------------------------------------------------------------------------------


def test_nobody_comes_in_without_the_password(server: Served) -> None:
    assert (server.ask("SELECT 1", user=None).status, server.ask("SELECT 1", user=None).code) == (401, "194")
    for user in ("boss:", "boss:wrong", "nobody:secret", "default:", "analyst:secret", "boss:secret2"):
        answer = server.ask("SELECT 1", user=user)
        assert (answer.status, answer.code) == (403, "516")
    named = {"X-ClickHouse-User": "boss", "X-ClickHouse-Key": "secret"}
    assert server.ask("SELECT 1", user=None, headers=named).body == b"1\n"
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", "/?user=boss&password=secret", body=b"SELECT 1")
    assert connection.getresponse().read() == b"1\n"
    connection.close()
    assert server.ask("SELECT 1", user=None, headers={"Authorization": "Bearer x"}).code == "516"


FORBIDDEN = [
    "INSERT INTO {table} VALUES (1, 'x')",
    "INSERT INTO {table} SELECT 1, 'x'",
    "INSERT INTO FUNCTION file('{file}', 'CSV', 'a UInt8') VALUES (1)",
    "CREATE TABLE other (a UInt8) ENGINE = Memory",
    "CREATE TEMPORARY TABLE other (a UInt8)",
    "CREATE DATABASE other",
    "DROP TABLE {table}",
    "TRUNCATE TABLE {table}",
    "ALTER TABLE {table} DELETE WHERE 1",
    "OPTIMIZE TABLE {table}",
    "SELECT 1 INTO OUTFILE '{file}'",
    "SELECT * FROM file('/etc/hostname', 'LineAsString')",
    "SELECT file('/etc/hostname')",
    "SELECT `file`('/etc/hostname')",
    "SELECT \"f\\x69le\"('/etc/hostname')",
    "SELECT * APPLY(file) FROM (SELECT '/etc/hostname')",
    "SELECT arrayMap(file, ['/etc/hostname'])",
    "SELECT 1 SETTINGS additional_result_filter = 'f\\x69le(\\'/etc/hostname\\') != \\'\\''",
    "SELECT * FROM '/etc/hostname'",
    "SELECT * FROM `/etc/hostname`",
    "DESCRIBE file('/etc/hostname')",
    "EXPLAIN SELECT file('/etc/hostname')",
    "SELECT * FROM url('http://127.0.0.1:1/', 'CSV', 'a UInt8')",
    "SELECT * FROM remote('127.0.0.1', default.{table})",
    "SELECT * FROM executable('ls', 'TSV', 'a String')",
    "SELECT * FROM Python(users)",
    "SELECT * FROM filesystem('/etc')",
    "SELECT * FROM sqlite('{file}', 't')",
    "SELECT * FROM arrowstream('1')",
    "SELECT * FROM bigquery('p', 'd', 't')",
    "SELECT * FROM eval('SELECT 1')",
    "SELECT * FROM eval('SELECT file(\\'/etc/hostname\\')') SETTINGS allow_experimental_eval_table_function = 1",
    "SELECT 1 SETTINGS select = 'f\\x69le(\\'/etc/hostname\\')'",
    "SELECT 1 settings max_threads = 1, \"se\\x6cect\" = 'x'",
    "SELECT * FROM (SELECT 1 SETTINGS filter = 'file(\\'/etc/hostname\\') != \\'\\'')",
    "SELECT 1 SETTINGS `order` = 'x'",
    "SELECT 1 SETTINGS sort = 'x'",
    "SELECT 1 SETTINGS additional_table_filters = {{'system.one': 'file(\\'/etc/hostname\\') != \\'\\''}}",
    "SELECT 1 SETTINGS profile = 'default'",
    "SELECT number AS a FROM numbers(1) FORMAT Template SETTINGS format_template_row = '/etc/hostname'",
    "SELECT formatRow('Template', 1 AS a) SETTINGS format_template_resultset = '/etc/hostname'",
    "SELECT number AS a FROM numbers(1) FORMAT Protobuf SETTINGS output_format_schema = '{file}'",
    "SELECT 1 AS a FORMAT Protobuf SETTINGS format_schema_source = 'query', format_schema = 'SELECT 1'",
    "SELECT 1 AS a FORMAT AvroConfluent SETTINGS format_avro_schema_registry_url = 'http://127.0.0.1:1'",
    "SET select = 'x'",
    "SELECT 1 SETTINGS readonly = 0",
    "SET readonly = 0",
    "SET ROLE ALL",
    "SET ROLE meterline_writer",
    "KILL QUERY WHERE 1",
    "SYSTEM STOP MERGES",
    "SELECT 1; DROP TABLE {table}",
    "SELECT 1 PARALLEL WITH DROP TABLE {table}",
]


@pytest.mark.parametrize("statement", FORBIDDEN)
@pytest.mark.parametrize("session", [{}, {"session_id": "reader"}])
def test_a_read_only_user_changes_nothing_and_reads_no_file(
    server: Served, table: str, tmp_path: Path, statement: str, session: dict[str, str]
) -> None:
    server.ask(f"INSERT INTO {table} VALUES (7, 'kept')")
    sql = statement.format(table=table, file=tmp_path / "out")
    answer = server.ask(sql, user="analyst:look", **session)
    assert answer.status >= 400, answer.body
    assert answer.code in ("497", "164", "62", "358"), answer.body
    assert Path("/etc/hostname").read_text().strip().encode() not in answer.body
    assert not (tmp_path / "out").exists()
    assert server.ask(f"SELECT * FROM {table}", user="analyst:look", **session).body == b"7\tkept\n"


def test_a_read_only_user_cannot_hide_a_file_in_a_setting(server: Served) -> None:
    filter = "file('/etc/hostname') != ''"
    for name, value in {
        "additional_result_filter": filter,
        "additional_table_filters": "{}",
        "select": "file('/etc/hostname')",
        "filter": filter,
        "order": filter,
        "sort": filter,
        "offset": "1",
        "allow_experimental_eval_table_function": "1",
        "format_template_row": "/etc/hostname",
        "format_template_resultset": "/etc/hostname",
        "output_format_schema": "/tmp/never",
        "format_schema_source": "query",
        "format_avro_schema_registry_url": "http://127.0.0.1:1",
        "profile": "default",
        "dialect": "prql",
        "log_comment": "x",  # By which it is killed.
    }.items():
        for session in ({}, {"session_id": "reader"}):
            answer = server.ask("SELECT file('/etc/hostname')", user="analyst:look", **{name: value}, **session)
            assert (answer.code, f"{name!r}" in answer.body.decode()) == ("497", True), answer.body
    assert server.ask("SELECT getSetting('readonly')", user="analyst:look", readonly=0).body == b"2\n"
    ok = server.ask("SELECT 1 SETTINGS max_threads = 1", user="analyst:look", max_block_size=10)
    assert ok.body == b"1\n"


def test_a_read_only_user_reads_as_the_client_does(server: Served, table: str) -> None:
    server.ask(f"INSERT INTO {table} VALUES (7, 'kept')")
    with server.client("analyst", "look") as client:
        assert client.query(f"SELECT a FROM {table}").result_rows == [(7,)]
        assert client.query_df(f"SELECT a FROM {table}")["a"].tolist() == [7]
        with pytest.raises(ClickHouseError, match="ACCESS_DENIED"):
            client.insert(table, [[1, "x"]], column_names=["a", "s"])


def test_a_read_only_user_sends_no_tables(server: Served) -> None:
    def form(*, name: str, rows: bytes, **headers: str) -> Answer:
        head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'.encode()
        body = head + rows + b"\r\n--b--\r\n"
        packed = zstandard.ZstdCompressor().compress(body) if headers else body
        given = {"Content-Type": "multipart/form-data; boundary=b", **headers}
        return server.ask(packed, query="SELECT 1", user="analyst:look", headers=given, t_structure="a String")

    assert form(name="t", rows=b"x").code == "497"
    before = memory(server)
    answer = form(name="t", rows=bytes(200 << 20), **{"Content-Encoding": "zstd"})
    assert (answer.status, answer.code) == (413, "229")
    assert memory(server) - before < 100 << 20
    assert server.ask("SELECT '" + "x" * (2 << 20) + "'", user="analyst:look").code == "229"


def memory(server: Served) -> int:
    """The most that it ever had."""
    (line,) = [
        one for one in Path(f"/proc/{server.process.pid}/status").read_text().splitlines() if one.startswith("VmHWM")
    ]
    return int(line.split()[1]) << 10


@pytest.mark.parametrize("setting", ["format", "output_format", "input_format"])
@pytest.mark.parametrize("sql", ["SELECT 1", "SELECT 1 settings max_threads = 1, {} = 'CSV'", "SET {} = 'CSV'"])
def test_a_format_is_no_setting(server: Served, setting: str, sql: str) -> None:
    url = {} if "{}" in sql else {setting: "CSVWithNames"}
    answer = server.ask(sql.format(setting), **url)
    assert (answer.status, answer.code) == (400, "36")
    assert b"write FORMAT" in answer.body


@pytest.mark.parametrize(
    "url",
    [{name: b"\xff"} for name in ("query_id", "database", "param_a", "password", "query", "max_threads")],
    ids=str,
)
def test_other_bytes_than_utf8_are_a_sentence(server: Served, url: dict[str, bytes]) -> None:
    answer = server.ask("SELECT 1", **url)
    assert (answer.status, b"UTF-8" in answer.body) == (400, True)
    assert "Traceback" not in server.said.read_text()


def test_bytes_in_a_statement(server: Served, table: str) -> None:
    assert server.ask(b"SELECT hex('\xff')").body == b"FF\n"
    assert server.ask(b"INSERT INTO " + table.encode() + b" VALUES (1, '\xff')").status == 200
    for sql, user in ((b"SELECT '\xff'", "analyst:look"), (b"INSERT INTO `\xff` VALUES (1)", "boss:secret")):
        assert server.ask(sql, user=user).code == "36"


def test_the_log_has_nothing_that_a_terminal_obeys(server: Served) -> None:
    server.ask("SELECT nothing\x1b[2J", user="evil\x1b[2J:x")
    server.ask("SELECT nothing\x1b[2J")
    assert "\x1b" not in server.said.read_text()
    assert "evil\\x1b[2J" in server.said.read_text()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("POST /ping HTTP/1.1\r\nContent-Length: {size}", b"200"),
        ("POST /ping HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: {size}", b"200"),
        ("POST /nope HTTP/1.1\r\nContent-Length: {size}", b"404"),
        ("GET / HTTP/1.1\r\nContent-Length: {size}", b"200"),
        ("POST /?user=nobody HTTP/1.1\r\nContent-Length: {size}", b"403"),
        ("POST /?user=boss&password=secret HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: {size}", b"500"),
        ("POST /?user=boss&password=secret HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5", b"500"),
        ("POST /?user=boss&password=secret HTTP/1.1\r\nTransfer-Encoding: xchunked", b"500"),
    ],
)
def test_a_body_is_not_taken_for_a_request(server: Served, head: str, status: bytes) -> None:
    within = b"GET /ping HTTP/1.1\r\n\r\n"
    answers = raw(server.port, head.format(size=len(within)).encode() + b"\r\n\r\n" + within)
    assert answers.startswith(b"HTTP/1.1 " + status)
    assert answers.count(b"HTTP/1.1 ") == 1


def raw(port: int, sent: bytes) -> bytes:
    """All that comes until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(sent)
        found = b""
        with suppress(ConnectionResetError):
            while data := connection.recv(65536):
                found += data
        return found


def test_readers_leave_a_place_for_the_writer(server: Served) -> None:
    head = b"POST / HTTP/1.1\r\nX-ClickHouse-User: analyst\r\nX-ClickHouse-Key: look\r\nContent-Length: 9\r\n\r\n"
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(110)]
    try:
        for one in slow:
            one.sendall(head)
        until(lambda: server.ask("SELECT 1", user="analyst:look").code == "202")
        assert server.ask("SELECT 1").status == 200
    finally:
        for one in slow:
            one.close()
    until(lambda: server.ask("SELECT 1", user="analyst:look").status == 200)


def test_sessions_are_not_without_end(server: Served) -> None:
    def ask(session: int, **url: object) -> Answer:
        return server.ask("SELECT 1", user="analyst:look", session_id=session, **url)

    answers = [ask(session, session_timeout=5) for session in range(101)]
    assert {one.status for one in answers[:90]} == {200}
    assert answers[-1].code == "202"
    assert server.ask("SELECT 1", session_id="of another").status == 200
    for session in range(101):
        ask(session, close_session=1)
    assert ask(101).status == 200


def test_without_a_password_no_web_page_is_answered(tmp_path: Path) -> None:
    with serve(tmp_path / "db", passwords=False) as server:
        for headers, status in (
            ({}, 200),
            ({"Host": f"localhost:{server.port}"}, 200),
            ({"Host": "[::1]:8123"}, 200),
            ({"Origin": "http://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Host": "evil.example"}, 403),
            ({"Host": "192.168.0.7:8123"}, 403),
        ):
            assert server.ask("SELECT 1", user=None, headers=headers).status == status, headers


# --- clients that go, servers that end ------------------------------------------------------------------


def running(server: Served, mark: str) -> int:
    found = server.ask(
        f"SELECT count() FROM system.processes WHERE query LIKE '%{mark}%' AND query NOT LIKE '%system.%'"
    )
    return int(found.body)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("format", ["Null", "TSV"])
def test_a_query_ends_with_its_client(server: Served, format: str) -> None:
    mark = uuid.uuid4().hex
    what = "count()" if format == "Null" else "number"
    sql = f"SELECT {what} FROM numbers(10000000000000) WHERE NOT ignore(rand(), '{mark}') FORMAT {format}"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"POST / HTTP/1.1\r\nX-ClickHouse-User: boss\r\nX-ClickHouse-Key: secret\r\nContent-Length: {len(sql)}"
        connection.sendall(f"{head}\r\n\r\n{sql}".encode())
        until(lambda: running(server, mark) == 1)
    until(lambda: running(server, mark) == 0)


@pytest.mark.parametrize("framing", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_an_insert_that_breaks_off_stores_nothing(server: Served, table: str, framing: str) -> None:
    url = urlencode({"query": f"INSERT INTO {table} FORMAT TSV"})
    data = b"1\twhole\n2\thalf"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"POST /?{url} HTTP/1.1\r\nX-ClickHouse-User: boss\r\nX-ClickHouse-Key: secret\r\n{framing}\r\n\r\n"
        chunk = b"%x\r\n%b\r\n" % (len(data), data) if "chunked" in framing else data
        connection.sendall(head.encode() + chunk)
    until(lambda: "ended in the middle" in server.said.read_text())
    assert server.ask(f"SELECT count() FROM {table}").body == b"0\n"


def test_what_was_acknowledged_is_there_after_kill_9(tmp_path: Path) -> None:
    """Again and again: the server dies while four clients write, and starts on the same folder."""
    acknowledged: set[int] = set()
    sent = iter(range(10**9))
    for round in range(3):
        with serve(tmp_path / "db") as server:
            if round == 0:
                server.ask("CREATE TABLE kept (batch UInt64, n UInt64) ENGINE = MergeTree ORDER BY batch")

            def write(server: Served = server) -> None:
                with suppress(ClickHouseError, OSError), server.client() as client:
                    while True:
                        batch = next(sent)
                        client.insert("kept", [[batch, n] for n in range(50)], column_names=["batch", "n"])
                        acknowledged.add(batch)

            before = len(acknowledged)
            writers = [threading.Thread(target=write) for _ in range(4)]
            for one in writers:
                one.start()
            until(lambda before=before: len(acknowledged) > before + 20)  # type: ignore[misc]
            server.process.kill()
            for one in writers:
                one.join()
    with serve(tmp_path / "db") as server:
        found = server.ask("SELECT batch FROM kept GROUP BY batch HAVING uniqExact(n) = 50 FORMAT TSV").body
        assert len(acknowledged) > 60
        assert acknowledged - set(map(int, found.split())) == set()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_it_finish_and_store(tmp_path: Path, sent: signal.Signals) -> None:
    with serve(tmp_path / "db") as server, ThreadPoolExecutor() as pool:
        server.ask("CREATE TABLE kept (a UInt64) ENGINE = MergeTree ORDER BY a")
        slow = pool.submit(server.ask, "INSERT INTO kept SELECT number + sleepEachRow(0.2) FROM numbers(10)")
        until(lambda: running(server, "sleepEachRow") == 1)
        server.process.send_signal(sent)
        assert slow.result().status == 200
        assert server.process.wait(60) == 0
        assert "all is stored" in server.said.read_text()
        assert not list(tmp_path.glob("*/ready.json"))
    with serve(tmp_path / "db") as server:
        assert server.ask("SELECT count() FROM kept").body == b"10\n"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count() FROM numbers(10000000000000) WHERE NOT ignore(rand(), 'slow')",
        "INSERT INTO kept SELECT number + sleepEachRow(0.1) FROM numbers(6000) SETTINGS max_block_size = 10 -- slow",
    ],
)
def test_what_takes_longer_than_the_grace_is_broken_off(tmp_path: Path, sql: str) -> None:
    with serve(tmp_path / "db", "--grace-seconds", 1) as server, ThreadPoolExecutor() as pool:
        server.ask("CREATE TABLE kept (a UInt64) ENGINE = MergeTree ORDER BY a")
        slow = pool.submit(server.ask, sql)
        until(lambda: running(server, "slow") == 1)
        server.process.terminate()
        assert slow.result().code == "394"
        assert server.process.wait(60) == 1
        assert "1 statement was broken off" in server.said.read_text()


def test_a_statement_that_cannot_be_ended_is_no_crash(tmp_path: Path) -> None:
    with serve(tmp_path / "db", "--grace-seconds", 0) as server, ThreadPoolExecutor() as pool:
        server.ask("CREATE TABLE kept (a UInt64) ENGINE = MergeTree ORDER BY a")
        # With a log_comment of its own it is not found.
        sql = "INSERT INTO kept SELECT number + sleepEachRow(3) FROM numbers(20) SETTINGS max_block_size = 1, "
        slow = pool.submit(server.ask, sql + "log_comment = 'slow'")
        until(lambda: running(server, "slow") == 1)
        server.process.terminate()
        assert server.process.wait(60) == 1
        assert "1 statement was broken off" in server.said.read_text()
        with suppress(OSError, http.client.HTTPException):
            slow.result()


# --- Meterline on it ------------------------------------------------------------------------------------


def meterline(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=300, check=False)


def test_meterline_rates_on_it_from_two_processes(tmp_path: Path) -> None:
    """One at a time holds the lease; a server killed in the middle costs a rerun, and nothing else."""
    files = [tmp_path / "monday.ndjson", tmp_path / "tuesday.ndjson"]
    lines = usage_lines()[:4_000]
    for file, part in zip(files, (lines[:2_000], lines[2_000:])):
        file.write_bytes(b"".join(line + b"\n" for line in part))
    catalog = quickstart() / "catalog"
    sums = "SELECT count(), sum(toDecimal256(amount, 18)), sum(event_count) FROM line_items FINAL FORMAT TSV"

    def rate(url: str, *inputs: Path) -> subprocess.CompletedProcess[str]:
        words = [part for file in inputs for part in ("--input", file)]
        return meterline("rate", *words, "--catalog", catalog, "--clickhouse", url, "--now", NOW)

    with serve(tmp_path / "expected") as server:
        done = rate(server.url, *files)
        assert done.returncode == 0, done.stderr
        expected = server.ask(sums).body
    with serve(tmp_path / "db") as server:
        with ThreadPoolExecutor() as pool:
            first = [pool.submit(rate, server.url, file) for file in files]
            until(lambda: int(server.ask("SELECT count() FROM usage_events").body) > 0)
            server.process.kill()
            codes = {one.result().returncode for one in first}
        assert codes <= {0, 3}
    with serve(tmp_path / "db") as server:
        server.ask("TRUNCATE TABLE leases")  # It would end a minute after the killed one's last renewal.
        with ThreadPoolExecutor() as pool:
            both = [one.result() for one in [pool.submit(rate, server.url, file) for file in files]]
        for file, one in zip(files, both):
            if one.returncode:
                assert one.returncode == 3
                assert "holds" in one.stderr
                again = rate(server.url, file)
                assert again.returncode == 0, again.stderr
        assert server.ask(sums).body == expected
        audit = meterline("audit", "--catalog", catalog, "--clickhouse", server.url)
        assert audit.returncode == 0, audit.stdout


# --- the command ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--listen", "0.0.0.0"], 2, "without a password"),
        (["--listen", "::"], 2, "without a password"),
        (["--listen", "not an address"], 2, "expected an address"),
        (["--clickhouse", "http://127.0.0.1:1/default"], 2, "expected chdb://FOLDER"),
        (["--password-file", "/nowhere/at-all"], 2, "cannot be read"),
        (["--read-only-user", "analyst"], 2, "NAME=FILE"),
        (["--clickhouse", "chdb:///proc/nothing"], 3, "no ClickHouse"),
        (["--clickhouse", "chdb://:memory:"], 2, "nothing would be kept"),
        (["--ready-file", "/nowhere/ready"], 2, "cannot be written"),
        (["--listen", "127.0.0.1", "--ready-file", "/tmp"], 2, "cannot be written"),
        (["--listen", "192.0.2.1", "--password-file", "{password}"], 2, "no address of this machine"),
    ],
)
def test_options_that_cannot_be_used_are_a_sentence(words: list[str], code: int, says: str, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret")
    given = [word.format(password=tmp_path / "password") for word in words]
    done = meterline("clickhouse", "serve", "--port", 0, "--clickhouse", f"chdb://{tmp_path / 'db'}", *given)
    said = " ".join(done.stderr.replace("│", " ").split())
    assert (done.returncode, says in said) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_or_a_folder_that_is_taken(server: Served, tmp_path: Path) -> None:
    done = meterline("clickhouse", "serve", "--port", server.port, "--clickhouse", f"chdb://{tmp_path / 'db'}")
    assert done.returncode == 2
    assert "cannot listen" in " ".join(done.stderr.replace("│", " ").split())
    done = meterline("clickhouse", "serve", "--port", 0, "--clickhouse", f"chdb://{server.folder}")
    assert done.returncode == 3
    assert "another process has this folder open" in done.stderr


# --- parts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "words", "format", "data"),
    [
        ("INSERT INTO t ", "FORMAT CSV\n", "CSV", "1,2"),
        ("INSERT INTO t ", "FORMAT CSV \r\n", "CSV", "\n1"),
        ("insert into db.t (a, `b c`) ", "values", "Values", " (1, 'x')"),
        ("INSERT INTO format ", "FORMAT TSV\n", "TSV", "1"),
        ("INSERT INTO values ", "VALUES", "Values", " (1)"),
        ("INSERT INTO db.format(format) ", "FORMAT TSV\n", "TSV", "1"),
        ("/* VALUES */ INSERT -- FORMAT X\nINTO t ", "FORMAT TSV\n", "TSV", "1"),
        ("INSERT INTO t SETTINGS a='it''s FORMAT b' ", "VALUES", "Values", " (1)"),
        ("INSERT INTO FUNCTION remote('h', format) ", "VALUES", "Values", " (1)"),
        ("INSERT INTO {t:Identifier} ", "FORMAT Native\n", "Native", "xyz"),
    ],
)
def test_where_an_inserts_data_begins(head: str, words: str, format: str, data: str) -> None:
    text = head + words + data
    found = statements.insert_of(text.encode(), whole=True)
    assert found is not None
    assert (found.head.decode(), found.format, text.encode()[found.data_at :].decode()) == (head, format, data)
    assert statements.is_insert(text.encode())
    for end in range(len(text)):  # However little of it has come.
        early = statements.insert_of(text[:end].encode(), whole=False)
        assert early is None or early == found


@pytest.mark.parametrize(
    "text",
    [
        "INSERT INTO t SELECT 1 FORMAT CSV",
        "INSERT INTO t (a) (SELECT 1)",
        "INSERT INTO t WITH 1 AS x SELECT x",
        "INSERT INTO t FROM INFILE 'x' FORMAT CSV",
    ],
)
def test_an_insert_without_data(text: str) -> None:
    assert statements.insert_of(text.encode(), whole=True) is None


@pytest.mark.parametrize(
    ("sql", "format"),
    [
        ("SELECT 1 FORMAT JSON", "JSON"),
        ("SELECT 1 FORMAT JSON SETTINGS a = 1", "JSON"),
        ("SELECT 'FORMAT CSV' -- FORMAT TSV", None),
        ("SELECT (SELECT 1 FORMAT x)", None),
        ("SELECT 1 format\n`CSV` ;", "`CSV`"),
    ],
)
def test_the_format_a_query_asks_for(sql: str, format: str | None) -> None:
    assert statements.format_of(sql.encode()) == format


@pytest.mark.parametrize("part", ["/*", "/*a*", "'\\", "'a''", "$a$ ", "$", '"\\', "‘â", "--", "(", "$1$x$"])
def test_a_long_statement_is_read_in_time(part: str) -> None:
    many = b"".join(b"$%d$ " % n for n in range(20_000)) if part == "$a$ " else part.encode() * 50_000
    began = time.process_time()
    sum(1 for _ in statements.tokens(many))
    assert statements.insert_of(b"INSERT INTO t SELECT 1 " + many, whole=True) is None
    assert time.process_time() - began < 10  # Seconds; where each opening was looked up to the end, minutes.


@pytest.mark.parametrize(
    ("sql", "normal", "names"),
    [
        ("SELECT 1 SETTINGS a = 1, `b c` = f(1, x), c = 'd, e = 1'", True, ["a", "b c", "c"]),
        ("(SELECT 1 SETTINGS m = {'a':'b'}, final) UNION ALL (SELECT 2, x)", True, ["m", "final"]),
        ("SELECT * FROM system.settings ORDER BY a, b", True, []),
        ("SELECT * FROM settings LIMIT 1", True, []),
        ("select 1 settings a=1, format = 'CSV'", False, ["a", "format"]),
        ("set a=1, b=2", False, ["a", "b"]),
        ("SELECT a AS settings, format FROM t", False, []),
    ],
)
def test_the_settings_of_a_statement(sql: str, normal: bool, names: list[str]) -> None:
    assert list(statements.settings(sql.encode(), normal=normal)) == names


def test_a_quote_may_be_of_any_kind() -> None:
    sql = "SELECT ‘it's’, $$it's$$, $x$'$$x$ INTO OUTFILE 'x'"
    assert statements.words(sql.encode()) == ["select", "into", "outfile"]


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        ("gzip, deflate, br", "br"),
        ("lz4,br,gzip", "lz4"),
        ("zstd;q=0, gzip;q=0.5", "gzip"),
        ("identity", None),
        ("", None),
    ],
)
def test_the_encoding_is_one_that_was_asked_for(header: str, encoding: str | None) -> None:
    assert messages.accepted(header) == encoding


def test_formats_with_something_around_the_rows_are_not_streamed() -> None:
    assert formats.is_streamed("TSV", ["select"], in_session=False)
    assert not formats.is_streamed("TSV", ["select"], in_session=True)
    for format in ("JSON", "TSVWithNames", "Parquet", "Arrow", "Pretty", "Values", "XML"):
        assert not formats.is_streamed(format, ["select"], in_session=False)
