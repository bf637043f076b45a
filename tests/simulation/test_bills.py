"""What accounts owe under random contracts: as the naive books say, whatever order things came in, and once only."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterline.schemas.records import Invoice
from meterline.transforms.rules.fees import Billed, BilledKey
from meterline.transforms.rules.invoicing import _ORDER, double_entry, next_invoice, targets_of

from . import bills, chaos, contract_worlds
from .contract_worlds import LABEL, World

NOW = datetime(2027, 1, 1, tzinfo=UTC)
worlds = st.randoms(use_true_random=False).map(contract_worlds.make)
MORE = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize("seed", chaos.seeds("METERLINE_BILL_SEEDS", 200))
def test_each_line_is_that_of_the_books(seed: int) -> None:
    rng = Random(f"bills {seed}")
    world = contract_worlds.make(rng)
    half_up = rng.random() < 0.5
    rounding: Any = "half_up" if half_up else "half_even"
    targets = targets_of(world.statement(), world.book, rounding)
    elsewhere = [{**one._asdict(), **one.key._asdict()} for one in world.elsewhere]
    earlier = [{**key._asdict(), "quantity": quantity} for key, quantity in world.earlier]
    account = bills.Account(world.catalog, "org", LABEL, world.currency, half_up, elsewhere, earlier)
    expected = bills.bill(account, world.due)
    assert contract_worlds.lines_of(targets, bills.DIGITS[world.currency]) == expected


def test_the_worlds_have_lines_of_every_kind() -> None:
    found: Counter[str] = Counter()
    for seed in range(60):
        world = contract_worlds.make(Random(seed))
        found.update(
            one.kind for one, target in targets_of(world.statement(), world.book, "half_even").items() if target.amount
        )
    assert set(found) == set(_ORDER)


@given(world=worlds)
@MORE
def test_a_charge_is_never_discounted_by_more_than_it_comes_to(world: World) -> None:
    net: dict[tuple[Any, str], Decimal] = {}
    charged: dict[tuple[Any, str], list[Decimal]] = {}
    for one, target in targets_of(world.statement(), world.book, "half_even").items():
        name = (one.key._replace(dimensions=()), one.account_id)
        if one.kind in ("charge", "rollover", "discount"):
            net[name] = net.get(name, Decimal(0)) + target.amount
        if one.kind == "charge":
            charged.setdefault(name, []).append(target.amount)
    for name, amount in net.items():
        whole = sum(charged[name])
        # Parts of one account that cancel each other out are taken off by themselves, each with its dimensions.
        if sum(map(abs, charged[name])) == abs(whole):
            assert abs(amount) <= abs(whole)
            assert amount * whole >= 0


@given(world=worlds, rng=st.randoms(use_true_random=False))
@MORE
def test_no_order_of_the_catalogs_files_or_of_the_totals_changes_anything(world: World, rng: Random) -> None:
    other = world.shuffled(rng)
    assert targets_of(world.statement(), world.book, "half_even") == targets_of(
        other.statement(), other.book, "half_even"
    )


@given(world=worlds, later=st.randoms(use_true_random=False))
@MORE
def test_late_usage_settles_itself_and_a_second_run_posts_nothing(world: World, later: Random) -> None:
    issued: list[Invoice] = []
    for due in (world.due, contract_worlds.due(later, world.catalog), contract_worlds.due(later, world.catalog)):
        world = replace(world, due=due)
        while invoice := billed(world, issued):
            assert invoice.total == sum(line.amount for line in invoice.lines)
            assert sum(amount for _, amount in double_entry(invoice)) == 0
            issued.append(invoice)
            assert billed(world, issued) is None
    at_once = billed(world, [])
    total = at_once.total if at_once else Decimal(0)
    assert sum(invoice.total for invoice in issued) == total
    assert amounts(issued) == amounts([at_once] if at_once else [])


def billed(world: World, before: list[Invoice]) -> Invoice | None:
    posted = {}
    for (one, amount), quantity in zip(amounts(before, zeros=True).items(), quantities(before).values()):
        posted[one] = Billed(quantity, amount)
    statement = world.statement(posted, len(before))
    return next_invoice(statement, world.book, status="issued", made_at=NOW, rounding="half_even")


def amounts(invoices: list[Invoice], zeros: bool = False) -> dict[BilledKey, Decimal]:
    found: dict[BilledKey, Decimal] = {}
    for invoice in invoices:
        for line in invoice.lines:
            one = BilledKey(line.key, line.account_id, line.kind, line.source)
            found[one] = found.get(one, Decimal(0)) + line.amount
    return {one: amount for one, amount in found.items() if amount or zeros}


def quantities(invoices: list[Invoice]) -> dict[BilledKey, Decimal]:
    found: dict[BilledKey, Decimal] = {}
    for invoice in invoices:
        for line in invoice.lines:
            one = BilledKey(line.key, line.account_id, line.kind, line.source)
            found[one] = found.get(one, Decimal(0)) + line.quantity
    return found
