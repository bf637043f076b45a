"""What is known of many names in one cell of Beam's state, as a log: of each change one element.

An engine keeps the state of each key apart, and a worker asks and tells it key by key: for a few bytes that costs more
than all that is done with them (docs/decisions/0018-rating-keys-share-their-state.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import msgspec

# A log is written anew where more than half of it, and so many bytes, tell what is no longer so.
_SLACK_BYTES = 16_384
# Tuples of bytes are nothing that Python's garbage collector looks at again and again, as lists are.
_DECODER = msgspec.msgpack.Decoder(tuple[int, list[tuple[bytes, bool, tuple[bytes, ...]]]])


class _Read(NamedTuple):
    """Parts by name; bytes of the elements, and what of them still tells how things are."""

    parts: dict[bytes, Sequence[bytes]]
    next_number: int
    size: int
    live: int


class Log:
    """Parts (bytes) by name, in a bag.

    An element is MessagePack: its number, for a bag gives them in any order; and of each name that changed whether
    what there was of it is gone, and what has been added.
    """

    def __init__(self, bag: Any) -> None:
        self._bag = bag
        self._changed: dict[bytes, tuple[bool, list[bytes]]] = {}

    @cached_property
    def _read(self) -> _Read:
        elements = list(self._bag.read())
        parts: dict[bytes, Sequence[bytes]] = {}
        next_number = 0
        for number, told in sorted(map(_DECODER.decode, elements)):
            next_number = number + 1
            for name, is_anew, added in told:
                parts[name] = added if is_anew else (*parts.get(name, ()), *added)
        return _Read(parts, next_number, sum(map(len, elements)), sum(_size(*one) for one in parts.items()))

    @property
    def next_number(self) -> int:
        return self._read.next_number

    def of(self, name: bytes) -> Sequence[bytes]:
        """The parts of a name."""
        is_anew, added = self._changed.get(name, (False, []))
        return added if is_anew else [*self._read.parts.get(name, ()), *added]

    def add(self, name: bytes, part: bytes) -> None:
        is_anew, added = self._changed.get(name, (False, []))
        self._changed[name] = is_anew, [*added, part]

    def replace(self, name: bytes, parts: Sequence[bytes]) -> None:
        self._changed[name] = True, list(parts)

    def write(self, number: int) -> None:
        """Tell what changed, in an element with this number, which is larger than those before; or tell all anew, where
        most of what the log tells is no longer so.

        What nobody has read is not read for it.
        """
        if not self._changed:
            return
        told = _told(number, self._changed)
        if "_read" in vars(self):
            read = self._read.parts
            more = (_size(name, self.of(name)) - _size(name, read.get(name, ())) for name in self._changed)
            if self._read.size + len(told) > 2 * (self._read.live + sum(more)) + _SLACK_BYTES:
                live = {name: (True, parts) for name in {*read, *self._changed} if (parts := [*self.of(name)])}
                self._bag.clear()
                told = _told(number, live)
        self._bag.add(told)


def _size(name: bytes, parts: Sequence[bytes]) -> int:
    """About the bytes that tell of a name in an element."""
    return len(name) + sum(map(len, parts)) + 8 if parts else 0


def _told(number: int, changes: dict[bytes, tuple[bool, list[bytes]]]) -> bytes:
    return msgspec.msgpack.encode((number, [(name, *change) for name, change in sorted(changes.items())]))


class Value:
    """One name of a log, as a cell that holds a value."""

    def __init__(self, log: Log, name: bytes) -> None:
        self._log, self._name = log, name

    def read(self) -> bytes | None:
        return next(iter(self._log.of(self._name)), None)

    def write(self, value: bytes) -> None:
        self._log.replace(self._name, [value])


class Bag:
    """One name of a log, as a bag."""

    def __init__(self, log: Log, name: bytes) -> None:
        self._log, self._name = log, name

    def read(self) -> Sequence[bytes]:
        return self._log.of(self._name)

    def add(self, part: bytes) -> None:
        self._log.add(self._name, part)

    def clear(self) -> None:
        self._log.replace(self._name, [])
