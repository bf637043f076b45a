"""Contracts (docs/rules.md, section 19), for the auditor: naive, and sharing nothing with `transforms/`."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta
from typing import Any

from .auditor_calendar import days_in_month, given, instant


def begin_of(change: dict[str, Any], subscription: dict[str, Any]) -> datetime:
    if given(change, "at"):
        return instant(change["at"])
    return clock_later(subscription, int(change["contract_month"]) - 1, 0)


def trial_end(subscription: dict[str, Any]) -> datetime | None:
    trial = subscription.get("trial")
    if not trial:
        return None
    return instant(trial["until"]) if given(trial, "until") else clock_later(subscription, 0, int(trial["days"]))


def clock_later(subscription: dict[str, Any], months: int, days: int) -> datetime:
    """When the clock shows the time of the start again, some months or days later."""
    zone = zoneinfo.ZoneInfo(given(subscription, "time_zone") or "UTC")
    shown = instant(subscription["start"]).astimezone(zone)
    year, month, day = shown.year, shown.month, shown.day
    for _ in range(months):
        year, month = (year + 1, 1) if month == 12 else (year, month + 1)
    day = min(day, days_in_month(year, month))
    wanted = datetime(year, month, day, shown.hour, shown.minute, shown.second)  # noqa: DTZ001
    return (wanted + timedelta(days=days)).replace(tzinfo=zone).astimezone(UTC)


def begun(subscription: dict[str, Any], time: datetime) -> list[dict[str, Any]]:
    """The changes that have taken effect, the last one first."""
    changes = [change for change in subscription.get("changes") or [] if begin_of(change, subscription) <= time]
    return sorted(changes, key=lambda change: begin_of(change, subscription), reverse=True)


def plan_at(subscription: dict[str, Any], time: datetime) -> str:
    plans = [str(change["plan"]) for change in begun(subscription, time) if given(change, "plan")]
    return plans[0] if plans else str(subscription["plan"])


def own_price_at(subscription: dict[str, Any], charge: str, time: datetime) -> tuple[str, dict[str, Any] | None]:
    """The subscription's own price of a charge, and what it is called; nothing where the rate card has the price."""
    for change in begun(subscription, time):
        if charge in (change.get("prices") or {}):
            return f"contract:{change['name']}", change["prices"][charge]
    own = (subscription.get("prices") or {}).get(charge)
    return ("contract:start", own) if own else ("", None)


def is_in_trial(subscription: dict[str, Any], time: datetime) -> bool:
    end = trial_end(subscription)
    return end is not None and time < end


def price_at(
    subscription: dict[str, Any], charge: str, time: datetime, catalog: dict[str, list[dict[str, Any]]]
) -> tuple[str, dict[str, Any]] | None:
    """The price of a charge and what it is called; None where there is none."""
    name, price = own_price_at(subscription, charge, time)
    plan = next(one for one in catalog["plans"] if one["id"] == plan_at(subscription, time))
    if price is None:
        card = next(one for one in catalog["rate_cards"] if one["id"] == plan["rate_card"])
        versions = [version for version in card["versions"] if instant(version["effective_from"]) <= time]
        if not versions:
            return None
        version = max(versions, key=lambda version: instant(version["effective_from"]))
        if charge not in version["prices"]:
            return None
        price = version["prices"][charge]
        name = version["version"] if plan["id"] == subscription["plan"] else f"{plan['id']}/{version['version']}"
    if is_in_trial(subscription, time):
        return f"trial:{name}", free(price)
    return name, price


def free(price: dict[str, Any]) -> dict[str, Any]:
    """What is due in a trial."""
    return {**price, "amount": "0"} if price["model"] == "fixed" else {"model": "per_unit", "unit_price": "0"}
