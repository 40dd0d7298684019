"""Words of captions, and the rarity of word pieces."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from evilm.tasks.caption_words import piece_weights

if TYPE_CHECKING:
    from evilm.data.vocabulary import Vocabulary


def test_piece_weights_by_hand(vocabulary: Vocabulary) -> None:
    captions = ["a red disc", "a red red star", "a disc moves", "a blue disc"]
    weights = dict(zip(vocabulary.pieces, piece_weights(vocabulary, captions).tolist(), strict=True))
    assert weights["a"] == 0, "it is in every caption"
    assert weights["red"] == pytest.approx(math.log(4 / 2)), "a caption counts once"
    assert weights["disc"] == pytest.approx(math.log(4 / 3))
    assert weights["star"] == weights["blue"] == 0, "one caption is too few"
    assert not any(weights[vocabulary.pieces[i]] for i in vocabulary.special_ids)
    assert not np.any(piece_weights(vocabulary, []))
