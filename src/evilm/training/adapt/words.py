"""Words that a model does not know, and a start that has room for them.

A word that is not a piece of the vocabulary is cut into smaller ones, at worst into letters, and a text encoder that
never saw these together has to learn to spell before it can learn what "purple" looks like. Such words get a piece of
their own, whose vector begins as the mean of those that it was cut into.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from evilm.data.vocabulary import Vocabulary
from evilm.errors import CheckpointError
from evilm.training import checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from torch import Tensor

    from evilm.types import Example

EMBEDDING = "model.text_encoder.bert.embeddings.word_embeddings.weight"
CLIPS = 2  # that a word has to be said of to get a piece of its own
MOST = 2000  # new pieces
_LONGEST = 40  # letters of one


@dataclass(frozen=True, slots=True)
class Words:
    """How well a vocabulary knows some captions.

    Attributes:
        count: words in all, repeated ones counted each time.
        cut: of these, how many are no piece of their own.
        unknown: share of pieces that stand for a character that the vocabulary lacks.
        top: the most frequent words that are cut, with the number of clips that they are said of.
        new: words that are worth a piece of their own, most frequent first.
    """

    count: int
    cut: int
    unknown: float
    top: tuple[tuple[str, int], ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        said = f"{100 * self.cut / max(1, self.count):.1f} % of {self.count:,} words are not in the model's vocabulary"
        if self.unknown:
            said += f", {100 * self.unknown:.1f} % of the pieces are wholly unknown"
        return said + (f"; most often: {', '.join(word for word, _ in self.top[:12])}" if self.top else "")

    def as_json(self) -> dict[str, Any]:
        return {"words": self.count, "cut": self.cut, "unknown pieces": self.unknown, "top": dict(self.top),
                "new": list(self.new)}  # fmt: skip


def examine(vocabulary: Vocabulary, examples: Iterable[Example]) -> Words:
    """What a vocabulary does to the captions of the clips that are learned from."""
    count = cut = 0
    clips: Counter[str] = Counter()
    whole: dict[str, bool] = {}
    texts: list[str] = []
    for example in examples:
        texts += example.captions
        said = [word for caption in example.captions for word in vocabulary.words_of(caption)]
        for word in said:
            if word not in whole:
                whole[word] = word in vocabulary
            count += 1
            cut += not whole[word]
        clips.update({word for word in said if not whole[word]})
    order = sorted(clips.items(), key=lambda item: (-item[1], item[0]))
    new = [word for word, clips_of in order if clips_of >= CLIPS and len(word) <= _LONGEST]
    return Words(count, cut, vocabulary.unknown_share(texts), tuple(order[:50]), tuple(new[:MOST]))


def extend(source: Path, words: Sequence[str], out: Path) -> None:
    """Write the checkpoint ``source`` to ``out`` with a piece for each of ``words``, all else as it was.

    Raises:
        CheckpointError: it has no table of word pieces of the size of its vocabulary.
        OutputError: ``out`` cannot be written.
    """
    tensors = checkpoint.read_tensors(source / "model.safetensors")
    vocabulary = Vocabulary.load(source / "vocabulary.json")
    table = tensors.get(EMBEDDING)
    if table is None or table.shape[0] != vocabulary.size:
        raise CheckpointError(f"{source}: has no {EMBEDDING} for the {vocabulary.size} pieces of its vocabulary")
    tensors[EMBEDDING] = torch.cat([table, rows(table, vocabulary, words)])
    about = checkpoint.read_json(source / "config.json")

    def fill(folder: Path) -> None:
        checkpoint.write_tensors(folder / "model.safetensors", tensors)
        checkpoint.write_json(folder / "config.json", {**about, "extended": {"from": str(source), "words": words}})
        Vocabulary([*vocabulary.pieces, *words]).save(folder / "vocabulary.json")

    checkpoint.write(out, fill)


def rows(table: Tensor, vocabulary: Vocabulary, words: Sequence[str]) -> Tensor:
    """Vectors (words, D) for new pieces: each the mean of those that its word was cut into."""
    return torch.stack([table[vocabulary.pieces_of(word)].mean(0) for word in words])
