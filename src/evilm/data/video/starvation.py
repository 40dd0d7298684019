"""Whether a process that is over its time had its time at all: on a busy machine that is no fault of the file."""

from __future__ import annotations

import os
from pathlib import Path

STARVED = 3  # times the limit that a process may take longer when a busy machine keeps it waiting


def starves(pid: int, used: float, limit: float) -> bool:
    """Whether a process would work, but a busy machine has given it less than half of its time.

    Args:
        pid: of the process.
        used: its processor time when its time began, as ``seconds_used`` answered.
        limit: seconds that it had.
    """
    fields = _stat(pid)
    return bool(fields) and fields[0] in ("R", "D") and seconds_used(pid) - used < limit / 2


def seconds_used(pid: int) -> float:
    """Processor time of a process so far."""
    fields = _stat(pid)
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none where the process or /proc is not there."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except (OSError, ValueError):
        return []
