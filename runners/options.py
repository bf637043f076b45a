"""Options that several commands have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from meterline.transforms.rules.money import RoundingMode

DEFAULT_DATABASE = "chdb://meterline-db"
Url = Annotated[
    str,
    typer.Option(
        "--clickhouse",
        envvar="METERLINE_CLICKHOUSE",
        help="chdb://FOLDER (embedded, one process) or http(s)://user:password@host:8123/database.",
    ),
]
CatalogFolder = Annotated[
    Path, typer.Option("--catalog", envvar="METERLINE_CATALOG", help="Folder of the catalog's YAML files.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Now = Annotated[
    str | None,
    typer.Option("--now", help="The instant this run counts as now (RFC 3339); default: the clock. Give it to replay."),
]


class Rounding(StrEnum):
    half_even = "half_even"
    half_up = "half_up"

    @property
    def mode(self) -> RoundingMode:
        return "half_even" if self is Rounding.half_even else "half_up"
