"""What is archived is added up exactly; a run reads what earlier ones archived, a stream each billing period once."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from apache_beam.utils.timestamp import Duration, Timestamp
from hypothesis import given
from hypothesis import strategies as st

from meterline.schemas.catalog import Catalog
from meterline.schemas.meters import Aggregation
from meterline.schemas.records import RatingKey
from meterline.transforms import clickhouse
from meterline.transforms.archive import Archive, Span, span_of
from meterline.transforms.cells import Cells, digits_of, digits_of_numbers
from meterline.transforms.meter import Pane
from meterline.transforms.recall import Touched, _by_end, _FirstTouchFn, _RecallFn
from meterline.transforms.rules.aggregation import FOLDED, Cell, Usage, scaled
from meterline.transforms.rules.attribution import directory
from meterline.transforms.rules.line_items import line_items
from meterline.transforms.write import line_item_rows, rating_key_rows, usage_event_rows
from tests.transforms import batches
from tests.transforms.batches import HOUR, START, Fed, batch, key_text

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


# --- what is read ---------------------------------------------------------------------------------------

KEY = key_text("sum")
HERE = span_of(RatingKey.parse(KEY))


def archived(url: str, run_id: str, *hours: int) -> None:
    """Events of quantity 1 in some hours, under an identity of their own."""
    for hour in hours:
        name = f"{run_id} {hour}"
        event = batches.Usage(hour * HOUR * 1_000_000, (Fed(KEY),), name, identity=name.encode().rjust(16)[:16])
        clickhouse.insert(url, "rating_keys", rating_key_rows([batch([event])]))
        clickhouse.insert(url, "usage_events", usage_event_rows([batch([event])], run_id))


def cell(hour: int) -> Cell:
    return Cell(START if hour == 0 else START - START % HOUR + hour * HOUR, "acme")


def recalled(stage: _RecallFn, touched: Touched, catalog: Catalog) -> list[Pane]:
    panes = []
    for text, packed in stage.process((touched.packed()[0], [touched.packed()[1]]), catalog):
        assert text.decode() == KEY
        panes.append(Pane.unpacked(Aggregation.SUM, packed))
    return panes


ONE = Usage(1, scaled(Decimal(1)))


@pytest.mark.parametrize("whole", [True, False])
def test_a_run_recalls_what_earlier_runs_archived_and_never_its_own(
    catalog: Catalog, database: str, whole: bool
) -> None:
    """What it stored itself it counts as its input, also after a crash, when it is stored and not counted yet."""
    archived(database, "one", 1)
    archived(database, "other", 2)
    archived(database, "mine", 3)
    touched = Touched(spans=[HERE])
    (pane,) = recalled(_RecallFn(Archive(database, "mine"), whole=whole), touched, catalog)
    assert pane == Pane({cell(1): ONE, cell(2): ONE}, cell(1), is_archived=True), "no line item is written"
    (pane,) = recalled(_RecallFn(Archive(database, ""), whole=whole), touched, catalog)
    assert pane.usage == {cell(1): ONE, cell(2): ONE, cell(3): ONE}


def test_where_input_ends_usage_before_what_is_touched_is_folded_and_in_a_stream_it_is_not(
    catalog: Catalog, database: str
) -> None:
    """A stream may be touched before it later, when the archive is not read any more."""
    archived(database, "one", 1, 2, 5)
    usage = {cell(hour): ONE for hour in (1, 2, 5)}
    priced = directory(catalog).price_of("sub", "c-sum", "v1", ())
    items = list(line_items(RatingKey.parse(KEY), Aggregation.SUM, priced, usage))
    clickhouse.insert(database, "line_items", line_item_rows(items))
    touched = Touched({KEY: START + 4 * HOUR})
    (pane,) = recalled(_RecallFn(Archive(database, "mine")), touched, catalog)
    assert pane == Pane({FOLDED: Usage(2, scaled(Decimal(2))), cell(5): ONE}, None, is_archived=True)
    (pane,) = recalled(_RecallFn(Archive(database, "mine"), whole=True), touched, catalog)
    assert pane == Pane(usage, None, is_archived=True)


# --- when a stream reads --------------------------------------------------------------------------------

KEEP = timedelta(days=40)
LATER = Span("default", "acme", HERE.end, HERE.end + 1)


class FirstTouches:
    """The stage with the state of all its keys."""

    def __init__(self) -> None:
        self.stage = _FirstTouchFn(KEEP)
        self.known: dict[bytes, batches.Bag] = {}
        self.over: dict[bytes, batches.Timer] = {}

    def of(self, *spans: Span) -> set[Span]:
        """Those that are recalled when some are touched."""
        first: list[Span] = []
        for key, packed in _by_end(Touched(spans=spans).packed()):
            known, over = self.known.setdefault(key, batches.Bag()), self.over.setdefault(key, batches.Timer())
            for _, some in self.stage.process((key, packed), known, over):
                first += Touched.together(some).spans
        assert len(first) == len(set(first))
        return set(first)


def test_a_billing_period_is_recalled_when_it_is_touched_first_and_never_again() -> None:
    """Twice it would count twice."""
    touches, other = FirstTouches(), HERE._replace(billing_account_id="other")
    tenant = HERE._replace(tenant_id="other")
    assert touches.of(HERE) == {HERE}
    assert touches.of(HERE, LATER) == {LATER}
    assert touches.of(LATER, other, HERE, tenant) == {other, tenant}
    assert touches.of(HERE, LATER, other, tenant) == set()
    assert {len(name) for bag in touches.known.values() for name in bag.values} == {16}


def test_what_was_touched_is_forgotten_when_its_period_takes_no_usage_any_more() -> None:
    touches = FirstTouches()
    accounts = [HERE._replace(billing_account_id=f"a{number}") for number in range(100)]
    touches.of(*accounts, LATER)
    ends = {timer.time for timer in touches.over.values()}
    lasts = Duration(seconds=int(KEEP.total_seconds()))
    assert ends == {Timestamp(HERE.end) + lasts, Timestamp(LATER.end) + lasts}
    for key, timer in touches.over.items():
        if timer.time == Timestamp(HERE.end) + lasts:
            touches.stage.forget(touches.known[key])
    assert touches.of(LATER) == set(), "what ends later is known still"
    assert sum(len(bag.values) for bag in touches.known.values()) == 1
