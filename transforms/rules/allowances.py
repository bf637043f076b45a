"""Included units that billing periods leave, and what later ones take of them.

Each period uses its own included units first, then what was carried into it, what lapses first. So what a period has
left depends on no other one, and rating, which gives each period its own units, need not look at another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from meterline.schemas.catalog import LOCAL_TIME, Fixed, Subscription, TimeOfDay, UsagePrice
from meterline.schemas.records import RatingKey
from meterline.transforms.rules.attribution import Directory, chosen
from meterline.transforms.rules.contracts import TRIAL
from meterline.transforms.rules.periods import Period, billing_periods

_ZERO = Decimal(0)
_SECOND = timedelta(seconds=1)


class Lot(NamedTuple):
    """Units that the period with a label has left, and the number of the last period that can use them."""

    label: str
    units: Decimal
    last: int


class Use(NamedTuple):
    """What usage at a price (`name` in its rating key) has of the units that were carried: there, and used."""

    name: str
    price: UsagePrice
    carried: Sequence[Lot]
    used: Decimal


class _InForce(NamedTuple):
    name: str
    price: UsagePrice
    is_last: bool


Used = Mapping[str, Decimal]
"""Units by the name of their price in rating keys."""


def carried_since(subscription: Subscription, longest: int, period_start: datetime) -> datetime:
    """From when on usage matters to what is carried into a period.

    Args:
      longest: In how many periods at most units can be used. Where it is one, only the period before matters; else what
        that has left of older ones, and so on.
    """
    return max(subscription.start, period_start - _SECOND) if longest == 1 else subscription.start


def uses(book: Directory, key: RatingKey, used: Used, earlier: Mapping[datetime, Used], since: datetime) -> list[Use]:
    """What is taken, in a billing period of a charge, of what earlier ones have left.

    Args:
      key: One of the charge in the period, whatever its price.
      used: In the period.
      earlier: The same of other periods, by their start; what is missing was not used.
      since: From when on periods matter, as `carried_since` says.

    Source: docs/rules.md, "Included units that are carried over".
    """
    subscription = book.subscriptions[key.subscription_id]
    lots: list[Lot] = []
    number = 0
    for number, period in enumerate(billing_periods(since, key.period_start, subscription.calendar), start=1):
        prices = _in_force(book, subscription, key, period)
        lots = _left(lots, number, prices, earlier.get(period.start, {}), period, subscription)
    own = Period(key.period_start, key.period_end, "")
    taken, _ = _taken(lots, number + 1, _in_force(book, subscription, key, own), used)
    return taken


def total(lots: Iterable[Lot]) -> Decimal:
    return sum((lot.units for lot in lots), _ZERO)


def _left(
    lots: list[Lot], number: int, prices: list[_InForce], used: Used, period: Period, subscription: Subscription
) -> list[Lot]:
    """What is carried out of a period, by the terms of the price in force at its end."""
    _, lots = _taken(lots, number, prices, used)
    last = next((one for one in prices if one.is_last), None)
    terms = last.price.included_rollover if last else None
    if last is None or terms is None:
        return []
    lots = [lot for lot in lots if number < lot.last]
    if max(subscription.start, subscription.trial_end or subscription.start) <= period.start:
        units = max(last.price.included - used.get(last.name, _ZERO), _ZERO)
        lots.append(Lot(period.label, units, number + terms.periods))
    lots.sort(key=lambda lot: lot.last)
    over = _ZERO if terms.maximum is None else max(total(lots) - terms.maximum, _ZERO)
    return _without(lots, over)


def _taken(lots: list[Lot], number: int, prices: Iterable[_InForce], used: Used) -> tuple[list[Use], list[Lot]]:
    """What each price takes of the lots that can be used in a period, one after another, and what is left of them."""
    lots = [lot for lot in lots if number <= lot.last]
    taken = []
    for one in prices:
        if one.price.included_rollover is not None:
            units = min(max(used.get(one.name, _ZERO) - one.price.included, _ZERO), total(lots))
            taken.append(Use(one.name, one.price, lots, units))
            lots = _without(lots, units)
    return taken, lots


def _without(lots: Iterable[Lot], units: Decimal) -> list[Lot]:
    """The lots less some units, which those that stand first give."""
    left = []
    for lot in lots:
        given = min(lot.units, units)
        units -= given
        if given < lot.units:
            left.append(lot._replace(units=lot.units - given))
    return left


def _in_force(book: Directory, subscription: Subscription, key: RatingKey, period: Period) -> list[_InForce]:
    """The prices of a charge in a billing period, outside of a trial, in the order in which they take effect."""
    found: dict[str, UsagePrice] = {}
    last = ""
    for terms in book.terms_of(subscription, key.charge_id):
        if terms.end <= period.start or period.end <= terms.start or terms.name.startswith(TRIAL):
            continue
        # Bands of time count for themselves: what has none is no part of theirs.
        banded = any(path == LOCAL_TIME for path, _ in key.dimensions)
        price = None if terms.price is None else chosen(terms.price, dict(key.dimensions))
        if price is None or isinstance(price, Fixed) or banded != isinstance(terms.price, TimeOfDay):
            continue
        found.setdefault(terms.name, price)
        if period.end <= terms.end:
            last = terms.name
    return [_InForce(name, price, name == last) for name, price in found.items()]
