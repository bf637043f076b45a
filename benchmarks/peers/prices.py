"""The catalog as tables, for peers that price in SQL."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa

from meterline.schemas.catalog import Catalog

MICROSECONDS = 1_000_000
_PRICE = pa.decimal128(18, 12)
_QUANTITY = pa.decimal128(38, 12)
_AMOUNT = pa.decimal128(38, 18)
_FAR = datetime(2200, 1, 1, tzinfo=UTC)


def terms(catalog: Catalog, first: int, last: int) -> pa.Table:
    """Who pays, by which prices: one row for each subject, UTC month, subscription and rate-card version in force.

    `starts` and `ends` are microseconds since 1970, the period's bounds seconds. Only what the benchmark's catalog uses:
    subscriptions anchored on the first of a UTC month, without parents, further subjects and unpriced usage.

    Args:
      first, last: Microseconds since 1970 of the first and the last event.
    """
    plans = {plan.id: plan for plan in catalog.plans}
    cards = {card.id: card for card in catalog.rate_cards}
    rows = []
    for subscription in catalog.subscriptions:
        versions = sorted(cards[plans[subscription.plan].rate_card].versions, key=lambda one: one.effective_from)
        bounds = [*(one.effective_from for one in versions[1:]), _FAR]
        for version, superseded in zip(versions, bounds):
            for start, end in _months(first, last):
                begins = max(start, subscription.start, version.effective_from)
                ends = min(end, subscription.end or _FAR, superseded)
                if begins < ends:
                    rows.append(
                        {
                            "term": len(rows),
                            "subject": subscription.account,
                            "account_id": subscription.account,
                            "subscription_id": subscription.id,
                            "version": version.version,
                            "currency": cards[plans[subscription.plan].rate_card].currency,
                            "starts": int(begins.timestamp()) * MICROSECONDS,
                            "ends": int(ends.timestamp()) * MICROSECONDS,
                            "period_start": int(start.timestamp()),
                            "period_end": int(end.timestamp()),
                        }
                    )
    return pa.Table.from_pylist(rows)


def tiers(catalog: Catalog) -> pa.Table:
    """Prices by meter and version, tier by tier; `exact_price` is that of one unit, and has to be exact to 12 decimals."""
    rows = []
    for card in catalog.rate_cards:
        for version in card.versions:
            for charge, price in version.prices.items():
                steps = price.tiers if price.model == "graduated" else [price]
                floor = Decimal(0)
                for number, step in enumerate(steps, start=1):
                    ceiling = getattr(step, "up_to", None) or Decimal(10) ** 20
                    rows.append(
                        {
                            "meter_id": charge,
                            "version": version.version,
                            "tier": number,
                            "floor": floor,
                            "ceiling": ceiling,
                            "exact_price": step.unit_price / price.per,
                            "unit_price": step.unit_price,
                            "flat_fee": getattr(step, "flat_fee", Decimal(0)),
                        }
                    )
                    floor = ceiling
    names = {
        "floor": _QUANTITY,
        "ceiling": _QUANTITY,
        "exact_price": _PRICE,
        "unit_price": _AMOUNT,
        "flat_fee": _AMOUNT,
    }
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return pa.table({name: pa.array(values, names.get(name)) for name, values in columns.items()})


def _months(first: int, last: int) -> list[tuple[datetime, datetime]]:
    found = []
    start = datetime.fromtimestamp(first // MICROSECONDS, UTC).replace(day=1, hour=0, minute=0, second=0)
    while start.timestamp() * MICROSECONDS <= last:
        days = calendar.monthrange(start.year, start.month)[1]
        end = datetime.fromtimestamp(start.timestamp() + days * 86_400, UTC)
        found.append((start, end))
        start = end
    return found
