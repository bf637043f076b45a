"""What the catalog says of the price of a line or line item, and when it is in force."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from meterline.runners.price_names import said_of
from meterline.runners.price_words import in_words
from meterline.schemas.catalog import Fixed, UsagePrice
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.contracts import CARRIED


class InForce(NamedTuple):
    """A price, what it is called, and from when on it is in force in the billing period."""

    since: datetime
    name: str
    price: UsagePrice | Fixed


def prices_of(book: Directory | None, row: Mapping[str, Any]) -> tuple[InForce, ...]:
    """The prices of a line or a line item: one, or none that the catalog has (any more). Where tiers carry over, all of
    the billing period, or that of the usage window."""
    subscription = book.subscriptions.get(row["subscription_id"]) if book else None
    if book is None or subscription is None:
        return ()
    start, end = row["period_start"], row["period_end"]
    dimensions = dict(row["dimensions"])
    if row["rate_card_version"] != CARRIED:
        name = row["rate_card_version"]
        price = book.charge_price(row["subscription_id"], row["charge_id"], name, dimensions.items())
        return () if price is None else (InForce(start, name, price),)
    found = [
        InForce(max(terms.start, start), terms.name, price)
        for terms, price in book.carried(subscription, row["charge_id"], dimensions)
        if price is not None and terms.start < end and start < terms.end
    ]
    if "window_start" in row:
        begun = [one for one in found if one.since <= row["window_start"]]
        return tuple((begun or found[:1])[-1:])
    return tuple(found)


def in_words_of(book: Directory, row: Mapping[str, Any], prices: tuple[InForce, ...], unit: str) -> str:
    """The prices, as one line of text."""
    if len(prices) == 1 and row["rate_card_version"] != CARRIED:
        return in_words(prices[0].price, unit) + _in_force(book, row)
    texts = [f"{said_of(one.name)}: {in_words(one.price, unit)}" for one in prices]
    texts[1:] = [f"from {one.since:%Y-%m-%d %H:%M} UTC {text}" for one, text in zip(prices[1:], texts[1:])]
    return "; ".join([*texts, *(["quantities go on from what was used before"] if len(prices) > 1 else [])])


def _in_force(book: Directory, row: Mapping[str, Any]) -> str:
    """When a price of usage is in force, where that is not all that the subscription covers of the billing period."""
    subscription = book.subscriptions.get(row["subscription_id"])
    if subscription is None or not row["meter_id"]:
        return ""
    start, end = row["period_start"], row["period_end"]
    all_terms = [one for one in book.terms_of(subscription, row["charge_id"]) if one.start < end and start < one.end]
    mine = [one for one in all_terms if one.name == row["rate_card_version"]]
    if len(mine) == len(all_terms):
        return ""
    spans = (
        f"{f'{one.start:%Y-%m-%d %H:%M}' if one.start > start else 'the start of the period'} to "
        f"{f'{one.end:%Y-%m-%d %H:%M}' if one.end < end else 'its end'}"
        for one in mine
    )
    return f"; in force from {' and from '.join(spans)} (UTC), quantities count from there"
