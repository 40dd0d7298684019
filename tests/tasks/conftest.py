"""What the tests of tasks share: a model, rows of every kind, and where gradients arrive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Callable

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.evilm import EViLM
    from evilm.model.presets import ModelConfig
    from evilm.types import Losses

CAPTIONS = ("a red disc moves left", "the blue square grows", "the green star jumps", "a red star moves up",
            "a blue disc jumps", "the green square moves right")  # fmt: skip


@pytest.fixture
def model(tiny: ModelConfig, vocabulary: Vocabulary) -> EViLM:
    from evilm.model.evilm import EViLM

    torch.manual_seed(0)
    return EViLM(tiny, vocabulary.size)


@pytest.fixture
def captioned() -> list[Example]:
    """Six clips with two captions each."""
    return [
        Example(f"row{i}", f"video{i}", Clip(Path(f"{i}.mp4")), captions=(text, text.replace("the ", "a "))) for i, text
        in enumerate(CAPTIONS)
    ]  # fmt: skip


@pytest.fixture
def without_gradient() -> Callable[[torch.nn.Module, Losses], list[str]]:
    """Names of trainable parameters that a loss does not move.

    A key's bias shifts all scores of a query alike, and the match head's last bias all candidates; a softmax does not
    see either, and their gradient is zero but for rounding.
    """

    def names(task: torch.nn.Module, losses: Losses) -> list[str]:
        task.zero_grad(set_to_none=True)
        losses.total.backward()
        trained = [(name, p) for name, p in task.named_parameters() if p.requires_grad]
        return [
            name
            for name, p in trained
            if p.grad is None
            or (not p.grad.any() and not name.endswith(("key.bias", "k_proj.bias", "match.layers.2.bias")))
        ]

    return names
