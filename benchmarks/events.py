"""The benchmark's input: deterministic usage events, the catalog that prices them, and what must come out."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from meterline.schemas.catalog import Catalog

DAY = datetime(2026, 9, 14, tzinfo=UTC)
ACCOUNTS = 1_000
SOURCES = ("/gateway/eu-1", "/gateway/eu-2", "/gateway/us-1")
MODELS = ("large-2026-06", "small-2026-06", "embed-2026-02", "voice-2026-04")
DUPLICATES = 0.02
BAD_LINES = 0.001
_CHUNK = 50_000
# Changing the events means changing this, so that no cached file of another form is used.
_VERSION = 1

# About 338 bytes with its newline.
_LINE = (
    b'{"specversion":"1.0","id":"%b-%b-%b-%b-%b","source":"%b","type":"com.example.llm.request.v1",'
    b'"subject":"account-%04d","time":"2026-09-14T%02d:%02d:%02d.%03dZ","data":{"model":"%b",'
    b'"input_tokens":%d,"output_tokens":%d,"latency_ms":%d,"region":"eu",'
    b'"finish_reason":"stop","api_key":"key-%07d"}}\n'
)


@dataclass(frozen=True)
class Expected:
    """What the job must make of the events; counted while they are written, without the code that is measured."""

    records: int
    accepted: int
    duplicates: int
    rejects: dict[str, int]
    input_tokens: int
    output_tokens: int


def shared_folder() -> Path:
    """Where the benchmarks keep their files, for later runs."""
    folder = Path(tempfile.gettempdir()) / "meterline-bench"
    folder.mkdir(exist_ok=True)
    return folder


def write_events(path: Path, events: int, models: int) -> Expected:
    """Write `events` lines, unless the same file is there.

    Args:
      models: Different models that each account uses; more of them make more line items of the same events.
    """
    told = path.with_suffix(".expected.json")
    wanted = {"version": _VERSION, "events": events, "models": models}
    if told.exists() and (known := json.loads(told.read_text()))["wanted"] == wanted:
        return Expected(**known["expected"])
    random = np.random.default_rng(20260914)
    accepted = duplicates = input_tokens = output_tokens = 0
    rejects = {"malformed": 0, "bad_quantity": 0, "unknown_subject": 0}
    with path.open("wb") as file:
        earlier: list[bytes] = []
        for start in range(0, events, _CHUNK):
            rows = min(_CHUNK, events - start)
            lines, inputs, outputs = _lines(random, start, rows, events, models)
            kind = random.random(rows)
            repeated = np.flatnonzero(kind < DUPLICATES) if earlier else np.zeros(0, int)
            bad = np.flatnonzero(kind > 1 - BAD_LINES)
            left_out = np.concatenate([repeated, bad])
            accepted += rows - len(left_out)
            duplicates += len(repeated)
            input_tokens += int(inputs.sum() - inputs[left_out].sum())
            output_tokens += int(outputs.sum() - outputs[left_out].sum())
            fine = np.delete(np.arange(rows), left_out)
            kept = [lines[row] for row in fine[:: len(fine) // 2_000 or 1].tolist()]
            for row, which in zip(repeated.tolist(), random.integers(0, len(earlier) or 1, len(repeated)).tolist()):
                lines[row] = earlier[which]
            for row in bad.tolist():
                reason = list(rejects)[row % len(rejects)]
                rejects[reason] += 1
                lines[row] = _spoilt(lines[row], reason)
            earlier = kept
            file.writelines(lines)
    expected = Expected(events, accepted, duplicates, rejects, input_tokens, output_tokens)
    told.write_text(json.dumps({"wanted": wanted, "expected": asdict(expected)}))
    return expected


def _lines(
    random: np.random.Generator, start: int, rows: int, events: int, models: int
) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """Lines in about the order of their times, with token counts that spread over several orders of magnitude."""
    ids = random.bytes(16 * rows).hex().encode()
    account = random.integers(0, ACCOUNTS, rows)
    model = (account + random.integers(0, models, rows)) % len(MODELS)
    inputs = np.exp(random.normal(7, 1.3, rows)).astype(np.int64) + 1
    outputs = np.exp(random.normal(5.5, 1, rows)).astype(np.int64) + 1
    millis = (start + np.arange(rows)) * 86_400_000 // events + random.integers(-60_000, 60_000, rows)
    millis = np.clip(millis, 0, 86_399_999)
    columns = zip(
        range(0, 32 * rows, 32),
        random.integers(0, len(SOURCES), rows).tolist(),
        account.tolist(),
        millis.tolist(),
        model.tolist(),
        inputs.tolist(),
        outputs.tolist(),
        random.integers(100, 30_000, rows).tolist(),
        random.integers(0, 10_000_000, rows).tolist(),
    )
    sources, names = [text.encode() for text in SOURCES], [text.encode() for text in MODELS]
    lines = []
    for at, source, subject, time, name, tokens_in, tokens_out, latency, api_key in columns:
        seconds, milli = divmod(time, 1_000)
        minutes, second = divmod(seconds, 60)
        hour, minute = divmod(minutes, 60)
        one = ids[at : at + 32]
        parts = (one[:8], one[8:12], one[12:16], one[16:20], one[20:], sources[source], subject)
        moment = (hour, minute, second, milli)
        lines.append(_LINE % (*parts, *moment, names[name], tokens_in, tokens_out, latency, api_key))
    return lines, inputs, outputs


def _spoilt(line: bytes, reason: str) -> bytes:
    match reason:
        case "malformed":
            return line[: len(line) // 2] + b"\n"
        case "bad_quantity":
            return line.replace(b'"input_tokens":', b'"input_tokens":-')
        case _:
            return line.replace(b'"account-', b'"nobody-')


def write_parquet(lines: Path, path: Path) -> None:
    """The same events as typed columns, unless that file is there. Malformed lines cannot be in it."""
    import duckdb

    if path.exists() and path.stat().st_mtime > lines.stat().st_mtime:
        return
    data = "input_tokens BIGINT, output_tokens BIGINT, latency_ms BIGINT, region VARCHAR, finish_reason VARCHAR"
    names = dict.fromkeys(("specversion", "id", "source", "type", "subject"), "VARCHAR")
    columns = names | {"time": "TIMESTAMPTZ", "data": f"STRUCT(model VARCHAR, {data}, api_key VARCHAR)"}
    duckdb.execute("SET TimeZone = 'UTC'")
    duckdb.execute(
        f"COPY (FROM read_json($1, format = 'newline_delimited', columns = {columns}, ignore_errors = true) "
        "WHERE id IS NOT NULL) TO $2 (FORMAT parquet, COMPRESSION zstd)",
        [str(lines), str(path)],
    )


def catalog() -> Catalog:
    """Accounts with a subscription each; a price in tiers for input tokens and one per unit for output tokens."""
    tiers = [{"up_to": 1_000_000, "unit_price": "3"}, {"up_to": None, "unit_price": "2.5"}]
    meters = ("input_tokens", "output_tokens")
    return Catalog.model_validate(
        {
            "meters": [
                {
                    "id": meter,
                    "event_type": "com.example.llm.request.v1",
                    "aggregation": "sum",
                    "value": meter,
                    "unit": "token",
                    "dimensions": ["model"],
                }
                for meter in meters
            ],
            "rate_cards": [
                {
                    "id": "standard",
                    "currency": "USD",
                    "versions": [
                        {
                            "version": "2026-01",
                            "effective_from": "2026-01-01T00:00:00Z",
                            "prices": {
                                "input_tokens": {"model": "graduated", "per": "1000000", "tiers": tiers},
                                "output_tokens": {"model": "per_unit", "per": "1000000", "unit_price": "15"},
                            },
                        }
                    ],
                }
            ],
            "plans": [
                {
                    "id": "standard",
                    "rate_card": "standard",
                    "charges": [{"id": meter, "meter": meter} for meter in meters],
                }
            ],
            "accounts": [{"id": f"account-{number:04d}"} for number in range(ACCOUNTS)],
            "subscriptions": [
                {
                    "id": f"subscription-{number:04d}",
                    "account": f"account-{number:04d}",
                    "plan": "standard",
                    "start": "2026-01-01T00:00:00Z",
                }
                for number in range(ACCOUNTS)
            ],
        }
    )
