"""Rate a Pub/Sub subscription on this machine, with nothing but Python: batch by batch, as files are rated.

Messages are pulled until a batch is full, rated by the batch pipeline, and acknowledged when everything is stored.
The archive of the periods that a batch touches joins it (docs/exactly_once.md), so that the line items are those of one
run over all; what is delivered again, after a crash between storing and acknowledging or just so, is a duplicate.
"""

from __future__ import annotations

import gc
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.typehints.decorators import no_annotations
from google.api_core import exceptions as google
from google.api_core import retry as retrying

from meterline.pipelines import rate_usage
from meterline.runners import jobs
from meterline.runners.pubsub import client as pubsub
from meterline.schemas.catalog import Catalog
from meterline.schemas.event import EARLIEST_TIME, microseconds
from meterline.transforms import catalogs, clickhouse
from meterline.transforms.lease import held
from meterline.transforms.messages import BlocksOfMessages, Message
from meterline.transforms.read import Read

HORIZON = timedelta(days=35)
_AT_ONCE = 1_000  # Messages of a pull, and ids of an acknowledgement, that Pub/Sub takes.
_PATIENCE_SECONDS = 600
KEEP_EVERY_SECONDS = pubsub.ACK_DEADLINE_SECONDS / 3


@dataclass(frozen=True)
class BatchSize:
    """A batch is rated when it has so many messages, so many bytes, or `seconds` after its first message came."""

    messages: int = 20_000
    bytes: int = 64 << 20
    seconds: float = 1.0


def rate_subscription(
    subscription: str,
    catalog: Catalog,
    url: str,
    *,
    horizon: timedelta = HORIZON,
    size: BatchSize = BatchSize(),
    max_batches: int | None = None,
    until_empty: bool = False,
    wait_seconds: float = 5.0,
    stop: threading.Event | None = None,
    on_batch: Callable[[jobs.RateReport], None] | None = None,
) -> jobs.RateReport:
    """Rate what comes through a subscription until told to stop. An event is received when its message was published.

    Args:
      subscription: `projects/PROJECT/subscriptions/NAME`.
      horizon: Oldest accepted age of an event when received.
      max_batches: End after so many.
      until_empty: End when nothing has come for `wait_seconds`.
      stop: Set, it lets the batch under way be finished, and then ends.
      on_batch: Told of each batch when it is stored and acknowledged.

    Returns:
      What became of all records; one delivered twice counts twice.

    Raises:
      PubSubError: the subscription cannot be used, or Pub/Sub did not answer for ten minutes.
      DatabaseError: ClickHouse cannot be used, or another job holds it.
    """
    stop = stop or threading.Event()
    pubsub.find_subscription(subscription)
    clickhouse.ready(url)
    started = time.monotonic()
    total = replace(jobs.report_of("", {}, (subscription,), datetime.now(UTC), 0.0), runs=0)
    batches = 0
    with held(url, "rate_usage"), pubsub.told(subscription), pubsub.subscriber() as client:
        since = catalogs.publish(url, catalog, delay_seconds=0)
        published = catalogs.PublishedCatalogs(url, catalog.digest, since)
        while not stop.is_set() and batches != max_batches:
            with tempfile.TemporaryDirectory(prefix="meterline-") as folder:
                taken = _Taken(client, subscription, Path(folder), stop)
                with taken:
                    taken.fill(size, wait_seconds)
                    if not taken.spools:
                        if until_empty:
                            break
                        continue
                    report = _rate(taken, published, url, horizon)
                    taken.acknowledge()
            batches += 1
            total = _sum(total, report, time.monotonic() - started)
            if on_batch:
                on_batch(report)
    return total


def _rate(taken: _Taken, published: catalogs.PublishedCatalogs, url: str, horizon: timedelta) -> jobs.RateReport:
    now = EARLIEST_TIME + timedelta(microseconds=taken.latest)
    source = _ReadSpools([str(path) for path in taken.spools], taken.subscription)
    options = rate_usage.Options(
        (), published, url, microseconds(now), horizon, has_archive=jobs.has_archive(url), source=source
    )
    report = jobs.rate_batch(options, published.as_of(taken.latest), (taken.subscription,), now)
    # The runner froze what it found, which is never looked through again; a process that goes on for ever must do so.
    gc.unfreeze()
    gc.collect()
    return report


def _sum(total: jobs.RateReport, more: jobs.RateReport, seconds: float) -> jobs.RateReport:
    names = ("runs", "records", "accepted", "duplicates", "rejected_keys", "line_items")
    return replace(
        total,
        run_id=more.run_id,
        received_time=more.received_time,
        rejected=dict(Counter(total.rejected) + Counter(more.rejected)),
        seconds=seconds,
        **{name: getattr(total, name) + getattr(more, name) for name in names},
    )


# --- from the spool into the pipeline -----------------------------------------------------------


@dataclass
class _ReadSpools(beam.PTransform):
    """The messages in files that `_Taken` wrote."""

    paths: list[str]
    subscription: str

    @no_annotations
    def expand(self, begin: beam.pvalue.PBegin) -> Read:
        spools = begin | "Spools" >> beam.Create(self.paths, reshuffle=False)
        messages = spools | "Messages" >> beam.FlatMap(_messages).with_output_types(Any)
        return messages | "Blocks" >> BlocksOfMessages(self.subscription)


def _messages(path: str) -> list[Message]:
    return msgspec.msgpack.decode(Path(path).read_bytes(), type=list[Message])


# --- from Pub/Sub into the spool ----------------------------------------------------------------


@dataclass
class _Taken:
    """Messages of one batch: spooled into files, and kept from being delivered again until the batch is over."""

    client: Any
    subscription: str
    folder: Path
    stop: threading.Event
    spools: list[Path] = field(default_factory=list)
    latest: int = 0
    _ids: list[str] = field(default_factory=list)

    def __enter__(self) -> _Taken:
        self._over = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._keeper.join()
        if error is not None:
            self._let_go()

    def fill(self, size: BatchSize, wait_seconds: float) -> None:
        """Pull until the batch is full, or nothing more is there."""
        messages = bytes_ = 0
        # A wait that ends without an answer says nothing; Pub/Sub is asked once more, and then has answered.
        found = self._pull(min(_AT_ONCE, size.messages), wait_seconds) or self._pull(min(_AT_ONCE, size.messages))
        until = time.monotonic() + size.seconds
        while found:
            messages += len(found)
            bytes_ += sum(len(message.data) for message in found)
            self.latest = max(self.latest, *(message.publish_time for message in found))
            spool = self.folder / f"{len(self.spools):06}.msgpack"
            spool.write_bytes(msgspec.msgpack.encode(found))
            self.spools.append(spool)
            is_full = messages >= size.messages or bytes_ >= size.bytes or time.monotonic() >= until
            if is_full or self.stop.is_set():
                break
            found = self._pull(min(_AT_ONCE, size.messages - messages))

    def _pull(self, most: int, wait_seconds: float | None = None) -> list[Message]:
        """Messages, at most so many; waits for the first ones, or takes what is there now.

        A call that is given up may have had messages, which come again only after their deadline. So only the wait for
        the first ones is ever given up.
        """
        request = {"subscription": self.subscription, "max_messages": most, "return_immediately": wait_seconds is None}
        try:
            with warnings.catch_warnings():
                # Discouraged, as it may find less than there is: then this batch is smaller, and the next one larger.
                warnings.filterwarnings("ignore", "The return_immediately flag", DeprecationWarning)
                answer = self._patiently(partial(self.client.pull, request, timeout=wait_seconds or 60, retry=None))
        except google.DeadlineExceeded:
            return []
        ids = [one.ack_id for one in answer.received_messages]
        self._hold(ids)  # At once: the subscription's own deadline may be ten seconds.
        self._ids += ids
        return [_message(one.message) for one in answer.received_messages]

    def acknowledge(self) -> None:
        for ids in _parts(self._ids):
            request = {"subscription": self.subscription, "ack_ids": ids}
            self._patiently(partial(self.client.acknowledge, request, timeout=60, retry=None))

    def _keep(self) -> None:
        while not self._over.wait(KEEP_EVERY_SECONDS):
            self._hold(list(self._ids))

    def _hold(self, ids: list[str], seconds: int | None = None) -> None:
        """Keep messages from being delivered again for some time. If that fails, the next time may do; else they come
        again, as duplicates."""
        seconds = pubsub.ACK_DEADLINE_SECONDS if seconds is None else seconds
        for some in _parts(ids):
            try:
                request = {"subscription": self.subscription, "ack_ids": some, "ack_deadline_seconds": seconds}
                self.client.modify_ack_deadline(request, timeout=10, retry=None)
            except google.GoogleAPICallError:
                continue

    def _let_go(self) -> None:
        """Let the messages be delivered again at once."""
        self._hold(self._ids, 0)

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """Ask again, with growing pauses, while Pub/Sub cannot be reached."""

        def failed(error: Exception) -> None:
            if self.stop.is_set():
                raise error

        retry = retrying.Retry(
            predicate=pubsub.is_transient, initial=0.5, maximum=10.0, timeout=_PATIENCE_SECONDS, on_error=failed
        )
        return retry(call)()


def _message(message: Any) -> Message:
    return Message(message.data, dict(message.attributes), message.message_id, microseconds(message.publish_time))


def _parts(ids: list[str]) -> Iterator[list[str]]:
    return (ids[start : start + _AT_ONCE] for start in range(0, len(ids), _AT_ONCE))
