"""Recorded usage from the columns of the archive: ClickHouse adds up what the meters of the time read from events.

An archived event has, for each meter it fed, a rating key with the dimensions, the quantity, and the value that was
counted. Events of a subject with the same rating keys, in a time in which the new catalog attributes them alike, are
one row here; the stages' own attribution says what each row is under the new catalog.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from meterline.schemas.arrow import MICROSECONDS, QUANTITY
from meterline.schemas.event import Reason
from meterline.schemas.meters import Aggregation, Meter
from meterline.schemas.records import RatingKey
from meterline.transforms import clickhouse
from meterline.transforms.archive import damaged
from meterline.transforms.attribute import Attributor
from meterline.transforms.cells import whole
from meterline.transforms.columns import code_column, symbols
from meterline.transforms.recall import ADDED_UP, found_value
from meterline.transforms.recorded_parts import SECOND, Found, Part, live
from meterline.transforms.rules.aggregation import Usage, merge
from meterline.transforms.shape import EventShape

# What a meter may say without reading more of an event than its rating key, quantity and counted value have.
_READ_ALIKE = {"id", "name", "event_type", "aggregation", "value", "expression", "unit", "dimensions"}


class _Use(NamedTuple):
    """How a new meter is fed: by what `sources`, meters of the time, recorded, added up as `adds` says.

    One that counts needs no source; it is fed by those of another one, so that they are read once, or by all.
    """

    meter: Meter
    adds: Aggregation
    sources: frozenset[str]


class _Recorded(NamedTuple):
    """What the rating keys of an event say: the key of each meter it fed, and its dimensions."""

    keys: dict[str, int]
    dimensions: dict[str, str]


@dataclass
class Columns:
    """Reads a period's archive by columns.

    Args:
      recorded_by: The meters that the archived events were read by.
    """

    url: str
    found: Found
    recorded_by: tuple[Meter, ...]

    # `types`: those of which columns may say all, and how each new meter of them is fed.

    def __post_init__(self) -> None:
        self.types: dict[str, tuple[_Use, ...]] = {}
        for event_type, meters in self.found.book.meters_by_type.items():
            uses = tuple(self._uses_of(meters))
            if len(uses) == len(meters):
                self.types[event_type] = uses

    def _uses_of(self, meters: Iterable[Meter]) -> Iterator[_Use]:
        """Of the meters of a type, those that may be fed by columns."""
        uses = [
            _Use(meter, meter.aggregation, frozenset(one.id for one in self.recorded_by if _reads_alike(one, meter)))
            for meter in meters
            if _is_plain(meter) and meter.aggregation in (*ADDED_UP, Aggregation.COUNT)
        ]
        reading = [use for use in uses if use.meter.aggregation is not Aggregation.COUNT]
        for use in uses:
            if use.meter.aggregation is Aggregation.COUNT:
                yield use._replace(adds=reading[0].adds, sources=reading[0].sources) if reading else use
            elif use.sources:
                yield use

    def read(self, part: Part) -> set[str]:
        """Add the usage of a part's events; the types of those whose bytes must be read."""
        self._part = part
        found = self.found
        seen = self._ask(_SEEN.format(live=live(self.url, part, "type, subject, rating_keys, time"), second=SECOND))
        found.events += sum(seen["events"].to_pylist())
        self._keys = {row["rating_key_id"]: RatingKey.parse(row["rating_key"]) for row in self._ask(_KEYS).to_pylist()}
        rows = seen.to_pylist()
        known = {row["type"] for row in rows} & found.book.meters_by_type.keys()
        here = {name for name in known if name in self.types}
        here -= {
            row["type"]
            for row in rows
            if row["type"] in here and not self._suffices(self.types[row["type"]], self._recorded(row["keys"]))
        }
        accounts: set[tuple[str, str]] = set()
        for row in rows:
            if row["type"] not in known:
                found.rejected[Reason.UNKNOWN_TYPE] += row["in_days"]
            elif row["type"] in here:
                account = found.book.account_of(part.payers[0].tenant_id, row["subject"])
                if account is None:
                    found.rejected[Reason.UNKNOWN_SUBJECT] += row["in_days"]
                else:
                    accounts.add((account, row["type"]))
        if accounts:
            self._add_up(here, accounts)
        return known - here

    def _ask(self, sql: str, **parameters: Any) -> pa.Table:
        return clickhouse.query(self.url, sql, self._part.parameters | self._days | parameters)

    @property
    def _days(self) -> dict[str, Any]:
        days = self.found.days
        return {"days_start": int(days.start.timestamp()), "days_end": int(days.end.timestamp())}

    def _recorded(self, keys: str) -> _Recorded:
        """What an event recorded, by its rating keys as ClickHouse writes an array."""
        made = _Recorded({}, {})
        for id in json.loads(keys):
            if id not in self._keys:
                raise damaged()
            made.keys[self._keys[id].meter_id] = id
            made.dimensions.update(self._keys[id].said)
        return made

    @staticmethod
    def _suffices(uses: Iterable[_Use], recorded: _Recorded) -> bool:
        return all(
            recorded.dimensions.keys() >= set(use.meter.dimensions) and _source(use, recorded) is not None
            for use in uses
        )

    def _add_up(self, types: set[str], accounts: set[tuple[str, str]]) -> None:
        attributor = Attributor(self.found.book)
        cuts = self._cuts(attributor, accounts)
        for adds in sorted({use.adds for name in types for use in self.types[name]}):
            uses = {use.meter.id: use for name in types for use in self.types[name] if use.adds is adds}
            sources = sorted(set().union(*(use.sources for use in uses.values())))
            fed = _OF_SOURCES if adds is not Aggregation.COUNT else _FIRST
            columns = f"{_COLUMNS}, roundDown({SECOND}, {{cuts:Array(Int64)}}) AS second"
            events = live(self.url, self._part, columns, "type IN {types:Array(String)}")
            sql = _ROWS.format(live=events, value=ADDED_UP.get(adds, "0"), fed=fed)
            rows = self._ask(sql, cuts=cuts, types=sorted(types), meters=sources)
            if rows.num_rows:
                self._attribute(rows, uses, adds, attributor)

    def _cuts(self, attributor: Attributor, accounts: set[tuple[str, str]]) -> list[int]:
        """The seconds at which something changes in how the new catalog attributes usage of one of the accounts."""
        start, end = (datetime.fromtimestamp(second, UTC) for second in self._part[1:])
        segments = []
        for account, event_type in sorted(accounts):
            for meter in self.found.book.meters_by_type[event_type]:
                at = start
                while at < end:
                    segment = self.found.book.segment_at(account, meter.id, at)
                    segments.append((account, meter.id, segment))
                    at = segment.end
        attributor.learn(segments)
        ends = {int(segment.end.timestamp()) for _, _, segment in segments}
        return sorted({self._part.start, *(second for second in ends if second < self._part.end)})

    def _attribute(self, rows: pa.Table, uses: dict[str, _Use], adds: Aggregation, attributor: Attributor) -> None:
        """Add rows to the usage of the rating keys that the new catalog gives them."""
        texts, keys_of_row = code_column(whole(rows["keys"]))
        recorded = [self._recorded(text) for text in texts]
        attributed, _ = attributor.attribute(self._as_events(rows, keys_of_row, recorded))
        lists = attributed["rating_keys"]
        keys, key_of_slot = code_column(lists.flatten())
        meters = [RatingKey.parse(key).meter_id for key in keys]
        row_of_slot = np.repeat(np.asarray(attributed["position"]), np.diff(np.asarray(lists.offsets)))
        slots, events, values = (rows[name].to_pylist() for name in ("slot", "events", "value"))
        # By what was recorded: the meters that a rating key feeds.
        feeds = [{(meter, _source(use, one)) for meter, use in uses.items()} for one in recorded]
        feeds_row = [feeds[code] for code in keys_of_row.tolist()]
        of_key: dict[int, Usage] = {}
        for key, row in zip(key_of_slot.tolist(), row_of_slot.tolist()):
            if (meters[key], slots[row]) not in feeds_row[row]:
                continue
            use = uses[meters[key]]
            is_counted = use.meter.aggregation is Aggregation.COUNT
            usage = Usage(events[row], None if is_counted else found_value(adds, values[row]))
            known = of_key.get(key)
            of_key[key] = usage if known is None else merge(use.meter.aggregation, known, usage)
        for key, usage in of_key.items():
            self.found.add(keys[key], usage)

    def _as_events(self, rows: pa.Table, keys_of_row: np.ndarray, recorded: list[_Recorded]) -> pa.RecordBatch:
        """Rows as events with the dimensions that were recorded; their quantities are added up already."""
        count = rows.num_rows
        nothing = np.zeros(count, np.int32)
        tenant = self._part.payers[0].tenant_id
        columns: dict[str, pa.Array] = {
            "tenant_id": symbols(nothing, [tenant]),
            "source": symbols(nothing, [""]),
            "id": pa.repeat("", count),
            "type": symbols(*_codes(rows["type"])),
            "subject": symbols(*_codes(rows["subject"])),
            "time": pa.array(np.asarray(rows["second"], np.int64) * 1_000_000).cast(MICROSECONDS),
            "received_time": pa.array(np.zeros(count, np.int64)).cast(MICROSECONDS),
            "payload": pa.DictionaryArray.from_arrays(pa.array(nothing), pa.array([b""])),
        }
        shape = EventShape.of(self.found.book.catalog)
        for name, kind in shape.columns.items():
            prefix, _, path = name.partition(":")
            if kind == QUANTITY:
                columns[name] = pa.array(np.zeros(count, np.int64)).cast(pa.decimal128(19, 0)).cast(QUANTITY)
            elif prefix == "d":
                columns[name] = symbols(
                    keys_of_row.astype(np.int32), [one.dimensions.get(path, "") for one in recorded]
                )
            else:
                columns[name] = symbols(nothing, [""]).cast(kind)
        columns["origin"] = symbols(nothing, [""])
        columns["position"] = pa.array(np.arange(count))
        return pa.RecordBatch.from_pydict(columns)


def _is_plain(meter: Meter) -> bool:
    """Whether the meter reads nothing else of an event."""
    return all(
        getattr(meter, name) == item.default
        for name, item in type(meter).model_fields.items()
        if name not in _READ_ALIKE
    )


def _reads_alike(recorded: Meter, meter: Meter) -> bool:
    """Whether a meter of the time read the same value of the same events."""
    kinds = [one.aggregation is Aggregation.DISTINCT for one in (recorded, meter)]
    values = [(one.event_type, one.value, one.expression) for one in (recorded, meter)]
    is_read = recorded.aggregation is not Aggregation.COUNT and _is_plain(recorded)
    return is_read and values[0] == values[1] and kinds[0] == kinds[1]


def _source(use: _Use, recorded: _Recorded) -> int | None:
    """The rating key whose quantity, or value, feeds a meter."""
    if not use.sources:
        return next(iter(recorded.keys.values()), None)
    return next((key for meter, key in recorded.keys.items() if meter in use.sources), None)


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    values, codes = code_column(whole(column))
    return codes.astype(np.int32), values


_SEEN = """
SELECT toString(type) AS type, toString(subject) AS subject, toString(rating_keys) AS keys, count() AS events,
       countIf({second} >= {{days_start:Int64}} AND {second} < {{days_end:Int64}}) AS in_days
FROM ({live}) GROUP BY type, subject, rating_keys
"""
_KEYS = """
SELECT rating_key_id, any(rating_key) AS rating_key FROM rating_keys
WHERE tenant_id = {tenant:String} AND billing_account_id IN {accounts:Array(String)}
  AND period_end > fromUnixTimestamp64Second({start:Int64}, 'UTC')
  AND period_start < fromUnixTimestamp64Second({end:Int64}, 'UTC')
GROUP BY rating_key_id
"""
_COLUMNS = "subject, type, rating_keys AS keys, quantities, counted_values, time, id, source"
# Grouped by the arrays themselves; they become text, which is looked up once for each, when they are few.
_ROWS = """
SELECT toString(subject) AS subject, toString(type) AS type, toString(keys) AS keys, slot, second, events, value
FROM (
    SELECT subject, type, keys, slot, second, count() AS events, {value} AS value
    FROM ({live}) ARRAY JOIN keys AS slot, quantities AS quantity, counted_values AS counted
    WHERE {fed} GROUP BY subject, type, keys, slot, second
)
"""
_OF_SOURCES = "slot IN (SELECT rating_key_id FROM rating_keys WHERE meter_id IN {meters:Array(String)})"
_FIRST = "slot = keys[1]"
