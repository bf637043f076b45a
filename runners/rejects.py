"""What was rejected: counted, listed and written out again."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import IO, Any

from meterline.transforms import clickhouse

_WHERE = "WHERE ({stage:String} = '' OR stage = {stage:String}) AND ({reason:String} = '' OR reason = {reason:String})"


def _filter(stage: str | None, reason: str | None) -> dict[str, Any]:
    return {"stage": stage or "", "reason": reason or ""}


def counts(url: str) -> list[dict[str, Any]]:
    """Records by stage and reason, with the latest message."""
    clickhouse.ready(url)
    sql = (
        "SELECT stage, reason, count() AS records, argMax(message, received_time) AS message "
        "FROM rejects FINAL GROUP BY stage, reason ORDER BY records DESC, stage, reason"
    )
    return clickhouse.query(url, sql).to_pylist()


def found(url: str, stage: str | None, reason: str | None, limit: int) -> list[dict[str, Any]]:
    """Rejects, newest first."""
    clickhouse.ready(url)
    sql = (
        "SELECT reject_id, stage, reason, message, origin, position, received_time, base64Encode(payload) AS payload "
        f"FROM rejects FINAL {_WHERE} ORDER BY received_time DESC, origin, position LIMIT {{limit:UInt64}}"
    )
    rows = clickhouse.query(url, sql, {**_filter(stage, reason), "limit": limit}).to_pylist()
    return [{**row, "payload": base64.b64decode(row["payload"])} for row in rows]


def export(url: str, target: Path | IO[bytes], stage: str | None, reason: str | None) -> int:
    """Write the records' bytes, one a line (rejected rating keys are no records and left out); how many."""
    clickhouse.ready(url)
    sql = f"SELECT payload FROM rejects FINAL {_WHERE} AND stage != 'rate' ORDER BY origin, position, reject_id"
    rows = clickhouse.query(url, sql, _filter(stage, reason), as_text=False).column("payload").to_pylist()
    if isinstance(target, Path):
        with target.open("wb") as file:
            file.writelines(row + b"\n" for row in rows)
    else:
        target.writelines(row + b"\n" for row in rows)
    return len(rows)
