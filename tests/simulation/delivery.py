"""How a world's records come in, and how one run of the job treats them: nothing of it may change an amount."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import zstandard

from meterline.pipelines import rate_usage
from meterline.runners import direct
from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_files import load_catalog
from meterline.transforms import meter, rate, read, validate
from meterline.transforms.scan import Scanner

from .generator import World, write_catalog

Writer = Callable[[list[bytes]], bytes]


def lines(records: list[bytes]) -> bytes:
    return b"".join(record + b"\n" for record in records)


def array(records: list[bytes]) -> bytes:
    return b"[" + b" ,\n".join(records) + b"]\n"


FORMATS: dict[str, Writer] = {
    "ndjson": lines,
    "open": lambda records: lines(records).removesuffix(b"\n"),
    "crlf": lambda records: b"\n".join(record + b"\r" for record in records) + b"\n\r\n\n",
    "gz": lambda records: gzip.compress(lines(records), compresslevel=1),
    "zst": lambda records: zstandard.compress(lines(records)),
    "two_gz": lambda records: b"".join(gzip.compress(lines(half)) for half in (records[::2], records[1::2])),
    "array": array,
    "array_gz": lambda records: gzip.compress(array(records)),
}


@dataclass(frozen=True)
class Treatment:
    """What an operator, or a runner, is free to choose."""

    shards: int = 1
    vectorised: bool = True
    block_bytes: int = read.BLOCK_BYTES
    panes_apart: bool = False  # the usage of each block is rated on its own, as in a stream

    @classmethod
    def random(cls, rng: Random) -> Treatment:
        return cls(rng.choice([1, 3]), rng.random() < 0.8, rng.choice([700, 5000, 1 << 20]), rng.random() < 0.5)


def one_file(world: World, folder: Path) -> tuple[list[bytes], Path]:
    """All records in one file, in an order of arrival: where there are conflicts the first must stay the first."""
    records = _fit_for_lines(world.records)
    return records, _write(folder / "records", lines(records))


def many_files(world: World, folder: Path, rng: Random) -> tuple[list[bytes], list[Path]]:
    """The records shuffled, some of them twice, cut into files of all formats; what is in the files, and the files."""
    records = world.records + rng.sample(world.records, len(world.records) // 8)
    rng.shuffle(records)
    cuts = sorted(rng.randrange(len(records)) for _ in range(rng.randint(0, 5)))
    paths: list[Path] = []
    # What no array can hold goes into a last file of lines, with a record that may stand first in it.
    unfit: list[bytes] = []
    spare = [next(record for record in records if _may_come_first(record))]
    for number, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(records)])):
        name = rng.choice(list(FORMATS))
        part = records[start:end]
        if name.startswith("array"):
            unfit += [record for record in part if not _fits_an_array(record)]
            part = [record for record in part if _fits_an_array(record)]
        elif not any(_may_come_first(record) for record in part):
            unfit, part = unfit + part, []
        if part:
            content = FORMATS[name](part if name.startswith("array") else _fit_for_lines(part))
            paths.append(_write(folder / f"{number}.{name}", content))
    if unfit:
        paths.append(_write(folder / "rest.ndjson", lines(_fit_for_lines([*unfit, *spare]))))
        records = [*records, *spare]
    return records, paths


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _fit_for_lines(records: list[bytes]) -> list[bytes]:
    """A file that begins with `[` is an array, and a byte order mark at its beginning belongs to the file."""
    for place, record in enumerate(records):
        if _may_come_first(record):
            return [record, *records[:place], *records[place + 1 :]]
    raise AssertionError(f"no record of {len(records)} can be a file's first line")


def _may_come_first(record: bytes) -> bool:
    return not record.lstrip(b" \t\r").startswith((b"[", b"\xef\xbb\xbf"))


def _fits_an_array(record: bytes) -> bool:
    """Whether it is JSON that a list can hold and give back byte by byte."""
    try:
        json.loads(record.decode())
    except (ValueError, RecursionError):
        return False
    return record == record.strip(b" \t\r\n")


def load(world: World, folder: Path) -> Catalog:
    write_catalog(world.catalog, folder)
    return load_catalog(folder)


def run(world: World, catalog: Catalog, paths: list[Path], url: str, how: Treatment) -> dict[str, int]:
    """One run of the job; its counters."""
    options = rate_usage.Options(
        inputs=tuple(map(str, paths)),
        catalog=catalog,
        clickhouse=url,
        received_time=microseconds(world.received),
        horizon=world.horizon,
        shards=how.shards,
    )
    with _treated(how):
        return direct.run(lambda pipeline: rate_usage.build(pipeline, options))


def microseconds(moment: datetime) -> int:
    elapsed = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds


@contextmanager
def _treated(how: Treatment) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "BLOCK_BYTES", how.block_bytes)
        if not how.vectorised:
            patch.setattr(validate, "Scanner", partial(Scanner, vectorised=False))
        if how.panes_apart:
            patch.setattr(meter, "_MAX_CELLS", 0)
            patch.setattr(meter, "_HELD_SLOTS", 0)
            # The classes stay: one of another name would be pickled with all it calls, and planted defects not be seen.
            patch.setattr(rate.RateUsage, "expand", _keeping(rate.RateUsage.expand))
            patch.setattr(rate._ShardFn, "process", _each_apart(rate._ShardFn.process))
        yield


def _keeping(expand: Any) -> Any:
    return lambda self, usage: expand(replace(self, keep=timedelta(days=1)), usage)


def _each_apart(process: Any) -> Any:
    def alone(self: rate._ShardFn, keyed: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        return [*process(self, keyed), *(element.value for element in self.finish_bundle())]

    return alone
