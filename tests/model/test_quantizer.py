"""The quantizer against brute force, a gradient by hand in float64, and an independent implementation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from vector_quantize_pytorch import VectorQuantize

from evilm.model.quantizer import GumbelQuantizer, Quantizer


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_eq_4_by_brute_force() -> None:
    quantizer = Quantizer(37, 6).eval()
    encoded = torch.randn(3, 5, 6) * torch.rand(3, 5, 1) * 9
    wanted = torch.empty(3, 5, dtype=torch.long)
    for i in range(3):
        for j in range(5):
            e = (encoded[i, j] / encoded[i, j].norm()).double()
            distances = [(e - c.double() / c.double().norm()).pow(2).sum() for c in quantizer.codes.detach()]
            wanted[i, j] = int(torch.stack(distances).argmin())
    found = quantizer(encoded)
    assert (found.labels == wanted).all()
    assert (quantizer.nearest(encoded.flatten(0, 1)) == wanted.flatten()).all()
    torch.testing.assert_close(found.codes, F.normalize(quantizer.codes, dim=-1)[wanted].detach())


def test_many_encodings_are_labelled_in_chunks_alike() -> None:
    quantizer = Quantizer(11, 4)
    encoded = torch.randn(8192 + 100, 4)
    assert (quantizer.nearest(encoded)[-100:] == quantizer.nearest(encoded[-100:])).all()


def test_a_codebook_of_any_length_stays_on_the_sphere() -> None:
    """The optimiser may lengthen a code; it must not become likelier for that."""
    quantizer = Quantizer(9, 4).eval()
    encoded = torch.randn(50, 4)
    before = quantizer(encoded)
    with torch.no_grad():
        quantizer.codes[3] *= 100
        quantizer.codes[5] *= 0.01
    after = quantizer(encoded)
    assert (before.labels == after.labels).all()
    torch.testing.assert_close(before.codes, after.codes)


def test_straight_through_in_float64_by_hand() -> None:
    """dL/dx of L = w . C_q with C_q treated as the identity of x / |x|: (I - e e^T) w / |x|."""
    quantizer = Quantizer(7, 5)
    x = torch.randn(4, 5, requires_grad=True)
    w = torch.randn(4, 5)
    (quantizer(x).codes * w).sum().backward()
    e = x.detach().double() / x.detach().double().norm(dim=-1, keepdim=True)
    wanted = (w.double() - (w.double() * e).sum(-1, keepdim=True) * e) / x.detach().double().norm(dim=-1, keepdim=True)
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), wanted, rtol=1e-5, atol=1e-6)
    # The word loss moves the encoder alone; the codebook has a loss of its own.
    assert quantizer.codes.grad is None or quantizer.codes.grad.abs().sum() == 0


def test_the_codebook_loss_in_float64_by_hand() -> None:
    """Of L = mean |e - c/|c||^2 over R regions: for each code, the sum over its regions of 2 (I - c c^T)(c - e) / R."""
    quantizer = Quantizer(6, 4)
    x = torch.randn(20, 4)
    found = quantizer(x)
    found.loss_codebook.backward()
    e, c = F.normalize(x.double(), dim=-1), F.normalize(quantizer.codes.detach().double(), dim=-1)
    wanted = torch.zeros(6, 4, dtype=torch.float64)
    for region, label in enumerate(found.labels.tolist()):
        pull = 2 * (c[label] - e[region]) / 20
        wanted[label] += pull - (pull @ c[label]) * c[label]
    length = quantizer.codes.detach().double().norm(dim=-1, keepdim=True)
    assert quantizer.codes.grad is not None
    torch.testing.assert_close(quantizer.codes.grad.double(), wanted / length, rtol=1e-4, atol=1e-6)
    assert found.loss_codebook.item() == pytest.approx((e - c[found.labels]).pow(2).sum(-1).mean().item(), rel=1e-5)
    assert found.loss_commitment.item() == pytest.approx(found.loss_codebook.item(), rel=1e-6)


# Against vector-quantize-pytorch. Comparable: choice, straight-through, commitment, the running means, one step of a
# learned codebook. Not comparable: its cosine codebook cannot be learned by gradient, so that case is compared with its
# Euclidean one on unit vectors; its mean of squares is over d too, ours a sum over d; how each draws random codes for
# dead ones; and its rotation trick, on by default, is another gradient than the paper's.


def rival(codes: torch.Tensor, *, learned: bool = False) -> VectorQuantize:
    other = VectorQuantize(
        dim=codes.shape[1], codebook_size=len(codes), decay=0.9, rotation_trick=False, commitment_weight=1.0,
        use_cosine_sim=not learned, learnable_codebook=learned, ema_update=not learned, threshold_ema_dead_code=0,
    )  # fmt: skip
    with torch.no_grad():
        other.codebook = codes.clone()
        other._codebook.embed_avg.copy_(codes[None])
    return other


def test_running_means_equal_an_independent_implementation() -> None:
    quantizer = Quantizer(16, 8, codebook="ema", ema_decay=0.9)
    other = rival(quantizer.codes)
    for _ in range(30):
        batch = torch.randn(4, 25, 8) + torch.tensor([2.0, 0, 0, 0, 0, 0, 0, 1.0])
        mine, (codes, labels, loss) = quantizer(batch), other(batch)
        assert (mine.labels == labels).all()
        torch.testing.assert_close(mine.codes, codes)
        assert mine.loss_commitment.item() == pytest.approx(8 * loss.item(), rel=1e-5)
        assert mine.loss_codebook == 0
        torch.testing.assert_close(quantizer.codes, other.codebook)
        torch.testing.assert_close(quantizer.use, other._codebook.cluster_size[0])
        torch.testing.assert_close(quantizer.sums, other._codebook.embed_avg[0])
    assert len(set(mine.labels.flatten().tolist())) > 1


def test_a_learned_codebook_equals_an_independent_implementation() -> None:
    quantizer = Quantizer(16, 8)
    other = rival(quantizer.codes.detach(), learned=True)
    x, w = torch.randn(5, 12, 8), torch.randn(5, 12, 8)
    mine_in, other_in = F.normalize(x, dim=-1).requires_grad_(), F.normalize(x, dim=-1).requires_grad_()
    mine, (codes, labels, loss) = quantizer(mine_in), other(other_in)
    assert (mine.labels == labels).all()
    torch.testing.assert_close(mine.codes, codes)
    # Its one loss moves both sides; ours are two.
    ((mine.codes * w).sum() + mine.loss_codebook + mine.loss_commitment).backward()
    ((codes * w).sum() + 8 * loss).backward()

    def along(gradient: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
        """What of a gradient moves on the sphere: ours normalises inside, its codebook is free."""
        return gradient - (gradient * point).sum(-1, keepdim=True) * point

    assert mine_in.grad is not None
    assert other_in.grad is not None
    torch.testing.assert_close(mine_in.grad, along(other_in.grad, other_in.detach()), rtol=1e-4, atol=1e-5)
    assert quantizer.codes.grad is not None
    theirs = along(other._codebook.embed.grad[0], quantizer.codes.detach())
    torch.testing.assert_close(quantizer.codes.grad, theirs, rtol=1e-4, atol=1e-5)


# What keeps codes alive


def test_use_is_a_running_count_per_batch() -> None:
    quantizer = Quantizer(2, 2, ema_decay=0.75)
    with torch.no_grad():
        quantizer.codes.copy_(torch.eye(2))
    quantizer(torch.tensor([[1.0, 0.1]] * 5 + [[0.1, 1.0]] * 3))
    assert quantizer.use.tolist() == [0.75 + 0.25 * 5, 0.75 + 0.25 * 3]
    quantizer.eval()(torch.tensor([[1.0, 0.1]] * 5))
    assert quantizer.use.tolist() == [2.0, 1.5]


def test_dead_codes_move_onto_encodings_of_the_batch() -> None:
    quantizer = Quantizer(64, 4, ema_decay=0.5, dead_code_threshold=0.3)
    batch = torch.cat([torch.randn(20, 4) * 0.05 + torch.tensor([1.0, 0, 0, 0])])
    before = quantizer.codes.detach().clone()
    quantizer(batch)
    assert torch.equal(quantizer.codes.detach(), before)  # a code unused for one batch is at 0.5 of its start
    found = quantizer(batch)
    moved = (quantizer.codes.detach() != before).any(-1)
    chosen = torch.zeros(64, dtype=torch.bool)
    chosen[found.labels] = True
    assert (moved == ~chosen).all()
    near = (quantizer.codes.detach()[moved] @ F.normalize(batch, dim=-1).T).max(-1).values
    torch.testing.assert_close(near, torch.ones_like(near))
    assert (quantizer.use[moved] == 1).all()


def test_without_the_remedy_dead_codes_stay_where_they_are() -> None:
    quantizer = Quantizer(64, 4, ema_decay=0.5)
    before = quantizer.codes.detach().clone()
    for _ in range(20):
        quantizer(torch.tensor([[1.0, 0, 0, 0]]))
    assert torch.equal(quantizer.codes.detach(), before)


def test_re_seeding_does_not_disturb_the_gradient_of_the_step() -> None:
    with_remedy, without = Quantizer(32, 4, ema_decay=0.01, dead_code_threshold=0.9), Quantizer(32, 4)
    with torch.no_grad():
        without.codes.copy_(with_remedy.codes)
    x = torch.randn(6, 4)
    for quantizer in (with_remedy, without):
        quantizer(x).loss_codebook.backward()
    assert with_remedy.codes.grad is not None
    assert torch.equal(with_remedy.codes.grad, without.codes.grad)


def test_k_means_starts_on_the_clusters_of_the_first_batch() -> None:
    centres = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0]])
    batch = (centres.repeat_interleave(200, 0) + 0.05 * torch.randn(800, 3))[torch.randperm(800)]
    quantizer = Quantizer(40, 3, kmeans=True)
    assert not quantizer.started
    quantizer.eval()(batch)
    assert not quantizer.started
    found = quantizer.train()(batch)
    assert quantizer.started
    closest = (quantizer.codes.detach() @ centres.T).max(-1).values
    assert closest.min() > 0.97
    assert found.loss_commitment < 0.01
    later = quantizer.codes.detach().clone()
    quantizer(torch.randn(50, 3))
    assert torch.equal(quantizer.codes.detach(), later)


def test_k_means_of_a_moving_codebook_starts_its_means_too() -> None:
    quantizer = Quantizer(8, 3, codebook="ema", kmeans=True, ema_decay=0.999)
    batch = F.normalize(torch.randn(100, 3), dim=-1)
    quantizer(batch)
    torch.testing.assert_close(quantizer.codes.norm(dim=-1), torch.ones(8))
    assert (quantizer.codes - F.normalize(quantizer.sums, dim=-1)).abs().max() < 1e-6


def test_half_precision_in_float32_out() -> None:
    quantizer = Quantizer(9, 4)
    found = quantizer(torch.randn(5, 4).bfloat16())
    assert found.codes.dtype == torch.float32
    assert found.loss_commitment.dtype == torch.float32


def test_state_survives_a_round_trip() -> None:
    one, two = Quantizer(9, 4, codebook="ema"), Quantizer(9, 4, codebook="ema", kmeans=True)
    one(torch.randn(50, 4))
    two.load_state_dict(one.state_dict())
    batch = torch.randn(50, 4)
    assert torch.equal(one(batch).labels, two(batch).labels)
    assert torch.equal(one.codes, two.codes)


# Drawn codes


def test_drawn_codes_and_their_divergence_by_hand() -> None:
    """Two codes at a right angle and an encoding along the first, sharpness ln 3: shares 3/4 and 1/4."""
    quantizer = GumbelQuantizer(2, 2).eval()
    with torch.no_grad():
        quantizer.codes.copy_(torch.eye(2))
        quantizer.log_sharpness.fill_(math.log(math.log(3)))
    x = torch.tensor([[7.0, 0.0]])
    found = quantizer(x)
    assert found.labels.tolist() == [0]
    assert found.codes.tolist() == [[1.0, 0.0]]
    wanted = 0.75 * math.log(0.75 * 2) + 0.25 * math.log(0.25 * 2)
    assert found.loss_codebook.item() == pytest.approx(wanted, rel=1e-5)
    assert found.loss_commitment == 0
    # In training each is drawn with its share: 4000 draws are within 3 % of it (more than four standard deviations).
    drawn = quantizer.train()(x.expand(4000, 2))
    assert (drawn.labels == 0).float().mean().item() == pytest.approx(0.75, abs=0.03)
    torch.testing.assert_close(drawn.codes, torch.eye(2)[drawn.labels])


def test_drawn_codes_teach_encoder_and_codebook() -> None:
    quantizer = GumbelQuantizer(9, 4)
    x = torch.randn(3, 5, 4, requires_grad=True)
    found = quantizer(x)
    assert found.codes.shape == x.shape
    assert found.labels.shape == (3, 5)
    ((found.codes * torch.randn(3, 5, 4)).sum() + found.loss_codebook).backward()
    for moved in (x, quantizer.codes, quantizer.log_sharpness):
        assert moved.grad is not None
        assert moved.grad.any()


def test_even_shares_have_no_divergence() -> None:
    quantizer = GumbelQuantizer(8, 3).eval()
    with torch.no_grad():
        quantizer.log_sharpness.fill_(-30.0)
    assert quantizer(torch.randn(6, 3)).loss_codebook.item() == pytest.approx(0, abs=1e-6)


def test_drawn_codes_that_died_are_re_seeded_and_labels_do_not_depend_on_chance() -> None:
    quantizer = GumbelQuantizer(64, 4, ema_decay=0.5, dead_code_threshold=0.3)
    batch = torch.randn(20, 4)
    before = quantizer.codes.detach().clone()
    for _ in range(2):
        quantizer(batch)
    assert (quantizer.codes.detach() != before).any()
    quantizer.eval()
    assert torch.equal(quantizer(batch).labels, quantizer(batch).labels)
    assert torch.equal(quantizer(batch).labels, quantizer.nearest(batch))
