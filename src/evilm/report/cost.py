"""Parameters and multiply-accumulates (MACs) of a model, counted on a forward pass (paper, Table 1).

A MAC is one multiplication and one addition in a convolution or a matrix product, including both products of attention;
FLOPs are 2 x MACs. Norms, activations, softmax, interpolation and embedding look-ups are not counted, as is usual.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from evilm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    from evilm.model.evilm import EViLM
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
    from evilm.model.presets import preset as find

    shape = find(preset)
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
    import torch

    from evilm.model.evilm import EViLM

    if frames < 1 or not 1 <= words <= config.max_text_len:
        raise ConfigError(
            f"{frames} frames and {words} words: preset {name!r} takes 1 frame or more and 1 to "
            f"{config.max_text_len} words"
        )
    # Random weights have the same cost. The caller's random state is not changed.
    with torch.random.fork_rng(devices=[]):
        model = EViLM(config.model_copy(update={"backbone_weights": "none"}), vocabulary).eval()
        regions = model.video_encoder.grid(frames, size, size).patches
        heads = _heads(model, regions, words, codes)
    parts = _parts(model, frames, size, words)
    parameters = sum(part.parameters for part in parts.values())
    macs = sum(part.macs for part in parts.values())
    return Cost(
        preset=name,
        frames=frames,
        size=size,
        words=words,
        parameters=parameters,
        parameters_with_heads=parameters + heads.parameters,
        macs=macs,
        macs_with_heads=macs + heads.macs,
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
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter has no formula for some fused attention kernels. With plain matrix products the result is the same on
    # every device.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _parts(model: EViLM, frames: int, size: int, words: int) -> dict[str, Part]:
    """Parameters and MACs of each entry of ``PARTS``."""
    import torch

    from evilm.types import Text

    pixels = torch.zeros(1, frames, 3, size, size)
    here = torch.ones(1, words, dtype=torch.bool)
    text = Text(ids=torch.zeros(1, words, dtype=torch.long), mask=here, starts=here)
    macs = macs_by_module(model, lambda: model.fuse(model.encode_video(pixels), model.encode_text(text)), PARTS)
    return {name: Part(_parameters(model, places), macs[name]) for name, places in PARTS.items()}


def _heads(model: EViLM, regions: int, words: int, codes: int) -> Part:
    """Cost of the pre-training heads (section 3.4) on all word pieces, all patches and [CLS]."""
    import torch

    from evilm.model.heads import MatchHead, PatchHead, WordHead

    width, embeddings = model.embed_dim, model.text_encoder.word_embeddings
    word, region = WordHead(width, embeddings.shape[1], embeddings.shape[0]), PatchHead(width, codes)
    match = MatchHead(width)
    pieces, cells, cls = torch.zeros(1, words, width), torch.zeros(1, regions, width), torch.zeros(1, width)
    macs = count_macs(lambda: (word(pieces, embeddings), region(cells), match(cls)))
    return Part(count_parameters(word, region, match), macs)


def _parameters(model: nn.Module, places: tuple[str, ...]) -> int:
    """Parameters at or below the named modules."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if any(name == place or name.startswith(f"{place}.") for place in places)
    )


def macs_by_module(
    model: nn.Module, call: Callable[[], object], places: Mapping[str, tuple[str, ...]]
) -> dict[str, int]:
    """MACs of ``call`` by part of ``model``.

    Args:
        model: the model that ``call`` uses.
        call: a call without arguments.
        places: names of each part's modules, none inside another; names of parameters add nothing.
    """
    from torch import nn

    spent = dict.fromkeys(places, 0)
    with ExitStack() as stack:
        counter = stack.enter_context(_counting())
        for name, inner in places.items():
            for place in inner:
                module = attrgetter(place)(model)
                if isinstance(module, nn.Module):
                    _meter(module, counter, spent, name, stack)
        call()
    return {name: flops // 2 for name, flops in spent.items()}


def _meter(module: nn.Module, counter: FlopCounterMode, spent: dict[str, int], name: str, stack: ExitStack) -> None:
    """Add the operations of each call of ``module`` to ``spent[name]``."""

    def before(_module: nn.Module, _inputs: object) -> None:
        spent[name] -= counter.get_total_flops()

    def after(_module: nn.Module, _inputs: object, _output: object) -> None:
        spent[name] += counter.get_total_flops()

    stack.callback(module.register_forward_pre_hook(before).remove)
    stack.callback(module.register_forward_hook(after).remove)
