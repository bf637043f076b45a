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

# --- Texts that nearly are what they should be ----------------------------------------------------------


def pieces(*parts: str, longest: int = 10) -> Strategy[str]:
    """Texts put together from parts in any order."""
    return st.lists(st.sampled_from(parts), max_size=longest).map("".join)


near_uris = pieces(
    *("a", "x1", ":", "/", "//", "?", "#", "[", "]", "@", "%20", "%", "1", "::", ".", "-", "v1.", "ffff", "1.2.3.4"),
    *("[::1]", "[1:2:3:4:5:6:7:8]", "[v1.a]", "urn:", "https://", " ", "ü", "\\", "é", "'", "+", ";", "25", "%G0"),
).filter(bool)

_two_digits = st.integers(0, 99).map("{:02}".format)
_good_days = st.dates(datetime(1971, 1, 1).date(), datetime(2198, 12, 31).date()).map(str)  # noqa: DTZ001
near_times = st.tuples(
    st.one_of(
        _good_days,
        _good_days,
        st.sampled_from(["1970-01-01", "1969-12-31", "2199-12-31", "2200-01-01", "2026-02-31", "2024-02-29"]),
        st.sampled_from(
            ["2023-02-29", "2100-02-29", "0000-01-01", "9999-12-31", "2026-13-01", "2026-1-01", "٢٠٢٦-10-01"]
        ),
    ),
    st.sampled_from("TTTTTt _"),
    st.one_of(
        st.times().map(lambda time: time.isoformat("seconds")),
        st.sampled_from(["23:59:60", "24:00:00", "12:60:00", "00:00:00", "23:59:59", "1:00:00", "12:00", "12:00:00x"]),
    ),
    st.one_of(
        st.just(""),
        st.integers(0, 10**6).map(".{}".format),
        st.sampled_from([".000000999999", ".9999999", ".", ".1x", ".٣", ",5", ".0", "." + "1" * 30, ".+1", ". 1"]),
    ),
    st.one_of(
        st.sampled_from(
            ["Z", "Z", "Z", "z", "+00:00", "-00:00", "+23:59", "-23:59", "+24:00", "+00:60", "", " Z", "ZZ"]
        ),
        st.builds("{}{}:{}".format, st.sampled_from("+-"), _two_digits, _two_digits),
        st.sampled_from(["+1:00", "+0100", "+01", "+01:00 ", "+01:00Z", "*01:00", "+01-00", "\n", "+٠١:00"]),
    ),
).map("".join)

near_numbers = st.one_of(
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["", "", "", "-", "+", "--"]),
        st.one_of(st.integers(0, 10**21).map(str), st.sampled_from(["0", "0", "1", "5", "00", "01", "", "9" * 20])),
        st.one_of(
            st.just(""), st.integers(0, 10**13).map(".{}".format), st.sampled_from([".", ".0", ".10", "." + "0" * 60])
        ),
        st.sampled_from(
            ["", "", "", "e0", "E2", "e-12", "e-13", "e+20", "e", "e400", "e-400", "e99999999999999999999"]
        ),
    ),
    st.sampled_from(["NaN", "Infinity", "0x1", "1_0", "1 ", " 1", "", "１", "x", "1e100", "1e99", "1" * 4001, "true"]),
)
