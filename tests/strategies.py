"""Every Hypothesis strategy of the tests."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from meterline.schemas.calendars import Calendar
from meterline.schemas.catalog import (
    Dynamic,
    Graduated,
    GraduatedPercentage,
    Package,
    Percentage,
    PerUnit,
    ShareTier,
    Stairstep,
    Step,
    Tier,
    UsagePrice,
    Volume,
)
from meterline.schemas.event import NUMBER
from meterline.schemas.expressions import STEPPED, Literal, Node, Operation, Property, walk

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
roundings = st.sampled_from(["up", "down"])
pers = st.sampled_from([Decimal(per) for per in ("1", "3", "1000", "1000000", "0.7", "0.000000000001")])


package_sizes = st.one_of(st.integers(1, 10).map(Decimal), decimals(10, 12).filter(bool))
bounds = st.one_of(st.integers(1, 30).map(Decimal), decimals(1000, 12).filter(bool))


@st.composite
def tiers_up_to(draw: st.DrawFn, up_to: Decimal | None) -> Tier:
    flat_fee = draw(st.one_of(st.just(Decimal(0)), unit_prices))
    if draw(st.integers(0, 2)):
        return Tier(up_to=up_to, unit_price=draw(unit_prices), flat_fee=flat_fee)
    return Tier(
        up_to=up_to,
        flat_fee=flat_fee,
        package_price=draw(unit_prices),
        package_size=draw(package_sizes),
        round=draw(roundings),
    )


@st.composite
def tier_lists(draw: st.DrawFn, max_tiers: int = 4) -> tuple[Tier, ...]:
    ends = draw(st.lists(bounds, max_size=max_tiers - 1, unique=True))
    return tuple(draw(tiers_up_to(end)) for end in [*sorted(ends), None])


@st.composite
def stairsteps(draw: st.DrawFn, rising: bool = False) -> Stairstep:
    ends = [*sorted(draw(st.lists(bounds, max_size=3, unique=True))), None]
    prices = [draw(unit_prices) for _ in ends]
    steps = [Step(up_to=end, price=price) for end, price in zip(ends, sorted(prices) if rising else prices)]
    return Stairstep(model="stairstep", steps=tuple(steps), first_step_at_zero=draw(st.booleans()))


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
    package_size=package_sizes,
    round=roundings,
    free_units=st.one_of(st.just(Decimal(0)), decimals(20, 12)),
    minimum_packages=st.integers(0, 3),
)

percents = st.one_of(st.just(Decimal("2.9")), decimals(200, 16))
basis_points = decimals(20_000, 14)


@st.composite
def shares(draw: st.DrawFn) -> dict[str, Decimal]:
    if draw(st.booleans()):
        return {"percent": draw(percents)}
    return {"basis_points": draw(basis_points)}


@st.composite
def percentages(draw: st.DrawFn) -> Percentage | GraduatedPercentage | Dynamic:
    model = draw(st.sampled_from(["percentage", "graduated_percentage", "dynamic"]))
    if model == "percentage":
        return Percentage(model="percentage", **draw(shares()))
    if model == "dynamic":
        return Dynamic(model="dynamic", multiplier=draw(unit_prices))
    ends = [*sorted(draw(st.lists(bounds, max_size=3, unique=True))), None]
    tiers = (ShareTier(up_to=end, flat_fee=draw(unit_prices), **draw(shares())) for end in ends)
    flag = draw(st.booleans())
    return GraduatedPercentage(model="graduated_percentage", tiers=tuple(tiers), first_tier_flat_at_zero=flag)


@st.composite
def with_limits(draw: st.DrawFn, prices: Strategy[UsagePrice]) -> UsagePrice:
    """Some of the prices with included units, a minimum and a maximum."""
    price = draw(prices)
    if draw(st.booleans()):
        return price
    least, most = sorted(draw(st.tuples(limits, limits)))
    changes: dict[str, Any] = {
        "minimum": draw(st.sampled_from([None, least])),
        "maximum": draw(st.sampled_from([None, most])),
    }
    if not isinstance(price, Package):
        changes["included"] = draw(st.one_of(st.just(Decimal(0)), decimals(20, 12)))
    changes["fee_per_event"] = draw(st.one_of(st.just(Decimal(0)), unit_prices))
    if changes["fee_per_event"]:
        changes["free_events"] = draw(st.integers(0, 3))
    return price.model_copy(update=changes)


limits = st.one_of(unit_prices, decimals(1000, 18))
rising_prices: Strategy[UsagePrice] = with_limits(
    st.one_of(per_unit_prices, tiered_prices(Graduated), stairsteps(rising=True), package_prices, percentages())
)
usage_prices: Strategy[UsagePrice] = st.one_of(
    rising_prices, with_limits(st.one_of(tiered_prices(Volume), stairsteps()))
)

small_quantities = st.one_of(st.integers(0, 30).map(Decimal), decimals(1000, 12))
"""Quantities that any of the prices turns into an amount that can be kept."""


event_counts = st.one_of(st.integers(0, 5), st.integers(0, 10**12))


@st.composite
def usage_of(draw: st.DrawFn, prices: Strategy[UsagePrice]) -> tuple[UsagePrice, list[Decimal]]:
    """A price and the cumulative quantities of a key's cells: often at a bound, and sometimes falling."""
    price = draw(prices)
    bounded = getattr(price, "tiers", getattr(price, "steps", ()))
    ends = [tier.up_to + price.included for tier in bounded if tier.up_to is not None]
    ends += [price.included] * bool(price.included)
    least = Decimal("1E-12")
    beside = [end + step for end in ends for step in (-least, least)]
    edges = [st.sampled_from(near) for near in (ends, beside) if near]
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
cycles = st.one_of(
    st.sampled_from(["weekly", "monthly", "quarterly", "yearly"]), st.integers(1, 366).map(lambda days: f"{days} days")
)
anchors = st.dates(date(1970, 1, 1), date(2199, 12, 31))
calendars = st.builds(Calendar, time_zones, cycles, anchors)
instants = st.datetimes(
    min_value=datetime(1970, 1, 1),  # noqa: DTZ001
    max_value=datetime(2199, 12, 31),  # noqa: DTZ001
    timezones=st.just(UTC),
)

event_quantities = st.one_of(
    st.integers(0, 12).map(Decimal),
    decimals(1000, 12),
    st.integers(0, 10**32 - 1).map(lambda value: Decimal(f"{value}E-12")),
    st.integers(10**32 - 9, 10**32 - 1).map(lambda value: Decimal(f"{value}E-12")),
)
"""What one event may say to a meter, up to the largest."""

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
    # The largest and smallest that are accepted, and the next ones.
    st.sampled_from(["99999999999999999999", "100000000000000000000", "99999999999999999999.9999999999991"]),
    st.sampled_from(["0.000000000001", "0.0000000000001", "1.0000000000000", "99999999999999999999.999999999999"]),
    st.sampled_from(["NaN", "Infinity", "0x1", "1_0", "1 ", " 1", "", "１", "x", "1e100", "1e99", "1" * 4001, "true"]),
)

# --- Records, as bytes: good events, nearly good ones, and bytes that were damaged ----------------------


def json_strings(text: Strategy[str]) -> Strategy[str]:
    """JSON text of strings, escaped in any of the ways."""

    def escaped(pair: tuple[str, int]) -> str:
        value, style = pair
        if style < 2:
            return json.dumps(value, ensure_ascii=bool(style)) if not _has_surrogate(value) else json.dumps(value)
        units = value.encode("utf-16-be", "surrogatepass")
        return '"' + "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)) + '"'

    return st.tuples(text, st.sampled_from([0, 0, 0, 1, 2])).map(escaped)


def _has_surrogate(value: str) -> bool:
    return any(0xD800 <= ord(character) <= 0xDFFF for character in value)


odd_texts = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        ["\x00", "a\nb", "\x1f", "\x7f", "\x9f", "\ufdd0", "\uffff", "\U0010fffe", "\ud800", "\udfff\ud800"]
    ),
    st.sampled_from(
        ['"', "\\", "\\n", "\\\\u0000", "/", "🦜", "é", "e\u0301", " ", "", "x" * 257, "x" * 1025, "🦜" * 513]
    ),
    st.sampled_from(["null", "1", "1.0", "true", "{}", "a\x00b", "\u2028"]),
)
good_texts = st.sampled_from(
    ["eu", "us-east", "ü", "1", "1.5", "größe", "x", "y", "🦜", "a b", 'quo"te', "back\\slash"]
)
odd_json = st.sampled_from(
    [
        *(
            "null",
            "true",
            "false",
            "[]",
            "{}",
            "[1]",
            '{"a":1}',
            '""',
            '"NaN"',
            '"1e400"',
            "1e400",
            "-5",
            '"-5"',
            "0.1",
        ),
        *('"0.1"', "-0", "0e999999999999", "1e20", "1e-13", "99999999999999999999.999999999999", "1e99", "1e100"),
        *(
            "1e-100",
            "1e-101",
            "[" * 60 + "]" * 60,
            '"\\ud800"',
            '"\\ud83e\\udd9c"',
            '"\x7f"',
            '"\\u0000"',
            "1e2",
            "100",
        ),
        *('"' + "1" * 4001 + '"', "2147483648", "-2147483648", "1.50", '"1.50"', '"1e2"', '{"tokens":5}', "5 "),
        '{"tokens":null}',
    ]
)
"""JSON that is seldom what is wanted."""

broken_json = st.sampled_from(
    [
        *("01", "+1", ".5", "1.", "NaN", "Infinity", "nul", "tru", "'x'", "[1,]", '{"a":1,}', "[" * 70 + "]" * 70),
        *('"\t"', '"\\x"', '"\\u12g4"', '"\x01"', '"', "1" * 4001, "{", "}", "", "1 2", '"a" "b"', '{"a"}', "{1:2}"),
    ]
)


def _usually(good: Strategy[str], odd: Strategy[str], times: int = 15) -> Strategy[str]:
    return st.sampled_from([True] * times + [False]).flatmap(lambda is_good: good if is_good else odd)


json_quantities = _usually(
    st.one_of(
        st.integers(0, 10**6).map(str),
        decimals(1000, 12).map(lambda value: format(value, "f")),
        near_numbers.filter(NUMBER.fullmatch),
        json_strings(near_numbers),
        odd_json,
    ),
    st.one_of(broken_json, near_numbers),
)
json_texts = _usually(
    st.one_of(json_strings(good_texts), json_strings(good_texts), json_strings(odd_texts), odd_json), broken_json
)
json_dimensions = _usually(json_strings(good_texts), json_texts, 7)

_whitespace = _usually(
    st.sampled_from(["", "", "", "", " ", "\t", "\r", "\n", " \r\n"]), st.sampled_from(["\x0c", "\u00a0"]), 40
)
_members = {
    "specversion": _usually(st.just('"1.0"'), json_texts),
    "id": _usually(json_strings(st.text("abcü-0123", min_size=1, max_size=8)), json_texts),
    "source": _usually(json_strings(st.sampled_from(["/s", "urn:x", "//h/%20"])), json_strings(near_uris)),
    "type": _usually(st.sampled_from(['"api"', '"llm"', '"call"', '"\\u0061pi"']), json_texts),
    "time": _usually(
        json_strings(
            st.sampled_from(["2026-10-01T12:30:00Z", "2026-10-01t12:30:00.123456789+02:00", "2026-09-30T23:59:59z"])
        ),
        json_strings(near_times),
    ),
    "subject": _usually(json_strings(st.sampled_from(["acme", "user:1", "größe"])), json_texts),
}
_options = {
    "tenantid": _usually(st.sampled_from(['"acme"', '""', "null", '"default"']), json_texts, 4),
    "datacontenttype": _usually(st.sampled_from(['"application/json"', '"Text/JSON; x"', "null"]), json_texts, 4),
    "dataschema": _usually(st.sampled_from(['"urn:x"', "null"]), json_strings(near_uris), 4),
    "traceparent": _usually(st.sampled_from(['"00-ab"', '""', "null", "true", "7"]), json_texts, 4),
    "data_base64": _usually(st.just("null"), st.sampled_from(['""', '"e30="']), 4),
    "Upper": _usually(st.just("null"), st.just("1"), 4),
    "größe": _usually(st.just("null"), json_texts, 4),
    "": _usually(st.just("null"), json_texts, 4),
}
# The properties that the tests' event types have, and some that no meter reads.
_properties = {
    "amount": _usually(st.sampled_from(["1", "2.5", '"7"', "1e2", "0.10"]), json_quantities, 3),
    "usage": _usually(
        st.one_of(
            json_quantities.map('{{"tokens":{}}}'.format),
            json_quantities.map('{{ "tokens" :{} ,"x":0}}'.format),
            st.just('{"tokens":5}'),
        ),
        odd_json,
    ),
    "user": json_dimensions,
    "region": json_dimensions,
    "labels": _usually(json_dimensions.map('{{"model":{}}}'.format), odd_json),
    "extra": json_texts,
}


@st.composite
def _object(draw: st.DrawFn, members: list[tuple[str, str]]) -> str:
    space = draw(_whitespace)
    keys = [(json.dumps(name, ensure_ascii=False), value) for name, value in members]
    if keys and draw(st.sampled_from([False] * 15 + [True])):
        name, _ = draw(st.sampled_from(keys))  # of a key that stands twice the last counts
        keys.insert(draw(st.integers(0, len(keys))), (name, draw(odd_json)))
    if draw(st.sampled_from([False] * 7 + [True])):
        keys = draw(st.permutations(keys))
    return "{" + space + ",".join(f"{name}{space}:{space}{value}" for name, value in keys) + space + "}"


@st.composite
def event_texts(draw: st.DrawFn) -> bytes:
    often, seldom = st.sampled_from([True] * 60 + [False]), st.sampled_from([False] * 7 + [True])
    members = [(name, draw(value)) for name, value in _members.items() if draw(often)]
    members += [(name, draw(value)) for name, value in _options.items() if draw(seldom)]
    properties = [(name, draw(value)) for name, value in _properties.items() if draw(often)]
    data = draw(_usually(_object(properties), odd_json, 30))
    text = draw(_object([*members, ("data", data)]))
    around = [*[("", "")] * 30, (" ", " "), ("\n", "\r"), ("\ufeff", ""), ("", "}"), ("", "\x00")]
    before, after = draw(st.sampled_from(around))
    return (before + text + after).encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw: st.DrawFn, records: Strategy[bytes]) -> bytes:
    """Records with some of their bytes changed, left out or put in."""
    record = draw(records)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(record)))
        put_in = draw(
            st.one_of(st.binary(max_size=2), st.sampled_from([b'"', b"\\", b"\\u0000", b"{", b"}", b",", b"\xff"]))
        )
        record = record[:at] + put_in + record[at + draw(st.integers(0, 3)) :]
    return record


event_records = st.one_of(event_texts(), event_texts(), event_texts(), damaged(event_texts()))

# --- Expressions ----------------------------------------------------------------------------------------

EXPRESSION_PATHS = ("a", "b", "c.d")

_literals = st.one_of(
    st.sampled_from(
        ["0", "1", "60", "0.029", "0.30", "1000000", "9" * 20, "0.000000000000000001", "9223372036854775807"]
    ),
    decimals(1000, 18).map(lambda number: format(number, "f")),
).map(lambda text: Literal(Decimal(text)))
_leaves = st.one_of(st.sampled_from(EXPRESSION_PATHS).map(Property), _literals)


def _operations(below: Strategy[Any]) -> Strategy[Any]:
    steps = _literals.filter(lambda literal: bool(literal.number))
    return st.one_of(
        st.builds(Operation, st.sampled_from("+-*"), st.tuples(below, below)),
        st.builds(Operation, st.sampled_from(["min", "max"]), st.lists(below, min_size=2, max_size=3).map(tuple)),
        st.builds(Operation, st.sampled_from(STEPPED), st.tuples(below, steps)),
    )


expression_trees: Strategy[Node] = st.recursive(_leaves, _operations, max_leaves=8).filter(
    lambda tree: any(isinstance(node, Property) for node in walk(tree))
)


def written(tree: Node) -> str:
    """The text of a tree."""
    if isinstance(tree, Literal):
        return format(tree.number, "f")
    if isinstance(tree, Property):
        return tree.path
    if tree.name in ("+", "-", "*"):
        return f"({f' {tree.name} '.join(map(written, tree.operands))})"
    return f"{tree.name}({', '.join(map(written, tree.operands))})"


expressions = expression_trees.map(written)
