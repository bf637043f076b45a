"""Terms that tell plans apart, where a charge's usage of one billing period cannot be told apart by plan.

It cannot where the plan changes within the period and the charge is one charge all the same: as its tiers carry over,
or as the subscription's own price for it stays (docs/rules.md, section 19).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import NamedTuple

from meterline.schemas.calendars import number_at, start_of
from meterline.schemas.catalog import FIRST_TERMS, Account, Catalog, Charge, Plan, Subscription
from meterline.schemas.catalog_findings import Finding, Place
from meterline.schemas.catalog_money import Commitment, Discount, Grant
from meterline.schemas.catalog_payers import paid_subscriptions

_REMEDY = "or let the plan change with a billing period"


class _Step(NamedTuple):
    """From when on a subscription is on a plan; `own` names the price of its own for a charge, if it has one."""

    begin: datetime
    plan: str
    own: str
    at: Place


class _Meeting(NamedTuple):
    """A charge that is one charge under two plans, in a billing period [start, end)."""

    subscription: Subscription
    charges: tuple[Charge, Charge]
    plans: tuple[str, str]
    start: datetime
    end: datetime
    at: Place
    why: str


def findings(catalog: Catalog) -> Iterator[Finding]:
    """Scopes, tax and the like that would have to tell them apart."""
    accounts = {account.id: account for account in catalog.accounts}
    plans = {plan.id: (number, plan) for number, plan in enumerate(catalog.plans)}
    with_tax = {card.id for card in catalog.rate_cards if card.prices_include_tax}
    scoped = _Scoped(catalog)
    for payer, paid in paid_subscriptions(catalog).items():
        for number, subscription in paid:
            if all(name in plans for name in subscription.plans) and payer in accounts:
                for one in _meetings(number, subscription, {name: plan for name, (_, plan) in plans.items()}):
                    yield from _taxes(one, accounts[payer], plans, with_tax)
                    yield from _scopes(one, payer, scoped)


def _meetings(number: int, subscription: Subscription, plans: dict[str, Plan]) -> Iterator[_Meeting]:
    calendar = subscription.calendar
    charges = {one.id: None for name in subscription.plans for one in plans[name].charges}
    periods = {
        number_at(subscription.begin_of(change), calendar): None for change in subscription.changes if change.plan
    }
    for period in periods:
        start, end = start_of(period, calendar), start_of(period + 1, calendar)
        for charge_id in charges:
            first: dict[str, tuple[str, Charge]] = {}
            for step in _steps(number, subscription, charge_id, start, end):
                charge = next((one for one in plans[step.plan].charges if one.id == charge_id), None)
                carries = subscription.tiers_at_change == "carry_over" and charge is not None and charge.meter
                if charge is None or not (carries or step.own):
                    continue
                before = first.setdefault("" if carries else step.own, (step.plan, charge))
                if before[0] != step.plan:
                    why = "its tiers carry over" if carries else "its own price stays"
                    pair = (before[1], charge), (before[0], step.plan)
                    yield _Meeting(subscription, *pair, start, end, step.at, why)


def _steps(number: int, subscription: Subscription, charge_id: str, start: datetime, end: datetime) -> Iterator[_Step]:
    """What is in force in some of [start, end), outside of a trial."""
    own = FIRST_TERMS if charge_id in subscription.prices else ""
    steps = [_Step(subscription.start, subscription.plan, own, ("subscriptions", number, "plan"))]
    for position, change in enumerate(subscription.changes):
        own = change.name if charge_id in change.prices else steps[-1].own
        at: Place = ("subscriptions", number, "changes", position)
        steps.append(_Step(subscription.begin_of(change), change.plan or steps[-1].plan, own, at))
    since = max(start, subscription.trial_end or start)
    until = min(end, subscription.end or end)
    ends = [*(step.begin for step in steps[1:]), until]
    for step, ended in zip(steps, ends):
        if max(step.begin, since) < min(ended, until):
            yield step


def _taxes(
    one: _Meeting, account: Account, plans: dict[str, tuple[int, Plan]], with_tax: set[str]
) -> Iterator[Finding]:
    if account.tax is None:
        return
    before, after = one.charges
    number, plan = plans[one.plans[1]]
    if before.product_code != after.product_code:
        codes = [code or "none" for code in (before.product_code, after.product_code)]
        message = (
            f"the product code of charge {after.id} changes from {codes[0]} to {codes[1]} within a billing period, "
            f"where {one.why}, so that tax cannot tell its usage apart; give both plans one code, {_REMEDY}"
        )
        yield Finding(one.at, message, ("plans", number, "charges", plan.charges.index(after)))
    if (plans[one.plans[0]][1].rate_card in with_tax) != (plan.rate_card in with_tax):
        message = (
            f"whether the prices of charge {after.id} include tax changes within a billing period, where {one.why}, so "
            f"that tax cannot tell its usage apart; {_REMEDY.removeprefix('or ')}"
        )
        yield Finding(one.at, message, ("plans", number, "rate_card"))


@dataclass
class _Scoped:
    """The records that name plans, by whom they may be for; coupons with their redemptions."""

    catalog: Catalog

    @cached_property
    def _of_payer(self) -> dict[str, list[tuple[str, int, Commitment | Grant]]]:
        found: dict[str, list[tuple[str, int, Commitment | Grant]]] = {}
        records: list[tuple[str, int, Commitment | Grant]] = []
        records += [("commitments", number, one) for number, one in enumerate(self.catalog.commitments)]
        records += [("grants", number, one) for number, one in enumerate(self.catalog.grants)]
        for section, number, record in records:
            if record.plans:
                found.setdefault(record.account, []).append((section, number, record))
        return found

    @cached_property
    def _discounts(self) -> list[tuple[str, int, Discount]]:
        return [
            ("discounts", number, one)
            for number, one in enumerate(self.catalog.discounts)
            if one.plans and one.code is None
        ]

    @cached_property
    def _redeemed(self) -> dict[tuple[str, str], dict[int, datetime]]:
        """By account or subscription, the coupons and when they were redeemed first."""
        coupons = {one.id: number for number, one in enumerate(self.catalog.discounts) if one.plans and one.code}
        found: dict[tuple[str, str], dict[int, datetime]] = {}
        for one in self.catalog.redemptions:
            if one.discount in coupons:
                whose = ("account", one.account) if one.account else ("subscription", one.subscription or "")
                numbers = found.setdefault(whose, {})
                number = coupons[one.discount]
                numbers[number] = min(one.redeemed_at, numbers.get(number, one.redeemed_at))
        return found

    def of(self, one: _Meeting, payer: str) -> Iterator[tuple[str, int, Discount | Commitment | Grant]]:
        """Those that may be about the subscription's charges of the period."""
        for record in (*self._of_payer.get(payer, ()), *self._discounts):
            if _may_hold(record[2], one, payer):
                yield record
        redeemed = (self._redeemed.get(by, {}) for by in (("account", payer), ("subscription", one.subscription.id)))
        for number in sorted({number for some in redeemed for number, first in some.items() if first < one.end}):
            yield "discounts", number, self.catalog.discounts[number]


def _scopes(one: _Meeting, payer: str, scoped: _Scoped) -> Iterator[Finding]:
    charge = one.charges[1]
    for section, number, record in scoped.of(one, payer):
        names = (not record.charges or charge.id in record.charges) and (
            not record.meters or charge.meter in record.meters
        )
        if names and len({plan in record.plans for plan in one.plans}) == 2:
            message = (
                f"subscription {one.subscription.id} goes from plan {one.plans[0]} to {one.plans[1]} within a "
                f"billing period, where {one.why}, so that usage of charge {charge.id} cannot be told apart by "
                f"plan; name both plans, leave `plans` out, {_REMEDY}"
            )
            yield Finding((section, number, "plans"), message, one.at)


def _may_hold(record: Discount | Commitment | Grant, one: _Meeting, payer: str) -> bool:
    """Whether what needs no redemption may be about the subscription's charges of the period."""
    match record:
        case Commitment():
            return record.start <= one.start and (not record.end or one.start < record.end)
        case Grant():
            return record.effective_from < one.end and (record.expires is None or one.start < record.expires)
    return (
        (not record.accounts or payer in record.accounts)
        and (not record.subscriptions or one.subscription.id in record.subscriptions)
        and record.has(one.start)
    )
