"""The archived events of a period in parts that fit into memory, and what is found in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from meterline.schemas.meters import Aggregation
from meterline.schemas.records import RatingKey
from meterline.schemas.voids import VOID_TYPE
from meterline.transforms import clickhouse
from meterline.transforms.rules.aggregation import Usage, merge
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.fees import period_label
from meterline.transforms.rules.periods import Period

_DAY = 86_400


class Payer(NamedTuple):
    """A billing account of the archive, and how many events it has there."""

    tenant_id: str
    billing_account_id: str
    events: int


class Part(NamedTuple):
    """Archived events that are read together: those of some payers of a tenant at seconds [start, end)."""

    payers: tuple[Payer, ...]
    start: int
    end: int

    @property
    def events(self) -> int:
        """About how many there are."""
        return sum(payer.events for payer in self.payers)

    @property
    def parameters(self) -> dict[str, Any]:
        accounts = [payer.billing_account_id for payer in self.payers]
        return {"tenant": self.payers[0].tenant_id, "accounts": accounts, "start": self.start, "end": self.end}


_PAYERS = f"""
SELECT tenant_id, billing_account_id, count() AS events FROM usage_events
WHERE type != '{VOID_TYPE}' AND time >= fromUnixTimestamp64Second({{start:Int64}}, 'UTC')
  AND time < fromUnixTimestamp64Second({{end:Int64}}, 'UTC')
GROUP BY tenant_id, billing_account_id ORDER BY tenant_id, billing_account_id
"""


def parts(url: str, period: Period, at_once: int) -> list[Part]:
    """The archived events of a stretch of time, cut by payer and, where one has very many, by time."""
    start, end = int(period.start.timestamp()), int(period.end.timestamp())
    rows = clickhouse.query(url, _PAYERS, {"start": start, "end": end}).to_pylist()
    by_tenant: dict[str, list[Payer]] = {}
    for row in rows:
        by_tenant.setdefault(row["tenant_id"], []).append(Payer(**row))
    return [part for payers in by_tenant.values() for part in cut(Part(tuple(payers), start, end), at_once)]


def cut(part: Part, at_once: int) -> Iterator[Part]:
    """The same events in parts of about so many."""
    held: list[Payer] = []
    for payer in part.payers:
        if held and sum(one.events for one in held) + payer.events > at_once:
            yield part._replace(payers=tuple(held))
            held = []
        if payer.events <= at_once:
            held.append(payer)
            continue
        all_days = -(-(part.end - part.start) // _DAY)
        pieces = min(-(-payer.events // at_once), all_days)
        seconds = -(-all_days // pieces) * _DAY
        starts = range(part.start, part.end, seconds)
        for start in starts:
            few = payer._replace(events=payer.events // len(starts))
            yield Part((few,), start, min(start + seconds, part.end))
    if held:
        yield part._replace(payers=tuple(held))


@dataclass
class Found:
    """What a period's archived events are under a catalog.

    Args:
      usage: By the text of the rating key.
      events: How many were looked at; some may lie in periods next to this one.
      rejected: Of the UTC days that name the period, those that the catalog would not accept, by reason.
    """

    book: Directory
    days: Period
    usage: dict[str, Usage] = field(default_factory=dict)
    events: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    _labels: dict[tuple[str, datetime], str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.aggregations = {meter.id: meter.aggregation for meter in self.book.catalog.meters}

    def aggregation_of(self, key: RatingKey) -> Aggregation:
        return self.aggregations[key.meter_id]

    def add(self, text: str, usage: Usage) -> None:
        """Add usage of a rating key, if its billing period is this one."""
        key = RatingKey.parse(text)
        if self.is_wanted(key):
            known = self.usage.get(text)
            self.usage[text] = usage if known is None else merge(self.aggregation_of(key), known, usage)

    def is_wanted(self, key: RatingKey) -> bool:
        if not key.subscription_id:
            return f"{key.period_start:%Y-%m}" == self.days.label
        name = key.subscription_id, key.period_start
        if name not in self._labels:
            self._labels[name] = period_label(key, self.book)
        return self._labels[name] == self.days.label

    def in_days(self, seconds: Iterable[int] | np.ndarray) -> np.ndarray:
        """Which instants are in the UTC days that name the period."""
        found = np.asarray(seconds, np.int64)
        return (found >= int(self.days.start.timestamp())) & (found < int(self.days.end.timestamp()))


_VOIDED = """
SELECT 1 FROM voids
WHERE tenant_id = {tenant:String} AND voids.time >= fromUnixTimestamp64Second({start:Int64}, 'UTC')
  AND voids.time < fromUnixTimestamp64Second({end:Int64}, 'UTC') LIMIT 1
"""
_OF_PART = f"""
FROM usage_events FINAL
WHERE tenant_id = {{tenant:String}} AND billing_account_id IN {{accounts:Array(String)}} AND type != '{VOID_TYPE}'
  AND time >= fromUnixTimestamp64Second({{start:Int64}}, 'UTC')
  AND time < fromUnixTimestamp64Second({{end:Int64}}, 'UTC')
"""
_VOID_TIMES = "(SELECT time FROM voids WHERE tenant_id = {tenant:String})"
_VOID_NAMES = "(SELECT source, id, time FROM voids WHERE tenant_id = {tenant:String})"


def live(url: str, part: Part, columns: str, condition: str = "1") -> str:
    """The statement that reads columns of a part's events that are not voided.

    Names are looked at where something is voided only, and then at such instants only: they are longer than all else.
    """
    everything = f"SELECT {columns} {_OF_PART} AND {condition}"
    if not clickhouse.query(url, _VOIDED, part.parameters).num_rows:
        return everything
    return (
        f"{everything} AND time NOT IN {_VOID_TIMES} UNION ALL "
        f"{everything} AND time IN {_VOID_TIMES} AND (source, id, time) NOT IN {_VOID_NAMES}"
    )


# The seconds of an event's time; a fraction is cut off, towards the past.
SECOND = "intDiv(toUnixTimestamp64Micro(time), 1000000)"
