"""Included units that earlier billing periods have left: what they pay for is taken off.

What is left follows from usage, whatever was issued: docs/decisions/0017.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from meterline.schemas.event import plain_text
from meterline.schemas.records import RatingKey
from meterline.transforms.rules.allowances import Lot, Use, total, uses
from meterline.transforms.rules.billing.bill import Bill, Circumstances
from meterline.transforms.rules.fees import BilledKey
from meterline.transforms.rules.pricing import charge

_ZERO = Decimal(0)


class _Series(NamedTuple):
    """What the rating keys of a charge have in common, whatever their period and price."""

    tenant_id: str
    billing_account_id: str
    subscription_id: str
    charge_id: str
    dimensions: tuple[tuple[str, str], ...]


def rollover(bill: Bill, around: Circumstances) -> None:
    """Take off what usage costs that earlier periods had units left for.

    Source: docs/rules.md, "Included units that are carried over".
    """
    if around.carried is not None:
        for one, amount in around.carried.items():
            bill.add(one, amount, {})
            charge_of = one._replace(kind="charge", source="")
            bill.net[charge_of] = bill.net.get(charge_of, _ZERO) + amount
        return
    charges: dict[_Series, dict[str, list[BilledKey]]] = {}
    for one in sorted(bill.net):
        if around.contracts.carries_over(one.key):
            charges.setdefault(_series(one.key), {}).setdefault(one.key.rate_card_version, []).append(one)
    earlier: dict[_Series, dict[datetime, dict[str, Decimal]]] = {}
    for key, quantity in around.earlier.items() if charges else ():
        earlier.setdefault(_series(key), {}).setdefault(key.period_start, {})[key.rate_card_version] = quantity
    for series, by_name in charges.items():
        used = {name: sum((bill.targets[one].quantity for one in lines), _ZERO) for name, lines in by_name.items()}
        key = next(iter(by_name.values()))[0].key
        since = around.contracts.carried_since(key)
        for use in uses(around.book, key, used, earlier.get(series, {}), since):
            if use.used:
                _take_off(bill, around, use, used[use.name], by_name[use.name])


def _series(key: RatingKey) -> _Series:
    return _Series(key.tenant_id, key.billing_account_id, key.subscription_id, key.charge_id, key.dimensions)


def _take_off(bill: Bill, around: Circumstances, use: Use, quantity: Decimal, lines: list[BilledKey]) -> None:
    """What the units cost, as if they had not been used; never less than nothing, as where a volume price rises."""
    full, reduced = charge(use.price, quantity), charge(use.price, quantity - use.used)
    of = sum((bill.net[one] for one in lines), _ZERO)
    converted = bill.conversions.get(lines[0].key)
    rate = converted.rate if converted else Decimal(1)
    off = min(bill.rounded(full * rate, around.rounding) - bill.rounded(reduced * rate, around.rounding), of)
    if off <= 0:
        return
    numbers = {
        "quantity": quantity,
        "included": use.price.included,
        "carried": total(use.carried),
        "used": use.used,
        "full": full,
        "reduced": reduced,
        "of": of,
    }
    terms = {**{name: plain_text(value) for name, value in numbers.items()}, "left_by": _by_label(use.carried)}
    if converted:
        terms |= {"from": converted.source, "rate": plain_text(rate)}
    for one, part in bill.take(off, lines).items():
        bill.add(one._replace(kind="rollover", source=one.key.charge_id), -part, terms)


def _by_label(lots: Iterable[Lot]) -> dict[str, str]:
    return {lot.label: plain_text(lot.units) for lot in lots}
