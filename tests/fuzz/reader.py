"""The reading of files once more: naive, a character at a time, from docs/rules.md and the formats' own standards.

Nothing of it is shared with `transforms/read.py`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import zstandard

BLANK = b" \t\r\n"
CUT = "the file ends too early"


class Record(bytes):
    """A record, or the rest of a damaged file, and where it stands."""

    origin: str
    position: int

    @classmethod
    def at(cls, origin: str, position: int, data: bytes) -> Record:
        record = cls(data)
        record.origin, record.position = origin, position
        return record


def read(origin: str, data: bytes, told: tuple[int, int] | None = None) -> tuple[list[Record], Record | None]:
    """The records of a file, and the rest that is one reject where the file is damaged.

    Args:
      told: Position and length of the rest as Meterline has it. Where compressed data is damaged, how much text there
        is before the damage is up to the decoder: any length will do, as long as it is told.
    """
    if data.startswith(b"PAR1"):  # spoilt, as no text is Parquet
        return [], Record.at(origin, 0, b"")
    text, broken = text_of(data)
    cut = broken == CUT
    start = 3 if text.startswith(b"\xef\xbb\xbf") else 0
    is_array = text[start:].lstrip(BLANK).startswith(b"[")
    if broken and told:
        position, length = told
        if is_array:
            found, end, closed = elements(text[start:])
            if closed and position == len(found):
                length = len(text) - start - end
            position = start + [*(begin for begin, _ in found), end][position]
        assert not cut or position + length == len(text), f"{origin}: text before the cut is lost"
        text = text[: position + length]
    if not is_array:
        return _lines(origin, text, start, bool(broken))
    found, end, closed = elements(text[start:])
    records = [
        Record.at(origin, number, text[start:][begin:stop].strip(BLANK)) for number, (begin, stop) in enumerate(found)
    ]
    if closed and not broken:
        return records, None
    rest = text[start:][end:]
    if closed and told and not rest.strip(BLANK):
        rest = rest[: told[1]]  # Blanks behind the array may be told or not.
    return records, Record.at(origin, len(records), rest)


def _lines(origin: str, text: bytes, start: int, broken: bool) -> tuple[list[Record], Record | None]:
    records, line = [], start
    for at in [place for place in range(start, len(text)) if text[place] == 10]:
        records.append(Record.at(origin, line, text[line:at]))
        line = at + 1
    rest = Record.at(origin, line, text[line:])
    if not broken:
        records.append(rest)
    return [record for record in records if record.strip(BLANK)], rest if broken else None


def elements(text: bytes) -> tuple[list[tuple[int, int]], int, bool]:
    """The elements of a JSON array by what stands between its commas; where the rest begins; whether it closes well."""
    found: list[tuple[int, int]] = []
    depth, begin, quoted, skip = 0, 0, False, False
    for at, character in enumerate(text.decode("latin-1")):
        if skip:
            skip = False
        elif quoted:
            skip, quoted = character == "\\", character != '"'
        elif character == '"':
            quoted = True
        elif character in "[{":
            depth += 1
            begin = at + 1 if depth == 1 else begin
        elif character in "]}" or (character == "," and depth == 1):
            depth -= character != ","
            if depth == 0 or character == ",":
                if character == "," or found or text[begin:at].strip(BLANK):
                    found.append((begin, at))
                begin = at + 1
            if depth == 0:
                return found, begin, character == "]" and not text[begin:].strip(BLANK)
    return found, begin, False


def text_of(data: bytes) -> tuple[bytes, str]:
    """The text of a file, as much as can be decoded, and what is wrong behind it."""
    if data.startswith(b"\x1f\x8b"):
        pieces = _gunzipped(data)
    elif data.startswith(b"\x28\xb5\x2f\xfd") or (data[1:4] == b"\x2a\x4d\x18" and 0x50 <= data[0] <= 0x5F):
        pieces = _unpacked(data)
    else:
        return data, ""
    text = b""
    try:
        for piece in pieces:
            text += piece
    except (ValueError, zlib.error, zstandard.ZstdError) as error:
        return text, str(error)
    return text, ""


def _gunzipped(data: bytes) -> Iterator[bytes]:
    """RFC 1952: members one after the other, zeros may follow."""
    while data:
        if data[:3] != b"\x1f\x8b\x08" or len(data) < 10:
            raise ValueError("no gzip header")
        flags, at = data[3], 10
        if flags & 4:
            at += 2 + int.from_bytes(data[at : at + 2], "little")
        for flag in (8, 16):  # a name, a comment
            if flags & flag:
                at = data.index(b"\0", at) + 1
        at += 2 if flags & 2 else 0
        decoder, check, size = zlib.decompressobj(-15), 0, 0
        while not decoder.eof:
            if at >= len(data):
                raise ValueError(CUT)
            before = decoder.copy()
            try:
                piece = decoder.decompress(data[at : at + 4096])
            except zlib.error:
                yield from (before.decompress(data[one : one + 1]) for one in range(at, at + 4096))
            at += 4096
            check, size = zlib.crc32(piece, check), size + len(piece)
            yield piece
        tail = decoder.unused_data + data[at:]
        if tail[:8] != check.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little"):
            raise ValueError("wrong check sum")
        data = tail[8:].lstrip(b"\0")


def _unpacked(data: bytes) -> Iterator[bytes]:
    """RFC 8878: frames one after the other, skippable ones among them."""
    while data:
        if data[1:4] == b"\x2a\x4d\x18" and 0x50 <= data[0] <= 0x5F:
            length = int.from_bytes(data[4:8], "little")
            if len(data) < 8 + length or len(data) < 8:
                raise ValueError(CUT)
            data = data[8 + length :]
            continue
        decoder = zstandard.ZstdDecompressor().decompressobj()
        at = 0
        while not decoder.eof:
            if at >= len(data):
                raise ValueError(CUT)
            yield decoder.decompress(data[at : at + 1])
            at += 1
        data = data[at:]
