"""What accounts would pay: recorded usage priced by a catalog, and two catalogs' invoices side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Context, Decimal, localcontext
from itertools import chain
from typing import NamedTuple, TypeVar

from meterline.schemas.event import Reason
from meterline.schemas.records import Invoice, RatingKey
from meterline.transforms.rules.aggregation import Cell, Usage
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.billing.bill import Elsewhere
from meterline.transforms.rules.fees import Billed, BilledKey
from meterline.transforms.rules.invoicing import next_invoice, statements
from meterline.transforms.rules.line_items import line_items
from meterline.transforms.rules.money import EXACT, MoneyError, QuantityError, RoundingMode
from meterline.transforms.rules.prices.parts import RateCardError

Used = Mapping[BilledKey, tuple[Billed, str]]
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
_ZERO = Decimal(0)
_RATIO = Context(prec=120)  # Of numbers to look at only.


@dataclass(frozen=True)
class PricedUsage:
    """What recorded usage costs under a catalog.

    Args:
      used: By rating key, as line items would say, with the currency. Its account is the payer.
      unpriced: Counts of events that no charge prices, by meter.
      refused: Rating keys that would be rejected (stage `rate`), with the reason: they cost nothing.
    """

    used: dict[BilledKey, tuple[Billed, str]]
    unpriced: dict[str, int]
    refused: dict[RatingKey, Reason]


def priced_usage(usage: Mapping[str, Usage], book: Directory) -> PricedUsage:
    """Price whole periods of rating keys: what their line items add up to, to the last digit.

    Args:
      usage: All usage of each rating key, by its text.

    Source: docs/rules.md, "Simulation".
    """
    priced = PricedUsage({}, {}, {})
    for text, of_key in usage.items():
        key = RatingKey.parse(text)
        if not of_key.event_count:
            continue
        if not key.charge_id:
            priced.unpriced[key.meter_id] = priced.unpriced.get(key.meter_id, 0) + of_key.event_count
            continue
        price = book.price_of(key.subscription_id, key.charge_id, key.rate_card_version, key.dimensions)
        if price is None:
            priced.refused[key] = Reason.NO_PRICE
            continue
        whole = {Cell(int(key.period_start.timestamp()), key.billing_account_id): of_key}
        try:
            (item,) = line_items(key, book.meters[key.meter_id].aggregation, price, whole)
        except (QuantityError, MoneyError, RateCardError):
            priced.refused[key] = Reason.QUANTITY_OVERFLOW
            continue
        billed = Billed(item.quantity_to, item.amount)
        priced.used[BilledKey(key, key.billing_account_id)] = billed, item.currency
    return priced


def of_payers(used: Used) -> dict[BilledKey, tuple[Billed, str]]:
    """What line items say, with the accounts of a rating key put together, as in `PricedUsage`."""
    found: dict[BilledKey, tuple[Billed, str]] = {}
    with localcontext(EXACT):
        for one, (billed, currency) in used.items():
            name = BilledKey(one.key, one.key.billing_account_id)
            before, _ = found.get(name, (Billed(_ZERO, _ZERO), currency))
            found[name] = Billed(before.quantity + billed.quantity, before.amount + billed.amount), currency
    return found


class Payer(NamedTuple):
    """Who pays, in which currency."""

    tenant_id: str
    billing_account_id: str
    currency: str


def invoices_of(
    label: str,
    book: Directory,
    used: Used,
    rounding: RoundingMode,
    elsewhere: Mapping[tuple[str, str, str], Sequence[Elsewhere]] | None = None,
) -> dict[Payer, Invoice]:
    """The invoices of a period as if nothing of it had been issued, by who pays.

    Args:
      elsewhere: What issued invoices of other periods say, as `statements` has it.
    """
    wanted = [account.id for account in book.catalog.accounts if account.is_billed]
    made = {}
    for statement in statements(label, book, used, {}, {}, wanted, elsewhere):
        invoice = next_invoice(statement, book, status="draft", made_at=_NEVER, rounding=rounding)
        if invoice is not None:
            payer = Payer(statement.tenant_id, statement.billing_account_id, statement.currency)
            made[payer] = invoice
    return made


_Name = TypeVar("_Name")


class Change(NamedTuple):
    """Amounts today and under the new catalog; None where there is no invoice."""

    today: Decimal | None
    new: Decimal | None

    @property
    def difference(self) -> Decimal:
        return (self.new or _ZERO) - (self.today or _ZERO)

    @property
    def percent(self) -> Decimal | None:
        """The difference in percent of today's amount, to one decimal; None where that is 0."""
        if not self.today:
            return None
        share = _RATIO.divide(100 * self.difference, abs(self.today))
        return share.quantize(Decimal("0.1"), context=_RATIO)

    def plus(self, other: Change) -> Change:
        return Change(_plus(self.today, other.today), _plus(self.new, other.new))


def _plus(one: Decimal | None, other: Decimal | None) -> Decimal | None:
    return None if one is None and other is None else (one or _ZERO) + (other or _ZERO)


def _added(changes: Iterable[tuple[_Name, Change]]) -> dict[_Name, Change]:
    """Sums by name."""
    found: dict[_Name, Change] = {}
    for name, change in changes:
        found[name] = found[name].plus(change) if name in found else change
    return found


def changes_by_payer(today: Mapping[Payer, Invoice], new: Mapping[Payer, Invoice]) -> dict[Payer, Change]:
    """Totals of the invoices; by currency, and what moves most first."""
    found = {
        payer: Change(*(side[payer].total if payer in side else None for side in (today, new)))
        for payer in {*today, *new}
    }
    return _movers_first(found)


class Charged(NamedTuple):
    """What is charged, and to whom; without a payer, to all of them."""

    payer: Payer | None
    currency: str
    charge_id: str


def changes_by_charge(today: Mapping[Payer, Invoice], new: Mapping[Payer, Invoice]) -> dict[Charged, Change]:
    """Sums of the invoices' lines, by payer and charge; by currency, and what moves most first."""

    def of_lines(invoices: Mapping[Payer, Invoice], is_new: bool) -> Iterator[tuple[Charged, Change]]:
        for payer, invoice in invoices.items():
            for line in invoice.lines:
                name = Charged(payer, payer.currency, line.key.charge_id or line.source)
                yield name, Change(None, line.amount) if is_new else Change(line.amount, None)

    return _movers_first(_added(chain(of_lines(today, False), of_lines(new, True))))


def of_all_payers(changes: Mapping[Charged, Change]) -> dict[Charged, Change]:
    """The same changes, by charge alone."""
    return _movers_first(_added((name._replace(payer=None), change) for name, change in changes.items()))


_Whose = TypeVar("_Whose", Payer, Charged)


def _movers_first(changes: Mapping[_Whose, Change]) -> dict[_Whose, Change]:
    def place(item: tuple[_Whose, Change]) -> tuple[str, Decimal, str]:
        name, change = item
        return name.currency, -abs(change.difference), repr(name)

    return dict(sorted(changes.items(), key=place))


def totals(changes: Mapping[Payer, Change]) -> dict[str, Change]:
    """Sums by currency."""
    return _added((payer.currency, change) for payer, change in changes.items())
