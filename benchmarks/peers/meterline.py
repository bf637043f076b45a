"""The main job as `meterline rate` runs it when it finds an empty database."""

from __future__ import annotations

from meterline.pipelines.rate_usage import Options, build
from meterline.runners.direct import run
from meterline.schemas.catalog import Catalog


def job(source: str, catalog: Catalog, url: str, received: int) -> dict[str, int]:
    """Rate a file of events into the tables; the counters."""
    options = Options((source,), catalog, url, received, has_archive=False)
    return run(lambda pipeline: build(pipeline, options))
