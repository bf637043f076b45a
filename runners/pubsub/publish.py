"""Publish usage events to Pub/Sub, without losing one and without minting a second name for one.

    from meterline.runners.pubsub.publish import Producer, event_id, usage_event

    with Producer("projects/my-project/topics/usage") as producer:
        for row in rows:
            producer.send(
                usage_event(
                    id=event_id(row, "request_id", "attempt"),
                    source="/gateways/eu-1",
                    type="com.example.call",
                    subject=row["customer"],
                    time=row["finished_at"],
                    data={"gigabytes": row["gigabytes"], "region": row["region"]},
                )
            )

`send` waits rather than drops when Pub/Sub is slower than the caller, and what is held in memory is bounded. When the
block ends everything is published, or `NotPublished` says what is not. Sending an event again is harmless as long as
it has the same source and id: it counts once.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, Literal, NamedTuple

import zstandard
from google.api_core import exceptions as google
from google.api_core import retry as retrying

from meterline.runners.pubsub import client as pubsub
from meterline.schemas.event import DEFAULT_TENANT, MAX_RECORD_BYTES, EventError, Reason, parse_event

MAX_MESSAGE_BYTES = 9_000_000  # Pub/Sub takes 10 MB, with attributes and what its protocol adds.
_PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstandard.compress}


def _is_transient(error: Exception) -> bool:
    return pubsub.is_transient(error) or isinstance(error, google.DeadlineExceeded)


class Published(NamedTuple):
    """What Pub/Sub has confirmed; `bytes` as sent, so after compression."""

    events: int = 0
    messages: int = 0
    bytes: int = 0


class NotPublished(pubsub.PubSubError):
    """Events that Pub/Sub did not take: `events` can be sent again, unchanged."""

    def __init__(self, topic: str, events: list[bytes], cause: BaseException) -> None:
        super().__init__(f"{len(events)} events were not published to {topic}: {cause}")
        self.events = events
        self.cause = cause


def event_id(record: Mapping[str, Any], *fields: str) -> str:
    """An id derived from the caller's own record: the same whenever the same record is sent again.

    Args:
      record: Holds at least the fields.
      fields: Those that name the record among all of its source: a request's id, or an invoice's number and line. The
        names count, their order does not. Values are strings, integers, booleans, decimals, instants or None; the
        integer 1 and the string "1" differ.

    Returns:
      32 hexadecimal digits: 128 bits of SHA-256.

    Raises:
      EventError: `missing_field`: a field is not there; `bad_attribute`: none was named, or a value has another type.
    """
    if not fields:
        raise EventError(Reason.BAD_ATTRIBUTE, "id: name the fields that tell your records apart")
    named = []
    for name in sorted(fields):
        if name not in record:
            raise EventError(Reason.MISSING_FIELD, f"id: the record has no field {name!r}")
        value = record[name]
        if isinstance(value, Decimal):
            value = ["decimal", f"{value:f}"]
        elif isinstance(value, datetime):
            value = ["instant", _instant(value)]
        elif value is not None and not isinstance(value, (str, int)):
            raise EventError(
                Reason.BAD_ATTRIBUTE,
                f"id: field {name!r} is a {type(value).__name__}; expected a string, integer, decimal or instant",
            )
        named.append([name, value])
    return hashlib.sha256(json.dumps(named, separators=(",", ":")).encode()).hexdigest()[:32]


def usage_event(
    *,
    id: str,
    source: str,
    type: str,
    subject: str,
    time: datetime | str,
    data: Mapping[str, Any],
    tenant: str = DEFAULT_TENANT,
    **extensions: str | int | bool,
) -> bytes:
    """A usage event as one line of JSON, checked as the job will check it.

    Args:
      id: With source, the identity of the event. Derive it from your own record (`event_id`), never from a clock or
        chance: then a retry is a duplicate, and counts once.
      source: URI-reference of who counted.
      type: What happened; meters count events by type.
      subject: Who or what used it: an account's id or one of its subjects.
      time: When it happened: an instant with a time zone, or RFC 3339.
      data: Numbers and dimensions. Decimals become strings, exactly; floats are refused.
      tenant: Whose catalog applies.
      extensions: Further CloudEvents attributes.

    Raises:
      EventError: what the job would reject it for, as far as that can be known without a catalog.
    """
    event = {
        "specversion": "1.0",
        "id": id,
        "source": source,
        "type": type,
        "subject": subject,
        "time": _instant(time) if isinstance(time, datetime) else time,
        **({"tenantid": tenant} if tenant != DEFAULT_TENANT else {}),
        **extensions,
        "data": _exact(data, "data"),
    }
    record = json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    parse_event(record)
    return record


def _instant(moment: datetime) -> str:
    if moment.tzinfo is None:
        raise EventError(Reason.BAD_TIME, f"{moment} has no time zone; an event happened at an instant")
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _exact(value: Any, path: str) -> Any:
    """A value as JSON can say it exactly."""
    if isinstance(value, Mapping):
        return {name: _exact(inner, f"{path}.{name}") for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_exact(inner, path) for inner in value]
    if isinstance(value, Decimal):
        return f"{value:f}"
    if value is None or isinstance(value, (str, int)):
        return value
    raise EventError(
        Reason.BAD_QUANTITY,
        f"{path}: got {value!r}, a {type(value).__name__}; expected a Decimal, an integer or a string, which are exact",
    )


class Producer:
    """Sends events to a topic, many in a message. One producer serves all threads of a process.

    Args:
      topic: `projects/PROJECT/topics/TOPIC`.
      events_per_message: At most so many go into one message, as lines of JSON; 1 sends each in a message of its
        own, in CloudEvents' structured mode.
      message_bytes: At most so much text goes into one message (one event may be larger).
      linger_seconds: A message is sent at the latest so long after its first event, also when it is not full.
      memory_bytes: Above so much under way, `send` waits.
      retry_seconds: So long is tried to publish a message before it counts as not published.
      compress: How messages are packed.
    """

    def __init__(
        self,
        topic: str,
        *,
        events_per_message: int = 500,
        message_bytes: int = 1 << 20,
        linger_seconds: float = 0.2,
        memory_bytes: int = 64 << 20,
        retry_seconds: float = 600,
        compress: Literal["gzip", "zstd"] | None = None,
    ) -> None:
        if not (events_per_message >= 1 and MAX_RECORD_BYTES <= message_bytes <= MAX_MESSAGE_BYTES <= memory_bytes):
            raise ValueError(
                f"expected events_per_message ≥ 1 and {MAX_RECORD_BYTES:,} ≤ message_bytes ≤ {MAX_MESSAGE_BYTES:,} ≤ "
                f"memory_bytes, got {events_per_message:,}, {message_bytes:,} and {memory_bytes:,}"
            )
        if compress not in (None, *_PACK):
            raise ValueError(f"expected compress to be gzip, zstd or None, got {compress!r}")
        self.topic = pubsub.checked(topic, "topics")
        self._client = pubsub.publisher(memory_bytes=memory_bytes)
        self._retry = retrying.Retry(predicate=_is_transient, initial=0.1, maximum=10.0, timeout=retry_seconds)
        self._most_events, self._most_bytes, self._memory = events_per_message, message_bytes, memory_bytes
        self._linger, self._compress = linger_seconds, compress
        self._filling = threading.RLock()  # of the next message
        self._lines: list[bytes] = []
        self._bytes = 0
        self._timer: threading.Timer | None = None
        self._settled = threading.Condition()  # of what is under way
        self._under_way = 0
        self._published = Published()
        self._failed: list[tuple[list[bytes], BaseException]] = []
        self._failed_bytes = 0

    def send(self, event: bytes) -> None:
        """Hand over an event; waits while too much is under way.

        Args:
          event: JSON text, as `usage_event` gives it.

        Raises:
          EventError: `too_large`: it has more than 1,048,576 bytes.
          NotPublished: so much could not be published that it cannot be held any longer.
        """
        if len(event) > MAX_RECORD_BYTES:
            raise EventError(Reason.TOO_LARGE, f"the event has {len(event)} bytes, at most {MAX_RECORD_BYTES} are read")
        if self._failed_bytes > self._memory:
            self._raise_failed()
        if b"\n" in event:  # Between JSON's tokens a line feed is a blank like others; in a string there can be none.
            event = event.replace(b"\n", b" ")
        with self._filling:
            if self._bytes + len(event) > self._most_bytes:
                self._dispatch()
            self._lines.append(event)
            self._bytes += len(event) + 1
            if len(self._lines) >= self._most_events:
                self._dispatch()
            elif self._timer is None:
                self._timer = threading.Timer(self._linger, self._dispatch)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> Published:
        """Wait until everything that was sent is published.

        Returns:
          All that was published so far.

        Raises:
          NotPublished: it was not; what could not be published is forgotten here, and the caller's again.
        """
        self._dispatch()
        with self._settled:
            self._settled.wait_for(lambda: not self._under_way)
        self._raise_failed()
        return self._published

    def close(self) -> Published:
        """Flush, and end."""
        try:
            return self.flush()
        finally:
            self._client.stop()
            self._client.transport.close()

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """What was sent is published also where the block was left by an error, which stays the error."""
        try:
            self.close()
        except NotPublished as unpublished:
            if error is None:
                raise
            error.add_note(str(unpublished))

    def _dispatch(self) -> None:
        """Send the message that is being filled. Pub/Sub's client waits here while too much is under way."""
        with self._filling:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if not self._lines:
                return
            lines, self._lines, self._bytes = self._lines, [], 0
            data = b"\n".join(lines)
            is_one = self._most_events == 1
            attributes = {"content-type": "application/cloudevents+json" if is_one else "application/x-ndjson"}
            if self._compress:
                data = _PACK[self._compress](data)
                attributes["content-encoding"] = self._compress
            with self._settled:
                self._under_way += 1
            try:
                sent = self._client.publish(self.topic, data, retry=self._retry, timeout=60, **attributes)
            except BaseException as error:
                self._settle(lines, len(data), error)
                raise
            sent.add_done_callback(lambda future: self._settle(lines, len(data), future.exception()))

    def _settle(self, lines: list[bytes], size: int, error: BaseException | None) -> None:
        with self._settled:
            if error is None:
                events, messages, bytes_ = self._published
                self._published = Published(events + len(lines), messages + 1, bytes_ + size)
            else:
                self._failed.append((lines, error))
                self._failed_bytes += sum(map(len, lines))
            self._under_way -= 1
            self._settled.notify_all()

    def _raise_failed(self) -> None:
        with self._settled:
            failed, self._failed, self._failed_bytes = self._failed, [], 0
        if not failed:
            return
        cause = failed[0][1]
        try:
            with pubsub.told(self.topic):
                raise cause
        except BaseException as error:  # noqa: BLE001
            cause = error
        raise NotPublished(self.topic, [line for lines, _ in failed for line in lines], cause) from None
