"""The door to Pub/Sub: clients, names, and errors in the user's words.

Clients go to the emulator that `PUBSUB_EMULATOR_HOST` names, else to Google Cloud with the default credentials.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import grpc
from google.api_core import exceptions as google
from google.api_core import retry as retrying
from google.auth.exceptions import GoogleAuthError
from google.cloud import pubsub_v1
from google.pubsub_v1.services.subscriber.transports.grpc import SubscriberGrpcTransport

ACK_DEADLINE_SECONDS = 60
_SECONDS = 10


class PubSubError(RuntimeError):
    """Pub/Sub cannot be used: the text says what came, what was expected and what to do."""


class UnknownName(PubSubError):
    """A topic or subscription that was given is not there, or cannot be."""


@contextmanager
def told(name: str) -> Iterator[None]:
    """What goes wrong with a topic or subscription, as `PubSubError`."""
    try:
        yield
    except google.NotFound:
        kind = "topic" if "/topics/" in name else "subscription"
        raise UnknownName(f"{where()} has no {kind} {name}; {_CREATE.format(kind=kind)}") from None
    except google.InvalidArgument as error:
        raise UnknownName(f"{name}: {error.message}") from None
    except (google.PermissionDenied, google.Unauthenticated) as error:
        raise PubSubError(f"{where()} refuses {name}: {error.message}; which account is meant, its roles say") from None
    except google.RetryError as error:
        raise PubSubError(f"no answer from {where()} about {name}: {error.cause}") from None
    except google.GoogleAPICallError as error:
        raise PubSubError(f"no answer from {where()} about {name}: {error.message}") from None
    except GoogleAuthError as error:
        raise PubSubError(
            f"no credentials for Google Cloud: {str(error).rstrip('.')}. Run `gcloud auth application-default login`, "
            "or name an emulator with PUBSUB_EMULATOR_HOST"
        ) from None


_CREATE = "create it (`gcloud pubsub {kind}s create`, or `meterline pubsub create`), or look at the project's name"


# What may be another way a moment later.
is_transient = retrying.if_exception_type(
    google.Aborted,
    google.Cancelled,
    google.InternalServerError,
    google.ResourceExhausted,
    google.ServiceUnavailable,
    google.Unknown,
)


def where() -> str:
    host = os.environ.get("PUBSUB_EMULATOR_HOST")
    return f"the Pub/Sub emulator at {host}" if host else "Google Cloud Pub/Sub"


def checked(name: str, kind: str) -> str:
    """A full name like projects/P/topics/T.

    Raises:
      UnknownName: it is none.
    """
    if not re.fullmatch(rf"projects/[^/\s]+/{kind}/[A-Za-z][A-Za-z0-9._~+%-]{{2,254}}", name):
        raise UnknownName(f"expected projects/PROJECT/{kind}/NAME (a name has 3 characters or more), got {name!r}")
    return name


def publisher(*, memory_bytes: int = 64 << 20) -> pubsub_v1.PublisherClient:
    """A client whose `publish` waits while more than `memory_bytes` are under way."""
    flow = pubsub_v1.types.PublishFlowControl(
        message_limit=100_000,
        byte_limit=memory_bytes,
        limit_exceeded_behavior=pubsub_v1.types.LimitExceededBehavior.BLOCK,
    )
    with told("a topic"):
        return pubsub_v1.PublisherClient(
            batch_settings=pubsub_v1.types.BatchSettings(max_messages=1_000, max_bytes=1 << 20, max_latency=0.01),
            publisher_options=pubsub_v1.types.PublisherOptions(flow_control=flow),
        )


def subscriber() -> pubsub_v1.SubscriberClient:
    """A client that takes answers of any size."""
    with told("a subscription"):
        if host := os.environ.get("PUBSUB_EMULATOR_HOST"):
            # The library lifts gRPC's bound of 4 MB on an answer for Google Cloud, and forgets it for the emulator.
            channel = grpc.insecure_channel(host, options=[("grpc.max_receive_message_length", -1)])
            return pubsub_v1.SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        return pubsub_v1.SubscriberClient()


def find_topic(topic: str) -> None:
    """Make sure that a topic is there; who may only publish cannot know, and finds out.

    Raises:
      PubSubError: it is not, or nothing answers.
    """
    with told(checked(topic, "topics")), publisher() as client:
        try:
            client.get_topic(topic=topic, timeout=_SECONDS, retry=None)
        except google.PermissionDenied:
            return


def find_subscription(subscription: str) -> None:
    """Make sure that a subscription is there; who may only consume cannot know, and finds out.

    Raises:
      PubSubError: it is not, or nothing answers.
    """
    with told(checked(subscription, "subscriptions")), subscriber() as client:
        try:
            client.get_subscription(subscription=subscription, timeout=_SECONDS, retry=None)
        except google.PermissionDenied:
            return


def create_topic(topic: str) -> bool:
    """Create a topic; whether it is new."""
    with told(checked(topic, "topics")), publisher() as client:
        try:
            client.create_topic(name=topic, timeout=_SECONDS, retry=None)
        except google.AlreadyExists:
            return False
        return True


def create_subscription(subscription: str, topic: str, *, temporary: bool = False) -> bool:
    """Create a subscription; whether it is new.

    Args:
      temporary: Whether it goes by itself a day after it was last used, and keeps messages for ten minutes only.

    Raises:
      UnknownName: it is there, and belongs to another topic.
    """
    request = {
        "name": checked(subscription, "subscriptions"),
        "topic": checked(topic, "topics"),
        "ack_deadline_seconds": ACK_DEADLINE_SECONDS,
    }
    if temporary:
        request["message_retention_duration"] = timedelta(minutes=10)
        request["expiration_policy"] = {"ttl": timedelta(days=1)}
    with told(topic), subscriber() as client:
        try:
            client.create_subscription(request=request, timeout=_SECONDS, retry=None)
        except google.AlreadyExists:
            there = client.get_subscription(subscription=subscription, timeout=_SECONDS, retry=None)
            if there.topic != topic:
                raise UnknownName(
                    f"{subscription} is a subscription on {there.topic}, not on {topic}: choose another name"
                ) from None
            return False
        return True


def delete_subscription(subscription: str) -> None:
    with told(subscription), subscriber() as client:
        client.delete_subscription(subscription=subscription, timeout=_SECONDS, retry=None)
