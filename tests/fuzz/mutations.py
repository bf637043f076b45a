"""Ways to spoil bytes, records and files; all are drawn from one `Random`, so that a seed replays them."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from random import Random

import zstandard

# What each kind of JSON token may become: at a bound, just beyond it, or nothing that JSON has.
NUMBERS = [
    *("0", "-0", "0.0", "1", "1.50", "1E+2", "1e2", "5e-1", "0e999999999", "1e-12", "1.5e-12", "1e-13",
      "0.000000000001"),
    *("99999999999999999999", "1e20", "1e19", "-1", "-1e-12", "18446744073709551616", "1e308", "1e400", "1e-400"),
    *("1e999999999999999999", "1e-999999999999999999", "9" * 4000, "9" * 4001, "0." + "0" * 3998, "0." + "0" * 3999),
    *("1e100", "1e99", "1e-100", "1e-101", "1" * 100, "1" * 101, "2147483647", "2147483648", "-2147483649"),
    *("NaN", "Infinity", "-Infinity", "nan", "inf", "0x10", "1_000", "01", "-01", "1.", ".1", "+1", "1e", "1e+",
      "--1", "١"),
]  # fmt: skip
STRINGS = [
    *('""', '" "', '"\\u0000"', '"\x00"', '"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"😀"', '"\\ud83d😀"'),
    *('"\\uD83D\\uDE00"', '"\\u12"', '"\\x41"', '"\\', '"', '"\\"', '"\\/\\b\\f"', '"\t"', '"\\t"', '"\x7f"',
      '"\u0085"'),
    *('"\ufeff"', '"\ufdd0"', '"\U0010ffff"', '"\U0010fffd"', '"a\u0301"', '"\u202e"', "'x'", "x", '"1.0"', '"1e400"'),
    *('"NaN"', '"-0"', '"0.10"', '"1_0"', '"٣"', '"' + "x" * 256 + '"', '"' + "x" * 257 + '"', '"' + "é" * 512 + '"'),
    *('"' + "é" * 513 + '"', '"' + "x" * 1024 + '"', '"' + "x" * 1025 + '"', '"' + "\\u0041" * 1024 + '"'),
    *('"' + "1" * 4001 + '"', '"//[::1"', '"a:b c"', '"%zz"', '"urn:x#y"', '"application/json"', '"text/plain"'),
    *('"1970-01-01T00:00:00Z"', '"1969-12-31T23:59:59.999999Z"', '"2199-12-31T23:59:59.9999999Z"',
      '"2200-01-01T00:00:00Z"'),
    *('"2023-02-29T00:00:00Z"', '"2024-02-29t23:59:59z"', '"2016-12-31T23:59:60Z"', '"2024-01-01T00:00:00+23:59"'),
    *('"2024-01-01T00:00:00.000000999-00:00"', '"2024-01-01 00:00:00Z"', '"2024-01-01T24:00:00Z"',
      '"0000-01-01T00:00:00Z"'),
]  # fmt: skip
OTHERS = [
    *("null", "true", "false", "nul", "True", "{}", "[]", "[{}]", '{"a":1}', '{"":{"":[]}}', "[,]", "[1,]", "/**/1",
      ""),
    *("[" * 61 + "]" * 61, "[" * 63 + "]" * 63, "[" * 64 + "]" * 64, '{"a":' * 62 + "1" + "}" * 62, "[" * 5000, "]",
      "}", "{"),
    *("[" * 5000 + "]" * 5000, "\\u0031", "\u00a0", "\ufeff", "\x00", "undefined", "-", '"a":1', ","),
]  # fmt: skip
NAMES = [
    *("specversion", "id", "source", "type", "time", "subject", "data", "tenantid", "datacontenttype", "dataschema"),
    *("data_base64", "ext", "x" * 50, "x" * 51, "", "Upper", "under_score", "ü", "a b", "\\u0069d", "i\\u0064",
      "id\\u0000"),
]  # fmt: skip
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9][-+.0-9eE]*|true|false|null', re.DOTALL)
_PAIR = re.compile(rb'"(?:[^"\\]|\\.)*"\s*:\s*(?:"(?:[^"\\]|\\.)*"|-?[0-9][-+.0-9eE]*|true|false|null)', re.DOTALL)

Mutation = Callable[[Random, bytes], bytes]


# --- bytes --------------------------------------------------------------------------------------


def flip_bits(rng: Random, data: bytes) -> bytes:
    spoilt = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        if spoilt:
            spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def set_byte(rng: Random, data: bytes) -> bytes:
    """One byte becomes one that means something to JSON, to UTF-8 or to a terminal."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes([rng.choice(b'\x00\x1b\x7f\x80\xc0\xed\xf4\xff"\\{}[],:0-eE. \t\r\n/')]) + data[at + 1 :]


def cut_off(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def cut_away(rng: Random, data: bytes) -> bytes:
    return data[rng.randrange(len(data) + 1) :]


def leave_out(rng: Random, data: bytes) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.choice([1, 1, 2, 5, 30]) :]


def put_in(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    odd = [
        b"\x00",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\xc2\xa0",
        b"\r\n",
        b"\n",
        b"\x1b[31m",
        b"\xf0\x9f",
        b"\\",
        b'"',
    ]
    return data[:at] + rng.choice([*odd, rng.randbytes(rng.randint(1, 8))]) + data[at:]


def repeat(rng: Random, data: bytes) -> bytes:
    start = rng.randrange(len(data) + 1)
    end = start + rng.choice([1, 2, 10, 100])
    return data[:end] + data[start:end] * rng.choice([1, 1, 3]) + data[end:]


BYTES: list[Mutation] = [flip_bits, set_byte, cut_off, cut_away, leave_out, put_in, repeat]


# --- records ------------------------------------------------------------------------------------


def other_token(rng: Random, record: bytes) -> bytes:
    """One string, number or literal becomes another, or something odd."""
    found = list(_TOKEN.finditer(record))
    if not found:
        return put_in(rng, record)
    token = rng.choice(found)
    return record[: token.start()] + _odd(rng) + record[token.end() :]


def _odd(rng: Random) -> bytes:
    return rng.choice(rng.choice([NUMBERS, STRINGS, OTHERS])).encode()


def other_number(rng: Random, record: bytes) -> bytes:
    """One number becomes another, as a number or as a string."""
    found = [match for match in _TOKEN.finditer(record) if match[0][:1] in b"-0123456789"]
    if not found:
        return other_token(rng, record)
    token, number = rng.choice(found), rng.choice(NUMBERS).encode()
    return record[: token.start()] + rng.choice([number, b'"' + number + b'"']) + record[token.end() :]


def pair_twice(rng: Random, record: bytes) -> bytes:
    """A pair comes twice, the second time perhaps with another value: the last counts."""
    found = list(_PAIR.finditer(record))
    if not found:
        return put_in(rng, record)
    pair, at = rng.choice(found), rng.choice(found)
    copy = pair[0] if rng.random() < 0.5 else pair[0].rpartition(b":")[0] + b":" + _odd(rng)
    return record[: at.end()] + b"," + copy + record[at.end() :]


def more_pair(rng: Random, record: bytes) -> bytes:
    at = record.find(b"{", rng.choice([0, 0, len(record) // 2])) + 1
    return record[:at] + b'"' + rng.choice(NAMES).encode() + b'":' + _odd(rng) + b"," + record[at:]


def other_name(rng: Random, record: bytes) -> bytes:
    found = list(re.finditer(rb'"((?:[^"\\]|\\.)*)"(?=\s*:)', record))
    if not found:
        return put_in(rng, record)
    name = rng.choice(found)
    return record[: name.start(1)] + rng.choice(NAMES).encode() + record[name.end(1) :]


def escaped(rng: Random, record: bytes) -> bytes:
    """A character of a string is spelt as an escape: that changes nothing, or what it names."""
    found = [match for match in _TOKEN.finditer(record) if match[0][:1] == b'"' and len(match[0]) > 2]
    if not found:
        return put_in(rng, record)
    at = rng.choice(found).start() + 1
    return (
        record[:at]
        + rng.choice([b"\\u%04x" % record[at], b"\\u%04X" % record[at], b"\\" + record[at : at + 1]])
        + record[at + 1 :]
    )


def stretched(rng: Random, record: bytes) -> bytes:
    """An attribute, or another string, gets as long as some attribute may be, or a character longer."""
    found = list(re.finditer(rb'"(?:id|source|subject|type|tenantid|x1)"\s*:\s*"([^"\\]*)"', record))
    found = found or list(re.finditer(rb'"([^"\\]*)"', record))
    if not found:
        return put_in(rng, record)
    string = rng.choice(found)
    length = rng.choice([100, 101, 256, 257, 512, 513, 1024, 1025]) - len(string[1].decode("utf-8", "replace"))
    return record[: string.end(1)] + rng.choice(["x", "0", "é", "😀"]).encode() * length + record[string.end(1) :]


def swapped(rng: Random, record: bytes) -> bytes:
    """Two tokens change places."""
    found = list(_TOKEN.finditer(record))
    if len(found) < 2:
        return put_in(rng, record)
    first, second = sorted(rng.sample(found, 2), key=lambda match: match.start())
    return (
        record[: first.start()] + second[0] + record[first.end() : second.start()] + first[0] + record[second.end() :]
    )


def encoded(rng: Random, record: bytes) -> bytes:
    """The record in another encoding, or behind a byte order mark."""
    text = record.decode("utf-8", "replace")
    return rng.choice(
        [
            b"\xef\xbb\xbf" + record,
            text.encode("utf-16"),
            text.encode("utf-16-be"),
            text.encode("utf-32"),
            text.encode("latin-1", "replace"),
            text.encode("utf-7"),
        ]
    )


def wrapped(rng: Random, record: bytes) -> bytes:
    before, after = rng.choice(
        [
            (b"[", b"]"),
            (b'"', b'"'),
            (b"{", b"}"),
            (b"", b","),
            (b"", record),
            (b"\r", b"\r"),
            (b"", b"\x00"),
            (b"\x0c", b""),
        ]
    )
    return before + record + after


RECORDS: list[Mutation] = [
    *(other_token, other_token, other_token, other_number, other_number, other_number, pair_twice, pair_twice),
    *(more_pair, stretched, stretched, other_name, escaped, escaped, swapped, encoded, wrapped),
]  # fmt: skip


def mutated(rng: Random, record: bytes) -> bytes:
    """A record that one to three mutations have spoilt, or not."""
    for _ in range(rng.choice([1, 1, 1, 1, 2, 3])):
        record = rng.choice(RECORDS if rng.random() < 0.85 else BYTES)(rng, record)
    return record


# --- files --------------------------------------------------------------------------------------


def in_other_encoding(rng: Random, data: bytes) -> bytes:
    encoding = rng.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "utf-8-sig", "latin-1", "utf-7"])
    return data.decode("utf-8", "replace").encode(encoding, "replace")


def with_other_line_ends(rng: Random, data: bytes) -> bytes:
    return data.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n", b"\r\n\r\n", b"\x0b", b"\xe2\x80\xa8", b" \n\t"]))


def with_blanks(rng: Random, data: bytes) -> bytes:
    return rng.choice(
        [b"\n" * 5000 + data, data + b" " * 5000, b" \t\r\n" * 30 + data, b"\xef\xbb\xbf" + b"\n" * 50 + data]
    )


def with_a_long_line(rng: Random, data: bytes) -> bytes:
    length = rng.choice([1_048_576, 1_048_577, 3_000_000])
    line = rng.choice([b"x" * length, b'{"a":"' + b"y" * (length - 8) + b'"}', b" " * length, b"[" * length])
    at = data.find(b"\n", rng.randrange(len(data) + 1)) + 1
    return data[:at] + line + b"\n" + data[at:]


def nothing(rng: Random, data: bytes) -> bytes:
    return rng.choice(
        [
            b"",
            b"\n",
            b" ",
            b"\x00",
            b"\xef\xbb\xbf",
            b"[",
            b"[]",
            b"]",
            b"[]]",
            b"{",
            b"\x1f\x8b",
            b"PAR1",
            b"\xff\xfe",
            b"[\n]\n",
        ]
    )


def binary(rng: Random, data: bytes) -> bytes:
    return rng.randbytes(rng.choice([1, 4, 100, 5000]))


TEXTS: list[Mutation] = [
    *BYTES,
    in_other_encoding,
    with_other_line_ends,
    with_blanks,
    with_a_long_line,
    nothing,
    binary,
]


def gzipped(rng: Random, data: bytes) -> bytes:
    return gzip.compress(data, rng.choice([0, 1, 9]), mtime=0)


def zstandard_frames(rng: Random, data: bytes) -> bytes:
    """Frames of all kinds: with and without checksum and size, cut into several blocks, skippable ones in between."""
    at = rng.randrange(len(data) + 1)
    frames = b""
    for part in rng.choice([[data], [data[:at], data[at:]], [data, b""]]):
        if rng.random() < 0.4:
            note = rng.randbytes(rng.choice([0, 4, 300]))
            frames += bytes([0x50 + rng.randrange(16)]) + b"\x2a\x4d\x18" + len(note).to_bytes(4, "little") + note
        checksum, size = rng.random() < 0.5, rng.random() < 0.5
        frames += zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=size).compress(part)
    return frames


COMPRESSIONS: list[Mutation] = [gzipped, zstandard_frames]


def spoilt_file(rng: Random, data: bytes) -> bytes:
    """A file of text, damaged before or after it was compressed, or put together of such."""
    if rng.random() < 0.7:
        data = rng.choice(TEXTS)(rng, data)
    if rng.random() < 0.5:
        compress = rng.choice(COMPRESSIONS)
        data = compress(rng, data)
        if rng.random() < 0.5:
            data += rng.choice([compress(rng, b""), compress(rng, b"{}\n"), b"\x00" * 512, b"garbage", b"\n", data])
        if rng.random() < 0.6:
            data = rng.choice([cut_off, cut_off, flip_bits, set_byte, leave_out, put_in, repeat])(rng, data)
    return data
