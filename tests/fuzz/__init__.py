"""Bad input at the edges; how much of it, and how to see one round again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

ROUNDS = range(max(1, int(os.environ.get("METERLINE_FUZZ", "10000")) // 500))
if "METERLINE_FUZZ_ROUND" in os.environ:
    ROUNDS = range(int(os.environ["METERLINE_FUZZ_ROUND"]), int(os.environ["METERLINE_FUZZ_ROUND"]) + 1)


@contextmanager
def replayable(round: int, test: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        command = f"METERLINE_FUZZ_ROUND={round} python -m pytest tests/fuzz -k {test}"
        raise AssertionError(f"round {round}: {error}\nreplay it: {command}") from error
