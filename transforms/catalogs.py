"""Catalogs that come into force while a stream runs.

A catalog is published some seconds before it comes into force, and every worker looks for new ones at least that often;
so which catalog an event meets depends on when the event was received, and not on the worker or on the clock.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pyarrow as pa

from meterline.schemas.arrow import MICROSECONDS
from meterline.schemas.catalog import Catalog
from meterline.schemas.meters import Meter
from meterline.transforms import clickhouse, exchange_rates
from meterline.transforms.rules.contracts import own_prices

# From its publication until a catalog is in force.
DELAY_SECONDS = 15
# How long storing one may take: a worker that looked when it was under way looks again before it is in force.
_STORING_SECONDS = 5
_TRIES = 5

_NOW = "SELECT toUnixTimestamp64Micro(now64(6)) AS now"
_KNOWN = """
SELECT digest, toUnixTimestamp64Micro(in_force_from) AS since,
       if(digest IN {known:Array(String)}, '', content) AS content
FROM catalogs FINAL
WHERE digest = {first:String} OR in_force_from > fromUnixTimestamp64Micro({since:Int64}, 'UTC')
ORDER BY in_force_from, digest
"""


def publish(url: str, catalog: Catalog, delay_seconds: int = DELAY_SECONDS) -> int:
    """Store a catalog; when it comes into force, in microseconds since 1970 by the database's clock.

    Args:
      delay_seconds: From now until then: 0 where no stream runs.

    Raises:
      DatabaseError: storing it took too long for streams that run to have seen it in time. Those that did not see it
        then rate by an older one for some seconds, so it was stored again; the last time counts.
    """
    for _ in range(_TRIES):
        began = clickhouse.query(url, _NOW)["now"][0].as_py()
        since = began + delay_seconds * 1_000_000
        row = {
            "digest": [catalog.digest],
            "in_force_from": pa.array([since], pa.int64()).cast(MICROSECONDS),
            "content": [catalog.model_dump_json()],
        }
        clickhouse.insert(url, "catalogs", pa.table(row))
        if not delay_seconds or clickhouse.query(url, _NOW)["now"][0].as_py() < began + _STORING_SECONDS * 1_000_000:
            return since
    raise clickhouse.DatabaseError(
        f"storing a catalog at {clickhouse.redacted(url)} takes more than {_STORING_SECONDS} s, so that workers may "
        "see it too late: look what keeps ClickHouse busy, and publish it again"
    )


_LAST = "SELECT digest, content FROM catalogs FINAL ORDER BY in_force_from DESC, digest LIMIT 1"


class ChangedCatalogError(ValueError):
    """A catalog changes what may not change once it was in force."""


def last_digest(url: str) -> str:
    """Of the catalog that was published last; empty where none was."""
    found = clickhouse.query(url, _LAST)["digest"].to_pylist()
    return found[0] if found else ""


def last(url: str) -> Catalog | None:
    """The catalog that was published last; None where none was."""
    found = clickhouse.query(url, _LAST)["content"].to_pylist()
    return Catalog.model_validate_json(found[0]) if found else None


def check(url: str, catalog: Catalog) -> None:
    """Refuse a catalog that changes what the one published last says of versions and meters that it has.

    Raises:
      ChangedCatalogError: a version of a rate card has other prices, a meter adds its usage up otherwise, or an
        exchange rate that was in force is another.
    """
    before = last(url)
    if before is None:
        return
    prices = {(card.id, one.version): (card.currency, one) for card in before.rate_cards for one in card.versions}
    edited = [
        f"version {one.version!r} of rate card {card.id!r}"
        for card in catalog.rate_cards
        for one in card.versions
        if prices.get((card.id, one.version), (card.currency, one)) != (card.currency, one)
    ]
    own = {
        (subscription.id, name, charge): price
        for subscription in before.subscriptions
        for name, some in own_prices(subscription)
        for charge, price in some.items()
    }
    edited += [
        f"price {charge!r} of {name!r} of subscription {subscription.id!r}"
        for subscription in catalog.subscriptions
        for name, some in own_prices(subscription)
        for charge, price in some.items()
        if own.get((subscription.id, name, charge), price) != price
    ]
    if edited:
        raise ChangedCatalogError(
            f"{', '.join(edited)} is not as in the catalog that was published last. A version never changes once it is "
            "used: give it back its prices, and put the new ones into a version, or a change, of their own"
        )
    meters = {meter.id: meter.counting for meter in before.meters}
    changed = [
        f"meter {meter.id!r}" for meter in catalog.meters if meters.get(meter.id, meter.counting) != meter.counting
    ]
    if changed:
        raise ChangedCatalogError(
            f"{', '.join(changed)} has another aggregation, value, filter or unit than in the catalog that was "
            "published last: usage of one billing period would be added up in two ways. Give it back what it had, and "
            "add a meter"
        )
    if rates := list(dict.fromkeys(exchange_rates.changed(url, before, catalog))):
        raise ChangedCatalogError(
            f"{'; '.join(rates[:5])}{' …' if len(rates) > 5 else ''}. A rate never changes once it was in force: "
            "give it back, and let a new one take effect later"
        )


@dataclass(frozen=True)
class PublishedCatalogs:
    """The catalog a stream began with, and those that came into force since; in place of a `Catalog`.

    Args:
      url: Of the database.
      first: Digest of the catalog that was in force when the stream began; it is for all events received before.
      since: When that was, as `publish` said.
    """

    url: str
    first: str
    since: int

    def as_of(self, received_time: int) -> Catalog:
        """The catalog for events received at an instant, in microseconds since 1970."""
        return _state(self).as_of(received_time)

    def known(self) -> tuple[Catalog, ...]:
        """All of them, the newest first."""
        return _state(self).known()

    def look(self) -> tuple[Catalog, ...]:
        """The same after a look for new ones."""
        _state(self).look()
        return self.known()


Catalogs = Catalog | PublishedCatalogs


def meters_of(catalogs: Catalogs) -> dict[str, Meter]:
    """The meters of all catalogs that were in force, by id; where they differ, of the newest."""
    return {meter.id: meter for catalog in reversed(catalogs.known()) for meter in catalog.meters}


@lru_cache(maxsize=4)
def _state(handle: PublishedCatalogs) -> _State:
    return _State(handle)


@dataclass
class _State:
    """What a process knows of them."""

    _handle: PublishedCatalogs
    _in_force: list[tuple[int, Catalog]] = field(default_factory=list)  # the newest first
    _until: int = 0  # all that comes into force before is known
    _lock: Any = field(default_factory=threading.Lock)

    def as_of(self, received_time: int) -> Catalog:
        if received_time >= self._until:
            self.look()
        return next((one for since, one in self._in_force if since <= received_time), self._in_force[-1][1])

    def known(self) -> tuple[Catalog, ...]:
        if not self._in_force:
            self.look()
        return tuple(one for _, one in self._in_force)

    def look(self) -> None:
        with self._lock:
            handle = self._handle
            have = {one.digest: one for _, one in self._in_force}
            now = clickhouse.query(handle.url, _NOW)["now"][0].as_py()
            rows = clickhouse.query(
                handle.url, _KNOWN, {"known": sorted(have), "first": handle.first, "since": handle.since}
            ).to_pylist()
            found: dict[int, Catalog] = {}
            for row in rows:
                if row["since"] < handle.since:
                    continue
                digest = row["digest"]
                if digest not in have:
                    have[digest] = Catalog.model_validate_json(row["content"])
                found[row["since"]] = have[digest]
            if not found:
                raise clickhouse.DatabaseError(
                    f"the catalog {handle.first[:12]} that this stream began with is not in the table catalogs any "
                    "more: start the stream anew"
                )
            self._in_force = sorted(found.items(), key=lambda one: -one[0])
            self._until = now + (DELAY_SECONDS - _STORING_SECONDS) * 1_000_000
