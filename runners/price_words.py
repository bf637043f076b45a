"""Prices in words, and what they say of one tier of a charge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import NamedTuple

from meterline.runners.tables import number
from meterline.schemas.catalog import (
    Dynamic,
    Fixed,
    GraduatedPercentage,
    Package,
    Percentage,
    PerUnit,
    Share,
    Stairstep,
    Step,
    Tier,
    UsagePrice,
)

_ZERO, _ONE = Decimal(0), Decimal(1)
_PRORATED = {"second": "", "day": "; prorated by local days", "none": "; not prorated"}


class TierTerms(NamedTuple):
    """What a price says of one tier: its bounds (above, up_to] where it has any, and how its units are sold."""

    unit_price: Decimal
    per: Decimal | None = None
    above: Decimal | None = None
    up_to: Decimal | None = None
    in_packages: bool = False


def tier_terms(price: UsagePrice | Fixed, tier: int) -> TierTerms | None:
    """The terms of tier `tier`, counted from 1 (0: beside the tiers); None where the price has no such tier."""
    if isinstance(price, Fixed):
        return None
    if tier == 0:
        return TierTerms(_ZERO) if price.is_adjusted else None
    if isinstance(price, PerUnit):
        return TierTerms(price.unit_price, price.per)
    if isinstance(price, Package):
        return TierTerms(price.package_price, in_packages=True)
    if isinstance(price, Percentage):
        return TierTerms(price.rate, _ONE)
    if isinstance(price, Dynamic):
        return TierTerms(price.multiplier, _ONE)
    if isinstance(price, GraduatedPercentage):
        price = price.graduated
    bounded: Sequence[Tier | Step] = price.steps if isinstance(price, Stairstep) else price.tiers
    if not 0 < tier <= len(bounded):
        return None
    own = bounded[tier - 1]
    above = (bounded[tier - 2].up_to if tier > 1 else None) or _ZERO
    if isinstance(own, Step) or isinstance(price, Stairstep):
        return TierTerms(_ZERO, None, above, own.up_to)
    if own.package_price is not None:
        return TierTerms(own.package_price, None, above, own.up_to, in_packages=True)
    return TierTerms(own.unit_price, price.per, above, own.up_to)


def in_words(price: UsagePrice | Fixed, unit: str) -> str:
    """The whole price, as one line of text."""
    if isinstance(price, Fixed):
        in_advance = ", in advance" if price.billed == "in_advance" else ""
        return f"fixed fee: {price.amount:,f} for each billing period{in_advance}{_PRORATED[price.prorate]}"
    text = _model_in_words(price, unit)
    if price.included:
        text += f"; counted after {number(price.included)} that are included"
    if price.included_rollover:
        terms = price.included_rollover
        most = f", at most {number(terms.maximum)}" if terms.maximum is not None else ""
        text += f", of which what is left can be used in {_periods(terms.periods)}{most}"
    if price.fee_per_event:
        after = f" after the first {price.free_events:,}" if price.free_events else ""
        text += f"; {price.fee_per_event:,f} more for each event{after}"
    if price.minimum is not None:
        text += f"; at least {price.minimum:,f}"
    return text + (f"; at most {price.maximum:,f}" if price.maximum is not None else "")


def _periods(count: int) -> str:
    return "the next period" if count == 1 else f"the next {count} periods"


def _model_in_words(price: UsagePrice, unit: str) -> str:
    if isinstance(price, Package):
        text = _packages(price.package_size, price.package_price, price.round)
        if price.free_units:
            text += f"; the first {number(price.free_units)} are free"
        return text + (f"; at least {price.minimum_packages} packages" if price.minimum_packages else "")
    if isinstance(price, PerUnit):
        return f"per unit: {price.unit_price:,f} for {'each' if price.per == 1 else number(price.per)}" + (
            f" {unit}" if unit else ""
        )
    if isinstance(price, Percentage):
        return f"percentage: {_share(price)} of the amount"
    if isinstance(price, Dynamic):
        return f"dynamic: the amount × {price.multiplier:,f}"
    if isinstance(price, GraduatedPercentage):
        shares = (
            (tier.up_to, _share(tier) + (f" + {tier.flat_fee:,f} flat" if tier.flat_fee else ""))
            for tier in price.tiers
        )
        at_zero = "; the first flat fee is due without usage" if price.first_tier_flat_at_zero else ""
        return f"graduated percentage of the amount: {_bounded(shares)}{at_zero}"
    if isinstance(price, Stairstep):
        steps = ((step.up_to, f"{step.price:,f}") for step in price.steps)
        at_zero = "; the first is due without usage" if price.first_step_at_zero else ""
        return f"stairstep (one price for all units, that of the step reached): {_bounded(steps)}{at_zero}"
    per = "" if price.per == 1 else f", per {number(price.per)}"
    tiers = ((tier.up_to, _tier(tier)) for tier in price.tiers)
    all_units = " (all units at the price that the total reaches)" if price.model == "volume" else ""
    at_zero = "; the first flat fee is due without usage" if price.first_tier_flat_at_zero else ""
    return f"{price.model}{per}{all_units}: {_bounded(tiers)}{at_zero}"


def _bounded(tiers: Iterable[tuple[Decimal | None, str]]) -> str:
    parts, floor = [], _ZERO
    for up_to, text in tiers:
        bound = f"{number(up_to)}]" if up_to is not None else "∞)"
        parts.append(f"({number(floor)}, {bound} at {text}")
        floor = up_to or floor
    return "; ".join(parts)


def _share(share: Share) -> str:
    if share.percent is not None:
        return f"{share.percent:,f} %"
    return f"{share.basis_points:,f} basis points"


def _tier(tier: Tier) -> str:
    fee = f" + {tier.flat_fee:,f} flat" if tier.flat_fee else ""
    if tier.package_size is None or tier.package_price is None:
        return f"{tier.unit_price:,f}{fee}"
    return f"{_packages(tier.package_size, tier.package_price, tier.round)}{fee}"


def _packages(size: Decimal, price: Decimal, rounding: str) -> str:
    started = "a started one is paid" if rounding == "up" else "a started one is not paid"
    return f"packages of {number(size)} at {price:,f}; {started}"
