"""Small helpers on Arrow and numpy columns that several stages share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import xxhash

from meterline.schemas.arrow import SYMBOL
from meterline.schemas.filters import Filter
from meterline.transforms.blocks import compiled


def code_column(column: pa.Array) -> tuple[list[str], np.ndarray]:
    """A string column as its different values and the position of each row's (nulls: 0)."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    codes = np.asarray(column.indices.fill_null(0) if column.null_count else column.indices)
    return column.dictionary.to_pylist(), codes.astype(np.int64)


def symbols(codes: np.ndarray, values: Sequence[str]) -> pa.DictionaryArray:
    """The reverse of `code_column`; values may repeat."""
    different = {value: place for place, value in enumerate(dict.fromkeys(values))}
    if len(different) < len(values):
        codes = np.asarray([different[value] for value in values], np.int32)[codes]
    column = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(list(different), pa.string()))
    assert column.type == SYMBOL, column.type
    return column


def referenced(values: pa.Array) -> pa.DictionaryArray:
    """A column whose rows refer to values, one each."""
    return pa.DictionaryArray.from_arrays(pa.array(np.arange(len(values), dtype=np.int32)), values)


def pieces(data: bytes, starts: np.ndarray, ends: np.ndarray) -> pa.DictionaryArray:
    """A column whose rows refer to pieces of a text, which stand in it in order; no byte is copied.

    What lies between two pieces is a value too, which no row refers to.
    """
    bounds = np.empty(2 * len(starts), np.int32)
    bounds[::2], bounds[1::2] = starts, ends
    buffers = [None, pa.py_buffer(bounds), pa.py_buffer(data)]
    values = pa.Array.from_buffers(pa.binary(), max(2 * len(starts) - 1, 0), buffers)
    return pa.DictionaryArray.from_arrays(pa.array(np.arange(0, 2 * len(starts), 2, dtype=np.int32)), values)


def distinct(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each different number stands first, in this order, and which of them each row has.

    It hashes, and so is several times faster than `np.unique`, which sorts.
    """
    if loops := compiled():
        return loops.distinct(np.ascontiguousarray(numbers, np.int64))
    encoded = pa.array(numbers).dictionary_encode()
    codes = np.asarray(encoded.indices)
    first = np.empty(len(encoded.dictionary), np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    return first, codes


DAY_SECONDS = 86_400


def utc_days(times: pa.Array) -> np.ndarray:
    """The UTC day of each instant (in microseconds), counted from 1970."""
    return np.asarray(times.cast(pa.int64())) // (DAY_SECONDS * 1_000_000)


def decimal_limbs(column: pa.Array) -> np.ndarray:
    """A decimal128 column as rows of two's complement limbs: low 64 bits, high 64 bits. Nulls are 0."""
    limbs = np.frombuffer(column.buffers()[1] or b"", np.int64)[2 * column.offset : 2 * (column.offset + len(column))]
    limbs = limbs.reshape(-1, 2)
    if column.null_count:
        limbs = np.where(np.asarray(column.is_null())[:, None], 0, limbs)
    return limbs


def taken(filter: Filter, columns: Mapping[str, pa.Array] | pa.RecordBatch) -> np.ndarray:
    """Which rows a filter with conditions takes, by the columns `w:PATH`: null where a property has no string form."""
    found: np.ndarray | None = None
    for path, values, is_one in filter.conditions:
        column = columns[f"w:{path}"]
        member = np.asarray([text in values for text in column.dictionary.to_pylist()] or [False], bool)
        holds = member[np.asarray(column.indices.fill_null(0))] & np.asarray(column.indices.is_valid())
        holds = holds if is_one else ~holds
        found = holds if found is None else found & holds
    assert found is not None, "a filter without conditions takes all"
    return found


def hash_each(values: Iterable[str]) -> np.ndarray:
    """64 bits of each string."""
    return np.asarray([xxhash.xxh3_64_intdigest(value.encode()) for value in values], np.uint64)


def hash_ids(prefixes: list[bytes], codes: np.ndarray, ids: pa.Array) -> np.ndarray:
    """XXH3 (128 bits) of each id behind its prefix, as rows of 16 bytes.

    Args:
      codes: Which prefix each id has.
    """
    if loops := compiled():
        _, offsets, data = ids.buffers()
        offsets = np.frombuffer(offsets or bytes(4), np.int32)[ids.offset : ids.offset + len(ids) + 1]
        return loops.hash_ids(prefixes, codes.astype(np.int32), offsets, np.frombuffer(data or b"", np.uint8))
    digest = xxhash.xxh3_128_digest
    names = ids.cast(pa.binary()).to_pylist()
    packed = bytearray().join([digest(prefixes[code] + name) for code, name in zip(codes.tolist(), names)])
    return np.frombuffer(packed, np.uint8).reshape(-1, 16)


def mix(*columns: np.ndarray) -> np.ndarray:
    """One 64-bit hash of several columns of 64 bits, row by row; the order of the columns counts.

    Source: the finalizer of SplitMix64.
    """
    if loops := compiled():
        return loops.mix([np.ascontiguousarray(column) for column in columns])
    state = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        state = (state ^ column) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state
