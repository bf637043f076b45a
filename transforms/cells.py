"""Usage by cell in columns: what many cells add up to, without a Python object for each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from meterline.schemas.meters import Aggregation
from meterline.transforms.meter import UsageByCell
from meterline.transforms.rules.aggregation import Cell, Usage

# Sums outgrow 64 bits: they are columns of so many digits to the base of 2^32, the lowest first.
_DIGITS = 5


def whole(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def digits_of(column: pa.Array) -> np.ndarray:
    """Decimals that are not negative as digits."""
    width = column.type.bit_width // 32
    digits = np.frombuffer(column.buffers()[1] or b"", np.uint32)
    digits = digits[width * column.offset : width * (column.offset + len(column))].reshape(-1, width)
    found = np.zeros((len(column), _DIGITS), np.uint64)
    found[:, : min(width, _DIGITS)] = digits[:, :_DIGITS]
    return found


def digits_of_numbers(numbers: list[int]) -> np.ndarray:
    shifts = range(0, 32 * _DIGITS, 32)
    return np.asarray([[number >> shift & 0xFFFFFFFF for shift in shifts] for number in numbers], np.uint64).reshape(
        -1, _DIGITS
    )


def _carried(digits: np.ndarray) -> np.ndarray:
    """Sums of digits as digits again, in place."""
    for place in range(_DIGITS - 1):
        digits[:, place + 1] += digits[:, place] >> np.uint64(32)
        digits[:, place] &= np.uint64(0xFFFFFFFF)
    return digits


def _number(digits: list[int]) -> int:
    return sum(digit << 32 * place for place, digit in enumerate(digits))


@dataclass
class Cells:
    """Cells in order of key, window and account, each once; `account` are places in the sorted `accounts`."""

    accounts: list[str]
    key: np.ndarray
    window: np.ndarray
    account: np.ndarray
    events: np.ndarray
    voided: np.ndarray
    total: np.ndarray

    @classmethod
    def sorted(
        cls,
        accounts: list[str],
        key: np.ndarray,
        window: np.ndarray,
        account: np.ndarray,
        events: np.ndarray,
        voided: np.ndarray,
        total: np.ndarray,
    ) -> Cells:
        order = np.lexsort((account, window, key))
        key, window, account = key[order], window[order], account[order]
        new = np.ones(len(key), bool)
        new[1:] = (key[1:] != key[:-1]) | (window[1:] != window[:-1]) | (account[1:] != account[:-1])
        at = np.flatnonzero(new)
        if not len(at):
            return cls(accounts, key, window, account, events, voided, total)
        added = [np.add.reduceat(column[order], at) for column in (events, voided, total)]
        return cls(accounts, key[at], window[at], account[at], added[0], added[1], _carried(added[2]))

    @cached_property
    def starts(self) -> np.ndarray:
        """Where a key's cells begin."""
        return np.unique(self.key, return_index=True)[1]

    def _running(self, column: np.ndarray) -> np.ndarray:
        """Sums of each key's cells up to each cell."""
        sums = np.cumsum(column, axis=0)
        lengths = np.diff(np.append(self.starts, len(self.key)))
        return sums - np.repeat(sums[self.starts] - column[self.starts], lengths, axis=0)

    def running(self) -> np.ndarray:
        return _carried(self._running(self.total))

    def revision(self) -> np.ndarray:
        return self._running(self.events + 2 * self.voided)

    def cell(self, place: int) -> Cell:
        return Cell(int(self.window[place]), self.accounts[self.account[place]])

    def usage(self, start: int, end: int, aggregation: Aggregation) -> UsageByCell:
        columns = (self.window, self.account, self.events, self.voided, self.total)
        return {
            Cell(window, self.accounts[account]): Usage(events, _sum(aggregation, total), voided)
            for window, account, events, voided, total in zip(*(column[start:end].tolist() for column in columns))
        }

    def folded(self, start: int, end: int, aggregation: Aggregation) -> Usage:
        total = _carried(self.total[start:end].sum(axis=0, keepdims=True))[0].tolist()
        events, voided = (int(column[start:end].sum()) for column in (self.events, self.voided))
        return Usage(events, _sum(aggregation, total), voided)


def _sum(aggregation: Aggregation, digits: list[int]) -> int | None:
    return _number(digits) if aggregation is Aggregation.SUM else None
