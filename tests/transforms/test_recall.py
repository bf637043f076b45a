"""What is archived is added up exactly, and read at one instant."""

from __future__ import annotations

from itertools import count

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.schemas.catalog import Aggregation, Catalog
from meterline.transforms import clickhouse, recall
from meterline.transforms.cells import Cells, digits_of, digits_of_numbers
from meterline.transforms.rules.aggregation import Cell, Usage

rows = st.lists(
    st.tuples(
        st.integers(0, 2), st.integers(0, 3), st.integers(0, 1), st.integers(0, 3), st.integers(0, 2),
        st.integers(0, 9) | st.integers(0, 10**38),
    )
)  # fmt: skip


def cells_of(found: list[tuple[int, ...]]) -> Cells:
    columns = list(zip(*found)) or [()] * 6
    key, *others = (np.asarray(column, np.int64) for column in columns[:5])
    return Cells.sorted(["a", "b"], key.astype(np.uint64), *others, digits_of_numbers(list(columns[5])))


@given(rows)
def test_columns_add_up_as_whole_numbers_do(found: list[tuple[int, ...]]) -> None:
    cells = cells_of(found)
    plain: dict[int, dict[Cell, Usage]] = {}
    for key, window, account, events, voided, total in sorted(found):
        usages = plain.setdefault(key, {})
        known = usages.get(Cell(window, "ab"[account]), Usage(0, 0))
        usages[Cell(window, "ab"[account])] = Usage(
            known.event_count + events, known.value + total, known.voided_count + voided
        )
    ends = [*cells.starts.tolist(), len(cells.key)]
    for (key, usages), start, end in zip(sorted(plain.items()), ends, ends[1:]):
        assert cells.key[start] == key
        assert cells.usage(start, end, Aggregation.SUM) == usages
        reached, revision = 0, 0
        for place, usage in zip(range(start, end), usages.values()):
            reached, revision = reached + usage.value, revision + usage.revision
            assert cells.folded(start, place + 1, Aggregation.SUM).value == reached
            assert digits_of_numbers([reached]).tolist() == [cells.running()[place].tolist()]
            assert cells.revision()[place] == revision


@given(st.lists(st.integers(0, 10**38 - 1)), st.integers(0, 3))
def test_digits_of_decimals(numbers: list[int], start: int) -> None:
    for kind in (pa.decimal128(38, 0), pa.decimal256(76, 0)):
        column = pa.array(numbers, pa.decimal128(38, 0)).cast(kind).slice(start)
        assert digits_of(column).tolist() == digits_of_numbers(numbers[start:]).tolist()


def test_a_read_that_an_insert_came_between_is_made_again(monkeypatch: pytest.MonkeyPatch, database: str) -> None:
    key, packed = recall.Touched(days={("default", 20_000)}).packed()
    looks, read = iter([1, 2, 2, 2]), count()
    monkeypatch.setattr(recall, "_inserts", lambda url: next(looks))

    def identities(url: str, touched: recall.Touched) -> tuple[()]:
        next(read)
        return ()

    monkeypatch.setattr(recall, "_identities", identities)
    assert list(recall._RecallFn(database).process((key, [packed]), Catalog())) == []
    assert next(read) == 2


def test_an_archive_that_does_not_come_to_rest_is_an_error(monkeypatch: pytest.MonkeyPatch, database: str) -> None:
    key, packed = recall.Touched(days={("default", 20_000)}).packed()
    looks = count()
    monkeypatch.setattr(recall, "_inserts", lambda url: next(looks))
    with pytest.raises(clickhouse.DatabaseError, match="does not come to rest"):
        list(recall._RecallFn(database).process((key, [packed]), Catalog()))


def test_an_insert_is_seen_and_a_merge_is_not(database: str) -> None:
    clickhouse.ready(database)
    row = "INSERT INTO usage_events (tenant_id, time) VALUES ('default', '2026-10-01 00:00:00')"
    seen = []
    for sql in (row, row, "OPTIMIZE TABLE usage_events FINAL"):
        clickhouse.command(database, sql)
        seen.append(recall._inserts(database))
    assert seen[0] != seen[1] == seen[2]
