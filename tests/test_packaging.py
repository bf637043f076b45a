"""The wheel holds all that is needed, under one name, and works beside other people's `transforms/`."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution of a copy of what is released, so that the working folder stays as it is.

    A source distribution that lacks something gives a wheel that lacks it.
    """
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    copy.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    )
    for name in listed.stdout.decode().splitlines():
        if not name.startswith(("tests/", "benchmarks/", "docs/")) and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(copy)]
    built = subprocess.run(command, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def described(wheel: Path, names: list[str], file: str) -> Message:
    (place,) = [name for name in names if name.endswith(f".dist-info/{file}")]
    return email.message_from_bytes(zipfile.ZipFile(wheel).read(place))


def test_everything_is_under_one_name(names: list[str]) -> None:
    """`schemas` or `transforms` in site-packages would collide with any other project's."""
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"meterline"}
    assert not [name for name in names if name.startswith("meterline/tests") or "__pycache__" in name]


@pytest.mark.parametrize("package", ["schemas", "transforms", "pipelines", "runners"])
def test_every_module_is_there(names: list[str], package: str) -> None:
    modules = {f"meterline/{path.relative_to(ROOT)}" for path in (ROOT / package).rglob("*.py")}
    assert modules
    assert modules - set(names) == set()


@pytest.mark.skipif(
    shutil.which("cc") is None, reason="no C compiler (cc) here: the wheel does without the compiled loops"
)
def test_the_compiled_loops_are_there(names: list[str]) -> None:
    assert [name for name in names if name.startswith("meterline/transforms/compiled.")]


def test_files_that_are_no_modules_are_there(names: list[str]) -> None:
    migrations = {f"meterline/{path.relative_to(ROOT)}" for path in (ROOT / "schemas" / "clickhouse").glob("*.sql")}
    assert len(migrations) >= 8
    assert migrations - set(names) == set()
    assert {"meterline/schemas/py.typed", "meterline/runners/dataflow/template/metadata.json"} <= set(names)
    quickstart = [path for path in (ROOT / "examples" / "quickstart").rglob("*") if path.is_file()]
    assert len(quickstart) > 4
    assert {f"meterline/{path.relative_to(ROOT)}" for path in quickstart} - set(names) == set()


def test_the_wheel_says_what_it_is(wheel: Path, names: list[str]) -> None:
    about = described(wheel, names, "METADATA")
    assert (about["Name"], about["Version"]) == ("meterline", PROJECT["version"])
    assert about["Requires-Python"] == PROJECT["requires-python"] or set(about["Requires-Python"].split(",")) == set(
        PROJECT["requires-python"].split(",")
    )
    assert about["License-Expression"] == "Apache-2.0"
    assert any(name.endswith("LICENSE") for name in names)
    script = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert "meterline = meterline.runners.cli:main" in script


def run(unpacked: Path, folder: Path, code: str) -> str:
    """What Python prints in a folder, with the wheel's content in front of everything else."""
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_it_works_beside_another_transforms_folder(unpacked: Path, tmp_path: Path) -> None:
    for name in ("transforms", "schemas", "pipelines", "runners", "examples"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('somebody else')", encoding="utf-8")
    code = (
        "import meterline.runners.cli as cli, meterline.pipelines.rate_usage, meterline.pipelines.invoice_accounts\n"
        "from meterline.transforms.clickhouse import migrations\n"
        "import sys\n"
        "print(cli.__file__, len(migrations()))\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('schemas', 'transforms', 'runners')])"
    )
    where, bare = run(unpacked, tmp_path, code).splitlines()
    assert (
        where
        == f"{unpacked / 'meterline' / 'runners' / 'cli.py'} {len(list((ROOT / 'schemas/clickhouse').glob('*.sql')))}"
    )
    assert bare == "[]"


def test_the_command_starts_from_the_wheel(unpacked: Path, tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['meterline', '--help']; from meterline.runners.cli import main; main()"
    assert "rate" in run(unpacked, tmp_path, code)


def test_a_source_distribution_installs_where_there_is_no_compiler(wheel: Path, tmp_path: Path) -> None:
    """As workers on Dataflow install what was staged for them, in an environment of their own."""
    (source,) = wheel.parent.glob("*.tar.gz")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--no-cache-dir", "--target", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", *options, str(source)],
        env={**os.environ, "CC": "/nowhere/cc"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert list((tmp_path / "meterline" / "transforms").glob("compiled.*so")) == []
    code = (
        "import sys; sys.modules['meterline.transforms.compiled'] = None  # Nor one that lies elsewhere.\n"
        "import meterline.transforms.scan as scan, meterline.runners.dataflow.template.__main__\n"
        "print(scan.__file__)"
    )
    assert run(tmp_path, tmp_path, code).strip() == str(tmp_path / "meterline" / "transforms" / "scan.py")
