from __future__ import annotations

import hashlib
import importlib.resources
import json
from typing import TYPE_CHECKING

import pytest

from evilm.data.vocabulary import SPECIALS, Vocabulary
from evilm.errors import VocabularyError

if TYPE_CHECKING:
    from pathlib import Path

PIECES = (*SPECIALS, "a", "cat", "play", "##ing", "##s", ".", "b", "##b", "[", "]", "mask")


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(PIECES)


def ids(*pieces: str) -> list[int]:
    return [PIECES.index(piece) for piece in pieces]


def test_ids_mask_and_starts_by_hand(vocabulary: Vocabulary) -> None:
    text = vocabulary.encode(["A Cät playing.", "bb"], 30)
    first = ids("[CLS]", "a", "cat", "play", "##ing", ".", "[SEP]", "[PAD]")
    assert text.ids.tolist() == [first, ids("[CLS]", "b", "##b", "[SEP]", *["[PAD]"] * 4)]
    assert text.mask.tolist() == [[True] * 7 + [False], [True] * 4 + [False] * 4]
    assert text.starts.tolist() == [[False, True, True, True, False, True, False, False], [False, True] + [False] * 6]
    assert str(text.ids.dtype) == "torch.int64"


def test_an_unknown_word_is_one_piece_that_starts_a_word(vocabulary: Vocabulary) -> None:
    text = vocabulary.encode(["a zebra cat"], 8)
    assert text.ids[0, :5].tolist() == ids("[CLS]", "a", "[UNK]", "cat", "[SEP]")
    assert text.starts[0, :5].tolist() == [False, True, True, True, False]
    assert vocabulary.unknown_share(["a zebra cat", "a"]) == pytest.approx(1 / 4)
    assert vocabulary.unknown_share([]) == 0


def test_names_of_special_pieces_in_a_text_are_words(vocabulary: Vocabulary) -> None:
    assert vocabulary.pieces_of("[MASK] a") == ids("[", "mask", "]", "a")


@pytest.mark.parametrize(("words", "length", "width"), [(5, 30, 8), (6, 30, 8), (7, 30, 16), (40, 30, 30), (40, 8, 8)])
def test_width_is_a_multiple_of_8_within_the_length(
    vocabulary: Vocabulary, words: int, length: int, width: int
) -> None:
    text = vocabulary.encode(["a " * words], length)
    assert text.ids.shape == (1, width)
    last = min(words + 2, length) - 1
    assert text.ids[0, last] == vocabulary.sep_id
    assert int(text.mask.sum()) == last + 1


def test_decode_inverts_encode(vocabulary: Vocabulary) -> None:
    text = vocabulary.encode(["a cat plays", "b"], 10)
    assert vocabulary.decode(text.ids[0].tolist()) == "a cat plays"
    assert vocabulary.decode(ids("[CLS]", "a", "[MASK]", "##s")) == "a [MASK]s"
    with pytest.raises(VocabularyError, match="id 99"):
        vocabulary.decode([99])


@pytest.mark.parametrize("texts", [[], "a cat", [3], ["\ud800"], [None]])
def test_values_that_are_not_text_are_refused(vocabulary: Vocabulary, texts: list[str]) -> None:
    with pytest.raises(VocabularyError):
        vocabulary.encode(texts, 10)


def test_odd_texts_work(vocabulary: Vocabulary) -> None:
    text = vocabulary.encode(["", " \n\t", "\0\u200b\ufffd", "z" * 10_000], 10)
    assert text.ids[:3, :2].tolist() == [ids("[CLS]", "[SEP]")] * 3
    with pytest.raises(VocabularyError, match="at least 3"):
        vocabulary.encode(["a"], 2)


def test_a_saved_vocabulary_is_loaded_unchanged(vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "new" / "words.json"
    vocabulary.save(path)
    again = Vocabulary.load(path)
    assert again.pieces == PIECES
    assert again.fingerprint == vocabulary.fingerprint == hashlib.sha256("\n".join(PIECES).encode()).hexdigest()
    assert again.to_bytes() == path.read_bytes()
    assert [entry.name for entry in path.parent.iterdir()] == ["words.json"]
    assert Vocabulary((*PIECES, "more")).fingerprint != vocabulary.fingerprint


def test_damaged_files_are_named(vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    whole = vocabulary.to_bytes()
    table = json.loads(whole)
    gap = json.loads(whole)
    gap["model"]["vocab"]["cat"] = 77
    cased = json.loads(whole)
    cased["normalizer"]["lowercase"] = False
    lacking = json.loads(whole)
    del lacking["model"]["vocab"]["mask"]
    lacking["model"]["vocab"]["[MASKED]"] = len(PIECES) - 1
    lacking["model"]["vocab"] = {
        ("[M]" if piece == "[MASK]" else piece): i for piece, i in lacking["model"]["vocab"].items()
    }
    table["model"] = None
    bad = [b"", whole[:300], b"[]", b"\xff\xfe", *(json.dumps(t).encode() for t in (table, gap, cased, lacking))]
    for content in bad:
        path.write_bytes(content)
        with pytest.raises(VocabularyError, match=r"words\.json: ") as caught:
            Vocabulary.load(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(VocabularyError, match="no such vocabulary"):
        Vocabulary.load(tmp_path / "none.json")
    with pytest.raises(VocabularyError, match="cannot be read"):
        Vocabulary.load(tmp_path)


@pytest.mark.parametrize("pieces", [PIECES[1:], (*PIECES, "cat"), (*PIECES, "")])
def test_invalid_pieces_are_refused(pieces: tuple[str, ...]) -> None:
    with pytest.raises(VocabularyError):
        Vocabulary(pieces)


def test_the_packaged_vocabulary_has_its_recorded_hash() -> None:
    folder = importlib.resources.files("evilm.data") / "words"
    origin = json.loads((folder / "coco-9157.origin.json").read_text(encoding="utf-8"))
    vocabulary = Vocabulary.default()
    assert vocabulary.size == origin["pieces"] == 9157
    assert vocabulary.fingerprint == origin["fingerprint"]
    assert hashlib.sha256((folder / "coco-9157.json").read_bytes()).hexdigest() == origin["sha256"]
    assert vocabulary.pieces[:5] == SPECIALS
    printable = "".join(map(chr, range(33, 127)))
    assert vocabulary.unknown_share([printable, "\u201cIt\u2019s 20°C\u201d \u2013 naïve café\u2026"]) == 0
    sentence = "a dog catches a frisbee in mid - air ."
    ids = vocabulary.encode([sentence], 30).ids[0].tolist()
    assert vocabulary.decode(ids) == "a dog catches a frisbee in mid - air."
