"""Published video-language models written anew from their papers, to compare their cost on equal terms (Table 1).

| model | video and text | paper |
|---|---|---|
| all-in-one-T, -S, -B | one ViT/16 reads a frame's patches and the words; patches roll in time | arXiv 2203.07303 |
| Frozen | ViT-B/16 with attention over time, then over space; DistilBERT; two vectors | arXiv 2104.00650 |
| CLIP4Clip | CLIP ViT-B/32, the mean of the frames; CLIP's text transformer; two vectors | arXiv 2104.08860 |
| VIOLET | Video Swin-B, then BERT-base over words and patches; predicts discrete pixel codes | arXiv 2111.12681 |

They have the sizes of their papers, their number of frames and words, and random weights. Heads are those of
pre-training: words and matching, VIOLET's pixel codes, and the two projections of dual encoders.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from evilm.model.heads import MatchHead, PatchHead, WordHead
from evilm.model.layers import Attention, Block
from evilm.report.cost import Cost, count_macs, count_parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor

BERT_WORDS, CLIP_WORDS, PIXEL_CODES = 30522, 49408, 8192
OURS = 12.2  # the paper's operations of E-ViLM, 1e9


class Words(nn.Module):
    """Embeddings of word pieces and of their positions, then a layer norm, as in BERT."""

    def __init__(self, width: int, positions: int, vocabulary: int = BERT_WORDS) -> None:
        super().__init__()
        self.pieces, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) to (B, L, D)."""
        return self.norm(self.pieces(ids) + self.positions.weight[: ids.shape[1]])


class Patches(nn.Module):
    """Square patches of each frame with a class token and positions, as in ViT."""

    def __init__(self, width: int, patch: int, size: int = 224) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, width, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.space = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, width))

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) to (B T, 1 + N, D)."""
        tokens = self.project(frames.flatten(0, 1)).flatten(2).transpose(1, 2)
        return torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], 1) + self.space


def _blocks(depth: int, width: int, num_heads: int) -> nn.ModuleList:
    """Transformer blocks with a feed-forward layer of four times their width."""
    return nn.ModuleList(Block(width, num_heads, 4 * width) for _ in range(depth))


def roll(tokens: Tensor, frames: int, share: int = 8) -> Tensor:
    """Temporal token rolling: one eighth of a frame's patches goes to the next frame, one eighth to the previous.

    Args:
        tokens: (B T, N, D), patches only.
        frames: T.
        share: one divided by the fraction that moves in each direction.
    """
    by_frame = tokens.reshape(-1, frames, *tokens.shape[1:])
    moved = tokens.shape[1] // share
    parts: Sequence[Tensor] = torch.split(by_frame, [moved, moved, tokens.shape[1] - 2 * moved], dim=2)
    later, earlier, rest = parts
    return torch.cat([later.roll(1, 1), earlier.roll(-1, 1), rest], 2).flatten(0, 1)


class AllInOne(nn.Module):
    """One transformer for both modalities: the words are repeated for each frame, the outputs averaged over frames."""

    def __init__(self, width: int, num_heads: int, frames: int = 3, words: int = 40) -> None:
        super().__init__()
        self.words, self.patches, self.blocks = Words(width, words), Patches(width, 16), _blocks(12, width, num_heads)
        self.time, self.kinds = nn.Parameter(torch.zeros(frames, 1, width)), nn.Parameter(torch.zeros(2, width))
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({"words": WordHead(width, width, BERT_WORDS), "match": MatchHead(width)})

    def forward(self, frames: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Words (B, L, D) and [CLS] (B, D)."""
        count, length = frames.shape[1], ids.shape[1]
        text = (self.words(ids) + self.kinds[0]).repeat_interleave(count, 0)
        video = self.patches(frames) + self.time[:count].repeat(len(ids), 1, 1) + self.kinds[1]
        x = torch.cat([text, video], 1)
        for block in self.blocks:
            x = block(torch.cat([x[:, : length + 1], roll(x[:, length + 1 :], count)], 1))
        x = self.norm(x).unflatten(0, (-1, count)).mean(1)
        return x[:, :length], x[:, length]

    def apply_heads(self, words: Tensor, cls: Tensor) -> tuple[Tensor, ...]:
        return self.heads["words"](words, self.words.pieces.weight), self.heads["match"](cls)


class DividedBlock(Block):
    """A block that attends over time, at each place, before it attends over space, in each frame."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__(width, num_heads, 4 * width)
        self.time_norm, self.time_attention = nn.LayerNorm(width), Attention(width, num_heads)

    def over_time(self, x: Tensor, frames: int) -> Tensor:
        """(B T, 1 + N, D) to the same shape; class tokens do not take part."""
        by_place = self.time_norm(x[:, 1:]).unflatten(0, (-1, frames)).transpose(1, 2)  # (B, N, T, D)
        mixed = self.time_attention(by_place.flatten(0, 1)).unflatten(0, by_place.shape[:2])
        return torch.cat([x[:, :1], x[:, 1:] + mixed.transpose(1, 2).flatten(0, 1)], 1)


class DualEncoder(nn.Module):
    """A ViT over frames and a transformer over words; each gives one vector.

    Args:
        width, patch: of the ViT, which has 12 blocks.
        text_width, text_depth, vocabulary, positions: of the text transformer.
        out_dim: of the vectors.
        divided: attend over time, too (Frozen); otherwise frames meet in their mean only (CLIP4Clip).
        causal: a word sees the words before it only, and the last one represents the text (CLIP).
    """

    def __init__(
        self, width: int, patch: int, text_width: int, text_depth: int, vocabulary: int, positions: int, out_dim: int,
        *, divided: bool, causal: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patches, self.words = Patches(width, patch), Words(text_width, positions, vocabulary)
        self.divided, self.causal = divided, causal
        heads, text_heads = width // 64, text_width // 64
        self.blocks = (
            nn.ModuleList(DividedBlock(width, heads) for _ in range(12)) if divided else _blocks(12, width, heads)
        )
        self.text_blocks = _blocks(text_depth, text_width, text_heads)
        self.norm, self.text_norm = nn.LayerNorm(width), nn.LayerNorm(text_width)
        self.time = nn.Parameter(torch.zeros(1, 4, 1, width)) if divided else None
        self.heads = nn.ModuleDict({"video": nn.Linear(width, out_dim), "text": nn.Linear(text_width, out_dim)})

    def forward(self, frames: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Mean [CLS] of the frames (B, D) and [CLS] of the text (B, d)."""
        count, x, text = frames.shape[1], self.patches(frames), self.words(ids)
        if self.time is not None:
            x = (x.unflatten(0, (-1, count)) + self.time[:, :count]).flatten(0, 1)
        for block in self.blocks:
            x = block(block.over_time(x, count) if isinstance(block, DividedBlock) else x)
        for block in self.text_blocks:
            text = block(text)  # a causal mask would change neither parameters nor MACs
        cls = self.norm(x)[:, 0].unflatten(0, (-1, count)).mean(1)
        return cls, self.text_norm(text)[:, -1 if self.causal else 0]

    def apply_heads(self, video: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        return F.normalize(self.heads["video"](video), dim=-1), F.normalize(self.heads["text"](text), dim=-1)


class Violet(nn.Module):
    """Video Swin, then BERT over words and patches; masked patches are predicted as the codes of a pixel tokenizer."""

    def __init__(self, embed_dim: int = 128, depths: tuple[int, ...] = (2, 2, 18, 2), width: int = 768) -> None:
        super().__init__()
        from torchvision.models.video.swin_transformer import SwinTransformer3d

        # A patch is one frame deep, so that T frames give T x 7 x 7 patches, as in the paper.
        self.swin: Any = SwinTransformer3d(
            [1, 4, 4], embed_dim, list(depths), [embed_dim * 2**i // 32 for i in range(4)], [8, 7, 7]
        )
        del self.swin.head
        self.project, self.words = nn.Linear(8 * embed_dim, width), Words(width, 512)
        self.space, self.time = (nn.Parameter(torch.zeros(shape)) for shape in ((1, 1, 49, width), (1, 8, 1, width)))
        self.blocks, self.norm = _blocks(12, width, width // 64), nn.LayerNorm(width)
        self.heads = nn.ModuleDict({
            "words": WordHead(width, width, BERT_WORDS), "match": MatchHead(width),
            "patches": PatchHead(width, PIXEL_CODES),
        })  # fmt: skip

    def forward(self, frames: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Words (B, L, D), patches (B, T x 49, D) and [CLS] (B, D)."""
        x = self.swin.pos_drop(self.swin.patch_embed(frames.transpose(1, 2)))
        x = self.project(self.swin.norm(self.swin.features(x))).flatten(2, 3)  # (B, T, 49, D)
        video = (x + self.space + self.time[:, : frames.shape[1]]).flatten(1, 2)
        x = torch.cat([self.words(ids), video], 1)
        for block in self.blocks:
            x = block(x)
        x, length = self.norm(x), ids.shape[1]
        return x[:, :length], x[:, length:], x[:, 0]

    def apply_heads(self, words: Tensor, patches: Tensor, cls: Tensor) -> tuple[Tensor, ...]:
        return (
            self.heads["words"](words, self.words.pieces.weight), self.heads["patches"](patches),
            self.heads["match"](cls),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Peer:
    """A model of the comparison.

    Attributes:
        build: makes it with random weights.
        frames, size, words: of its paper.
        printed: 1e9 operations in Table 1 of the E-ViLM paper; None if it has no such row.
    """

    build: Callable[[], AllInOne | DualEncoder | Violet]
    frames: int
    words: int
    printed: float | None = None
    size: int = 224


PEERS: dict[str, Peer] = {
    "all-in-one-T": Peer(partial(AllInOne, 192, 3), 3, 40, 18.1),
    "all-in-one-S": Peer(partial(AllInOne, 384, 6), 3, 40, 134),
    "all-in-one-B": Peer(partial(AllInOne, 768, 12), 3, 40, 235),
    "Frozen": Peer(
        partial(DualEncoder, 768, 16, 768, 6, BERT_WORDS, 512, 256, divided=True, causal=False), 4, 30
    ),
    "CLIP4Clip": Peer(
        partial(DualEncoder, 768, 32, 512, 12, CLIP_WORDS, 77, 512, divided=False, causal=True), 12, 32
    ),
    "VIOLET": Peer(Violet, 5, 25, 4900),
}  # fmt: skip


def inputs(peer: Peer) -> tuple[Tensor, Tensor]:
    """A clip and a text of the peer's size."""
    return torch.rand(1, peer.frames, 3, peer.size, peer.size), torch.zeros(1, peer.words, dtype=torch.long)


def peer_cost(name: str) -> Cost:
    """Parameters and MACs of a peer, counted as those of an ``EViLM``; it has no parts."""
    peer = PEERS[name]
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # shapes only: no memory, no arithmetic
        model: Any = peer.build().eval()
        clip, text = inputs(peer)
        with torch.no_grad():
            states = model(clip, text)
        macs, heads = count_macs(lambda: model(clip, text)), count_macs(lambda: model.apply_heads(*states))
    everything, own = count_parameters(model), count_parameters(model.heads)
    return Cost(
        preset=name, frames=peer.frames, size=peer.size, words=peer.words,
        parameters=everything - own, parameters_with_heads=everything,
        macs=macs, macs_with_heads=macs + heads, flops=2 * macs, parts={},
    )  # fmt: skip


def paragraph(costs: Iterable[Cost]) -> str:
    """Why no single convention gives the paper's operations, from the counts themselves."""
    printed = {"evilm-small": OURS} | {name: peer.printed for name, peer in PEERS.items() if peer.printed}
    ratios = [
        f"{cost.preset} {cost.macs / 1e9:.1f} GMAC, printed {value:g} ({value * 1e9 / cost.macs:.1f} times)"
        for cost in costs
        if (value := printed.get(cost.preset))
    ]
    return (
        "The paper's column FP follows no single convention. One convention would print the same multiple of the MACs "
        f"for every model: 1 for MACs, 2 for FLOPs. Counted here, and printed: {'; '.join(ratios)}. Clips, texts and "
        "frames other than those above may explain a part; the paper does not state them. So 12.2 against 235 does not "
        "tell how much cheaper E-ViLM is. The columns above are counted alike for all."
    )


def compare(measured: Mapping[str, dict[str, Any]], costs: Sequence[Cost]) -> str:
    """The comparison as a table, ``evilm-small`` first, and the paragraph on the paper's convention.

    Args:
        measured: by name, results of ``latency.measure``; may be empty.
        costs: the rows.
    """
    header = f"{'':<13}{'frames':>7}{'size':>6}{'words':>6}{'M param.':>10}{'GMAC':>8}{'GFLOP':>8}"
    lines = [f"{header}{'+ heads: M':>12}{'GMAC':>8}{'ms':>9}{'fastest':>9}{'CPU ms':>9}{'peak MiB':>10}"]
    for cost in costs:
        row = f"{cost.preset:<13}{cost.frames:>7}{cost.size:>6}{cost.words:>6}{cost.parameters / 1e6:>10.1f}"
        row += f"{cost.macs / 1e9:>8.2f}{cost.flops / 1e9:>8.2f}"
        row += f"{cost.parameters_with_heads / 1e6:>12.1f}{cost.macs_with_heads / 1e9:>8.2f}"
        if (found := measured.get(cost.preset)) is not None:
            times = found["seconds"]["all"]
            row += "".join(f"{1000 * times[key]:>9.0f}" for key in ("median", "fastest", "cpu"))
            row += f"{found['memory_mib']['peak']:>10,}"
        lines.append(row)
    lines.append("GFLOP is 2 x MACs. Parameters and MACs are without heads, then with those of pre-training.")
    if measured:
        threads = next(iter(measured.values()))["threads"]
        lines.append(
            f"ms, fastest, CPU ms: median, least, and least CPU time for one clip and one text, float32, {threads} "
            "threads. Peak memory includes Python and torch."
        )
    return "\n".join([*lines, "", *textwrap.wrap(paragraph(costs), 118)])
