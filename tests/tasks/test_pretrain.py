"""Pre-training: every objective moves every parameter, cached labels equal online ones, and accuracies hold."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from evilm.errors import ConfigError
from evilm.model.tokenizer import Tokenizer
from evilm.tasks import masking
from evilm.tasks.batches import same_video
from evilm.tasks.pretrain import Pretrain, PretrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.evilm import EViLM
    from evilm.model.tokenizer import TokenizerConfig
    from evilm.types import Batch, Example, Losses

FACTS = {"codes": 24}


@pytest.fixture
def tokenizer(tiny_tokenizer: TokenizerConfig) -> Tokenizer:
    torch.manual_seed(1)
    return Tokenizer(tiny_tokenizer, 5).eval()


@pytest.fixture
def batch(random_batch: Callable[..., Batch], captioned: Sequence[Example]) -> Batch:
    return random_batch(captioned)


def losses_of(task: Pretrain, batch: Batch) -> Losses:
    torch.manual_seed(7)  # the draw of other texts
    return task.train().losses(batch)


@pytest.mark.parametrize("matching", ["choice", "binary"])
def test_all_objectives_together_move_every_parameter(
    model: EViLM, vocabulary: Vocabulary, tokenizer: Tokenizer, batch: Batch, matching: str,
    without_gradient: Callable[..., list[str]],
) -> None:  # fmt: skip
    config = PretrainConfig(contrastive_weight=1.0, matching=matching, hard_negatives=True, embed_dim=16)
    task = Pretrain(model, vocabulary, config, FACTS, tokenizer)
    losses = losses_of(task, batch)
    assert set(losses.parts) == {"mvm", "mlm", "vtm", "contrastive"}
    assert losses.total.item() == pytest.approx(sum(part.item() for part in losses.parts.values()), rel=1e-6)
    assert without_gradient(task, losses) == []


@pytest.mark.parametrize("on", ["mvm", "mlm", "vtm", "contrastive"])
def test_each_objective_alone_moves_every_parameter_that_it_has(
    model: EViLM, vocabulary: Vocabulary, tokenizer: Tokenizer, batch: Batch, on: str,
    without_gradient: Callable[..., list[str]],
) -> None:  # fmt: skip
    weights = dict.fromkeys(("mvm_weight", "mlm_weight", "vtm_weight", "contrastive_weight"), 0.0) | {
        f"{on}_weight": 2.0
    }
    task = Pretrain(model, vocabulary, PretrainConfig(**weights, embed_dim=16), FACTS, tokenizer)
    losses = losses_of(task, batch)
    assert set(losses.parts) == {on}
    assert losses.total.item() == pytest.approx(2 * losses.parts[on].item())
    assert without_gradient(task, losses) == []


def test_losses_begin_at_chance(model: EViLM, vocabulary: Vocabulary, tokenizer: Tokenizer, batch: Batch) -> None:
    losses = losses_of(Pretrain(model, vocabulary, PretrainConfig(), FACTS, tokenizer), batch)
    assert losses.parts["vtm"].item() == pytest.approx(math.log(4), rel=0.3)
    assert 0.5 * math.log(24) < losses.parts["mvm"].item() < 2 * math.log(24)


def test_cached_labels_give_bit_equal_losses(
    model: EViLM, vocabulary: Vocabulary, tokenizer: Tokenizer, batch: Batch
) -> None:
    online = Pretrain(model, vocabulary, PretrainConfig(contrastive_weight=1.0, embed_dim=16), FACTS, tokenizer)
    torch.manual_seed(0)
    first = losses_of(online, batch)
    cached = replace(batch, labels=torch.cat([tokenizer.labels(batch.frames[i : i + 1]) for i in range(len(batch))]))
    second = losses_of(online, cached)
    assert first.total.item().hex() == second.total.item().hex()
    assert {k: v.item().hex() for k, v in first.parts.items()} == {k: v.item().hex() for k, v in second.parts.items()}
    # And labels matter: others give another loss.
    assert cached.labels is not None
    wrong = losses_of(online, replace(cached, labels=(cached.labels + 1) % 24))
    assert wrong.parts["mvm"] != first.parts["mvm"]


def test_labels_are_those_of_the_frames_before_hiding(
    model: EViLM, vocabulary: Vocabulary, tokenizer: Tokenizer, batch: Batch
) -> None:
    """And only hidden regions are asked for."""
    task = Pretrain(model, vocabulary, PretrainConfig(mlm_weight=0, vtm_weight=0), FACTS, tokenizer).eval()
    grid = model.video_encoder.grid(2, 64, 64)
    where = masking.mask_patches(grid, 0.4, batch.seeds)
    labels = tokenizer.labels(batch.frames).flatten(1)
    frames = masking.hide_patches(model.normalise(batch.frames), where, grid)
    with torch.no_grad():
        text = model.encode_text(vocabulary.encode([example.captions[0] for example in batch.examples], 30))
        states = model.fuse(model.encode_video(frames), text).video
        assert states is not None
        by_hand = torch.nn.functional.cross_entropy(task.patch_head(states[where]), labels[where])
        assert task.losses(batch).parts["mvm"].item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_hidden_pixels_do_not_leak(
    model: EViLM, vocabulary: Vocabulary, tokenizer: Tokenizer, batch: Batch
) -> None:  # fmt: skip
    """Whatever was in the hidden cells, the model's guess is the same."""
    task = Pretrain(model, vocabulary, PretrainConfig(mlm_weight=0, vtm_weight=0), FACTS, tokenizer)
    grid = model.video_encoder.grid(2, 64, 64)
    where = masking.mask_patches(grid, 0.4, batch.seeds)
    other = batch.frames.clone()
    noise = torch.randint(0, 256, other.shape, dtype=torch.uint8)
    hidden = masking.hide_patches(torch.ones_like(other), where, grid) == 0
    other[hidden] = noise[hidden]
    labels = tokenizer.labels(batch.frames)
    one, two = replace(batch, labels=labels), replace(batch, frames=other, labels=labels)
    assert (other != batch.frames).any()
    assert losses_of(task, one).total.item() == losses_of(task, two).total.item()


def test_the_tokenizer_is_no_part_of_the_task(
    model: EViLM, vocabulary: Vocabulary, tokenizer: Tokenizer, batch: Batch
) -> None:
    task = Pretrain(model, vocabulary, PretrainConfig(), FACTS, tokenizer)
    before = tokenizer.fingerprint()
    losses_of(task, batch).total.backward()
    assert not any("tokenizer" in name for name in task.state_dict())
    assert all(parameter.grad is None for parameter in tokenizer.parameters())
    assert not tokenizer.training
    assert tokenizer.fingerprint() == before


def test_other_texts_are_never_of_the_same_video(
    model: EViLM, vocabulary: Vocabulary, random_batch: Callable[..., Batch], captioned: list[Example]
) -> None:
    twice = [*captioned, replace(captioned[0], key="again"), replace(captioned[3], key="again3")]
    batch = random_batch(twice)
    task = Pretrain(model, vocabulary, PretrainConfig(mvm_weight=0), {}, None)
    same = same_video(batch)
    assert same.sum() == 8 + 4
    torch.manual_seed(0)
    for similarity in (None, torch.randn(8, 8)):
        for _ in range(50):
            others = task._partners(batch, similarity)
            assert others.shape == (8, 3)
            assert not same.gather(1, others).any()
            assert all(len(set(row)) == 3 for row in others.tolist())


def test_hard_negatives_are_the_similar_ones(model: EViLM, vocabulary: Vocabulary, batch: Batch) -> None:
    task = Pretrain(model, vocabulary, PretrainConfig(mvm_weight=0, num_negatives=1), {}, None)
    similarity = torch.zeros(6, 6)
    similarity[:, 4] = 1.0
    torch.manual_seed(0)
    drawn = torch.cat([task._partners(batch, similarity)[:4] for _ in range(50)])
    assert (drawn == 4).float().mean() > 0.95


@pytest.mark.parametrize("count", [1, 2, 3])
def test_small_batches(
    model: EViLM, vocabulary: Vocabulary, tokenizer: Tokenizer, count: int,
    random_batch: Callable[..., Batch], captioned: list[Example],
) -> None:  # fmt: skip
    task = Pretrain(model, vocabulary, PretrainConfig(contrastive_weight=1.0, embed_dim=16), FACTS, tokenizer)
    losses = losses_of(task, random_batch(captioned[:count]))
    assert torch.isfinite(losses.total)
    assert ("vtm" in losses.parts) == (count > 1)
    assert len(task.eval().predict(random_batch(captioned[:count]))) == count


def test_settings_that_would_train_nothing_are_refused(model: EViLM, vocabulary: Vocabulary) -> None:
    with pytest.raises(ConfigError, match=r"mvm_weight needs task\.tokenizer"):
        Pretrain(model, vocabulary, PretrainConfig(), {}, None)
    with pytest.raises(ConfigError, match="hard_negatives needs"):
        Pretrain(model, vocabulary, PretrainConfig(mvm_weight=0, hard_negatives=True), {}, None)
    with pytest.raises(ConfigError, match="nothing would be learned"):
        Pretrain(model, vocabulary, PretrainConfig(mvm_weight=0, mlm_weight=0, vtm_weight=0), {}, None)


def test_accuracies_are_shares_of_what_was_hidden(
    model: EViLM, vocabulary: Vocabulary, tokenizer: Tokenizer, batch: Batch
) -> None:
    task = Pretrain(model, vocabulary, PretrainConfig(contrastive_weight=1.0, embed_dim=16), FACTS, tokenizer).eval()
    predictions = task.predict(batch)
    summary = task.compute_metrics(predictions)
    assert set(summary.metrics) == {"mvm_accuracy", "mlm_accuracy", "vtm_accuracy", "contrastive_R@1", "score"}
    each = []
    for p in predictions:
        hidden = p.values["hidden"]
        assert hidden.sum() == 2 * round(0.4 * 16)
        each.append((p.values["guesses"] == p.values["labels"])[hidden].mean())
    assert summary.metrics["mvm_accuracy"] == pytest.approx(100 * np.mean(each))
    labels = np.concatenate([p.values["labels"][p.values["hidden"]] for p in predictions])
    assert summary.chance["mvm_accuracy"] == pytest.approx(100 * np.bincount(labels).max() / len(labels))
    assert summary.chance["vtm_accuracy"] == 50
    parts = [value for name, value in summary.metrics.items() if name != "score"]
    assert summary.metrics["score"] == pytest.approx(np.mean(parts))
    assert [row["key"] for row in summary.rows] == [f"row{i}" for i in range(6)]


def test_an_accuracy_of_one_when_every_guess_is_right(
    model: EViLM, vocabulary: Vocabulary, tokenizer: Tokenizer, batch: Batch
) -> None:
    task = Pretrain(model, vocabulary, PretrainConfig(mlm_weight=0, vtm_weight=0), FACTS, tokenizer).eval()
    with torch.no_grad():
        task.patch_head.out.weight.zero_()
        task.patch_head.out.bias[5] = 1.0
    labelled = replace(batch, labels=torch.full((6, 2, 4, 4), 5))
    assert task.compute_metrics(task.predict(labelled)).metrics["mvm_accuracy"] == 100
    assert (
        task.compute_metrics(task.predict(replace(labelled, labels=torch.full((6, 2, 4, 4), 4)))).metrics["score"] == 0
    )


def test_without_mvm_frames_are_whole_and_their_features_can_be_cached(
    model: EViLM, vocabulary: Vocabulary, tokenizer: Tokenizer, batch: Batch
) -> None:
    config = PretrainConfig(mvm_weight=0, contrastive_weight=1.0, embed_dim=16)
    task = Pretrain(model, vocabulary, config, FACTS, None).eval()
    with torch.no_grad():
        features = model.video_encoder.features(model.normalise(batch.frames))
    cached = replace(batch, frames=torch.zeros_like(batch.frames), features=features)
    torch.manual_seed(7)
    expected = task.losses(batch).parts
    torch.manual_seed(7)
    found = task.losses(cached).parts
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, abs=1e-5
    )
    assert task.accepts_features
    assert not Pretrain(model, vocabulary, PretrainConfig(), FACTS, tokenizer).accepts_features
