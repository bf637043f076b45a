"""Imports point one way: schemas ← transforms/rules ← transforms ← pipelines ← runners."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("schemas", "transforms.rules", "transforms", "pipelines", "runners")
PACKAGES = ("schemas", "transforms", "pipelines", "runners")
OUTSIDE = ("tests", "benchmarks", "examples")

# A rule is a function of its arguments: no runner, database, clock, chance, file or process.
IMPURE = {
    *("apache_beam", "clickhouse_connect", "chdb", "pyarrow", "time", "random", "secrets", "uuid", "os", "io", "sys"),
    *("pathlib", "shutil", "tempfile", "socket", "urllib", "http", "requests", "subprocess", "threading", "asyncio"),
    *("multiprocessing", "logging", "sqlite3", "yaml", "google", "grpc"),
}
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "now", "today", "utcnow", "monotonic", "perf_counter"}
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
# Time zones come from the pinned `tzdata` package: a table that is part of the code.
ALLOWED = {("transforms/rules/periods.py", "open")}
RULES = [file for file in FILES if file.is_relative_to(ROOT / "transforms" / "rules")]


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            # `from meterline.schemas import catalog` names a module or something in one.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(module: str) -> int:
    """The place of `schemas.event`, `transforms.rules.money` … among the layers."""
    places = [place for place, layer in enumerate(LAYERS) if f"{module}.".startswith(f"{layer}.")]
    return min(places)


def problems(module: str, source: str) -> Iterator[str]:
    """What a module of this name, such as `transforms.rules.money`, may not import."""
    for imported in imports(ast.parse(source)):
        top, _, rest = imported.partition(".")
        if top in PACKAGES:
            yield f"{imported}: import meterline.{imported}, a bare import loads the module twice"
        elif top in OUTSIDE:
            yield f"{imported}: {top} may not be needed to run"
        elif top == "meterline" and rest.partition(".")[0] in OUTSIDE:
            yield f"{imported}: {rest.partition('.')[0]} may not be needed to run"
        elif top == "meterline" and layer_of(rest) > layer_of(module):
            yield f"{imported}: {LAYERS[layer_of(module)]} may not import {LAYERS[layer_of(rest)]}"


def impurities(source: str, file: str = "") -> Iterator[str]:
    tree = ast.parse(source)
    for imported in imports(tree):
        if imported.partition(".")[0] in IMPURE:
            yield f"imports {imported}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in IMPURE_CALLS and (file, called) not in ALLOWED:
                yield f"line {node.lineno}: calls {called}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_point_down(file: Path) -> None:
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    assert list(problems(module, file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("file", RULES, ids=name_of)
def test_rules_are_pure(file: Path) -> None:
    assert list(impurities(file.read_text(encoding="utf-8"), name_of(file))) == []


@pytest.mark.parametrize("file", sorted((ROOT / "tests").rglob("*.py")), ids=name_of)
def test_tests_load_each_module_once(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    bare = [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    bare += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    assert [name for name in bare if name.partition(".")[0] in PACKAGES] == []


def test_each_file_of_tests_is_a_module_of_its_own() -> None:
    # pytest names a file outside a package by its stem alone, and refuses the second of a name.
    outside = [file for file in (ROOT / "tests").rglob("test_*.py") if not (file.parent / "__init__.py").exists()]
    twice = [stem for stem, count in Counter(file.stem for file in outside).items() if count > 1]
    assert twice == []


def test_the_auditor_shares_nothing_with_what_it_audits() -> None:
    for name in ("auditor.py", "generator.py"):
        source = (ROOT / "tests" / "simulation" / name).read_text(encoding="utf-8")
        tree = ast.parse(source)
        modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        assert not [module for module in modules if module.startswith("meterline")], name


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("schemas.event", "from meterline.transforms import scan"),
        ("schemas.event", "import meterline.runners.cli"),
        ("transforms.rules.money", "from meterline.transforms.scan import Scanner"),
        ("transforms.rules.money", "from meterline.transforms import scan"),
        ("transforms.scan", "def f():\n    from meterline.pipelines import rate_usage"),
        ("pipelines.rate_usage", "from meterline.runners import direct"),
        ("runners.cli", "from schemas.event import Event"),
        ("runners.cli", "import transforms"),
        ("transforms.scan", "from tests import strategies"),
    ],
)
def test_an_import_that_points_up_is_found(module: str, source: str) -> None:
    assert len(list(problems(module, source))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("runners.cli", "from meterline.schemas.event import Event\nimport meterline.pipelines.rate_usage"),
        ("transforms.rate", "from meterline.transforms.rules.rating import charge"),
        (
            "transforms.rules.money",
            "from meterline.transforms.rules import pricing\nfrom meterline.schemas import event",
        ),
    ],
)
def test_an_import_that_points_down_is_not(module: str, source: str) -> None:
    assert list(problems(module, source)) == []


@pytest.mark.parametrize("source", ["import time", "from random import Random", "x = datetime.now(UTC)", "open('x')"])
def test_an_impure_rule_is_found(source: str) -> None:
    assert len(list(impurities(source))) == 1
