"""The voiding event: a CloudEvents record of a type of Meterline's own; it names an event that shall count no more."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from typing import Any, NamedTuple

from meterline.schemas.event import (
    DEFAULT_TENANT,
    EARLIEST_TIME,
    FORBIDDEN_CHARACTERS,
    MAX_ATTRIBUTE_CHARACTERS,
    EventError,
    Reason,
    parse_event,
    parse_time,
)

# Types that begin so are Meterline's own: no meter may count them.
RESERVED_TYPES = "meterline."
VOID_TYPE = "meterline.void.v1"
VOID_SOURCE = "/meterline/void"


class EventName(NamedTuple):
    """What an archived event is called; an id that was reused with another time names two. `time` in microseconds."""

    tenant_id: str
    time: int
    source: str
    id: str


class Void(NamedTuple):
    """What a voiding event says.

    It has the tenant, time and subject of the event that it voids, so that it touches the same day; `data` has that
    event's `id` and `source`, and the `reason`.
    """

    event: EventName
    subject: str
    reason: str

    @property
    def id(self) -> str:
        """The voiding event's id. It says what is voided: voiding twice is a duplicate, and never a conflict.

        Source: docs/rules.md, "Voiding".
        """
        tenant, time, source, id = self.event
        name = "\x00".join((tenant, source, id, str(time)))
        return f"void_{hashlib.sha256(name.encode()).hexdigest()[:24]}"

    @classmethod
    def parse(cls, record: bytes) -> Void:
        """Read a voiding event.

        Raises:
          EventError: `missing_field` where `data` does not say what is voided, and why; `bad_attribute` where type,
            source and id do not fit together.
        """
        event = parse_event(record)
        if event.type != VOID_TYPE:
            raise EventError(Reason.BAD_ATTRIBUTE, f"source: {VOID_SOURCE} is kept for events of type {VOID_TYPE}")
        id, source, reason = (_text(event.data, name) for name in ("id", "source", "reason"))
        void = cls(EventName(event.tenantid, parse_time(event.time), source, id), event.subject, reason)
        if (event.source, event.id) != (VOID_SOURCE, void.id):
            raise EventError(
                Reason.BAD_ATTRIBUTE,
                f"a voiding event of that event has source {VOID_SOURCE!r} and id {void.id!r}, "
                f"got {event.source!r} and {event.id!r}",
            )
        return void

    def record(self) -> bytes:
        """The voiding event as JSON."""
        moment = EARLIEST_TIME + timedelta(microseconds=self.event.time)
        event = {
            "specversion": "1.0",
            "id": self.id,
            "source": VOID_SOURCE,
            "type": VOID_TYPE,
            "subject": self.subject,
            "time": f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z",
            "data": {"id": self.event.id, "source": self.event.source, "reason": self.reason},
        }
        if self.event.tenant_id != DEFAULT_TENANT:
            event["tenantid"] = self.event.tenant_id
        return json.dumps(event, ensure_ascii=False).encode()


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ATTRIBUTE_CHARACTERS:
        raise EventError(
            Reason.MISSING_FIELD,
            f"data.{name}: a voiding event needs a string of 1 to {MAX_ATTRIBUTE_CHARACTERS} characters",
        )
    if found := FORBIDDEN_CHARACTERS.search(value):
        raise EventError(Reason.MISSING_FIELD, f"data.{name}: holds the character U+{ord(found[0]):04X}")
    return value
