"""Ways to spend less memory or time on a model without changing what it computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from evilm.model.layers import Block

if TYPE_CHECKING:
    from collections.abc import Callable


def apply_memory_options(module: nn.Module, *, recompute: bool = False, compiled: bool = False) -> None:
    """Set up a module for training, in place; names of weights stay the same.

    Args:
        module: any task.
        recompute: keep no activations inside transformer blocks, BERT and (where timm can) the backbone: they are
            computed again on the way back. Less memory, about a third more time, the same gradients.
        compiled: ``torch.compile`` the backbones, BERT and the transformer blocks. Needs a C++ compiler on a CPU.
    """
    from transformers import BertModel

    part: nn.Module
    for part in module.modules():
        if recompute and isinstance(part, Block):
            part.recompute = True
        if recompute and isinstance(part, BertModel):
            part.config.use_cache = False  # of a decoder; transformers warns of the two together
            enable = getattr(part, "activation_checkpointing_enable", None)  # its name in newer versions
            (enable or part.gradient_checkpointing_enable)({"use_reentrant": False})
        checkpointing: Callable[[bool], None] | None = getattr(part, "set_grad_checkpointing", None)
        if recompute and checkpointing is not None:
            checkpointing(True)
    if compiled:
        # Blocks apart, as all of one width share one compiled graph.
        for part in module.modules():
            if isinstance(part, Block | BertModel):
                part.compile()
            if isinstance(backbone := getattr(part, "backbone", None), nn.Module):
                backbone.compile()
