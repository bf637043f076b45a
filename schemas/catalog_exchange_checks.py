"""What only a whole catalog can show of custom units and exchange rates; `catalog_checks` asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from meterline.schemas.calendars import number_at, start_of
from meterline.schemas.catalog import Account, Catalog, Fixed, RateCard, Subscription
from meterline.schemas.catalog_exchange import ExchangeRate, invoice_currency
from meterline.schemas.catalog_findings import Finding, Place
from meterline.schemas.catalog_payers import paid_subscriptions
from meterline.schemas.currency import is_unit

Pairs = Mapping[tuple[str, str], tuple[int, ExchangeRate]]


def references(catalog: Catalog) -> Iterator[tuple[Place, str, str]]:
    """Where a record names a custom unit, the field of `Catalog` that should hold it, and the id."""
    for number, card in enumerate(catalog.rate_cards):
        if is_unit(card.currency):
            yield ("rate_cards", number, "currency"), "custom_units", card.currency
    for number, rate in enumerate(catalog.exchange_rates):
        if is_unit(rate.source):
            yield ("exchange_rates", number, "from"), "custom_units", rate.source


def findings(catalog: Catalog, complete: bool) -> Iterator[Finding]:
    """Every mistake between records; where not `complete`, others may be missing."""
    pairs: dict[tuple[str, str], tuple[int, ExchangeRate]] = {}
    for number, rate in enumerate(catalog.exchange_rates):
        before, _ = pairs.setdefault((rate.source, rate.target), (number, rate))
        if before != number:
            message = f"another record has the rates from {rate.source} to {rate.target}, put these there"
            yield Finding(("exchange_rates", number), message, ("exchange_rates", before))
    for number, account in enumerate(catalog.accounts):
        if account.invoice_currency is not None and not account.is_billed:
            message = f"account {account.id} gets no invoice, expected one that is billed"
            yield Finding(("accounts", number, "invoice_currency"), message)
    if complete:
        yield from _invoiced(catalog, pairs)


def _invoiced(catalog: Catalog, pairs: Pairs) -> Iterator[Finding]:
    """Prices that no invoice can be made of."""
    accounts = {account.id: (number, account) for number, account in enumerate(catalog.accounts)}
    cards = {card.id: (number, card) for number, card in enumerate(catalog.rate_cards)}
    plans = {plan.id: plan for plan in catalog.plans}
    told: set[tuple[str, str]] = set()
    for payer, paid in paid_subscriptions(catalog).items():
        for number, subscription in paid:
            if payer not in accounts or any(name not in plans for name in subscription.plans):
                continue
            used = [cards[plans[name].rate_card] for name in subscription.plans if plans[name].rate_card in cards]
            if not used:
                continue
            card_number, card = used[0]
            place, account = accounts[payer]
            into = invoice_currency(account.invoice_currency, card.currency, catalog.exchange_rates)
            if pair := pairs.get((card.currency, into)):
                yield from _first_rate(number, subscription, [one for _, one in used], *pair)
            elif (into != card.currency or is_unit(into)) and (payer, card.currency) not in told:
                told.add((payer, card.currency))
                yield _no_rate(place, account, card_number, card, pairs)


def _no_rate(place: int, account: Account, card_number: int, card: RateCard, pairs: Pairs) -> Finding:
    prices: Place = ("rate_cards", card_number, "currency")
    known = " and ".join(sorted(target for source, target in pairs if source == card.currency))
    if account.invoice_currency is not None:
        message = (
            f"is {account.invoice_currency}, but rate card {card.id} is in {card.currency}, and no exchange rate goes "
            f"from {card.currency} to {account.invoice_currency}"
        )
        return Finding(("accounts", place, "invoice_currency"), message, prices)
    if known:
        message = f"`invoice_currency` is missing: {card.currency}, which it pays in, has exchange rates to {known}"
        return Finding(("accounts", place), message, prices)
    message = f"is {card.currency}, which has no exchange rate to a currency that {account.id} could be invoiced in"
    return Finding(prices, message, ("accounts", place))


def _first_rate(
    number: int, subscription: Subscription, cards: list[RateCard], rate_number: int, rate: ExchangeRate
) -> Iterator[Finding]:
    """Rates that begin too late for the subscription's first billing period."""
    first, calendar = rate.rates[0], subscription.calendar
    period = number_at(subscription.start, calendar)
    start, end = start_of(period, calendar), start_of(period + 1, calendar)
    prices = [price for card in cards for version in card.versions for price in version.prices.values()]
    prices += [
        *subscription.prices.values(),
        *(one for change in subscription.changes for one in change.prices.values()),
    ]
    in_advance = any(isinstance(price, Fixed) and price.billed == "in_advance" for price in prices)
    if first.effective_from > start if in_advance else first.effective_from >= end:
        what = f"starts at {start.isoformat()}" if in_advance else f"ends at {end.isoformat()}"
        message = (
            f"takes effect at {first.effective_from.isoformat()}, too late for the first billing period of "
            f"subscription {subscription.id}, which {what}"
        )
        yield Finding(("exchange_rates", rate_number, "rates", 0, "effective_from"), message, ("subscriptions", number))
