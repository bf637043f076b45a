"""read: files → blocks of records.

Newline-delimited JSON (plain, gzip or zstd), a JSON array (the CloudEvents batch form) and Parquet, told apart by their
first bytes, not by their names. A file that cannot be read gives the records before the damage and one reject.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import IO, Any, NamedTuple, TypeVar

import apache_beam as beam
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zstandard
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.typehints.decorators import no_annotations

from meterline.schemas.event import Reason
from meterline.schemas.records import Reject
from meterline.transforms.blocks import Block, Records
from meterline.transforms.progress import seen

BLOCK_BYTES = 16 << 20
PART_BYTES = 64 << 20
MAX_KEPT_BYTES = 64 << 20
_ROWS = 48_000
_BLANK = b" \t\r\n"
T = TypeVar("T")


class Part(NamedTuple):
    """Bytes [start, end) of a file; `end` of −1 is the file's end, for files that cannot be cut."""

    path: str
    start: int
    end: int


class Read(NamedTuple):
    blocks: beam.PCollection[Block]
    rejects: beam.PCollection[Reject]


class Unreadable(Exception):
    """A file is damaged from a position on; `rest` are the bytes that could still be read."""

    def __init__(self, message: str, position: int, rest: bytes = b"") -> None:
        super().__init__(message)
        self.position = position
        self.rest = rest


@dataclass
class ReadFiles(beam.PTransform):
    """Read the records of files.

    Args:
      paths: Files, in any file system that Beam knows.
      received_time: When the files were received, microseconds since 1970: one instant for the whole run, so that a
        replay decides alike.
    """

    paths: list[str]
    received_time: int

    @no_annotations
    def expand(self, begin: beam.pvalue.PBegin) -> Read:
        read = (
            begin
            | "Files" >> beam.Create(self.paths, reshuffle=False)
            | "Cut" >> beam.ParDo(_CutFn())
            | "Spread" >> beam.Reshuffle()
            | "Read"
            >> beam.ParDo(_ReadFn(), self.received_time).with_output_types(Block).with_outputs("rejects", main="blocks")
        )
        return Read(read["blocks"], read["rejects"])


class _CutFn(beam.DoFn):
    """Cut plain newline-delimited files into parts that workers read side by side."""

    def process(self, path: str) -> Iterator[Part]:
        # A local name may hold characters that `match` would take for a pattern.
        remote = "://" in path
        size = FileSystems.match([path])[0].metadata_list[0].size_in_bytes if remote else os.path.getsize(path)
        head = next(_named(path, _head(path)))
        if size <= PART_BYTES or magic_of(head) or head.lstrip(b"\xef\xbb\xbf" + _BLANK)[:1] in (b"[", b""):
            yield Part(path, 0, -1)
            return
        for start in range(0, size, PART_BYTES):
            yield Part(path, start, min(start + PART_BYTES, size))


class _ReadFn(beam.DoFn):
    def process(self, part: Part, received_time: int) -> Iterator[Any]:
        try:
            for records, positions in _named(part.path, read_part(part)):
                seen.records += len(records)
                seen.bytes_read += int((records.ends - records.starts).sum()) + len(records)
                yield Block(records, positions, part.path, received_time)
        except Unreadable as damage:
            beam.metrics.Metrics.counter("read", "records").inc()
            beam.metrics.Metrics.counter("read", Reason.UNREADABLE).inc()
            yield beam.pvalue.TaggedOutput(
                "rejects",
                Reject("read", Reason.UNREADABLE, str(damage), damage.rest, part.path, damage.position, received_time),
            )


def read_part(part: Part) -> Iterator[tuple[Records, np.ndarray]]:
    """The records of a part of a file, with their positions (int64).

    Raises:
      Unreadable: after the records before the damage.
    """
    with _open(part.path) as file:
        head = file.read(4)
        magic = magic_of(head)
        file.seek(0)
        if magic == "parquet":
            yield from _parquet(file)
        else:
            yield from _json(file, magic, part)


def _named(path: str, reading: Iterator[T]) -> Iterator[T]:
    """What is read of a file; what keeps it from being read says which file it was."""
    try:
        yield from reading
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error}") from None


def _head(path: str) -> Iterator[bytes]:
    with _open(path) as file:
        yield file.read(4096)


def _open(path: str) -> IO[bytes]:
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def magic_of(head: bytes) -> str | None:
    """What the first bytes say about a format: gzip, zstd or parquet."""
    for name, start in (("gzip", b"\x1f\x8b"), ("zstd", b"\x28\xb5\x2f\xfd"), ("parquet", b"PAR1")):
        if head.startswith(start):
            return name
    # A zstd file may begin with a frame to be skipped: pzstd puts one before each of its own.
    return "zstd" if re.match(rb"[\x50-\x5f]\x2a\x4d\x18", head) else None


# --- JSON ---------------------------------------------------------------------------------------


def _chunks(file: IO[bytes], compression: str | None, position: int) -> Iterator[bytes]:
    """The text of a file, `BLOCK_BYTES` or somewhat more at a time, so that blocks are as large whatever it comes from.

    Raises:
      Unreadable: the compressed data is damaged or ends too early; after the text before the damage.
    """
    held: list[bytes] = []
    size, damage = 0, ""
    try:
        for piece in decompressed(file, compression):
            held.append(piece)
            size += len(piece)
            if size >= BLOCK_BYTES:
                yield b"".join(held)
                position += size
                held, size = [], 0
    except DAMAGES as error:
        damage = str(error)
    if size:
        yield b"".join(held)
    if damage:
        position += size
        raise Unreadable(f"the compressed data breaks after {position} bytes of text: {damage}", position)


DAMAGES = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)


def decompressed(file: IO[bytes], compression: str | None) -> Iterator[bytes]:
    """The text of a file, plain, `gzip` or `zstd`, piece by piece.

    Raises:
      DAMAGES: the compressed data is damaged or ends too early.
    """
    if compression == "gzip":
        yield from iter(partial(gzip.GzipFile(fileobj=file).read1, BLOCK_BYTES), b"")
    elif compression == "zstd":
        yield from _zstd(file)
    else:
        yield from iter(partial(file.read, BLOCK_BYTES), b"")


def _zstd(file: IO[bytes]) -> Iterator[bytes]:
    """The frames of a zstd file, one after the other. (`stream_reader` takes a frame that was cut for a whole one.)"""
    decoder = zstandard.ZstdDecompressor().decompressobj()
    # Little at a time: the text can have 32,000 times its size.
    while data := file.read(8 << 10):
        while data:
            if decoder.eof:
                decoder = zstandard.ZstdDecompressor().decompressobj()
            yield decoder.decompress(data)
            data = decoder.unused_data
    if not decoder.eof:
        raise EOFError("the file ends inside a frame")


def _json(file: IO[bytes], compression: str | None, part: Part) -> Iterator[tuple[Records, np.ndarray]]:
    if part.start:
        file.seek(part.start - 1)
    position = max(part.start - 1, 0)
    chunks = _chunks(file, compression, position)
    first = next(chunks, b"")
    if not part.start:
        try:
            while len(first.strip(_BLANK)) < 4 and (more := next(chunks, b"")):
                first += more
        except Unreadable as damage:
            chunks = _broken(damage)
        if first.startswith(b"\xef\xbb\xbf"):
            first, position = first[3:], 3
        if first.lstrip(_BLANK)[:1] == b"[":
            yield from _array(first, chunks)
            return
    yield from _lines(first, chunks, position, part)


def _broken(damage: Unreadable) -> Iterator[bytes]:
    """What follows the text before the damage."""
    raise damage
    yield


def _lines(first: bytes, chunks: Iterator[bytes], position: int, part: Part) -> Iterator[tuple[Records, np.ndarray]]:
    """Newline-delimited records that start in the part; the last may end behind it."""
    rest, chunk = b"", first
    # A part that starts in the middle leaves the line that began before it to the part before.
    skipping = part.start > 0
    try:
        while chunk:
            data = rest + chunk if rest else chunk
            if skipping:
                cut = data.find(b"\n") + 1
                if not cut:
                    position, rest, chunk = position + len(data), b"", next(chunks, b"")
                    continue
                data, position, skipping = data[cut:], position + cut, False
                if 0 <= part.end <= position:
                    return
            end = data.rfind(b"\n") + 1
            if end:
                records, positions = lines_of(data, position)
                if 0 <= part.end <= position + end:
                    inside = int(np.searchsorted(positions, part.end))
                    if inside:
                        yield records.take(slice(inside)), positions[:inside]
                    return
                if len(records):
                    yield records, positions
            position, rest = position + end, data[end:]
            if len(rest) > MAX_KEPT_BYTES:
                raise Unreadable(
                    f"a line has more than {MAX_KEPT_BYTES} bytes, the rest of the file was not read", position, rest
                )
            chunk = next(chunks, b"")
    except Unreadable as damage:
        raise Unreadable(str(damage), position, damage.rest or rest) from None
    if rest.strip(_BLANK) and not skipping and (part.end < 0 or position < part.end):
        yield Records.of([rest]), np.asarray([position])


def lines_of(data: bytes, position: int) -> tuple[Records, np.ndarray]:
    """Lines that have an end and are not blank, with their offsets."""
    records = Records.lines(data)
    # Only lines that begin with a blank are looked at: they are few.
    doubtful = np.flatnonzero(np.frombuffer(data, np.uint8)[records.starts] <= ord(" ")).tolist()
    if blank := [place for place in doubtful if not records[place].strip(_BLANK)]:
        records = records.take(np.delete(np.arange(len(records)), blank))
    return records, position + records.starts


def _array(first: bytes, chunks: Iterator[bytes]) -> Iterator[tuple[Records, np.ndarray]]:
    """The elements of a JSON array; positions count them from 0."""
    data, damage = bytearray(first), ""
    try:
        for chunk in chunks:
            data += chunk
    except Unreadable as error:
        damage = str(error)
    elements, rest, broken = array_elements(bytes(data))
    damage = damage or broken
    for start in range(0, len(elements), _ROWS):
        some = elements[start : start + _ROWS]
        yield Records.of(some), np.arange(start, start + len(some))
    if damage:
        raise Unreadable(damage, len(elements), rest[:MAX_KEPT_BYTES])


def array_elements(data: bytes) -> tuple[list[bytes], bytes, str]:
    """The elements of a JSON array; where it does not close, those before, what follows them, and what is wrong."""
    try:
        return [bytes(element) for element in msgspec.json.decode(data, type=list[msgspec.Raw])], b"", ""
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        # An element that is no JSON costs itself only; `validate` says what is wrong with it.
        elements, rest, closed = _elements(data)
        return elements, rest, "" if closed else f"the JSON array breaks at byte {len(data) - len(rest)}: {error}"


# A string, also one that has no end; the characters that an array's structure is made of.
_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\Z)|[\[\]{},]', re.DOTALL)


def _elements(data: bytes) -> tuple[list[bytes], bytes, bool]:
    """The elements of an array that is no JSON: those before the damage, what follows, and whether it still ended."""
    elements: list[bytes] = []
    start, depth = 0, 0
    for match in _STRUCTURE.finditer(data):
        found = match[0]
        if found in (b"[", b"{"):
            depth += 1
            start = start if depth > 1 else match.end()
        elif found in (b"]", b"}"):
            depth -= 1
        if (found == b"," and depth == 1) or depth == 0:
            element = data[start : match.start()].strip(_BLANK)
            if element or elements or found == b",":  # an empty array has none
                elements.append(element)
            start = match.end()
        if depth == 0:
            closed = found == b"]" and not data[start:].strip(_BLANK)
            return elements, data[start:], closed
    return elements, data[start:], False


# --- Parquet ------------------------------------------------------------------------------------


_CELL_ERRORS = (pa.ArrowException, ValueError, TypeError, OverflowError, LookupError, msgspec.MsgspecError)


def _parquet(file: IO[bytes]) -> Iterator[tuple[Records, np.ndarray]]:
    """Rows as JSON records: columns are CloudEvents attributes; `data` is a struct, a map or JSON text."""
    position = 0
    try:
        table = pq.ParquetFile(file)
        _refuse_floats(table.schema_arrow)
        for batch in table.iter_batches(_ROWS):
            yield _texts(batch) or Records.of(_rows(batch, position)), np.arange(position, position + batch.num_rows)
            position += batch.num_rows
    except (*_CELL_ERRORS, OSError) as error:
        raise Unreadable(f"not a readable Parquet file: {error}", position) from None


def _texts(batch: pa.RecordBatch) -> Records | None:
    """What `_rows` gives, made column by column; none where a column is of a type that is left to it."""
    pieces: list[Any] = []
    try:
        batch.validate(full=True)
        for item, column in zip(batch.schema, _whole_micros(batch).columns):
            if item.name == "data" and not pa.types.is_struct(item.type):
                return None
            name = f",{json_text(item.name)}:"
            if column.null_count:  # Null is absent.
                pieces.append(pc.binary_join_element_wise(name, _json_column(column), "").fill_null(""))
            else:
                pieces += [name, *_json_pieces(column)]
    except (*_CELL_ERRORS, _Unsaid):
        return None
    if not batch.num_rows or not any(isinstance(piece, pa.Array) for piece in pieces):
        return None
    if isinstance(pieces[0], str):
        pieces[0] = pieces[0][1:]  # without the first comma
    else:
        pieces = [pc.utf8_slice_codeunits(pc.binary_join_element_wise(*_merged(pieces), ""), 1)]
    texts = pc.binary_join_element_wise(*_merged(["{", *pieces, "}"]), "")
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[: len(texts) + 1].astype(np.int64)
    return Records(texts.buffers()[2].to_pybytes(), offsets[:-1], offsets[1:])


class _Unsaid(Exception):
    """A type that is not turned into JSON column by column."""


def _has_escaped(column: pa.Array) -> bool:
    """Whether strings hold a character that JSON escapes."""
    _, bounds, data = column.buffers()
    bounds = np.frombuffer(bounds or bytes(8), np.int64 if pa.types.is_large_string(column.type) else np.int32)
    first, last = (int(bounds[place]) for place in (column.offset, column.offset + len(column)))
    codes = np.frombuffer(data or b"", np.uint8)[first:last]
    return bool(((codes < 0x20) | (codes == ord('"')) | (codes == ord("\\"))).any())


def json_text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _merged(pieces: list[Any]) -> list[Any]:
    """The same with neighbouring texts made one: to join few pieces is faster."""
    merged: list[Any] = []
    for piece in pieces:
        if merged and isinstance(piece, str) and isinstance(merged[-1], str):
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def _json_pieces(column: pa.Array, nested: bool = False) -> list[Any]:
    """What the JSON text of each value is joined from, texts and columns; of a column without nulls."""
    kind = column.type
    if pa.types.is_string(kind) and not _has_escaped(column):
        return ['"', column, '"']
    if not pa.types.is_struct(kind):
        return [_json_column(column, nested)]
    pieces: list[Any] = []
    for field, inner in zip(kind, column.flatten()):
        said = _json_pieces(inner, True) if not inner.null_count else [_json_column(inner, True).fill_null("null")]
        pieces += [f"{',' if pieces else '{'}{json_text(field.name)}:", *said]
    return [*(pieces or ["{"]), "}"]


def _json_column(column: pa.Array, nested: bool = False) -> pa.Array:
    """The JSON text of each value; null stays null."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _json_column(column.dictionary, nested).take(column.indices)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        if _has_escaped(column):
            return pa.array([None if text is None else json_text(text) for text in column.to_pylist()], pa.string())
        return pc.binary_join_element_wise('"', column.cast(pa.string()), '"', "")
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return column.cast(pa.string())
    if pa.types.is_decimal(kind):
        return pc.binary_join_element_wise('"', column.cast(pa.string()), '"', "")
    if pa.types.is_timestamp(kind) and not nested:
        years = pc.min_max(pc.year(column)).as_py()
        if column.null_count < len(column) and not 1000 <= years["min"] <= years["max"] <= 9999:
            raise _Unsaid
        # As «2026-10-01 12:30:00.000000», all of one width: only the space has to become a T.
        texts = column.cast(pa.timestamp("us")).fill_null(0).cast(pa.string())
        letters = np.frombuffer(texts.buffers()[2], np.uint8).copy()
        letters[10 : 26 * len(texts) : 26] = ord("T")
        texts = pa.Array.from_buffers(pa.string(), len(texts), [None, texts.buffers()[1], pa.py_buffer(letters)])
        return pc.if_else(column.is_valid(), pc.binary_join_element_wise('"', texts, 'Z"', ""), None)
    if pa.types.is_struct(kind):
        texts = pc.binary_join_element_wise(*_merged(_json_pieces(column)), "")
        return pc.if_else(column.is_valid(), texts, None)
    raise _Unsaid


def _rows(batch: pa.RecordBatch, position: int) -> list[bytes]:
    """The rows of a batch; one that JSON cannot say becomes a text that says why, and is rejected as no JSON."""
    try:
        return [_record(row) for row in _whole_micros(batch).to_pylist()]
    except _CELL_ERRORS as error:
        if batch.num_rows > 1:
            return [record for row in range(batch.num_rows) for record in _rows(batch.slice(row, 1), position + row)]
        return [f"row {position} of a Parquet file cannot be read as JSON: {type(error).__name__}: {error}".encode()]


def _refuse_floats(schema: pa.Schema) -> None:
    def walk(name: str, kind: pa.DataType) -> Iterator[str]:
        if pa.types.is_floating(kind):
            yield f"{name} ({kind})"
        for number in range(kind.num_fields):
            yield from walk(f"{name}.{kind.field(number).name}", kind.field(number).type)

    found = [column for item in schema for column in walk(item.name, item.type)]
    if found:
        raise ValueError(
            f"column {', '.join(found)} holds floating-point numbers, which are not exact; "
            "store it as integer, decimal or string"
        )


def _whole_micros(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Timestamps in microseconds, cut off towards the past; without a zone they are UTC."""
    for place, item in enumerate(batch.schema):
        if pa.types.is_timestamp(item.type):
            whole = (
                pc.floor_temporal(batch.column(place), 1, "microsecond")
                if item.type.unit == "ns"
                else batch.column(place)
            )
            batch = batch.set_column(place, item.name, whole.cast(pa.timestamp("us", item.type.tz or "UTC")))
    return batch


def _record(row: dict[str, Any]) -> bytes:
    data = row.get("data")
    if isinstance(data, (str, bytes)):
        msgspec.json.decode(data)  # One JSON value and nothing behind it, which would become attributes of the event.
        row["data"] = msgspec.Raw(data.encode() if isinstance(data, str) else data)
    elif isinstance(data, list):
        row["data"] = dict(data)
    for name, value in row.items():
        if isinstance(value, datetime):
            row[name] = value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return msgspec.json.encode({name: value for name, value in row.items() if value is not None})
