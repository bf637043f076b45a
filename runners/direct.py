"""The in-process runner: the default for files, nothing to start."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, worker_handlers


def run(build: Callable[[beam.Pipeline], None]) -> dict[str, int]:
    """Run a pipeline to its end.

    Returns:
      Its counters, by `namespace/name`.
    """
    return run_and_tell(build)[0]


def run_and_tell(build: Callable[[beam.Pipeline], None]) -> tuple[dict[str, int], dict[str, set[str]]]:
    """The same, with the texts that it has collected (`Metrics.string_set`)."""
    # The state cache measures each cell it holds by walking it: about 1 ms for each element of a stateful step.
    worker_handlers.STATE_CACHE_SIZE_MB = 0
    # Named, because «DirectRunner» may stand for another runner, which would have to be downloaded.
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    build(pipeline)
    # What is loaded by now stays: to look through it again with each collection costs a tenth of a run.
    gc.freeze()
    gc.enable()
    result = pipeline.run()
    result.wait_until_finish()
    told = result.metrics().query(MetricsFilter())
    counters: dict[str, int] = {}
    for metric in told["counters"]:
        counters[_name(metric)] = counters.get(_name(metric), 0) + metric.committed
    texts: dict[str, set[str]] = {}
    for metric in told["string_sets"]:
        texts.setdefault(_name(metric), set()).update(metric.committed or ())
    return counters, texts


def _name(metric: Any) -> str:
    return f"{metric.key.metric.namespace}/{metric.key.metric.name}"
