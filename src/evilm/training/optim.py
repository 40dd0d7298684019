"""AdamW and its schedule (paper 4.1; warm-up and cosine are ours, the paper is silent)."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from pydantic import Field, model_validator

from evilm.config import Config

if TYPE_CHECKING:
    from torch import nn


# Published settings by name (``optim.preset``); other keys change them. What is not an optimiser's is in the recipes.
PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 2311.17267, section 4.1; batch size, warm-up and schedule are ours.
    "paper": {"lr": 1e-4, "weight_decay": 0.01, "epochs": 20},
    "paper-tokenizer": {"lr": 2e-4, "epochs": 10},
    # all-in-one (arXiv 2203.07303) fine-tunes a head ten times faster and lets the rate fall in a straight line.
    "all-in-one": {
        "lr": 1e-4, "betas": (0.9, 0.98), "weight_decay": 0.01, "warmup_ratio": 0.1, "schedule": "polynomial",
        "power": 1.0, "head_lr_scale": 10.0, "batch_size": 512, "epochs": 20,
    },
    "all-in-one-retrieval": {
        "lr": 3e-4, "betas": (0.9, 0.98), "weight_decay": 0.01, "warmup_ratio": 0.1, "schedule": "polynomial",
        "power": 1.0, "head_lr_scale": 10.0, "epochs": 200,
    },
    # VIOLET v2 (arXiv 2209.01540).
    "violet": {"lr": 2e-5, "weight_decay": 1e-3, "grad_clip": 1.0, "epochs": 20},
    "violet-tgif-action": {"lr": 2e-5, "weight_decay": 1e-3, "grad_clip": 1.0, "epochs": 60},
}  # fmt: skip


class OptimConfig(Config):
    """The optimiser; the defaults are those of the paper's pre-training. ``preset`` stands for one of ``PRESETS``."""

    epochs: float = Field(default=20, gt=0)
    batch_size: int = Field(default=64, gt=0, description="of all processes together")
    grad_accum_steps: int = Field(
        default=1, gt=0, description="pieces a batch is computed in, for want of memory; negatives come from the piece"
    )
    lr: float = Field(default=1e-4, gt=0)
    head_lr_scale: float = Field(
        default=1.0, gt=0, description="factor on the learning rate of what did not start from a checkpoint"
    )
    backbone_lr_scale: float = Field(default=1.0, ge=0, description="factor for the video backbone; 0 freezes it")
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="factor on the learning rate for each layer further from the output"
    )
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1, description="share of the steps")
    schedule: Literal["cosine", "linear", "polynomial", "constant"] = "cosine"
    power: float = Field(default=1.0, gt=0, description="of the polynomial schedule; 1 is linear")
    grad_clip: float = Field(default=1.0, ge=0, description="largest gradient norm; 0 does not clip")
    ema_decay: float = Field(
        default=0.0, ge=0, lt=1, description="decay of averaged weights, which are then the result"
    )
    loss_spike_factor: float = Field(
        default=100.0, ge=0, description="stop when the loss is this many times its usual value (or 1); 0 never"
    )
    fused: bool = Field(default=True, description="one kernel for all weights, where the device has it")

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, table: Any) -> Any:
        """``preset`` stands for published settings, which the other keys then change."""
        if not isinstance(table, dict) or "preset" not in table:
            return cast("Any", table)
        changes = dict(cast("dict[str, Any]", table))
        name = str(changes.pop("preset"))
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}: there are {', '.join(PRESETS)}")
        return {**PRESETS[name], **changes}

    @model_validator(mode="after")
    def _fits(self) -> OptimConfig:
        if self.batch_size % self.grad_accum_steps:
            raise ValueError(f"accumulate = {self.grad_accum_steps} does not divide batch_size = {self.batch_size}")
        return self


def steps(config: OptimConfig, batches: int) -> int:
    """Optimiser steps of a run with that many batches an epoch."""
    return max(1, round(config.epochs * batches))


def optimizer(task: nn.Module, config: OptimConfig, fresh: frozenset[str]) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; no decay on biases, norms, embeddings and positions.

    Args:
        task: the module to train.
        config: the settings.
        fresh: names of parameters that start at random while others come from a checkpoint.
    """
    if config.backbone_lr_scale == 0:
        for name, parameter in task.named_parameters():
            if ".backbone." in name:
                parameter.requires_grad_(False)
    deepest = max((int(found[1]) for name, _ in task.named_parameters() if (found := _BLOCK.search(name))), default=0)
    groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            factor = (
                config.backbone_lr_scale if ".backbone." in name else config.head_lr_scale if name in fresh else 1.0
            )
            factor *= config.layer_decay ** _depth(name, deepest)
            groups.setdefault((_decays(name, parameter), factor), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": found, "weight_decay": config.weight_decay if decays else 0.0, "factor": factor}
            for (decays, factor), found in sorted(groups.items(), key=lambda item: item[0])
        ],
        lr=config.lr,
        betas=config.betas,
        fused=config.fused and all(p.device.type in ("cpu", "cuda") for p in task.parameters()),
    )


_BLOCK = re.compile(r"^model\.fusion\.blocks\.(\d+)\.")


def _depth(name: str, deepest: int) -> int:
    """How many layers lie between a parameter and the output: heads 0, the last fusion block 1, the encoders most."""
    block = _BLOCK.search(name)
    if block is not None:
        return deepest + 1 - int(block[1])
    if name.startswith(("model.video_encoder.", "model.text_encoder.", "model.fusion.type_", "model.fusion.cls")):
        return deepest + 2
    return 0


def _decays(name: str, parameter: torch.nn.Parameter) -> bool:
    """Matrices and kernels decay; vectors, embeddings, positions and codes do not."""
    places = ("embeddings", ".space", ".time", ".positions", ".codes", ".cls", ".type_", "pos_embed")
    return parameter.ndim > 1 and not any(place in name for place in places)


def rate(config: OptimConfig, step: int, total: int) -> float:
    """The learning rate's factor at ``step`` of ``total``: linear warm-up, then the schedule to zero."""
    warm = round(config.warmup_ratio * total)
    if step < warm:
        return (step + 1) / warm
    if config.schedule == "constant":
        return 1.0
    past = (step - warm) / max(1, total - warm)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * past))
    return 1 - past if config.schedule == "linear" else (1 - past) ** config.power


def set_rate(optim: torch.optim.Optimizer, config: OptimConfig, factor: float) -> None:
    """Give every group its learning rate of the moment."""
    for group in optim.param_groups:
        group["lr"] = config.lr * factor * group["factor"]
