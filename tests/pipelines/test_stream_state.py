"""A running stream's state can be taken over by the next version.

What state is found again by, and how it is encoded, stands in tests/golden/stream_state.json. Where this test fails, a
running job cannot go on from its state with this code: either the change is undone, or the golden file is written anew
(METERLINE_WRITE_GOLDEN=1) and CHANGELOG.md says that streams are to be started without state (docs/operations.md).
"""

from __future__ import annotations

import hashlib
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.testing.test_stream import TestStream as Stream
from apache_beam.typehints.decorators import no_annotations

from meterline.pipelines import rate_usage
from meterline.schemas.catalog import Catalog
from meterline.schemas.records import Reject
from meterline.transforms import rate
from meterline.transforms.blocks import Block
from meterline.transforms.read import Read
from tests.transforms.batches import key_text

GOLDEN = Path(__file__).parent.parent / "golden" / "stream_state.json"


class Nothing(beam.PTransform):
    """An unbounded source that yields nothing."""

    @no_annotations
    def expand(self, begin: beam.pvalue.PBegin) -> Read:
        messages = begin | Stream().advance_watermark_to_infinity()
        blocks = messages | "Blocks" >> beam.FlatMap(lambda _: ()).with_output_types(Block)
        rejects = messages | "Rejects" >> beam.FlatMap(lambda _: ()).with_output_types(Reject)
        return Read(blocks, rejects)


def stream_state() -> dict[str, Any]:
    pipeline = beam.Pipeline()
    options = rate_usage.Options(
        (), Catalog(), "chdb://nowhere", 0, timedelta(days=35), shards=4, source=Nothing(), streaming=True, run_id="run"
    )
    rate_usage.build(pipeline, options)
    return state_of(pipeline.to_runner_api())


def state_of(proto: Any) -> dict[str, Any]:
    """By the full name of each step with state: what the state is and how it is encoded."""
    parts = proto.components

    def coder(id: str) -> Any:
        one = parts.coders[id]
        payload = hashlib.sha256(one.spec.payload).hexdigest()[:12] if one.spec.payload else ""
        inner = [coder(inner) for inner in one.component_coder_ids]
        return [one.spec.urn + (f" {payload}" if payload else ""), *inner]

    def state(spec: Any) -> Any:
        kind = spec.WhichOneof("spec")
        one = getattr(spec, kind)
        return [kind, coder(one.element_coder_id if kind == "bag_spec" else one.coder_id)]

    def input_of(step: Any) -> Any:
        # The main input; the others are side inputs.
        side = set()
        if step.spec.urn == "beam:transform:pardo:v1":
            side = set(beam_runner_api_pb2.ParDoPayload.FromString(step.spec.payload).side_inputs)
        (main,) = (collection for tag, collection in step.inputs.items() if tag not in side)
        return parts.pcollections[main]

    found: dict[str, Any] = {}
    for step in parts.transforms.values():
        windowing = None
        if step.spec.urn == "beam:transform:pardo:v1":
            payload = beam_runner_api_pb2.ParDoPayload.FromString(step.spec.payload)
            if not payload.state_specs and not payload.timer_family_specs:
                continue
            found[step.unique_name] = {
                "states": {name: state(spec) for name, spec in sorted(payload.state_specs.items())},
                "timers": {
                    name: beam_runner_api_pb2.TimeDomain.Enum.Name(spec.time_domain)
                    for name, spec in sorted(payload.timer_family_specs.items())
                },
            }
        elif step.spec.urn == "beam:transform:group_by_key:v1":
            found[step.unique_name] = {}
        else:
            continue
        collection = input_of(step)
        windowing = parts.windowing_strategies[collection.windowing_strategy_id]
        found[step.unique_name] |= {
            "input": coder(collection.coder_id),
            "window": coder(windowing.window_coder_id),
            "allowed_lateness": windowing.allowed_lateness,
        }
    return dict(sorted(found.items()))


def places() -> dict[str, str]:
    """Where the state of some rating keys is, at 4 shards of `deduplicate`."""
    shards = 4 * rate._SHARDS
    keys = (key_text("sum", region) for region in ("eu", "us", "ap"))
    return {text: rate.shard_of(text.encode(), shards).decode() for text in keys}


def test_a_running_job_can_go_on_from_its_state() -> None:
    found = json.dumps({**stream_state(), "rating keys": places()}, indent=2) + "\n"
    if os.environ.get("METERLINE_WRITE_GOLDEN"):
        GOLDEN.write_text(found, encoding="utf-8")
    assert found == GOLDEN.read_text(encoding="utf-8")
