"""Examples that other systems publish, priced by the rules: every case is run, or listed with a reason.

The cases lie outside the repository, in `cases/` of the folder that METERLINE_SHARED names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from pathlib import Path
from typing import Any

import pytest

from meterline.schemas.catalog import (
    Catalog,
    Dynamic,
    Graduated,
    Matrix,
    MatrixRow,
    Package,
    PerUnit,
    Tier,
    UsagePrice,
    Volume,
)
from meterline.schemas.event import computed_quantity
from meterline.schemas.expressions import parse_expression
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.billing.bill import Circumstances, made
from meterline.transforms.rules.billing.contracts import contracts
from meterline.transforms.rules.billing.credits import credits
from meterline.transforms.rules.fees import Billed, BilledKey
from meterline.transforms.rules.money import EXACT, round_money
from meterline.transforms.rules.periods import Period
from meterline.transforms.rules.prices.matrix import price_for
from meterline.transforms.rules.pricing import charge, charge_interval, charge_parts

Case = dict[str, Any]
Amounts = dict[str, Decimal]

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("METERLINE_SHARED", ROOT.parent / "shared")) / "cases"
CASES: dict[str, Case] = {
    case["id"]: case
    for file in ("openmeter.json", "published_prices.json")
    if (FOLDER / file).exists()
    for case in json.loads((FOLDER / file).read_text())
}
needs_cases = pytest.mark.skipif(not CASES, reason="no published cases; METERLINE_SHARED names their folder")

MAXIMUM = "a maximum is part of the price, so it holds before discounts"
GRANTS = "credits are drawn by what a billing period owes, not event by event"

NOT_YET: dict[str, str] = {
    case_id: reason
    for reason, case_ids in {
        MAXIMUM: "om-unit-50pct-max100",
        GRANTS: """
            om-grant-voided om-grant-recurring om-grant-recur-later-before
            om-grant-recur-later-after om-grant-recur-not-reapplied om-grant-rollover-max50
            om-grant-rollover-overage om-grant-reset-with-refill om-grant-latest-agg
        """,
        "usage is billed as it comes, not held back until the period closes": "om-vol-mid-split-10 om-grad-min1000-mid",
    }.items()
    for case_id in case_ids.split()
}

# --- Models as prices -----------------------------------------------------------------------------------

HOURS_OF_MONTH = 744
KIBIBYTES_PER_GIBIBYTE = 1048576


def graduated(params: Case, per: Decimal = Decimal(1)) -> Graduated:
    flag = params.get("first_tier_flat_at_zero", False)
    return Graduated(model="graduated", tiers=tiers(params, per), per=per, first_tier_flat_at_zero=flag)


def volume(params: Case) -> Volume:
    # Where the published cases say nothing, a flat fee of the first tier is due without usage.
    return Volume(model="volume", tiers=tiers(params), first_tier_flat_at_zero=True)


def tiers(params: Case, per: Decimal = Decimal(1)) -> tuple[Tier, ...]:
    """The tiers with their bounds in the meter's unit; the last one is without end."""
    bounds = [None if tier["up_to"] is None else Decimal(tier["up_to"]) * per for tier in params["tiers"]]
    return tuple(
        Tier(up_to=bound, unit_price=tier["unit_amount"], flat_fee=tier.get("flat_amount", "0"))
        for bound, tier in zip([*bounds[:-1], None], params["tiers"])
    )


def per_unit(params: Case, per: Decimal = Decimal(1)) -> PerUnit:
    return PerUnit(model="per_unit", unit_price=params["unit_amount"], per=params.get("per", per))


def package(params: Case) -> Package:
    return Package(
        model="package",
        package_price=params.get("package_amount", "1"),
        package_size=params["package_size"],
        minimum_packages=int(params.get("minimum_packages", "0")),
    )


def after_free_units(unit_price: str, free_units: str) -> Graduated:
    steps = (Tier(up_to=Decimal(free_units)), Tier(unit_price=Decimal(unit_price)))
    return Graduated(model="graduated", tiers=steps)


# --- Cases as calls of the rules ------------------------------------------------------------------------


def money(amount: Decimal, params: Case) -> Decimal:
    """The amount as the case writes it: some round each line to cents."""
    assert params.get("round_places", 2) == 2
    return round_money(amount, "USD", "half_even") if "round_places" in params else amount


def limited(price: UsagePrice, params: Case) -> UsagePrice:
    limits = {limit: params.get(f"{limit}_amount") for limit in ("minimum", "maximum")}
    return price.model_copy(update={limit: Decimal(amount) for limit, amount in limits.items() if amount})


def total(price: Callable[[Case], UsagePrice]) -> Callable[[Case], Amounts]:
    def run(case: Case) -> Amounts:
        model, usage = limited(price(case["params"]), case["params"]), Decimal(case["usage"][0])
        amount = charge(model, usage)
        return {"amount": money(amount, case["params"]), "true_up": beside_the_tiers(model, usage)}

    return run


def step(price: Callable[[Case], UsagePrice]) -> Callable[[Case], Amounts]:
    def run(case: Case) -> Amounts:
        params, model = case["params"], limited(price(case["params"]), case["params"])
        already = Decimal(params.get("already_quantity", "0"))
        now = already + Decimal(case["usage"][0])
        amount = charge_interval(model, already, now, opening=False)[0]
        if "already_billed" in params:  # Rounded, and without a minimum that is billed at the end.
            amount = charge(model, now) - Decimal(params["already_billed"])
        discount = beside_the_tiers(model, already) - beside_the_tiers(model, now)
        return {"amount": money(amount, params), "discount": money(discount, params)}

    return run


def beside_the_tiers(price: UsagePrice, quantity: Decimal) -> Decimal:
    """What a minimum adds, or a maximum takes off."""
    return sum((part.amount for part in charge_parts(price, quantity) if part.tier == 0), start=Decimal(0))


def package_count(case: Case) -> Amounts:
    return {"packages": charge(package(case["params"]), Decimal(case["usage"][0]))}


def usage_discount(case: Case) -> Amounts:
    already = Decimal(case["params"]["already_quantity"])
    price = after_free_units("1", case["params"]["free_units"])
    billable, parts = charge_interval(price, already, already + Decimal(case["usage"][0]), opening=False)
    free = sum((part.quantity for part in parts if part.tier == 1), start=Decimal(0))
    return {"billable": billable, "already_billable": charge(price, already), "discounted_now": free}


def dynamic(params: Case) -> Dynamic:
    return Dynamic(model="dynamic", multiplier=params["multiplier"])


def token_pricing(case: Case) -> Amounts:
    """A price for each kind of tokens; what is sent as a batch has a row of its own."""
    params = case["params"]
    tier = "batch" if "percent_discount" in params else "standard"
    share = (100 - Decimal(params.get("percent_discount", "0"))) / 100
    rows = [
        MatrixRow(
            when={"kind": kind, "tier": name}, price=per_million(Decimal(price) * (share if name == "batch" else 1))
        )
        for kind, price in params["per_million"].items()
        for name in ("standard", "batch")
    ]
    matrix = Matrix(model="matrix", rows=tuple(rows))
    lines = []
    for kind, tokens in case["usage"].items():
        price = price_for(matrix, {"kind": kind, "tier": tier})
        assert price is not None
        lines.append(charge(price, Decimal(tokens)))
    return {"amount": exact_sum(lines)}


def per_million(unit_price: Decimal) -> PerUnit:
    return PerUnit(model="per_unit", unit_price=unit_price, per=Decimal(10**6))


def byte_hours(case: Case) -> tuple[Decimal, Decimal]:
    """Usage in byte-hours, and how many of them are one gibibyte stored for a month."""
    usage = sum(Decimal(part["bytes"]) * part["hours"] for part in case["usage"])
    return Decimal(usage), Decimal(case["params"].get("bytes_per_gb", 2**30)) * HOURS_OF_MONTH


def graduated_byte_hours(case: Case) -> Amounts:
    usage, per = byte_hours(case)
    months = charge(PerUnit(model="per_unit", unit_price=Decimal(1), per=per), usage)
    return {"byte_hours": usage, "gb_months": months, "amount": charge(graduated(case["params"], per), usage)}


def stored_byte_hours(case: Case) -> Amounts:
    usage, per = byte_hours(case)
    months = charge(PerUnit(model="per_unit", unit_price=Decimal(1), per=per), usage)
    amount = charge(per_unit(case["params"], per), usage)
    return {
        "gb_months": round_money(months, "USD", "half_even"),
        "amount": round_money(amount, "USD", "half_even"),
    }


def free_units_lines(case: Case) -> Amounts:
    lines = {
        name: money(charge(after_free_units(line["unit_amount"], line["free_units"]), usage), line)
        for name, line in case["params"]["lines"].items()
        for usage in [Decimal(case["usage"][name])]
    }
    return lines | {"amount": exact_sum(lines.values())}


def s3_express_lines(case: Case) -> Amounts:
    params, usage = case["params"], {name: Decimal(amount) for name, amount in case["usage"].items()}
    kibibytes = Decimal(params["request_kb"])
    prices = {
        "storage": (params["storage_gb_month"], 1, usage["gb_months"]),
        "put": (params["put_per_1000"], 1000, usage["put"]),
        "get": (params["get_per_1000"], 1000, usage["get"]),
        "upload": (params["upload_per_gb"], KIBIBYTES_PER_GIBIBYTE, usage["put"] * kibibytes),
        "retrieve": (params["retrieve_per_gb"], KIBIBYTES_PER_GIBIBYTE, usage["get"] * kibibytes),
    }
    lines = {
        name: money(charge(PerUnit(model="per_unit", unit_price=price, per=per), quantity), params)
        for name, (price, per, quantity) in prices.items()
    }
    return lines | {"amount": exact_sum(lines.values())}


def supabase_lines(case: Case) -> Amounts:
    params = case["params"]
    price = after_free_units(params["logs_per_gb"], params["logs_free_gb"])
    logs = charge(price, Decimal(case["usage"]["logs_gb"]))
    subtotal = exact_sum([Decimal(params["plan"]), Decimal(params["compute_micro"]), logs])
    return {"logs": logs, "subtotal": subtotal, "amount": after_credits(subtotal, params["compute_credit"])}


def runs_of_a_machine(case: Case) -> Amounts:
    """Each run has a value by itself: at least so many seconds, at the credits of an hour."""
    params = case["params"]
    expression = parse_expression(f"max(seconds, {params['minimum_seconds']}) * {params['credits_per_hour']}")
    values = [computed_quantity(expression, {"seconds": Decimal(seconds)}) for seconds in case["usage"]]
    credits = charge(PerUnit(model="per_unit", unit_price=Decimal(1), per=Decimal(3600)), exact_sum(values))
    places = Decimal(1).scaleb(-int(params.get("round_places", 18)))
    return {"credits": credits.quantize(places, ROUND_HALF_EVEN)}


def credits_applied(case: Case) -> Amounts:
    gross = charge(graduated(case["params"]), Decimal(case["usage"][0]))
    return {"gross": gross, "due": after_credits(gross, case["params"]["credits"])}


JANUARY, FEBRUARY = "2024-01-01T00:00:00Z", "2024-02-01T00:00:00Z"


def after_credits(owed: Decimal, credit: str) -> Decimal:
    return drawn(owed, [{"id": "credit", "amount": credit, "effective_from": JANUARY}], JANUARY, FEBRUARY)["due"]


def grant_burn_down(case: Case) -> Amounts:
    """Usage of one billing period, whose unit costs 1, and grants of as many units."""
    start, end = (f"{case['period'][name]}Z" for name in ("start", "end"))
    grants = [
        {"id": one["id"], "amount": one["amount"], "priority": one["priority"],
         "effective_from": f"{one['effective_at']}Z", "expires": f"{one['expires_at']}Z"}
        for one in case["params"]["grants"]
    ]  # fmt: skip
    found = drawn(exact_sum(Decimal(one["v"]) for one in case["usage"]), grants, start, end)
    # What has expired is no balance any more.
    gone = {one["id"]: Decimal(0) for one in grants if one["expires"] <= end}
    return {"overage": found.pop("due"), **found, **gone}


def drawn(owed: Decimal, grants: list[Case], start: str, end: str) -> Amounts:
    """What is left to pay of a period, and what is left of its grants."""
    given = [{"account": "a", "currency": "USD", **one} for one in grants]
    book = Directory(Catalog.model_validate({"accounts": [{"id": "a"}], "grants": given}))
    period = Period(datetime.fromisoformat(start), datetime.fromisoformat(end), "")
    around = Circumstances(book, contracts(book), "default", "a", period, "half_even")
    used = BilledKey(around.account_key._replace(charge_id="usage"), "a")
    targets = made({used: Billed(Decimal(1), owed)}, "USD", around, [credits])
    left = {one["id"]: Decimal(one["amount"]) for one in grants}
    for line, target in targets.items():
        if line.kind == "credit":
            left[line.source] += target.amount
    return {**left, "due": exact_sum(target.amount for target in targets.values())}


def exact_sum(amounts: Iterable[Decimal]) -> Decimal:
    with localcontext(EXACT):
        return sum(amounts, start=Decimal(0))


RUNS: dict[str, Callable[[Case], Amounts]] = {
    "per_unit": total(per_unit),
    "per_unit.incremental": step(per_unit),
    "graduated": total(graduated),
    "graduated.incremental": step(graduated),
    "volume": total(volume),
    "package": total(package),
    "package.incremental": step(package),
    "package_count": package_count,
    "usage_discount": usage_discount,
    "dynamic": total(dynamic),
    "dynamic.incremental": step(dynamic),
    "token_pricing": token_pricing,
    "graduated.byte_hours": graduated_byte_hours,
    "composite": free_units_lines,
    "credits_applied": credits_applied,
    "grant_burn_down": grant_burn_down,
    "per_second_minimum": runs_of_a_machine,
}
OWN_RUNS = {
    "aws-s3-express-ex1": s3_express_lines,
    "aws-s3-express-ex2-storage": stored_byte_hours,
    "supabase-logs-12gb": supabase_lines,
    "supabase-logs-2gb": supabase_lines,
}


def by_event(case: Case) -> bool:
    """Whether it matters at which event a grant is drawn."""
    grants = case["params"].get("grants", [])
    return bool(case["params"].get("resets")) or any("recurs_every_days" in one or "voided_at" in one for one in grants)


def run(case: Case) -> Amounts:
    return OWN_RUNS.get(case["id"], RUNS.get(case["model"], lambda case: {}))(case)


# --- Tests ----------------------------------------------------------------------------------------------


@needs_cases
@pytest.mark.parametrize("case_id", [case_id for case_id in CASES if case_id not in NOT_YET])
def test_a_published_case(case_id: str) -> None:
    case = CASES[case_id]
    expected = case.get("exact_expected", case["expected"])
    amounts = run(case)
    assert {name: amounts.get(name) for name in expected} == {
        name: Decimal(amount) for name, amount in expected.items()
    }


@needs_cases
def test_every_published_case_is_run_or_listed() -> None:
    assert set(NOT_YET) - set(CASES) == set(), "listed, but no longer published"
    for case_id, case in CASES.items():
        params = case["params"]
        discounted = "percent_discount" in params and case["model"] != "token_pricing"
        beyond = discounted or not params.get("last_of_period", True) or by_event(case)
        runs = not beyond and (case_id in OWN_RUNS or case["model"] in RUNS)
        listed = case_id in NOT_YET
        assert runs != listed, f"{case_id}: {'runs, take it off the list' if runs else 'neither run nor listed'}"
