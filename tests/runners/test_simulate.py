"""`meterline simulate`: what is shown, that nothing is stored, and what cannot be simulated is told."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from xml.etree import ElementTree

import pytest

from meterline.transforms import clickhouse
from tests.command import Command
from tests.runners.test_pricelists import EXAMPLES, FOLDER

CATALOG = """
meters:
  - {id: calls, event_type: call, aggregation: count, unit: call, dimensions: [region]}
  - {id: bytes, event_type: call, aggregation: sum, value: bytes, unit: byte}
rate_cards:
  - id: eur
    currency: EUR
    versions:
      - version: v1
        effective_from: 2026-01-01T00:00:00Z
        prices:
          calls: {model: per_unit, unit_price: "0.10"}
          fee: {model: fixed, amount: "5"}
  - id: usd
    currency: USD
    versions:
      - version: v1
        effective_from: 2026-01-01T00:00:00Z
        prices:
          calls: {model: per_unit, unit_price: "0.20"}
plans:
  - {id: eur, rate_card: eur, charges: [{id: calls, meter: calls, name: Calls}, {id: fee}]}
  - {id: usd, rate_card: usd, charges: [{id: calls, meter: calls, name: Calls}]}
accounts: [{id: one}, {id: two}, {id: idle}]
subscriptions:
  - {id: one, account: one, plan: eur, start: 2026-01-01T00:00:00Z}
  - {id: two, account: two, plan: usd, start: 2026-01-01T00:00:00Z}
"""


def event(id: int, subject: str, day: int = 5, **data: str) -> bytes:
    head = {"specversion": "1.0", "id": str(id), "source": "/x", "type": "call", "subject": subject}
    return json.dumps({**head, "time": f"2026-10-{day:02}T12:00:00Z", "data": {"bytes": "7", **data}}).encode()


USAGE = [
    *(event(number, "one", region="eu") for number in range(30)),
    *(event(number, "one", region="us") for number in range(30, 40)),
    *(event(number, "two", region="eu") for number in range(40, 45)),
]


def write(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "catalog.yaml").write_text(text)
    return folder


@pytest.fixture
def today(meterline: Command, tmp_path: Path) -> Path:
    """The catalog that some usage was rated with."""
    catalog = write(tmp_path / "today", CATALOG)
    usage = tmp_path / "usage.ndjson"
    usage.write_bytes(b"\n".join(USAGE))
    said = meterline("rate", "--input", usage, "--catalog", catalog, *at(meterline), "--now", "2026-11-01T00:00:00Z")
    assert said.code == 0
    return catalog


def at(meterline: Command) -> tuple[str, str]:
    return "--clickhouse", meterline.url


def simulated(meterline: Command, new: Path, *words: object) -> dict:
    said = meterline("simulate", "--catalog", new, "--period", "2026-10", *at(meterline), "--json", *words)
    assert said.code == 0, said.err
    return json.loads(said.out)


def amounts(found: dict) -> dict[str, tuple[str | None, str | None, str]]:
    return {
        f"{one['account']} {one['currency']}": (one["today"], one["new"], one["difference"])
        for one in found["accounts"]
    }


def changed(tmp_path: Path, *pairs: tuple[str, str]) -> Path:
    text = CATALOG
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return write(tmp_path / "new", text)


def content(url: str) -> dict[str, str]:
    client = clickhouse.connect(url)
    names = [row[0] for row in client.query("SHOW TABLES").result_rows]
    hashed = "SELECT toString(count()) || ' ' || toString(sum(cityHash64(*))) FROM {}"
    return {name: client.command(hashed.format(f"`{name}`")) for name in names}


def test_the_same_catalog_changes_nothing(meterline: Command, today: Path) -> None:
    found = simulated(meterline, today, "--today", today)
    assert amounts(found) == {"one EUR": ("9.00", "9.00", "0.00"), "two USD": ("1.00", "1.00", "0.00")}
    assert found["unpriced"] == {"bytes": 45}


def test_nothing_is_stored(meterline: Command, today: Path, tmp_path: Path) -> None:
    before = content(meterline.url)
    simulated(meterline, changed(tmp_path, ('"0.10"', '"0.30"')), "--today", today, "--chart", tmp_path / "x.svg")
    assert content(meterline.url) == before


CALLS = 'calls: {model: per_unit, unit_price: "0.10"}'
MATRIX = (
    'calls: {model: matrix, rows: [{when: {region: eu}, price: {model: per_unit, unit_price: "1"}}], '
    'default: {model: per_unit, unit_price: "2"}}'
)
TWO = "  - {id: two, account: two, plan: usd, start: 2026-01-01T00:00:00Z}\n"
# What is changed, and the accounts whose amounts then move.
NEWS = {
    "a price": ([('"0.10"', '"0.30"')], {"one EUR": ("9.00", "17.00", "8.00")}),
    "a fee": ([('amount: "5"', 'amount: "2"')], {"one EUR": ("9.00", "6.00", "-3.00")}),
    "a plan in another currency": (
        [("account: two, plan: usd", "account: two, plan: eur")],
        {"two USD": ("1.00", None, "-1.00"), "two EUR": (None, "5.50", "5.50")},
    ),
    "an account that is gone": ([(", {id: two}", ""), (TWO, "")], {"two USD": ("1.00", None, "-1.00")}),
    "an account that begins to pay": (
        [(TWO, TWO + TWO.replace("two", "idle").replace("usd", "eur"))],
        {"idle EUR": (None, "5.00", "5.00")},
    ),
    "a price by dimension": ([(CALLS, MATRIX)], {"one EUR": ("9.00", "55.00", "46.00")}),
    "a charge for what was unpriced": (
        [("usd, charges: [{id: calls, meter: calls, name: Calls}]", "usd, charges: [{id: calls, meter: bytes}]")],
        {"two USD": ("1.00", "7.00", "6.00")},
    ),
    "a day that starts the period": (
        [("account: two, plan: usd,", "account: two, plan: usd, anchor_day: 6,")],
        {"two USD": ("1.00", None, "-1.00")},
    ),
    "a discount": (
        [("rate_cards:", "discounts: [{id: summer, percent: 10}]\nrate_cards:")],
        {"one EUR": ("9.00", "8.10", "-0.90"), "two USD": ("1.00", "0.90", "-0.10")},
    ),
    "a payer": (
        [("{id: two}", "{id: two, parent: one}"), (TWO, "")],
        {"one EUR": ("9.00", "9.50", "0.50"), "two USD": ("1.00", None, "-1.00")},
    ),
}


@pytest.mark.parametrize("what", NEWS)
def test_an_account_pays_what_the_new_catalog_says(meterline: Command, today: Path, tmp_path: Path, what: str) -> None:
    pairs, moved = NEWS[what]
    found = simulated(meterline, changed(tmp_path, *pairs), "--today", today)
    unmoved = {"one EUR": ("9.00", "9.00", "0.00"), "two USD": ("1.00", "1.00", "0.00")}
    assert amounts(found) == unmoved | moved


def test_a_meter_may_read_what_was_not_metered_before(meterline: Command, today: Path, tmp_path: Path) -> None:
    new = changed(tmp_path, ("aggregation: sum, value: bytes", "aggregation: distinct, value: region"))
    new = write(
        new,
        (new / "catalog.yaml")
        .read_text()
        .replace("[{id: calls, meter: calls, name: Calls}]", "[{id: calls, meter: bytes}]"),
    )
    assert amounts(simulated(meterline, new, "--today", today))["two USD"] == ("1.00", "0.20", "-0.80")


def test_events_that_the_new_catalog_would_not_accept_are_counted(
    meterline: Command, today: Path, tmp_path: Path
) -> None:
    found = simulated(meterline, changed(tmp_path, ("value: bytes", "value: other")), "--today", today)
    assert found["would_be_rejected"] == {"bad_quantity": 45}
    assert amounts(found) == {"one EUR": ("9.00", "5.00", "-4.00"), "two USD": ("1.00", None, "-1.00")}
    gone = changed(tmp_path, (", {id: two}", ""), (TWO, ""))
    assert simulated(meterline, gone, "--today", today)["would_be_rejected"] == {"unknown_subject": 5}


def test_usage_without_a_price_is_told(meterline: Command, today: Path, tmp_path: Path) -> None:
    new = changed(tmp_path, (CALLS, MATRIX.replace(', default: {model: per_unit, unit_price: "2"}', "")))
    found = simulated(meterline, new, "--today", today)
    (refused,) = found["refused_rating_keys"]
    assert refused["reason"] == "no_price"
    assert '[["region","us"]]' in refused["rating_key"]
    said = meterline("simulate", "--catalog", new, "--today", today, "--period", "2026-10", *at(meterline))
    assert "1 rating keys have no amount" in said.out


def test_the_same_catalog_changes_nothing_where_accounts_share_a_discount(meterline: Command, tmp_path: Path) -> None:
    catalog = changed(
        tmp_path,
        ("rate_cards:", "discounts: [{id: summer, percent: '33.3'}]\nrate_cards:"),
        ("{id: two}", "{id: two, parent: one}"),
        (TWO, ""),
    )
    usage = tmp_path / "usage.ndjson"
    usage.write_bytes(b"\n".join(event(number, ("one", "two")[number % 3 == 0], region="eu") for number in range(37)))
    meterline("rate", "--input", usage, "--catalog", catalog, *at(meterline), "--now", "2026-11-01T00:00:00Z")
    found = simulated(meterline, catalog, "--today", catalog)
    assert amounts(found) == {"one EUR": ("5.80", "5.80", "0.00")}  # 8.70 − 33.3 %
    assert all(Decimal(charge["difference"]) == 0 for charge in found["accounts"][0]["charges"])


def test_a_grant_is_what_issued_invoices_of_other_periods_have_left_of_it(
    meterline: Command, today: Path, tmp_path: Path
) -> None:
    grant = "grants: [{id: g, account: one, amount: 6, currency: EUR, effective_from: 2026-01-01T00:00:00Z}]\n"
    write(today, CATALOG + grant)
    new = changed(tmp_path, ('"0.10"', '"0.30"'), ("rate_cards:", f"{grant}rate_cards:"))

    def invoice(period: str, *words: str) -> None:
        made = ("--period", period, "--catalog", today, *at(meterline), "--now", "2026-12-01T00:00:00Z", *words)
        assert meterline("invoice", *made).code == 0

    whole = ("3.00", "11.00", "8.00")
    assert amounts(simulated(meterline, new, "--today", today))["one EUR"] == whole
    invoice("2026-09")  # A draft draws nothing,
    invoice("2026-10", "--issue")  # and what the period itself drew does not matter.
    assert amounts(simulated(meterline, new, "--today", today))["one EUR"] == whole


def test_what_another_period_drew_of_a_grant_is_gone(meterline: Command, today: Path, tmp_path: Path) -> None:
    grant = "grants: [{id: g, account: one, amount: 6, currency: EUR, effective_from: 2026-01-01T00:00:00Z}]\n"
    write(today, CATALOG + grant)
    new = changed(tmp_path, ('"0.10"', '"0.30"'), ("rate_cards:", f"{grant}rate_cards:"))
    made = ("--period", "2026-09", "--catalog", today, *at(meterline), "--now", "2026-12-01T00:00:00Z", "--issue")
    assert meterline("invoice", *made).code == 0  # A fee of 5.
    found = simulated(meterline, new, "--today", today)
    assert amounts(found)["one EUR"] == ("8.00", "16.00", "8.00")
    assert amounts(simulated(meterline, new, "--today", today, "--anew"))["one EUR"] == ("8.00", "16.00", "8.00")
    # Its invoice says the same.
    assert meterline("invoice", *(word.replace("-09", "-10") for word in map(str, made))).code == 0
    said = meterline("invoice", "--period", "2026-10", "--catalog", today, *at(meterline), "--json")
    totals = {one["billing_account_id"]: Decimal(one["total"]) for one in json.loads(said.out)["invoices"]}
    assert totals["one"] == 8


def test_the_table_has_the_top_movers_and_a_total(meterline: Command, today: Path, tmp_path: Path) -> None:
    new = changed(tmp_path, ('"0.10"', '"0.30"'), ("account: two, plan: usd", "account: two, plan: eur"))
    words = ("simulate", "--catalog", new, "--today", today, "--period", "2026-10", *at(meterline))
    said = meterline(*words, "--top", 1)
    rows = [line.split() for line in said.out.splitlines()]
    assert ["one", "9.00", "17.00", "+8.00", "+88.9"] in rows
    assert ["1", "more", "(--top)", "–", "6.50", "+6.50", "new"] in rows
    assert ["total", "9.00", "23.50", "+14.50", "+161.1"] in rows
    assert ["total", "1.00", "–", "-1.00", "-100.0"] in rows
    assert "discounts, credits and tax included" in " ".join(said.out.split())
    rows = [line.split() for line in meterline(*words, "--by", "charge").out.splitlines()]
    assert ["calls", "4.00", "13.50", "+9.50", "+237.5"] in rows
    assert ["fee", "5.00", "10.00", "+5.00", "+100.0"] in rows


def test_the_chart_is_a_picture_of_the_accounts(meterline: Command, today: Path, tmp_path: Path) -> None:
    file = tmp_path / "what-if.svg"
    simulated(meterline, changed(tmp_path, ('"0.10"', '"0.30"')), "--today", today, "--chart", file)
    svg = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(file.read_text())
    texts = [one.text for one in root.iter(f"{svg}text")]
    assert {"one", "two", "+8.00 EUR (+88.9 %)"} <= set(texts)
    widths = [float(one.attrib["width"]) for one in root.iter(f"{svg}rect")][2:]
    assert widths == [pytest.approx(400 * 9 / 17, abs=0.1), 400, 400, 400]


def test_today_is_the_catalog_that_was_published(meterline: Command, today: Path, tmp_path: Path) -> None:
    new = changed(tmp_path, ('"0.10"', '"0.30"'))
    said = meterline("simulate", "--catalog", new, "--period", "2026-10", *at(meterline))
    assert said.code == 2
    assert "--today FOLDER" in said.err
    assert meterline("catalog", "publish", today, *at(meterline)).code == 0
    assert amounts(simulated(meterline, new))["one EUR"] == ("9.00", "17.00", "8.00")


def test_today_can_be_rated_anew(meterline: Command, today: Path, tmp_path: Path) -> None:
    dearer = changed(tmp_path, ('"0.10"', '"0.30"'))
    found = simulated(meterline, dearer, "--today", dearer, "--anew")
    assert amounts(found)["one EUR"] == ("17.00", "17.00", "0.00")


def test_what_cannot_be_simulated_is_told(meterline: Command, today: Path, tmp_path: Path) -> None:
    def said(*words: object, catalog: Path = today, old: Path = today, url: str = meterline.url) -> str:
        found = meterline("simulate", "--catalog", catalog, "--today", old, "--clickhouse", url, *words)
        assert found.code == 2 or "--clickhouse" in words or url != meterline.url
        return " ".join(found.err.split())

    assert "2026 (a year) or 2026-10-05 (days), got '2026-13'" in said("--period", "2026-13")
    other = write(tmp_path / "other", CATALOG.replace("id: one, account", "id: renamed, account"))
    assert "give the catalog that the period is billed with as --today" in said("--period", "2026-10", old=other)
    tiers = write(
        tmp_path / "tiers", CATALOG.replace("id: one, account", "id: one, tiers_at_change: carry_over, account")
    )
    assert "the tiers of subscription 'one' carry over" in said("--period", "2026-10", catalog=tiers)
    assert "there is no folder" in said("--period", "2026-10", "--chart", tmp_path / "none" / "x.svg")
    assert "'half_even', 'half_up'" in said("--period", "2026-10", "--rounding", "down")
    nowhere = f"chdb://{tmp_path / 'nowhere'}"
    assert "there is no database at" in said("--period", "2026-10", url=nowhere)
    clickhouse.set_retention(meterline.url, 100)
    try:
        assert "its usage is not whole any more" in said("--period", "2020-01")
    finally:
        clickhouse.set_retention(meterline.url, None)


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_price_list_simulates_to_its_own_invoice(meterline: Command, example: str, tmp_path: Path) -> None:
    catalog = (FOLDER / example).parent
    place = ("--catalog", catalog, *at(meterline), "--json")
    meterline("rate", "--input", f"{FOLDER / example}.ndjson", *place, "--now", "2026-12-01T00:00:00Z")
    found = simulated(meterline, catalog, "--today", catalog)
    (account,) = found["accounts"]
    assert account["today"] == account["new"]
    assert Decimal(account["new"]) == Decimal(EXAMPLES[example][0])
    assert Decimal(account["difference"]) == 0
