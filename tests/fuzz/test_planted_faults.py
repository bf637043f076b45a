"""The fuzzer can fail: each fault here is put into the real code, and the first round must find it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from meterline.schemas import event
from meterline.transforms import read, scan
from tests.command import Command

from . import test_records_and_files as fuzzer


def a_surrogate_is_let_through(patch: pytest.MonkeyPatch) -> None:
    for module in (event, scan):
        patch.setattr(module, "FORBIDDEN_CHARACTERS", re.compile("[\u0000-\u001f\u007f-\u009f]"))


def a_bound_is_off_by_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(event, "MAX_NUMBER_CHARACTERS", event.MAX_NUMBER_CHARACTERS - 1)


def the_end_of_cut_data_is_not_told(patch: pytest.MonkeyPatch) -> None:
    chunks = read._chunks

    def silent(file: IO[bytes], compression: str | None, position: int) -> Iterator[bytes]:
        try:
            yield from chunks(file, compression, position)
        except read.Unreadable:
            return

    patch.setattr(read, "_chunks", silent)


FAULTS: list[tuple[Callable[[pytest.MonkeyPatch], None], Any]] = [
    (a_surrogate_is_let_through, fuzzer.test_each_mutated_record_has_its_verdict),
    (a_bound_is_off_by_one, fuzzer.test_each_mutated_record_has_its_verdict),
    (the_end_of_cut_data_is_not_told, fuzzer.test_each_damaged_file_is_read_as_far_as_it_goes),
]


@pytest.mark.parametrize(("plant", "fuzz"), FAULTS, ids=[plant.__name__ for plant, _ in FAULTS])
def test_the_fuzzer_finds(plant: Any, fuzz: Any, meterline: Command, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        with pytest.raises(AssertionError, match="METERLINE_FUZZ_ROUND=0"):
            fuzz(0, meterline, tmp_path)
