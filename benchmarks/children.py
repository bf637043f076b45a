"""Work in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any


def in_child(work: Callable[..., Any], *arguments: Any) -> Any:
    """An embedded database serves one process at a time, and until this ends."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)
