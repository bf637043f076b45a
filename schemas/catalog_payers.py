"""Who pays for which subscriptions, and in which currencies: terms of a whole account are checked against it."""

from __future__ import annotations

from meterline.schemas.catalog import Catalog, Subscription
from meterline.schemas.catalog_exchange import invoice_currency
from meterline.schemas.catalog_findings import Place

Paid = dict[str, list[tuple[int, Subscription]]]


def paid_subscriptions(catalog: Catalog) -> Paid:
    """Subscriptions, with their number in the catalog, by the billing account that pays for them."""
    above = {account.id: None if account.is_billed else account.parent for account in catalog.accounts}
    found: Paid = {}
    for number, subscription in enumerate(catalog.subscriptions):
        name, seen = subscription.account, set[str]()
        while name not in seen and (parent := above.get(name)):
            seen.add(name)
            name = parent
        found.setdefault(name, []).append((number, subscription))
    return found


def billed_currencies(catalog: Catalog) -> dict[str, dict[str, Place]]:
    """The currencies in which accounts get invoices, by account, each with a place in the catalog that says so."""
    plans = {plan.id: plan.rate_card for plan in catalog.plans}
    cards = {card.id: (number, card.currency) for number, card in enumerate(catalog.rate_cards)}
    own = {account.id: (number, account.invoice_currency) for number, account in enumerate(catalog.accounts)}
    found: dict[str, dict[str, Place]] = {}
    for account, paid in paid_subscriptions(catalog).items():
        for _, subscription in paid:
            for plan in subscription.plans:
                if plans.get(plan) in cards:
                    number, currency = cards[plans[plan]]
                    place: Place = ("rate_cards", number, "currency")
                    account_number, chosen = own.get(account, (0, None))
                    if chosen is not None:
                        place = ("accounts", account_number, "invoice_currency")
                    name = invoice_currency(chosen, currency, catalog.exchange_rates)
                    found.setdefault(account, {}).setdefault(name, place)
    return found
