"""Build a vocabulary: prune a published one to the pieces that captions use, or train one on captions.

The paper (section 4.1) keeps the 30 % most frequent pieces of bert-base-uncased in COCO captions: 9,157 of 30,522.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer

from evilm.data.readers.captions import captions_by_video
from evilm.data.readers.rows import CAPTION_COLUMNS
from evilm.data.readers.tables import gzip_lines, read_rows, read_text
from evilm.data.vocabulary import CONTINUES, SPECIALS, UNK, Vocabulary
from evilm.errors import AnnotationError, VocabularyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

PAPER_SIZE = 9157
PAPER_KEEP = 0.3

# Lower-case printable ASCII and other characters of English captions: typographic quotes and dashes, ellipsis, bullet,
# currencies, marks, and letters that are not ASCII without their accents.
_ALPHABET = "".join(chr(c) for c in range(33, 127) if not chr(c).isupper()) + (
    "\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u2022\u00d7°½¼¾€£¥©®™ßæøœðþł"
)
_UNUSED = re.compile(r"\[unused\d+\]")


@dataclass(frozen=True, slots=True)
class BuildReport:
    """The result of ``build``.

    Attributes:
        path: the vocabulary file.
        method: ``cut`` or ``trained``.
        pieces: number of word pieces.
        captions: number of captions read.
        words: number of their words.
        unknown: fraction of unknown pieces in those captions.
        pieces_per_word: mean number of pieces of a word.
        sha256: hash of the file.
        fingerprint: ``Vocabulary.fingerprint``.
    """

    path: str
    method: str
    pieces: int
    captions: int
    words: int
    unknown: float
    pieces_per_word: float
    sha256: str
    fingerprint: str

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.pieces:,} pieces ({self.method}) from {self.captions:,} captions of {self.words:,} "
            f"words; unknown {self.unknown:.4%}, {self.pieces_per_word:.3f} pieces a word; sha256 {self.sha256}"
        )


def build(
    captions: list[Path], out: Path, wordpieces: Path | None = None,
    keep: float = PAPER_KEEP, size: int = PAPER_SIZE,
) -> BuildReport:  # fmt: skip
    """Build a vocabulary from caption files and write it to ``out``.

    Args:
        captions: files in the formats of ``read_captions``.
        out: the file to write.
        wordpieces: a published vocabulary (one piece a line) to prune; None trains a new one.
        keep: the fraction of the published vocabulary to keep.
        size: number of pieces of a new vocabulary.

    Raises:
        VocabularyError, AnnotationError: no captions, or a file that cannot be read or written.
    """
    sentences = list(read_captions(captions))
    vocabulary = train(sentences, size) if wordpieces is None else cut(wordpieces, sentences, keep)
    vocabulary.save(out)
    words = pieces = unknown = 0
    for ids in (vocabulary.pieces_of(sentence) for sentence in sentences):
        pieces += len(ids)
        unknown += ids.count(vocabulary.unk_id)
        words += sum(not vocabulary.pieces[i].startswith(CONTINUES) for i in ids)
    return BuildReport(
        path=str(out),
        method="trained" if wordpieces is None else "cut",
        pieces=vocabulary.size,
        captions=len(sentences),
        words=words,
        unknown=unknown / max(pieces, 1),
        pieces_per_word=pieces / max(words, 1),
        sha256=hashlib.sha256(vocabulary.to_bytes()).hexdigest(),
        fingerprint=vocabulary.fingerprint,
    )


def cut(wordpieces: Path, captions: Iterable[str], keep: float = PAPER_KEEP) -> Vocabulary:
    """Prune a published vocabulary to the fraction ``keep`` that captions use most, in its own order.

    Special pieces and single characters (alone and as ``##`` continuations) are always kept, so that every text can
    still be encoded. Of equally frequent pieces the earlier is kept; ``[unusedN]`` entries are removed first.

    Args:
        wordpieces: one piece a line, as published with BERT.
        captions: the texts to count.
        keep: fraction of the pieces to keep, in (0, 1].

    Raises:
        VocabularyError: a damaged file, no captions, or a fraction too small for the characters.
    """
    if not 0 < keep <= 1:
        raise VocabularyError(
            f"keep {keep:g} is not a fraction: a number above 0 and at most 1 is needed, 0.3 in the paper"
        )
    full = read_wordpieces(wordpieces)
    counts: Counter[int] = Counter()
    for caption in captions:
        counts.update(full.pieces_of(caption))
    if not counts:
        raise VocabularyError("no captions to count word pieces in")
    size = round(full.size * keep)
    always = [i for i, p in enumerate(full.pieces) if i in full.special_ids or len(p.removeprefix(CONTINUES)) == 1]
    if size < len(always):
        raise VocabularyError(
            f"keep {keep:g} keeps {size} pieces, fewer than the {len(always)} special pieces and characters of "
            f"{wordpieces}; give at least {len(always) / full.size:.2f}"
        )
    others = sorted(
        set(range(full.size)) - set(always), key=lambda i: (bool(_UNUSED.fullmatch(full.pieces[i])), -counts[i], i)
    )
    return Vocabulary([full.pieces[i] for i in sorted([*always, *others[: size - len(always)]])])


def read_wordpieces(path: Path) -> Vocabulary:
    """A published vocabulary with one piece a line.

    Raises:
        VocabularyError: the file is missing, is not text, or is not such a list.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise VocabularyError(f"{path}: cannot be read as a list of word pieces: {error}") from None
    try:
        # Split at line feeds only: some pieces are other characters at which str.splitlines splits.
        return Vocabulary([line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")])
    except VocabularyError as error:
        raise VocabularyError(f"{path}: {error} (one piece a line is expected)") from None


def train(captions: Iterable[str], size: int = PAPER_SIZE) -> Vocabulary:
    """Train a WordPiece vocabulary of ``size`` pieces; equal captions give equal pieces.

    It contains every printable ASCII character and every letter of the captions.

    Raises:
        VocabularyError: no captions, ``size`` is smaller than the number of characters, or the captions give fewer than
            ``size`` pieces.
    """
    sentences = [caption for caption in captions if caption.strip()]
    if not sentences:
        raise VocabularyError("no captions to train a vocabulary on")
    tokenizer = Tokenizer(WordPiece({UNK: 0}, unk_token=UNK))
    tokenizer.normalizer = BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    characters = _characters(tokenizer, sentences)
    continuing = [CONTINUES + c for c in characters if not _stands_alone(c)]
    # The trainer numbers continuing characters in the order of a hash table and breaks ties by number. As special
    # pieces they are numbered here, so that two runs agree.
    fixed = [*SPECIALS, *characters, *continuing]
    if size < len(fixed):
        raise VocabularyError(f"{size} pieces are fewer than the {len(fixed)} special pieces and characters needed")
    trainer = WordPieceTrainer(vocab_size=size, special_tokens=fixed, show_progress=False)
    tokenizer.train_from_iterator(sentences, trainer, length=len(sentences))
    ids = tokenizer.get_vocab(with_added_tokens=False)
    if len(ids) != size:
        raise VocabularyError(
            f"these captions give {len(ids)} pieces, not {size}: set --size {len(ids)} or add captions"
        )
    return Vocabulary(sorted(ids, key=lambda piece: ids[piece]))


def _characters(tokenizer: Tokenizer, sentences: list[str]) -> list[str]:
    """The fixed alphabet and all characters of the captions, in code order."""
    seen: set[str] = set(_ALPHABET)
    normalizer = cast("BertNormalizer", tokenizer.normalizer)
    for sentence in sentences:
        seen.update(normalizer.normalize_str(sentence))
    return sorted(c for c in seen if not c.isspace() and unicodedata.category(c)[0] != "C")


def _stands_alone(character: str) -> bool:
    """Whether BERT always splits this character off as a word, so that it never continues one."""
    ascii_mark = character.isascii() and not character.isalnum()
    return ascii_mark or unicodedata.category(character).startswith("P") or "\u4e00" <= character <= "\u9fff"


# Caption files


def read_captions(files: Iterable[Path]) -> Iterator[str]:
    """Every caption of caption files, in order, without empty ones.

    Formats: ``.txt`` (one a line, or "clip sentence" lines as in MSVD's AllVideoDescriptions), ``.txt.gz``,
    ``.csv``, ``.tsv`` and ``.jsonl`` with a column of captions, and ``.json`` in the forms of ``captions_by_video``:
    COCO, MSR-VTT, MSVD, DiDeMo.

    Raises:
        AnnotationError: a file is missing, damaged, or has no captions.
    """
    for path in files:
        empty = True
        for caption in _captions_of(path):
            if caption.strip():
                empty = False
                yield caption.strip()
        if empty:
            raise AnnotationError(path, f"holds no captions; a column or key such as {CAPTION_COLUMNS[0]!r} is needed")


def _captions_of(path: Path) -> Iterator[str]:
    kind = path.suffix.lower()
    if kind == ".json":
        for texts in captions_by_video(path, str).values():
            yield from texts
    elif kind in (".csv", ".tsv", ".jsonl"):
        for row in read_rows(path):
            yield from row.texts(row.column(CAPTION_COLUMNS, "a caption"))
    elif path.name.lower().endswith(".txt.gz"):
        yield from gzip_lines(path)
    elif kind in (".txt", ""):
        lines = read_text(path).splitlines()
        clip = re.compile(r"^\S{11}_\d+_\d+ ")  # "<id>_<start>_<end> sentence"
        yield from (clip.sub("", line) for line in lines if not line.startswith("#"))
    else:
        raise AnnotationError(path, "is not a .txt, .txt.gz, .csv, .tsv, .jsonl or .json file of captions")
