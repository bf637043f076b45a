"""Seeded worlds with contracts of every kind: through the real stages under faults, compared with the auditor's books,
and what is due without usage, compared with the auditor's fees.

`METERLINE_CONTRACT_SEEDS` says how many are tried, `METERLINE_SEED` names the one to try alone.
"""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import pytest

from meterline.schemas.catalog_files import load_catalog
from meterline.schemas.records import RatingKey
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.fees import charges_without_usage, is_in_advance
from meterline.transforms.rules.period_labels import labels_near

from . import chaos
from .auditor import audit
from .auditor_fees import Fee, Key, fees
from .contracts import with_contracts
from .generator import generate, write_catalog


@pytest.mark.parametrize("seed", chaos.seeds("METERLINE_CONTRACT_SEEDS", 40))
def test_no_fault_changes_an_amount_of_any_contract(seed: int, clickhouse_url: str) -> None:
    chaos.check_or_replay(seed, clickhouse_url, __file__, with_contracts)


@pytest.mark.parametrize("seed", chaos.seeds("METERLINE_CONTRACT_SEEDS", 40))
def test_what_is_due_without_usage_is_what_the_auditor_says(seed: int, tmp_path: Path) -> None:
    world = with_contracts(generate(seed), seed)
    write_catalog(world.catalog, tmp_path)
    book = Directory(load_catalog(tmp_path))
    near = world.received.date()
    items = audit(world.records, world.catalog, world.received, world.horizon).line_items
    used = {
        (item["subscription_id"], item["charge_id"], item["period_start"])
        for item in items
        if not item["rate_card_version"].startswith("trial:")
    }
    names = ("subscription_id", "charge_id", "meter_id", "rate_card_version", "period_start")
    keys = [
        RatingKey("", "", *(item[name] for name in names), near, ())  # type: ignore[arg-type]
        for item in items
    ]
    for label in labels_near(near - timedelta(days=40), near + timedelta(days=40)):
        found: dict[Key, Fee] = {}
        for one, billed, _, period in charges_without_usage(label, book, keys):
            key = one.key
            assert (key.period_start, key.period_end, label) == period
            due_from = period.start if is_in_advance(key, book) else period.end
            name = (key.subscription_id, key.charge_id, key.rate_card_version, key.period_start, key.period_end)
            assert name not in found
            found[name] = Fee(int(billed.quantity), Fraction(billed.amount), due_from)
        expected = fees(label, near, world.catalog, used)
        assert found == expected, label


def test_the_worlds_have_cycles_and_fees_of_every_kind() -> None:
    worlds = [with_contracts(generate(seed, events=0), seed) for seed in range(30)]
    cycles = {one.get("cycle", "monthly") for world in worlds for one in world.catalog["subscriptions"]}
    assert {"weekly", "monthly", "quarterly", "yearly", "1 days", "10 days"} <= cycles
    found = {
        (price.get("billed"), price.get("prorate"))
        for world in worlds
        for card in world.catalog["rate_cards"]
        for version in card["versions"]
        for price in version["prices"].values()
        if price["model"] == "fixed"
    }
    tiers = {one.get("tiers_at_change") for world in worlds for one in world.catalog["subscriptions"]}
    assert tiers == {None, "carry_over"}
    near = [world.received.date() for world in worlds]
    assert any(fees(f"{day:%Y-%m}", day, world.catalog, set()) for day, world in zip(near, worlds))
    assert any(fees(f"{day:%Y}", day, world.catalog, set()) for day, world in zip(near, worlds))
    assert {(None, None), ("in_advance", "day"), ("in_arrears", "none"), ("in_advance", "second")} <= found


def test_other_contracts_leave_the_records_of_a_world_alone() -> None:
    plain = generate(3)
    altered = with_contracts(plain, 3)
    assert plain == generate(3)
    assert altered.records == plain.records
