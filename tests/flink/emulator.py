"""Google's Pub/Sub emulator, on a free port of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import grpc
from google.cloud import pubsub_v1
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

PROJECT = "meterline-test"
_HOME = Path(os.environ.get("PUBSUB_EMULATOR_HOME", "/usr/lib/google-cloud-sdk/platform/pubsub-emulator"))


class Emulator:
    def __init__(self, folder: Path) -> None:
        jars = sorted(_HOME.glob("lib/cloud-pubsub-emulator-*-all.jar"))
        assert jars, f"no Pub/Sub emulator in {_HOME}: set PUBSUB_EMULATOR_HOME"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self._log = (folder / "emulator.log").open("wb")
        host, port = self.address.split(":")
        self._process = subprocess.Popen(
            ["java", "-Xmx512m", "-jar", str(jars[-1]), f"--host={host}", f"--port={port}"],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> Emulator:
        channel = grpc.insecure_channel(self.address)
        grpc.channel_ready_future(channel).result(timeout=60)
        self._publisher = pubsub_v1.PublisherClient(transport=PublisherGrpcTransport(channel=channel))
        self._subscriber = pubsub_v1.SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def waiting(self, topic: Topic, seconds: float = 15) -> list[bytes]:
        """What a subscription still has to deliver; for so long a reader that went may hold a message back."""
        found, deadline = list[bytes](), time.monotonic() + seconds
        while time.monotonic() < deadline and not found:
            asked = {"subscription": topic.subscription, "max_messages": 10, "return_immediately": True}
            answer = self._subscriber.pull(request=asked, timeout=20)
            found += [one.message.data for one in answer.received_messages]
            time.sleep(0.5)
        return found

    def topic(self) -> Topic:
        name = f"topic-{uuid.uuid4().hex[:8]}"
        path = f"projects/{PROJECT}/topics/{name}"
        subscription = f"projects/{PROJECT}/subscriptions/{name}"
        self._publisher.create_topic(name=path)
        self._subscriber.create_subscription(name=subscription, topic=path, ack_deadline_seconds=10)
        return Topic(self._publisher, path, subscription)


class Topic:
    """A topic with a subscription."""

    def __init__(self, publisher: Any, path: str, subscription: str) -> None:
        self._publisher, self.path, self.subscription = publisher, path, subscription

    def publish(self, ids: list[str], seconds: float = 0, **attributes: str) -> list[str]:
        """Publish a message for each id, spread over some time; returns the message ids."""
        began, futures = time.monotonic(), []
        for place, id in enumerate(ids):
            futures.append(self._publisher.publish(self.path, id.encode(), id=id, **attributes))
            time.sleep(max(0.0, began + seconds * place / len(ids) - time.monotonic()))
        return [future.result(timeout=60) for future in futures]
