"""Usage sold in packages, after free units, and at least so many of them."""

from __future__ import annotations

from decimal import Decimal

from meterline.schemas.catalog import Package
from meterline.transforms.rules.prices.parts import ZERO, Parts, package_count, package_part


def package(price: Package, quantity: Decimal, full: Decimal) -> Parts:
    paid_units = max(quantity - price.free_units, ZERO)
    packages = package_count(paid_units, price.package_size, price.round)
    parts = package_part(1, quantity, price.package_price, max(packages, Decimal(price.minimum_packages)), ZERO)
    return parts if quantity or parts[0].amount else ()
