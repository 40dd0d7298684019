"""Where the work runs: the device, its number format, and the threads.

One process today; the names are those of a run with several, so that nothing else has to change for it.
"""

from __future__ import annotations

from typing import Literal

import torch

from evilm.errors import DeviceError

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16"]


def device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        DeviceError: this machine does not have it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(f"device {name!r}: this machine has no CUDA device that torch can use; take run.device=cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps': this machine has no Apple GPU that torch can use; take run.device=cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device {name!r} is none of auto, cpu, cuda, mps") from None


def computes_in_bf16(name: Precision, where: torch.device) -> bool:
    """Whether to autocast to bfloat16: asked for, or ``auto`` on hardware that multiplies in it."""
    if name != "auto":
        return name == "bf16"
    if where.type == "cuda":
        return torch.cuda.is_bf16_supported()
    # AMX or AVX-512 BF16; elsewhere the CPU would emulate it, several times slower than float32.
    return where.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
