"""Small and nasty worlds to bill: a catalog and the records that arrive, all from one seed."""

from __future__ import annotations

import base64
import json
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from pathlib import Path
from random import Random
from typing import Any

from .auditor import Catalog

ZONES = (
    "UTC",
    "Asia/Kolkata",
    "America/New_York",
    "Australia/Lord_Howe",  # its clock changes by half an hour
    "Europe/Berlin",
    "Asia/Kathmandu",
    "America/Sao_Paulo",  # until 2019 without midnight when summer came
    "Africa/Cairo",  # the same, and two midnights in autumn
    "America/Havana",
    "Pacific/Chatham",
    "Pacific/Kiritimati",
    "America/St_Johns",
)

# Days around which a world lives: ends of months, leap days, clock changes.
DAYS = (
    "2026-10-01",
    "2026-03-08",
    "2026-03-29",
    "2026-11-01",
    "2026-10-04",
    "2026-04-05",
    "2024-02-29",
    "2025-03-01",
    "2018-11-04",
    "2024-04-26",
    "2025-10-31",
    "2025-12-31",
    "2000-02-29",
)

EVENT_TYPES = ("api.request", "com.example.llm/tokens", "storage.größe")
AGGREGATIONS = ("sum", "count", "min", "max", "distinct", "latest")
VALUE_PATHS = ("amount", "usage.tokens", "a.b.c.größe", "total")
DISTINCT_PATHS = ("user", "usage.client.id", "amount")
# No path is the beginning of another one: such a dimension would always be an object.
DIMENSION_PATHS = ("region", "labels.model", "labels.nested.tier", "flag", "größe", "usage.tokens")
DIMENSION_VALUES = (
    "eu",
    "us-east",
    "EU",
    "",
    "größer",
    "🦜 x",
    'quo"te\\n',
    "1",
    "\u0000",
    "a\tb\nc",
    "\uffff",
    "\u00e9",
    "e\u0301",
    True,
    False,
    None,
    Decimal("1"),
    Decimal("1.5"),
    Decimal("-0.25"),
    Decimal("1E+20"),
    Decimal(0),
)
MULTIPLES = ("1", "1", "1", "2", "0.5", "10", "3")


@dataclass(frozen=True)
class World:
    catalog: Catalog
    records: list[bytes]  # in the order of arrival; none holds a line feed, so that a file can hold them
    received: datetime
    horizon: timedelta | None


def generate(seed: int, events: int = 200, bad: float = 0.15, conflicts: bool = True) -> World:
    """A catalog and `events` records for it.

    Args:
      seed: The same seed gives the same world.
      events: Number of records, duplicates and bad ones included.
      bad: Share of records that should be rejected for what they are (conflicts aside).
      conflicts: Whether one identity may come with two contents. Without them the order of
        arrival changes nothing.
    """
    rng = Random(seed)
    day = datetime.fromisoformat(rng.choice(DAYS)).replace(tzinfo=UTC)
    catalog = make_catalog(rng, day)
    received = day + timedelta(days=rng.randint(4, 12), seconds=rng.randint(0, 86399))
    horizon = rng.choice([None, timedelta(days=35), timedelta(days=35)])
    events_by_arrival = Events(rng, catalog, day, received, horizon)
    records = [events_by_arrival.next_record(bad, conflicts) for _ in range(events)]
    if rng.random() < 0.5:
        rng.shuffle(records)
    return World(catalog, records, received, horizon)


# The catalog


def make_catalog(rng: Random, day: datetime) -> Catalog:
    """Every scalar is a string, as in `auditor.read_catalog`."""
    meters = make_meters(rng)
    plans, rate_cards = make_plans(rng, meters, day)
    accounts = make_accounts(rng)
    return {
        "meters": meters,
        "rate_cards": rate_cards,
        "plans": plans,
        "accounts": accounts,
        "subscriptions": make_subscriptions(rng, accounts, plans, day),
    }


def make_meters(rng: Random) -> list[dict[str, Any]]:
    types = rng.sample(EVENT_TYPES, rng.randint(1, 3))
    meters = []
    for number, aggregation in enumerate([*AGGREGATIONS, *rng.choices(AGGREGATIONS, k=rng.randint(0, 2))]):
        meter: dict[str, Any] = {
            "id": f"{aggregation}_{number}",
            "event_type": types[number] if number < len(types) else rng.choice(types),
            "aggregation": aggregation,
            "unit": rng.choice(["call", "token", "GB·h"]),
        }
        if aggregation != "count":
            meter["value"] = rng.choice(DISTINCT_PATHS if aggregation == "distinct" else VALUE_PATHS)
        dimensions = rng.sample(DIMENSION_PATHS, rng.choice([0, 0, 1, 1, 2]))
        if dimensions:
            meter["dimensions"] = dimensions
        meters.append(meter)
    rng.shuffle(meters)
    return meters


def make_plans(
    rng: Random, meters: list[dict[str, Any]], day: datetime
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    plans: list[dict[str, Any]] = []
    rate_cards: list[dict[str, Any]] = []
    for number in range(rng.randint(1, 3)):
        sold = rng.sample(meters, rng.randint(max(1, len(meters) - 2), len(meters)))  # the rest is unpriced
        charges = [{"id": f"charge-{number}-{meter['id']}", "meter": meter["id"]} for meter in sold]
        versions = [make_version(rng, "v1", day - timedelta(days=rng.choice([400, 400, 400, 2])), charges)]
        if rng.random() < 0.6:
            later = max(near(rng, day, days=3), day - timedelta(days=1))
            versions.append(make_version(rng, "v2", later, charges))
            if len(charges) > 1 and rng.random() < 0.3:  # one version does not price everything
                del rng.choice(versions)["prices"][rng.choice(charges)["id"]]
        if rng.random() < 0.5:
            fee = {"id": f"fee-{number}"}
            charges = [*charges, fee]
            for version in versions:
                version["prices"][fee["id"]] = {"model": "fixed", "amount": price_text(rng)}
        rate_cards.append({"id": f"card-{number}", "currency": rng.choice(["EUR", "JPY"]), "versions": versions})
        plans.append({"id": f"plan-{number}", "rate_card": f"card-{number}", "charges": charges})
    rest = [meter for meter in meters if not any(charge.get("meter") == meter["id"] for charge in plans[0]["charges"])]
    if rest and rng.random() < 0.7:
        charges = [{"id": f"extra-{meter['id']}", "meter": meter["id"]} for meter in rest]
        versions = [make_version(rng, "v1", day - timedelta(days=2), charges)]
        rate_cards.append({"id": "card-extra", "currency": rate_cards[0]["currency"], "versions": versions})
        plans.append({"id": "plan-extra", "rate_card": "card-extra", "charges": charges})
    return plans, rate_cards


def make_version(rng: Random, name: str, effective_from: datetime, charges: list[dict[str, str]]) -> dict[str, Any]:
    prices = {charge["id"]: make_price(rng) for charge in charges}
    return {"version": name, "effective_from": instant_text(rng, effective_from), "prices": prices}


def make_price(rng: Random) -> dict[str, Any]:
    model = rng.choice(["per_unit", "graduated", "graduated", "volume", "volume", "package"])
    price: dict[str, Any] = {"model": model}
    if model == "package":
        price["package_price"] = price_text(rng)
        price["package_size"] = rng.choice(["1", "3", "10", "0.7", "0.001", "1000"])
        if rng.random() < 0.5:
            price["round"] = rng.choice(["up", "down"])
        if rng.random() < 0.5:
            price["free_units"] = rng.choice(["0", "1", "7.5", "20"])
        if rng.random() < 0.3:
            price["minimum_packages"] = str(rng.choice([0, 1, 5]))
        return price
    if model == "per_unit":
        price["unit_price"] = price_text(rng)
    else:
        price["tiers"] = make_tiers(rng)
        if rng.random() < 0.4:
            price["first_tier_flat_at_zero"] = rng.choice(["true", "true", "false"])
    if rng.random() < 0.4:
        price["per"] = rng.choice(["1000", "3", "7", "1000000", "0.001"])
    return price


def make_tiers(rng: Random) -> list[dict[str, str]]:
    bounds = sorted(rng.sample([1, 2, 3, 5, 8, 10, 20, 50, 100], rng.randint(0, 3)))
    tiers = []
    for bound in [*bounds, None]:
        tier = {}
        if bound is not None:
            tier["up_to"] = str(bound) + rng.choice(["", "", "", ".000000000001", ".5"])
        if rng.random() < 0.9:
            tier["unit_price"] = price_text(rng)
        if rng.random() < 0.4 or not tier:
            tier["flat_fee"] = price_text(rng)
        tiers.append(tier)
    return tiers


def price_text(rng: Random) -> str:
    places = rng.choice([0, 1, 2, 2, 6, 18])
    return format(Decimal(rng.randint(0, 10 ** min(places + 2, 18))).scaleb(-places), "f")


def make_accounts(rng: Random) -> list[dict[str, Any]]:
    tenants = ["default", "acme"]
    accounts: list[dict[str, Any]] = []
    for number in range(rng.randint(2, 6)):
        tenant = tenants[number] if number < 2 else rng.choice(tenants)
        account: dict[str, Any] = {"id": rng.choice(["org", "Team", "p.x", "a-b", "0"]) + f"_{number}"}
        above = [other for other in accounts if other.get("tenant", "default") == tenant]
        if above and rng.random() < 0.8:
            account["parent"] = rng.choice(above)["id"]
            if rng.random() < 0.4:
                account["billed"] = rng.choice(["true", "true", "false"])
        if tenant != "default" or rng.random() < 0.3:
            account["tenant"] = tenant
        subjects = [f"{prefix}{number}" for prefix in ("user:", "ключ-", "🔑 ") if rng.random() < 0.4]
        if number < 2 and rng.random() < 0.5:
            subjects.append("shared")  # one subject in two tenants: two accounts
        if subjects:
            account["subjects"] = subjects
        accounts.append(account)
    return accounts


def make_subscriptions(
    rng: Random, accounts: list[dict[str, Any]], plans: list[dict[str, Any]], day: datetime
) -> list[dict[str, Any]]:
    """Gaps, ends and changes of plan, zone and anchor. Only plan-extra stands beside another plan, plan-0."""
    subscriptions = []
    side_by_side = any(plan["id"] == "plan-extra" for plan in plans)
    plans = [plan for plan in plans if plan["id"] != "plan-extra"]
    for account in accounts:
        if rng.random() < (0.4 if "parent" in account else 0.1):
            continue
        start = day - timedelta(days=rng.choice([500, 500, 40, 1]), seconds=rng.randint(0, 86400))
        count = rng.choice([1, 1, 2, 3])
        for number in range(count):
            subscription = {
                "id": f"sub-{account['id']}-{number}",
                "account": account["id"],
                "plan": rng.choice(plans)["id"],
                "start": instant_text(rng, start),
            }
            end = max(near(rng, day, days=3), start + timedelta(seconds=1))
            if number < count - 1 or rng.random() < 0.25:
                subscription["end"] = instant_text(rng, end)
            zone = rng.choice(ZONES)
            if zone != "UTC" or rng.random() < 0.5:
                subscription["time_zone"] = zone
            if rng.random() < 0.7:
                subscription["anchor_day"] = str(rng.choice([1, 2, day.day, day.day, 15, 28, 29, 30, 31]))
            subscriptions.append(subscription)
            start = end + timedelta(seconds=rng.choice([0, 0, 1, 3600, 86400]))
        own = [subscription["plan"] for subscription in subscriptions if subscription["account"] == account["id"]]
        if side_by_side and set(own) == {"plan-0"}:
            subscriptions.append(
                {
                    "id": f"sub-{account['id']}-extra",
                    "account": account["id"],
                    "plan": "plan-extra",
                    "start": instant_text(rng, day - timedelta(days=rng.choice([300, 1]))),
                    "time_zone": rng.choice(ZONES),
                }
            )
    return subscriptions


def near(rng: Random, day: datetime, days: int) -> datetime:
    moment = day + timedelta(seconds=rng.randint(-86400 * days, 86400 * days))
    return rng.choice(
        [moment, moment.replace(second=0, minute=0), moment.replace(second=0, minute=rng.choice([15, 30, 45]))]
    )


def instant_text(rng: Random, moment: datetime) -> str:
    zone = zoneinfo.ZoneInfo(rng.choice(["UTC", "UTC", *ZONES]))
    text = moment.astimezone(zone).isoformat()
    return text.replace("+00:00", "Z")


BARE = {
    "model", "round", "aggregation", "start", "end", "effective_from", "anchor_day",
    "minimum_packages", "free_events", "interval_seconds", "billed", "first_tier_flat_at_zero", "first_step_at_zero",
    "contract_month", "days",
}  # fmt: skip


def catalog_yaml(catalog: Catalog) -> dict[str, str]:
    """The text of the catalog's files, by name. Prices and quantities are quoted."""
    return {f"{kind}.yaml": f"{kind}:{_yaml(entries, 1)}\n" for kind, entries in catalog.items()}


def _yaml(value: Any, depth: int, key: str = "") -> str:
    """`value` as it stands behind its key's colon."""
    indent = "\n" + "  " * depth
    if isinstance(value, dict):
        return "".join(f"{indent}{name}:{_yaml(inner, depth + 1, name)}" for name, inner in value.items())
    if isinstance(value, list):
        if not value:
            return " []"
        return "".join(f"{indent}- {_yaml(inner, depth + 1, key).lstrip()}" for inner in value)
    return f" {value}" if key in BARE else " " + json.dumps(value, ensure_ascii=False)


def write_catalog(catalog: Catalog, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in catalog_yaml(catalog).items():
        (folder / name).write_text(text, encoding="utf-8")


# Records. An event is a dict as JSON has it; a quantity is a Decimal, a JsonText is written as it is.


class JsonText(str):
    """JSON, already written."""


Draft = dict[str, Any]


class Events:
    """The records of one world, one after the other."""

    def __init__(
        self, rng: Random, catalog: Catalog, day: datetime, received: datetime, horizon: timedelta | None
    ) -> None:
        self.rng = rng
        self.catalog = catalog
        self.day = day
        self.received = received
        self.horizon = horizon
        self.dimension_values = rng.sample(DIMENSION_VALUES, 4)  # few, so that keys have many cells
        self.moments = interesting_moments(catalog, day)
        self.number = 0
        self.past: list[tuple[Draft, bytes]] = []

    def next_record(self, bad: float, conflicts: bool) -> bytes:
        rng = self.rng
        if rng.random() < bad:
            reason = rng.choices(list(BAD), [0.05 if name == "too_large" else 1 for name in BAD])[0]
            return self.bad_record(reason) or b"["
        if self.past and rng.random() < 0.2:
            draft, record = rng.choice(self.past)
            chance = rng.random()
            if chance < 0.3:
                return record
            if chance < 0.7 or not conflicts:
                return encode(rng, self.respelt(draft))
            draft = self.changed(draft)
        else:
            draft = self.fresh()
        record = encode(rng, self.dressed(draft))
        self.past.append((draft, record))
        return record

    def fresh(self) -> Draft:
        """A good event, in plain spelling: its time is a datetime, its numbers are Decimals."""
        rng = self.rng
        self.number += 1
        account = rng.choice(self.catalog["accounts"])
        identity = f"{rng.choice(['e', '00', 'ü', '🦜'])}-{self.number}"
        draft: Draft = {
            "specversion": "1.0",
            "id": identity,
            "source": rng.choice(["/edge", "urn:x", "https://example.com/a?b#c"]),
            "type": rng.choice(self.catalog["meters"])["event_type"],
            "time": self.moment(),
            "subject": rng.choice([account["id"], *account.get("subjects", [])]),
            "data": {},
        }
        tenant = account.get("tenant", "default")
        if tenant != "default":
            draft["tenantid"] = tenant
        for meter in self.meters_of(draft):
            if "value" in meter:
                put(draft["data"], meter["value"], self.quantity())
        for meter in self.meters_of(draft):
            value_paths = [other.get("value") for other in self.meters_of(draft)]
            if meter["aggregation"] == "distinct" and not any(
                other.get("value") == meter["value"]
                for other in self.meters_of(draft)
                if other["aggregation"] != "distinct"
            ):
                put(draft["data"], meter["value"], rng.choice(["x", "y", "ж", "5", Decimal(5), Decimal("1.5")]))
            for path in meter.get("dimensions", []):
                value = rng.choice(self.dimension_values)
                if path not in value_paths and (value is not None or rng.random() < 0.5):
                    put(draft["data"], path, value)
        return draft

    def meters_of(self, draft: Draft) -> list[dict[str, Any]]:
        return [meter for meter in self.catalog["meters"] if meter["event_type"] == draft["type"]]

    def moment(self) -> datetime:
        """Mostly at, just before or soon after something that matters."""
        rng = self.rng
        latest = self.received + timedelta(hours=1)
        earliest = self.received - (self.horizon or timedelta(days=60))
        while True:
            moment = rng.choice(self.moments)
            for unit in rng.choice(
                [["microseconds"], ["seconds"], ["minutes"], ["minutes", "microseconds"], ["hours"], ["days"]]
            ):
                moment += timedelta(**{unit: rng.choice([-3, -2, -1, -1, 0, 0, 0, 1, 1, 2, 30])})
            if earliest <= moment <= latest:
                return moment

    def quantity(self) -> Decimal:
        """Amounts stay below 10^20 for some ten thousand events: prices are below 100 for 0.001 units."""
        rng = self.rng
        small = Decimal(rng.randint(0, 12))
        return rng.choice(
            [
                small,
                small,
                small,
                small / 10,
                small / 4,
                Decimal(rng.randint(0, 10**12)).scaleb(-12),
                Decimal(rng.choice(["0", "0.000000000001", "99999999999.999999999999", "1E+6", "20"])),
            ]
        )

    def dressed(self, draft: Draft) -> Draft:
        """The same event with what does not matter, its time and numbers spelt somehow."""
        rng = self.rng
        event = self.respelt(draft)
        if rng.random() < 0.1:
            event["datacontenttype"] = rng.choice(
                ["application/json", "Text/JSON; charset=utf-8", "application/vnd.x+json", "a/b+json;"]
            )
        if rng.random() < 0.1:
            event["dataschema"] = rng.choice(["https://example.com/s/1?x", "urn:schema:1", "a:", "x://[::1]:80/"])
        return event

    def respelt(self, draft: Draft) -> Draft:
        rng = self.rng
        event = {**draft, "time": spell_time(rng, draft["time"])}
        event["data"] = self.spelt_data(draft)
        if rng.random() < 0.3:
            names = ["traceparent", "x1", "comment", "n"]
            values = ["00-abc", "", "ünï", True, JsonText("-2147483648"), JsonText("-0"), None, "🦜" * 1024]
            event[rng.choice(names)] = rng.choice(values)
        if rng.random() < 0.2:
            event["data"][rng.choice(["extra", "Größe 2", "", "$x"])] = rng.choice(
                [
                    None, [], [1, [{}]], JsonText("1e999999"), JsonText("1" * 4000), JsonText(nested(62)), "\u0001",
                    JsonText('"\\ud800"'), {"amount": "x"},
                ]
            )  # fmt: skip
        if "tenantid" not in event and rng.random() < 0.2:
            event["tenantid"] = rng.choice(["default", "", None])
        if rng.random() < 0.05:
            event["data_base64"] = None
        return event

    def spelt_data(self, draft: Draft) -> Draft:
        """A copy whose quantities may be strings; where a meter tells strings apart they stay numbers."""
        text_paths = {
            path
            for meter in self.meters_of(draft)
            for path in [*meter.get("dimensions", []), meter["aggregation"] == "distinct" and meter["value"]]
        }

        def spelt(value: Any, path: str) -> Any:
            if isinstance(value, dict):
                return {key: spelt(inner, f"{path}.{key}" if path else key) for key, inner in value.items()}
            if isinstance(value, Decimal):
                text = spell_number(self.rng, value)
                return text if path not in text_paths and self.rng.random() < 0.2 else JsonText(text)
            return value

        result: Draft = spelt(draft["data"], "")
        return result

    def changed(self, draft: Draft) -> Draft:
        """The same id with another content, or with only another tenant, source or day."""
        rng = self.rng
        other = self.fresh()
        changed = {**draft, "data": json_copy(draft["data"])}
        what = rng.choice(["data", "data", "time", "day", "subject", "source", "type"])
        if what == "time":
            changed["time"] = draft["time"] + timedelta(microseconds=rng.choice([-1, 1, 1000000]))
        elif what == "day":
            changed["time"] = self.moment()
        elif what == "source":
            changed["source"] = rng.choice(["/other", draft["source"] + "x"])
        elif what == "subject":
            changed["subject"] = other["subject"]
            changed.pop("tenantid", None)
            if "tenantid" in other:
                changed["tenantid"] = other["tenantid"]
        elif what == "type":
            changed = {**other, "id": draft["id"], "source": draft["source"], "time": draft["time"]}
        else:
            while other["type"] != draft["type"]:
                other = self.fresh()
            changed["data"] = other["data"]
        return changed

    def bad_record(self, reason: str) -> bytes | None:
        """A record that is good but for what `reason` names; None if this world can have no such."""
        for _ in range(30):
            draft = self.fresh()
            event = {**draft, "time": spell_time(self.rng, draft["time"]), "data": self.spelt_data(draft)}
            record = BAD[reason](self, event)
            if record is not None:
                return record
        return None


def interesting_moments(catalog: Catalog, day: datetime) -> list[datetime]:
    moments = [day, day + timedelta(hours=7, minutes=20), day.replace(day=1)]
    for card in catalog["rate_cards"]:
        moments += [datetime.fromisoformat(version["effective_from"]) for version in card["versions"]]
    for subscription in catalog["subscriptions"]:
        moments += [datetime.fromisoformat(subscription[name]) for name in ("start", "end") if name in subscription]
        zone = zoneinfo.ZoneInfo(subscription.get("time_zone", "UTC"))
        moments += [
            (day + timedelta(days=days)).replace(tzinfo=zone)
            for days in range(-32, 10)
            if (day + timedelta(days=days)).day == int(subscription.get("anchor_day", 1))
        ]
    moments = [moment.astimezone(UTC) for moment in moments]
    close = [moment for moment in moments if abs(moment - day) < timedelta(days=4)]
    return [*moments, *close, *close, *close]


def put(data: Draft, path: str, value: Any) -> None:
    *folders, name = path.split(".")
    for folder in folders:
        data = data.setdefault(folder, {})
    data[name] = value


def json_copy(value: Any) -> Any:
    return {key: json_copy(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def spell_time(rng: Random, moment: datetime) -> str:
    offset = rng.choice([0, 0, 0, 330, -300, 630, -1439, 1439, 60])
    local = moment.astimezone(UTC).replace(tzinfo=None) + timedelta(minutes=offset)
    text = local.isoformat(rng.choice("TTTt"), "seconds")
    if local.microsecond or rng.random() < 0.3:
        digits = f"{local.microsecond:06}"
        text += "." + rng.choice([digits, digits + "9", digits + "999999", digits.rstrip("0") or "0"])
    sign = rng.choice("+-") if offset == 0 else "+" if offset > 0 else "-"
    spelt_offset = f"{sign}{abs(offset) // 60:02}:{abs(offset) % 60:02}"
    return text + (rng.choice(["Z", "Z", "z", spelt_offset]) if offset == 0 else spelt_offset)


def spell_number(rng: Random, value: Decimal) -> str:
    """The same number in one of JSON's many spellings."""
    plain = format(value, "f")
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".")
    with_point = plain if "." in plain else plain + ".0"
    power = rng.choice([-30, -3, -1, 0, 1, 2, 12, 40])
    shifted = format(value.scaleb(-power, Context(prec=300)), "f")
    return rng.choice(
        [
            plain,
            plain,
            with_point,
            with_point + "0" * rng.choice([1, 5, 60]),
            f"{shifted}{rng.choice('eE')}{rng.choice(['', '+', '-', '+00']) if power == 0 else ''}{power}",
            "-0" if value == 0 else plain,
            "0e999999999999" if value == 0 else plain,
        ]
    )


def encode(rng: Random, event: Draft) -> bytes:
    """JSON of many styles, always on one line."""
    items = list(event.items())
    if rng.random() < 0.5:
        rng.shuffle(items)
    if rng.random() < 0.05:  # of a key that comes twice the last counts
        items.insert(0, (items[-1][0], rng.choice([None, "x", 1, {}])))
    space = rng.choice(["", "", " ", " \t", "\r "])
    text = _json(rng, dict(items) if len(dict(items)) == len(items) else items, space)
    return (rng.choice(["", "", " ", "\t"]) + text + rng.choice(["", "", " "])).encode("utf-8")


def _json(rng: Random, value: Any, space: str) -> str:
    if isinstance(value, JsonText):
        return str(value)
    if isinstance(value, str):
        return _json_string(rng, value)
    if isinstance(value, Decimal):
        return spell_number(rng, value)
    pairs = list(value.items()) if isinstance(value, dict) else value
    if isinstance(value, dict) or (
        isinstance(value, list) and value and all(isinstance(item, tuple) for item in value)
    ):
        inside = [f"{_json_string(rng, key)}{space}:{space}{_json(rng, inner, space)}" for key, inner in pairs]
        return "{" + space + f"{space},{space}".join(inside) + space + "}"
    if isinstance(value, list):
        return "[" + f"{space},".join(_json(rng, inner, space) for inner in value) + "]"
    return json.dumps(value)


def _json_string(rng: Random, text: str) -> str:
    style = rng.random()
    if style < 0.7:
        return json.dumps(text, ensure_ascii=False)
    if style < 0.9:
        return json.dumps(text)
    units = text.encode("utf-16-be", "surrogatepass")
    hexes = [units[at : at + 2].hex() for at in range(0, len(units), 2)]
    return '"' + "".join(rng.choice(["\\u" + one, "\\u" + one.upper()]) for one in hexes) + '"'


# What can be wrong with a record, by the reason it must be rejected for.


def _with(**attributes: list[Any]) -> Callable[[Events, Draft], bytes | None]:
    """One of the attributes becomes one of its bad values."""

    def change(world: Events, event: Draft) -> bytes | None:
        name = world.rng.choice(list(attributes))
        return encode_once(world.rng, {**event, name: world.rng.choice(attributes[name])})

    return change


def encode_once(rng: Random, event: Draft) -> bytes:
    return _json(rng, event, rng.choice(["", " "])).encode("utf-8")


def _too_large(world: Events, event: Draft) -> bytes:
    record = encode_once(world.rng, event)
    return world.rng.choice([record + b" " * (1_048_577 - len(record)), b"x" * 1_048_577, record.ljust(1_100_000)])


def _malformed(world: Events, event: Draft) -> bytes:
    rng = world.rng
    record = encode_once(rng, event)

    def in_data(text: str) -> bytes:
        return encode_once(rng, {**event, "data": {**event["data"], "extra": JsonText(text)}})

    spoilt: list[Callable[[], bytes]] = [
        lambda: record[: rng.randint(1, len(record) - 1)],
        lambda: b"\xef\xbb\xbf" + record,
        lambda: record + rng.choice([b"}", b",", b"\x00", b"\x0c", b"{}", b"\xc2\xa0", b"\xff"]),
        lambda: b"[" + record + b"]",
        lambda: rng.choice([b"null", b"5", b'"x"', b"true", b"NaN", b"{", b"'a'", b"[]", b"{]"]),
        lambda: in_data('"here"').replace(b"here", rng.choice([b"\xff", b"\xed\xa0\x80", b"\xc0\x80"])),
        lambda: in_data(rng.choice(["NaN", "Infinity", "-Infinity", "nan", "True", "nul", "undefined"])),
        lambda: in_data(rng.choice(["01", "+1", ".5", "1.", "1e", "-", "--1", "0x1", "1_0", "１", "1e+"])),
        lambda: in_data(rng.choice(['"\\x"', '"\\u12"', '"\\u12g4"', "'x'", '"\t"', '"\x00"', '"\x1f"', '"'])),
        lambda: in_data(rng.choice(["[1,]", '{"a":1,}', "{a:1}", '{"a"}', "[1 2]", "[,]", "/**/1", "{1:2}"])),
        lambda: in_data(nested(63)),
        lambda: in_data(nested(5000)),
        lambda: in_data(rng.choice(["1" * 4001, "-" + "1" * 4000, "0." + "0" * 3999, "1e" + "0" * 3999])),
    ]
    return rng.choice(spoilt)()


def nested(depth: int) -> str:
    """Objects and arrays, `depth` levels of them; two more levels lie around it in a record."""
    return '{"a":' * (depth // 2) + "[" * (depth - depth // 2) + "]" * (depth - depth // 2) + "}" * (depth // 2)


def _missing_field(world: Events, event: Draft) -> bytes:
    rng = world.rng
    name = rng.choice(["specversion", "id", "source", "type", "time", "subject", "data"])
    event = {**event, name: rng.choice([None, ""])}
    if rng.random() < 0.5:
        del event[name]
    if rng.random() < 0.3:  # looked for before anything else that is wrong with an attribute
        event["Bad"] = event["type" if name != "type" else "id"] = JsonText("[]")
    return encode_once(rng, event)


CONTROL = ["\u0000", "a\u001f", "\u007f", "\u009f", "\u0085", "\ufdd0", "\ufdef", "\uffff", "\U0010fffe"]
BAD_STRINGS = [JsonText('"\\ud800"'), JsonText('"\\udc00\\ud800"'), *CONTROL, "x" * 1025, "🦜" * 1025]
ODD_NAMES: dict[str, list[Any]] = {
    name: ["x"] for name in ("under_score", "", "ü", "a" * 51, "a-b", "a.b", "a٣", "a\n")
}
NO_STRINGS = [True, JsonText("1"), [], {}, JsonText("1.0")]

_bad_attribute = _with(
    specversion=["1", "0.3", "1.0 ", "1.00", *NO_STRINGS],
    id=["x" * 513, "🦜" * 513, *BAD_STRINGS, *NO_STRINGS],
    source=[
        "a b", "ü", "%", "%zz", "a:b:c d", ":", "1:a", "//[::1", "//[::1]x", "//[1:2:3:4:5:6:7:8:9]", "//h:1a/",
        "<x>", "a\\b", "#a#b", "//[fe80::1%25eth]", "//u@v@w", "`", "^", "{", "[", *BAD_STRINGS, *NO_STRINGS,
    ],
    type=[*BAD_STRINGS, *NO_STRINGS],
    subject=[*BAD_STRINGS, *NO_STRINGS],
    time=["2" * 1025, "\u0000", *NO_STRINGS],
    datacontenttype=["", "text/plain", "json", "application/jsonx", "application/", "/json", "a b/json", "a/+json",
                     "application/json/x", "application/xml;a=/json", "ü/json", *NO_STRINGS],
    dataschema=["", "/relative", "a/b", "x:a#fragment", "1x:a", "x:a b", "x:%1", *NO_STRINGS],
    data=[[], "x", JsonText("1"), True, [{}]],
    data_base64=[base64.b64encode(b"{}").decode(), "", {}],
    tenantid=[JsonText("5"), True, "x" * 101, "\u0000", []],
    Upper=["x"],
    ext=[[], {}, JsonText("2147483648"), JsonText("-2147483649"), JsonText("1.0"), JsonText("1e2"), *BAD_STRINGS],
    **ODD_NAMES,
)  # fmt: skip

_bad_time = _with(
    time=[
        "x", "2026-10-01", "2026-10-01T00:00:00", "2026-10-01 00:00:00Z", "2026-10-01T00:00Z", "20261001T000000Z",
        "2026-02-29T00:00:00Z", "2026-13-01T00:00:00Z", "2026-00-01T00:00:00Z", "2026-10-00T00:00:00Z",
        "2026-10-01T24:00:00Z", "2026-10-01T23:60:00Z", "2016-12-31T23:59:60Z", "2026-10-01T00:00:61Z",
        "2026-10-01T00:00:00+24:00", "2026-10-01T00:00:00+00:60", "2026-10-01T00:00:00+0000",
        "2026-10-01T00:00:00+1:00", "2026-10-01T00:00:00.Z", "2026-10-01T00:00:00,5Z", "+2026-10-01T00:00:00Z",
        "1969-12-31T23:59:59.9999999Z", "1970-01-01T00:00:00+00:01", "2200-01-01T00:00:00Z", "0000-01-01T00:00:00Z",
        "2199-12-31T23:59:59.999999-00:01", "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00",
        "٢٠٢٦-10-01T00:00:00Z", "2026-10-01T00:00:00Z ", " 2026-10-01T00:00:00Z", "2026-10-01T00:00:00ZZ",
        "2026-10-01T00:00:00.1234567890", "2026-10-01T00:00:00 Z", "2026-W40-4T00:00:00Z", "1790812800",
    ]
)  # fmt: skip


def _too_old(world: Events, event: Draft) -> bytes | None:
    if world.horizon is None:
        return None
    age = world.rng.choice([timedelta(microseconds=1), timedelta(days=1), timedelta(days=4000)])
    return encode_once(world.rng, {**event, "time": spell_time(world.rng, world.received - world.horizon - age)})


def _in_future(world: Events, event: Draft) -> bytes:
    ahead = timedelta(hours=1) + world.rng.choice([timedelta(microseconds=1), timedelta(days=400)])
    return encode_once(world.rng, {**event, "time": spell_time(world.rng, world.received + ahead)})


def _bad_quantity(world: Events, event: Draft) -> bytes | None:
    meters = [meter for meter in world.meters_of(event) if "value" in meter]
    if not meters:
        return None
    meter = world.rng.choice(meters)
    bad: list[Any] = [None, "", True, False, [], {}, [1], JsonText("1e-101"), JsonText("1e100"), JsonText("-1e9999")]
    if meter["aggregation"] == "distinct":
        bad += [JsonText('"\\ud800"'), JsonText("1" + "0" * 100)]
    else:
        bad += ["x", " 1", "1 ", "+1", "1.", ".5", "0x1", "NaN", "Infinity", "1e", "01", "1,5", "١", "-1", "-1e-12"]
        bad += ["1e20", "1e-13", "0.0000000000001", "1" * 21, "0." + "0" * 3999, "1e" + "9" * 30]
        bad += [JsonText(text) for text in ("-1", "-1e-12", "1e20", "1e-13", "100000000000000000000", "1e" + "9" * 30)]
    put(event["data"], meter["value"], world.rng.choice(bad))
    return encode_once(world.rng, event)


def _bad_dimension(world: Events, event: Draft) -> bytes | None:
    values = [meter.get("value") for meter in world.meters_of(event)]
    paths = [path for meter in world.meters_of(event) for path in meter.get("dimensions", [])]
    paths = [path for path in paths if path not in values]
    if not paths:
        return None
    bad = [[], {}, [1], {"a": 1}, "x" * 257, "🦜" * 257, JsonText("1e100"), JsonText("-1e100"), JsonText("1e-101")]
    bad.append(JsonText('"a\\udfff"'))
    put(event["data"], world.rng.choice(paths), world.rng.choice(bad))
    return encode_once(world.rng, event)


def _unknown_subject(world: Events, event: Draft) -> bytes | None:
    nobody = [event["subject"] + "x", " " + event["subject"], event["subject"].swapcase() + "-", "nobody"]
    change = world.rng.choice([{"subject": world.rng.choice(nobody)}, {"tenantid": "other"}, {"tenantid": "DEFAULT"}])
    return encode_once(world.rng, {**event, **change})


BAD: dict[str, Callable[[Events, Draft], bytes | None]] = {
    "too_large": _too_large,
    "malformed": _malformed,
    "missing_field": _missing_field,
    "bad_attribute": _bad_attribute,
    "bad_time": _bad_time,
    "too_old": _too_old,
    "in_future": _in_future,
    "unknown_type": _with(type=["unknown", "API.request", "api.request ", "x" * 1024]),
    "bad_quantity": _bad_quantity,
    "bad_dimension": _bad_dimension,
    "unknown_subject": _unknown_subject,
}
