"""The compiled loops give what the libraries give where they are not built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.transforms.blocks import Records, binary_column, compiled
from meterline.transforms.columns import distinct, hash_ids, mix

pytestmark = pytest.mark.skipif(compiled() is None, reason="the compiled loops are not built here, or switched off")


def both(call: Callable[[], Any]) -> tuple[Any, Any]:
    """Compiled and not."""
    fast = call()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METERLINE_COMPILED", "0")
        return fast, call()


numbers = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 5), max_size=40)


@given(numbers)
def test_distinct(values: list[int]) -> None:
    fast, plain = both(lambda: [one.tolist() for one in distinct(np.asarray(values, np.int64))])
    assert fast == plain


@given(st.lists(st.tuples(*[st.integers(0, 2**64 - 1)] * 3), min_size=1))
def test_mix(rows: list[tuple[int, int, int]]) -> None:
    columns = np.asarray(rows, np.uint64).T
    fast, plain = both(lambda: mix(*columns).tolist())
    assert fast == plain


@given(st.lists(st.tuples(st.integers(0, 1), st.text(max_size=40))), st.integers(0, 3))
def test_hash_ids(rows: list[tuple[int, str]], start: int) -> None:
    codes = np.asarray([code for code, _ in rows][start:], np.int64)
    ids = pa.array([name for _, name in rows], pa.string()).slice(start)
    fast, plain = both(lambda: hash_ids([b"default\x00/a\x00", b"default\x00/long" * 9 + b"\x00"], codes, ids).tolist())
    assert fast == plain


@given(st.lists(st.binary(max_size=9)), st.binary(max_size=5))
def test_lines_and_their_columns(texts: list[bytes], rest: bytes) -> None:
    data = b"".join(text.replace(b"\n", b"") + b"\n" for text in texts) + rest.replace(b"\n", b"")

    def read() -> tuple[list[bytes], list[bytes]]:
        lines = Records.lines(data)
        return list(lines), binary_column(data, lines.starts, lines.ends, pa.binary()).to_pylist()

    fast, plain = both(read)
    assert fast == plain == ([text.replace(b"\n", b"") for text in texts],) * 2


def test_what_does_not_fit_is_refused() -> None:
    loops = compiled()
    assert loops
    two, three = np.asarray([0, 1]), np.asarray([0, 1, 2])
    plan = loops.Plan({"n": None})
    for call in (
        lambda: loops.gather(b"ab", two, three),
        lambda: loops.gather(b"ab", two, np.asarray([1, 9])),
        lambda: loops.gather(b"ab", np.asarray([-1, 0]), two),
        lambda: loops.scan(b"{}", two, three, plan, [], []),
        lambda: loops.scan(b"{}", np.asarray([0]), np.asarray([3]), plan, [], []),
        lambda: loops.sums(two, np.zeros((2, 2), np.uint64), 1),
        lambda: loops.sums(three, np.zeros((2, 2), np.uint64), 3),
        lambda: loops.hash_ids([b""], np.asarray([1], np.int32), np.zeros(2, np.int32), np.zeros(0, np.uint8)),
        lambda: loops.hash_ids([b""], np.asarray([0], np.int32), np.asarray([0, 9], np.int32), np.zeros(3, np.uint8)),
        lambda: loops.mix([np.zeros(1, np.uint64), np.zeros(2, np.uint64)]),
        lambda: loops.Plan({str(n): None for n in range(99)}),
    ):
        with pytest.raises(ValueError):
            call()
