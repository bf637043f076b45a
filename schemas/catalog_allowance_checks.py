"""Where prices carry included units over, and what only a whole catalog shows of that; `catalog_checks` asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from meterline.schemas.catalog import AnyPrice, Catalog, Fixed, Matrix, TimeOfDay, UsagePrice
from meterline.schemas.catalog_findings import Finding, Place


def rollover_periods(price: AnyPrice) -> int:
    """In how many further billing periods units can be used that a price, or one that it chooses, includes; 0: none."""
    found = (one.included_rollover.periods for one in _chosen_from(price) if one.included_rollover)
    return max(found, default=0)


def _chosen_from(price: AnyPrice) -> Iterator[UsagePrice]:
    if isinstance(price, Matrix):
        yield from (row.price for row in price.rows)
        if price.default is not None:
            yield price.default
    elif isinstance(price, TimeOfDay):
        yield from (*(band.price for band in price.bands), price.default)
    elif not isinstance(price, Fixed):
        yield price


def findings(catalog: Catalog) -> Iterator[Finding]:
    """Subscriptions whose tiers carry over, and included units too: it is not said at which price they come off."""
    plans = {plan.id: plan for plan in catalog.plans}
    cards = {card.id: (number, card) for number, card in enumerate(catalog.rate_cards)}
    for number, subscription in enumerate(catalog.subscriptions):
        if subscription.tiers_at_change == "restart":
            continue
        prices = dict(_of(("subscriptions", number), subscription.prices))
        for position, change in enumerate(subscription.changes):
            prices |= _of(("subscriptions", number, "changes", position), change.prices)
        for name in subscription.plans:
            if name in plans and plans[name].rate_card in cards:
                card_number, card = cards[plans[name].rate_card]
                for position, version in enumerate(card.versions):
                    prices |= _of(("rate_cards", card_number, "versions", position), version.prices)
        for at, price in prices.items():
            if rollover_periods(price):
                message = (
                    f"carries included units over, but prices of subscription {subscription.id} change within a period "
                    "without that they begin anew; leave one of the two out"
                )
                yield Finding(at, message, ("subscriptions", number, "tiers_at_change"))


def _of(at: Place, prices: Mapping[str, AnyPrice]) -> Iterator[tuple[Place, AnyPrice]]:
    for charge, price in prices.items():
        yield (*at, "prices", charge), price
