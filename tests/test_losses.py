"""Every loss against numbers worked out by hand, and against torch in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from evilm import losses
from evilm.losses import feature_distillation
from evilm.tasks.masking import IGNORE


def test_reconstruction_by_hand() -> None:
    """Four numbers off by 0, 1, 2 and 3: (0 + 1 + 4 + 9) / 4."""
    found = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    wanted = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    assert losses.reconstruction(found, wanted).item() == pytest.approx(3.5)
    assert losses.reconstruction(found.bfloat16(), wanted).dtype == torch.float32


def test_eq_3_is_the_mean_cross_entropy_of_hidden_positions() -> None:
    # Softmax of (log 1, log 2, log 5) is (1, 2, 5) / 8; of (log 3, log 1, log 4) it is (3, 1, 4) / 8.
    logits = torch.tensor([[[1.0, 2.0, 5.0], [3.0, 1.0, 4.0], [9.0, 9.0, 1.0]]]).log()
    labels = torch.tensor([[2, 1, IGNORE]])
    by_hand = (math.log(8 / 5) + math.log(8 / 1)) / 2
    assert losses.masked_prediction(logits, labels).item() == pytest.approx(by_hand, rel=1e-6)


def test_eq_3_falls_as_the_right_code_becomes_likelier() -> None:
    """The sign: as printed the equation would reward being wrong."""
    labels = torch.tensor([1])
    likely, unlikely = torch.tensor([[0.0, 3.0]]), torch.tensor([[3.0, 0.0]])
    assert 0 < losses.masked_prediction(likely, labels) < losses.masked_prediction(unlikely, labels)


def test_nothing_hidden_gives_zero_and_a_gradient_of_zero() -> None:
    logits = torch.randn(2, 4, 5, requires_grad=True)
    loss = losses.masked_prediction(logits, torch.full((2, 4), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


def test_eq_3_weighs_every_hidden_position_alike_however_they_fall_into_rows() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 7, 11), torch.randint(0, 11, (3, 7))
    labels[0, 1:], labels[2, 4:] = IGNORE, IGNORE
    rows = [
        F.cross_entropy(logits[i, j].double(), labels[i, j]) for i in range(3) for j in range(7) if labels[i, j] >= 0
    ]
    assert losses.masked_prediction(logits, labels).item() == pytest.approx(float(torch.stack(rows).mean()), rel=1e-6)


def test_eq_6_by_hand() -> None:
    # p = 1/4 for a word that is there: -log 1/4. p = 3/4 for one that is not: -3/4 log(1 - 3/4).
    logits = torch.tensor([[math.log(1 / 3), math.log(3)]])
    words = torch.tensor([[1.0, 0.0]])
    by_hand = (math.log(4) + 0.75 * math.log(4)) / 2
    assert losses.focal_words(logits, words).item() == pytest.approx(by_hand, rel=1e-6)


def test_eq_6_is_a_cost() -> None:
    """As printed, without its minus sign, it would be negative and grow with every right answer."""
    words = torch.tensor([[1.0, 0.0, 0.0]])
    right, wrong = torch.tensor([[4.0, -4.0, -4.0]]), torch.tensor([[-4.0, 4.0, 4.0]])
    assert 0 < losses.focal_words(right, words) < losses.focal_words(wrong, words)


def test_eq_6_equals_its_own_words_in_float64() -> None:
    torch.manual_seed(1)
    logits, words = 3 * torch.randn(6, 40, dtype=torch.float64), (torch.rand(6, 40) < 0.2).double()
    p = torch.sigmoid(logits)
    printed = (words * p.log() + (1 - words) * p * (1 - p).log()).mean()
    assert losses.focal_words(logits, words).item() == pytest.approx(-printed.item(), rel=1e-5)


def test_eq_6_is_finite_where_a_probability_would_round_to_one() -> None:
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = losses.focal_words(logits, torch.tensor([[0.0, 1.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(200.0)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_bce_by_hand() -> None:
    logits, words = torch.tensor([[math.log(1 / 3), math.log(3)]]), torch.tensor([[1.0, 0.0]])
    assert losses.bce_words(logits, words).item() == pytest.approx(math.log(4), rel=1e-6)


def test_eq_7_by_hand() -> None:
    # (3/5, 4/5) to (1, 0): (2/5)^2 + (4/5)^2 = 4/5. (0, 1) to (0, 1): 0. Mean 2/5.
    encoded = torch.tensor([[0.6, 0.8], [0.0, 1.0]], requires_grad=True)
    codes = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    codebook, commitment = losses.quantization(encoded, codes)
    assert codebook.item() == pytest.approx(0.4)
    assert commitment.item() == pytest.approx(0.4)


def test_eq_7_stops_each_gradient_where_it_says() -> None:
    encoded = torch.tensor([[0.6, 0.8]], requires_grad=True)
    codes = torch.tensor([[1.0, 0.0]], requires_grad=True)
    codebook, commitment = losses.quantization(encoded, codes)
    assert torch.autograd.grad(codebook, encoded, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(commitment, codes, allow_unused=True, retain_graph=True)[0] is None
    # d/dc of |e - c|^2 = 2 (c - e), and d/de its opposite.
    torch.testing.assert_close(torch.autograd.grad(codebook, codes)[0], torch.tensor([[0.8, -1.6]]))
    torch.testing.assert_close(torch.autograd.grad(commitment, encoded)[0], torch.tensor([[-0.8, 1.6]]))


def test_choice_among_four_texts_by_hand() -> None:
    # The first, right one has 4 of 1 + 1 + 2 + 4 parts, then 1 of 4: the mean of log 2 and log 4.
    scores = torch.tensor([[4.0, 1.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]]).log()
    assert losses.matching(scores).item() == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-6)


def test_choice_takes_any_right_index_and_skips_options_that_are_not_there() -> None:
    scores = torch.tensor([[math.log(3), 0.0, float("-inf")], [0.0, math.log(2), 0.0]], requires_grad=True)
    loss = losses.matching(scores, torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-6)
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


def test_yes_or_no_weighs_matched_and_unmatched_alike() -> None:
    # Matched: sigmoid 3/4 costs log 4/3. Unmatched: sigmoids 1/2, 1/2 and 3/4 cost log 2, log 2 and log 4.
    scores = torch.tensor([[3.0, 1.0, 1.0, 3.0]]).log()
    by_hand = (math.log(4 / 3) + (2 * math.log(2) + math.log(4)) / 3) / 2
    assert losses.binary_matching(scores).item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("count", [2, 4, 9])
def test_matching_at_chance(count: int) -> None:
    scores = torch.zeros(5, count)
    assert losses.matching(scores).item() == pytest.approx(math.log(count), rel=1e-6)
    assert losses.binary_matching(scores).item() == pytest.approx(math.log(2), rel=1e-6)


def test_contrast_by_hand() -> None:
    # Cosines are the texts' first and second coordinates. Temperature 1.
    video = torch.eye(2)
    text = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    cosines = [[1.0, 0.6], [0.0, 0.8]]  # video i, text j
    rows = [math.log(sum(map(math.exp, cosines[i]))) - cosines[i][i] for i in range(2)]
    columns = [math.log(math.exp(cosines[0][j]) + math.exp(cosines[1][j])) - cosines[j][j] for j in range(2)]
    by_hand = (sum(rows) / 2 + sum(columns) / 2) / 2
    assert losses.contrastive(video, text, 1.0).item() == pytest.approx(by_hand, rel=1e-6)


def test_contrast_divides_by_the_temperature_and_teaches_it() -> None:
    torch.manual_seed(2)
    video, text = (F.normalize(torch.randn(5, 8), dim=-1) for _ in range(2))
    temperature = torch.tensor(0.1, requires_grad=True)
    loss = losses.contrastive(video, text, temperature)
    reference = video.double() @ text.double().T / 0.1
    target = torch.arange(5)
    wanted = (F.cross_entropy(reference, target) + F.cross_entropy(reference.T, target)) / 2
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    loss.backward()
    assert temperature.grad is not None
    assert temperature.grad.abs() > 0


def test_contrast_leaves_a_clip_drawn_twice_out_of_its_own_denominator() -> None:
    torch.manual_seed(3)
    video, text = (F.normalize(torch.randn(4, 8), dim=-1) for _ in range(2))
    same = torch.eye(4, dtype=torch.bool)
    same[1, 3] = same[3, 1] = True
    cosines = (video @ text.T / 0.2).double()
    parts = []
    for table in (cosines, cosines.T):
        for i in range(4):
            others = [j for j in range(4) if j == i or not same[i, j]]
            parts.append(torch.logsumexp(table[i, others], 0) - table[i, i])
    wanted = torch.stack(parts).mean()
    assert losses.contrastive(video, text, 0.2, same).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_contrast_of_two_texts_a_video_by_hand() -> None:
    # Video i looks for its text a or b among both texts of the other; each text for its video among the two.
    video = torch.eye(2)
    text = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])  # the first two are of video 0
    e = math.exp
    texts = [e(1.0) / (e(1.0) + e(0.0)), e(0.8) / (e(0.8) + e(0.6)), e(0.8) / (e(0.8) + e(0.6)), e(1.0) / (e(1.0) + 1)]
    videos = [e(1.0) / (e(1.0) + e(0.6) + e(0.0)), e(0.8) / (e(0.8) + e(0.6) + e(0.0)),
              e(0.8) / (e(0.8) + e(0.6) + e(0.0)), e(1.0) / (e(1.0) + e(0.6) + e(0.0))]  # fmt: skip
    by_hand = -sum(math.log(p) for p in texts + videos) / 8
    assert losses.contrastive(video, text, 1.0).item() == pytest.approx(by_hand, rel=1e-6)


def test_contrast_of_several_texts_leaves_out_a_clip_drawn_twice() -> None:
    torch.manual_seed(6)
    video, text = F.normalize(torch.randn(3, 8), dim=-1), F.normalize(torch.randn(6, 8), dim=-1)
    same = torch.eye(3, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    cosines = (video @ text.T / 0.2).double()
    terms: list[torch.Tensor] = []
    for own in range(6):
        row = own // 2
        videos = [j for j in range(3) if j == row or not same[row, j]]
        texts = [own, *(j for j in range(6) if not same[row, j // 2])]
        terms.append(torch.logsumexp(cosines[videos, own], 0) - cosines[row, own])
        terms.append(torch.logsumexp(cosines[row, texts], 0) - cosines[row, own])
    assert losses.contrastive(video, text, 0.2, same).item() == pytest.approx(
        torch.stack(terms).mean().item(), rel=1e-5
    )


def test_focus_weighs_each_row_by_what_is_not_yet_known() -> None:
    # p = 0.9 and 0.2: (0.1)^2 * 0.10536 = 0.0010536 and (0.8)^2 * 1.60944 = 1.0300.
    each = -torch.tensor([0.9, 0.2], dtype=torch.float64).log()
    found = losses.focal(each, 2.0)
    torch.testing.assert_close(found, torch.tensor([0.0010536, 1.0300402], dtype=torch.float64), rtol=1e-4, atol=0)
    assert torch.equal(losses.focal(each, 0.0), each)


def test_focus_reaches_every_loss_that_takes_it() -> None:
    logits, labels = torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    # -log p = 0.048587 and 0.693147; p = 0.952574 and 0.5: mean of 0.047426 * 0.048587 and 0.5 * 0.693147 = 0.174439.
    wanted = torch.tensor(0.174439)
    torch.testing.assert_close(losses.masked_prediction(logits, labels, focal_gamma=1.0), wanted, rtol=1e-4, atol=0)
    torch.testing.assert_close(losses.matching(logits, labels, 1.0), wanted, rtol=1e-4, atol=0)
    same = torch.eye(2)  # cosines 1 and 0: -log p = log(1 + 1/e) = 0.313262, 1 - p = 0.268941
    torch.testing.assert_close(
        losses.contrastive(same, same, 1.0, focal_gamma=1.0), torch.tensor(0.084249), rtol=1e-4, atol=0
    )


def test_contrast_of_one_clip_alone_is_zero_and_not_nan() -> None:
    torch.manual_seed(4)
    video, text = (F.normalize(torch.randn(3, 8), dim=-1).requires_grad_() for _ in range(2))
    loss = losses.contrastive(video, text, 0.05, torch.ones(3, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert video.grad is not None
    assert torch.isfinite(video.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_computed_in_float32_whatever_comes_in(dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    logits = torch.randn(4, 6).to(dtype)
    words, labels = (torch.rand(4, 6) < 0.5).to(dtype), torch.randint(0, 6, (4,))
    for loss, reference in (
        (losses.masked_prediction(logits, labels), losses.masked_prediction(logits.float(), labels)),
        (losses.focal_words(logits, words), losses.focal_words(logits.float(), words.float())),
        (losses.bce_words(logits, words), losses.bce_words(logits.float(), words.float())),
        (losses.matching(logits), losses.matching(logits.float())),
        (losses.binary_matching(logits), losses.binary_matching(logits.float())),
        (losses.contrastive(logits, logits, 0.5), losses.contrastive(logits.float(), logits.float(), 0.5)),
    ):
        assert loss.dtype == torch.float32
        assert loss.item() == reference.item()


def test_following_a_teacher_by_hand() -> None:
    found = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    wanted = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    both, first, none = (torch.tensor(each) for each in ([True, True], [True, False], [False, False]))
    assert feature_distillation(found, wanted, both).item() == pytest.approx((0.4 + 0) / 2)
    assert feature_distillation(found, wanted, first).item() == pytest.approx(0.4)
    nothing = feature_distillation(found, wanted, none)
    nothing.backward()
    assert nothing.item() == 0
    assert found.grad is not None
    assert not found.grad.any()
