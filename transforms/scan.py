"""From a block of JSON records to columns: the fast reading of events.

`Scanner.scan` gives for each record what `schemas.event` and docs/rules.md, section 1, say. Three paths try in turn,
each on what the one before was not sure of: the compiled loop (compiled.pyx) on plain records; msgspec, with vectorised
checks, on those with escapes and the like; and the slow path, one by one, which alone rejects what is no event. All
check each different value of a column once, by the slow path's functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property, lru_cache, partial
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from meterline.schemas.arrow import MICROSECONDS, QUANTITY, SYMBOL
from meterline.schemas.event import (
    DEFAULT_TENANT,
    FORBIDDEN_CHARACTERS,
    MAX_ATTRIBUTE_CHARACTERS,
    MAX_ID_CHARACTERS,
    MAX_NESTING,
    Event,
    EventError,
    Reason,
    computed_quantity,
    dimension_text,
    distinct_text,
    exact_quantity,
    filter_text,
    lookup,
    parse_event,
    parse_json,
    parse_time,
)
from meterline.schemas.expressions import parse_expression
from meterline.schemas.filters import EVERYTHING
from meterline.transforms.blocks import Records, binary_column, compiled
from meterline.transforms.columns import decimal_limbs, pieces, symbols, taken
from meterline.transforms.expressions import computed
from meterline.transforms.shape import EventShape

FUTURE_TOLERANCE = timedelta(hours=1)
_US = timedelta(microseconds=1)


class Rejected(NamedTuple):
    """A record that cannot go on; `place` is its position in the block."""

    place: int
    reason: Reason
    message: str


class Scanned(NamedTuple):
    """`events` in the order of the block with their `places` in it, and what was rejected."""

    events: pa.RecordBatch
    places: np.ndarray
    rejected: list[Rejected]


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "w": filter_text,
    "q": exact_quantity,
    "v": distinct_text,
    "d": dimension_text,
}


@dataclass
class Scanner:
    """Reads blocks of records for one catalog.

    Args:
      shape: What the meters read.
      horizon: Oldest accepted age of an event when it is received; none for no bound.
      vectorised: Whether the fast paths are used; without them every record takes the slow path.
      compiled: Whether the compiled one is, where it is there.
    """

    shape: EventShape
    horizon: timedelta | None = None
    vectorised: bool = True
    compiled: bool = True
    _extensions: set[str] = field(default_factory=set)

    def scan(self, records: Sequence[bytes], received: int | np.ndarray) -> Scanned:
        """Columns of the acceptable records.

        Args:
          records: Each one JSON text.
          received: When they were received, microseconds since 1970: one for all, or one each.
        """
        block = Records.of(records)
        received = np.broadcast_to(np.asarray(received, np.int64), len(block))
        found, rejected = [], []
        left = np.arange(len(block))
        for columns_of in self._paths:
            columns, places, fine = columns_of(block, left)
            some = self._judged(columns, places, fine, received[places])
            found.append(some)
            rejected += some.rejected
            doubtful = np.zeros(len(block), bool)
            doubtful[left] = True
            doubtful[places[fine]] = False
            left = np.flatnonzero(doubtful)
            if not len(left):
                break
        else:
            slow = self._slow(block, left, received)
            rejected += slow.rejected
            if slow.events.num_rows or not found:
                found.append(slow)
        events, places = _in_order([one for one in found if one.events.num_rows] or found[:1])
        payload = pieces(block.data, block.starts[places], block.ends[places])
        return Scanned(
            events.append_column("payload", payload).select(self.shape.schema.names), places, sorted(rejected)
        )

    def _judged(
        self, columns: dict[str, pa.Array], places: np.ndarray, fine: np.ndarray, received: np.ndarray
    ) -> Scanned:
        """Of the rows that are fine, those that are accepted, without payload, and the others with the reason."""
        times, types = np.asarray(columns["time"].cast(pa.int64())), columns["type"]
        in_time, known = ~self._out_of_time(times, received), self._known_type(types)
        rejected = []
        for at in np.flatnonzero(fine & ~(in_time & known)).tolist():
            error = self._type_error(types[at].as_py()) if in_time[at] else self._time_error(times[at], received[at])
            rejected.append(Rejected(int(places[at]), error.reason, str(error)))
        columns["received_time"] = pa.array(received).cast(MICROSECONDS)
        events = pa.RecordBatch.from_arrays(
            [columns[item.name] for item in self._judged_schema], schema=self._judged_schema
        )
        accepted = fine & in_time & known
        if not accepted.all():
            events, places = events.filter(pa.array(accepted)), places[accepted]
        return Scanned(events, places, rejected)

    @cached_property
    def _judged_schema(self) -> pa.Schema:
        return pa.schema([item for item in self.shape.schema if item.name != "payload"])

    @property
    def _paths(self) -> list[Callable[[Records, np.ndarray], tuple[dict[str, pa.Array], np.ndarray, np.ndarray]]]:
        """The fast paths, the fastest first: from records, and the places in question, to columns, the places of their
        rows, and which rows are fine."""
        if not (self.vectorised and self._tree):
            return []
        return [self._compiled_columns, self._columns] if self._plan else [self._columns]

    # --- compiled path --------------------------------------------------------------------------

    @cached_property
    def _plan(self) -> Any:
        loops = compiled()
        try:
            fits = len(self.shape.read_columns) <= 64
            return loops.Plan(self._tree) if loops and self.compiled and fits else None
        except ValueError:
            return None

    def _compiled_columns(self, block: Records, left: np.ndarray) -> tuple[dict[str, pa.Array], np.ndarray, np.ndarray]:
        loops = compiled()
        assert loops
        slots = {path: slot for slot, path in enumerate(self._plan.paths)}
        quantities = [name for name in self.shape.read_columns if name.startswith("q:")]
        tokens = [name for name in self.shape.read_columns if not name.startswith("q:")]
        wanted = [[slots[name[2:]] for name in names] for names in (quantities, tokens)]
        some = block if len(left) == len(block) else block.take(left)
        fine, times, ids, attributes, numbers, texts = loops.scan(
            some.data, some.starts, some.ends, self._plan, *wanted
        )
        columns = {
            "id": binary_column(some.data, ids[:, 0], ids[:, 1], pa.string()),
            "time": pa.array(times).cast(MICROSECONDS),
        }
        for name, (codes, values) in zip(loops.ATTRIBUTES, attributes):
            different = [value.decode() for value in values]
            if name in ("source", "datacontenttype", "dataschema"):
                fine &= np.asarray([not text or _attribute_is_fine(name, text) for text in different], bool)[codes]
            if name == "tenantid":
                name, different = "tenant_id", [text or DEFAULT_TENANT for text in different]
            if name in self._judged_schema.names:
                columns[name] = symbols(codes, different)
        # Filters come first: they say which rows read the others.
        for name, (codes, values) in zip(tokens, texts):
            reading = self._reading(name, columns)
            said, verdict = _read_each(name[:1], values)
            fine &= verdict[codes] | ~reading
            column = symbols(codes, ["" if text is None else text for text in said])
            present = reading & np.asarray([text is not None for text in said], bool)[codes]
            columns[name] = pa.DictionaryArray.from_arrays(pc.if_else(present, column.indices, None), column.dictionary)
        for name, (limbs, plain) in zip(quantities, numbers):
            reading = self._reading(name, columns)
            fine &= plain | ~reading
            columns[name] = _quantities(limbs, reading)
        self._compute(columns, fine)
        return columns, left, fine

    def _reading(self, name: str, columns: dict[str, pa.Array]) -> np.ndarray:
        """Which events feed a meter that reads a property column, by their type and the filter columns."""
        types = columns["type"]
        by_type = self.shape.readers(name)
        filters = [by_type.get(value, frozenset()) for value in types.dictionary.to_pylist()] or [frozenset()]
        codes = np.asarray(types.indices)
        reading = np.asarray([EVERYTHING in some for some in filters], bool)[codes]
        for code, some in enumerate(filters):
            if some and EVERYTHING not in some:
                reading |= (codes == code) & np.logical_or.reduce([taken(one, columns) for one in some])
        return reading

    def _compute(self, columns: dict[str, pa.Array], fine: np.ndarray) -> None:
        """Add the columns of expressions; rows whose value is no quantity are cleared in `fine`."""
        for name in self.shape.computed_columns:
            expression = parse_expression(name[2:])
            reading = self._reading(name, columns)
            limbs, right = computed(
                expression, {path: decimal_limbs(columns[f"q:{path}"]) for path in expression.paths}
            )
            fine &= right | ~reading
            columns[name] = _quantities(limbs, reading)

    # --- vectorised path ------------------------------------------------------------------------

    @cached_property
    def _tree(self) -> dict[str, Any]:
        """The properties read, nested as in `data`; empty where one path lies inside another's value."""
        tree: dict[str, Any] = {}
        paths = {column.partition(":")[2] for column in self.shape.read_columns}
        if any(path.startswith(f"{other}.") for path in paths for other in paths):
            return {}
        for path in paths:
            *parents, leaf = path.split(".")
            node = tree
            for part in parents:
                node = node.setdefault(part, {})
            node[leaf] = None
        return tree or {"": None}

    @cached_property
    def _decoder(self) -> msgspec.json.Decoder:
        """A decoder of the struct whose `data` has just the properties that meters read."""
        raw = (msgspec.Raw, msgspec.Raw(b""))

        def struct(node: dict[str, Any], name: str) -> type:
            fields, rename = [], {}
            for number, (key, below) in enumerate(sorted(node.items())):
                rename[f"p{number}"] = key
                kind = raw if below is None else (struct(below, f"{name}{number}") | None, None)
                fields.append((f"p{number}", *kind))
            return msgspec.defstruct(name, fields, rename=rename, gc=False)

        optional: list[Any] = [(name, str | None, None) for name in ("tenantid", "datacontenttype", "dataschema")]
        extensions = [(f"x{n}", str | None, None) for n, _ in enumerate(sorted(self._extensions))]
        names = {f"x{n}": name for n, name in enumerate(sorted(self._extensions))}
        event = msgspec.defstruct(
            "FastEvent",
            [
                ("id", str),
                ("source", str),
                ("type", str),
                ("subject", str),
                ("time", str),
                ("specversion", _ONE),
                ("data", struct(self._tree, "Data")),
                *optional,
                *extensions,
            ],
            rename=names,
            forbid_unknown_fields=True,
            gc=False,
        )
        return msgspec.json.Decoder(event)

    def _decode(self, block: Records, left: np.ndarray) -> tuple[np.ndarray, list[Any]]:
        decode = self._decoder.decode
        places: list[int] = []
        structs: list[Any] = []
        records = list(block.take(left))
        for place, record, plain in zip(left.tolist(), records, _plain(records)):
            if plain:
                try:
                    structs.append(decode(record))
                except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
                    continue
                places.append(place)
        return np.asarray(places, np.int64), structs

    def _columns(self, block: Records, left: np.ndarray) -> tuple[dict[str, pa.Array], np.ndarray, np.ndarray]:
        places, structs = self._decode(block, left)
        fine = np.ones(len(structs), bool)
        columns: dict[str, pa.Array] = {}
        ids = [event.id for event in structs]
        columns["id"] = pa.array(ids, pa.string())
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        fine &= (lengths > 0) & (lengths <= MAX_ID_CHARACTERS) & _allowed(ids)
        for name in ("source", "type", "subject"):
            columns[name] = self._symbols(list(map(attrgetter(name), structs)), partial(_attribute_is_fine, name), fine)
        tenants = [event.tenantid or DEFAULT_TENANT for event in structs]
        columns["tenant_id"] = self._symbols(tenants, partial(_attribute_is_fine, "tenantid"), fine)
        for name in ("datacontenttype", "dataschema"):
            values = list(map(attrgetter(name), structs))
            if any(value is not None for value in values):
                self._symbols(values, partial(_attribute_is_fine, name), fine)
        for number in range(len(self._extensions)):
            values = [getattr(event, f"x{number}") or "" for event in structs]
            if any(values):
                lengths = np.fromiter(map(len, values), np.int64, len(values))
                fine &= (lengths <= MAX_ATTRIBUTE_CHARACTERS) & _allowed(values)
        times, valid = _times([event.time for event in structs])
        fine &= valid
        columns["time"] = pa.array(times).cast(MICROSECONDS)
        for name, kind in self.shape.read_columns.items():
            columns[name] = self._property(name, kind, structs, columns, fine)
        self._compute(columns, fine)
        return columns, places, fine

    @staticmethod
    def _symbols(values: list[Any], is_fine: Callable[[str], bool], fine: np.ndarray) -> pa.DictionaryArray:
        """Dictionary-encoded strings; rows whose value is not fine are cleared in `fine`."""
        column = pa.array(values, pa.string()).dictionary_encode()
        verdict = np.fromiter((is_fine(value) for value in column.dictionary.to_pylist()), bool, len(column.dictionary))
        if not verdict.all():
            codes = np.asarray(column.indices.fill_null(0))
            fine &= verdict[codes] | np.asarray(column.is_null())
        return column

    def _property(
        self, name: str, kind: pa.DataType, structs: list[Any], columns: dict[str, pa.Array], fine: np.ndarray
    ) -> pa.Array:
        """A property column; each different token is read once, by the slow path's function."""
        prefix, _, path = name.partition(":")
        tokens = _tokens(self._tree, path, structs).dictionary_encode()
        values, verdict = _read_tokens(prefix, tokens.dictionary, kind)
        codes = np.asarray(tokens.indices)
        is_read = self._reading(name, columns)
        fine &= verdict[codes] | ~is_read if len(verdict) else True
        mask = pa.array(codes, pa.int32(), mask=~is_read)
        column = values.take(mask)
        return column.dictionary_encode() if kind == SYMBOL else column

    def _known_type(self, types: pa.DictionaryArray) -> np.ndarray:
        known = [value in self.shape.readings for value in types.dictionary.to_pylist()]
        return np.asarray(known, bool)[np.asarray(types.indices)] if known else np.zeros(len(types), bool)

    def _out_of_time(self, times: np.ndarray, received: np.ndarray) -> np.ndarray:
        outside = times > received + FUTURE_TOLERANCE // _US
        if self.horizon is not None:
            outside |= times < received - self.horizon // _US
        return outside

    # --- slow path ------------------------------------------------------------------------------

    def _slow(self, records: Records, places: np.ndarray, received: np.ndarray) -> Scanned:
        rows: list[dict[str, Any]] = []
        accepted: list[int] = []
        rejected: list[Rejected] = []
        for place in places.tolist():
            try:
                rows.append(self.read(records[place], int(received[place])))
                accepted.append(place)
            except EventError as error:
                rejected.append(Rejected(place, error.reason, str(error)))
        columns = []
        for item in self._judged_schema:
            values = [row[item.name] for row in rows]
            is_symbol = item.type == SYMBOL
            column = pa.array(values, pa.string() if is_symbol else item.type)
            columns.append(column.dictionary_encode() if is_symbol else column)
        events = pa.RecordBatch.from_arrays(columns, schema=self._judged_schema)
        return Scanned(events, np.asarray(accepted, np.int64), rejected)

    def read(self, record: bytes, received: int) -> dict[str, Any]:
        """One record as a row of `shape.schema`, without payload, the slow way.

        Raises:
          EventError: with the reason code.
        """
        event = parse_event(record)
        time = parse_time(event.time)
        if self._out_of_time(np.asarray([time]), np.asarray([received]))[0]:
            raise self._time_error(time, received)
        if event.type not in self.shape.readings:
            raise self._type_error(event.type)
        row = self._properties(event)
        self._learn(event)
        return row | {
            "tenant_id": event.tenantid,
            "source": event.source,
            "id": event.id,
            "type": event.type,
            "subject": event.subject,
            "time": time,
            "received_time": received,
        }

    def _properties(self, event: Event) -> dict[str, Any]:
        """The property columns of an event; those that no meter reads which it feeds are None."""
        row: dict[str, Any] = dict.fromkeys(self.shape.columns)
        filtered: dict[str, str | None] = {}
        for column in self.shape.columns:
            prefix, _, path = column.partition(":")
            filters = self.shape.readers(column).get(event.type, frozenset())
            if not any(one.takes(filtered) for one in filters):
                continue
            try:
                if prefix == "x":
                    expression = parse_expression(path)
                    row[column] = computed_quantity(expression, {one: row[f"q:{one}"] for one in expression.paths})
                else:
                    row[column] = _PARSERS[prefix](lookup(event.data, tuple(path.split("."))))
            except EventError as error:
                where = path if prefix == "x" else f"data.{path}"
                raise EventError(error.reason, f"{where}: {error}") from None
            if prefix == "w":
                filtered[path] = row[column]
        return row

    def _learn(self, event: Event) -> None:
        """Let the fast path read string extensions it has seen, so that they do not make every record slow."""
        new = {name for name, value in (event.model_extra or {}).items() if isinstance(value, str)} - self._extensions
        if new and len(self._extensions) + len(new) <= 64:
            self._extensions |= new
            self.__dict__.pop("_decoder", None)

    def _time_error(self, time: int, received: int) -> EventError:
        moment, came = (np.datetime64(int(us), "us") for us in (time, received))
        if time > received:
            return EventError(Reason.IN_FUTURE, f"{moment}Z is more than an hour after it was received ({came}Z)")
        return EventError(Reason.TOO_OLD, f"{moment}Z is more than {self.horizon} before it was received ({came}Z)")

    @staticmethod
    def _type_error(name: str) -> EventError:
        return EventError(Reason.UNKNOWN_TYPE, f"no meter counts events of type {name!r}")


def _quantities(limbs: np.ndarray, valid: np.ndarray) -> pa.Array:
    """A column of quantities of their limbs, null where not valid."""
    return pa.Array.from_buffers(QUANTITY, len(limbs), [_validity(valid), pa.py_buffer(limbs)])


_ONE = Literal["1.0"]


# A number that Arrow reads as the slow path does, exactly.
_PLAIN_NUMBER = r"\A(?:0|[1-9][0-9]{0,19})(?:\.[0-9]{1,12})?\n\z"


def _read_tokens(prefix: str, tokens: pa.Array, kind: pa.DataType) -> tuple[pa.Array, np.ndarray]:
    """What different tokens say, null where a token is wrong, and which are right."""
    verdict = np.ones(len(tokens), bool)
    plain = pa.array(np.zeros(len(tokens), bool))
    if kind == QUANTITY:
        texts = tokens.cast(pa.string())
        plain = pc.match_substring_regex(texts, _PLAIN_NUMBER)
        numbers = pc.if_else(plain, pc.ascii_rtrim(texts, "\n"), None).cast(QUANTITY)
    odd = pc.invert(plain)
    values, verdict[np.asarray(odd)] = _read_each(prefix, tokens.filter(odd).to_pylist())
    read = pa.array(values, pa.string() if kind == SYMBOL else QUANTITY)
    return read if kind == SYMBOL else pc.replace_with_mask(numbers, odd, read), verdict


def _read_each(prefix: str, tokens: list[bytes]) -> tuple[list[Any], np.ndarray]:
    """What tokens say, None where one is wrong, and which are right."""
    values: list[Any] = []
    verdict = np.ones(len(tokens), bool)
    for place, token in enumerate(tokens):
        try:
            values.append(_read_token(prefix, token))
        except EventError:
            values.append(None)
            verdict[place] = False
    return values, verdict


@lru_cache(maxsize=65_536)
def _read_token(prefix: str, token: bytes) -> Any:
    """A property's JSON text, read as the slow path reads it."""
    return _PARSERS[prefix](parse_json(token) if token.strip() else None)


_PLAIN_BYTES = 4_000


def _plain(records: Sequence[bytes]) -> list[bool]:
    """Which records the fast decoder and the slow path surely read alike.

    Left to the slow path: long records, deep ones, those with a line feed (`_tokens` separates by it), and those that
    are no UTF-8, which the decoder does not look at in properties that it skips.
    """
    block = b"\n".join(records)
    codes = np.frombuffer(block, np.uint8)
    lengths = np.fromiter(map(len, records), np.int64, len(records))
    plain = lengths <= _PLAIN_BYTES
    # Both brackets, and no other character, are 0x7B with this bit set. Where MAX_NESTING lie between two of one
    # record, it may be deep.
    ends = np.cumsum(lengths + 1)
    owners = np.searchsorted(ends, np.flatnonzero((codes | 0x20) == 0x7B), side="right")
    plain[owners[MAX_NESTING:][owners[MAX_NESTING:] == owners[:-MAX_NESTING]]] = False
    if block.count(b"\n") >= len(records):
        plain &= np.fromiter((b"\n" not in record for record in records), bool, len(records))
    if not block.isascii():
        plain &= np.fromiter(map(_is_utf8, records), bool, len(records))
    return plain.tolist()


def _is_utf8(record: bytes) -> bool:
    try:
        record.decode()
    except UnicodeDecodeError:
        return False
    return True


def _allowed(values: Sequence[str]) -> np.ndarray | bool:
    """Which strings hold no character that CloudEvents forbids."""
    text = "".join(values)
    if (text.isascii() and text.isprintable()) or not FORBIDDEN_CHARACTERS.search(text):
        return True
    return np.fromiter((not FORBIDDEN_CHARACTERS.search(value) for value in values), bool, len(values))


def _validity(valid: np.ndarray) -> pa.Buffer | None:
    return None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))


def _in_order(found: list[Scanned]) -> tuple[pa.RecordBatch, np.ndarray]:
    """The events of all paths, and their places, in the order of the block."""
    if len(found) == 1:
        return found[0].events, found[0].places
    places = np.concatenate([one.places for one in found])
    order = np.argsort(places, kind="stable")
    table = pa.Table.from_batches([one.events for one in found]).unify_dictionaries().take(pa.array(order))
    return table.combine_chunks().to_batches()[0], places[order]


_TEMPLATE = {
    "specversion": "1.0",
    "id": "i",
    "source": "s",
    "type": "t",
    "subject": "s",
    "time": "2000-01-01T00:00:00Z",
    "data": {},
}


@lru_cache(maxsize=65_536)
def _attribute_is_fine(name: str, value: str) -> bool:
    """Whether the event model accepts a value of an attribute."""
    try:
        Event.model_validate(_TEMPLATE | {name: value})
    except ValidationError:
        return False
    return True


def _tokens(tree: dict[str, Any], path: str, structs: list[Any]) -> pa.Array:
    """The JSON text of a property of each record, empty where it is absent, with a newline after each."""
    nodes: list[Any] = list(map(attrgetter("data"), structs))
    *parents, leaf = path.split(".")
    for part in parents:
        get = attrgetter(f"p{sorted(tree).index(part)}")
        nodes = [None if node is None else get(node) for node in nodes]
        tree = tree[part]
    get = attrgetter(f"p{sorted(tree).index(leaf)}")
    texts = [b"" if node is None else get(node) for node in nodes] if parents else map(get, nodes)
    # Raw tokens join without a copy of each. None holds a newline: records with one are not read here.
    joined = b"\n".join((*texts, b""))
    offsets = np.zeros(len(nodes) + 1, np.int32)
    offsets[1:] = np.flatnonzero(np.frombuffer(joined, np.uint8) == ord(b"\n")) + 1
    return pa.Array.from_buffers(pa.binary(), len(nodes), [None, pa.py_buffer(offsets), pa.py_buffer(joined)])


_DIGITS = (0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18)


def _times(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds since 1970 of RFC 3339 timestamps, and which rows are surely right."""
    column = pa.array(texts, pa.large_string())
    rows = len(column)
    if not rows:
        return np.zeros(0, np.int64), np.zeros(0, bool)
    _, offset_buffer, data = column.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[: rows + 1]
    # Padded, so that reading a fixed width past the last text stays inside.
    codes = np.concatenate([np.frombuffer(data or b"", np.uint8), np.zeros(40, np.uint8)])
    start, length = offsets[:-1], np.diff(offsets)
    fixed = codes[start[:, None] + np.arange(19)]
    digits = fixed[:, _DIGITS].astype(np.int64) - 48
    valid = (length >= 20) & (length <= 35) & ((digits >= 0) & (digits <= 9)).all(axis=1)
    valid &= (fixed[:, [4, 7]] == 45).all(axis=1) & (fixed[:, [13, 16]] == 58).all(axis=1)
    valid &= (fixed[:, 10] == 84) | (fixed[:, 10] == 116)
    year = digits[:, 0] * 1000 + digits[:, 1] * 100 + digits[:, 2] * 10 + digits[:, 3]
    month, day, hour, minute, second = (digits[:, n] * 10 + digits[:, n + 1] for n in (4, 6, 8, 10, 12))
    valid &= (year >= 1971) & (year < 2199) & (month >= 1) & (month <= 12) & (day >= 1)
    valid &= (hour < 24) & (minute < 60) & (second < 60)
    months = np.where(valid, (year - 1970) * 12 + month - 1, 0).astype("M8[M]")
    first, following = (moment.astype("M8[D]").astype(np.int64) for moment in (months, months + 1))
    valid &= day <= following - first
    seconds = (first + day - 1) * 86_400 + hour * 3_600 + minute * 60 + second

    last = codes[np.maximum(start + length - 1, 0)]
    utc = (last == 90) | (last == 122)
    zone_length = np.where(utc, 1, 6)
    if not utc.all():
        zone = codes[np.maximum(start + length - 6, 0)[:, None] + np.arange(6)]
        figures = zone[:, [1, 2, 4, 5]].astype(np.int64) - 48
        shaped = ((zone[:, 0] == 43) | (zone[:, 0] == 45)) & (zone[:, 3] == 58) & (length >= 25)
        hours, minutes = figures[:, 0] * 10 + figures[:, 1], figures[:, 2] * 10 + figures[:, 3]
        shaped &= ((figures >= 0) & (figures <= 9)).all(axis=1) & (hours < 24) & (minutes < 60)
        valid &= utc | shaped
        seconds -= np.where(utc, 0, (hours * 3_600 + minutes * 60) * np.where(zone[:, 0] == 45, -1, 1))
    fraction_length = length - 19 - zone_length
    valid &= (fraction_length == 0) | ((fraction_length >= 2) & (codes[start + np.minimum(length, 19)] == 46))
    micros = np.zeros(rows, np.int64)
    for place in range(int(fraction_length.max(initial=0)) - 1):
        present = fraction_length > place + 1
        figure = np.where(present, codes[start + np.minimum(20 + place, length)].astype(np.int64) - 48, 0)
        valid &= (figure >= 0) & (figure <= 9)
        if place < 6:
            micros += figure * 10 ** (5 - place)
    return np.where(valid, seconds * 1_000_000 + micros, 0), valid
