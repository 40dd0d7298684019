"""What this machine has for the work, and what does not fit together, in words."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version

from evilm import __version__


def examine() -> list[tuple[str, str]]:
    """Name and finding of each thing looked at; never raises for what it finds."""
    return [
        ("evilm", f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"),
        ("torch", _torch()),
        *_devices(),
        ("video", _video()),
        ("cores", str(_cores())),
        ("memory", _memory()),
    ]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _torch() -> str:
    """Versions of torch and its companions, and whether they go together."""
    found = {name: _installed(name) for name in ("torch", "torchvision", "timm", "transformers")}
    missing = [name for name, number in found.items() if number is None]
    if missing:
        return f"{', '.join(missing)} not installed: pip install 'evilm[train]'; worlds and words need none"
    shown = ", ".join(f"{name} {number}" for name, number in found.items())
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        return f"{shown}: torch and torchvision do not fit together ({str(error).splitlines()[0]}); install both anew"
    return shown


def _devices() -> list[tuple[str, str]]:
    """The devices that torch can use, and whether the one that `auto` takes multiplies in bfloat16."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    from evilm.distributed import device, uses_bf16

    names = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    names += ["mps"] if torch.backends.mps.is_available() else []
    chosen = device("auto")
    precision = "bf16" if uses_bf16("auto", chosen) else "fp32 (no fast bfloat16 here)"
    return [("devices", ", ".join([*names, "cpu"])), ("auto", f"{chosen.type}, {precision}")]


def _video() -> str:
    """PyAV, FFmpeg's libraries, and whether H.264 can be written."""
    try:
        import av
        import av.codec
    except ImportError as error:
        return f"PyAV cannot be imported ({error}): pip install av"
    writes = (
        "libx264" if "libx264" in av.codec.codecs_available else "no libx264: `evilm data synthetic` cannot encode here"
    )
    return f"PyAV {av.__version__}, {writes}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    """Memory of the machine."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return "unknown"
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
