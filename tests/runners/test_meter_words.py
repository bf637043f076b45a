"""What explain says of meters."""

from __future__ import annotations

from typing import Any

import pytest

from meterline.runners.meter_words import in_words
from meterline.schemas.meters import Meter


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"aggregation": "count"}, "events call"),
        ({"aggregation": "sum", "value": "usage.tokens"}, "the sum of usage.tokens of events call"),
        (
            {"aggregation": "max", "expression": "a + b", "where": {"kind": "input"}},
            "the greatest a + b of events call where kind is 'input'",
        ),
        ({"aggregation": "average", "value": "seconds"}, "the average seconds of events call"),
        (
            {"aggregation": "time_weighted_sum", "value": "gb", "series": "disk"},
            "the sum of gb, each times the hours it holds, of events call in each series of disk",
        ),
        (
            {"aggregation": "percentile", "expression": "bytes * 8", "percentile": "99.9", "interval_seconds": 300},
            "the 99.9th percentile of the sums of bytes * 8 in 300 s of events call",
        ),
        (
            {
                "aggregation": "distinct",
                "value": "user",
                "where": {"kind": ["input", "cached", ""]},
                "where_not": {"region": ["eu", "us"], "model": ""},
            },
            "the different values of user of events call where kind is 'input', 'cached' or absent and region is not "
            "'eu' nor 'us' and model is not absent",
        ),
    ],
)
def test_a_meter_in_words(written: dict[str, Any], words: str) -> None:
    assert in_words(Meter.model_validate({"id": "m", "event_type": "call", "unit": "unit", **written})) == words
