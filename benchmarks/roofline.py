"""How fast a pre-training step could be at most: arithmetic, not a measurement.

    python benchmarks/roofline.py                                    # evilm-small, 4 frames of 256x256
    python benchmarks/roofline.py --preset evilm-xx-small --size 128 --tflops 1.5 --tbytes 0.02

Each part of the step (an encoding of the frames, one of the text, the fusions, the heads, and their way back) is
carried out once on the CPU for a few clips, and every operation is counted:

* matrix      dense convolutions and matrix products, attention's two included: FLOPs (2 a multiply-accumulate), and the
              numbers that go in and come out;
* depthwise   convolutions that see one channel each: numbers in and out, for that is what bounds them;
* norm        layer and batch norms, softmax: numbers in and out;
* pointwise   GELU, additions, scaling, copies: numbers in and out.

An operation takes at least its FLOPs at the device's matrix rate and at least its bytes (2 a number, as in bf16) at its
copy rate, whichever is longer. ``unfused`` adds up all of them, one kernel an operation (attention is one). ``fused``
leaves pointwise operations out, as if each ran within a neighbour, and the small scores of the backbone's attention. So
no order of kernels can pass ``fused``, and one that does not fuse cannot pass ``unfused``. Nothing else is in it: no
launch of a kernel, no imperfect tile, no waiting, no communication, no dropout; labels come from a cache.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from evilm.data.vocabulary import Vocabulary
from evilm.model.evilm import EViLM
from evilm.model.heads import MatchHead, PatchHead, WordHead
from evilm.model.presets import preset
from evilm.types import Text

if TYPE_CHECKING:
    from collections.abc import Callable

    from evilm.types import Encoded

Class = Literal["matrix", "depthwise", "norm", "pointwise"]

CODES, PIECES, NEGATIVES = 9420, 22, 3  # the paper's codes; a caption of 20 word pieces; VTM's other texts
HIDDEN_CELLS, HIDDEN_WORDS = 0.4, 0.15
TFLOPS, TBYTES = 790.0, 4.3  # what an H200 was measured to do: bf16 matrix products, a copy
MASTER = 28  # bytes of an AdamW step a weight: weight, gradient and two moments read, weight and moments written, fp32


@dataclass
class Count:
    """What one direction of one part does, by class of operation.

    Attributes:
        each: class, FLOPs and numbers moved of every operation, and whether a fused attention would keep those numbers
            to itself.
    """

    each: list[tuple[Class, float, float, bool]] = field(default_factory=lambda: [])

    @property
    def flops(self) -> float:
        return sum(flops for _, flops, _, _ in self.each)

    def megabytes(self) -> dict[Class, float]:
        """Moved in bf16, by class."""
        found: dict[Class, float] = defaultdict(float)
        for kind, _, numbers, _ in self.each:
            found[kind] += 2 * numbers / 1e6
        return {kind: round(found[kind], 2) for kind in sorted(found)}


class Counting(TorchDispatchMode):
    """Counts every operation that reaches the backend, forward ones and those of the way back."""

    def __init__(self, into: Count) -> None:
        super().__init__()
        self.into = into

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        ins = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        outs = [each for each in tree_leaves(found) if isinstance(each, torch.Tensor)]
        if outs and not _moves_nothing(func.overloadpacket.__name__, ins, outs):
            packet, flops = func.overloadpacket, 0.0
            if packet.__name__ == "convolution_backward":
                back, weight, wanted = args[0], args[2], args[10]  # torch's own formula overlooks groups
                flops = 2.0 * back.numel() * weight[0].numel() * sum(wanted[:2])
            elif packet in flop_registry:
                flops = float(flop_registry[packet](*args, **(kwargs or {}), out_val=found))
            numbers = float(sum(each.numel() for each in (*ins, *outs)))
            scores = any(word in packet.__name__ for word in ("bmm", "softmax"))
            self.into.each.append((_class(packet, args, flops), flops, numbers, scores))
        return found


def _moves_nothing(name: str, ins: list[torch.Tensor], outs: list[torch.Tensor]) -> bool:
    """Whether an operation only looks at memory in another way, or makes room."""
    if "empty" in name:
        return True
    if name.endswith("_"):  # it writes into what it was given
        return False
    known = {each.untyped_storage().data_ptr() for each in ins}
    return all(each.untyped_storage().data_ptr() in known for each in outs)


def _class(packet: Any, args: Any, flops: float) -> Class:
    name: str = packet.__name__
    if "convolution" in name:
        groups = args[8] if name == "convolution" else args[9]
        return "depthwise" if groups > 1 else "matrix"
    if flops:
        return "matrix"
    return "norm" if "norm" in name or "softmax" in name else "pointwise"


@dataclass(frozen=True)
class Part:
    """One part of the step, for one clip; forward and back."""

    name: str
    forward: Count
    back: Count


def count(name: str, frames: int, size: int, batch: int) -> list[Part]:
    """The parts of a pre-training step, for one clip of a batch.

    Every operation does something for each clip and something for all, such as reading its weights: counted with two
    clips and with three, it is known for any batch.
    """
    pairs = zip(_counted(name, frames, size, 2), _counted(name, frames, size, 3), strict=True)
    return [
        Part(two.name, _at(two.forward, three.forward, batch), _at(two.back, three.back, batch)) for two, three in pairs
    ]


def _at(two: Count, three: Count, batch: int) -> Count:
    """One clip's share of each operation, from counts with two clips and with three."""
    made = Count()
    for (kind, flops, numbers, scores), (_, more_flops, more_numbers, _) in zip(two.each, three.each, strict=True):
        each = [(three - two) + (two - 2 * (three - two)) / batch
                for two, three in ((flops, more_flops), (numbers, more_numbers))]  # fmt: skip
        made.each.append((kind, each[0], each[1], scores))
    return made


def _counted(name: str, frames: int, size: int, clips: int) -> list[Part]:
    """The parts of a step of so many clips."""
    torch.manual_seed(0)
    # Without dropout, with which a CPU would take attention apart; on a GPU it is part of the fused kernel.
    shape = preset(name).model_copy(update={"size": size, "frames": frames, "dropout": 0.0})
    words = Vocabulary.default().size
    model = EViLM(shape, words).train()
    grid = model.video_encoder.grid(frames, size, size)
    here = torch.ones(clips, PIECES, dtype=torch.bool)
    text = Text(ids=torch.full((clips, PIECES), 7), mask=here, starts=here)
    pixels = torch.zeros(clips, frames, 3, size, size)
    wide = shape.embed_dim
    cells, pieces = round(HIDDEN_CELLS * grid.patches), max(1, round(HIDDEN_WORDS * PIECES))
    region, word, match = PatchHead(wide, CODES), WordHead(wide, shape.text_embed_dim, words), MatchHead(wide)
    table = model.text_encoder.word_embeddings
    states = [torch.zeros(clips * many, wide, requires_grad=True) for many in (cells, pieces, 1 + NEGATIVES)]
    seen, read = (_leaf(each) for each in (model.encode_video(pixels), model.encode_text(text)))
    rows = torch.arange(clips).repeat(NEGATIVES)

    def heads() -> torch.Tensor:
        codes = torch.nn.functional.cross_entropy(region(states[0]), torch.zeros(len(states[0]), dtype=torch.long))
        guess = torch.nn.functional.cross_entropy(word(states[1], table), torch.zeros(len(states[1]), dtype=torch.long))
        return codes + guess + match(states[2]).sum()

    def fuse() -> torch.Tensor:
        fused, others = model.fuse(seen, read), model.fuse_cls(seen[rows], read[rows])
        assert fused.text is not None
        assert fused.video is not None
        return fused.cls.sum() + fused.text.sum() + fused.video.sum() + others.sum()

    def video() -> torch.Tensor:
        return model.encode_video(pixels).tokens.sum()

    def words_of_it() -> torch.Tensor:
        return model.encode_text(text).tokens.sum()

    calls = {"video": video, "text": words_of_it, "fuse": fuse, "heads": heads}
    return [_part(part, call) for part, call in calls.items()]


def _leaf(encoded: Encoded) -> Encoded:
    """The same, but its way back ends here."""
    return replace(encoded, tokens=encoded.tokens.detach().requires_grad_())


def _part(name: str, call: Callable[[], torch.Tensor]) -> Part:
    forward, back = Count(), Count()
    with Counting(forward):
        loss = call()
    with Counting(back):
        loss.backward()
    return Part(name, forward, back)


def seconds(each: Count, tflops: float, tbytes: float, *, fused: bool) -> float:
    """The least time of the operations of a count, for one clip."""
    total = 0.0
    for kind, flops, numbers, scores in each.each:
        if fused and kind == "pointwise":
            continue
        moving = 0.0 if fused and scores else 2 * numbers / (tbytes * 1e12)
        total += max(flops / (tflops * 1e12), moving) if kind == "matrix" else moving
    return total


def bound(name: str, frames: int, size: int, batch: int, tflops: float, tbytes: float) -> dict[str, Any]:
    """Upper bounds of clips a second, and what they are made of."""
    parts = count(name, frames, size, batch)
    weights = sum(p.numel() for p in EViLM(preset(name), Vocabulary.default().size).parameters())
    optimiser = MASTER * weights / (tbytes * 1e12) / batch
    told: dict[str, Any] = {}
    for part in parts:
        for direction, each in (("forward", part.forward), ("back", part.back)):
            told[f"{part.name} {direction}"] = {
                "GFLOP": round(each.flops / 1e9, 3),
                "MB": each.megabytes(),
                "fused us": round(1e6 * seconds(each, tflops, tbytes, fused=True), 2),
                "unfused us": round(1e6 * seconds(each, tflops, tbytes, fused=False), 2),
            }
    least = {
        kind: optimiser + sum(told_part[f"{kind} us"] for told_part in told.values()) / 1e6
        for kind in ("fused", "unfused")
    }
    return {
        "what": "arithmetic, not a measurement",
        "preset": name,
        "frames": f"{frames} of {size}x{size}",
        "ceilings": {"TFLOP/s": tflops, "TB/s": tbytes},
        "a clip": told,
        "GFLOP a clip": round(sum(part["GFLOP"] for part in told.values()), 2),
        "optimiser us a clip": round(1e6 * optimiser, 2),
        "clips/s at most": {kind: round(1 / value) for kind, value in least.items()},
        "TFLOP/s at most": {
            kind: round(sum(part["GFLOP"] for part in told.values()) / value / 1e3) for kind, value in least.items()
        },
    }


def main() -> None:
    """Read the command line, count, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="evilm-small")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--batch", type=int, default=256, help="clips that an optimiser step is shared by")
    parser.add_argument("--tflops", type=float, default=TFLOPS, help="matrix rate of the device in bf16")
    parser.add_argument("--tbytes", type=float, default=TBYTES, help="copy rate of the device, TB/s")
    asked = parser.parse_args()
    found = bound(asked.preset, asked.frames, asked.size, asked.batch, asked.tflops, asked.tbytes)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
