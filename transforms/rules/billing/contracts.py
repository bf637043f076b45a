"""The catalog's terms of discounts, tax and the like, indexed for questions about one charge or account."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import NamedTuple

from meterline.schemas.catalog import Prices, Subscription
from meterline.schemas.catalog_allowance_checks import rollover_periods
from meterline.schemas.catalog_money import Commitment, Discount, Grant, Redemption, Scope, TaxRate
from meterline.schemas.event import LATEST_TIME
from meterline.schemas.records import RatingKey
from meterline.transforms.rules.allowances import carried_since
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.billing.exchange import Exchange
from meterline.transforms.rules.contracts import own_prices
from meterline.transforms.rules.periods import (
    Period,
    billing_period,
    billing_periods,
    period_with_label,
    utc_days_of_label,
)

COMMITMENT_KINDS = ("prepayment", "prepaid", "true_up", "overage")


class Reach(NamedTuple):
    """Usage in billing periods that start in [since, until), of some subscriptions' charges."""

    accounts: list[str]
    subscriptions: list[str]
    charges: list[str]
    since: datetime
    until: datetime


@dataclass(frozen=True)
class Contracts:
    book: Directory

    @cached_property
    def exchange(self) -> Exchange:
        return Exchange(self.book)

    @cached_property
    def subscriptions(self) -> dict[str, list[Subscription]]:
        """By the billing account that pays for them, the first to start first."""
        found: dict[str, list[Subscription]] = {}
        for one in sorted(self.book.catalog.subscriptions, key=lambda one: (one.start, one.id)):
            found.setdefault(self.book.billing_account_of(one.account), []).append(one)
        return found

    @cached_property
    def _redemptions(self) -> dict[str, dict[str, list[Redemption]]]:
        """By discount, and by the account or subscription that has it."""
        found: dict[str, dict[str, list[Redemption]]] = {}
        for one in self.book.catalog.redemptions:
            found.setdefault(one.discount, {}).setdefault(_payer(one.account, one.subscription), []).append(one)
        return found

    def redemptions(self, discount: Discount, key: RatingKey) -> Iterator[Redemption]:
        """Those of a coupon that the account or the subscription of a charge has."""
        by_payer = self._redemptions.get(discount.id, {})
        for payer in _payers(key):
            yield from by_payer.get(payer, ())

    @cached_property
    def _discounts(self) -> dict[str, list[Discount]]:
        """By the account or subscription that has them; under the empty string, those that all have."""
        found: dict[str, list[Discount]] = {}
        for one in self.book.catalog.discounts:
            having = [_payer(account, None) for account in one.accounts] or [""]
            if one.subscriptions:
                having = [_payer(None, subscription) for subscription in one.subscriptions]
            if one.code is not None:
                having = list(self._redemptions.get(one.id, ()))
            for payer in having:
                found.setdefault(payer, []).append(one)
        return found

    def discounts(self, keys: Iterable[RatingKey]) -> list[Discount]:
        """Those that some charges may have, percentages first, then amounts, by id."""
        having = {payer for key in keys for payer in ("", *_payers(key))}
        found = {one.id: one for payer in having for one in self._discounts.get(payer, ())}
        return sorted(found.values(), key=lambda one: (one.percent is None, one.id))

    def name_of(self, kind: str, source: str) -> str:
        """What people call the record that a line is by."""
        return self._names.get((kind, source)) or source

    @cached_property
    def _names(self) -> dict[tuple[str, str], str]:
        catalog = self.book.catalog
        names = {("discount", one.id): one.name for one in catalog.discounts}
        names |= {("credit", one.id): one.name for one in catalog.grants}
        names |= {(kind, one.id): one.name for kind in COMMITMENT_KINDS for one in catalog.commitments}
        names |= {("rollover", charge.id): "Carried over" for plan in catalog.plans for charge in plan.charges}
        return names | {(kind, one.id): one.name for kind in ("tax", "included_tax") for one in catalog.tax_rates}

    @cached_property
    def _product_codes(self) -> dict[tuple[str, str], str | None]:
        return {
            (plan.id, charge.id): charge.product_code for plan in self.book.catalog.plans for charge in plan.charges
        }

    @cached_property
    def _tax_rates(self) -> dict[tuple[str, str | None], TaxRate]:
        """By jurisdiction and product code, None for all others."""
        return {
            (rate.jurisdiction, code): rate
            for rate in self.book.catalog.tax_rates
            for code in (rate.product_codes or (None,))
        }

    @cached_property
    def commitments(self) -> dict[str, list[Commitment]]:
        """By account, and by id."""
        found: dict[str, list[Commitment]] = {}
        for one in sorted(self.book.catalog.commitments, key=lambda one: one.id):
            found.setdefault(one.account, []).append(one)
        return found

    @cached_property
    def grants(self) -> dict[str, list[Grant]]:
        """By account, in the order in which they are drawn."""
        found: dict[str, list[Grant]] = {}
        for one in sorted(self.book.catalog.grants, key=lambda one: (one.priority, one.expires or LATEST_TIME, one.id)):
            found.setdefault(one.account, []).append(one)
        return found

    @cached_property
    def carried_over(self) -> dict[str, dict[tuple[str, str], int]]:
        """By the billing account that pays for a subscription: the subscription and its charge whose included units are
        carried over, and in how many further periods at most they can be used."""
        of_cards = {
            card.id: _longest(version.prices for version in card.versions) for card in self.book.catalog.rate_cards
        }
        found: dict[str, dict[tuple[str, str], int]] = {}
        for one in self.book.catalog.subscriptions:
            longest = _longest(prices for _, prices in own_prices(one)) if one.prices or one.changes else {}
            for plan in one.plans:
                for charge, periods in of_cards[self.book.plans[plan].rate_card].items():
                    longest[charge] = max(longest.get(charge, 0), periods)
            if longest:
                payer = found.setdefault(self.book.billing_account_of(one.account), {})
                payer.update({(one.id, charge): periods for charge, periods in longest.items()})
        return found

    def carries_over(self, key: RatingKey) -> bool:
        """Whether included units of a charge are carried over to its key."""
        return (key.subscription_id, key.charge_id) in self.carried_over.get(key.billing_account_id, ())

    def carried_since(self, key: RatingKey) -> datetime:
        """From when on usage matters to what is carried over to a key."""
        longest = self.carried_over[key.billing_account_id][key.subscription_id, key.charge_id]
        return carried_since(self.book.subscriptions[key.subscription_id], longest, key.period_start)

    def carried_from(self, label: str, accounts: Iterable[str]) -> Reach | None:
        """Whose earlier usage matters to what is carried into periods with a label; None where nothing is."""
        wanted, instants = [], []
        for account in accounts:
            for (name, charge), longest in self.carried_over.get(account, {}).items():
                subscription = self.book.subscriptions[name]
                period = period_with_label(label, subscription.calendar)
                if period is not None and subscription.start < period.start:
                    wanted.append((account, name, charge))
                    instants.append((carried_since(subscription, longest, period.start), period.start, subscription))
        if not wanted:
            return None
        since = min(billing_period(at, one.calendar).start for at, _, one in instants)
        payers, subscriptions, charges = (sorted(set(column)) for column in zip(*wanted))
        return Reach(payers, subscriptions, charges, since, max(until for _, until, _ in instants))

    def promised(self, label: str, accounts: Container[str]) -> Iterator[tuple[str, str, str]]:
        """Tenant, account and currency of those that owe something for a period, used or not."""
        for account, commitments in self.commitments.items():
            calendars = [one.calendar for one in self.subscriptions.get(account, ())]
            if account not in accounts or not any(period_with_label(label, calendar) for calendar in calendars):
                continue
            period = self.period_of(account, label)
            for one in commitments:
                if self.owes(one, period):
                    yield self.book.accounts[account].tenant, account, one.currency

    def owes(self, one: Commitment, period: Period) -> bool:
        """Whether a commitment holds for a period of its account. A minimum is no more owed by who has left."""
        if period.start < one.start or (one.end is not None and one.end <= period.start):
            return False
        return one.kind != "minimum" or any(
            subscription.covers_some_of(period.start, period.end)
            for subscription in self.subscriptions.get(one.account, ())
        )

    def covers(self, scope: Scope, key: RatingKey) -> bool:
        """Whether a charge is one of those that the scope names."""
        return (
            (not scope.charges or key.charge_id in scope.charges)
            and (not scope.meters or key.meter_id in scope.meters)
            and (not scope.plans or self.book.plan_of(key) in scope.plans)
        )

    def product_code(self, key: RatingKey) -> str | None:
        return self._product_codes.get((self.book.plan_of(key), key.charge_id))

    def tax_rate(self, jurisdiction: str, code: str | None) -> TaxRate | None:
        """That which names the code, else that for all others."""
        return self._tax_rates.get((jurisdiction, code)) or self._tax_rates.get((jurisdiction, None))

    def includes_tax(self, key: RatingKey) -> bool:
        plan = self.book.plans.get(self.book.plan_of(key))
        return plan is not None and self.book.rate_cards[plan.rate_card].prices_include_tax

    def period_of(self, billing_account_id: str, label: str) -> Period:
        """The period that an account has with a label: of the first of its subscriptions which has one then, else of
        the first which ever has one."""
        known = self._periods.get((billing_account_id, label))
        if known is None:
            found = [
                (not one.covers_some_of(period.start, period.end), period)
                for one in self.subscriptions.get(billing_account_id, ())
                if (period := period_with_label(label, one.calendar))
            ]
            known = min(found, key=lambda one: one[0])[1] if found else utc_days_of_label(label)
            self._periods[billing_account_id, label] = known
        return known

    @cached_property
    def _periods(self) -> dict[tuple[str, str], Period]:
        """Those found, as every line of other periods asks for its own."""
        return {}

    def period_before(self, billing_account_id: str, period: Period) -> Period | None:
        """The account's period that ends where one of its periods starts; None where it has no calendar."""
        for one in self.subscriptions.get(billing_account_id, ()):
            if period_with_label(period.label, one.calendar) == period:
                return billing_period(period.start - timedelta(seconds=1), one.calendar)
        return None

    def periods_since(self, key: RatingKey, since: datetime) -> list[Period]:
        """The billing periods of the key's subscription from that which holds `since` up to the key's own."""
        subscription = self.book.subscriptions.get(key.subscription_id)
        return list(billing_periods(since, key.period_end, subscription.calendar)) if subscription else []


def _longest(prices: Iterable[Prices]) -> dict[str, int]:
    """By charge, the most periods for which one of the prices carries included units over; those that do."""
    found: dict[str, int] = {}
    for by_charge in prices:
        for charge, price in by_charge.items():
            if periods := rollover_periods(price):
                found[charge] = max(found.get(charge, 0), periods)
    return found


def _payer(account: str | None, subscription: str | None) -> str:
    return f"account {account}" if subscription is None else f"subscription {subscription}"


def _payers(key: RatingKey) -> tuple[str, str]:
    return _payer(key.billing_account_id, None), _payer(None, key.subscription_id)


_CONTRACTS: dict[str, Contracts] = {}


def contracts(book: Directory) -> Contracts:
    """The terms of a catalog; indexed once in a process for catalogs of one digest."""
    digest = book.catalog.digest
    if digest not in _CONTRACTS:
        _CONTRACTS[digest] = Contracts(book)
    return _CONTRACTS[digest]
