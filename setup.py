"""Maps the top-level folders under one import name: `schemas/` is `meterline.schemas`, and so on.

Four generic names in site-packages would collide with any other project's `schemas` or
`transforms`. The tools' settings and the dependencies are in pyproject.toml.

transforms/compiled.pyx needs a C compiler. Where there is none, it is left out, and its work is done by libraries.
"""

from pathlib import Path

import pyarrow
from setuptools import Extension, find_packages, setup

FOLDERS = ("schemas", "transforms", "pipelines", "runners", "examples")

packages = ["meterline.examples"] + [
    f"meterline.{folder}{'.' + inner if inner else ''}"
    for folder in FOLDERS[:-1]
    for inner in ["", *find_packages(folder)]
]

compiled = Extension(
    "meterline.transforms.compiled",
    ["transforms/compiled.pyx"],
    include_dirs=[pyarrow.get_include()],  # It brings xxhash.h.
    extra_compile_args=["-O3"],
    optional=True,
)

setup(
    packages=packages,
    ext_modules=[compiled],
    package_dir={f"meterline.{folder}": folder for folder in FOLDERS},
    package_data={
        "meterline.schemas": ["clickhouse/*.sql", "py.typed"],
        "meterline.runners": [
            *("flink/pom.xml", "flink/flink-conf.yaml", "flink/kubernetes/*"),
            "dataflow/template/metadata.json",
            "metrics/alerts.yaml",
        ],
        "meterline.examples": [
            str(path.relative_to("examples"))
            for path in Path("examples").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".py"
        ],
    },
)
