"""What a billing account should have been billed by now: charges, rounded, and what each step adds to them.

Source: docs/rules.md, section 18.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from typing import NamedTuple

import msgspec

from meterline.schemas.records import RatingKey
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.billing.contracts import Contracts
from meterline.transforms.rules.billing.exchange import Conversion, kept
from meterline.transforms.rules.fees import Billed, BilledKey
from meterline.transforms.rules.money import (
    EXACT,
    RoundingMode,
    minor_units,
    round_money,
    round_parts,
    split_by_largest_remainder,
)
from meterline.transforms.rules.periods import Period

_ZERO = Decimal(0)


class Target(NamedTuple):
    """What the lines about something should have billed by now: exactly, and rounded to the minor unit.

    `terms` says what a step computed it from, as JSON with exact numbers as text.
    """

    quantity: Decimal
    exact: Decimal
    amount: Decimal
    terms: str = ""


class Elsewhere(NamedTuple):
    """What issued invoices of another period of the account say about a charge or source, together."""

    label: str
    kind: str
    source: str
    key: RatingKey
    amount: Decimal


@dataclass(frozen=True)
class Circumstances:
    """What steps may look at beside the charges.

    Args:
      period: The billing account's, of the first of its subscriptions that has one with the label.
      begun: Whether it has begun.
      ended: Whether it has ended.
      elsewhere: What was issued for other periods.
      earlier: Units used in earlier periods, by rating key, where included units are carried over.
      carried: While all but fees in advance waits for the period's end: what was taken off for carried units so far.
    """

    book: Directory
    contracts: Contracts
    tenant_id: str
    billing_account_id: str
    period: Period
    rounding: RoundingMode
    begun: bool = True
    ended: bool = True
    elsewhere: Sequence[Elsewhere] = ()
    earlier: Mapping[RatingKey, Decimal] = field(default_factory=dict)
    carried: Mapping[BilledKey, Decimal] | None = None

    def posted(self, kind: str, source: str) -> dict[str, Decimal]:
        """By period, what the lines of a source come to there."""
        found: dict[str, Decimal] = {}
        for one in self.elsewhere:
            if (one.kind, one.source) == (kind, source):
                found[one.label] = found.get(one.label, _ZERO) + one.amount
        return found

    @property
    def account_key(self) -> RatingKey:
        """The key of lines that are about the whole account."""
        return RatingKey(
            self.tenant_id, self.billing_account_id, "", "", "", "", self.period.start, self.period.end, ()
        )

    def account_line(self, kind: str, source: str) -> BilledKey:
        """The key of a line about the whole account."""
        return BilledKey(self.account_key, self.billing_account_id, kind, source)


@dataclass
class Bill:
    """Under construction, step by step.

    `targets` are the lines. `net` is what is left to pay of each line that can be discounted, credited and taxed.
    `conversions` has the charges whose prices are in another currency.
    """

    currency: str
    targets: dict[BilledKey, Target] = field(default_factory=dict)
    net: dict[BilledKey, Decimal] = field(default_factory=dict)
    conversions: dict[RatingKey, Conversion] = field(default_factory=dict)

    def charge(self, due: Mapping[BilledKey, Billed], around: Circumstances) -> None:
        """Put charges on it: each rating key is converted and rounded once, and its accounts share the rounding.

        Raises:
          ExchangeError: one is in another currency, and no rate to the invoice's is in force.
        """
        keys: dict[RatingKey, dict[BilledKey, Billed]] = {}
        for one in sorted(due):
            keys.setdefault(one.key, {})[one] = due[one]
        for key, of_key in keys.items():
            exact = {one: (billed.amount, "") for one, billed in of_key.items()}
            if source := next((billed.currency for billed in of_key.values() if billed.currency), ""):
                found = around.contracts.exchange.conversion(key, source, self.currency)
                self.conversions[key] = found
                exact = found.of(of_key)
            rounded = round_parts([amount for amount, _ in exact.values()], self.currency, around.rounding)
            for (one, (part, terms)), amount in zip(exact.items(), rounded):
                self.targets[one] = Target(of_key[one].quantity, kept(part) if terms else part, amount, terms)
                self.net[one] = amount

    def add(self, one: BilledKey, amount: Decimal, terms: Mapping[str, object], *, to_pay: bool = False) -> None:
        """A line of a whole number of minor units; `to_pay` where later steps treat it like a charge."""
        before = self.targets.get(one)
        total = amount + (before.amount if before else _ZERO)
        self.targets[one] = Target(_ZERO, total, total, msgspec.json.encode(terms).decode())
        if to_pay:
            self.net[one] = self.net.get(one, _ZERO) + amount

    def share(self, amount: Decimal, bases: Iterable[BilledKey]) -> dict[BilledKey, Decimal]:
        """Parts of an amount in proportion to what is left of the bases (docs/rules.md, "Splitting an amount")."""
        bases = sorted(bases)
        parts = split_by_largest_remainder(amount, [self.net[one] for one in bases], minor_units(self.currency))
        return dict(zip(bases, parts))

    def take(self, amount: Decimal, bases: Iterable[BilledKey]) -> dict[BilledKey, Decimal]:
        """The same, taken off what is left to pay of them."""
        parts = self.share(amount, bases)
        for one, part in parts.items():
            self.net[one] -= part
        return parts

    def draw(self, line: BilledKey, available: Decimal, bases: Iterable[BilledKey]) -> None:
        """Pay what is left of the bases with what is available, by a line of its own."""
        bases = list(bases)
        of = max(sum((self.net[one] for one in bases), _ZERO), _ZERO)
        if drawn := min(of, available):
            self.take(drawn, bases)
            self.add(line, -drawn, {"of": f"{of:f}", "available": f"{available:f}", "total": f"{drawn:f}"})

    def rounded(self, amount: Decimal, rounding: RoundingMode) -> Decimal:
        return round_money(amount, self.currency, rounding)


Step = Callable[[Bill, Circumstances], None]


def made(
    due: Mapping[BilledKey, Billed], currency: str, around: Circumstances, steps: Iterable[Step]
) -> dict[BilledKey, Target]:
    """All lines: the charges, and what each step in turn adds."""
    with localcontext(EXACT):
        bill = Bill(currency)
        bill.charge(due, around)
        for step in steps:
            step(bill, around)
        return bill.targets
