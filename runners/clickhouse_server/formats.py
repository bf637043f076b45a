"""What a format is called in HTTP, and which can be answered piece by piece."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any

# Formats whose pieces, one after the other, are the same as one answer: nothing stands before or after the rows.
_STREAMED = {
    "native",
    "tabseparated",
    "tsv",
    "tabseparatedraw",
    "tsvraw",
    "raw",
    "csv",
    "tskv",
    "rowbinary",
    "jsoneachrow",
    "jsonlines",
    "ndjson",
    "jsonstringseachrow",
    "jsoncompacteachrow",
    "jsoncompactstringseachrow",
    "arrowstream",
}
# What makes more than one table of the answer, or puts something around the rows.
_WHOLE = {"totals", "extremes", "output_format_json_array_of_rows"}
_TYPES = {
    "json": "application/json; charset=UTF-8",
    "jsoneachrow": "application/x-ndjson; charset=UTF-8",
    "jsoncompacteachrow": "application/x-ndjson; charset=UTF-8",
    "jsonstringseachrow": "application/x-ndjson; charset=UTF-8",
    "jsoncompactstringseachrow": "application/x-ndjson; charset=UTF-8",
    "jsonlines": "application/x-ndjson; charset=UTF-8",
    "ndjson": "application/x-ndjson; charset=UTF-8",
    "jsoncompact": "application/json; charset=UTF-8",
    "jsonstrings": "application/json; charset=UTF-8",
    "jsoncompactstrings": "application/json; charset=UTF-8",
    "jsoncolumns": "application/json; charset=UTF-8",
    "jsonobjecteachrow": "application/json; charset=UTF-8",
    "xml": "application/xml; charset=UTF-8",
    "native": "application/octet-stream",
    "rowbinary": "application/octet-stream",
    "rowbinarywithnames": "application/octet-stream",
    "rowbinarywithnamesandtypes": "application/octet-stream",
    "arrow": "application/octet-stream",
    "arrowstream": "application/octet-stream",
    "parquet": "application/octet-stream",
    "orc": "application/octet-stream",
    "avro": "application/octet-stream",
    "msgpack": "application/octet-stream",
}


def content_type(format: str) -> str:
    name = format.lower()
    if name.startswith(("tabseparated", "tsv")):
        return "text/tab-separated-values; charset=UTF-8"
    if name.startswith("csv"):
        header = "present" if "withnames" in name else "absent"
        return f"text/csv; charset=UTF-8; header={header}"
    return _TYPES.get(name, "text/plain; charset=UTF-8")


def is_streamed(format: str, words: Iterable[str], *, in_session: bool) -> bool:
    """Whether the answer to a query can go out in pieces.

    Args:
      words: Of the query, and its settings.
      in_session: Settings that nobody sees here may be in force.
    """
    streamed = {"native", "arrowstream"} if in_session else _STREAMED
    return format.lower() in streamed and _WHOLE.isdisjoint(words)


def joined(format: str, pieces: Iterator[Any]) -> Iterator[Any]:
    """Pieces so that one can follow the other."""
    return _joined_arrow(pieces) if format.lower() == "arrowstream" else pieces


_ARROW_ENDS = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def _joined_arrow(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """One Arrow stream of several with the same schema: the schema stands first, the end last."""
    first = True
    for piece in pieces:
        (size,) = struct.unpack_from("<i", piece, 4)
        schema = 0 if first else 8 + size  # A schema has no body.
        yield piece[schema : len(piece) - len(_ARROW_ENDS)]
        first = False
    if not first:
        yield _ARROW_ENDS
