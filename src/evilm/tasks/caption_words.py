"""Words of captions: the targets of the video tokenizer (Eq. 5, 6), and the rarity of word pieces."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from typing import TYPE_CHECKING, Literal

import numpy as np

from evilm.errors import VocabularyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from evilm.data.vocabulary import Vocabulary

Kind = Literal["all", "nouns-adjectives"]

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")

_COUNTED, _LONGEST = 200_000, 64  # captions, and word pieces of a caption, that ``piece_weights`` reads
# Closed word classes of English: no nouns, adjectives or numbers.
FUNCTION_WORDS = frozenset(
    "a an the this that these those some any each every no and or but nor so yet if while as than of in on at by for "
    "with from to into onto over under up down out off about between through across around after before behind is are "
    "was were be been being am do does did has have had having will would can could should may might must not it its "
    "he she they them his her their him we you your i me my our us who whom whose which what where when how why there "
    "here very just then first also too again".split()
)
# Endings of verbs and adverbs. A tagger would be more exact, but none works without a model, and this is an ablation.
VERB_OR_ADVERB = re.compile(r"(?:[^aeiou]ly|[a-z]{2}ing|[a-z]{2}[^e]ed)$")
NOUNS_IN_ING = frozenset("building ceiling king morning evening painting ring string thing wedding wing".split())


def words_of(caption: str, kind: Kind = "all") -> list[str]:
    """The lower-case words of a caption, in order; ``nouns-adjectives`` leaves out function words, verbs, adverbs."""
    words = [word.lower() for word in WORD.findall(caption)]
    return words if kind == "all" else [word for word in words if _is_content(word)]


def _is_content(word: str) -> bool:
    return word in NOUNS_IN_ING or (word not in FUNCTION_WORDS and not VERB_OR_ADVERB.search(word))


def piece_weights(vocabulary: Vocabulary, captions: Sequence[str]) -> NDArray[np.float32]:
    """(K,) log inverse document frequency of each word piece; 0 if it is special or occurs in fewer than two captions.

    Args:
        vocabulary: the word pieces.
        captions: training captions; at most 200,000 of them are counted, spread evenly.
    """
    captions = captions[:: -(-len(captions) // _COUNTED) or 1]
    counts = np.zeros(vocabulary.size, dtype=np.int64)
    for start in range(0, len(captions), 4096):
        ids, mask = vocabulary.encode_arrays(captions[start : start + 4096], _LONGEST)
        ids = np.sort(np.where(mask, ids, -1), axis=1)
        first = np.diff(ids, axis=1, prepend=-1) > 0  # each piece of a caption counts once
        counts += np.bincount(ids[first], minlength=vocabulary.size)
    counts[list(vocabulary.special_ids)] = 0
    rarity = np.log(len(captions) / np.maximum(counts, 1)) if captions else np.zeros(vocabulary.size)
    return np.where(counts > 1, rarity, 0.0).astype(np.float32)


class CaptionWords:
    """A fixed list of K words and the multi-hot targets made from it.

    Args:
        words: distinct words, in the order of the tokenizer's outputs.
        kind: which words of a caption count.
    """

    def __init__(self, words: Sequence[str], kind: Kind = "all") -> None:
        self.words = tuple(words)
        self.kind: Kind = kind
        self._index = {word: k for k, word in enumerate(self.words)}
        if len(self._index) != len(self.words):
            raise VocabularyError("the list of caption words has a word twice")

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def count(
        cls, captions: Iterable[str], *, min_count: int, max_words: int | None = None, kind: Kind = "all"
    ) -> CaptionWords:
        """The words that occur in at least ``min_count`` captions, most frequent first.

        Raises:
            VocabularyError: no word is that frequent.
        """
        counts = Counter(word for caption in captions for word in set(words_of(caption, kind)))
        words = sorted((word for word, n in counts.items() if n >= min_count), key=lambda word: (-counts[word], word))
        if not words:
            raise VocabularyError(
                f"none of {len(counts)} distinct words occurs in {min_count} captions or more: lower task.min_count"
            )
        return cls(words[:max_words], kind)

    def targets(self, captions: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """(B, K): 1 where any of a clip's captions has the word."""
        found = np.zeros((len(captions), len(self.words)), dtype=np.float32)
        for row, group in enumerate(captions):
            for caption in group:
                for word in words_of(caption, self.kind):
                    if (k := self._index.get(word)) is not None:
                        found[row, k] = 1
        return found

    def fingerprint(self) -> str:
        """sha256 of the list, which a tokenizer's outputs refer to."""
        return hashlib.sha256("\n".join((self.kind, *self.words)).encode()).hexdigest()
