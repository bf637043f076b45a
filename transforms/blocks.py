"""Blocks of records: one piece of text, and where its records stand in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pyarrow as pa

_compiled: ModuleType | None
try:
    from meterline.transforms import compiled as _compiled
except ImportError:  # Installed where no C compiler was found: slower, and no different.
    _compiled = None


def compiled() -> ModuleType | None:
    """The compiled loops; none where they could not be built, or where METERLINE_COMPILED is 0."""
    return None if os.environ.get("METERLINE_COMPILED") == "0" else _compiled


@dataclass(frozen=True)
class Records(Sequence[bytes]):
    """Record number n is `data[starts[n]:ends[n]]`; both are int64."""

    data: bytes
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, records: Sequence[bytes]) -> Records:
        if isinstance(records, Records):
            return records
        ends = np.cumsum(np.fromiter(map(len, records), np.int64, len(records)))
        return cls(b"".join(records), np.concatenate([np.zeros(1, np.int64), ends])[:-1], ends)

    @classmethod
    def lines(cls, data: bytes) -> Records:
        """The lines of a text, without their line feeds; what follows the last line feed is none."""
        if loops := compiled():
            return cls(data, *loops.lines(data))
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
        return cls(data, np.concatenate([np.zeros(1, np.int64), ends + 1])[:-1], ends)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, place: int) -> bytes:  # type: ignore[override]
        return self.data[self.starts[place] : self.ends[place]]

    def __iter__(self) -> Iterator[bytes]:
        data = self.data
        return (data[start:end] for start, end in zip(self.starts.tolist(), self.ends.tolist()))

    def take(self, places: np.ndarray | slice) -> Records:
        """Some of the records, over the same text."""
        return Records(self.data, self.starts[places], self.ends[places])


class Block(NamedTuple):
    """Records that came together.

    Args:
      positions: Byte offset, row or message number in `origin` (int64), of each record.
      received_time: Microseconds since 1970: of all, or of each (int64).
      numbers: Where several records share a position, as the events of one message do: which of them each is, from 0.
    """

    records: Records
    positions: np.ndarray
    origin: str
    received_time: int | np.ndarray
    numbers: np.ndarray | None = None

    def take(self, records: np.ndarray) -> Block:
        """Some of the records."""
        received, numbers = self.received_time, self.numbers
        return Block(
            self.records.take(records),
            self.positions[records],
            self.origin,
            received if isinstance(received, int) else received[records],
            None if numbers is None else numbers[records],
        )

    def place(self, record: int) -> tuple[str, int, int]:
        """Origin, position and received time of a record."""
        number = 0 if self.numbers is None else int(self.numbers[record])
        received = self.received_time if isinstance(self.received_time, int) else int(self.received_time[record])
        return numbered(self.origin, number), int(self.positions[record]), received

    def origins(self, records: np.ndarray) -> pa.Array:
        """Origins of some records, dictionary-encoded."""
        if self.numbers is None:
            return pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(records), np.int32)), [self.origin])
        numbers = self.numbers[records]
        names = [numbered(self.origin, number) for number in range(int(numbers.max(initial=0)) + 1)]
        return pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32()), names)


def numbered(origin: str, number: int) -> str:
    """What tells the records of one message apart: the first has the origin's name, further ones `NAME#1`, `NAME#2`."""
    return f"{origin}#{number}" if number else origin


def binary_column(data: bytes, starts: np.ndarray, ends: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Pieces of a text as a column of binary or string type (not checked to be UTF-8)."""
    if loops := compiled():
        offsets, packed = loops.gather(data, starts, ends)
    else:
        packed = b"".join([data[start:end] for start, end in zip(starts.tolist(), ends.tolist())])
        offsets = np.zeros(len(starts) + 1, np.int32)
        np.cumsum(ends - starts, out=offsets[1:])
    return pa.Array.from_buffers(kind, len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(packed)])
