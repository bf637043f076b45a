"""What this process has done so far, for a progress display only: no result depends on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Progress:
    bytes_read: int = 0
    records: int = 0
    rows_stored: int = 0


seen = Progress()
