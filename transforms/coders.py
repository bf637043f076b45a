"""How blocks and batches are encoded where they cross a shuffle; between fused stages nothing is encoded.

Beam asks for the encoded size of samples of what flows between any two steps: without a cheap answer it encodes them.
"""

from __future__ import annotations

import pickle

import apache_beam as beam
import pyarrow as pa

from meterline.transforms.blocks import Block, Records
from meterline.transforms.columns import referenced

# As fast as lz4 here, and a third smaller: the shuffle is what a run on one machine holds in memory.
_IPC = pa.ipc.IpcWriteOptions(compression="zstd")


class BatchCoder(beam.coders.Coder):
    """Arrow record batches as compressed streams."""

    def encode(self, events: pa.RecordBatch) -> bytes:
        place = events.schema.get_field_index("payload")
        if place >= 0 and len(events["payload"].dictionary) != len(events):  # Rows were dropped, or went elsewhere.
            payload = referenced(events["payload"].dictionary_decode())
            events = events.set_column(place, events.schema.field(place), payload)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, events.schema, options=_IPC) as writer:
            writer.write_batch(events)
        return sink.getvalue().to_pybytes()

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        return pa.ipc.open_stream(encoded).read_next_batch()

    def estimate_size(self, events: pa.RecordBatch) -> int:
        return events.nbytes

    def is_deterministic(self) -> bool:
        return False


class BlockCoder(beam.coders.Coder):
    """Blocks with just the text of their records."""

    def encode(self, block: Block) -> bytes:
        return pickle.dumps((list(block.records), *block[1:]))

    def decode(self, encoded: bytes) -> Block:
        records, *rest = pickle.loads(encoded)
        return Block(Records.of(records), *rest)

    def estimate_size(self, block: Block) -> int:
        return len(block.records.data)

    def is_deterministic(self) -> bool:
        return False


beam.coders.registry.register_coder(pa.RecordBatch, BatchCoder)
beam.coders.registry.register_coder(Block, BlockCoder)
