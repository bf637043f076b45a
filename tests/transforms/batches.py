"""Attributed events, written down shortly."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import pyarrow as pa

from meterline.schemas.arrow import ATTRIBUTED
from meterline.schemas.records import RatingKey

HOUR = 3_600
# Midnight of 1 October in Asia/Kolkata: inside a UTC hour.
PERIOD_START = datetime(2026, 9, 30, 18, 30, tzinfo=UTC)
PERIOD_END = datetime(2026, 10, 31, 18, 30, tzinfo=UTC)
START = int(PERIOD_START.timestamp())


class Fed(NamedTuple):
    """What an event gives to one meter."""

    key: str
    quantity: Decimal = Decimal(1)
    value: str = ""


class Usage(NamedTuple):
    """An event as far as metering goes; `time` in microseconds after the period's start."""

    time: int
    fed: tuple[Fed, ...]
    id: str = "1"
    source: str = "/s"
    account: str = "acme"
    identity: bytes = bytes(16)


def key_text(meter: str, region: str = "eu", subscription: str = "sub") -> str:
    charge, version = (f"c-{meter}", "v1") if subscription else ("", "")
    return RatingKey(
        "default", "acme", subscription, charge, meter, version, PERIOD_START, PERIOD_END, (("region", region),)
    ).text


def batch(events: Sequence[Usage]) -> pa.RecordBatch:
    """A batch as `attribute` makes them."""
    offsets = [0]
    for event in events:
        offsets.append(offsets[-1] + len(event.fed))
    fed = [one for event in events for one in event.fed]
    columns: dict[str, Any] = {
        "tenant_id": ["default"] * len(events),
        "source": [event.source for event in events],
        "id": [event.id for event in events],
        "type": ["call"] * len(events),
        "subject": [event.account for event in events],
        "time": [START * 1_000_000 + event.time for event in events],
        "received_time": [START * 1_000_000] * len(events),
        "payload": [event.id.encode() for event in events],
        "origin": ["file"] * len(events),
        "position": list(range(len(events))),
        "account_id": [event.account for event in events],
        "billing_account_id": ["acme"] * len(events),
        "identity": [event.identity for event in events],
        "rating_keys": [one.key for one in fed],
        "quantities": [one.quantity for one in fed],
        "counted_values": [one.value for one in fed],
    }
    arrays = []
    for item in ATTRIBUTED:
        kind = item.type.value_type if pa.types.is_list(item.type) else item.type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        column = pa.array(columns[item.name], plain)
        column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column
        if pa.types.is_list(item.type):
            column = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), column)
        arrays.append(column)
    return pa.RecordBatch.from_arrays(arrays, schema=ATTRIBUTED)


class Bag:
    """A bag state of Beam, in memory."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def read(self) -> list[Any]:
        return self.values

    def add(self, value: Any) -> None:
        self.values.append(value)

    def clear(self) -> None:
        self.values = []


class Cell:
    """A state cell of Beam, in memory."""

    def __init__(self) -> None:
        self.value: Any = None

    def read(self) -> Any:
        return self.value

    def write(self, value: Any) -> None:
        self.value = value

    def clear(self) -> None:
        self.value = None


class Timer:
    """A timer of Beam, that somebody else lets fire."""

    def __init__(self) -> None:
        self.time: Any = None

    def set(self, time: Any) -> None:
        self.time = time
