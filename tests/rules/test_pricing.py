from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise, product

import pytest
from hypothesis import assume, given, settings

from meterline.schemas.catalog import (
    Dynamic,
    Fixed,
    Graduated,
    GraduatedPercentage,
    Package,
    Percentage,
    PerUnit,
    Share,
    ShareTier,
    Stairstep,
    Step,
    Tier,
    UsagePrice,
    Volume,
)
from meterline.schemas.records import TierCharge
from meterline.transforms.rules.money import MoneyError, QuantityError
from meterline.transforms.rules.prices.parts import RateCardError
from meterline.transforms.rules.pricing import (
    charge,
    charge_interval,
    charge_parts,
)
from tests import strategies

TIERS = (
    Tier(up_to=Decimal(5), unit_price=Decimal(7), flat_fee=Decimal(100)),
    Tier(up_to=Decimal(10), unit_price=Decimal("6.5"), flat_fee=Decimal(50)),
    Tier(unit_price=Decimal(6)),
)
GRADUATED = Graduated(model="graduated", tiers=TIERS)
GRADUATED_FROM_ZERO = Graduated(model="graduated", tiers=TIERS, first_tier_flat_at_zero=True)
VOLUME = Volume(model="volume", tiers=TIERS)
VOLUME_FROM_ZERO = Volume(model="volume", tiers=TIERS, first_tier_flat_at_zero=True)
PER_UNIT = PerUnit(model="per_unit", unit_price=Decimal("0.25"))
PER_MILLION = PerUnit(model="per_unit", unit_price=Decimal("2.50"), per=Decimal(1000000))
THIRDS = PerUnit(model="per_unit", unit_price=Decimal(1), per=Decimal(3))
PACKAGE = Package(model="package", package_price=Decimal(15), package_size=Decimal(10))
FULL_PACKAGE = Package(model="package", package_price=Decimal(15), package_size=Decimal(10), round="down")
FREE_PACKAGE = Package(model="package", package_price=Decimal(15), package_size=Decimal(10), free_units=Decimal(5))
MINIMUM = Package(model="package", package_price=Decimal(15), package_size=Decimal(10), minimum_packages=2)
UNITS_THEN_PACKAGES = (
    Tier(up_to=Decimal(100), unit_price=Decimal("0.10")),
    Tier(package_price=Decimal(4), package_size=Decimal(50)),
)
PACKAGED = Graduated(model="graduated", tiers=UNITS_THEN_PACKAGES)
VOLUME_PACKAGED = Volume(model="volume", tiers=UNITS_THEN_PACKAGES)
FULL_ONLY = Tier(
    package_price=Decimal(4), package_size=Decimal(50), round="down", flat_fee=Decimal(3), up_to=Decimal(120)
)
PACKAGED_DOWN = Graduated(model="graduated", tiers=(FULL_ONLY, Tier(unit_price=Decimal(1))))
STEPS = (Step(up_to=Decimal(10), price=Decimal(20)), Step(price=Decimal(50)))
STAIRSTEP = Stairstep(model="stairstep", steps=STEPS)
STAIRSTEP_FROM_ZERO = Stairstep(model="stairstep", steps=STEPS, first_step_at_zero=True)
LIMITED = PerUnit(
    model="per_unit",
    unit_price=Decimal("0.10"),
    included=Decimal(100),
    minimum=Decimal(5),
    maximum=Decimal(20),
)
CAPPED = Volume(model="volume", tiers=TIERS, maximum=Decimal(90))
AFTER_INCLUDED = Graduated(model="graduated", tiers=TIERS, first_tier_flat_at_zero=True, included=Decimal(10))
CARD = Percentage(model="percentage", percent=Decimal("2.9"))
POINTS = Percentage(model="percentage", basis_points=Decimal(25), included=Decimal(1000))
SHARES = GraduatedPercentage(
    model="graduated_percentage",
    tiers=(
        ShareTier(up_to=Decimal(1000), percent=Decimal(2), flat_fee=Decimal(1)),
        ShareTier(basis_points=Decimal(50)),
    ),
)
MARKUP = Dynamic(model="dynamic", multiplier=Decimal("1.2"))


def tier_charge(tier: int, quantity: str, unit_price: str, flat_fee: str, amount: str) -> TierCharge:
    return TierCharge(tier, Decimal(quantity), Decimal(unit_price), Decimal(flat_fee), Decimal(amount))


@pytest.mark.parametrize(
    ("price", "quantity", "amount"),
    [
        pytest.param(PER_UNIT, "0", "0", id="no units, no charge"),
        pytest.param(PER_UNIT, "3.5", "0.875", id="parts of a unit count"),
        pytest.param(PER_MILLION, "5000", "0.0125", id="a price for a million"),
        pytest.param(THIRDS, "2", "0.666666666666666667", id="rounded once, to 18 decimals"),
        pytest.param(GRADUATED, "0", "0", id="graduated: no usage, no flat fee"),
        pytest.param(GRADUATED_FROM_ZERO, "0", "100", id="graduated: unless the rate card says so"),
        pytest.param(GRADUATED, "0.000000000001", "100.000000000007", id="graduated: the least usage reaches tier 1"),
        pytest.param(GRADUATED, "5", "135", id="graduated: the unit at the bound is in the lower tier"),
        pytest.param(GRADUATED, "5.000000000001", "185.0000000000065", id="graduated: what is above it is not"),
        pytest.param(GRADUATED, "10", "217.5", id="graduated: the second bound too"),
        pytest.param(GRADUATED, "20", "277.5", id="graduated: the last tier has no end"),
        pytest.param(VOLUME, "0", "0", id="volume: no usage, no flat fee"),
        pytest.param(VOLUME_FROM_ZERO, "0", "100", id="volume: unless the rate card says so"),
        pytest.param(VOLUME, "5", "135", id="volume: the bound is in the lower tier"),
        pytest.param(VOLUME, "6", "89", id="volume: one more, and all units have the next price"),
        pytest.param(VOLUME, "20", "120", id="volume: the last tier has no end"),
        pytest.param(PACKAGE, "0", "0", id="package: none"),
        pytest.param(PACKAGE, "0.1", "15", id="package: a started one is paid"),
        pytest.param(PACKAGE, "10", "15", id="package: just full"),
        pytest.param(PACKAGE, "10.000000000001", "30", id="package: the next is started"),
        pytest.param(FULL_PACKAGE, "9.999999999999", "0", id="package: rounded down, only full ones"),
        pytest.param(FULL_PACKAGE, "20", "30", id="package: rounded down, just full"),
        pytest.param(FREE_PACKAGE, "5", "0", id="package: free units first"),
        pytest.param(FREE_PACKAGE, "15", "15", id="package: packages begin after them"),
        pytest.param(MINIMUM, "0", "30", id="package: the minimum is due without usage"),
        pytest.param(MINIMUM, "21", "45", id="package: above the minimum"),
        pytest.param(PACKAGED, "100", "10", id="packages in a tier: none below it"),
        pytest.param(PACKAGED, "160", "18", id="packages in a tier: a started one is paid"),
        pytest.param(VOLUME_PACKAGED, "160", "16", id="packages in a volume tier hold all units"),
        pytest.param(PACKAGED_DOWN, "0", "0", id="packages in a tier: no usage, no fee"),
        pytest.param(PACKAGED_DOWN, "49", "3", id="packages in a tier, rounded down: only the fee"),
        pytest.param(PACKAGED_DOWN, "121", "12", id="packages in a tier: 20 units that filled none are free"),
        pytest.param(CARD, "0", "0", id="percentage: nothing of nothing"),
        pytest.param(CARD, "250.50", "7.2645", id="percentage"),
        pytest.param(POINTS, "1000", "0", id="basis points: the included amount is free"),
        pytest.param(POINTS, "1400", "1", id="basis points: of what is above it"),
        pytest.param(SHARES, "0", "0", id="graduated percentage: no usage, no flat fee"),
        pytest.param(SHARES, "1000", "21", id="graduated percentage: the amount at the bound is in the lower tier"),
        pytest.param(SHARES, "3000", "31", id="graduated percentage: only what is above the bound has the next share"),
        pytest.param(MARKUP, "10.05", "12.06", id="dynamic: the amount, times a markup"),
        pytest.param(Dynamic(model="dynamic"), "10.05", "10.05", id="dynamic: passed on as it is"),
        pytest.param(LIMITED, "0", "5", id="the minimum is due without usage"),
        pytest.param(LIMITED, "100", "5", id="included units cost nothing"),
        pytest.param(LIMITED, "150", "5", id="the minimum is no fee on top"),
        pytest.param(LIMITED, "170", "7", id="above the minimum, what the units cost"),
        pytest.param(LIMITED, "400", "20", id="never more than the maximum"),
        pytest.param(CAPPED, "5", "90", id="a maximum of a volume price"),
        pytest.param(CAPPED, "6", "89", id="a volume price that falls below its maximum"),
        pytest.param(AFTER_INCLUDED, "0", "100", id="included units: the fee at zero usage stays"),
        pytest.param(AFTER_INCLUDED, "10", "100", id="included units: the last one"),
        pytest.param(AFTER_INCLUDED, "15", "135", id="included units: tiers begin after them"),
        pytest.param(STAIRSTEP, "0", "0", id="stairstep: nothing without usage"),
        pytest.param(STAIRSTEP_FROM_ZERO, "0", "20", id="stairstep: unless the rate card says so"),
        pytest.param(STAIRSTEP, "0.1", "20", id="stairstep: all of the step is paid"),
        pytest.param(STAIRSTEP, "10", "20", id="stairstep: the bound is in the lower step"),
        pytest.param(STAIRSTEP, "10.5", "50", id="stairstep: the step reached is all that is paid"),
    ],
)  # fmt: skip
def test_charge(price: UsagePrice, quantity: str, amount: str) -> None:
    assert charge(price, Decimal(quantity)) == Decimal(amount)


@pytest.mark.parametrize(
    ("price", "step", "amount", "parts"),
    [
        pytest.param(
            GRADUATED, "4 12", "101.5",
            [
                tier_charge(1, "1", "7", "0", "7"),
                tier_charge(2, "5", "6.5", "50", "82.5"),
                tier_charge(3, "2", "6", "0", "12"),
            ],
            id="graduated: the rest of a tier, its fee already billed, then the next ones",
        ),
        pytest.param(
            GRADUATED, "5 6", "56.5", [tier_charge(2, "1", "6.5", "50", "56.5")],
            id="graduated: a full tier does not show",
        ),
        pytest.param(
            GRADUATED, "12 9", "-18.5",
            [tier_charge(2, "-1", "6.5", "0", "-6.5"), tier_charge(3, "-2", "6", "0", "-12")],
            id="graduated: a falling quantity goes back through the tiers",
        ),
        pytest.param(
            GRADUATED_FROM_ZERO, "0 1", "7", [tier_charge(1, "1", "7", "0", "7")],
            id="graduated: the fee due without usage is not billed again",
        ),
        pytest.param(
            VOLUME, "5 6", "-46",
            [tier_charge(1, "-5", "7", "-100", "-135"), tier_charge(2, "6", "6.5", "50", "89")],
            id="volume: a crossing takes the old tier back",
        ),
        pytest.param(
            VOLUME, "6 8", "13", [tier_charge(2, "2", "6.5", "0", "13")],
            id="volume: within a tier",
        ),
        pytest.param(
            PACKAGE, "17 22", "15", [tier_charge(1, "5", "15", "0", "15")],
            id="package: a new one",
        ),
        pytest.param(
            PACKAGE, "12 17", "0", [tier_charge(1, "5", "15", "0", "0")],
            id="package: inside a paid one the units still show",
        ),
        pytest.param(
            THIRDS, "1 2", "0.333333333333333334", [tier_charge(1, "1", "1", "0", "0.333333333333333334")],
            id="the last digit is what makes the sum right",
        ),
        pytest.param(PER_UNIT, "3 3", "0", [], id="nothing happened"),
        pytest.param(
            PACKAGED, "90 160", "9", [tier_charge(1, "10", "0.10", "0", "1"), tier_charge(2, "60", "4", "0", "8")],
            id="packages in a tier begin with it",
        ),
        pytest.param(PACKAGED, "160 199", "0", [tier_charge(2, "39", "4", "0", "0")], id="inside a paid package"),
        pytest.param(
            LIMITED, "80 170", "2", [tier_charge(0, "20", "0", "0", "-5"), tier_charge(1, "70", "0.10", "0", "7")],
            id="usage takes the minimum off again",
        ),
        pytest.param(
            LIMITED, "170 400", "13", [tier_charge(0, "0", "0", "0", "-10"), tier_charge(1, "230", "0.10", "0", "23")],
            id="the maximum takes off what is above it",
        ),
        pytest.param(
            LIMITED, "400 500", "0", [tier_charge(0, "0", "0", "0", "-10"), tier_charge(1, "100", "0.10", "0", "10")],
            id="above the maximum units still show",
        ),
        pytest.param(STAIRSTEP, "4 9", "0", [tier_charge(1, "5", "0", "0", "0")], id="stairstep: inside a step"),
        pytest.param(
            STAIRSTEP, "4 11", "30", [tier_charge(1, "-4", "0", "-20", "-20"), tier_charge(2, "11", "0", "50", "50")],
            id="stairstep: the next step replaces the last",
        ),
        pytest.param(MINIMUM, "0 4", "0", [tier_charge(1, "4", "15", "0", "0")], id="package: minimum paid before"),
    ],
)  # fmt: skip
def test_charge_interval(price: UsagePrice, step: str, amount: str, parts: list[TierCharge]) -> None:
    start, end = map(Decimal, step.split())
    assert charge_interval(price, start, end, opening=False) == (Decimal(amount), tuple(parts))


@pytest.mark.parametrize(
    "price",
    [
        *(PER_UNIT, THIRDS, GRADUATED, GRADUATED_FROM_ZERO, VOLUME, VOLUME_FROM_ZERO, PACKAGE, FREE_PACKAGE, MINIMUM),
        *(PACKAGED, VOLUME_PACKAGED, PACKAGED_DOWN, STAIRSTEP, STAIRSTEP_FROM_ZERO, LIMITED, CAPPED, AFTER_INCLUDED),
        *(CARD, POINTS, SHARES, MARKUP),
    ],
)
def test_a_step_between_any_two_edges_costs_the_difference(price: UsagePrice) -> None:
    edges = [Decimal(bound) + Decimal(step) for bound in (5, 10, 15) for step in ("-1E-12", "0", "1E-12")]
    for start, end in product([Decimal(0), *edges, Decimal(99)], repeat=2):
        amount, parts = charge_interval(price, start, end, opening=False)
        assert amount == charge(price, end) - charge(price, start) == sum(part.amount for part in parts)
        assert sum(part.quantity for part in parts) == end - start


def test_a_fee_for_each_event_is_due_beside_the_tiers() -> None:
    price = CARD.model_copy(update={"fee_per_event": Decimal("0.30")})
    assert charge(price, Decimal(0), 0) == 0
    assert charge(price, Decimal(100), 3) == Decimal("3.80")
    opened = (tier_charge(0, "0", "0", "0.30", "0.30"), tier_charge(1, "40", "0.029", "0", "1.16"))
    assert charge_interval(price, Decimal(0), Decimal(40), opening=True, events=(0, 1)) == (Decimal("1.46"), opened)
    # Where the quantity does not move, as of a maximum, the event is paid all the same.
    stays = charge_interval(price, Decimal(40), Decimal(40), opening=False, events=(1, 3))
    assert stays == (Decimal("0.60"), (tier_charge(0, "0", "0", "0.60", "0.60"),))
    capped = price.model_copy(update={"maximum": Decimal(2)})
    assert charge_interval(capped, Decimal(40), Decimal(40), opening=False, events=(1, 3))[0] == Decimal("0.54")


def test_the_first_events_may_bear_no_fee() -> None:
    price = CARD.model_copy(update={"fee_per_event": Decimal("0.30"), "free_events": 2})
    assert [charge(price, Decimal(100), events) for events in (0, 1, 2, 3, 5)] == [
        Decimal(amount) for amount in ("2.9", "2.9", "2.9", "3.2", "3.8")
    ]
    steps = [(0, 1), (1, 3), (3, 4)]
    amounts = [
        charge_interval(price, Decimal(0), Decimal(0), opening=not start, events=(start, end))[0]
        for start, end in steps
    ]
    assert amounts == [0, Decimal("0.3"), Decimal("0.3")]


def test_a_step_from_the_same_quantity_with_other_events_is_priced_by_its_own() -> None:
    price = PerUnit(model="per_unit", unit_price=Decimal(0), fee_per_event=Decimal(1), maximum=Decimal(4))
    start, here, end = Decimal(1), Decimal(2), Decimal(3)
    assert charge_interval(price, start, here, opening=False, events=(1, 2))[0] == 1
    # Another key, that comes to the very same number: its first three events were paid before.
    assert charge_interval(price, here, end, opening=False, events=(3, 9))[0] == 1


def test_the_opening_interval_bears_the_fees_due_without_usage() -> None:
    zero = Decimal(0)
    fee = (tier_charge(1, "0", "7", "100", "100"),)
    assert charge_interval(GRADUATED_FROM_ZERO, zero, zero, opening=True) == (Decimal(100), fee)
    assert charge_interval(GRADUATED_FROM_ZERO, zero, zero, opening=False) == (zero, ())
    assert charge_interval(MINIMUM, zero, zero, opening=True)[0] == 30


# --- A second implementation, with fractions ------------------------------------------------------------


def rounded(value: Fraction) -> Fraction:
    return Fraction(round(value * 10**18), 10**18)


def expected_charge(price: UsagePrice, quantity: Decimal, events: int = 0) -> Fraction:
    amount = expected_of_model(price, Fraction(max(quantity - price.included, Decimal(0))))
    amount += max(events - price.free_events, 0) * Fraction(price.fee_per_event)
    if price.minimum is not None:
        amount = max(amount, Fraction(price.minimum))
    return amount if price.maximum is None else min(amount, Fraction(price.maximum))


def expected_share(share: Share) -> Fraction:
    return Fraction(share.percent) / 100 if share.percent is not None else Fraction(share.basis_points or 0) / 10_000


def expected_of_model(price: UsagePrice, units: Fraction) -> Fraction:
    if isinstance(price, PerUnit):
        return rounded(units * Fraction(price.unit_price) / Fraction(price.per))
    if isinstance(price, Package):
        packages = max(units - Fraction(price.free_units), Fraction(0)) / Fraction(price.package_size)
        whole = -(-packages // 1) if price.round == "up" else packages // 1
        return rounded(max(whole, price.minimum_packages) * Fraction(price.package_price))
    if isinstance(price, Stairstep):
        step = next(step for step in price.steps if step.up_to is None or units <= Fraction(step.up_to))
        return Fraction(step.price) if units or price.first_step_at_zero else Fraction(0)
    if isinstance(price, Percentage):
        return rounded(units * expected_share(price))
    if isinstance(price, Dynamic):
        return rounded(units * Fraction(price.multiplier))
    if isinstance(price, GraduatedPercentage):
        return expected_of_model(
            Graduated.model_construct(
                tiers=[
                    Tier.model_construct(up_to=tier.up_to, unit_price=expected_share(tier), flat_fee=tier.flat_fee)
                    for tier in price.tiers
                ],
                first_tier_flat_at_zero=price.first_tier_flat_at_zero,
            ),
            units,
        )
    if not units:
        return Fraction(price.tiers[0].flat_fee) if price.first_tier_flat_at_zero else Fraction(0)
    total, floor = Fraction(0), Fraction(0)
    for tier in price.tiers:
        ceiling = units if tier.up_to is None else Fraction(tier.up_to)
        inside = min(units, ceiling) - floor if isinstance(price, Graduated) else units
        cost = inside * Fraction(tier.unit_price) / Fraction(price.per)
        if tier.package_size is not None and tier.package_price is not None:
            packages = inside / Fraction(tier.package_size)
            cost = (-(-packages // 1) if tier.round == "up" else packages // 1) * Fraction(tier.package_price)
        part = rounded(cost + Fraction(tier.flat_fee))
        total = total + part if isinstance(price, Graduated) else part
        if units <= ceiling:
            break
        floor = ceiling
    return total


@given(price=strategies.usage_prices, quantity=strategies.quantities, events=strategies.event_counts)
def test_a_charge_is_exact_at_38_digits(price: UsagePrice, quantity: Decimal, events: int) -> None:
    expected = expected_charge(price, quantity, events)
    unlimited = expected_of_model(price, max(Fraction(quantity) - Fraction(price.included), Fraction(0)))
    if unlimited + events * Fraction(price.fee_per_event) >= 10**20:
        with pytest.raises(MoneyError):
            charge(price, quantity, events)
        return
    amount = charge(price, quantity, events)
    assert Fraction(amount) == expected
    parts = charge_parts(price, quantity, events)
    assert sum(Fraction(part.amount) for part in parts) == expected
    assert sum(Fraction(part.quantity) for part in parts) == Fraction(quantity)
    assert all(part.quantity or part.amount or part.flat_fee for part in parts)
    assert [part.tier for part in parts] == sorted({part.tier for part in parts})


@settings(max_examples=300)
@given(usage=strategies.usage_of(strategies.usage_prices))
def test_the_pieces_of_any_cutting_add_up_to_the_charge_of_the_whole(
    usage: tuple[UsagePrice, list[Decimal]],
) -> None:
    price, cells = usage
    total = Fraction(0)
    by_tier: dict[int, list[Fraction]] = {}
    for number, (start, end) in enumerate(pairwise([Decimal(0), *cells])):
        amount, parts = charge_interval(price, start, end, opening=number == 0, events=(number * 2, number * 2 + 2))
        assert sum(Fraction(part.amount) for part in parts) == Fraction(amount)
        assert sum(Fraction(part.quantity) for part in parts) == Fraction(end) - Fraction(start)
        assert [part.tier for part in parts] == sorted({part.tier for part in parts})
        assert all(part.quantity or part.amount or part.flat_fee for part in parts)
        total += Fraction(amount)
        for part in parts:
            sums = by_tier.setdefault(part.tier, [Fraction(0)] * 3)
            by_tier[part.tier] = [
                old + Fraction(new) for old, new in zip(sums, (part.quantity, part.flat_fee, part.amount))
            ]
    events = len(cells) * 2
    assert total == Fraction(charge(price, cells[-1], events)) == expected_charge(price, cells[-1], events)
    whole = {
        part.tier: [Fraction(part.quantity), Fraction(part.flat_fee), Fraction(part.amount)]
        for part in charge_parts(price, cells[-1], events)
    }
    assert {tier: sums for tier, sums in by_tier.items() if any(sums)} == whole


@given(usage=strategies.usage_of(strategies.usage_prices))
def test_a_charge_is_right_at_the_bounds_too(usage: tuple[UsagePrice, list[Decimal]]) -> None:
    price, quantities = usage
    for quantity in quantities:
        assert Fraction(charge(price, quantity)) == expected_charge(price, quantity)


@given(usage=strategies.usage_of(strategies.rising_prices))
def test_more_usage_never_costs_less(usage: tuple[UsagePrice, list[Decimal]]) -> None:
    price, quantities = usage
    for start, end in pairwise(sorted(quantities)):
        assert charge_interval(price, start, end, opening=False, events=(3, 4))[0] >= 0


@given(price=strategies.tiered_prices(Volume), quantity=strategies.small_quantities.filter(bool))
def test_a_volume_charge_is_the_per_unit_charge_of_one_tier(price: Volume, quantity: Decimal) -> None:
    number = sum(tier.up_to is not None and tier.up_to < quantity for tier in price.tiers)
    tier = price.tiers[number]
    assume(not tier.flat_fee and not tier.package_size)
    alone = PerUnit(model="per_unit", unit_price=tier.unit_price, per=price.per)
    assert charge(price, quantity) == charge(alone, quantity)


# --- What is refused ------------------------------------------------------------------------------------


def test_an_amount_that_does_not_fit_is_refused() -> None:
    dear = PerUnit(model="per_unit", unit_price=Decimal(10) ** 17)
    with pytest.raises(MoneyError):
        charge_interval(dear, Decimal(0), Decimal(1000), opening=True)
    half = Tier(up_to=Decimal(600), unit_price=Decimal(10) ** 17)
    steps = Graduated(model="graduated", tiers=(half, Tier(unit_price=Decimal(10) ** 17)))
    with pytest.raises(MoneyError):
        charge(steps, Decimal(1200))


def test_a_quantity_that_no_meter_yields_is_refused() -> None:
    for quantity in (Decimal(-1), Decimal("1E-13"), Decimal(10) ** 26):
        with pytest.raises(QuantityError):
            charge(PER_UNIT, quantity)
        with pytest.raises(QuantityError):
            charge_parts(PER_UNIT, quantity)
        with pytest.raises(QuantityError):
            charge_interval(PER_UNIT, quantity, Decimal(1), opening=False)
        with pytest.raises(QuantityError):
            charge_interval(PER_UNIT, Decimal(1), quantity, opening=False)


def test_a_price_without_a_price_for_the_usage_is_refused() -> None:
    with pytest.raises(RateCardError, match="fixed"):
        charge(Fixed(model="fixed", amount=Decimal(1)), Decimal(1))  # type: ignore[arg-type]
    ends = (Tier(up_to=Decimal(5), unit_price=Decimal(1)),)  # the catalog does not let this through
    for price in (
        Graduated.model_construct(model="graduated", tiers=ends, per=Decimal(1), first_tier_flat_at_zero=False),
        Volume.model_construct(model="volume", tiers=ends, per=Decimal(1), first_tier_flat_at_zero=False),
    ):
        with pytest.raises(RateCardError, match="tiers end at 5, usage is 6"):
            charge(price, Decimal(6))


# --- Fixed fees -----------------------------------------------------------------------------------------

THIRTY = Fixed(model="fixed", amount=Decimal(30))
OCTOBER = datetime(2026, 10, 1, tzinfo=UTC)
DAY = timedelta(days=1)
