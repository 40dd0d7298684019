"""What a pre-training step costs, part by part, and what each way of saving time is worth.

    python benchmarks/train.py                          # evilm-xx-small at 128x128 on the CPU, one thread
    python benchmarks/train.py --preset evilm-small --size 256 --batch 128 --device cuda
    python benchmarks/train.py --world FOLDER           # the share of time that a step waits for packed frames, too

Variants are measured in turn, round after round, so that what else the machine does hits all alike; the median counts.
On a CPU the clock is this process's own CPU time, which other programs do not slow; on a GPU it is the wall's.
``plain`` is the usual start: contiguous float32, an encoding for each objective, one kernel a weight.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from evilm import distributed, optim
from evilm.data.vocabulary import Vocabulary
from evilm.model.economy import economise
from evilm.model.presets import build, preset
from evilm.tasks.pretrain import Pretrain, PretrainConfig
from evilm.types import Batch, Clip, Example

if TYPE_CHECKING:
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


class Contiguous(nn.Module):
    """A backbone fed with pictures in the default layout."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.inner = backbone.to(memory_format=torch.contiguous_format)

    def forward(self, pixels: torch.Tensor) -> Any:
        return self.inner(pixels.contiguous(memory_format=torch.contiguous_format))


class Step:
    """A pre-training step of one variant."""

    def __init__(self, arguments: argparse.Namespace, variant: Variant) -> None:
        self.variant, self.device = variant, torch.device(arguments.device)
        torch.manual_seed(0)
        shape = preset(arguments.preset).model_copy(update={"size": arguments.size, "frames": arguments.frames})
        words = Vocabulary.default()
        self.model = build(shape, words.size).to(self.device)
        if not variant.channels_last:
            encoder: VideoEncoder = self.model.video_encoder
            encoder.backbone = Contiguous(encoder.backbone)
        wholes = [{"mvm": 1, "mlm": 1, "vtm": 1}]
        parts = [{"mvm": 1, "mlm": 0, "vtm": 0}, {"mvm": 0, "mlm": 1, "vtm": 0}, {"mvm": 0, "mlm": 0, "vtm": 1}]
        settings = wholes if variant.encode_once else parts
        self.tasks = nn.ModuleList(
            Pretrain(self.model, words, PretrainConfig.model_validate(each), {"codes": CODES}, None)
            for each in settings
        ).to(self.device)
        economise(self.tasks, recompute=variant.recompute, compiled=variant.compiled)
        self.optimizer = optim.optimizer(self.tasks, optim.OptimConfig(fused=variant.fused), frozenset())
        self.spent: dict[str, float] = defaultdict(float)
        for name, part in (("encode_video", "video"), ("encode_text", "text"), ("fuse", "fuse")):
            setattr(self.model, name, self._timed(part, getattr(self.model, name)))

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def _timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **named: Any) -> Any:
            began = self.now()
            found = call(*args, **named)
            self.spent[part] += self.now() - began
            return found

        return timed

    def take(self, batch: Batch) -> float:
        """One step; its seconds."""
        self.tasks.train()
        began = self.now()
        batch = batch.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.variant.bf16):
            losses = [task.losses(batch).total for task in self.tasks]
        forward = self.now()
        torch.stack(losses).sum().backward()
        back = self.now()
        torch.nn.utils.clip_grad_norm_(self.tasks.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        end = self.now()
        self.spent["backward"] += back - forward
        self.spent["optimiser"] += end - back
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
        yield Batch(
            examples,
            torch.randint(0, 256, shape, generator=random, dtype=torch.uint8),
            seeds,
            torch.ones(arguments.batch, dtype=torch.bool),
            torch.randint(0, CODES, (arguments.batch, count, cells, cells), generator=random),
        )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of every variant, interleaved, and the parts of the full one."""
    full = Variant(bf16=distributed.computes_in_bf16(arguments.precision, torch.device(arguments.device)))
    variants = {"full": full, "plain": Variant(False, False, False, False)}
    for name in ("channels_last", "bf16", "fused", "encode_once"):
        if getattr(full, name):
            variants[f"without {name}"] = replace(full, **{name: False})
    for name in arguments.extra:
        variants[f"with {name}"] = replace(full, **{name: True})
    if arguments.only is not None:
        variants = {name: variants[name] for name in ("full", *arguments.only)}
    source = batches(arguments)
    steps = {name: Step(arguments, variant) for name, variant in variants.items()}
    seconds: dict[str, list[float]] = defaultdict(list)
    for number in range(arguments.rounds + 1):
        for name, step in steps.items():
            spent = step.take(next(source))
            if number:  # the first round warms up
                seconds[name].append(spent)
            else:
                step.spent.clear()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    spent = steps["full"].spent
    return {
        "preset": arguments.preset,
        "frames": f"{arguments.frames} of {arguments.size}x{arguments.size}",
        "batch": arguments.batch,
        "device": arguments.device,
        "threads": torch.get_num_threads(),
        "rounds": arguments.rounds,
        "clips/s": {name: round(arguments.batch / value, 3) for name, value in median.items()},
        "full is faster by": {n: round(value / median["full"], 2) for n, value in median.items() if n != "full"},
        "share of the step": {n: round(value / spent["all"], 3) for n, value in spent.items() if n != "all"},
        "peak MB": round(_peak(torch.device(arguments.device))),
    }


def _peak(device: torch.device) -> float:
    """Peak memory: of the GPU, or of this process with all the variants that it holds (``--only`` for one)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def waiting(arguments: argparse.Namespace) -> dict[str, Any]:
    """The share of a run's wall time in which it waits for its loader, from packed frames."""
    from evilm.data import readers
    from evilm.data.frame_store import FrameStore
    from evilm.data.loader import Loader
    from evilm.data.pixels import StoredPixels

    rows = readers.read("msrvtt_retrieval", arguments.world, None, "train")
    cache = arguments.world.parent / f"{arguments.world.name}-frames"
    store = FrameStore(cache, [row.clip for row in rows], size=arguments.size, candidates=8)
    store.fill(0)
    loader = Loader(
        rows, StoredPixels(store), arguments.frames, arguments.size, arguments.batch, train=True, prefetch=2
    )
    bf16 = distributed.computes_in_bf16(arguments.precision, torch.device(arguments.device))
    step, source = Step(arguments, Variant(bf16=bf16)), batches(arguments)
    waited, steps = 0.0, 0
    began = time.perf_counter()
    for epoch in range(100):
        feed = iter(loader.epoch(epoch))
        while True:
            asked = time.perf_counter()
            batch = next(feed, None)
            waited += time.perf_counter() - asked
            if batch is None:
                break
            step.take(replace(batch, labels=next(source).labels))
            steps += 1
            if steps == arguments.rounds:
                whole = time.perf_counter() - began
                return {"steps": steps, "waiting for data": round(waited / whole, 4), "seconds": round(whole, 1)}
    return {}


def main() -> None:
    """Read the command line, measure, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="evilm-xx-small")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--extra", nargs="*", default=[], choices=["compiled", "recompute"])
    parser.add_argument("--only", nargs="*", help="these variants beside the full one; none for its memory alone")
    parser.add_argument("--world", type=Path, help="a world (`evilm world FOLDER`), to measure waiting for its frames")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = measure(arguments)
    if arguments.world is not None:
        found["loader"] = waiting(arguments)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
