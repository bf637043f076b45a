"""Watch the events that are published to a topic, through a subscription of one's own: no other consumer misses one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import NamedTuple

from google.api_core import exceptions as google

from meterline.runners.pubsub import client as pubsub
from meterline.schemas.event import Event, EventError, parse_event
from meterline.transforms.messages import records_of

_WAIT_SECONDS = 2.0


class Seen(NamedTuple):
    """A record that came by; `event` is none where it is no event, and `problem` says why."""

    published: datetime
    record: bytes
    event: Event | None
    problem: str


@contextmanager
def own_subscription(topic: str) -> Iterator[str]:
    """A subscription on a topic that is deleted at the end (and goes by itself after a day, should that fail)."""
    project = pubsub.checked(topic, "topics").split("/")[1]
    subscription = f"projects/{project}/subscriptions/meterline-tail-{uuid.uuid4().hex[:12]}"
    pubsub.create_subscription(subscription, topic, temporary=True)
    try:
        yield subscription
    finally:
        pubsub.delete_subscription(subscription)


def events_of(subscription: str) -> Iterator[Seen | None]:
    """What comes through a subscription, acknowledged as it is shown; None now and then while nothing comes."""
    with pubsub.told(subscription), pubsub.subscriber() as client:
        while True:
            try:
                request = {"subscription": subscription, "max_messages": 100}
                answer = client.pull(request, timeout=_WAIT_SECONDS, retry=None).received_messages
            except google.DeadlineExceeded:
                answer = []
            if not answer:
                yield None
                continue
            ids = [one.ack_id for one in answer]
            client.acknowledge({"subscription": subscription, "ack_ids": ids}, timeout=10, retry=None)
            for one in answer:
                yield from _seen(one.message.data, dict(one.message.attributes), one.message.publish_time)


def _seen(data: bytes, attributes: dict[str, str], published: datetime) -> Iterator[Seen]:
    try:
        records = records_of(data, attributes)
    except EventError as error:
        yield Seen(published, data, None, f"{error.reason}: {error}")
        return
    for record in records:
        try:
            yield Seen(published, record, parse_event(record), "")
        except EventError as error:
            yield Seen(published, record, None, f"{error.reason}: {error}")
