"""A stream as small as one can be that keeps state: each id goes once to a file of its worker."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.coders import BooleanCoder
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

from meterline.runners.flink.pubsub import ReadPubSub


class Refuse(beam.DoFn):
    def process(self, message: PubsubMessage) -> Iterator[tuple[str, dict[str, Any]]]:
        id = message.data.decode()
        if id.startswith("bad"):
            raise ValueError(f"cannot count {id}")
        assert message.publish_time is not None
        yield (
            id,
            {
                "id": id,
                "attributes": message.attributes,
                "message_id": message.message_id,
                "published": message.publish_time.timestamp(),
            },
        )


class Once(beam.DoFn):
    SEEN = ReadModifyWriteStateSpec("seen", BooleanCoder())

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def process(self, keyed: tuple[str, dict[str, Any]], seen: Any = beam.DoFn.StateParam(SEEN)) -> None:
        if not seen.read():
            seen.write(True)
            with (Path(self._folder) / f"{os.getpid()}.ndjson").open("a") as file:
                file.write(json.dumps(keyed[1]) + "\n")


def stream(subscription: str, expansion_service: str, folder: Path, **more: Any) -> Callable[[beam.Pipeline], None]:
    def build(pipeline: beam.Pipeline) -> None:
        (
            pipeline
            | ReadPubSub(subscription, expansion_service, **more)
            | "Refuse" >> beam.ParDo(Refuse()).with_output_types(tuple[str, dict[str, Any]])
            | "Once" >> beam.ParDo(Once(str(folder)))
        )

    return build


def stored(folder: Path) -> list[dict[str, Any]]:
    """What was written so far; of a line that a kill cut off nothing."""
    found = []
    for file in folder.glob("*.ndjson"):
        for line in file.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found
