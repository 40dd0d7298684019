"""Taking power away from a process that decodes what nobody vouches for."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evilm.data.video.limits import Limits

_DESCRIPTORS = 64


def memory_in_use() -> int:
    """Bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()


def confine(limits: Limits) -> int:
    """From here on this process has ``limits.memory`` more than now, writes no file, dumps no core.

    There is no way back. Call it when everything that decoding needs has been imported.

    Returns:
        bytes in use now.
    """
    before = memory_in_use()
    for what, most in (
        (resource.RLIMIT_AS, before + limits.memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _DESCRIPTORS),
    ):
        hard = resource.getrlimit(what)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (allowed, allowed))
    return before
