"""The pre-training step that ``train.py`` and ``sweep.py`` measure, with each saving as a switch."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from evilm.data.vocabulary import Vocabulary
from evilm.model.evilm import EViLM
from evilm.model.layers import apply_memory_options
from evilm.model.presets import preset
from evilm.tasks.pretrain import Pretrain, PretrainConfig
from evilm.training import optim
from evilm.types import Batch, Clip, Example

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from evilm.model.video_encoder import VideoEncoder

CODES = 9420
CAPTION = "a small red disc moves slowly to the left and a green star jumps up behind it"


@dataclass(frozen=True)
class Variant:
    """Which savings are on."""

    channels_last: bool = True
    bf16: bool = True
    fused: bool = True
    encode_once: bool = True
    compiled: bool = False
    recompute: bool = False
    grad_accum_steps: int = 1
    ema: bool = False


class Contiguous(nn.Module):
    """A backbone fed with pictures in the default layout."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.inner = backbone.to(memory_format=torch.contiguous_format)

    def forward(self, pixels: torch.Tensor) -> Any:
        return self.inner(pixels.contiguous(memory_format=torch.contiguous_format))


class Step:
    """A pre-training step of one variant.

    Args:
        arguments: preset, size, frames and device.
        variant: which savings.
        parts: also take the time of each part, for which a GPU is waited for in between.
        wall: go by the clock on the wall on a CPU too.
    """

    def __init__(
        self, arguments: argparse.Namespace, variant: Variant, *, parts: bool = True, wall: bool = False
    ) -> None:
        self.variant, self.device, self.parts, self.wall = variant, torch.device(arguments.device), parts, wall
        torch.manual_seed(0)
        shape = preset(arguments.preset).model_copy(
            update={"image_size": arguments.size, "num_frames": arguments.frames}
        )
        words = Vocabulary.default()
        self.model = EViLM(shape, words.size).to(self.device)
        if not variant.channels_last:
            encoder: VideoEncoder = self.model.video_encoder
            encoder.backbone = Contiguous(encoder.backbone)
        wholes = [{"mvm_weight": 1, "mlm_weight": 1, "vtm_weight": 1}]
        apart = [
            {f"{name}_weight": int(name == one) for name in ("mvm", "mlm", "vtm")} for one in ("mvm", "mlm", "vtm")
        ]
        settings = wholes if variant.encode_once else apart
        self.tasks = nn.ModuleList(
            Pretrain(self.model, words, PretrainConfig.model_validate(each), {"codes": CODES}, None)
            for each in settings
        ).to(self.device)
        apply_memory_options(self.tasks, grad_checkpointing=variant.recompute, compiled=variant.compiled)
        self.optimizer = optim.make_optimizer(self.tasks, optim.OptimConfig(), frozenset())
        for group in self.optimizer.param_groups:
            group["fused"] = variant.fused
        self.average = optim.WeightAverage(self.tasks, 0.999) if variant.ema else None
        self.spent: dict[str, float] = defaultdict(float)
        for name, part in (("encode_video", "video"), ("encode_text", "text"), ("fuse", "fuse"), ("fuse_cls", "fuse")):
            setattr(self.model, name, self._timed(part, getattr(self.model, name)))

    def now(self, *, inside: bool = False) -> float:
        """The clock; ``inside`` a step only where parts are measured."""
        if inside and not self.parts:
            return 0.0
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.perf_counter() if self.wall else time.process_time()

    def _timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **named: Any) -> Any:
            began = self.now(inside=True)
            found = call(*args, **named)
            self.spent[part] += self.now(inside=True) - began
            return found

        return timed

    def take(self, batch: Batch) -> float:
        """One step; its seconds."""
        self.tasks.train()
        began = self.now()
        pieces = batch.pieces(self.variant.grad_accum_steps)
        for piece in pieces:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.variant.bf16):
                moved = piece.to(self.device)
                losses = [task.losses(moved).total for task in self.tasks]
            forward = self.now(inside=True)
            (torch.stack(losses).sum() / len(pieces)).backward()
            self.spent["backward"] += self.now(inside=True) - forward
        back = self.now(inside=True)
        torch.nn.utils.clip_grad_norm_(self.tasks.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(1000)
        self.spent["optimiser"] += self.now(inside=True) - back
        end = self.now()
        self.spent["all"] += end - began
        return end - began


def batches(arguments: argparse.Namespace) -> Iterator[Batch]:
    """Noise for frames, one caption a clip, labels at random: the time of a step does not depend on what is seen."""
    random = torch.Generator().manual_seed(0)
    stride, count, side = preset(arguments.preset).stride, arguments.frames, arguments.size
    shape = (arguments.batch, count, 3, side, side)
    cells = side // stride
    examples = tuple(Example(str(i), f"v{i}", Clip(Path(f"{i}.mp4")), (CAPTION,)) for i in range(arguments.batch))
    number = 0
    while True:
        seeds = torch.arange(number, number + arguments.batch)
        number += arguments.batch
        made = Batch(
            examples,
            torch.randint(0, 256, shape, generator=random, dtype=torch.uint8),
            seeds,
            torch.ones(arguments.batch, dtype=torch.bool),
            torch.randint(0, CODES, (arguments.batch, count, cells, cells), generator=random),
        )
        yield made.pinned() if arguments.device.startswith("cuda") else made
