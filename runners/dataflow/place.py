"""Where a Dataflow job goes."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PROJECT = r"[a-z][-a-z0-9:.]{4,61}[a-z0-9]"
_REGION = r"[a-z]+-[a-z]+[0-9]+"
_FOLDER = r"gs://[a-z0-9][-_.a-z0-9]+[a-z0-9](/[^\r\n]*)?"


class DataflowError(Exception):
    """Dataflow cannot be used as it was asked for, or does not answer.

    Args:
      code: The exit code of a command that it ends.
    """

    def __init__(self, message: str, code: int = 3) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Place:
    """A project, a region and folders of a bucket.

    Args:
      staging_location: For what workers load: the pipeline, with the database's password, and packages.
      temp_location: For what Dataflow stores meanwhile; default: `staging_location`.

    Raises:
      DataflowError: one is missing or cannot be; nothing was asked yet.
    """

    project: str | None
    region: str | None
    staging_location: str | None
    temp_location: str | None = None

    def __post_init__(self) -> None:
        checks = {
            "project": (_PROJECT, "the id of a project, like my-project (not its number)"),
            "region": (_REGION, "a region, like europe-west1"),
            "staging_location": (_FOLDER, "a folder of a bucket, like gs://my-bucket/staging"),
        }
        if self.temp_location:
            checks["temp_location"] = (_FOLDER, "a folder of a bucket, like gs://my-bucket/temp")
        wrong = []
        for name, (form, expected) in checks.items():
            came = getattr(self, name)
            if not came:
                wrong.append(f"--{name.replace('_', '-')} is missing: expected {expected}")
            elif not re.fullmatch(form, came):
                wrong.append(f"--{name.replace('_', '-')}: expected {expected}, got {came!r}")
            elif form is _FOLDER and came.count("/") == 2:
                object.__setattr__(self, name, came + "/")  # As Beam wants the bucket alone.
        if wrong:
            raise DataflowError("on Dataflow: " + "; ".join(wrong), code=2)
        if not self.temp_location:
            object.__setattr__(self, "temp_location", self.staging_location)
