"""Libraries that others load where they are installed, and that nothing here calls: half of a command's start."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

# Arrow and Beam look whether pandas is there; the others are for sources, sinks and a runner that Beam has.
UNUSED = {"pandas", "pymongo", "apitools"}
UNUSED |= {f"google.cloud.{name}" for name in ("storage", "bigquery", "bigquery_storage_v1", "dataflow")}


class _Spared(MetaPathFinder):
    """Says of some modules that they are not installed."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name in UNUSED:
            raise ModuleNotFoundError(f"{name} is not needed here", name=name)


def spare() -> None:
    """Do not load what is unused, in this process. Dataflow stages files on Google Cloud Storage, and must not ask."""
    sys.meta_path.insert(0, _Spared())
