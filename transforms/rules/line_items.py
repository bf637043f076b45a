"""From the usage of a rating key to its line items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal

from meterline.schemas.meters import Aggregation
from meterline.schemas.records import LineItem, RatingKey, TierCharge
from meterline.transforms.rules.aggregation import FOLDED, Cell, Usage, cumulative, quantity
from meterline.transforms.rules.attribution import Priced
from meterline.transforms.rules.money import QuantityError
from meterline.transforms.rules.pricing import charge_interval

_HOUR = 3_600
_LIMIT = Decimal(10) ** 26
_NOTHING: tuple[Decimal, tuple[TierCharge, ...]] = (Decimal(0), ())


def window_bounds(key: RatingKey, seconds: int) -> tuple[int, int]:
    """The usage window [start, end) that holds an instant: its UTC hour, cut at the billing period's bounds."""
    hour = seconds - seconds % _HOUR
    return max(hour, int(key.period_start.timestamp())), min(hour + _HOUR, int(key.period_end.timestamp()))


def line_items(
    key: RatingKey,
    aggregation: Aggregation,
    priced: Priced | None,
    usage: Mapping[Cell, Usage],
    since: Cell | None = None,
) -> Iterator[LineItem]:
    """Price the cells of a rating key, each as the step that its usage adds to the period's.

    Args:
      priced: None for unpriced usage, which is counted at amount 0.
      usage: All the key's cells that have events. One whose events are all voided has a line item still, of amount 0,
        so that it replaces the one from before. The usage of the first ones may be folded into one cell (`FOLDED`).
      since: The first cell that is wanted; those before it determine it but are not yielded.

    Raises:
      QuantityError: the quantity reaches 10^26.
      MoneyError: an amount has more digits than fit.
      NoPriceError: no price is in force for some of them.

    Source: docs/rules.md, "Quantities" and "Amounts".
    """
    if priced is not None and priced.later:
        priced.check(int(key.period_start.timestamp()), int(key.period_end.timestamp()))
    reached = Decimal(0)
    opening = True
    events = 0
    for cell, own, so_far in cumulative(aggregation, sorted(usage.items())):
        before, reached = reached, quantity(aggregation, so_far)
        events_before, events = events, so_far.event_count
        if reached >= _LIMIT:
            raise QuantityError(f"the quantity of the period reaches {reached}, it must stay below 10^26")
        if (since is None or cell >= since) and cell != FOLDED:
            amount, tiers = _NOTHING
            if priced is not None and own.event_count:
                price = priced.at(cell.window_start)
                amount, tiers = charge_interval(price, before, reached, opening=opening, events=(events_before, events))
            start, end = window_bounds(key, cell.window_start)
            yield LineItem(
                key=key,
                account_id=cell.account_id,
                window_start=start,
                window_end=end,
                quantity_from=before,
                quantity_to=reached,
                amount=amount,
                currency=priced.currency if priced else "",
                tiers=tiers,
                event_count=own.event_count,
                voided_count=own.voided_count,
                revision=so_far.revision,
            )
        # What is due at zero usage is borne by the first cell that has an event.
        opening = opening and not own.event_count
