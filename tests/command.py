"""Runs `meterline` in this process, as a user meets it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from meterline.runners import cli
from meterline.runners.demo import quickstart

NOW = "2023-11-17T00:00:00Z"


class Said(NamedTuple):
    code: int
    out: str
    err: str


class Command:
    """Runs `meterline` in this process."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.url, self._monkeypatch, self._capfd = url, monkeypatch, capfd
        for console in (cli.out, cli.err):
            monkeypatch.setattr(console, "_width", 160)
            monkeypatch.setattr(console, "_file", None)

    def __call__(self, *words: object) -> Said:
        self._capfd.readouterr()
        self._monkeypatch.setattr(sys, "argv", ["meterline", *map(str, words)])
        try:
            cli.main()
            code: object = 0
        except SystemExit as exit:
            code = exit.code or 0
        assert isinstance(code, int), code
        captured = self._capfd.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return Said(code, captured.out, captured.err)

    def rate(self, file: Path, *words: object) -> Said:
        catalog = quickstart() / "catalog"
        return self("rate", "--input", file, "--catalog", catalog, "--clickhouse", self.url, "--now", NOW, *words)
