"""The worker's changes to Beam's harness leave its results alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from apache_beam import coders
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.worker import bundle_processor, sdk_worker, statecache, statesampler
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.counters import CounterFactory
from hypothesis import given
from hypothesis import strategies as st

from meterline.runners.flink import worker

BAG = BagStateSpec("bag", coders.BytesCoder())
VALUE = ReadModifyWriteStateSpec("value", coders.BytesCoder())


class Stored:
    """State as Flink keeps it, and the requests in the order in which they came."""

    def __init__(self) -> None:
        self.cells: dict[bytes, bytes] = {}
        self.requests: list[str] = []
        self.refuses = ""

    @contextmanager
    def process_instruction_id(self, bundle_id: str) -> Iterator[None]:
        yield

    def get_raw(self, key: Any, token: bytes | None = None) -> tuple[bytes, None]:
        self.requests.append("get")
        return self.cells.get(key.SerializeToString(), b""), None

    def append_raw(self, key: Any, data: bytes) -> Any:
        return self._answered("append", key, self.cells.get(key.SerializeToString(), b"") + data)

    def clear(self, key: Any) -> Any:
        return self._answered("clear", key, b"")

    def _answered(self, name: str, key: Any, value: bytes) -> Any:
        self.requests.append(name)
        self.cells[key.SerializeToString()] = value
        return Answer(self, beam_fn_api_pb2.StateResponse(error=self.refuses))


class Answer(sdk_worker._Future[Any]):
    """An answer that is there at once, and says when it is asked for."""

    def __init__(self, stored: Stored, response: Any) -> None:
        super().__init__()
        self._stored = stored
        self.set(response)

    def wait(self, timeout: float | None = None) -> bool:
        self._stored.requests.append("wait")
        return super().wait(timeout)


def context(stored: Stored, cache_bytes: int) -> tuple[Any, sdk_worker.GlobalCachingStateHandler]:
    handler = sdk_worker.GlobalCachingStateHandler(statecache.StateCache(cache_bytes), stored)  # type: ignore[arg-type]
    window_coder = coders.coders.GlobalWindowCoder()
    made = bundle_processor.FnApiUserStateContext(handler, "step", coders.BytesCoder(), window_coder)
    return made, handler


TOKEN = beam_fn_api_pb2.ProcessBundleRequest.CacheToken(
    user_state=beam_fn_api_pb2.ProcessBundleRequest.CacheToken.UserState(), token=b"token"
)
STEP = st.tuples(
    st.sampled_from(["add", "write", "clear", "read"]), st.sampled_from([b"a", b"b", b"c"]), st.binary(max_size=300)
)


def play(bundles: list[list[tuple[str, bytes, bytes]]], cache_bytes: int) -> tuple[list[Any], dict[bytes, bytes]]:
    """What was read, and what is stored in the end."""
    stored, read = Stored(), []
    made, handler = context(stored, cache_bytes)
    for number, steps in enumerate(bundles):
        with handler.process_instruction_id(str(number), [TOKEN]):
            for what, key, value in steps:
                bag = made.get_state(BAG, key, GlobalWindow())
                cell = made.get_state(VALUE, key, GlobalWindow())
                match what:
                    case "add":
                        bag.add(value)
                    case "write":
                        cell.write(value)
                    case "clear":
                        bag.clear()
                    case _:
                        read.append((list(bag.read()), cell.read()))
            made.commit()
            made.reset()
    return read, stored.cells


@given(bundles=st.lists(st.lists(STEP, max_size=8), max_size=5), cache_bytes=st.sampled_from([1, 1_500, 1 << 20]))
def test_state_is_what_it_is_without_a_cache(bundles: list[Any], cache_bytes: int) -> None:
    expected = play(bundles, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statecache, "get_deep_size", worker._size)
        patch.setattr(bundle_processor.FnApiUserStateContext, "commit", worker._commit)
        assert play(bundles, cache_bytes) == expected


def changed(stored: Stored, cache_bytes: int = 0) -> Any:
    made, handler = context(stored, cache_bytes)
    with handler.process_instruction_id("bundle", [TOKEN]):
        for key in (b"a", b"b", b"c"):
            made.get_state(VALUE, key, GlobalWindow()).write(b"value of " + key)
            made.get_state(BAG, key, GlobalWindow()).add(b"element")
        yield made


def test_all_is_sent_before_an_answer_is_waited_for() -> None:
    stored = Stored()
    for made in changed(stored):
        worker._commit(made)
    sent = [request for request in stored.requests if request != "wait"]
    assert sent == 3 * ["clear", "append", "append"]
    assert stored.requests[: len(sent)] == sent


def test_state_that_was_refused_fails_the_bundle() -> None:
    stored = Stored()
    stored.refuses = "disk full"
    for made in changed(stored):
        with pytest.raises(RuntimeError, match="disk full"):
            worker._commit(made)


def test_cells_of_bytes_are_weighed_by_their_bytes() -> None:
    cell = [b"x" * 10_000, b"y" * 5_000]
    assert 15_000 < worker._size(cell) < 16_000
    assert worker._size([]) > 0
    other = {"a": [1, 2]}
    assert worker._size(other) == worker._walked(other)


def test_a_worker_works_for_the_address_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Harness:
        def __init__(self, address: str, **options: Any) -> None:
            made.append((address, options["worker_id"], options["state_cache_size"]))

        def run(self) -> None:
            made.append(bundle_processor.statesampler.StateSampler("step", CounterFactory()).sampling_period_ms)
            made.append(statecache.get_deep_size is worker._size)
            made.append(bundle_processor.FnApiUserStateContext.commit is worker._commit)

    for owner, name in (
        (statecache, "get_deep_size"),
        (bundle_processor.FnApiUserStateContext, "commit"),
        (statesampler, "StateSampler"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # Put back afterwards.
    monkeypatch.setattr(worker, "SdkHarness", Harness)
    worker.work("localhost:1", "1-1")
    assert made[0] == ("localhost:1", "1-1", worker._CACHE_BYTES)
    assert made[1:] == [worker._SAMPLING_MILLISECONDS, True, True]
