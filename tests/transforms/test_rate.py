"""However the usage of a key comes in panes, the rows of the highest revision are those of all usage at once."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_pipeline import TestPipeline as InProcess
from apache_beam.testing.test_stream import TestStream as Stream
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from meterline.schemas.catalog import Aggregation, Catalog
from meterline.schemas.event import Reason
from meterline.schemas.records import LineItem, RatingKey, Reject
from meterline.transforms.meter import Pane
from meterline.transforms.rate import RateUsage, _RateFn
from meterline.transforms.rules.aggregation import FOLDED, Cell, Usage, merge, scaled, voided
from meterline.transforms.rules.attribution import directory
from meterline.transforms.rules.line_items import line_items
from tests.transforms import batches
from tests.transforms.batches import HOUR, START, key_text

ByCell = dict[Cell, Usage]

values = {
    Aggregation.SUM: st.integers(0, 9).map(lambda units: scaled(Decimal(units))),
    Aggregation.COUNT: st.none(),
    Aggregation.MIN: st.integers(0, 9).map(lambda units: scaled(Decimal(units))),
    Aggregation.MAX: st.integers(0, 9).map(lambda units: scaled(Decimal(units))),
    Aggregation.DISTINCT: st.frozensets(st.sampled_from([bytes([n]) * 16 for n in range(9)]), min_size=1, max_size=2),
    Aggregation.LATEST: st.tuples(st.integers(0, 5), st.sampled_from("ab"), st.just("/s"), st.integers(0, 9)),
}


@st.composite
def usage_in_panes(draw: st.DrawFn) -> tuple[Aggregation, list[list[ByCell]]]:
    """Panes, in groups that are rated together."""
    aggregation = draw(st.sampled_from(list(Aggregation)))
    voids = st.integers(1, 3).map(lambda count: voided(aggregation, count))
    usage = st.builds(Usage, st.integers(1, 3), values[aggregation], st.integers(0, 2)) | voids
    cell = st.builds(Cell, st.sampled_from([START + HOUR // 2 + HOUR * n for n in range(4)]), st.sampled_from("ab"))
    panes = draw(st.lists(st.dictionaries(cell, usage, min_size=1, max_size=3), min_size=1, max_size=8))
    groups: list[list[ByCell]] = [[]]
    for pane in panes:
        if groups[-1] and draw(st.booleans()):
            groups.append([])
        groups[-1].append(pane)
    return aggregation, groups


def rated(
    catalog: Catalog, key: str, aggregation: Aggregation, groups: Iterable[list[ByCell]]
) -> tuple[list[list[LineItem]], list[Reject]]:
    """What leaves for each group of panes, and the rejects."""
    state, rows, rejects = batches.Cell(), [], []
    for group in groups:
        rows.append([])
        packed = [Pane(pane, min(pane)).packed(aggregation) for pane in group]
        for element in _RateFn().process((key.encode(), packed), catalog, state):
            if isinstance(element, beam.pvalue.TaggedOutput):
                rejects.append(element.value)
            else:
                rows[-1].append(element)
    return rows, rejects


def merged(aggregation: Aggregation, panes: Iterable[ByCell]) -> ByCell:
    total: ByCell = {}
    for pane in panes:
        for cell, usage in pane.items():
            total[cell] = merge(aggregation, total[cell], usage) if cell in total else usage
    return total


def kept(rows: Iterable[LineItem]) -> dict[tuple[int, str], LineItem]:
    """As ReplacingMergeTree(revision) keeps them; of rows with equal revision any one."""
    best: dict[tuple[int, str], LineItem] = {}
    for row in rows:
        known = best.get((row.window_start, row.account_id))
        if known is None or row.revision > known.revision:
            best[row.window_start, row.account_id] = row
        elif row.revision == known.revision:
            assert row == known, "two different rows have one revision: which stays is left to chance"
    return best


@given(usage_in_panes(), st.sampled_from(["sub", ""]), st.randoms(use_true_random=False))
def test_panes_in_any_order_and_cut_give_the_same_rows(
    catalog: Catalog, usage: tuple[Aggregation, list[list[ByCell]]], subscription: str, random: Any
) -> None:
    aggregation, groups = usage
    key = key_text(aggregation.value, subscription=subscription)
    everything = merged(aggregation, [pane for group in groups for pane in group])
    parsed = RatingKey.parse(key)
    priced = directory(catalog).price_of("sub", f"c-{aggregation.value}", "v1") if subscription else None
    expected = kept(line_items(parsed, aggregation, priced, everything))

    rows, rejects = rated(catalog, key, aggregation, groups)
    assert not rejects
    assert kept(row for group in rows for row in group) == expected

    # Rows may also be stored in any order.
    shuffled = [
        row for group in rated(catalog, key, aggregation, random.sample(groups, len(groups)))[0] for row in group
    ]
    random.shuffle(shuffled)
    assert kept(shuffled) == expected


def cell(hour: int) -> Cell:
    return Cell(START + HOUR // 2 + hour * HOUR, "acme")


def test_archived_usage_behind_fresh_usage_moves_its_rows(catalog: Catalog) -> None:
    """It may come in a later pane; that all of its own line items are as they should be does not matter then."""
    four = Usage(1, scaled(Decimal(4)))
    fresh = Pane({cell(2): four}, cell(2)).packed(Aggregation.SUM)
    archived = Pane({FOLDED: Usage(2, scaled(Decimal(8))), cell(3): four}, None, True).packed(Aggregation.SUM)
    key = key_text("sum").encode()
    for panes, written in (([[fresh], [archived]], [[2], [2, 3]]), ([[archived], [fresh]], [[], [2, 3]])):
        state = batches.Cell()
        rows = [list(_RateFn().process((key, pane), catalog, state)) for pane in panes]
        assert [[row.window_start for row in some] for some in rows] == [
            [cell(hour).window_start for hour in hours] for hours in written
        ]
        assert [(row.quantity_from, row.quantity_to, row.revision) for row in rows[-1]] == [(8, 12, 3), (12, 16, 4)]


def test_late_usage_writes_the_later_cells_again(catalog: Catalog) -> None:
    one = Usage(1, scaled(Decimal(4)))
    groups = [[{cell(1): one, cell(2): one, cell(3): one}], [{cell(2): one}]]
    (_, late), _ = rated(catalog, key_text("sum"), Aggregation.SUM, groups)
    assert [(row.window_start, row.revision, row.quantity_to) for row in late] == [
        (cell(2).window_start, 3, Decimal(12)),
        (cell(3).window_start, 4, Decimal(16)),
    ]


def test_a_row_whose_amount_stays_is_written_again_when_it_knows_more_events(catalog: Catalog) -> None:
    """Else a row from a lost state, with a tied revision, could stay."""
    nothing, much = Usage(1, 0), Usage(1, scaled(Decimal(9)))
    groups = [[{cell(1): much, cell(2): much}], [{cell(1): nothing}]]
    (first, late), _ = rated(catalog, key_text("max"), Aggregation.MAX, groups)
    assert [row.amount for row in late] == [row.amount for row in first]
    assert [(row.revision, again.revision) for row, again in zip(first, late)] == [(1, 2), (2, 3)]


def test_of_a_key_that_overflows_no_line_item_leaves(catalog: Catalog) -> None:
    vast = Usage(1, 10**38 - 1)
    rows, rejects = rated(catalog, key_text("sum"), Aggregation.SUM, [[{cell(1): vast, cell(2): Usage(1, 1)}]])
    assert rows == [[]]
    (reject,) = rejects
    assert (reject.stage, reject.reason) == ("rate", Reason.QUANTITY_OVERFLOW)
    assert reject.payload == key_text("sum").encode()


def test_usage_without_a_price_any_more_is_rejected(catalog: Catalog) -> None:
    rows, rejects = rated(catalog, key_text("sum", subscription="gone"), Aggregation.SUM, [[{cell(1): Usage(1, 1)}]])
    assert rows == [[]]
    assert [reject.reason for reject in rejects] == [Reason.NO_PRICE]


def test_a_stream_writes_a_row_for_each_pane(catalog: Catalog) -> None:
    key = key_text("sum").encode()
    panes = [Pane({cell(hour): Usage(1, scaled(Decimal(4)))}, cell(hour)).packed(Aggregation.SUM) for hour in (1, 2, 1)]
    stream = Stream()
    for pane in panes:
        stream = stream.add_elements([(key, pane)]).advance_processing_time(60)

    def check(found: list[tuple[int, int]]) -> None:
        assert sorted(found) == sorted([(1, 1), (2, 2), (1, 2), (2, 3)]), found

    with InProcess(options=PipelineOptions(["--streaming"])) as pipeline:
        side = beam.pvalue.AsSingleton(pipeline | "Catalog" >> beam.Create([catalog], reshuffle=False))
        usage = pipeline | stream.advance_watermark_to_infinity()
        usage = usage | beam.Map(lambda pair: pair).with_output_types(tuple[bytes, bytes])
        found = usage | RateUsage(side, pane_seconds=5)
        told = found.line_items | beam.Map(lambda row: ((row.window_start - START) // HOUR, row.revision))
        assert_that(told, check)
