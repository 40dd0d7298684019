"""Word pieces: text to ids and back.

"Tokenizer" means the paper's video tokenizer; text belongs to ``Vocabulary``. Text is normalised as in BERT (lower
case, no accents, punctuation separated) and split into the longest known pieces; a piece that continues a word begins
with ``##``. ``vocabulary_build`` makes vocabularies.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as Joiner
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from evilm.errors import VocabularyError
from evilm.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from importlib.resources.abc import Traversable
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.types import Text

PAD, UNK, CLS, SEP, MASK = SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUES = "##"
SHIPPED = "coco-9157.json"
_ROUND = 8  # texts are padded to a multiple of this, for fewer different shapes


class Vocabulary:
    """An ordered list of word pieces, which splits text into them.

    Args:
        pieces: all pieces; the position of each is its id. The five ``SPECIALS`` must be among them.

    Raises:
        VocabularyError: a special piece is missing, or a piece is empty or occurs twice.
    """

    def __init__(self, pieces: Sequence[str]) -> None:
        self.pieces = tuple(pieces)
        ids = {piece: i for i, piece in enumerate(self.pieces)}
        missing = [special for special in SPECIALS if special not in ids]
        if missing:
            raise VocabularyError(f"the vocabulary has no {', '.join(missing)}; needed are {', '.join(SPECIALS)}")
        if len(ids) < len(self.pieces) or "" in ids:
            twice = next(piece for i, piece in enumerate(self.pieces) if not piece or ids[piece] != i)
            raise VocabularyError(f"the piece {twice!r} is empty or occurs twice in the vocabulary")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (ids[special] for special in SPECIALS)
        self.special_ids = frozenset(ids[special] for special in SPECIALS)
        self._begins = [
            (not piece.startswith(CONTINUES) and i not in self.special_ids) or i == self.unk_id
            for i, piece in enumerate(self.pieces)
        ]
        self._ids = ids
        self._tokenizer = _tokenizer(ids)

    def __len__(self) -> int:
        return len(self.pieces)

    def __contains__(self, piece: object) -> bool:
        return piece in self._ids

    def __repr__(self) -> str:
        return f"Vocabulary({self.size} pieces, {self.fingerprint[:12]})"

    @property
    def size(self) -> int:
        """Number of pieces: ids are 0 to ``size`` - 1."""
        return len(self.pieces)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the pieces in order, joined by line feeds."""
        return hashlib.sha256("\n".join(self.pieces).encode()).hexdigest()

    # Text and ids

    def pieces_of(self, text: str) -> list[int]:
        """The ids of a whole text, without [CLS] and [SEP].

        Raises:
            VocabularyError: the text cannot be encoded, for example a lone surrogate.
        """
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # noqa: BLE001 - the Rust library raises bare Exception, TypeError, UnicodeEncodeError
            raise VocabularyError(f"text {text!r:.80} cannot be encoded: {error}") from None

    def words_of(self, text: str) -> list[str]:
        """The normalised words of a text: lower case, no accents, punctuation separated.

        Raises:
            VocabularyError: as ``pieces_of``.
        """
        try:
            plain = self._tokenizer.normalizer.normalize_str(text)
            return [word for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(plain)]
        except Exception as error:  # noqa: BLE001 - as above
            raise VocabularyError(f"text {text!r:.80} cannot be encoded: {error}") from None

    def encode(self, texts: Sequence[str], length: int) -> Text:
        """Texts as padded ids: ``[CLS] ... [SEP]``.

        Args:
            texts: B strings; names of special pieces in them are plain words.
            length: maximum number of pieces with [CLS] and [SEP]; longer texts are truncated.

        Returns:
            Ids, mask and word starts, each (B, L); L is the longest text rounded up to a multiple of 8, at most
            ``length``. A word with an unknown character is one [UNK], which starts a word.

        Raises:
            VocabularyError: no texts, a ``length`` below 3, or a text that cannot be encoded.
        """
        import torch

        from evilm.types import Text

        ids, mask = (torch.from_numpy(array) for array in self.encode_arrays(texts, length))
        return Text(ids, mask, torch.tensor(self._begins)[ids] & mask)

    def encode_arrays(self, texts: Sequence[str], length: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """``encode`` without torch: ids and mask, (B, L) each.

        Raises:
            VocabularyError: as ``encode``.
        """
        if isinstance(texts, str) or not texts:
            raise VocabularyError("encode takes a list of at least one text")
        if length < 3:
            raise VocabularyError(f"length {length} leaves no room for a word between [CLS] and [SEP]: use at least 3")
        rows = [[self.cls_id, *self.pieces_of(text)[: length - 2], self.sep_id] for text in texts]
        longest = max(len(row) for row in rows)
        width = min(length, -(-longest // _ROUND) * _ROUND)
        ids = np.array([row + [self.pad_id] * (width - len(row)) for row in rows], dtype=np.int64)
        return ids, np.arange(width) < np.array([[len(row)] for row in rows])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids`` without special pieces other than [UNK] and [MASK].

        Raises:
            VocabularyError: an id is outside this vocabulary.
        """
        wanted = [int(i) for i in ids]
        wrong = next((i for i in wanted if not 0 <= i < self.size), None)
        if wrong is not None:
            raise VocabularyError(f"id {wrong} is outside this vocabulary of {self.size} pieces")
        omitted = (self.pad_id, self.cls_id, self.sep_id)
        return Joiner(prefix=CONTINUES).decode([self.pieces[i] for i in wanted if i not in omitted])

    def unknown_share(self, texts: Iterable[str]) -> float:
        """The fraction of [UNK] among all pieces of ``texts``; 0 without pieces."""
        pieces = unknown = 0
        for text in texts:
            ids = self.pieces_of(text)
            pieces += len(ids)
            unknown += ids.count(self.unk_id)
        return unknown / pieces if pieces else 0.0

    # Files

    def to_bytes(self) -> bytes:
        """The content of the file that ``save`` writes: one line of JSON, equal bytes for equal vocabularies."""
        return (self._tokenizer.to_str() + "\n").encode()

    def save(self, path: Path) -> None:
        """Write the vocabulary as one file in the format of ``tokenizer.json``, atomically.

        Raises:
            VocabularyError: the file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, self.to_bytes())
        except OSError as error:
            raise VocabularyError(f"{path}: the vocabulary cannot be written: {error.strerror}") from None

    @classmethod
    def load(cls, path: Path | Traversable) -> Self:
        """Read a vocabulary in the format of ``tokenizer.json``.

        Raises:
            VocabularyError: the file is missing, damaged, or not a lower-case WordPiece vocabulary.
        """
        try:
            data: Any = json.loads(path.read_bytes())
            model, normalizer = data["model"], data["normalizer"]
            ids = cast("dict[str, int]", model["vocab"])
            pieces = sorted(ids, key=lambda piece: ids[piece])
            supported = (
                model["type"] == "WordPiece" and normalizer["type"] == "BertNormalizer" and normalizer["lowercase"]
            )
            contiguous = [ids[piece] for piece in pieces] == list(range(len(pieces)))
        except FileNotFoundError:
            raise VocabularyError(f"{path}: no such vocabulary; `evilm data vocabulary` makes one") from None
        except OSError as error:
            raise VocabularyError(f"{path}: the vocabulary cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise VocabularyError(f"{path}: is not a vocabulary in the format of tokenizer.json ({reason})") from None
        if not supported or not contiguous:
            gaps = "its ids have gaps or do not start at 0"
            what = gaps if supported else "it is not a lower-case WordPiece vocabulary"
            raise VocabularyError(f"{path}: {what}; `evilm data vocabulary` makes a valid one")
        try:
            return cls(pieces)
        except VocabularyError as error:
            raise VocabularyError(f"{path}: {error}") from None

    @classmethod
    def default(cls) -> Self:
        """The vocabulary of the package; a file beside it has its origin and hash."""
        return cls.load(importlib.resources.files("evilm.data") / "words" / SHIPPED)


def _tokenizer(ids: dict[str, int]) -> Tokenizer:
    """BERT's normalisation, splitting and longest-match-first search over ``ids``."""
    try:
        tokenizer = Tokenizer(WordPiece(ids, unk_token=UNK, max_input_chars_per_word=100))
    except Exception as error:  # noqa: BLE001 - as above, for a lone surrogate in a piece
        raise VocabularyError(f"the vocabulary cannot be used: {error}") from None
    tokenizer.normalizer = BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = Joiner(prefix=CONTINUES)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{CLS} $A {SEP}", special_tokens=[(CLS, ids[CLS]), (SEP, ids[SEP])]
    )
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.encode_special_tokens = True  # "[MASK]" in a caption is plain text, not a mask
    return tokenizer
