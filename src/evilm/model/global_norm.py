"""Batch normalisation over the global batch, on any device (torch's own synchronised one needs GPUs)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from evilm import distributed

if TYPE_CHECKING:
    from torch import Tensor

Norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class GlobalNorm(nn.Module):
    """A batch norm whose statistics are those of all processes together; names and weights stay the same.

    Args:
        norm: the batch norm that it stands for; timm's also bring a ``drop`` and an ``act``.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        assert isinstance(norm, Norm)
        self.eps, self.momentum = norm.eps, 0.1 if norm.momentum is None else norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        after = [getattr(norm, name) for name in ("drop", "act") if isinstance(getattr(norm, name, None), nn.Module)]
        self.after = nn.Sequential(*after)
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to the same."""
        y = x.float()
        axes = [axis for axis in range(y.ndim) if axis != 1]
        shape = [1, -1] + [1] * (y.ndim - 2)
        if self.training:
            count = y.numel() // y.shape[1] * distributed.world_size()
            mean = distributed.all_reduce_sum(y.sum(axes)) / count
            var = distributed.all_reduce_sum((y - mean.view(shape)).pow(2).sum(axes)) / count
            with torch.no_grad():
                self.running_mean.lerp_(mean.detach(), self.momentum)
                self.running_var.lerp_(var.detach() * count / max(1, count - 1), self.momentum)
                self.num_batches_tracked.add_(1)
        else:
            mean, var = self.running_mean, self.running_var
        y = (y - mean.view(shape)) * torch.rsqrt(var.view(shape) + self.eps)
        if self.weight is not None and self.bias is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return self.after(y.to(x.dtype))


def synchronise(module: nn.Module) -> None:
    """Let every batch norm below ``module`` see the global batch; nothing where there is one process."""
    if distributed.world_size() == 1:
        return
    for name, child in list(module.named_children()):
        if isinstance(child, Norm):
            setattr(module, name, GlobalNorm(child))
        else:
            synchronise(child)
