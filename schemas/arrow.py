"""Arrow schemas of the batches that flow between the stages."""

from __future__ import annotations

import pyarrow as pa

QUANTITY = pa.decimal128(38, 12)
AMOUNT = pa.decimal128(38, 18)
MONEY = pa.decimal256(76, 18)  # On invoices: a line item's amount is bounded, their sums are not.
MICROSECONDS = pa.timestamp("us", tz="UTC")
SYMBOL = pa.dictionary(pa.int32(), pa.string())
# Rows refer to the bytes of their batch, so that to drop some of them copies no bytes.
PAYLOAD = pa.dictionary(pa.int32(), pa.binary())

# Records that `validate` accepted: what billing needs of them, where they came from and their bytes. One further column
# follows for each property that a meter reads, null where the event feeds no meter that does:
# `w:PATH` what a filter asks for (SYMBOL; null too where it has no string form), `q:PATH` a quantity (QUANTITY),
# `v:PATH` a value to be counted distinctly (SYMBOL), `x:EXPRESSION` a computed quantity, `d:PATH` a dimension (SYMBOL).
EVENTS = pa.schema(
    [
        pa.field("tenant_id", SYMBOL, nullable=False),
        pa.field("source", SYMBOL, nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("type", SYMBOL, nullable=False),
        pa.field("subject", SYMBOL, nullable=False),
        pa.field("time", MICROSECONDS, nullable=False),
        pa.field("received_time", MICROSECONDS, nullable=False),
        pa.field("payload", PAYLOAD, nullable=False),
    ]
)

# Events after `attribute`. The three lists have one entry for each meter that the event feeds: the text of its rating
# key, the quantity (1 for count and distinct) and the counted value: what a distinct meter counts, the series of a
# time-weighted sum, else empty.
ATTRIBUTED = pa.schema(
    [
        *EVENTS,
        pa.field("origin", SYMBOL, nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("account_id", SYMBOL, nullable=False),
        pa.field("billing_account_id", SYMBOL, nullable=False),
        pa.field("identity", pa.binary(16), nullable=False),
        pa.field("rating_keys", pa.list_(SYMBOL), nullable=False),
        pa.field("quantities", pa.list_(QUANTITY), nullable=False),
        pa.field("counted_values", pa.list_(SYMBOL), nullable=False),
    ]
)
