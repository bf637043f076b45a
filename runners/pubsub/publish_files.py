"""Publish the records of files, as they are, to a topic."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from meterline.runners.jobs import InputError, find_files
from meterline.runners.pubsub import client as pubsub
from meterline.runners.pubsub.publish import Producer, Published
from meterline.schemas.event import EventError
from meterline.transforms.read import Part, Unreadable, read_part

_AHEAD_SECONDS = 0.05


class FilesPublished(NamedTuple):
    """`problems` are files that were damaged, and records that are too large for an event; all else was published."""

    published: Published
    files: int
    problems: list[str]
    seconds: float


def publish_files(
    patterns: Sequence[str],
    topic: str,
    *,
    rate: float | None = None,
    events_per_message: int = 500,
    compress: Literal["gzip", "zstd"] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> FilesPublished:
    """Publish files in any format that `meterline rate` reads; whether a record is an event, the job decides.

    Args:
      rate: Events a second; none for as fast as Pub/Sub takes them.
      on_progress: Told of the number of records, and their bytes, that were handed over so far.

    Raises:
      InputError: a pattern names no file.
      PubSubError: the topic is not there, or did not take all events (`NotPublished`).
    """
    try:
        paths, _ = find_files(patterns)
    except InputError as error:
        raise InputError(str(error).removeprefix("--input ")) from None
    pubsub.find_topic(topic)
    started = time.monotonic()
    problems = []
    sent = size = 0
    with Producer(topic, events_per_message=events_per_message, compress=compress) as producer:
        for path in paths:
            try:
                for records, positions in read_part(Part(path, 0, -1)):
                    for record, position in zip(records, positions):
                        if rate and (ahead := sent / rate - (time.monotonic() - started)) > _AHEAD_SECONDS:
                            time.sleep(ahead)
                        try:
                            producer.send(record)
                        except EventError as error:
                            problems.append(f"{path}:{position}: {error}")
                            continue
                        sent += 1
                        size += len(record)
                        if on_progress and sent % 100 == 0:
                            on_progress(sent, size)
            except Unreadable as damage:
                problems.append(f"{path}:{damage.position}: {damage}")
        published = producer.flush()
    return FilesPublished(published, len(paths), problems, time.monotonic() - started)
