"""The schedule's numbers, and which parameters decay, learn faster, or not at all."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from evilm.model.evilm import EViLM
from evilm.training import optim
from evilm.training.optim import OptimConfig

if TYPE_CHECKING:
    from evilm.data.vocabulary import Vocabulary
    from evilm.model.presets import ModelConfig


def test_warm_up_and_cosine_by_hand() -> None:
    config = OptimConfig(warmup_ratio=0.1)
    found = [optim.schedule_at(config, step, 100) for step in range(100)]
    assert found[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert found[10] == 1.0
    assert found[55] == pytest.approx(0.5)  # half of what is left after the warm-up
    assert found[40] == pytest.approx(0.75)  # a third of the way: (1 + cos 60 degrees) / 2
    assert found[99] == pytest.approx((1 + math.cos(math.pi * 89 / 90)) / 2)
    assert all(a >= b for a, b in itertools.pairwise(found[10:]))


def test_linear_and_constant() -> None:
    linear, constant = (
        OptimConfig(schedule="linear", warmup_ratio=0),
        OptimConfig(schedule="constant", warmup_ratio=0.2),
    )
    assert [optim.schedule_at(linear, step, 4) for step in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [optim.schedule_at(constant, step, 5) for step in range(5)] == [1, 1, 1, 1, 1]
    assert [optim.schedule_at(constant, step, 10) for step in range(3)] == [0.5, 1, 1]


def test_a_run_of_one_step_learns() -> None:
    for schedule in ("cosine", "linear", "constant"):
        assert optim.schedule_at(OptimConfig(schedule=schedule), 0, 1) == 1


def test_steps() -> None:
    assert optim.steps(OptimConfig(epochs=3), 7) == 21
    assert optim.steps(OptimConfig(epochs=0.5), 7) == 4
    assert optim.steps(OptimConfig(epochs=0.01), 7) == 1


@pytest.fixture
def model(tiny: ModelConfig, vocabulary: Vocabulary) -> nn.ModuleDict:
    from evilm.model.evilm import EViLM

    torch.manual_seed(0)
    return nn.ModuleDict({"model": EViLM(tiny, vocabulary.size), "head": nn.Linear(32, 3)})


def groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, float]]:
    """Each trained parameter's name to its group's settings."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


def test_every_trainable_parameter_is_in_one_group(model: nn.Module) -> None:
    found = optim.make_optimizer(model, OptimConfig(), frozenset())
    listed = [id(p) for group in found.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())


def test_what_does_not_decay(model: nn.Module) -> None:
    found = groups(model, optim.make_optimizer(model, OptimConfig(weight_decay=0.3), frozenset()))
    free = {name for name, group in found.items() if group["weight_decay"] == 0}
    assert {group["weight_decay"] for group in found.values()} == {0, 0.3}
    for name, parameter in model.named_parameters():
        if parameter.ndim <= 1:
            assert name in free
    for name in ("fusion.cls", "fusion.type_text", "fusion.type_video", "video_encoder.space", "video_encoder.time"):
        assert f"model.{name}" in free
    embeddings = [name for name in found if "embeddings" in name]
    assert len(embeddings) >= 3
    assert set(embeddings) <= free
    for name in ("model.fusion.blocks.0.attention.qkv.weight", "model.text_encoder.project.weight", "head.weight"):
        assert name not in free
    kernels = [
        name for name, p in model.named_parameters() if ".backbone." in name and p.ndim == 4 and "weight" in name
    ]
    assert kernels
    assert not free & set(kernels)


def test_rates_of_backbone_and_heads(model: nn.Module) -> None:
    config = OptimConfig(lr=0.01, backbone_lr_scale=0.1, head_lr_scale=5, warmup_ratio=0.2)
    optimizer = optim.make_optimizer(model, config, frozenset({"head.weight", "head.bias"}))
    optim.make_scheduler(optimizer, config, 10)  # the first of ten steps, which are all warm-up
    for name, group in groups(model, optimizer).items():
        factor = 0.1 if ".backbone." in name else 5 if name.startswith("head.") else 1
        assert group["lr"] == pytest.approx(0.01 * 0.5 * factor)


def test_a_frozen_backbone_keeps_every_weight(model: nn.Module) -> None:
    optimizer = optim.make_optimizer(model, OptimConfig(lr=0.1, backbone_lr_scale=0), frozenset())
    assert not any(".backbone." in name for name in groups(model, optimizer))
    before = {name: p.clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert (".backbone." in name) == torch.equal(parameter, before[name])


def test_a_preset_is_changed_by_the_keys_beside_it() -> None:
    config = OptimConfig.model_validate({"preset": "all-in-one", "epochs": 3})
    assert (config.lr, config.head_lr_scale, config.schedule, config.batch_size) == (1e-4, 10.0, "linear", 512)
    assert config.epochs == 3
    assert OptimConfig.model_validate({"preset": "violet"}).weight_decay == 1e-3
    for name in optim.PRESETS:
        OptimConfig.model_validate({"preset": name})
    with pytest.raises(ValueError, match="unknown preset 'violett': there are paper,"):
        OptimConfig.model_validate({"preset": "violett"})


def test_a_schedule_continues_at_any_step(model: nn.Module) -> None:
    config = OptimConfig(lr=0.3, head_lr_scale=3)
    rates: list[float] = []
    optimizer = optim.make_optimizer(model, config, frozenset({"head.weight"}))
    scheduler = optim.make_scheduler(optimizer, config, 20)
    for _ in range(20):
        rates.append(optimizer.param_groups[-1]["lr"])
        optimizer.step()
        scheduler.step()
    for step in (1, 7, 19):
        optim.make_scheduler(optimizer, config, 20, step)
        assert optimizer.param_groups[-1]["lr"] == rates[step]


def test_averaged_weights_by_hand() -> None:
    task = nn.Linear(1, 1)
    torch.nn.init.constant_(task.weight, 0.5)
    average = optim.WeightAverage(task, 0.5)
    with torch.no_grad():
        task.weight.fill_(1.5)
    average.update(1)  # the first steps count more: min(0.5, 2 / 11)
    expected = 0.5 + (1 - 2 / 11) * 1.0
    assert average.averages["weight"].item() == pytest.approx(expected)
    with average.applied():
        assert task.weight.item() == pytest.approx(expected)
    assert task.weight.item() == 1.5
    assert average.averages["weight"].item() == pytest.approx(expected)


def test_loss_spikes_are_measured_against_the_running_mean() -> None:
    guard = optim.LossGuard(50)
    assert [guard.check(loss, 1.0) for loss in (2.0, 2.0, 60.0)] == [None] * 3  # the mean is 2, then 3.16
    assert guard.check(159.0, 1.0) == "the loss is 159 and was 3.16 on average"
    assert guard.check(math.nan, 1.0) == "the loss is nan"
    assert guard.check(1.0, math.inf) == "the gradient norm is inf"
    assert optim.LossGuard(0).check(1e9, 1.0) is None


def test_a_frozen_text_encoder_keeps_what_embeds_a_text(tiny: ModelConfig, vocabulary: Vocabulary) -> None:
    pooled = EViLM(tiny.model_copy(update={"embedding": "pooled"}), vocabulary.size)
    optimizer = optim.make_optimizer(pooled, OptimConfig(text_lr_scale=0), frozenset())
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    frozen = {name for name, parameter in pooled.named_parameters() if id(parameter) not in trained}
    assert "text_encoder.bag_embeddings.weight" in frozen
    assert {name for name in frozen if ".bert." not in name} == {"text_encoder.bag_embeddings.weight"}


def test_the_bag_of_word_pieces_trains_at_the_rate_of_heads(tiny: ModelConfig, vocabulary: Vocabulary) -> None:
    pooled = EViLM(tiny.model_copy(update={"embedding": "pooled"}), vocabulary.size)
    optimizer = optim.make_optimizer(pooled, OptimConfig(head_lr_scale=5), frozenset())
    fast = [group["params"] for group in optimizer.param_groups if group["lr_scale"] == 5]
    assert fast == [[pooled.text_encoder.bag_embeddings.weight]]
