"""What the launcher of the Flex Template runs: `python -m meterline.runners.dataflow.template --subscription=… …`.

Its own parameters are those of metadata.json. All others are Beam's: Dataflow's launcher adds the project, the region,
the job's name, the bucket and where the job's description is to be written, which it submits itself.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from google.api_core.exceptions import GoogleAPIError
from google.auth.exceptions import GoogleAuthError

from meterline.runners.dataflow import jobs
from meterline.runners.dataflow.place import DataflowError
from meterline.runners.dataflow.rate import start
from meterline.runners.jobs import InputError
from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_files import CatalogError, load_catalog
from meterline.transforms.catalogs import ChangedCatalogError
from meterline.transforms.clickhouse import DatabaseError

_SECRET = r"projects/[^/]+/secrets/[^/]+/versions/[^/]+"
_SAID = {"true": True, "false": False}


def parameters() -> argparse.ArgumentParser:
    """The parameters of the template, the same as in metadata.json."""
    parser = argparse.ArgumentParser(prog="meterline.runners.dataflow.template", allow_abbrev=False)
    parser.add_argument("--subscription", required=True)
    parser.add_argument("--catalog", required=True)
    parser.add_argument("--clickhouse", required=True)
    parser.add_argument("--max_age_days", type=int, default=35)
    parser.add_argument("--resume", choices=_SAID, default="false")
    parser.add_argument("--sdk_container_image", required=True)
    return parser


def run(words: Sequence[str]) -> None:
    """Begin a run, or go on with the last one, and write the job's description, or submit it."""
    given, beams = parameters().parse_known_args(words)
    image = f"--sdk_container_image={given.sdk_container_image}"
    chosen = PipelineOptions([*beams, image, "--runner=DataflowRunner", "--streaming"])
    jobs.check_laws(chosen)
    with tempfile.TemporaryDirectory() as folder:
        catalog = catalog_of(given.catalog, Path(folder))
    start(
        given.subscription,
        catalog,
        database(given.clickhouse),
        chosen,
        print,
        resumes=_SAID[given.resume],
        horizon=timedelta(days=given.max_age_days),
    )


def catalog_of(folder: str, copy: Path) -> Catalog:
    """The catalog of a folder of a bucket.

    Raises:
      InputError: the folder cannot be read, or is empty; CatalogError: the catalog has mistakes.
    """
    root = folder.rstrip("/") + "/"
    try:
        files = [one.path for one in FileSystems.match([root + "**"])[0].metadata_list]
        for path in files:
            to = copy / path.removeprefix(root)
            if path.endswith("/"):  # What consoles make for a folder.
                continue
            to.parent.mkdir(parents=True, exist_ok=True)
            with FileSystems.open(path) as source:
                to.write_bytes(source.read())
    except (BeamIOError, GoogleAPIError, GoogleAuthError, OSError, ValueError) as error:
        raise InputError(f"--catalog {folder}: cannot be read: {' '.join(str(error).split())}") from None
    if not files:
        raise InputError(f"--catalog {folder}: no files in there; expected a folder of YAML files")
    return load_catalog(copy)


def database(given: str) -> str:
    """The database's URL, itself or of the secret that is named: parameters of a template can be read by many.

    Raises:
      DataflowError: the secret cannot be read.
    """
    if not re.fullmatch(_SECRET, given):
        return given
    from google.cloud import secretmanager

    try:
        version = secretmanager.SecretManagerServiceClient().access_secret_version(name=given)
    except (GoogleAPIError, GoogleAuthError) as error:
        raise DataflowError(
            f"the secret {given} cannot be read: {error}. The launcher's service account needs "
            "roles/secretmanager.secretAccessor"
        ) from None
    return str(version.payload.data.decode()).strip()


def main(words: Sequence[str]) -> int:
    """The same with the exit codes of `meterline`: the launcher's log shows the sentence."""
    try:
        run(words)
    except (DataflowError, InputError, CatalogError, ChangedCatalogError, DatabaseError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code if isinstance(error, DataflowError) else 3 if isinstance(error, DatabaseError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
