"""What is said of a value that YAML does not read as text: written so, a filter takes the events that have it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from meterline.schemas.catalog_files import load_catalog
from meterline.schemas.event import filter_text, parse_json
from tests.schemas.test_catalog_files import GOOD, problems, write


@pytest.mark.parametrize(
    ("written", "hints", "in_an_event"),
    [
        pytest.param("1.0", ["1", "1.0"], ["1", "1.0", "1.00", "1e0"], id="a whole number with decimals"),
        pytest.param("0.5", ["0.5"], ["0.5", "0.50", "5e-1"], id="a fraction"),
        pytest.param("0.50", ["0.5", "0.50"], ["0.5", "0.50"], id="with a zero at the end"),
        pytest.param("200", ["200"], ["200", "200.0", "2e2"], id="a whole number"),
        pytest.param("-0", ["0", "-0"], ["0", "-0", "0.0"], id="nothing"),
        pytest.param("1.5e+3", ["1500", "1.5e+3"], ["1500", "1.5e3"], id="with an exponent"),
        pytest.param(".5", ["0.5", ".5"], ["0.5"], id="as only YAML writes it"),
        pytest.param("007", ["007"], ['"007"'], id="a text of digits"),
        pytest.param("True", ["true", "True"], ["true"], id="a boolean"),
        pytest.param("no", ["false", "no"], ["false"], id="a boolean of YAML alone"),
    ],
)
@pytest.mark.parametrize("key", ["where", "where_not"])
def test_the_first_hint_equals_what_events_say(
    tmp_path: Path, key: str, written: str, hints: list[str], in_an_event: list[str]
) -> None:
    def catalog(value: str) -> Path:
        return write(
            tmp_path, all=GOOD.replace("    value: tokens\n", f"    value: tokens\n    {key}: {{x: {value}}}\n")
        )

    (said,) = problems(catalog(written))
    assert re.findall("'([^']*)'", said) == hints
    (condition,) = load_catalog(catalog(f"'{hints[0]}'")).meters[0].filter.conditions
    assert {filter_text(parse_json(text.encode())) for text in in_an_event} == condition.values
    if len(hints) == 2:
        assert filter_text(hints[1]) not in condition.values


def test_a_name_keeps_what_was_written(tmp_path: Path) -> None:
    (said,) = problems(write(tmp_path, all=GOOD.replace("{id: acme}", "{id: acme, subjects: [1.0]}")))
    assert said.endswith("1.0 must be in quotes, YAML reads it as a number: write '1.0'")


def test_a_row_of_a_matrix_is_compared_too(tmp_path: Path) -> None:
    price = "{model: matrix, rows: [{when: {a: 1.0}, price: {model: dynamic}}]}"
    found = problems(
        write(tmp_path, all=GOOD.replace("tokens: {model: per_unit, unit_price: '0.1'}", f"tokens: {price}"))
    )
    assert any("write '1' for that number, however an event writes it, or '1.0' for a text" in one for one in found)
