"""An invoice leads to its events, an event to its invoices, and the numbers between add up."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from meterline.pipelines.invoice_accounts import Options
from meterline.runners.explain import NotFound, explain
from meterline.runners.explain_tree import render
from meterline.runners.explanation import Event, Explanation, Invoice, Line, LineItem, Reject
from meterline.runners.jobs import fingerprint, make_invoices, rate_files
from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_files import load_catalog
from meterline.transforms import clickhouse

NOW = datetime(2026, 2, 10, tzinfo=UTC)
FIRST, SECOND = "north-2026-01-USD-1", "north-2026-01-USD-2"
HOSTILE = "o'brien\"; DROP TABLE usage_events; -- {id:String} \\ %s # [red]x[/]"
CATALOG = """
meters:
  - {id: tokens, event_type: call, aggregation: sum, value: tokens, unit: token, dimensions: [model]}
  - {id: calls, event_type: call, aggregation: count, unit: call}
  - {id: models, event_type: call, aggregation: distinct, value: model, unit: model}
rate_cards:
  - id: card
    currency: USD
    versions:
      - version: v1
        effective_from: 2025-01-01T00:00:00Z
        prices:
          tokens:
            model: graduated
            per: 1000
            tiers: [{up_to: 1000, unit_price: "2.50"}, {unit_price: "1.00", flat_fee: "3"}]
          calls: {model: package, package_size: 3, package_price: "0.115"}
          fee: {model: fixed, amount: "30"}
plans:
  - id: plan
    rate_card: card
    charges: [{id: tokens, name: Tokens, meter: tokens}, {id: calls, name: Calls, meter: calls}, {id: fee, name: Fee}]
accounts:
  - {id: north}
  - {id: north-red, parent: north, subjects: [red]}
  - {id: north-blue, parent: north}
  - {id: south, tenant: other}
subscriptions:
  - {id: north-plan, account: north, plan: plan, start: 2026-01-11T00:00:00Z}
  - {id: south-plan, account: south, plan: plan, start: 2026-01-01T00:00:00Z}
"""


def event(id: str, subject: str, hour: int, tokens: str, **attributes: Any) -> bytes:
    time = datetime(2026, 1, 20, tzinfo=UTC) + timedelta(hours=hour)
    data = {"model": "large", "tokens": tokens, "note": "\u202e\x7f[bold]"}
    whole = {"specversion": "1.0", "id": id, "source": "/gw", "type": "call", "subject": subject, **attributes}
    return json.dumps({**whole, "time": time.isoformat(), "data": data}, ensure_ascii=False).encode()


ON_TIME = [
    event("e-1", "red", 0, "400.125"),
    event("e-2", "north-blue", 0, "333.333333333333"),
    event("e-3", "red", 1, "700"),
    event("e-4", "north-blue", 2, "0.000000000001"),
    event("shared", "red", 3, "50"),
    event("shared", "north-blue", 3, "60", source="/other"),
    event("shared", "south", 3, "70", tenantid="other"),
    *(event(f"south-{number}", "south", 3, "5", tenantid="other") for number in range(3)),
    event(HOSTILE, "red", 4, "1"),
    event("ghost", "nobody", 0, "1"),
]
LATE = [event("late-1", "red", 5, "1000.7")]
LATER = [event("later-1", "north-blue", 6, "2000")]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("catalog")
    (folder / "all.yaml").write_text(CATALOG)
    return load_catalog(folder)


@pytest.fixture
def billed(request: pytest.FixtureRequest, clickhouse_url: str, catalog: Catalog, tmp_path: Path) -> str:
    """A database with an invoice, a second one for what came late, and usage that came later still, in a draft.

    The tests only read: it is filled again only when another test has emptied the tables.
    """
    sql = "SELECT number FROM invoices FINAL WHERE number = {number:String}"
    if not clickhouse.query(clickhouse_url, sql, {"number": SECOND}).num_rows:
        request.getfixturevalue("database")
        events: list[bytes] = []
        file = tmp_path / "usage.ndjson"
        for more, issue in ((ON_TIME, True), (LATE, True), (LATER, False)):
            events += more
            file.write_bytes(b"\n".join(events) + b"\n")
            rate_files([str(file)], catalog, clickhouse_url, now=NOW)
            make_invoices(Options("2026-01", catalog, clickhouse_url, NOW, issue=issue))
    return clickhouse_url


def one(explanation: Explanation, kind: type) -> Any:
    (found,) = explanation.found
    assert type(found) is kind
    return found


def whole_line(url: str, id: str, catalog: Catalog | None) -> Line:
    found = one(explain(url, id, catalog, events=1_000, line_items=1_000), Line)
    assert isinstance(found, Line)
    return found


def shown(explanation: Explanation, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, record=True, force_terminal=False)
    console.print(render(explanation))
    return console.export_text()


def total(values: Any) -> Fraction:
    return sum((Fraction(value) for value in values), Fraction(0))


# --- downwards ----------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False], ids=["with a catalog", "without"])
@pytest.mark.parametrize("number", [FIRST, SECOND])
def test_all_levels_of_an_invoice_add_up(billed: str, catalog: Catalog, number: str, known: bool) -> None:
    prices = catalog if known else None
    invoice = one(explain(billed, number, prices), Invoice)
    assert total(line.amount for line in invoice.lines) == invoice.total
    for short in invoice.lines:
        line = whole_line(billed, short.invoice_line_id, prices)
        assert (line.exact_amount, line.amount) == (short.exact_amount, short.amount)
        if not line.meter_id:
            continue
        assert total(item.amount for item in line.line_items) == line.standing.amount
        assert total(tier.amount for tier in line.tiers) == line.standing.amount
        assert total(tier.quantity for tier in line.tiers) == line.standing.quantity
        before = total(one.amount for one in line.earlier)
        assert line.came_after == line.standing.amount - Decimal(str(line.exact_amount)) - line.rounding.billed_before
        assert before == line.rounding.billed_before
        for item in line.line_items:
            assert total(tier.amount for tier in item.tiers) == item.amount
            assert total(tier.quantity for tier in item.tiers) == item.quantity_to - item.quantity_from
            assert total(event.quantity for event in item.events) == item.quantity_to - item.quantity_from
            assert len(item.events) == item.event_count


def test_a_first_invoice_bills_exactly_its_line_items_when_nothing_came_since(billed: str, catalog: Catalog) -> None:
    invoices = explain(billed, "south-2026-01-USD-1", catalog).found
    (invoice,) = invoices
    assert isinstance(invoice, Invoice)
    for line in invoice.lines:
        assert line.came_after == 0 == line.standing.not_billed_amount
        if line.meter_id:
            assert line.exact_amount == line.standing.amount


def test_a_charge_is_rounded_once_and_its_accounts_share_it(billed: str, catalog: Catalog) -> None:
    invoice = one(explain(billed, FIRST, catalog), Invoice)
    calls = [line for line in invoice.lines if line.charge_id == "calls"]
    assert {line.account_id for line in calls} == {"north-red", "north-blue"}
    assert {(line.rounding.exact, line.rounding.rounded) for line in calls} == {(Decimal("0.345"), Decimal("0.34"))}
    assert total(line.rounding.share for line in calls) == Fraction("0.34")


def test_the_formula_comes_from_the_catalog(billed: str, catalog: Catalog) -> None:
    lines = {line.charge_id: line for line in one(explain(billed, FIRST, catalog), Invoice).lines}
    assert lines["tokens"].price.text == "graduated, per 1,000: (0, 1,000] at 2.50; (1,000, ∞) at 1.00 + 3 flat"
    assert lines["calls"].price.text == "packages of 3 at 0.115; a started one is paid"
    assert lines["fee"].price.text == "fixed fee: 30 for each billing period"
    text = shown(explain(billed, lines["tokens"].invoice_line_id, catalog))
    assert "× 2.5 / 1,000" in text


def test_without_the_catalog_the_prices_are_those_recorded(billed: str) -> None:
    lines = [line for line in one(explain(billed, FIRST, None), Invoice).lines if line.charge_id == "tokens"]
    line = whole_line(billed, lines[0].invoice_line_id, None)
    assert line.price.source == "recorded"
    assert "tier 1 at 2.5" in line.price.text
    assert {tier.unit_price for tier in line.tiers} <= {Decimal("2.5"), Decimal(1)}


def test_a_catalog_that_was_edited_does_not_explain_what_was_charged(billed: str, tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(CATALOG.replace('"2.50"', '"2.60"'))
    edited = load_catalog(tmp_path)
    lines = [line for line in one(explain(billed, FIRST, edited), Invoice).lines if line.charge_id == "tokens"]
    line = whole_line(billed, lines[0].invoice_line_id, edited)
    assert line.price.source == "recorded"
    assert "now has other prices" in line.price.text


def test_a_fee_shows_its_proration(billed: str, catalog: Catalog) -> None:
    invoice = one(explain(billed, FIRST, catalog), Invoice)
    (line,) = [line for line in invoice.lines if not line.meter_id]
    assert line.fee is not None
    assert (line.fee.covered_seconds, line.fee.period_seconds) == (21 * 86_400, 31 * 86_400)
    assert line.fee.prorated == line.exact_amount == Decimal("20.322580645161290323")
    text = shown(explain(billed, line.invoice_line_id, catalog), 160)
    assert "30 × 1,814,400 s / 2,678,400 s = 20.322580645161290323" in text


def test_the_largest_line_items_are_shown_and_the_rest_counted(billed: str, catalog: Catalog) -> None:
    invoice = one(explain(billed, FIRST, catalog), Invoice)
    (line,) = [one for one in invoice.lines if (one.charge_id, one.account_id) == ("tokens", "north-red")]
    whole = whole_line(billed, line.invoice_line_id, catalog)
    part = one(explain(billed, line.invoice_line_id, catalog, line_items=1, events=0), Line)
    assert part.standing.line_items == len(whole.line_items) > 1
    assert [item.amount for item in part.line_items] == [max(item.amount for item in whole.line_items)]
    assert part.line_items[0].events == ()


@pytest.mark.parametrize("events", [1, 2, 1_000])
def test_many_events_of_a_line_item_are_told_as_few_are(
    billed: str, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, events: int
) -> None:
    ids = [line.invoice_line_id for line in one(explain(billed, "south-2026-01-USD-1", catalog), Invoice).lines]
    few = [explain(billed, id, catalog, events=events) for id in ids]
    monkeypatch.setattr("meterline.runners.explain._FEW", 0)
    assert [explain(billed, id, catalog, events=events) for id in ids] == few
    items = [item for found in few for item in one(found, Line).line_items]
    assert {(item.event_count, len(item.events)) for item in items} == {(4, min(events, 4))}


# --- what came later ----------------------------------------------------------------------------


def test_a_line_leads_to_its_later_corrections(billed: str, catalog: Catalog) -> None:
    first, second = (one(explain(billed, number, catalog), Invoice) for number in (FIRST, SECOND))

    def of_red(invoice: Invoice) -> Line:
        (line,) = [one for one in invoice.lines if (one.charge_id, one.account_id) == ("tokens", "north-red")]
        return line

    billed_line, late = whole_line(billed, of_red(first).invoice_line_id, catalog), of_red(second)
    assert [one.invoice_line_id for one in billed_line.later if one.status == "issued"] == [late.invoice_line_id]
    assert [one.invoice_line_id for one in late.earlier] == [billed_line.invoice_line_id]
    assert late.reason == "late_usage"
    assert late.quantity == Decimal("1000.7")
    assert billed_line.came_after == late.standing.amount - billed_line.exact_amount
    assert second.corrects == FIRST
    assert "billed later" in shown(explain(billed, billed_line.invoice_line_id, catalog))


def test_usage_that_no_issued_invoice_bills_is_said(billed: str, catalog: Catalog) -> None:
    first = one(explain(billed, FIRST, catalog), Invoice)
    (blue,) = [line for line in first.lines if (line.charge_id, line.account_id) == ("tokens", "north-blue")]
    assert blue.standing.not_billed_quantity == 2000
    assert blue.standing.not_billed_amount == blue.came_after == 2
    assert "usage that came after: +2 USD, +2 USD not yet billed" in shown(
        explain(billed, blue.invoice_line_id, catalog)
    )
    # The draft of it is found by its id, as is its line.
    # North-blue's exact amount did not move, but its share of the rounded charge did.
    share, draft = whole_line(billed, blue.invoice_line_id, catalog).later
    assert (share.reason, share.quantity, share.amount) == ("correction", 0, Decimal("0.01"))
    assert (draft.status, draft.invoice_number) == ("draft", "")
    assert one(explain(billed, draft.invoice_id, catalog), Invoice).status == "draft"
    line = one(explain(billed, draft.invoice_line_id, catalog), Line)
    assert (line.came_after, line.standing.not_billed_amount) == (0, 2)


# --- upwards ------------------------------------------------------------------------------------


def test_every_event_leads_to_the_line_items_that_count_it_and_the_lines_that_bill_it(
    billed: str, catalog: Catalog
) -> None:
    invoice = one(explain(billed, FIRST, catalog), Invoice)
    seen = 0
    for short in invoice.lines:
        line = whole_line(billed, short.invoice_line_id, catalog)
        for item in line.line_items:
            alone = one(explain(billed, item.line_item_id, catalog, events=1_000), LineItem)
            assert alone.events == item.events
            assert line.invoice_line_id in {one.invoice_line_id for one in alone.billed_by}
            for counted in item.events:
                events = explain(billed, f"{counted.source}#{counted.id}", catalog).found
                (found,) = [one for one in events if isinstance(one, Event) and one.tenant_id == line.tenant_id]
                assert found.payload == counted.payload
                (usage,) = [usage for usage in found.usage if usage.meter_id == line.meter_id]
                assert usage.quantity == counted.quantity
                assert usage.line_item_id == item.line_item_id
                assert usage.line_item is not None
                assert usage.line_item.amount == item.amount
                seen += 1
    assert seen == 2 * (7 + len(LATE) + len(LATER))  # of tokens and calls; seven events on time are north's


def test_an_event_tells_what_it_was_attributed_to(billed: str, catalog: Catalog) -> None:
    found = one(explain(billed, "e-1", catalog), Event)
    assert (found.account_id, found.billing_account_id, found.subject) == ("north-red", "north", "red")
    assert found.payload.encode() == ON_TIME[0]
    tokens, models = (next(one for one in found.usage if one.meter_id == meter) for meter in ("tokens", "models"))
    assert (tokens.charge_id, tokens.rate_card_version, tokens.quantity) == ("tokens", "v1", Decimal("400.125"))
    assert [one.invoice_number for one in tokens.billed_by if one.status == "issued"] == [FIRST, SECOND]
    assert (models.charge_id, models.counted_value, models.billed_by) == ("", "large", ())
    assert "unpriced" in shown(explain(billed, "e-1", catalog))


def test_all_sources_and_tenants_that_share_an_event_id_are_told(billed: str, catalog: Catalog) -> None:
    found = explain(billed, "shared", catalog).found
    assert [(one.tenant_id, one.source) for one in found if isinstance(one, Event)] == [
        ("default", "/gw"),
        ("default", "/other"),
        ("other", "/gw"),
    ]
    assert one(explain(billed, "/other#shared", catalog), Event).account_id == "north-blue"


def test_a_rejected_event_is_found_by_its_own_id_and_the_rejects(billed: str, catalog: Catalog) -> None:
    by_event = one(explain(billed, "ghost", catalog), Reject)
    assert (by_event.stage, by_event.reason) == ("attribute", "unknown_subject")
    assert by_event.payload.encode() == ON_TIME[-1]
    assert one(explain(billed, by_event.reject_id, catalog), Reject) == by_event


# --- the form -----------------------------------------------------------------------------------


def names(text: str) -> set[str]:
    return set(text.split())


_KEY = names(
    "tenant_id billing_account_id account_id subscription_id charge_id meter_id rate_card_version rating_key_id "
    "dimensions period_start period_end"
)
_BILLING = names("invoice_line_id invoice_id invoice_number status sequence made_at reason quantity exact_amount")
_BILLING |= {"amount", "currency", "conversion"}
_STANDING = names("quantity amount line_items events not_billed_quantity not_billed_amount")
_TIER = names("tier above up_to quantity unit_price per packages flat_fee amount")
_COUNTED = names("time source id subject quantity counted_value payload voided")
_ITEM = {"kind", *_KEY} | names(
    "line_item_id window_start window_end quantity_from quantity_to unit amount currency price tiers event_count "
    "voided_count revision events standing billed_by meter"
)
_LINE = {"kind", *_KEY, *_BILLING} - {"made_at"} | names(
    "line_number description meter unit line_kind source price fee conversion rounding standing came_after tiers "
    "line_items earlier later"
)


def test_the_json_is_what_other_programs_rely_on(billed: str, catalog: Catalog) -> None:
    invoice = explain(billed, FIRST, catalog).to_json()
    assert set(invoice) == {"id", "more", "found"}
    (head,) = invoice["found"]
    assert set(head) == names(
        "kind invoice_id number status invoice_kind tenant_id billing_account_id period sequence currency total "
        "corrects made_at lines"
    )
    fee = next(line for line in head["lines"] if line["fee"])
    assert set(fee["fee"]) == names(
        "amount billed prorate covered_from covered_to covered_seconds period_seconds covered whole prorated"
    )
    (line,) = explain(billed, head["lines"][0]["invoice_line_id"], catalog).to_json()["found"]
    assert set(line) == _LINE
    assert set(line["price"]) == {"model", "text", "source"}
    assert set(line["rounding"]) == names("exact rounded accounts exact_share share billed_before")
    assert set(line["standing"]) == _STANDING
    assert all(set(tier) == _TIER for tier in line["tiers"])
    assert all(set(other) == _BILLING for other in line["later"])
    item = line["line_items"][0]
    assert set(item) == _ITEM
    assert set(item["events"][0]) == _COUNTED
    (event,) = explain(billed, "e-1", catalog).to_json()["found"]
    assert set(event) == names(
        "kind tenant_id source id type subject time received_time account_id billing_account_id payload usage "
        "voided voids"
    )
    assert set(event["usage"][0]) == names(
        "meter_id subscription_id charge_id rate_card_version rating_key_id dimensions period_start period_end "
        "meter quantity unit value_unit counted_value line_item_id line_item standing billed_by"
    )
    assert event["time"] == "2026-01-20T00:00:00Z"
    assert event["usage"][-1]["quantity"] == "400.125"
    (reject,) = explain(billed, "ghost", catalog).to_json()["found"]
    assert set(reject) == names("kind reject_id stage reason message origin position received_time payload")
    for whole in (invoice, line, item, event, reject):
        text = json.dumps(whole, allow_nan=False)
        assert json.loads(text, parse_float=lambda number: pytest.fail(f"{number} is no exact number")) == whole


@pytest.mark.parametrize("width", [60, 100, 160])
def test_no_text_of_an_event_steers_the_terminal(billed: str, catalog: Catalog, width: int) -> None:
    for id in (FIRST, SECOND, "e-1", "shared", "ghost", HOSTILE):
        text = shown(explain(billed, id, catalog), width)
        assert all(character.isprintable() or character == "\n" for character in text)
        assert max(map(len, text.splitlines())) <= width
    assert "[bold]" in shown(explain(billed, "e-1", catalog), 160)


# --- ids that nothing has -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "id",
    [
        pytest.param("", id="empty"),
        "nothing",
        "north-2026-01-USD-9",
        "north-2026-00-USD-1",
        "north-0000-00-USD-1",
        "inv_" + "0" * 24,
        "il_" + "0" * 24,
        "li_" + "0" * 24,
        "rej_" + "0" * 24,
        "' OR 1=1 --",
        "il_' OR '1'='1",
        '"; DROP TABLE usage_events; --',
        "x') UNION ALL SELECT * FROM invoices --",
        "{id:String}",
        "%(id)s %s %%",
        "a\\",
        "a\\'",
        "a\tb\nc",
        pytest.param("a\x00b", id="NUL"),
        pytest.param("\ud800", id="surrogate"),
        pytest.param("#" * 1_500, id="many signs"),
        pytest.param("💥" * 500, id="emoji"),
        pytest.param("x" * 100_000, id="very long"),
        pytest.param("a-" * 700 + "2026-01-USD-1", id="long number"),
        "north-2026-01-USD-1' OR number != '-1",
    ],
)
def test_an_unknown_id_says_which_ids_there_are(billed: str, catalog: Catalog, id: str) -> None:
    before = fingerprint(billed)
    with pytest.raises(NotFound, match="What can be explained") as raised:
        explain(billed, id, catalog)
    for form in ("il_…", "li_…", "rej_…", "inv_…", "SOURCE#ID"):
        assert form in str(raised.value)
    assert str(raised.value).isascii() or all(one.isprintable() or one == "\n" for one in str(raised.value))
    assert fingerprint(billed) == before


def test_a_hostile_id_of_a_real_event_is_found(billed: str, catalog: Catalog) -> None:
    for id in (HOSTILE, f"/gw#{HOSTILE}"):
        assert one(explain(billed, id, catalog), Event).id == HOSTILE


@pytest.mark.parametrize("id", ["e-1", "il_" + "0" * 24, "li_" + "0" * 24, "inv_" + "0" * 24, FIRST])
def test_an_empty_database_has_nothing_to_explain(database: str, id: str) -> None:
    with pytest.raises(NotFound):
        explain(database, id, None)
