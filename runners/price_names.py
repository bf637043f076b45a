"""The names that rating keys have for prices (transforms/rules/contracts.py), in words."""

from __future__ import annotations


def said_of(name: str) -> str:
    """Which price a rating key means by a name."""
    if name == "trial:carried:":
        return "trial"
    if name.startswith("trial:"):
        return f"trial, before {said_of(name.removeprefix('trial:'))}"
    if name == "carried:":
        return "prices in force"
    if name.startswith("contract:"):
        return f"price of the contract, {name.removeprefix('contract:')}"
    plan, slash, version = name.partition("/")
    return f"prices of {version}, plan {plan}" if slash else f"prices of {name}"


def column_of(name: str) -> str:
    """The same under the heading `prices of`."""
    return said_of(name).removeprefix("prices of ").removeprefix("prices ")
