"""The promises of a matrix: the first row that fits has the price, and usage that no row fits has none."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from meterline.schemas.catalog import Catalog, Matrix, MatrixRow, PerUnit
from meterline.schemas.catalog_files import load_catalog
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.fees import charges_without_usage
from meterline.transforms.rules.prices.matrix import price_for

PRICES = {name: PerUnit(model="per_unit", unit_price=Decimal(name)) for name in ("1", "2", "3", "9")}
ROWS = (
    MatrixRow(when={"model": "a", "region": "eu"}, price=PRICES["1"]),
    MatrixRow(when={"model": "a"}, price=PRICES["2"]),
    MatrixRow(when={"region": ""}, price=PRICES["3"]),
)
MATRIX = Matrix(model="matrix", rows=ROWS, default=PRICES["9"])


@pytest.mark.parametrize(
    ("model", "region", "unit_price"),
    [
        pytest.param("a", "eu", "1", id="all values fit"),
        pytest.param("a", "us", "2", id="a dimension that is not named may have any value"),
        pytest.param("a", "", "2", id="of several rows the first"),
        pytest.param("b", "", "3", id="an absent dimension is the empty string"),
        pytest.param("b", "eu", "9", id="none fits: the default"),
        pytest.param("A", "eu", "9", id="case matters"),
    ],
)
def test_price_for(model: str, region: str, unit_price: str) -> None:
    assert price_for(MATRIX, {"model": model, "region": region}) == PRICES[unit_price]


def test_without_a_default_there_may_be_no_price() -> None:
    alone = Matrix(model="matrix", rows=ROWS)
    assert price_for(alone, {"model": "b", "region": "eu"}) is None


def test_a_matrix_is_the_same_after_it_was_stored() -> None:
    assert Matrix.model_validate_json(MATRIX.model_dump_json()) == MATRIX


CATALOG = """\
meters:
  - {id: tokens, event_type: llm, aggregation: sum, value: n, unit: token, dimensions: [model, region]}
rate_cards:
  - id: card
    currency: USD
    versions:
      - version: v1
        effective_from: 2026-01-01T00:00:00Z
        prices:
          tokens:
            model: matrix
            rows:
              - {when: {model: a}, price: {model: package, package_price: 5, package_size: 10, minimum_packages: 1}}
plans:
  - {id: plan, rate_card: card, charges: [{id: tokens, meter: tokens}]}
accounts:
  - {id: acme}
subscriptions:
  - {id: sub, account: acme, plan: plan, start: 2026-01-01T00:00:00Z}
"""


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    (tmp_path / "all.yaml").write_text(CATALOG)
    return load_catalog(tmp_path)


def test_a_rating_key_has_the_price_of_its_dimensions(catalog: Catalog) -> None:
    book = Directory(catalog)
    priced = book.price_of("sub", "tokens", "v1", (("model", "a"), ("region", "eu")))
    assert priced is not None
    assert priced.price.model == "package"
    assert book.price_of("sub", "tokens", "v1", (("model", "b"), ("region", "eu"))) is None


def test_without_usage_no_row_is_due(catalog: Catalog) -> None:
    assert list(charges_without_usage("2026-03", Directory(catalog), [])) == []
