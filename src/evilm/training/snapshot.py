"""What a run remembers beyond its weights: the optimiser's moments, averaged weights, and their way to files."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch

from evilm.training import checkpoint

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from torch import Tensor, nn


def flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: ``3.exp_avg``."""
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{index}.{name}": tensor for index, entry in state.items() for name, tensor in entry.items()}


def unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimiser the state that ``flatten`` took of its like.

    Raises:
        ValueError, IndexError: it was of another.
    """
    parameters: list[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, field = name.partition(".")
        parameter = parameters[int(index)]
        # The fused AdamW walks weights and moments side by side in memory: a moment must lie as its weight does,
        # channels last for one, or it would be taken for another weight's.
        moment = tensor.shape == parameter.shape
        laid = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor) if moment else tensor
        state.setdefault(int(index), {})[field] = laid
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class Average:
    """An exponential moving average of the trained weights, which often generalise better than the last ones.

    Args:
        module: whose trainable parameters.
        decay: of the average; the first steps count more, so that the start is soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.own = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.weights = {name: p.detach().clone() for name, p in self.own.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take up the weights after ``step`` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.own.items():
            self.weights[name].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def exchange(self) -> None:
        """Put the average in the module's place and the module's weights in the average's; again to undo it."""
        for name, parameter in self.own.items():
            held = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(held)

    @contextmanager
    def worn(self) -> Generator[None]:
        """Inside, the module has the averaged weights."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()


@dataclass(frozen=True)
class Found:
    """A run's newest valid checkpoint, read; ``folder`` is None where there is none.

    Attributes:
        folder: the checkpoint.
        complaints: a line for each newer one that is damaged.
        state: step, seconds and what else is told beside tensors.
        about: its ``config.json``.
        weights, moments, raw: of the model (averaged where the run averages), of the optimiser, and the last weights.
    """

    folder: Path | None
    complaints: list[str]
    state: dict[str, Any] = field(default_factory=lambda: {})
    about: dict[str, Any] = field(default_factory=lambda: {})
    weights: dict[str, Tensor] = field(default_factory=lambda: {})
    moments: dict[str, Tensor] = field(default_factory=lambda: {})
    raw: dict[str, Tensor] = field(default_factory=lambda: {})


def newest(run: Path) -> Found:
    """Read the newest valid checkpoint of a run; damaged newer ones are put aside."""
    folder, complaints = checkpoint.newest(run)
    if folder is None:
        return Found(None, complaints)
    checkpoint.set_aside(run, folder)
    inner = folder / "training"
    raw = inner / "raw.safetensors"
    return Found(
        folder,
        complaints,
        checkpoint.read_json(inner / "state.json"),
        checkpoint.read_json(folder / "config.json"),
        checkpoint.read_tensors(folder / "model.safetensors"),
        checkpoint.read_tensors(inner / "optimizer.safetensors"),
        checkpoint.read_tensors(raw) if raw.is_file() else {},
    )


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not as it was when the run was begun, and so keeps it from equalling an unbroken one; a line each."""
    old, new = _leaves(then.get("recipe", {})), _leaves(now.get("recipe", {}))
    lines = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith("run.")
    ]
    if "data" in then and "data" in now and then["data"] != now["data"]:
        lines.append(f"the training rows were {then['data']} and are {now['data']}: their order is another")
    for name, version in then.get("versions", {}).items():
        if now.get("versions", {}).get(name) != version:
            lines.append(f"{name} was {version} and is {now.get('versions', {}).get(name)}: the last bits may differ")
    return lines


def _leaves(table: Any, prefix: str = "") -> dict[str, Any]:
    """A nested table as dotted names."""
    if not isinstance(table, dict):
        return {prefix: table}
    found: dict[str, Any] = {}
    for name, value in cast("dict[str, Any]", table).items():
        found |= _leaves(value, f"{prefix}.{name}" if prefix else name)
    return found
