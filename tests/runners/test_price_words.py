"""The promises of prices in words: every model can be read, and says of each tier what it was charged at."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given

from meterline.runners.price_words import in_words, tier_terms
from meterline.schemas.catalog import (
    Dynamic,
    Graduated,
    GraduatedPercentage,
    Percentage,
    PerUnit,
    ShareTier,
    Stairstep,
    Step,
    Tier,
    UsagePrice,
)
from meterline.schemas.catalog_allowances import IncludedRollover
from meterline.transforms.rules.pricing import charge_parts
from tests import strategies

ONE = Decimal(1)


@pytest.mark.parametrize(
    ("price", "words"),
    [
        pytest.param(
            PerUnit(model="per_unit", unit_price=Decimal("2.5"), per=Decimal(1000000)),
            "per unit: 2.5 for 1,000,000 token",
            id="per unit",
        ),
        pytest.param(
            Graduated(
                model="graduated",
                tiers=(
                    Tier(up_to=Decimal(10), unit_price=ONE, flat_fee=ONE),
                    Tier(package_price=Decimal(4), package_size=Decimal(50), round="down"),
                ),
            ),
            "graduated: (0, 10] at 1 + 1 flat; (10, ∞) at packages of 50 at 4; a started one is not paid",
            id="packages in a tier",
        ),
        pytest.param(
            Stairstep(model="stairstep", steps=(Step(up_to=Decimal(10), price=ONE), Step(price=Decimal(3)))),
            "stairstep (one price for all units, that of the step reached): (0, 10] at 1; (10, ∞) at 3",
            id="stairstep",
        ),
        pytest.param(
            PerUnit(model="per_unit", unit_price=ONE, included=Decimal(100), minimum=Decimal(5), maximum=Decimal(20)),
            "per unit: 1 for each token; counted after 100 that are included; at least 5; at most 20",
            id="included units, minimum and maximum",
        ),
        pytest.param(
            PerUnit(
                model="per_unit",
                unit_price=ONE,
                included=Decimal(100),
                included_rollover=IncludedRollover(periods=3, maximum=Decimal(150)),
            ),
            "per unit: 1 for each token; counted after 100 that are included, of which what is left can be used in the "
            "next 3 periods, at most 150",
            id="included units that are carried over",
        ),
        pytest.param(
            Percentage(model="percentage", percent=Decimal("2.9"), fee_per_event=Decimal("0.30")),
            "percentage: 2.9 % of the amount; 0.30 more for each event",
            id="percentage",
        ),
        pytest.param(
            Dynamic(model="dynamic", fee_per_event=Decimal("0.30"), free_events=1000),
            "dynamic: the amount × 1; 0.30 more for each event after the first 1,000",
            id="free events",
        ),
        pytest.param(
            GraduatedPercentage(
                model="graduated_percentage",
                tiers=(
                    ShareTier(up_to=Decimal(1000), percent=Decimal(2), flat_fee=ONE),
                    ShareTier(basis_points=Decimal(50)),
                ),
            ),
            "graduated percentage of the amount: (0, 1,000] at 2 % + 1 flat; (1,000, ∞) at 50 basis points",
            id="graduated percentage",
        ),
        pytest.param(Dynamic(model="dynamic", multiplier=Decimal("1.2")), "dynamic: the amount × 1.2", id="dynamic"),
    ],
)
def test_in_words(price: UsagePrice, words: str) -> None:
    assert in_words(price, "token") == words


@given(price=strategies.usage_prices, quantity=strategies.small_quantities)
def test_every_part_of_a_charge_has_the_terms_of_its_tier(price: UsagePrice, quantity: Decimal) -> None:
    assert in_words(price, "")
    for part in charge_parts(price, quantity):
        terms = tier_terms(price, part.tier)
        assert terms is not None
        assert terms.unit_price == part.unit_price
