"""Words of a segment: what the model sees there, shown as "why" beside a hit.

Common names of things, places and actions are embedded by the text encoder, once for each model. A segment has those
with the highest cosines, which count less as far as the word fits all segments of the index: such a word says nothing
about one. Of these, words that are close to the query come first.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import io
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm.data.vocabulary import CONTINUES
from evilm.errors import EvilmError
from evilm.files import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.inference import Embedder

NAME = "words.cache"
SHOWN = 3  # words of a hit
_CANDIDATES = 6  # words that a segment has, among which those close to the query come first
_MEAN_SHARE = 2 / 3  # of a word's mean cosine over the index, which is subtracted from its cosine with a segment
_LEAST = 0.75  # of the value of a segment's best word, that another word must have
_RELATED = 2.0  # standard deviations by which a word that is close to the query exceeds the others
_MIN_ROWS = 8  # segments below which the mean over the index is not informative
_MAX_OWN = 1000  # words of a vocabulary that are taken where it lacks most of the list
_FUNCTION_WORDS = frozenset("the and was for with that his from her she you are this they its into then there".split())


@dataclass(frozen=True)
class Words:
    """Words that a model knows.

    Attributes:
        names: the words.
        vectors: (n, D) unit vectors.
    """

    names: tuple[str, ...]
    vectors: NDArray[np.float32]

    def means(self, sample: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n,) mean cosines over a sample (s, D) of an index; zero if it is small."""
        return self.vectors @ sample.mean(0) if len(sample) >= _MIN_ROWS else np.zeros(len(self.names), np.float32)

    def explain(
        self, segments: NDArray[np.float32], query: NDArray[np.float32], means: NDArray[np.float32]
    ) -> list[tuple[str, ...]]:
        """For each segment, at most three words that it has; those close to the query come first.

        Args:
            segments: (k, D) unit vectors.
            query: (D,) unit vector.
            means: see ``means``.
        """
        if not len(self.names):
            return [()] * len(segments)
        close = self.vectors @ query
        close = (close - close.mean()) / max(float(close.std()), 1e-6)
        found: list[tuple[str, ...]] = []
        for row in segments @ self.vectors.T - _MEAN_SHARE * means:
            best = np.argsort(-row)[:_CANDIDATES]
            best = best[(row[best] > 0) & (row[best] >= _LEAST * row[best[0]])]
            order: list[int] = sorted(best.tolist(), key=lambda word: (-max(close[word], _RELATED), -row[word]))
            chosen: list[str] = []
            for name in (self.names[word] for word in order):
                if len(chosen) < SHOWN and not any(_alike(name, other) for other in chosen):
                    chosen.append(name)
            found.append(tuple(chosen))
        return found


def of_model(model: Embedder, folder: Path) -> Words:
    """The words of a model, from the cache in the folder of an index, or computed and written there if that can be."""
    names = _known(model)
    key = hashlib.sha256("\n".join([model.fingerprint, *names]).encode()).hexdigest()
    with suppress(OSError, ValueError, KeyError, EOFError):
        table: Any = np.load(folder / NAME, allow_pickle=False)
        if str(table["key"]) == key:
            return Words(tuple(table["names"].tolist()), table["vectors"].astype(np.float32))
    vectors = np.zeros((0, 1), np.float32)
    with suppress(EvilmError):  # a model without text, or one that does not know these words
        vectors = model.embed_texts(names)
    usable = np.flatnonzero(np.isfinite(vectors).all(axis=1)).tolist()
    words = Words(tuple(names[place] for place in usable), vectors[usable])
    content = io.BytesIO()
    np.savez(content, key=key, names=np.array(words.names, dtype=np.str_), vectors=words.vectors.astype(np.float16))
    with suppress(OSError):  # a folder that cannot be written
        write_atomic(folder / NAME, [content.getbuffer()])
    return words


def _known(model: Embedder) -> list[str]:
    """The words of the list; those of the model's own vocabulary if it lacks most of them, being of another world."""
    text = importlib.resources.files("evilm.search").joinpath("words.txt").read_text(encoding="utf-8")
    names = [word for line in text.splitlines() if not line.startswith("#") for word in line.split()]
    pieces: tuple[str, ...] = getattr(getattr(getattr(model, "runtime", None), "vocabulary", None), "pieces", ())
    if not pieces or 2 * len(set(names) & set(pieces)) >= len(names):
        return names
    own = [piece for piece in pieces if piece.isalpha() and len(piece) > 2 and not piece.startswith(CONTINUES)]
    return [piece for piece in own if piece not in _FUNCTION_WORDS][:_MAX_OWN]


def _alike(one: str, other: str) -> bool:
    """Whether two words have the same stem, as "surf" and "surfing" do."""
    length = min(len(one), len(other), 4)
    return length >= 3 and one[:length] == other[:length]
