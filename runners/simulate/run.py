"""A billing period under another catalog, beside what it costs today; nothing is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from meterline.pipelines.invoice_accounts import UnknownSubscriptionError, billed_elsewhere, line_item_totals
from meterline.runners.jobs import InputError
from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_files import load_catalog
from meterline.schemas.records import Invoice, RatingKey
from meterline.transforms import catalogs, clickhouse, recorded
from meterline.transforms.recorded_parts import Found
from meterline.transforms.rules.attribution import Directory, directory
from meterline.transforms.rules.billing.bill import Elsewhere
from meterline.transforms.rules.billing.exchange import ExchangeError
from meterline.transforms.rules.money import RoundingMode
from meterline.transforms.rules.what_if import (
    Change,
    Charged,
    Payer,
    PricedUsage,
    changes_by_charge,
    changes_by_payer,
    invoices_of,
    of_payers,
    priced_usage,
    totals,
)

# Parts of the billing accounts whose line items are added up at once.
_PARTS = 8


@dataclass(frozen=True)
class Simulation:
    """What each account would pay for a period.

    Args:
      today: Its invoices by what is stored, as if none of the period had been issued.
      new: The same under the new catalog.
      events: Recorded events that were read.
      rejected: Of these, in the UTC days that name the period, how many the new catalog would not accept, by reason.
      unpriced: Counts of events that the new catalog has no charge for, by meter.
      refused: Rating keys without amount, with the reason: the new catalog has no price for them, or it is too large.
    """

    period: str
    catalogs: tuple[str, str]
    today: Mapping[Payer, Invoice]
    new: Mapping[Payer, Invoice]
    events: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    unpriced: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[RatingKey, str] = field(default_factory=dict)

    @cached_property
    def by_payer(self) -> dict[Payer, Change]:
        return changes_by_payer(self.today, self.new)

    @cached_property
    def by_charge(self) -> dict[Charged, Change]:
        return changes_by_charge(self.today, self.new)

    def to_json(self) -> dict[str, Any]:
        charges: dict[Payer | None, list[dict[str, Any]]] = {}
        for name, change in self.by_charge.items():
            charges.setdefault(name.payer, []).append({"charge": name.charge_id, **_change(change)})
        return {
            "period": self.period,
            "catalog_today": self.catalogs[0],
            "catalog_new": self.catalogs[1],
            "totals": [
                {"currency": currency, **_change(one)} for currency, one in sorted(totals(self.by_payer).items())
            ],
            "accounts": [
                {
                    "tenant": payer.tenant_id,
                    "account": payer.billing_account_id,
                    "currency": payer.currency,
                    **_change(change),
                    "charges": charges.get(payer, []),
                }
                for payer, change in self.by_payer.items()
            ],
            "recorded_events": self.events,
            "would_be_rejected": dict(self.rejected),
            "unpriced": dict(self.unpriced),
            "refused_rating_keys": [
                {"reason": str(reason), "rating_key": key.text} for key, reason in sorted(self.refused.items())
            ],
        }


def _change(change: Change) -> dict[str, Any]:
    return {**change._asdict(), "difference": change.difference, "percent": change.percent}


def todays_catalog(url: str, folder: Path | None) -> Catalog:
    """The catalog that a period is billed with today.

    Args:
      folder: Where it lies; none for the one published last, or else the folder `catalog`.

    Raises:
      InputError: there is none of these.
    """
    if folder is not None:
        return load_catalog(folder)
    published = catalogs.last(url)
    if published is not None:
        return published
    if Path("catalog").is_dir():
        return load_catalog(Path("catalog"))
    raise InputError(
        "today's catalog is not known: none was published in the database, and there is no folder `catalog`; "
        "give the one that the period is billed with as --today FOLDER"
    )


def simulate(
    url: str,
    period: str,
    new: Catalog,
    today: Catalog,
    *,
    anew: bool = False,
    rounding: RoundingMode = "half_even",
    console: Console | None = None,
) -> Simulation:
    """Price the recorded usage of a period by another catalog.

    Args:
      anew: Whether today's amounts are those of the recorded usage under today's catalog, too, in place of those of
        the stored line items.
      console: Where progress is shown; none for nowhere.

    Raises:
      InputError: a part of the period's archive is gone, or today's catalog is not that of the line items.
    """
    books = directory(today), directory(new)
    _check_tiers(books)
    _check_archive(url, period, books)
    if anew:
        before = _rated(url, period, books[0], today, "today", console)[1].used
    else:
        before = _stored(url, period, books[0], console)
    found, after = _rated(url, period, books[1], today, "new", console)
    try:
        of_today, of_new = (
            invoices_of(period, book, used, rounding, _elsewhere(url, period, book))
            for book, used in zip(books, (before, after.used))
        )
    except ExchangeError as error:
        raise InputError(str(error)) from None
    return Simulation(
        period,
        (today.digest, new.digest),
        of_today,
        of_new,
        found.events,
        {reason: count for reason, count in sorted(found.rejected.items()) if count},
        dict(sorted(after.unpriced.items())),
        after.refused,
    )


def _elsewhere(url: str, period: str, book: Directory) -> dict[tuple[str, str, str], list[Elsewhere]]:
    """What a grant or commitment for several periods has been used for in the others, by invoices that were issued."""
    return billed_elsewhere(url, period, book, [one.id for one in book.catalog.accounts if one.is_billed])


def _check_tiers(books: tuple[Directory, Directory]) -> None:
    for book in books:
        for one in book.catalog.subscriptions:
            if one.tiers_at_change == "carry_over":
                raise InputError(
                    f"the tiers of subscription {one.id!r} carry over, and a simulation prices whole periods; give a "
                    "catalog without `tiers_at_change: carry_over`"
                )


def _check_archive(url: str, period: str, books: tuple[Directory, Directory]) -> None:
    retention = clickhouse.retention_days(url)
    if retention is None:
        return
    kept = datetime.now(UTC) - timedelta(days=retention)
    start = min(recorded.period_bounds(period, book).start for book in books)
    if start < kept:
        raise InputError(
            f"the archive keeps events for {retention} days, and the period {period} begins before that, at "
            f"{start:%Y-%m-%d}: its usage is not whole any more; take a later period"
        )


def _stored(url: str, period: str, book: Directory, console: Console | None) -> dict[Any, Any]:
    used = {}
    with _bar(console) as progress:
        task = progress.add_task("adding up line items", total=_PARTS, done="")
        for part in range(_PARTS):
            try:
                used.update(line_item_totals(url, period, book, part, _PARTS))
            except UnknownSubscriptionError as error:
                raise InputError(f"{error}; give the catalog that the period is billed with as --today") from None
            progress.update(task, completed=part + 1)
    return of_payers(used)


def _rated(
    url: str, period: str, book: Directory, today: Catalog, name: str, console: Console | None
) -> tuple[Found, PricedUsage]:
    with _bar(console) as progress:
        task = progress.add_task(f"rating recorded usage ({name})", total=None, done="")

        def show(done: int, events: int) -> None:
            progress.update(task, completed=done, total=max(events, 1), done=f"{done:,} of {events:,} events")

        found = recorded.read(url, book, period, today.meters, show)
    return found, priced_usage(found.usage, book)


def _bar(console: Console | None) -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"))
    shown = console is not None and console.is_terminal
    return Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=not shown)
