"""Usage sold in packages, after free units, and at least so many of them."""

from __future__ import annotations

from decimal import Decimal

from meterline.schemas.catalog import Package
from meterline.schemas.records import TierCharge
from meterline.transforms.rules.money import round_amount
from meterline.transforms.rules.prices.parts import ONE, ZERO, Parts


def package(price: Package, quantity: Decimal, full: Decimal) -> Parts:
    paid_units = max(quantity - price.free_units, ZERO)
    whole, rest = divmod(paid_units, price.package_size)
    started = ONE if rest and price.round == "up" else ZERO
    packages = max(whole + started, Decimal(price.minimum_packages))
    amount = round_amount(packages * price.package_price)
    if not (quantity or amount):
        return ()
    return (TierCharge(1, quantity, price.package_price, ZERO, amount),)
