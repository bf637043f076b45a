"""Grants over several periods: whatever comes late and is issued in whatever order, no balance falls below zero."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterline.schemas.catalog import Catalog
from meterline.schemas.records import Invoice, RatingKey
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.billing import contracts as terms
from meterline.transforms.rules.billing.bill import Elsewhere
from meterline.transforms.rules.fees import Billed, BilledKey
from meterline.transforms.rules.invoicing import Statement, next_invoice
from meterline.transforms.rules.periods import period_with_label

LABELS = ("2026-01", "2026-02", "2026-03")
NOW = datetime(2027, 1, 1, tzinfo=UTC)
SINCE = "2026-01-01T00:00:00Z"
BOOK = Directory(
    Catalog.model_validate(
        {
            "rate_cards": [
                {
                    "id": "card",
                    "currency": "EUR",
                    "versions": [
                        {"version": "1", "effective_from": SINCE, "prices": {"fee": {"model": "fixed", "amount": "1"}}}
                    ],
                }
            ],
            "plans": [{"id": "plan", "rate_card": "card", "charges": [{"id": "fee"}]}],
            "accounts": [{"id": "a"}],
            "subscriptions": [{"id": "s", "account": "a", "plan": "plan", "start": SINCE}],
            "grants": [
                {"id": "g-1", "account": "a", "amount": "30", "currency": "EUR", "effective_from": SINCE},
                {
                    "id": "g-2",
                    "account": "a",
                    "amount": "20",
                    "currency": "EUR",
                    "effective_from": SINCE,
                    "priority": 1,
                },
            ],
        }
    )
)
GRANTED = {"g-1": Decimal(30), "g-2": Decimal(20)}
steps = st.lists(st.tuples(st.sampled_from(LABELS), st.integers(0, 40)), min_size=1, max_size=8)


def bill(label: str, due: int, issued: list[Invoice]) -> Invoice | None:
    """Issue what is left to bill of a period."""
    month = int(label[-2:])
    bounds = datetime(2026, month, 1, tzinfo=UTC), datetime(2026, month + 1, 1, tzinfo=UTC)
    posted: dict[BilledKey, Billed] = {}
    elsewhere = []
    for invoice in issued:
        for line in invoice.lines:
            if invoice.period != label:
                elsewhere.append(Elsewhere(invoice.period, line.kind, line.source, line.key, line.amount))
                continue
            one = BilledKey(line.key, line.account_id, line.kind, line.source)
            before = posted.get(one, Billed(Decimal(0), Decimal(0)))
            posted[one] = Billed(before.quantity + line.quantity, before.amount + line.amount)
    key = RatingKey("default", "a", "s", "fee", "", "1", *bounds, ())
    sequence = sum(invoice.period == label for invoice in issued)
    owed = {BilledKey(key, "a"): Billed(Decimal(1), Decimal(due))}
    statement = Statement("default", "a", label, "EUR", owed, posted, sequence, tuple(elsewhere))
    return next_invoice(statement, BOOK, status="issued", made_at=NOW, rounding="half_even")


def drawn(issued: list[Invoice], grant: str) -> Decimal:
    return -sum((line.amount for one in issued for line in one.lines if line.source == grant), Decimal(0))


@given(steps=steps, order=st.permutations(LABELS))
@settings(max_examples=150, deadline=None)
def test_no_balance_falls_below_zero_and_in_the_end_credit_pays_first(
    steps: list[tuple[str, int]], order: list[str]
) -> None:
    issued: list[Invoice] = []
    due = dict.fromkeys(LABELS, 0)
    for label, amount in steps:
        due[label] = amount
        issued += filter(None, [bill(label, amount, issued)])
        assert bill(label, amount, issued) is None
        for grant, granted in GRANTED.items():
            assert 0 <= drawn(issued, grant) <= granted
        assert sum(invoice.total for invoice in issued if invoice.period == label) >= 0
    while more := [one for label in order if (one := bill(label, due[label], issued))]:
        issued.append(more[0])
    owed, granted = sum(due.values()), sum(GRANTED.values())
    assert sum(drawn(issued, grant) for grant in GRANTED) == min(owed, granted)
    assert sum(invoice.total for invoice in issued) == max(owed - granted, 0)


def test_the_period_of_an_account_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(terms, "period_with_label", lambda *of: asked.append(of) or period_with_label(*of))
    known = terms.Contracts(BOOK)
    assert {known.period_of("a", "2026-02").label for _ in range(9)} == {"2026-02"}
    assert len(asked) == 1
