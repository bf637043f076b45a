"""Bodies of HTTP messages: as they come (chunked, compressed, in several parts) and as they go."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from email.message import Message
from email.parser import BytesHeaderParser
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

PIECE = 1 << 20
# By the name in HTTP, what Arrow calls it; the ones before are preferred.
_CODECS = {"zstd": "zstd", "lz4": "lz4", "br": "brotli", "gzip": "gzip", "bz2": "bz2"}


class BodyError(Exception):
    """A body that cannot be read: its end is missing, or it is not what its headers say."""


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Incoming(io.RawIOBase):
    """A request's body without its framing.

    Args:
      source: The connection.
      length: Bytes to come; None for a chunked body.
    """

    def __init__(self, source: Any, length: int | None) -> None:
        self._source = source
        self._chunked = length is None
        self._left = length or 0
        self.ended = length == 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Up to so many bytes; none at the end.

        Raises:
          BodyError: the connection ends first.
        """
        if self._chunked and not self._left and not self.ended:
            self._next_chunk()
        if self.ended:
            return b""
        data = self._source.read1(min(self._left, size if size > 0 else PIECE))
        if not data:
            raise BodyError("the connection ended in the middle of the request's body")
        self._left -= len(data)
        if not self._left:
            if self._chunked:
                if self._line():
                    raise BodyError("a chunk of the request's body is longer than it says")
            else:
                self.ended = True
        return data

    def _next_chunk(self) -> None:
        size = self._line().split(b";")[0].strip()
        if not re.fullmatch(rb"[0-9a-fA-F]{1,15}", size):
            raise BodyError(f"expected the size of a chunk of the request's body, got {size[:20]!r}")
        self._left = int(size, 16)
        if not self._left:
            self.ended = True
            while self._line():
                pass

    def _line(self) -> bytes:
        line = self._source.readline(65537)
        if not line.endswith(b"\n"):
            raise BodyError("the connection ended in the middle of the request's body")
        return line.rstrip(b"\r\n")


class _Inflating:
    """zlib's format, which HTTP calls deflate."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._inflate = zlib.decompressobj()

    def read(self, size: int, /) -> bytes:
        while not self._inflate.eof:
            data = self._inflate.unconsumed_tail or self._source.read(size)
            if not data:
                raise OSError("Truncated compressed stream")
            if plain := self._inflate.decompress(data, size):
                return plain
        return b""


def decoded(body: Incoming, encoding: str) -> Readable:
    """The body without its Content-Encoding.

    Raises:
      BodyError: the encoding is unknown; when reading, that the data is not of it, or breaks off.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding == "deflate":
        return _Guarded(_Inflating(body))
    if encoding not in _CODECS:
        raise BodyError(f"expected a Content-Encoding out of {', '.join(_CODECS)}, deflate, got {encoding!r}")
    return _Guarded(pa.CompressedInputStream(pa.PythonFile(body, mode="r"), _CODECS[encoding]))


class _Guarded:
    def __init__(self, source: Readable) -> None:
        self._source = source

    def read(self, size: int, /) -> bytes:
        try:
            return self._source.read(size)
        except (OSError, zlib.error, pa.ArrowException) as error:
            raise BodyError(f"the compressed body of the request cannot be read: {error}") from None


def pieces(body: Readable) -> Iterator[bytes]:
    while data := body.read(PIECE):
        yield data


def accepted(header: str) -> str | None:
    """The encoding to answer in, of those that an Accept-Encoding asks for."""
    asked = {}
    for one in header.lower().split(","):
        name, _, quality = one.partition(";")
        asked[name.strip()] = quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return next((name for name in _CODECS if asked.get(name)), None)


class Outgoing(io.RawIOBase):
    """A response's body: compressed if asked, in chunks if its length is not known.

    Args:
      sink: The connection.
    """

    def __init__(self, sink: Any, encoding: str | None, *, chunked: bool) -> None:
        self._sink = sink
        self._chunked = chunked
        file = pa.PythonFile(_Raw(self._send), mode="w") if encoding else None
        self._compress = pa.CompressedOutputStream(file, _CODECS[encoding]) if encoding else None

    def write(self, data: Any, /) -> int:
        (self._compress.write if self._compress else self._send)(data)
        return len(data)

    def end(self, *, broken: bool = False) -> None:
        """Of the body; a broken one lacks the last chunk, so that no client takes it for whole."""
        if self._compress:
            self._compress.close()
        if self._chunked and not broken:
            self._sink.write(b"0\r\n\r\n")

    def _send(self, data: Any) -> None:
        if not self._chunked:
            self._sink.write(data)
        elif len(data):
            self._sink.write(b"%x\r\n" % len(data))
            self._sink.write(data)
            self._sink.write(b"\r\n")


class _Raw(io.RawIOBase):
    def __init__(self, send: Any) -> None:
        self._send = send

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._send(data)
        return len(data)


def compressed(data: Any, encoding: str) -> bytes:
    """A whole body."""
    sink = io.BytesIO()
    whole = Outgoing(sink, encoding, chunked=False)
    whole.write(data)
    whole.end()
    return sink.getvalue()


class Part(NamedTuple):
    """Of a multipart body: a field of the form, or a file's rows."""

    name: str
    is_file: bool
    data: bytes


def parts(content_type: str, body: bytes) -> list[Part]:
    """The parts of a multipart/form-data body.

    Raises:
      BodyError: it is none.
    """
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str):
        raise BodyError(f"expected a boundary in the Content-Type, got {content_type!r}")
    found: list[Part] = []
    # The first stands at the start, where no line ends before it.
    for one in (b"\r\n" + body).split(b"\r\n--" + boundary.encode())[1:]:
        if one.startswith(b"--"):
            return found
        head, blank, data = one.partition(b"\r\n\r\n")
        headers = BytesHeaderParser().parsebytes(head.lstrip(b"\r\n"))
        name = headers.get_param("name", header="Content-Disposition")
        if not blank or not isinstance(name, str):
            break
        is_file = headers.get_param("filename", header="Content-Disposition") is not None
        found.append(Part(name, is_file, data))
    raise BodyError("the body is not the multipart/form-data that its Content-Type says")
