"""`meterline demo-stream`, as `make demo-stream` runs it where Java and Maven are found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_demo_of_a_stream_on_flink_ends_with_what_a_batch_gives(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "meterline.runners.cli", "demo-stream", "--on-flink", "--seconds", "5"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✓ the same" in done.stdout
    assert "lag 0" in done.stdout
