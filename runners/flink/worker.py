"""A Python worker of Flink: Beam's harness without three waits, which took most of a stream's time.

- Beam's cache of state measures a cell by walking it, which takes a millisecond. All state of Meterline's steps is
  bytes, whose size is known.
- At the end of a bundle Beam sends what became of one key, waits for the answer, and goes on to the next. All is sent
  here before the first answer is waited for. Flink takes the requests in the order in which they were sent.
- At the end of a bundle Beam waits for the thread that samples what it does, which sleeps up to 200 ms at a time.

    python -m meterline.runners.flink.worker CONTROL_ADDRESS WORKER_ID
"""

from __future__ import annotations

import logging
import sys
from functools import partial
from typing import Any

import grpc
from apache_beam.runners.worker import bundle_processor, statecache, statesampler
from apache_beam.runners.worker.sdk_worker import SdkHarness

# Of a worker. An entry is the state of one key: of `deduplicate` 16 bytes for each event of a shard and day.
_CACHE_BYTES = 256 << 20
# What an entry of the cache takes beside its value: its key, its token, its place in the order of use.
_ENTRY_BYTES = 500

_SAMPLING_MILLISECONDS = 10
_BAGS = (bundle_processor.SynchronousBagRuntimeState, bundle_processor.ReadModifyWriteRuntimeState)

_walked = statecache.get_deep_size


def _size(*values: Any) -> int:
    """The bytes of cells, as Beam's `get_deep_size` measures them."""
    if all(type(value) is list and all(type(one) is bytes for one in value) for value in values):
        return sum(_ENTRY_BYTES + sum(map(sys.getsizeof, value)) for value in values)
    return int(_walked(*values))


def _commit(context: bundle_processor.FnApiUserStateContext) -> None:
    """Send all that a bundle changed, and wait until it is stored.

    Raises:
      RuntimeError: Flink refused some of it, which Beam does not look at.
    """
    answers = [answer for state in context._all_states.values() for answer in _sent(state)]
    for answer in answers:
        if said := answer.get().error:
            raise RuntimeError(said)


def _sent(state: Any) -> list[Any]:
    if type(state) not in _BAGS:
        state.commit()
        return []
    bag = getattr(state, "_underlying_bag_state", state)  # One value is a bag with one element.
    answers = [bag._state_handler.clear(bag._state_key)] if bag._cleared else []
    if bag._added_elements:
        coder = bag._value_coder.get_impl()
        answers.append(bag._state_handler.extend(bag._state_key, coder, bag._added_elements))
    return answers


def work(control_address: str, worker_id: str) -> None:
    """Work for a TaskManager until it hangs up."""
    statecache.get_deep_size = _size
    bundle_processor.FnApiUserStateContext.commit = _commit
    statesampler.StateSampler = partial(statesampler.StateSampler, sampling_period_ms=_SAMPLING_MILLISECONDS)
    SdkHarness(control_address, worker_id=worker_id, state_cache_size=_CACHE_BYTES, data_buffer_time_limit_ms=-1).run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
    try:
        work(*sys.argv[1:])
    except grpc.RpcError as error:
        logging.warning("the TaskManager hung up: %s", error.details())
