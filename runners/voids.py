"""Voids an archived event: finds it, sends the voiding event through the rating job, and says what moved."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console

from meterline.runners.jobs import InputError, RateReport, rate_files
from meterline.schemas.catalog import Catalog
from meterline.schemas.event import EventError, microseconds
from meterline.schemas.voids import VOID_TYPE, EventName, Void
from meterline.transforms import clickhouse


@dataclass(frozen=True)
class Candidate:
    """An archived event; `voided` are the reason and the instant of its void, if it has one."""

    name: EventName
    type: str
    subject: str
    account_id: str
    billing_account_id: str
    rating_keys: tuple[int, ...]
    voided: tuple[str, datetime] | None

    @property
    def time(self) -> str:
        moment = datetime.fromtimestamp(self.name.time // 1_000_000, UTC)
        return f"{moment:%Y-%m-%dT%H:%M:%S}.{self.name.time % 1_000_000:06d}Z"


@dataclass(frozen=True)
class Moved:
    """What the line items of a rating key that the event fed add up to, before and after."""

    charge_id: str
    meter_id: str
    dimensions: dict[str, str]
    currency: str
    quantity_before: Decimal
    quantity_after: Decimal
    amount_before: Decimal
    amount_after: Decimal


@dataclass(frozen=True)
class VoidReport:
    """`invoices` are the numbers of issued invoices that bill what the event fed; they stay as they are."""

    event: Candidate
    void_id: str
    reason: str
    is_new: bool
    moved: tuple[Moved, ...]
    invoices: tuple[str, ...]
    run: RateReport

    @property
    def has_moved(self) -> bool:
        return any(
            (one.quantity_before, one.amount_before) != (one.quantity_after, one.amount_after) for one in self.moved
        )

    def to_json(self) -> dict[str, Any]:
        one = self.event
        return {
            "event": {
                "tenant_id": one.name.tenant_id,
                "source": one.name.source,
                "id": one.name.id,
                "time": one.time,
                "type": one.type,
                "subject": one.subject,
                "account_id": one.account_id,
                "billing_account_id": one.billing_account_id,
            },
            "void_id": self.void_id,
            "reason": self.reason,
            "already_voided": not self.is_new,
            "charges": [vars(one) for one in self.moved],
            "issued_invoices": list(self.invoices),
            "run": self.run.to_json(),
        }


_CANDIDATES = """
SELECT tenant_id, toUnixTimestamp64Micro(time) AS micros, source, id, type, subject, account_id, billing_account_id,
       rating_keys
FROM usage_events FINAL
WHERE id = {id:String} AND type != {void:String}
  AND ({source:String} = '' OR source = {source:String}) AND ({tenant:String} = '' OR tenant_id = {tenant:String})
ORDER BY tenant_id, source, time
"""
_VOIDS = """
SELECT tenant_id, toUnixTimestamp64Micro(time) AS micros, source, id, reason, received_time
FROM voids FINAL WHERE id = {id:String}
"""
# Sums are taken in 256 bits: ClickHouse wraps sums of Decimal(38) without a word.
_STANDING = """
SELECT rating_key_id, any(charge_id) AS charge, any(meter_id) AS meter, any(dimensions) AS dims, any(currency) AS money,
       argMax(quantity_to, (window_start, account_id)) AS quantity, sum(toDecimal256(amount, 18)) AS total
FROM line_items FINAL
WHERE tenant_id = {tenant:String} AND billing_account_id = {payer:String} AND rating_key_id IN {keys:Array(UInt64)}
GROUP BY rating_key_id ORDER BY charge, meter, rating_key_id
"""
_ISSUED = """
SELECT number FROM invoices FINAL
WHERE status = 'issued' AND tenant_id = {tenant:String} AND billing_account_id = {payer:String}
  AND invoice_id IN (SELECT invoice_id FROM invoice_lines WHERE rating_key_id IN {keys:Array(UInt64)})
ORDER BY number
"""


def find(url: str, id: str, source: str | None, tenant: str | None, time: datetime | None) -> Candidate:
    """The one archived event that is meant.

    Raises:
      InputError: there is none, or several; the text lists them.
    """
    clickhouse.ready(url)
    about = {"id": id, "source": source or "", "tenant": tenant or "", "void": VOID_TYPE}
    voids = {
        _name(row): (row["reason"], row["received_time"])
        for row in clickhouse.query(url, _VOIDS, {"id": id}).to_pylist()
    }
    found = [
        Candidate(
            _name(row),
            row["type"],
            row["subject"],
            row["account_id"],
            row["billing_account_id"],
            tuple(row["rating_keys"]),
            voids.get(_name(row)),
        )
        for row in clickhouse.query(url, _CANDIDATES, about).to_pylist()
        if time is None or row["micros"] == microseconds(time)
    ]
    if not found:
        raise InputError(
            f"no accepted event is called {id!r}"
            + "".join(f", {name} {value!r}" for name, value in (("source", source), ("tenant", tenant)) if value)
            + (f", with the time {time.isoformat()}" if time else "")
            + ". Only what was accepted can be voided; `meterline explain ID` says where an event went"
        )
    if len(found) > 1:
        listed = "\n".join(
            f"  --tenant {one.name.tenant_id} --source {one.name.source} --time {one.time}   of {one.subject}"
            + (" (voided)" if one.voided else "")
            for one in found[:20]
        )
        more = f"\n  and {len(found) - 20} more" if len(found) > 20 else ""
        raise InputError(f"{len(found)} accepted events are called {id!r}; say which is meant:\n{listed}{more}")
    return found[0]


def _first_period(url: str, event: Candidate) -> datetime:
    sql = "SELECT min(period_start) AS first FROM rating_keys WHERE rating_key_id IN {keys:Array(UInt64)}"
    first = clickhouse.query(url, sql, {"keys": list(event.rating_keys)}).column("first")[0].as_py()
    assert isinstance(first, datetime)
    return first.replace(tzinfo=UTC)


def _name(row: dict[str, Any]) -> EventName:
    return EventName(row["tenant_id"], row["micros"], row["source"], row["id"])


def void_event(
    event: Candidate,
    reason: str,
    catalog: Catalog,
    url: str,
    *,
    now: datetime,
    console: Console | None = None,
) -> VoidReport:
    """Send the voiding event through the rating job. Doing so again changes nothing, and completes what broke off.

    Raises:
      InputError: it was rejected.
    """
    void = Void(event.name, event.subject, reason)
    about = {"tenant": event.name.tenant_id, "payer": event.billing_account_id, "keys": list(event.rating_keys)}
    standing: Callable[[], list[dict[str, Any]]] = lambda: clickhouse.query(url, _STANDING, about).to_pylist()  # noqa: E731
    try:
        Void.parse(void.record())
    except EventError as error:
        raise InputError(f"--reason: {error}") from None
    retention = clickhouse.retention_days(url)
    if retention and _first_period(url, event) < now - timedelta(days=retention):
        raise InputError(
            f"the archive keeps {retention} days, so the usage of the event's period cannot be computed anew any more"
        )
    before = {row["rating_key_id"]: row for row in standing()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{void.id}.ndjson"
        file.write_bytes(void.record())
        run = rate_files([str(file)], catalog, url, now=now, console=console, recorded_as=(file.name,))
    if run.rejected:
        reasons = ", ".join(f"{reason} at {stage}" for stage, reason in run.rejected)
        raise InputError(f"the voiding event was rejected: {reasons}; `meterline rejects list` says why")
    zero = Decimal(0)
    moved = tuple(
        Moved(
            row["charge"],
            row["meter"],
            dict(row["dims"]),
            row["money"],
            before.get(row["rating_key_id"], {}).get("quantity", zero),
            row["quantity"],
            before.get(row["rating_key_id"], {}).get("total", zero),
            row["total"],
        )
        for row in standing()
    )
    invoices = tuple(row["number"] for row in clickhouse.query(url, _ISSUED, about).to_pylist())
    return VoidReport(event, void.id, reason, run.accepted > 0, moved, invoices, run)
