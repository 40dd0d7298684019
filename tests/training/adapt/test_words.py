"""Words that a model does not know: counted, and given room without a change to what it knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import evilm
from evilm.data.vocabulary import Vocabulary
from evilm.errors import CheckpointError
from evilm.training import checkpoint
from evilm.training.adapt import words
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Callable


def said(*captions: str) -> Example:
    return Example(key=captions[0], video=captions[0], clip=Clip(Path("a.mp4")), captions=captions)


def test_words_are_counted_by_clip(vocabulary: Vocabulary) -> None:
    rows = [said("a Purple disc", "the purple disc"), said("a purple star"), said("a disc sways"), said("a 犬 犬")]
    found = words.examine(vocabulary, rows)
    assert found.count == 15
    assert found.cut == 6
    assert found.top == (("purple", 2), ("sways", 1), ("犬", 1))
    assert found.new == ("purple",), "one clip is too few to learn a word from"
    pieces = 15 - 4 + 3 * 6 + 5
    assert found.unknown == pytest.approx(2 / pieces)
    assert "40.0 % of 15 words are not in the model's vocabulary" in str(found)
    assert "most often: purple, sways" in str(found)


def test_new_rows_are_the_mean_of_the_pieces(vocabulary: Vocabulary) -> None:
    table = torch.randn(vocabulary.size, 4)
    ids = [vocabulary.pieces.index(piece) for piece in ("c", "##a", "##t")]
    assert torch.equal(words.rows(table, vocabulary, ["cat"])[0], table[ids].mean(0))


def test_what_the_model_knew_it_still_knows(trained: Callable[[str], Path], tmp_path: Path) -> None:
    run = checkpoint.find(trained("retrieval"))
    words.extend(run, ["zorgish", "blorps"], tmp_path / "start")
    before, after = evilm.load(run), evilm.load(tmp_path / "start")
    old = Vocabulary.load(run / "vocabulary.json")
    new = Vocabulary.load(tmp_path / "start" / "vocabulary.json")
    assert new.pieces == (*old.pieces, "zorgish", "blorps")
    assert new.pieces_of("zorgish") == [old.size]
    texts = ["a red disc moves left", "a star jumps"]
    assert np.array_equal(before.embed_texts(texts), after.embed_texts(texts))
    assert not np.allclose(before.embed_texts(["a zorgish disc"]), after.embed_texts(["a zorgish disc"]))
    about = checkpoint.read_json(tmp_path / "start" / "config.json")
    assert about["extended"] == {"from": str(run), "words": ["zorgish", "blorps"]}


def test_a_checkpoint_without_words_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "odd"

    def fill(to: Path) -> None:
        checkpoint.write_tensors(to / "model.safetensors", {"a": torch.zeros(1)})
        Vocabulary.default().save(to / "vocabulary.json")

    checkpoint.write(folder, fill)
    with pytest.raises(CheckpointError, match=r"has no model.text_encoder.*for the 9157 pieces"):
        words.extend(folder, ["zorgish"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
