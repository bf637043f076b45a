"""The catalog as tables, for peers that price in SQL. Only what the benchmark's catalog uses is here."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa

from meterline.schemas.arrow import AMOUNT, MICROSECONDS, QUANTITY
from meterline.schemas.catalog import Catalog

_EXACT = pa.decimal128(18, 12)
_FAR = datetime(2200, 1, 1, tzinfo=UTC)
_WITHOUT_END = Decimal(10) ** 20


def terms(catalog: Catalog) -> pa.Table:
    """Who pays by which prices from when to when: a row for each subscription and rate-card version in force."""
    plans = {plan.id: plan for plan in catalog.plans}
    cards = {card.id: card for card in catalog.rate_cards}
    rows = []
    for subscription in catalog.subscriptions:
        card = cards[plans[subscription.plan].rate_card]
        bounds = [*(version.effective_from for version in card.versions[1:]), _FAR]
        for version, superseded in zip(card.versions, bounds):
            starts = max(subscription.start, version.effective_from)
            ends = min(subscription.end or _FAR, superseded)
            if starts < ends:
                names = (subscription.account, subscription.id, version.version, card.currency)
                rows.append((len(rows), *names, starts, ends))
    names = ("term", "account_id", "subscription_id", "version", "currency", "starts", "ends")
    kinds = {"term": pa.uint32(), "starts": MICROSECONDS, "ends": MICROSECONDS}
    return _table(names, rows, kinds)


def tiers(catalog: Catalog) -> pa.Table:
    """Prices by meter and version, tier by tier (floor, ceiling].

    `exact_price` is that of one unit, which 12 decimals have to hold.
    """
    rows = []
    for card in catalog.rate_cards:
        for version in card.versions:
            for charge, price in version.prices.items():
                floor = Decimal(0)
                steps = price.tiers if price.model == "graduated" else (price,)
                for number, step in enumerate(steps, start=1):
                    ceiling = getattr(step, "up_to", None) or _WITHOUT_END
                    flat_fee = getattr(step, "flat_fee", Decimal(0))
                    prices = (step.unit_price / price.per, step.unit_price, flat_fee)
                    rows.append((charge, version.version, number, floor, ceiling, *prices))
                    floor = ceiling
    names = ("meter_id", "version", "tier", "floor", "ceiling", "exact_price", "unit_price", "flat_fee")
    kinds = {"tier": pa.uint16(), "floor": QUANTITY, "ceiling": QUANTITY}
    return _table(names, rows, kinds | {"exact_price": _EXACT, "unit_price": AMOUNT, "flat_fee": AMOUNT})


def _table(names: tuple[str, ...], rows: list[tuple], kinds: dict[str, pa.DataType]) -> pa.Table:
    return pa.table({name: pa.array(column, kinds.get(name)) for name, column in zip(names, zip(*rows))})
