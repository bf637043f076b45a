"""Files become records, each exactly once; a damaged file gives what comes before the damage, and one reject."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from apache_beam.testing.test_pipeline import TestPipeline as InProcess
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from meterline.transforms import read
from meterline.transforms.read import Part, ReadFiles, Unreadable, read_part


def records_of(path: Path, start: int = 0, end: int = -1) -> list[tuple[int, bytes]]:
    """Positions and records; of a damaged file those before the damage."""
    found = []
    try:
        for records, positions in read_part(Part(str(path), start, end)):
            assert len(records) == len(positions)
            found += list(zip(positions, records))
    except Unreadable as damage:
        found.append((damage.position, f"! {damage}".encode()))
    return found


def texts_of(path: Path) -> list[bytes]:
    return [record.strip() for _, record in records_of(path)]


def damage_of(path: Path) -> Unreadable:
    with pytest.raises(Unreadable) as caught:
        list(read_part(Part(str(path), 0, -1)))
    return caught.value


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "records"
        path.write_bytes(content)
        return path

    return write


File = Callable[[bytes], Path]

THREE = [b'{"a":1}', b'{"b":"\xc3\xbc"}', b'{"c":[3]}']
LINES = b"".join(record + b"\n" for record in THREE)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(LINES, id="lines"),
        pytest.param(LINES[:-1], id="no final newline"),
        pytest.param(LINES.replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(b"\n\r\n" + LINES.replace(b"\n", b"\n\n \t\n") + b"\n", id="blank lines"),
        pytest.param(b"\xef\xbb\xbf" + LINES, id="byte order mark"),
        pytest.param(gzip.compress(LINES), id="gzip"),
        pytest.param(
            gzip.compress(b"", mtime=0) + gzip.compress(LINES[:5]) + gzip.compress(LINES[5:]), id="gzip in members"
        ),
        pytest.param(zstandard.compress(LINES), id="zstd"),
        pytest.param(
            zstandard.compress(LINES[:9]) + zstandard.compress(b"") + zstandard.compress(LINES[9:]), id="zstd in frames"
        ),
        pytest.param(b"[" + b",".join(THREE) + b"]", id="array"),
        pytest.param(b" \n[\n" + b" ,\r\n ".join(THREE) + b"\n]\n", id="pretty array"),
        pytest.param(b"\xef\xbb\xbf[" + b",".join(THREE) + b"]", id="array with a byte order mark"),
        pytest.param(gzip.compress(b"[" + b",".join(THREE) + b"]"), id="array in gzip"),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 20])
def test_each_record_once(file: File, content: bytes, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "BLOCK_BYTES", block_bytes)
    assert texts_of(file(content)) == THREE


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b" \r\n\n", b"\xef\xbb\xbf", gzip.compress(b"", mtime=0), zstandard.compress(b""), b"[]", b" [ ] \n"],
)
def test_nothing_is_read_from_an_empty_file(file: File, content: bytes) -> None:
    assert records_of(file(content)) == []


def test_positions_are_byte_offsets(file: File) -> None:
    found = records_of(file(b"\n" + LINES + b"\r\n" + b"x"))
    assert [position for position, _ in found] == [1, 9, 20, 32]
    content = b"\n" + LINES + b"\r\n" + b"x"
    assert all(content[position:].startswith(record) for position, record in found)


def test_positions_in_an_array_count_its_elements(file: File) -> None:
    assert [position for position, _ in records_of(file(b"[1, 2, 3]"))] == [0, 1, 2]


def test_what_is_no_json_is_a_record_that_validate_rejects(file: File) -> None:
    assert texts_of(file(b"hello\n\xff\x00\n{\n")) == [b"hello", b"\xff\x00", b"{"]


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_a_truncated_file_gives_what_comes_before(file: File, compress: Callable[[bytes], bytes]) -> None:
    lines = b"".join(b'{"number":%d,"noise":"%d"}\n' % (n, n * 7919**3) for n in range(50_000))
    whole = compress(lines)
    path = file(whole[: len(whole) // 2])
    found = records_of(path)
    assert found[-1][1].startswith(b"! the compressed data breaks after")
    assert 1_000 < len(found) < 50_000
    assert [record for _, record in found[:-1]] == lines.splitlines()[: len(found) - 1]
    # The rejected rest is the beginning of the line that the damage broke.
    rest = damage_of(path).rest
    assert lines.splitlines()[len(found) - 1].startswith(rest)


def test_a_damaged_checksum_is_told_but_costs_no_record(file: File) -> None:
    found = records_of(file(gzip.compress(LINES)[:-8] + bytes(8)))
    assert [record for _, record in found[:-1]] == THREE
    assert found[-1][1].startswith(b"! ")


def test_a_line_of_50_megabytes_is_one_record(file: File) -> None:
    line = b'{"x":"' + b"x" * 50_000_000 + b'"}'
    found = records_of(file(THREE[0] + b"\n" + line + b"\n" + THREE[1]))
    assert [(position, len(record)) for position, record in found] == [(0, 7), (8, len(line)), (9 + len(line), 10)]


def test_a_line_without_end_is_refused(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_KEPT_BYTES", 1_000)
    monkeypatch.setattr(read, "BLOCK_BYTES", 300)
    path = file(THREE[0] + b"\n" + b"x" * 5_000 + b"\n" + THREE[1])
    found = records_of(path)
    assert found[0] == (0, THREE[0])
    assert b"a line has more than 1000 bytes" in found[-1][1]
    assert damage_of(path).position == 8


lines_of_a_file = st.lists(
    st.one_of(
        st.sampled_from([b"", b"\r", b" ", b"{}", b"ab", b"a"]),
        st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")),
    ),
    max_size=8,
)


@settings(max_examples=300)
@given(
    lines=lines_of_a_file,
    final=st.booleans(),
    cuts=st.lists(st.integers(0, 80), max_size=4),
    block_bytes=st.sampled_from([1, 3, 10, 1000]),
)
def test_parts_cut_at_any_byte_give_each_record_once(
    lines: list[bytes], final: bool, cuts: list[int], block_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = b"x\n" + b"\n".join(lines) + (b"\n" if final else b"")  # a first line that begins no other format
    path = tmp_path_factory.getbasetemp() / "parts"
    path.write_bytes(content)
    bounds = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "BLOCK_BYTES", block_bytes)
        parts = [one for start, end in pairwise(bounds) for one in records_of(path, start, end)]
        whole = [(at, line) for at, line in _offsets(content) if line.strip(b" \t\r\n")]
        assert parts == whole
        assert records_of(path) == whole


def _offsets(content: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    for line in content.split(b"\n"):
        found.append((at, line))
        at += len(line) + 1
    return found


# --- arrays ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "elements"),
    [
        pytest.param(b'[{"a":"\\ud800"}, 2]', [b'{"a":"\\ud800"}', b"2"], id="a surrogate alone"),
        pytest.param(b'[{"a":1}, {bad}, 3]', [b'{"a":1}', b"{bad}", b"3"], id="an element that is no JSON"),
        pytest.param(b'["],{\\"", {"]":"["}, 01]', [b'"],{\\""', b'{"]":"["}', b"01"], id="brackets in strings"),
        pytest.param(b"[1,,2]", [b"1", b"", b"2"], id="an empty element"),
        pytest.param(b"[" + b"[" * 5000 + b"]" * 5000 + b",1]", [b"[" * 5000 + b"]" * 5000, b"1"], id="a deep element"),
        pytest.param(b'[{"a":"\xff"}, 1]', [b'{"a":"\xff"}', b"1"], id="no UTF-8"),
    ],
)
def test_a_bad_element_costs_itself_only(file: File, content: bytes, elements: list[bytes]) -> None:
    assert texts_of(file(content)) == elements


@pytest.mark.parametrize(
    ("content", "elements", "rest"),
    [
        pytest.param(b'[{"a":1}, {"b":2}, {"c"', [b'{"a":1}', b'{"b":2}'], b'{"c"', id="cut inside an element"),
        pytest.param(b'[{"a":1}, {"b":2}', [b'{"a":1}'], b'{"b":2}', id="cut behind an element"),
        pytest.param(b'[{"a":1}, "x', [b'{"a":1}'], b'"x', id="cut inside a string"),
        pytest.param(b"[1, 2] 3", [b"1", b"2"], b"3", id="something follows"),
        pytest.param(b"[1, 2}, 3]", [b"1", b"2"], b", 3]", id="closed by the wrong bracket"),
        pytest.param(b"[", [], b"", id="only opened"),
    ],
)
def test_a_damaged_array_gives_what_comes_before(
    file: File, content: bytes, elements: list[bytes], rest: bytes
) -> None:
    path = file(content)
    assert texts_of(path)[:-1] == elements
    damage = damage_of(path)
    assert damage.rest.strip() == rest
    assert damage.position == len(elements)
    assert "array breaks" in str(damage)


def test_a_truncated_array_in_gzip(file: File) -> None:
    content = gzip.compress(b"[" + b",".join(b'{"n":%d}' % (n * 7919**3) for n in range(5_000)) + b"]")
    found = records_of(file(content[: len(content) // 2]))
    assert found[-1][1].startswith(b"! the compressed data breaks")
    assert all(json.loads(record) == {"n": n * 7919**3} for n, (_, record) in enumerate(found[:-1]))
    assert len(found) > 10


# --- Parquet --------------------------------------------------------------------------------------------

MOMENT = datetime(2026, 10, 1, 12, 30, 0, 123456, UTC)
ROW = {"specversion": "1.0", "id": "1", "source": "/s", "type": "call", "time": MOMENT, "subject": "acme"}


def parquet(path: Path, data: list[Any], kind: pa.DataType | None = None, **columns: Any) -> Path:
    rows = {name: [value] * len(data) for name, value in {**ROW, **columns}.items()}
    table = pa.table({**rows, "data": pa.array(data, kind)})
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        pytest.param([{"n": 5, "region": "eu"}], None, id="a struct"),
        pytest.param([{"n": Decimal("5"), "region": "eu"}], None, id="decimals"),
        pytest.param(['{"n": 5, "region": "eu"}'], None, id="JSON text"),
        pytest.param([b'{"n": 5, "region": "eu"}'], None, id="JSON text as bytes"),
        pytest.param([[("n", "5"), ("region", "eu")]], pa.map_(pa.string(), pa.string()), id="a map"),
    ],
)
def test_rows_of_parquet_are_events(tmp_path: Path, data: list[Any], kind: pa.DataType | None) -> None:
    ((position, record),) = records_of(parquet(tmp_path / "a.parquet", data, kind))
    event = json.loads(record, parse_int=str)
    assert position == 0
    assert event["time"] == "2026-10-01T12:30:00.123456Z"
    assert event["data"] == {"n": "5", "region": "eu"}
    assert {name: event[name] for name in ("specversion", "id", "source", "type", "subject")} == {
        name: ROW[name] for name in ("specversion", "id", "source", "type", "subject")
    }


def test_decimals_of_parquet_stay_exact(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [{"n": Decimal("99999999999999999999.999999999999")}])
    ((_, record),) = records_of(path)
    assert b"99999999999999999999.999999999999" in record


def test_nulls_of_parquet_are_absent(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [{"n": 5, "region": None}], tenantid=None)
    ((_, record),) = records_of(path)
    assert "tenantid" not in json.loads(record)


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.float16()])
def test_floats_in_parquet_are_refused(tmp_path: Path, kind: pa.DataType) -> None:
    path = parquet(tmp_path / "a.parquet", [{"n": 0.5}], pa.struct([("n", kind)]))
    assert "data.n" in str(damage_of(path))
    assert "store it as integer, decimal or string" in str(damage_of(path))


def test_a_damaged_parquet_file_is_one_reject(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [{"n": 5}])
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a readable Parquet file" in str(damage_of(path))


# --- the stage ------------------------------------------------------------------------------------------


def test_large_files_are_cut_and_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "PART_BYTES", 100)
    lines = [b'{"n":%d}' % n for n in range(200)]
    (tmp_path / "a").write_bytes(b"\n".join(lines))
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"\n".join(lines) * 3)[:-40])
    (tmp_path / "c").write_bytes(b"[" + b",".join(lines) + b"]")
    (tmp_path / "d").write_bytes(b"")
    with InProcess() as pipeline:
        out = pipeline | ReadFiles([str(tmp_path / name) for name in ("a", "c", "d")], 5)
        found = out.blocks | beam.FlatMap(lambda block: [(block.origin[-1], record) for record in block.records])
        assert_that(found, equal_to([(name, line) for name in "ac" for line in lines]), label="records")
        assert_that(out.rejects, equal_to([]), label="rejects")
    with InProcess() as pipeline:
        out = pipeline | ReadFiles([str(tmp_path / "b.gz")], 5)
        told = out.rejects | beam.Map(lambda reject: (reject.stage, reject.reason, reject.received_time))
        assert_that(told, equal_to([("read", "unreadable", 5)]))


cells = {
    pa.string(): st.text(),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint8(): st.integers(0, 255),
    pa.bool_(): st.booleans(),
    pa.decimal128(38, 12): st.decimals(-(10**20), 10**20, places=12),
    pa.decimal128(9, 0): st.integers(0, 10**9 - 1).map(Decimal),
    pa.timestamp("us", "UTC"): st.datetimes(timezones=st.just(UTC)).filter(lambda moment: moment.year >= 1000),
    pa.timestamp("ms"): st.datetimes(timezones=st.just(UTC))
    .filter(lambda moment: moment.year >= 1000)
    .map(lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=None)),
    pa.struct([("n", pa.int64()), ('a"b', pa.string())]): st.fixed_dictionaries(
        {"n": st.none() | st.integers(0, 9), 'a"b': st.none() | st.text()}
    ),
}


@given(st.data())
def test_columns_of_parquet_become_the_text_that_their_rows_become(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 4))

    def column(kind: pa.DataType) -> pa.Array:
        return pa.array(data.draw(st.lists(st.none() | cells[kind], min_size=rows, max_size=rows)), kind)

    kinds = data.draw(st.lists(st.sampled_from(list(cells)), max_size=4))
    inner = [kind for kind in data.draw(st.lists(st.sampled_from(list(cells)))) if not pa.types.is_timestamp(kind)]
    usage = pa.StructArray.from_arrays([column(kind) for kind in inner], [f"p{n}" for n in range(len(inner))])
    columns = {f"c{n}": column(kind) for n, kind in enumerate(kinds)} | ({"data": usage} if inner else {})
    batch = pa.RecordBatch.from_pydict(columns | {"last": column(pa.string())})
    texts = read._texts(batch)
    assert texts is not None
    assert list(texts) == read._rows(batch, 0)


def test_a_row_of_parquet_that_json_cannot_say_costs_itself_only(tmp_path: Path) -> None:
    ids = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(np.array([0, 1, 2, 3], np.int32)), pa.py_buffer(b"a\xffc")]
    )
    columns = {"id": ids, "data": ['{"x": 1}', '{"x": 2}', '{"x": 3}, "subject": "other"']}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    ((records, positions),) = read_part(Part(str(tmp_path / "rows.parquet"), 0, -1))
    assert positions.tolist() == [0, 1, 2]
    assert records[0] == b'{"id":"a","data":{"x": 1}}'
    assert records[1].startswith(b"row 1 of a Parquet file cannot be read as JSON: UnicodeDecodeError")
    assert records[2].startswith(b"row 2 of a Parquet file cannot be read as JSON: DecodeError")


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1, 2]], pa.list_(pa.int64())),
        pa.array([1], pa.duration("s")),
        pa.array([2**52], pa.timestamp("ms", "UTC")),
        pa.array([1], pa.timestamp("s", "Nowhere/Bad")),
    ],
    ids=str,
)
def test_an_odd_type_in_parquet_is_a_reject_and_no_crash(column: pa.Array, tmp_path: Path) -> None:
    pq.write_table(pa.table({"data": column}), tmp_path / "odd.parquet")
    try:
        found = list(read_part(Part(str(tmp_path / "odd.parquet"), 0, -1)))
    except Unreadable:
        return
    assert [len(records) for records, _ in found] == [1]
