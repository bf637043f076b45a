"""Fixtures for tests against the Pub/Sub emulator."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from meterline.runners.pubsub import client as pubsub
from meterline.runners.pubsub.emulator import HOST, emulator, find_jar, find_java


class Names(NamedTuple):
    topic: str
    subscription: str


@pytest.fixture(scope="session")
def emulator_host() -> Iterator[str]:
    """An emulator for the whole test process; without Java or its jar tests are skipped, but on CI they fail."""
    try:
        find_java(), find_jar()
    except pubsub.PubSubError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with emulator() as host:
        yield host


@pytest.fixture
def topic(emulator_host: str, monkeypatch: pytest.MonkeyPatch) -> Names:
    """A topic with a subscription, of this test's own."""
    monkeypatch.setenv(HOST, emulator_host)
    name = uuid.uuid4().hex
    names = Names(f"projects/test/topics/t{name}", f"projects/test/subscriptions/s{name}")
    pubsub.create_topic(names.topic)
    pubsub.create_subscription(names.subscription, names.topic)
    return names
