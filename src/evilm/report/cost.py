"""What a model costs: parameters and multiply-accumulates (MACs), counted on a real forward pass (paper, Table 1).

A MAC is one multiplication and one addition in a convolution or a matrix product, attention's two products included;
FLOPs are printed as twice that. Norms, activations, softmax, interpolation and look-ups are not counted, as is usual.
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

# What belongs to which part of Figure 3: names of modules and parameters within an ``EViLM``.
PARTS: dict[str, tuple[str, ...]] = {
    "video_encoder": ("video_encoder.backbone",),
    "text_encoder": ("text_encoder.bert",),
    "projections": ("video_encoder.project", "video_encoder.motion", "text_encoder.project"),
    "positions": ("video_encoder.space", "video_encoder.time"),
    "fusion": ("fusion",),
}


class Part(NamedTuple):
    """What one part of a model costs."""

    parameters: int
    macs: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What a preset costs for one clip and one text.

    Attributes:
        preset: its name.
        frames, size, words: T frames of ``size`` x ``size`` pixels and L word pieces, special ones included.
        parameters, macs: of the model without heads: the sums over ``parts``.
        parameters_with_heads, macs_with_heads: with the heads of pre-training (MLM, MVM, VTM), asked about every word
            piece, every region and [CLS] once; training asks only about what is masked.
        flops: 2 x ``macs``.
        parts: what each part of Figure 3 adds.
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
        """A table for people: millions of parameters, thousands of millions of MACs."""
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
    preset: str, frames: int = 4, size: int = 256, words: int = 30, vocabulary: int = 9157, codes: int = 9420
) -> Cost:
    """What a preset costs, counted on one clip and one text.

    Args:
        preset: a name of ``model.presets.PRESETS``.
        frames: T.
        size: pixels of a frame's side.
        words: L, word pieces of the text with [CLS] and [SEP].
        vocabulary: how many word pieces the text encoder knows.
        codes: M of the video tokenizer, which the MVM head tells apart.

    Raises:
        ConfigError: no such preset, or fewer than one frame or word, or more words than the text encoder reads.
        GridError: a size that is no multiple of the encoder's stride.
    """
    from evilm.model.presets import preset as shape

    return cost_of_shape(preset, shape(preset), frames, size, words, vocabulary, codes)


def cost_of_shape(
    name: str, config: ModelConfig, frames: int, size: int, words: int, vocabulary: int, codes: int = 9420
) -> Cost:
    """What a model of any shape costs under ``name``; see ``cost_of``.

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
    # Only the shape matters, so weights are drawn, not read, and the caller's random numbers are left as they were.
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
    """Numbers that training can change; those shared between modules count once."""
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


def count_macs(call: Callable[[], object]) -> int:
    """The MACs of one call without arguments, such as ``lambda: model(pixels)``.

    Modules that behave differently in training should be in ``eval`` mode.
    """
    with _counting() as counter:
        call()
    return counter.get_total_flops() // 2


@contextmanager
def _counting() -> Generator[FlopCounterMode]:
    """A counter of floating-point operations (2 a MAC) that sees every product, attention's too."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Fused attention and the fused encoder layer are single operations to the counter, some of them without a formula:
    # written out as matrix products they are all counted alike on every device.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _parts(model: EViLM, frames: int, size: int, words: int) -> dict[str, Part]:
    """Each entry of ``PARTS`` with its parameters and MACs."""
    import torch

    from evilm.types import Text

    pixels = torch.zeros(1, frames, 3, size, size)
    here = torch.ones(1, words, dtype=torch.bool)
    text = Text(ids=torch.zeros(1, words, dtype=torch.long), mask=here, starts=here)
    macs = macs_by_module(model, lambda: model.fuse(model.encode_video(pixels), model.encode_text(text)), PARTS)
    return {name: Part(_parameters(model, places), macs[name]) for name, places in PARTS.items()}


def _heads(model: EViLM, regions: int, words: int, codes: int) -> Part:
    """The heads of pre-training (3.4): words of all word pieces, codes of all regions, a match."""
    import torch

    from evilm.model.heads import MatchHead, PatchHead, WordHead

    width, embeddings = model.embed_dim, model.text_encoder.word_embeddings
    word, region = WordHead(width, embeddings.shape[1], embeddings.shape[0]), PatchHead(width, codes)
    match = MatchHead(width)
    pieces, cells, cls = torch.zeros(1, words, width), torch.zeros(1, regions, width), torch.zeros(1, width)
    macs = count_macs(lambda: (word(pieces, embeddings), region(cells), match(cls)))
    return Part(count_parameters(word, region, match), macs)


def _parameters(model: nn.Module, places: tuple[str, ...]) -> int:
    """The parameters at or below the named places."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if any(name == place or name.startswith(f"{place}.") for place in places)
    )


def macs_by_module(
    model: nn.Module, call: Callable[[], object], places: Mapping[str, tuple[str, ...]]
) -> dict[str, int]:
    """The MACs of ``call`` by part of ``model``; places that are no modules (parameters) count none.

    Args:
        model: what is called.
        call: calls it, without arguments.
        places: the names of each part's modules; they must not lie within one another.
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
    """Add what each call of ``module`` costs to ``spent[name]``: the counter afterwards, less the counter before."""

    def before(_module: nn.Module, _inputs: object) -> None:
        spent[name] -= counter.get_total_flops()

    def after(_module: nn.Module, _inputs: object, _output: object) -> None:
        spent[name] += counter.get_total_flops()

    stack.callback(module.register_forward_pre_hook(before).remove)
    stack.callback(module.register_forward_hook(after).remove)
