"""Parquet of odd types, and damaged: each row has one outcome, a file that cannot be read is one reject."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meterline.runners.demo import quickstart
from tests.command import NOW, Command
from tests.simulation import ledger
from tests.simulation.auditor import audit, read_catalog

from . import ROUNDS, replayable
from .mutations import cut_off, flip_bits, leave_out, put_in, repeat, set_byte

ROWS = 12
MOMENT = datetime(2023, 11, 16, 18, 30, tzinfo=UTC)
TIMES: list[tuple[Any, pa.DataType]] = [
    ("2023-11-16T18:30:00Z", pa.string()),
    ("yesterday", pa.string()),
    (MOMENT, pa.timestamp("us", "UTC")),
    (MOMENT, pa.timestamp("ns", "Europe/Berlin")),
    (MOMENT.replace(tzinfo=None), pa.timestamp("ms")),
    (MOMENT.date(), pa.date32()),
    (1_700_159_400, pa.int64()),
    (None, pa.null()),
]
TOKENS: list[tuple[Any, pa.DataType]] = [
    (5, pa.int64()),
    (255, pa.uint8()),
    (-1, pa.int8()),
    (2**64 - 1, pa.uint64()),
    (Decimal("1.500000000000"), pa.decimal128(38, 12)),
    (Decimal("1E-30"), pa.decimal256(76, 30)),
    ("7.25", pa.string()),
    ("NaN", pa.large_string()),
    (True, pa.bool_()),
    (b"\xff", pa.binary()),
    ([1], pa.list_(pa.int64())),
    (None, pa.int32()),
]
MORE: list[tuple[Any, pa.DataType]] = [
    *((1, pa.int32()), (2**31, pa.int64()), ("x", pa.string()), (b"x", pa.binary()), (True, pa.bool_()), (None,
      pa.null())),
    *(([1, None], pa.list_(pa.int32())), ({"a": 1}, pa.struct({"a": pa.int8()})), ([("a", 1)], pa.map_(pa.string(),
      pa.int8()))),
    *((MOMENT, pa.timestamp("ns", "UTC")), (MOMENT.date(), pa.date64()), (MOMENT.time(), pa.time64("us"))),
    *((1.5, pa.float64()), (1.5, pa.float16()), ([1.5], pa.list_(pa.float32()))),
]  # fmt: skip


def some_table(rng: Random, file: int) -> pa.Table:
    time, tokens = rng.choice(TIMES), rng.choice(TOKENS)
    kind = pa.struct({"model": pa.string(), "input_tokens": tokens[1], "output_tokens": pa.int32()})
    data: list[Any] = [
        {"model": "large", "input_tokens": rng.choice([tokens[0], None]), "output_tokens": 1} for _ in range(ROWS)
    ]
    shape = rng.choice(["struct", "struct", "map", "text", "bytes", "wrong text", "number"])
    if shape == "map":
        kind, data = pa.map_(pa.string(), pa.string()), [[("model", "large"), ("model", "small"), ("", None)]] * ROWS
    elif shape != "struct":
        texts = ['{"model":"large","input_tokens":0.5,"output_tokens":1}', "{}", "[]", "null", '"x"']
        texts += ["{", "", '{},"subject":"other"'] * (shape == "wrong text")
        kind = {"bytes": pa.binary(), "number": pa.int64()}.get(shape, pa.string())
        chosen = [rng.choice(texts) for _ in range(ROWS)]
        data = [len(text) if shape == "number" else text.encode() if shape == "bytes" else text for text in chosen]
    columns: dict[str, Any] = {
        "specversion": ["1.0"] * ROWS,
        "id": [f"{file}-{row}" for row in range(ROWS)],
        "source": pa.array(["/gw"] * ROWS).dictionary_encode(),
        "type": ["com.example.llm.request.v1"] * ROWS,
        "subject": pa.array([rng.choice(["acme-assist-chat", "nobody", None, ""]) for _ in range(ROWS)], pa.string()),
        "time": pa.array([time[0]] * ROWS, time[1]),
        "data": pa.array(data, kind),
    }
    if rng.random() < 0.5:
        value, odd = rng.choice(MORE)
        columns[rng.choice(["ext", "Upper", "tenantid", "datacontenttype", "data_base64", ""])] = pa.array(
            [value] * ROWS, odd
        )
    if rng.random() < 0.1:
        del columns[rng.choice(list(columns))]
    return pa.table(columns)


@pytest.mark.parametrize("round", ROUNDS)
def test_each_row_of_odd_parquet_has_one_outcome(round: int, meterline: Command, tmp_path: Path) -> None:
    with replayable(round, "odd_parquet"):
        rng = Random(f"parquet {round}")
        floats = []
        for file in range(6):
            table = some_table(rng, file)
            pq.write_table(table, tmp_path / f"{file}.parquet", compression=rng.choice(["snappy", "zstd", "none"]))
            floats += [str(tmp_path / f"{file}.parquet")] * (
                "float" in str(table.schema) or "double" in str(table.schema)
            )
        report, tables = rated(meterline, tmp_path)
        rejects = tables["rejects"]
        assert sorted(row["origin"] for row in rejects if row["reason"] == "unreadable") == floats
        records = [row for row in rejects if row["stage"] != "read"]
        places = Counter((row["origin"], row["position"]) for row in records)
        assert report["accepted"] + len(records) + report["duplicates"] == (6 - len(floats)) * ROWS
        assert max(places.values(), default=1) == 1
        # What the rows became in JSON is judged by the auditor.
        catalog, received = read_catalog(quickstart() / "catalog"), datetime.fromisoformat(NOW)
        books = audit([row["payload"] for row in [*tables["usage_events"], *records]], catalog, received, None)
        assert len(books.accepted) == report["accepted"]
        verdicts = [(row["reason"], row["stage"], row["payload"]) for row in records]
        ledger._same("rejects", verdicts, books.rejects)


@pytest.mark.parametrize("round", ROUNDS)
def test_damaged_parquet_is_told(round: int, meterline: Command, tmp_path: Path) -> None:
    with replayable(round, "damaged_parquet"):
        rng = Random(f"damaged parquet {round}")
        for file in range(6):
            path = tmp_path / f"{file}.parquet"
            pq.write_table(some_table(rng, file), path, write_page_checksum=rng.random() < 0.5)
            spoil = rng.choice([cut_off, flip_bits, set_byte, leave_out, put_in, repeat])
            data = path.read_bytes()
            path.write_bytes(data[:4] + spoil(rng, data[4:]))
        rated(meterline, tmp_path)


def rated(meterline: Command, folder: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    said = meterline.rate(folder / "*.parquet", "--json")
    assert said.code == 0, said
    report, tables = json.loads(said.out), ledger.stored(meterline.url)
    assert report["adds_up"]
    assert report["accepted"] == len(tables["usage_events"])
    assert sum(report["rejected"].values()) == len(tables["rejects"])
    return report, tables
