"""A command's start: what nothing calls is not loaded, and all works without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_RUN = """
import sys
from meterline.runners.cli import main
sys.argv = ["meterline", *sys.argv[1:]]
try:
    main()
finally:
    print("loaded:", *(name for name in ("pandas", "google.cloud.storage", "pymongo") if name in sys.modules))
"""


def test_a_run_over_a_file_loads_only_what_it_needs(tmp_path: Path) -> None:
    event = '{"specversion":"1.0","type":"t","source":"s","id":"1","subject":"nobody","time":"2026-10-01T00:00:00Z"}'
    (tmp_path / "events.ndjson").write_text(event + "\n")
    (tmp_path / "catalog.yaml").write_text("meters:\n- {id: m, event_type: t, aggregation: count, unit: call}\n")
    command = ["rate", "--input", "events.ndjson", "--catalog", ".", "--clickhouse", "chdb://db"]
    run = subprocess.run(
        [sys.executable, "-c", _RUN, *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "0 line items written" in run.stdout
    assert run.stdout.splitlines()[-1].strip() == "loaded:"


def test_dataflow_may_load_all_of_it() -> None:
    code = _RUN.replace("finally:", "finally:\n    import pandas, google.cloud.storage")
    run = subprocess.run([sys.executable, "-c", code, "dataflow"], capture_output=True, text=True, check=False)
    assert "loaded: pandas google.cloud.storage" in run.stdout, run.stderr
