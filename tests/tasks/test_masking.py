"""What is hidden: exactly as much as asked for, in blocks, the same in every batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from evilm.tasks import masking
from evilm.tasks.masking import IGNORE
from evilm.types import Grid, Text

if TYPE_CHECKING:
    from evilm.data.vocabulary import Vocabulary
    from evilm.tasks.masking import Shape

SHAPES: tuple[Shape, ...] = ("block", "tube", "cuboid")
GRIDS = (Grid(4, 8, 8), Grid(4, 4, 4), Grid(1, 8, 8), Grid(1, 4, 4), Grid(3, 7, 7), Grid(2, 6, 10))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ratio", [0.15, 0.4, 0.75])
def test_the_count_is_exact(shape: Shape, grid: Grid, ratio: float) -> None:
    where = masking.mask_patches(grid, ratio, torch.arange(60), shape).view(60, *grid)
    if shape == "cuboid":
        assert set(where.flatten(1).sum(1).tolist()) == {round(ratio * grid.patches)}
    else:
        assert set(where.flatten(2).sum(2).flatten().tolist()) == {round(ratio * grid.height * grid.width)}


@pytest.mark.parametrize(("shape", "each"), [("block", [0, 0, 1, 1]), ("tube", [1, 1, 1, 1]), ("cuboid", [0, 0, 1, 1])])
def test_small_ratios_hide_at_least_one_patch(shape: Shape, each: list[int]) -> None:
    """5 % of 4 x 1 x 8 patches are 1.6: two patches of the clip, though a frame's share rounds to 0."""
    for where in masking.mask_patches(Grid(4, 1, 8), 0.05, torch.arange(40), shape).view(40, 4, 8):
        assert int(where.sum()) == sum(each)
        if shape != "cuboid":
            assert sorted(where.sum(1).tolist()) == each
    assert (masking.mask_patches(Grid(2, 1, 1), 0.15, torch.arange(9), shape).sum(1) >= 1).all()


def test_the_paper_hides_26_of_64_patches_in_each_frame() -> None:
    where = masking.mask_patches(Grid(4, 8, 8), 0.4, torch.tensor([5]))
    assert where.shape == (1, 256)
    assert where.view(4, 64).sum(1).tolist() == [26, 26, 26, 26]


def test_a_tube_is_the_same_in_every_frame_and_blocks_are_not() -> None:
    seeds = torch.arange(30)
    tubes = masking.mask_patches(Grid(4, 8, 8), 0.4, seeds, "tube").view(30, 4, 64)
    assert (tubes == tubes[:, :1]).all()
    blocks = masking.mask_patches(Grid(4, 8, 8), 0.4, seeds, "block").view(30, 4, 64)
    assert (blocks != blocks[:, :1]).any(dim=2).all(dim=0)[1:].all()


def test_a_cuboid_spans_frames() -> None:
    """A patch hidden in one frame is hidden in the next far more often than by chance."""
    where = masking.mask_patches(Grid(4, 8, 8), 0.4, torch.arange(100), "cuboid").view(100, 4, 64)
    assert where[:, 1:][where[:, :-1]].float().mean() > 0.6


@pytest.mark.parametrize("shape", SHAPES)
def test_hidden_patches_lie_together(shape: Shape) -> None:
    """Neighbours of a hidden patch are hidden more often than the ratio of 0.4."""
    where = masking.mask_patches(Grid(2, 8, 8), 0.4, torch.arange(100), shape).view(-1, 8, 8)
    beside = torch.cat([where[:, :, 1:][where[:, :, :-1]], where[:, 1:][where[:, :-1]]]).float().mean()
    assert beside > 0.65


def test_every_patch_may_be_hidden() -> None:
    """Blocks lie within the frame, so corners are hidden less often than the middle; none is always or never."""
    share = masking.mask_patches(Grid(1, 8, 8), 0.4, torch.arange(2000)).view(-1, 8, 8).float().mean(0)
    assert share.mean().item() == pytest.approx(26 / 64)
    assert share.min() > 0.08
    assert share.max() < 0.75


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_depends_on_its_seed_alone(shape: Shape) -> None:
    grid, seeds = Grid(3, 8, 8), torch.tensor([2**62 + 1, 7, 0, 99])
    together = masking.mask_patches(grid, 0.4, seeds, shape)
    alone = torch.cat([masking.mask_patches(grid, 0.4, seed[None], shape) for seed in seeds])
    assert (together == alone).all()
    assert (masking.mask_patches(grid, 0.4, seeds.flip(0), shape) == together.flip(0)).all()
    assert len({tuple(row.tolist()) for row in together}) == 4


def test_hiding_zeroes_the_pixels_of_hidden_patches_and_no_others() -> None:
    grid = Grid(2, 2, 3)
    frames = torch.ones(1, 2, 3, 8, 12)
    where = torch.zeros(1, 12, dtype=torch.bool)
    where[0, 1] = True  # frame 0, row 0, column 1: pixels 0-3 down, 4-7 across
    where[0, 6 + 5] = True  # frame 1, row 1, column 2: pixels 4-7 down, 8-11 across
    wanted = torch.ones(1, 2, 3, 8, 12)
    wanted[0, 0, :, 0:4, 4:8] = 0
    wanted[0, 1, :, 4:8, 8:12] = 0
    hidden = masking.hide_patches(frames, where, grid)
    assert (hidden == wanted).all()
    assert (frames == 1).all()


def test_hiding_uint8_frames_keeps_their_type() -> None:
    frames = torch.full((1, 1, 3, 4, 4), 200, dtype=torch.uint8)
    hidden = masking.hide_patches(frames, torch.tensor([[True, False, False, False]]), Grid(1, 2, 2))
    assert hidden.dtype == torch.uint8
    assert hidden.sum() == 200 * 3 * 12


def test_targets_of_eq_3() -> None:
    labels, where = torch.tensor([[4, 5, 6]]), torch.tensor([[True, False, True]])
    assert masking.labels_of_hidden(labels, where).tolist() == [[4, IGNORE, 6]]


# Words


def hide_words(
    text: Text, seeds: torch.Tensor, vocabulary: Vocabulary, ratio: float = 0.15
) -> tuple[Text, torch.Tensor]:
    first = max(vocabulary.special_ids) + 1
    return masking.mask_words(text, seeds, ratio=ratio, mask_id=vocabulary.mask_id, ordinary=(first, vocabulary.size))


def test_labels_are_the_true_ids_of_what_was_hidden(vocabulary: Vocabulary) -> None:
    text = vocabulary.encode(["a red disc moves left and the blue square grows"] * 200, 30)
    before = text.ids.clone()
    masked, labels = hide_words(text, torch.arange(200), vocabulary)
    assert (text.ids == before).all()
    hidden = labels != IGNORE
    assert (labels[hidden] == text.ids[hidden]).all()
    assert (masked.ids[~hidden] == text.ids[~hidden]).all()
    assert (masked.mask == text.mask).all()


def test_specials_and_padding_are_never_hidden(vocabulary: Vocabulary) -> None:
    text = vocabulary.encode(["red", "a red disc moves left and the blue square grows"] * 100, 30)
    _, labels = hide_words(text, torch.arange(200), vocabulary, ratio=0.9)
    special = torch.isin(text.ids, torch.tensor(sorted(vocabulary.special_ids)))
    assert (labels[special] == IGNORE).all()
    assert (labels[~text.mask] == IGNORE).all()


def test_words_are_hidden_whole(vocabulary: Vocabulary) -> None:
    """``xyz`` is three pieces here; all share one fate."""
    text = vocabulary.encode(["a xyz red qwe disc"] * 400, 30)
    assert text.starts[0].tolist()[:10] == [False, True, True, False, False, True, True, False, False, True]
    masked, labels = hide_words(text, torch.arange(400), vocabulary)
    hidden = labels != IGNORE
    for piece in (2, 6):
        word = hidden[:, piece : piece + 3]
        assert (word.all(1) == word.any(1)).all()
        is_mask = masked.ids[:, piece : piece + 3] == vocabulary.mask_id
        assert (is_mask.all(1) == is_mask.any(1)).all()


@pytest.mark.parametrize(("words", "expected"), [(1, 1), (3, 1), (10, 2), (20, 3), (27, 4)])
def test_fifteen_percent_and_at_least_one_word(vocabulary: Vocabulary, words: int, expected: int) -> None:
    text = vocabulary.encode([" ".join(["red"] * words)] * 50, 40)
    _, labels = hide_words(text, torch.arange(50), vocabulary)
    assert (labels != IGNORE).sum(1).tolist() == [expected] * 50


def test_a_long_word_does_not_overrun_the_budget(vocabulary: Vocabulary) -> None:
    text = vocabulary.encode(["qwertyuiop " + " ".join(["red"] * 10)] * 300, 40)  # 20 pieces: 3 may be hidden
    _, labels = hide_words(text, torch.arange(300), vocabulary)
    counts = (labels != IGNORE).sum(1)
    long_one = labels[:, 1] != IGNORE
    assert (counts[~long_one] == 3).all()
    assert (counts[long_one] == 10).all()  # drawn first, it is hidden whole and alone
    assert 0 < long_one.float().mean() < 0.2


def test_a_text_without_words_hides_nothing(vocabulary: Vocabulary) -> None:
    masked, labels = hide_words(vocabulary.encode([""], 30), torch.tensor([0]), vocabulary)
    assert (labels == IGNORE).all()
    assert masked.ids[0, :2].tolist() == [vocabulary.cls_id, vocabulary.sep_id]


def test_a_text_cut_at_its_longest_is_masked_like_any_other(vocabulary: Vocabulary) -> None:
    text = vocabulary.encode(["red " * 50] * 50, 12)
    _, labels = hide_words(text, torch.arange(50), vocabulary)
    assert (labels != IGNORE).sum(1).tolist() == [2] * 50  # 15 % of 10


def test_eighty_ten_ten(vocabulary: Vocabulary) -> None:
    text = vocabulary.encode([" ".join(["red"] * 20)] * 2000, 40)
    masked, labels = hide_words(text, torch.arange(2000), vocabulary)
    found = masked.ids[labels != IGNORE]
    total = len(found)
    assert total == 6000
    by_mask = (found == vocabulary.mask_id).float().mean().item()
    stayed = (found == vocabulary.encode(["red"], 8).ids[0, 1]).float().mean().item()
    # Standard deviations of the shares are 0.005 and 0.004.
    assert by_mask == pytest.approx(0.8, abs=0.02)
    assert stayed == pytest.approx(0.1, abs=0.016)
    other = found[(found != vocabulary.mask_id)]
    assert not set(other.tolist()) & (vocabulary.special_ids - {vocabulary.unk_id})
    assert len(set(other.tolist())) > 0.9 * (vocabulary.size - len(vocabulary.special_ids))


def test_hidden_words_depend_on_the_seed_alone(vocabulary: Vocabulary) -> None:
    texts = ["a red disc moves left", "the blue square grows and a green star jumps", "a star jumps"]
    seeds = torch.tensor([11, 22, 33])
    masked, labels = hide_words(vocabulary.encode(texts, 30), seeds, vocabulary)
    for row, one in enumerate(texts):
        alone, own = hide_words(vocabulary.encode([one], 30), seeds[row : row + 1], vocabulary)
        width = own.shape[1]
        assert (own[0] == labels[row, :width]).all()
        assert (alone.ids[0] == masked.ids[row, :width]).all()


def test_regions_and_words_of_one_sample_are_drawn_apart() -> None:
    """The same seed serves both; which region comes first says nothing of which word does."""
    text = Text(
        torch.arange(12).repeat(300, 1),
        torch.ones(300, 12, dtype=torch.bool),
        torch.tensor([False] + [True] * 10 + [False]).repeat(300, 1),
    )
    _, labels = masking.mask_words(text, torch.arange(300), ratio=0.1, mask_id=0, ordinary=(0, 12))
    word = (labels != IGNORE).float().argmax(1).double().numpy()
    cell = masking.mask_patches(Grid(1, 8, 8), 0.02, torch.arange(300)).float().argmax(1).double().numpy()
    assert abs(np.corrcoef(word, cell)[0, 1]) < 0.2
