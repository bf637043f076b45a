"""What only a whole catalog can show of discounts, coupons and tax; `catalog_checks` asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal

from meterline.schemas import catalog_plan_checks
from meterline.schemas.calendars import number_at, start_of
from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_findings import Finding, Place
from meterline.schemas.catalog_money import Scope
from meterline.schemas.catalog_payers import billed_currencies, paid_subscriptions
from meterline.schemas.currency import MINOR_UNITS

SCOPED = ("discounts", "commitments", "grants")
OWNED = ("commitments", "grants")


def references(catalog: Catalog) -> Iterator[tuple[Place, str, str]]:
    """Where a record names another, the field of `Catalog` that should hold it, and the id."""
    for number, discount in enumerate(catalog.discounts):
        for section in ("accounts", "subscriptions"):
            for position, name in enumerate(getattr(discount, section)):
                yield ("discounts", number, section, position), section, name
    for section in SCOPED:
        for number, record in enumerate(getattr(catalog, section)):
            yield from _scope((section, number), record)
    for section in OWNED:
        for number, record in enumerate(getattr(catalog, section)):
            yield (section, number, "account"), "accounts", record.account
    for number, redemption in enumerate(catalog.redemptions):
        yield ("redemptions", number, "discount"), "discounts", redemption.discount
        if redemption.account is not None:
            yield ("redemptions", number, "account"), "accounts", redemption.account
        if redemption.subscription is not None:
            yield ("redemptions", number, "subscription"), "subscriptions", redemption.subscription


def _scope(at: Place, scope: Scope) -> Iterator[tuple[Place, str, str]]:
    for section in ("meters", "plans"):
        for position, name in enumerate(getattr(scope, section)):
            yield (*at, section, position), section, name


def findings(catalog: Catalog, complete: bool) -> Iterator[Finding]:
    """Every mistake between records; where not `complete`, others may be missing."""
    yield from _amounts(catalog)
    yield from _tax_rates(catalog)
    yield from _codes(catalog)
    if complete:
        yield from _charges(catalog)
        yield from _payers(catalog)
        yield from _jurisdictions(catalog)
        yield from _redemptions(catalog)
        yield from _cycles(catalog)
        yield from _currencies(catalog)
        yield from _terms(catalog)
        yield from catalog_plan_checks.findings(catalog)


def _amounts(catalog: Catalog) -> Iterator[Finding]:
    for number, discount in enumerate(catalog.discounts):
        if discount.amount is not None and discount.currency is not None:
            yield from whole(("discounts", number, "amount"), discount.amount, discount.currency)
    for section in OWNED:
        for number, record in enumerate(getattr(catalog, section)):
            yield from whole((section, number, "amount"), record.amount, record.currency)
    for number, grant in enumerate(catalog.grants):
        for limit in ("minimum", "maximum") if grant.rollover else ():
            yield from whole(("grants", number, "rollover", limit), getattr(grant.rollover, limit), grant.currency)


def whole(at: Place, amount: Decimal, currency: str) -> Iterator[Finding]:
    """Amounts of invoices are whole numbers of minor units."""
    digits = MINOR_UNITS[currency]
    if amount != round(amount, digits):
        yield Finding(at, f"is {amount:f}, but {currency} has {digits} decimals")


def _charges(catalog: Catalog) -> Iterator[Finding]:
    """Charges that a scope names, and no plan has."""
    known = {charge.id for plan in catalog.plans for charge in plan.charges}
    for section in SCOPED:
        for number, record in enumerate(getattr(catalog, section)):
            for position, name in enumerate(record.charges):
                if name not in known:
                    yield Finding((section, number, "charges", position), f"no plan has a charge with the id {name!r}")


def _payers(catalog: Catalog) -> Iterator[Finding]:
    """Accounts that are named as one that pays, and get no invoice."""
    by_id = {account.id: (number, account) for number, account in enumerate(catalog.accounts)}

    def check(at: Place, name: str | None) -> Iterator[Finding]:
        if name in by_id and not by_id[name][1].is_billed:
            message = f"account {name} gets no invoice, expected one that is billed"
            yield Finding(at, message, ("accounts", by_id[name][0]))

    for number, discount in enumerate(catalog.discounts):
        for position, name in enumerate(discount.accounts):
            yield from check(("discounts", number, "accounts", position), name)
    for number, redemption in enumerate(catalog.redemptions):
        yield from check(("redemptions", number, "account"), redemption.account)
    for section in OWNED:
        for number, record in enumerate(getattr(catalog, section)):
            yield from check((section, number, "account"), record.account)
    for number, account in enumerate(catalog.accounts):
        if account.tax is not None:
            yield from check(("accounts", number, "tax"), account.id)


def _tax_rates(catalog: Catalog) -> Iterator[Finding]:
    """Two rates of one jurisdiction for one product."""
    first: dict[tuple[str, str], Place] = {}
    for number, rate in enumerate(catalog.tax_rates):
        at: Place = ("tax_rates", number)
        for position, code in enumerate(rate.product_codes):
            place: Place = (*at, "product_codes", position)
            before = first.setdefault((rate.jurisdiction, code), place)
            if before != place:
                yield Finding(place, f"{rate.jurisdiction} has a rate for {code} already", before)
        if not rate.product_codes:
            before = first.setdefault((rate.jurisdiction, ""), at)
            if before != at:
                yield Finding(at, f"{rate.jurisdiction} has a rate without product codes already", before)


def _jurisdictions(catalog: Catalog) -> Iterator[Finding]:
    known = {rate.jurisdiction for rate in catalog.tax_rates}
    for number, account in enumerate(catalog.accounts):
        for position, name in enumerate(account.tax.jurisdictions if account.tax else ()):
            if name not in known:
                yield Finding(
                    ("accounts", number, "tax", "jurisdictions", position), f"no tax rate is of the jurisdiction {name}"
                )


def _redemptions(catalog: Catalog) -> Iterator[Finding]:
    """Coupons that cannot be redeemed, not then, not so often, or not twice by one."""
    discounts = {discount.id: (number, discount) for number, discount in enumerate(catalog.discounts)}
    times: dict[str, int] = {}
    first: dict[tuple[str, str | None, str | None], int] = {}
    for number, redemption in enumerate(catalog.redemptions):
        if redemption.discount not in discounts:
            continue
        place, discount = discounts[redemption.discount]
        at: Place = ("redemptions", number, "discount")
        if discount.code is None:
            yield Finding(at, f"discount {discount.id} is no coupon, it has no `code`", ("discounts", place))
            continue
        if not discount.has(redemption.redeemed_at):
            message = f"is {redemption.redeemed_at.isoformat()}, when coupon {discount.id} could not be redeemed"
            yield Finding(("redemptions", number, "redeemed_at"), message, ("discounts", place))
        by = (discount.id, redemption.account, redemption.subscription)
        if first.setdefault(by, number) != number:
            yield Finding(at, "was redeemed for the same already", ("redemptions", first[by], "discount"))
        times[discount.id] = times.get(discount.id, 0) + 1
        if discount.max_redemptions is not None and times[discount.id] > discount.max_redemptions:
            message = (
                f"coupon {discount.id} can be redeemed {discount.max_redemptions} times at most, this is once more"
            )
            yield Finding(at, message, ("discounts", place, "max_redemptions"))


def _cycles(catalog: Catalog) -> Iterator[Finding]:
    """Commitments of accounts that are billed in more than one cycle, so that it is not said which period counts, or by
    prices that include tax, so that what they spend is not what they promised."""
    with_tax = {card.id for card in catalog.rate_cards if card.prices_include_tax}
    taxed_plans = {plan.id for plan in catalog.plans if plan.rate_card in with_tax}
    first: dict[str, tuple[int, str]] = {}
    mixed: dict[str, int] = {}
    taxed: dict[str, int] = {}
    for account, paid in paid_subscriptions(catalog).items():
        for number, subscription in paid:
            if not taxed_plans.isdisjoint(subscription.plans):
                taxed.setdefault(account, number)
            if first.setdefault(account, (number, subscription.cycle))[1] != subscription.cycle:
                mixed.setdefault(account, number)
    for number, commitment in enumerate(catalog.commitments):
        at: Place = ("commitments", number, "account")
        if commitment.account not in first:
            yield Finding(at, f"account {commitment.account} pays for no subscription, so it has no billing periods")
        elif commitment.account in mixed:
            message = f"the subscriptions of {commitment.account} are billed in different cycles, expected one"
            yield Finding(at, message, ("subscriptions", mixed[commitment.account]))
        elif commitment.account in taxed:
            message = f"{commitment.account} has prices that include tax, and what a commitment promises is without it"
            yield Finding(at, message, ("subscriptions", taxed[commitment.account]))


def _currencies(catalog: Catalog) -> Iterator[Finding]:
    """Credit and promises in a currency in which their account gets no invoice, so that they would never be used."""
    billed = billed_currencies(catalog)
    for section in OWNED:
        for number, record in enumerate(getattr(catalog, section)):
            known = billed.get(record.account, {})
            if known and record.currency not in known:
                message = (
                    f"is {record.currency}, but account {record.account} is billed in {', '.join(known)} alone, so it "
                    "would never be used"
                )
                yield Finding((section, number, "currency"), message, next(iter(known.values())))


def _terms(catalog: Catalog) -> Iterator[Finding]:
    """Commitments that hold for no billing period, as none of their account starts in their term."""
    paid = paid_subscriptions(catalog)
    for number, one in enumerate(catalog.commitments):
        if one.end is None:
            continue
        subscriptions = paid.get(one.account, ())
        held = [place for place in subscriptions if place[1].covers_some_of(one.start, one.end)]
        for place, subscription in held or subscriptions:
            following = start_of(
                number_at(one.start - timedelta(seconds=1), subscription.calendar) + 1, subscription.calendar
            )
            if following >= one.end:
                message = (
                    f"account {one.account} has no billing period that starts from {one.start.isoformat()} on and "
                    f"before {one.end.isoformat()}, so it would never be billed: a commitment is for periods that "
                    f"start in its term; let the term hold the start of one, the next is {following.isoformat()}"
                )
                yield Finding(("commitments", number, "end"), message, ("subscriptions", place))
                break


def _codes(catalog: Catalog) -> Iterator[Finding]:
    """Coupons that share a code, so that it does not say which of them is redeemed."""
    first: dict[str, tuple[int, str]] = {}
    for number, one in enumerate(catalog.discounts):
        if one.code is not None and first.setdefault(one.code, (number, one.id))[0] != number:
            before, name = first[one.code]
            message = f"discount {name} has the code {one.code!r} already, a code is for one coupon"
            yield Finding(("discounts", number, "code"), message, ("discounts", before, "code"))
