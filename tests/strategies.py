"""Every Hypothesis strategy of the tests."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from meterline.schemas.catalog import Graduated, Package, PerUnit, Tier, UsagePrice, Volume

Strategy = st.SearchStrategy


def decimals(units: int, places: int) -> Strategy[Decimal]:
    """Decimals from 0 up to `units`, with up to `places` decimals; small, round and long ones all often."""
    return st.integers(0, places).flatmap(
        lambda digits: st.integers(0, units * 10**digits).map(lambda value: Decimal(f"{value}E-{digits}"))
    )


# --- Prices ---------------------------------------------------------------------------------------------

quantities = st.one_of(
    st.integers(0, 30).map(Decimal),
    decimals(1000, 12),
    st.integers(0, 10**38 - 1).map(lambda value: Decimal(f"{value}E-12")),
)
unit_prices = st.one_of(st.integers(0, 9).map(Decimal), decimals(10, 18))
pers = st.sampled_from([Decimal(per) for per in ("1", "3", "1000", "1000000", "0.7", "0.000000000001")])


@st.composite
def tier_lists(draw: st.DrawFn, max_tiers: int = 4) -> tuple[Tier, ...]:
    bounds = draw(
        st.lists(
            st.one_of(st.integers(1, 30).map(Decimal), decimals(1000, 12).filter(bool)),
            max_size=max_tiers - 1,
            unique=True,
        )
    )
    return tuple(
        Tier(up_to=bound, unit_price=draw(unit_prices), flat_fee=draw(st.one_of(st.just(Decimal(0)), unit_prices)))
        for bound in [*sorted(bounds), None]
    )


per_unit_prices = st.builds(PerUnit, model=st.just("per_unit"), unit_price=unit_prices, per=pers)


def tiered_prices(model: type[Graduated] | type[Volume]) -> Strategy[Any]:
    return st.builds(
        model,
        model=st.just(model.__name__.lower()),
        tiers=tier_lists(),
        per=pers,
        first_tier_flat_at_zero=st.booleans(),
    )


package_prices = st.builds(
    Package,
    model=st.just("package"),
    package_price=unit_prices,
    package_size=st.one_of(st.integers(1, 10).map(Decimal), decimals(10, 12).filter(bool)),
    round=st.sampled_from(["up", "down"]),
    free_units=st.one_of(st.just(Decimal(0)), decimals(20, 12)),
    minimum_packages=st.integers(0, 3),
)
rising_prices: Strategy[UsagePrice] = st.one_of(per_unit_prices, tiered_prices(Graduated), package_prices)
usage_prices: Strategy[UsagePrice] = st.one_of(rising_prices, tiered_prices(Volume))

small_quantities = st.one_of(st.integers(0, 30).map(Decimal), decimals(1000, 12))
"""Quantities that any of the prices turns into an amount that can be kept."""


@st.composite
def usage_of(draw: st.DrawFn, prices: Strategy[UsagePrice]) -> tuple[UsagePrice, list[Decimal]]:
    """A price and the cumulative quantities of a key's cells: often at a bound, and sometimes falling."""
    price = draw(prices)
    bounds = [tier.up_to for tier in getattr(price, "tiers", ()) if tier.up_to is not None]
    least = Decimal("1E-12")
    beside = [bound + step for bound in bounds for step in (-least, least)]
    edges = [st.sampled_from(near) for near in (bounds, beside) if near]
    return price, draw(st.lists(st.one_of(*edges, small_quantities), min_size=1, max_size=8))


# --- Money ----------------------------------------------------------------------------------------------

currencies = st.sampled_from(["USD", "JPY", "KWD", "CLF"])
rounding_modes = st.sampled_from(["half_even", "half_up"])
amounts = st.one_of(
    st.integers(-400, 400).map(lambda quarters: Decimal(quarters) / 4),
    st.integers(-4000, 4000).map(lambda value: Decimal(value).scaleb(-3)),
    st.integers(-(10**38) + 1, 10**38 - 1).map(lambda value: Decimal(value).scaleb(-18)),
)
"""Signed amounts of the size and precision that can be kept."""

# --- Calendar -------------------------------------------------------------------------------------------

time_zones = st.sampled_from(
    [
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "America/Sao_Paulo",
        "America/St_Johns",
        "America/Havana",
        "Asia/Kolkata",
        "Asia/Beirut",
        "Africa/Cairo",
        "Africa/Casablanca",
        "Australia/Lord_Howe",
        "Pacific/Apia",
        "Pacific/Kiritimati",
    ]
)
anchor_days = st.integers(1, 31)
instants = st.datetimes(
    min_value=datetime(1970, 1, 1),  # noqa: DTZ001
    max_value=datetime(2199, 12, 31),  # noqa: DTZ001
    timezones=st.just(UTC),
)
