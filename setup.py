"""Maps the top-level folders under one import name: `schemas/` is `meterline.schemas`, and so on.

Four generic names in site-packages would collide with any other project's `schemas` or
`transforms`. The tools' settings and the dependencies are in pyproject.toml.
"""

from pathlib import Path

from setuptools import find_packages, setup

FOLDERS = ("schemas", "transforms", "pipelines", "runners", "examples")

packages = ["meterline.examples"] + [
    f"meterline.{folder}{'.' + inner if inner else ''}"
    for folder in FOLDERS[:-1]
    for inner in ["", *find_packages(folder)]
]

setup(
    packages=packages,
    package_dir={f"meterline.{folder}": folder for folder in FOLDERS},
    package_data={
        "meterline.schemas": ["clickhouse/*.sql", "py.typed"],
        "meterline.examples": [
            str(path.relative_to("examples"))
            for path in Path("examples").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".py"
        ],
    },
)
