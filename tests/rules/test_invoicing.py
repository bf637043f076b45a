"""Invoices are differences: whatever was issued before, in the end each charge was billed once, rounded once."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.runners.demo import quickstart
from meterline.schemas.catalog_files import load_catalog
from meterline.schemas.records import Invoice, RatingKey
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.fees import Billed, BilledKey, charges_without_usage, period_label
from meterline.transforms.rules.invoicing import Statement, double_entry, next_invoice
from meterline.transforms.rules.money import round_money

BOOK = Directory(load_catalog(quickstart() / "catalog"))
NOW = datetime(2024, 1, 1, tzinfo=UTC)
NOVEMBER = (datetime(2023, 11, 1, 4, tzinfo=UTC), datetime(2023, 12, 1, 5, tzinfo=UTC))


def key(charge: str, model: str = "") -> RatingKey:
    dimensions = (("model", model),) if model else ()
    return RatingKey("default", "acme", "acme-scale", charge, charge, "2023-01", *NOVEMBER, dimensions)


KEYS = (key("input-tokens", "large"), key("input-tokens", "small"), key("requests"))
amounts = st.decimals(min_value=-10_000, max_value=10_000, places=18).map(
    lambda amount: amount.quantize(Decimal("1e-18"))
)
billed = st.builds(Billed, st.integers(0, 10**9).map(Decimal), amounts, st.just(""))
dues = st.dictionaries(
    st.tuples(st.sampled_from(KEYS), st.sampled_from(("acme-search", "acme-assist", "acme"))).map(
        lambda one: BilledKey(*one)
    ),
    billed,
)


def bill(due: dict[BilledKey, Billed], before: list[Invoice]) -> Invoice | None:
    posted: dict[BilledKey, Billed] = {}
    for invoice in before:
        for line in invoice.lines:
            name = BilledKey(line.key, line.account_id)
            known = posted.get(name, Billed(Decimal(0), Decimal(0)))
            posted[name] = Billed(known.quantity + line.quantity, known.amount + line.amount)
    statement = Statement("default", "acme", "2023-11", "USD", due, posted, len(before))
    return next_invoice(statement, BOOK, status="issued", made_at=NOW, rounding="half_even")


@given(st.lists(dues, max_size=5))
def test_whatever_was_issued_on_the_way_each_charge_is_billed_once_and_rounded_once(history: list[dict]) -> None:
    issued: list[Invoice] = []
    for due in history:
        invoice = bill(due, issued)
        if invoice is not None:
            issued.append(invoice)
        assert bill(due, issued) is None or not any(line.amount for line in bill(due, issued).lines)  # type: ignore[union-attr]
    for name in KEYS:
        total = sum((line.amount for one in issued for line in one.lines if line.key == name), Decimal(0))
        due_now = sum((one.amount for of, one in (history or [{}])[-1].items() if of.key == name), Decimal(0))
        assert total == round_money(due_now, "USD", "half_even")


@given(dues.filter(bool))
def test_an_invoice_adds_up_and_its_postings_balance(due: dict[BilledKey, Billed]) -> None:
    invoice = bill(due, [])
    assert invoice is not None
    assert sum(line.amount for line in invoice.lines) == invoice.total == invoice.total.quantize(Decimal("0.01"))
    entries = double_entry(invoice)
    assert sum(amount for _, amount in entries) == 0
    assert entries[0] == ("accounts_receivable", invoice.total)
    assert invoice.kind == ("credit_note" if invoice.total < 0 else "invoice")


@given(dues.filter(bool), st.randoms())
def test_the_content_hash_does_not_depend_on_the_order_in_which_totals_came(due: dict, chance: object) -> None:
    shuffled = list(due.items())
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = bill(due, []), bill(dict(shuffled), [])
    assert one is not None
    assert other is not None
    assert one.content_hash == other.content_hash
    assert one.id == other.id


def test_late_usage_is_billed_with_its_reason_and_what_moved_with_it_as_a_correction() -> None:
    search, assist = BilledKey(KEYS[0], "acme-search"), BilledKey(KEYS[0], "acme-assist")
    before = {search: Billed(Decimal(10), Decimal("1.00")), assist: Billed(Decimal(10), Decimal("2.00"))}
    first = bill(before, [])
    assert first is not None
    after = {search: Billed(Decimal(11), Decimal("1.50")), assist: Billed(Decimal(10), Decimal("1.80"))}
    second = bill(after, [first])
    assert second is not None
    assert [(line.account_id, line.amount, line.quantity, line.reason) for line in second.lines] == [
        ("acme-assist", Decimal("-0.20"), 0, "correction"),
        ("acme-search", Decimal("0.50"), 1, "late_usage"),
    ]
    assert second.number == "acme-2023-11-USD-2"


def test_usage_that_is_due_no_more_is_given_back_by_a_credit_note() -> None:
    one = BilledKey(KEYS[0], "acme-search")
    first = bill({one: Billed(Decimal(10), Decimal("1.00"))}, [])
    assert first is not None
    second = bill({}, [first])
    assert second is not None
    assert (second.kind, second.total, second.lines[0].quantity) == ("credit_note", Decimal("-1.00"), -10)


def test_a_share_of_a_cent_goes_to_the_largest_remainder() -> None:
    due = {BilledKey(KEYS[0], name): Billed(Decimal(1), Decimal("0.004")) for name in ("a", "b", "c")}
    invoice = bill(due, [])
    assert invoice is not None
    assert [line.amount for line in invoice.lines] == [Decimal("0.01"), Decimal("0.00"), Decimal("0.00")]


def test_fees_and_charges_without_usage_are_those_of_the_period() -> None:
    found = {one.key.charge_id: billed for one, billed, _, _ in charges_without_usage("2023-11", BOOK, [])}
    assert found == {"platform-fee": Billed(Decimal(1), Decimal("500"))}
    assert list(charges_without_usage("2023-10", BOOK, [])) == []


@pytest.mark.parametrize(("charge", "label"), [("input-tokens", "2023-11")])
def test_a_key_belongs_to_the_label_of_its_local_month(charge: str, label: str) -> None:
    assert period_label(key(charge), BOOK) == label
