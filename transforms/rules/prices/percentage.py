"""Prices of an amount of money that the events carry: a share of it, by tiers, or the amount itself with a markup."""

from __future__ import annotations

from decimal import Decimal

from meterline.schemas.catalog import Dynamic, GraduatedPercentage, Percentage
from meterline.transforms.rules.prices.parts import ONE, ZERO, Parts, part
from meterline.transforms.rules.prices.tiers import graduated


def percentage(price: Percentage, quantity: Decimal, full: Decimal) -> Parts:
    return part(1, quantity, price.rate, ONE, ZERO) if quantity else ()


def graduated_percentage(price: GraduatedPercentage, quantity: Decimal, full: Decimal) -> Parts:
    return graduated(price.graduated, quantity, full)


def dynamic(price: Dynamic, quantity: Decimal, full: Decimal) -> Parts:
    return part(1, quantity, price.multiplier, ONE, ZERO) if quantity else ()
