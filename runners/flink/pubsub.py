"""Reads Pub/Sub on Flink by Beam's Java source, the way that was seen to lose nothing under kills.

A splittable DoFn, Beam's default, acknowledges when *any* checkpoint completes, also for messages read after its
barrier: Flink's portable runner finalizes every outstanding bundle then. The native read, which the expansion service
of `meterline flink up` chooses (`use_deprecated_read`), keeps what it read in the checkpoint and acknowledges that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.io.external.gcp import pubsub as java
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.typehints.decorators import no_annotations

from meterline.runners.flink.home import FlinkError

_SUBSCRIPTION = re.compile(
    r"projects/([a-z][-a-z0-9:.]{4,61}[a-z0-9])/subscriptions/([a-zA-Z][-._~%+a-zA-Z0-9]{2,254})"
)


@dataclass
class ReadPubSub(beam.PTransform):
    """Messages of a subscription, with their attributes; redelivered ones come again.

    Elements are `PubsubMessage`s as Beam's other runners yield them: `data`, `attributes`, `message_id`, `ordering_key`
    and `publish_time`. The element's timestamp is the publish time to the millisecond, or what `timestamp_attribute`
    says; `publish_time` is then None, as Java does not pass it on.

    Args:
      subscription: projects/PROJECT/subscriptions/NAME.
      expansion_service: HOST:PORT of one that was started with `use_deprecated_read`.
      id_label: An attribute; of messages with equal values that come within ten minutes, one passes. `message_id` is
        then its value.
      timestamp_attribute: An attribute with milliseconds since 1970 or an RFC 3339 instant.

    Raises:
      FlinkError: the subscription's name is none that Beam's Java source takes.
    """

    subscription: str
    expansion_service: str
    id_label: str | None = None
    timestamp_attribute: str | None = None

    def __post_init__(self) -> None:
        if not _SUBSCRIPTION.fullmatch(self.subscription) or "goog" in self.subscription.rpartition("/")[2][:4]:
            raise FlinkError(
                "a subscription is projects/PROJECT/subscriptions/NAME, the project with six characters or more, the "
                f"name with three or more: got {self.subscription!r}",
                code=2,
            )

    @no_annotations
    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[PubsubMessage]:
        read = java.ReadFromPubSub(
            subscription=self.subscription,
            with_attributes=True,
            id_label=self.id_label,
            timestamp_attribute=self.timestamp_attribute,
            expansion_service=self.expansion_service,
        )
        messages = pipeline | "Read" >> read
        if self.timestamp_attribute is None:
            messages |= "PublishTime" >> beam.ParDo(_WithPublishTime())
        return messages


class _WithPublishTime(beam.DoFn):
    def process(self, message: PubsubMessage, time: Any = beam.DoFn.TimestampParam) -> Iterator[PubsubMessage]:
        message.publish_time = time.to_utc_datetime(has_tz=True)
        yield message
