"""Processes that outlive the command that started them, and are ended by pid without ever hitting a stranger.

A pid is used again some day. So a process is known by its pid and its start (`identity`), and nothing is sent to a pid
whose start differs. Each is the leader of a group of its own, which its children stay in.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

_PROC = Path("/proc")


def identity(pid: int) -> str | None:
    """What tells a process from a later one with the same pid; None when there is none, or only its corpse."""
    if pid <= 0:
        return None
    if (_PROC / "self" / "stat").exists():
        fields = _stat(pid)
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return None if fields is None or fields[0] in "ZX" else f"{boot}/{fields[19]}"
    asked = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, start = asked.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else start.strip()


def alive(pid: int, known_as: str) -> bool:
    return identity(pid) == known_as


def start(
    command: Sequence[str | Path], log: Path, environment: Mapping[str, str], folder: Path
) -> tuple[int, str, subprocess.Popen[bytes]]:
    """Start a process that goes on when this one ends.

    Returns:
      Its pid, its identity, and the handle (which only tells, for as long as this process lives, how it ended).
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
        )
    return process.pid, identity(process.pid) or "", process


def end(processes: Iterable[tuple[int, str]], seconds: float = 10) -> list[int]:
    """End processes with their children: asked first, killed after `seconds`.

    Those whose pid belongs to somebody else by now, and those that are gone, are left alone; the children of one that
    is gone are ended.

    Returns:
      The pids that were still there.
    """
    known = dict(processes)
    groups = [pid for pid, known_as in known.items() if members(pid, known_as)]
    for signal_number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, seconds)):
        deadline = time.monotonic() + patience
        for pid in groups:
            if members(pid, known[pid]):
                try:
                    os.killpg(pid, signal_number)
                except (ProcessLookupError, PermissionError):
                    continue
        while any(members(pid, known[pid]) for pid in groups) and time.monotonic() < deadline:
            time.sleep(0.05)
    return groups


def members(leader: int, known_as: str) -> list[int]:
    """The living processes of a group that we started, the leader among them if it lives.

    A group's number is not given to a new process while the group has members. So, when the leader's pid is free, who
    is in the group is a child of the one that we started; when somebody else has it, the group was gone before.
    """
    # A signal to group 0 would go to the caller's own.
    if leader <= 1 or not known_as:
        return []
    now = identity(leader)
    if now is not None and now != known_as:
        return []
    found = []
    if (_PROC / "self" / "stat").exists():
        for entry in _PROC.iterdir():
            if entry.name.isdigit():
                fields = _stat(int(entry.name))
                # State, parent, group, session.
                if fields is not None and fields[0] not in "ZX" and int(fields[2]) == leader:
                    found.append(int(entry.name))
        return found
    asked = subprocess.run(["ps", "-axo", "pid=,pgid=,stat="], capture_output=True, text=True, check=False)
    for line in asked.stdout.splitlines():
        pid, group, state = line.split(None, 2)
        if int(group) == leader and not state.startswith("Z"):
            found.append(int(pid))
    return found


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command's name, which may hold anything."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()
