"""Who pays for an event: subject → account → subscription → charge, version and billing period."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import NamedTuple

from meterline.schemas.calendars import Calendar
from meterline.schemas.catalog import (
    LOCAL_TIME,
    Account,
    AnyPrice,
    Catalog,
    Fixed,
    Matrix,
    Plan,
    RateCard,
    Subscription,
    TimeOfDay,
    UsagePrice,
)
from meterline.schemas.event import EARLIEST_TIME, LATEST_TIME
from meterline.schemas.meters import Meter
from meterline.schemas.records import RatingKey
from meterline.transforms.rules.contracts import (
    CARRIED,
    TRIAL,
    Terms,
    name_in_key,
    plan_of,
    price_called,
    terms_of,
)
from meterline.transforms.rules.periods import billing_period
from meterline.transforms.rules.prices.matrix import price_for
from meterline.transforms.rules.prices.parts import NoPriceError
from meterline.transforms.rules.prices.time_of_day import price_in, stretch_at


class Segment(NamedTuple):
    """A stretch [start, end) of time in which an account's usage of a meter is attributed alike.

    Without a subscription, or a price, in force the three ids are empty strings: the usage is unpriced. The band of
    time (docs/rules.md, "Time of day") is None where the price has none.
    """

    start: datetime
    end: datetime
    subscription_id: str
    charge_id: str
    rate_card_version: str
    period_start: datetime
    period_end: datetime
    band: str | None = None

    def dimensions(self, meter: Meter, values: Iterable[str]) -> tuple[tuple[str, str], ...]:
        """The dimensions of a rating key: the meter's, and the band of time where the price has bands."""
        band = () if self.band is None else ((LOCAL_TIME, self.band),)
        return (*zip(meter.dimensions, values), *band)


class Priced(NamedTuple):
    """What a charge's usage costs.

    Where tiers carry over, `price` is in force first, and each of `later` for usage windows that start at its instant
    (seconds since 1970) or later; None is no price.
    """

    price: UsagePrice | None
    currency: str
    later: tuple[tuple[int, UsagePrice | None], ...] = ()

    def at(self, window_start: int) -> UsagePrice:
        """The price of a usage window.

        Raises:
          NoPriceError: it has none.
        """
        price = self.price
        for since, following in self.later:
            if window_start < since:
                break
            price = following
        if price is None:
            raise NoPriceError("no row of a price that is in force in the billing period fits")
        return price

    def check(self, start: int, end: int) -> None:
        """Refuse a billing period [start, end) in which some price in force is missing, whatever was used then.

        Raises:
          NoPriceError: it is.
        """
        self.at(start)
        for since, _ in self.later:
            if start < since < end:
                self.at(since)


@dataclass(frozen=True)
class Directory:
    """The catalog, indexed for questions that the stages ask."""

    catalog: Catalog

    @cached_property
    def accounts(self) -> dict[str, Account]:
        return {account.id: account for account in self.catalog.accounts}

    @cached_property
    def meters(self) -> dict[str, Meter]:
        return {meter.id: meter for meter in self.catalog.meters}

    @cached_property
    def meters_by_type(self) -> dict[str, tuple[Meter, ...]]:
        """Meters that an event type feeds, in order of their ids."""
        by_type: dict[str, tuple[Meter, ...]] = {}
        for meter in sorted(self.catalog.meters, key=lambda meter: meter.id):
            by_type[meter.event_type] = (*by_type.get(meter.event_type, ()), meter)
        return by_type

    @cached_property
    def plans(self) -> dict[str, Plan]:
        return {plan.id: plan for plan in self.catalog.plans}

    @cached_property
    def rate_cards(self) -> dict[str, RateCard]:
        return {card.id: card for card in self.catalog.rate_cards}

    @cached_property
    def subscriptions(self) -> dict[str, Subscription]:
        return {subscription.id: subscription for subscription in self.catalog.subscriptions}

    @cached_property
    def _subjects(self) -> dict[tuple[str, str], str]:
        return {
            (account.tenant, subject): account.id
            for account in self.catalog.accounts
            for subject in (*account.subjects, account.id)
        }

    @cached_property
    def _charges(self) -> dict[tuple[str, str], list[tuple[Subscription, str]]]:
        """By account and meter: the account's own subscriptions that bill the meter, by start, and the charge's id."""
        found: dict[tuple[str, str], list[tuple[Subscription, str]]] = {}
        for subscription in sorted(self.catalog.subscriptions, key=lambda one: (one.start, one.id)):
            charges = {(one.meter, one.id): None for plan in subscription.plans for one in self.plans[plan].charges}
            for meter, charge in charges:
                if meter is not None:
                    found.setdefault((subscription.account, meter), []).append((subscription, charge))
        return found

    @cached_property
    def _terms(self) -> dict[tuple[str, str], list[Terms]]:
        return {}

    def terms_of(self, subscription: Subscription, charge_id: str) -> list[Terms]:
        """The prices of a charge over time."""
        known = self._terms.get((subscription.id, charge_id))
        if known is None:
            known = terms_of(subscription, charge_id, self.plans, self.rate_cards)
            self._terms[subscription.id, charge_id] = known
        return known

    def account_of(self, tenant_id: str, subject: str) -> str | None:
        """The account that a subject is, or belongs to."""
        return self._subjects.get((tenant_id, subject))

    def lineage(self, account_id: str) -> Iterator[Account]:
        """The account and its ancestors, nearest first."""
        current: str | None = account_id
        while current is not None:
            account = self.accounts[current]
            yield account
            current = account.parent

    def billing_account_of(self, account_id: str) -> str:
        """The nearest of the account and its ancestors that gets invoices."""
        return next(account.id for account in self.lineage(account_id) if account.is_billed)

    def segment_at(self, account_id: str, meter_id: str, instant: datetime) -> Segment:
        """The segment that holds an instant.

        Source: docs/rules.md, "Attribution".
        """
        start, end = EARLIEST_TIME, LATEST_TIME
        for account in self.lineage(account_id):
            for subscription, charge_id in self._charges.get((account.id, meter_id), ()):
                if instant < subscription.start:
                    end = min(end, subscription.start)
                elif subscription.end is not None and subscription.end <= instant:
                    start = max(start, subscription.end)
                else:
                    for terms in self.terms_of(subscription, charge_id):
                        if instant < terms.start:
                            end = min(end, terms.start)
                        elif terms.end <= instant:
                            start = max(start, terms.end)
                        else:
                            bounds = max(start, terms.start), min(end, terms.end)
                            return self._priced_segment(subscription, charge_id, terms, instant, *bounds)
        return _unpriced(instant, start, end)

    def _priced_segment(
        self,
        subscription: Subscription,
        charge_id: str,
        terms: Terms,
        instant: datetime,
        start: datetime,
        end: datetime,
    ) -> Segment:
        if not terms.name:
            return _unpriced(instant, start, end)
        period = billing_period(instant, subscription.calendar)
        band = None
        if isinstance(terms.price, TimeOfDay):
            band, band_start, band_end = stretch_at(terms.price, instant, subscription.time_zone)
            start, end = max(start, band_start), min(end, band_end)
        return Segment(
            max(start, period.start),
            min(end, period.end),
            subscription.id,
            charge_id,
            name_in_key(subscription, terms.name),
            period.start,
            period.end,
            band,
        )

    def holds_until(self, key: RatingKey, account_id: str, instant: datetime) -> datetime:
        """From when on an account's usage is not attributed to the key any more that has its usage at an instant.

        It is at most the period's end; that, where the catalog now attributes it to another key.
        """
        if account_id not in self.accounts:
            return key.period_end
        wanted = key.subscription_id, key.charge_id, key.rate_card_version, key.period_start, key.period_end
        end = instant
        while end < key.period_end:
            _, until, *names = self.segment_at(account_id, key.meter_id, end)[:7]
            if tuple(names) != wanted:
                return key.period_end if end == instant else end
            end = until
        return end

    def price_of(
        self, subscription_id: str, charge_id: str, version: str, dimensions: Iterable[tuple[str, str]]
    ) -> Priced | None:
        """What a charge's usage with these dimensions costs; None when the catalog does not know it."""
        if version == CARRIED:
            return self._carried(subscription_id, charge_id, dict(dimensions))
        price = self.charge_price(subscription_id, charge_id, version, dimensions)
        if price is None or isinstance(price, Fixed):
            return None
        return Priced(price, self.currency_of(self.subscriptions[subscription_id]))

    def _carried(self, subscription_id: str, charge_id: str, dimensions: dict[str, str]) -> Priced | None:
        """The same where tiers carry over."""
        subscription = self.subscriptions.get(subscription_id)
        if subscription is None:
            return None
        found = self.carried(subscription, charge_id, dimensions)
        prices = [(int(terms.start.timestamp()), price) for terms, price in found]
        if not any(price for _, price in prices):
            return None
        return Priced(prices[0][1], self.currency_of(subscription), tuple(prices[1:]))

    def carried(
        self, subscription: Subscription, charge_id: str, dimensions: dict[str, str]
    ) -> list[tuple[Terms, UsagePrice | None]]:
        """The terms of a charge outside of a trial, one after another, with the price for some dimensions."""
        found = []
        for terms in self.terms_of(subscription, charge_id):
            if terms.price is not None and not terms.name.startswith(TRIAL):
                price = chosen(terms.price, dimensions)
                if not isinstance(price, Fixed):
                    found.append((terms, price))
        return found

    def charge_price(
        self, subscription_id: str, charge_id: str, version: str, dimensions: Iterable[tuple[str, str]]
    ) -> UsagePrice | Fixed | None:
        """The same for any charge, a fixed fee too; of a price that only chooses one, the price chosen."""
        subscription = self.subscriptions.get(subscription_id)
        if subscription is None:
            return None
        price = price_called(subscription, charge_id, version, self.plans, self.rate_cards)
        return price if price is None else chosen(price, dict(dimensions))

    def plan_of(self, key: RatingKey) -> str:
        """The plan that what a key stands for belongs to; empty when the catalog does not have the subscription (any
        more)."""
        subscription = self.subscriptions.get(key.subscription_id)
        if subscription is None:
            return ""
        asked = key.subscription_id, key.charge_id, key.rate_card_version, key.period_start
        known = self._plans.get(asked)
        if known is None:
            of_key = key.charge_id, key.rate_card_version, key.period_start, key.period_end
            known = self._plans[asked] = plan_of(subscription, *of_key, self.plans)
        return known

    @cached_property
    def _plans(self) -> dict[tuple[str, str, str, datetime], str]:
        """Those found, by what of a key decides, as each term that names plans asks for them."""
        return {}

    def currency_of(self, subscription: Subscription) -> str:
        """The currency of all its plans."""
        return self.rate_cards[self.plans[subscription.plan].rate_card].currency


def chosen(price: AnyPrice, dimensions: dict[str, str]) -> UsagePrice | Fixed | None:
    """Of a price that only chooses one, the price chosen."""
    if isinstance(price, Matrix):
        return price_for(price, dimensions)
    if isinstance(price, TimeOfDay):
        return price_in(price, dimensions.get(LOCAL_TIME, ""))
    return price


def _unpriced(instant: datetime, start: datetime, end: datetime) -> Segment:
    period = billing_period(instant, Calendar())
    return Segment(max(start, period.start), min(end, period.end), "", "", "", period.start, period.end)


_DIRECTORIES: dict[str, Directory] = {}


def directory(catalog: Catalog) -> Directory:
    """The index of a catalog; made once in a process for catalogs of one digest."""
    if catalog.digest not in _DIRECTORIES:
        _DIRECTORIES[catalog.digest] = Directory(catalog)
    return _DIRECTORIES[catalog.digest]
