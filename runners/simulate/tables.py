"""How a simulation looks on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal

from rich.table import Table
from rich.text import Text

from meterline.runners import tables
from meterline.runners.simulate.run import Simulation
from meterline.transforms.rules.what_if import Change, Charged, Payer, of_all_payers, totals


def accounts(simulation: Simulation, top: int) -> Iterator[Table]:
    """A table for each currency, with the accounts whose amounts move most."""
    changes = simulation.by_payer
    tenants = {payer.tenant_id for payer in changes}
    for currency, total in totals(changes).items():
        rows = {payer: change for payer, change in changes.items() if payer.currency == currency}
        names = [_account(payer, len(tenants) > 1) for payer in rows]
        yield _table(simulation, currency, "account", names, list(rows.values()), total, top)


def charges(simulation: Simulation, top: int) -> Iterator[Table]:
    """A table for each currency, with the charges whose amounts move most."""
    changes = of_all_payers(simulation.by_charge)
    for currency, total in totals(simulation.by_payer).items():
        rows: dict[Charged, Change] = {name: change for name, change in changes.items() if name.currency == currency}
        names = [name.charge_id for name in rows]
        yield _table(simulation, currency, "charge", names, list(rows.values()), total, top)


def _account(payer: Payer, with_tenant: bool) -> str:
    return f"{payer.tenant_id} · {payer.billing_account_id}" if with_tenant else payer.billing_account_id


def _table(
    simulation: Simulation,
    currency: str,
    what: str,
    names: Sequence[str],
    changes: Sequence[Change],
    total: Change,
    top: int,
) -> Table:
    title = f"{simulation.period} under the new catalog, in {currency}"
    made = tables.table(title, what, ">today", ">new", ">difference", ">%")
    for name, change in list(zip(names, changes))[:top]:
        made.add_row(tables.shown(name), *_cells(change, currency))
    if rest := changes[top:]:
        added = rest[0]
        for change in rest[1:]:
            added = added.plus(change)
        made.add_row(Text(f"{len(rest):,} more (--top)", "dim"), *_cells(added, currency))
    made.add_section()
    made.add_row("total", *_cells(total, currency))
    return made


def _cells(change: Change, currency: str) -> tuple[str | Text, ...]:
    difference = change.difference
    style = "red" if difference < 0 else "green" if difference else "dim"
    sign = "+" if difference > 0 else ""
    return (
        _amount(change.today, currency),
        _amount(change.new, currency),
        Text(sign + _amount(difference, currency), style),
        Text(percent(change), style),
    )


def _amount(amount: Decimal | None, currency: str) -> str:
    return "–" if amount is None else tables.money(amount, currency).removesuffix(f" {currency}")


def percent(change: Change) -> str:
    """As people read it: with its sign; of nothing, that it is new."""
    share = change.percent
    if share is None:
        return "new" if change.difference else ""
    return f"{share:+,.1f}" if share else "0"


def notes(simulation: Simulation) -> Iterator[str]:
    """What the amounts do not say."""
    yield (
        f"{simulation.events:,} recorded events priced anew; nothing was stored. Amounts are whole invoices, "
        "discounts, credits and tax included, as if none of this period had been issued; grants and commitments are "
        "what issued invoices of other periods have left of them."
    )
    if simulation.rejected:
        yield f"The new catalog would not accept {_counted(simulation.rejected)} of the period's recorded events."
    if simulation.unpriced:
        yield f"No charge of the new catalog prices usage of {_counted(simulation.unpriced)} (counts of events)."
    if simulation.refused:
        some = ", ".join(f"{key.charge_id} of {key.billing_account_id}" for key in list(simulation.refused)[:3])
        yield (
            f"{len(simulation.refused):,} rating keys have no amount, as the new catalog has no price for them, or it "
            f"is too large: {some}{' …' if len(simulation.refused) > 3 else ''}"
        )


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in counts.items())
