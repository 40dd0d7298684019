"""Versions, devices and resources of this machine, and what is missing or incompatible."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version

from evilm import __version__


def examine() -> list[tuple[str, str]]:
    """Name and finding of each item; problems are part of the findings and raise nothing."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = "unknown"
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        memory = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
    return [
        ("evilm", f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"),
        ("torch", _torch()),
        *_devices(),
        ("video", _video()),
        ("cores", str(cores)),
        ("memory", memory),
    ]


def _torch() -> str:
    """Versions of torch and the packages built on it, and whether they are compatible."""
    versions: dict[str, str | None] = {}
    for name in ("torch", "torchvision", "timm", "transformers"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    missing = [name for name, number in versions.items() if number is None]
    if missing:
        return (
            f"not installed: {', '.join(missing)}; training needs them: pip install 'evilm[train]' (search, questions "
            "and synthetic videos do not)"
        )
    installed = ", ".join(f"{name} {number}" for name, number in versions.items())
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return (
            f"{installed}; torchvision cannot be imported because it was built for another version of torch "
            f"({reason}): pip install --force-reinstall torch torchvision"
        )
    return installed


def _devices() -> list[tuple[str, str]]:
    """The devices that torch can use, and device and number format of ``device = "auto"``."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    from evilm.distributed import device, uses_bf16

    names = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    names += ["mps"] if torch.backends.mps.is_available() else []
    chosen = device("auto")
    precision = "bf16" if uses_bf16("auto", chosen) else "fp32 (bfloat16 is not fast on this device)"
    return [("devices", ", ".join([*names, "cpu"])), ("auto", f"{chosen.type}, {precision}")]


def _video() -> str:
    """The version of PyAV, and whether it can write H.264."""
    try:
        import av
        import av.codec
    except ImportError as error:
        return f"PyAV cannot be imported ({error}): pip install --force-reinstall av"
    if "libx264" in av.codec.codecs_available:
        return f"PyAV {av.__version__}, libx264"
    return f"PyAV {av.__version__} without libx264: `evilm data synthetic` cannot write videos; pip install av"
