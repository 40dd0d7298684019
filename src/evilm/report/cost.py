"""Parameters and multiply-accumulates (MACs) of a model, counted on a forward pass (paper, Table 1).

A MAC is one multiplication and one addition in a convolution or a matrix product, including both products of attention;
FLOPs are 2 x MACs. Norms, activations, softmax, interpolation and embedding look-ups are not counted, as is usual.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from evilm.errors import ConfigError
from evilm.model.evilm import EViLM
from evilm.model.heads import MatchHead, PatchHead, WordHead
from evilm.model.presets import preset as find_preset
from evilm.types import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from evilm.model.presets import ModelConfig

# The parts of Figure 3: names of modules and parameters of an ``EViLM``.
PARTS: dict[str, tuple[str, ...]] = {
    "video_encoder": ("video_encoder.backbone",),
    "text_encoder": ("text_encoder.bert",),
    "projections": ("video_encoder.project", "video_encoder.motion", "text_encoder.project"),
    "positions": ("video_encoder.space", "video_encoder.time"),
    "fusion": ("fusion",),
}


class Part(NamedTuple):
    """Cost of one part of a model."""

    parameters: int
    macs: int


# Printed below a cost, so that its numbers are not compared with the paper's.
CONVENTION = """\
The paper's column FP follows no single convention. The E-ViLM that it describes needs 7.4 GMAC, or 14.7 GFLOP at 2 per
MAC, for 4 frames of 256x256 and 30 words; the printed 12.2 is neither. all-in-one-B, a ViT-B/16 that reads 3 frames of
224x224 with 40 words each, needs 63.8 GMAC or 127.7 GFLOP; the printed 235 is neither. `evilm cost --peers` compares
them, and others, by one convention."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a model for one clip and one text.

    Attributes:
        preset: name of the model.
        frames, size, words: T frames of ``size`` x ``size`` pixels, and L word pieces with the special ones.
        parameters, macs: without heads: the sums over ``parts``.
        parameters_with_heads, macs_with_heads: with the heads of pre-training (MLM on every word piece, MVM on every
            patch, VTM on [CLS]); training computes MLM and MVM only for masked positions.
        flops: 2 x ``macs``.
        parts: cost of each part of Figure 3.
    """

    preset: str
    frames: int
    size: int
    words: int
    parameters: int
    parameters_with_heads: int
    macs: int
    macs_with_heads: int
    flops: int
    parts: dict[str, Part]

    def as_json(self) -> dict[str, Any]:
        """The attributes as plain JSON values."""
        return asdict(self) | {"parts": {name: part._asdict() for name, part in self.parts.items()}}

    def as_text(self) -> str:
        """The cost as a table: millions of parameters, 1e9 MACs and FLOPs."""
        heads = Part(self.parameters_with_heads - self.parameters, self.macs_with_heads - self.macs)
        rows = {
            **self.parts,
            "total without heads": Part(self.parameters, self.macs),
            "pre-training heads": heads,
            "total with heads": Part(self.parameters_with_heads, self.macs_with_heads),
        }
        lines = [
            f"{self.preset}: {self.frames} frames of {self.size}x{self.size}, {self.words} words",
            f"{'':<20} {'parameters':>12} {'GMAC':>8} {'GFLOP (2x)':>11}",
        ]
        for name, (parameters, macs) in rows.items():
            lines.append(f"{name:<20} {parameters / 1e6:>10.3f} M {macs / 1e9:>8.3f} {2 * macs / 1e9:>11.3f}")
        lines += ["", CONVENTION]
        return "\n".join(lines)


def cost_of(
    preset: str,
    frames: int | None = None,
    size: int | None = None,
    words: int = 30,
    vocabulary: int = 9157,
    codes: int = 9420,
) -> Cost:
    """The cost of a preset for one clip and one text.

    Args:
        preset: a name of ``model.presets.PRESETS``.
        frames: T; None for the preset's own.
        size: height and width of a frame in pixels; None for the preset's own.
        words: L, word pieces of the text with [CLS] and [SEP].
        vocabulary: number of word pieces of the text encoder.
        codes: M, the size of the video tokenizer's codebook, for the MVM head.

    Raises:
        ConfigError: no such preset, or fewer than one frame or word, or more words than the text encoder reads.
        GridError: a size that is no multiple of the encoder's stride.
    """
    shape = find_preset(preset)
    return cost_of_shape(
        preset, shape, shape.num_frames if frames is None else frames, shape.image_size if size is None else size,
        words, vocabulary, codes,
    )  # fmt: skip


def cost_of_shape(
    name: str, config: ModelConfig, frames: int, size: int, words: int, vocabulary: int, codes: int = 9420
) -> Cost:
    """The cost of a model of any shape, printed under ``name``; see ``cost_of``.

    Raises:
        ConfigError, GridError: as for ``cost_of``.
    """
    if frames < 1 or not 1 <= words <= config.max_text_len:
        raise ConfigError(
            f"{frames} frames and {words} words: preset {name!r} takes 1 frame or more and 1 to "
            f"{config.max_text_len} words"
        )
    # Random weights have the same cost. The caller's random state is not changed.
    with torch.random.fork_rng(devices=[]):
        model = EViLM(config.model_copy(update={"backbone_weights": "none"}), vocabulary).eval()
        width, embeddings = model.embed_dim, model.text_encoder.word_embeddings
        mlm, mvm = WordHead(width, embeddings.shape[1], embeddings.shape[0]), PatchHead(width, codes)
        vtm = MatchHead(width)
    patches = model.video_encoder.grid(frames, size, size).patches
    pieces, tokens, cls = torch.zeros(1, words, width), torch.zeros(1, patches, width), torch.zeros(1, width)
    head_macs = count_macs(lambda: (mlm(pieces, embeddings), mvm(tokens), vtm(cls)))
    pixels, mask = torch.zeros(1, frames, 3, size, size), torch.ones(1, words, dtype=torch.bool)
    text = Text(ids=torch.zeros(1, words, dtype=torch.long), mask=mask, starts=mask)
    by_part = macs_by_module(model, lambda: model.fuse(model.encode_video(pixels), model.encode_text(text)), PARTS)
    values = {key: parameter.numel() for key, parameter in model.named_parameters()}
    parts = {
        part: Part(sum(count for key, count in values.items() if f"{key}.".startswith(prefixes)), by_part[part])
        for part, prefixes in ((part, tuple(f"{place}." for place in places)) for part, places in PARTS.items())
    }
    parameters = sum(part.parameters for part in parts.values())
    macs = sum(part.macs for part in parts.values())
    return Cost(
        preset=name,
        frames=frames,
        size=size,
        words=words,
        parameters=parameters,
        parameters_with_heads=parameters + count_parameters(mlm, mvm, vtm),
        macs=macs,
        macs_with_heads=macs + head_macs,
        flops=2 * macs,
        parts=parts,
    )


def count_parameters(*modules: nn.Module) -> int:
    """Number of trainable values; parameters shared between modules count once."""
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


def count_macs(call: Callable[[], object]) -> int:
    """MACs of one call without arguments, such as ``lambda: model(pixels)``; put modules into ``eval`` mode first."""
    with _counting() as counter:
        call()
    return counter.get_total_flops() // 2


@contextmanager
def _counting() -> Generator[FlopCounterMode]:
    """A counter of floating-point operations (2 per MAC) that includes the products of attention."""
    # The counter has no formula for some fused attention kernels. With plain matrix products the result is the same on
    # every device.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def macs_by_module(
    model: nn.Module, call: Callable[[], object], places: Mapping[str, tuple[str, ...]]
) -> dict[str, int]:
    """MACs of ``call`` by part of ``model``.

    Args:
        model: the model that ``call`` uses.
        call: a call without arguments.
        places: names of each part's modules, none inside another; names of parameters add nothing.
    """
    spent = dict.fromkeys(places, 0)
    with ExitStack() as stack:
        counter = stack.enter_context(_counting())
        for part, names in places.items():

            def before(_module: nn.Module, _inputs: object, part: str = part) -> None:
                spent[part] -= counter.get_total_flops()

            def after(_module: nn.Module, _inputs: object, _output: object, part: str = part) -> None:
                spent[part] += counter.get_total_flops()

            for module in (attrgetter(name)(model) for name in names):
                if isinstance(module, nn.Module):
                    stack.callback(module.register_forward_pre_hook(before).remove)
                    stack.callback(module.register_forward_hook(after).remove)
        call()
    return {part: flops // 2 for part, flops in spent.items()}
