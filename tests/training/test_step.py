"""One step: pieces add up to the whole, and a step that would harm the weights is not taken."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from evilm import config
from evilm.errors import ConfigError, TrainingError
from evilm.model.evilm import EViLM
from evilm.model.layers import apply_memory_options
from evilm.tasks.task import Task
from evilm.training import optim, snapshot
from evilm.training.recipe import Recipe
from evilm.training.step import Stepper
from evilm.types import Batch, Clip, Example, Losses

if TYPE_CHECKING:
    from evilm.model.presets import ModelConfig


class Line(Task):
    """A straight line through the mean of a clip's pixels, to its seed."""

    name = "line"

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(1, 1), scale
        with torch.no_grad():
            self.layer.weight.fill_(0.5)
            self.layer.bias.zero_()

    def losses(self, batch: Batch) -> Losses:
        x = batch.frames.float().mean((1, 2, 3, 4))[:, None]
        loss = self.scale * (self.layer(x)[:, 0] - batch.seeds.float()).pow(2).mean()
        return Losses(loss, {"square": loss.detach(), "rows": torch.tensor(len(batch))})

    def predict(self, batch: Batch) -> Any: ...

    def compute_metrics(self, predictions: Any) -> Any: ...


def batch(rows: int = 8) -> Batch:
    examples = tuple(Example(f"k{i}", f"v{i}", Clip(Path(f"{i}.mp4"))) for i in range(rows))
    frames = torch.arange(rows, dtype=torch.uint8).view(-1, 1, 1, 1, 1).expand(-1, 1, 3, 2, 2)
    return Batch(examples, frames, torch.arange(rows), torch.ones(rows, dtype=torch.bool))


def stepper(folder: Path, task: Task, **settings: Any) -> Stepper:
    table = {
        "task": {"name": "retrieval"},
        "model": {"preset": "evilm-tiny"},
        "data": {"train": {"reader": "webvid", "annotations": "nowhere"}},
        "optim": {"batch_size": 8, "lr": 0.1, "grad_clip": 0, **settings},
        "run": {"output_dir": str(folder), "device": "cpu", "precision": "fp32"},
    }
    made = config.check(Recipe, table, "test")
    optimizer = optim.optimizer(task, made.optim, frozenset())
    return Stepper(made, task, optimizer, torch.device("cpu"), 10)


@pytest.mark.parametrize("pieces", [2, 4, 8])
def test_pieces_add_up_to_the_whole(tmp_path: Path, pieces: int) -> None:
    whole, split = Line(), Line()
    one = stepper(tmp_path, whole).advance(batch(), 0)
    other = stepper(tmp_path, split, grad_accum_steps=pieces).advance(batch(), 0)
    assert other.loss == pytest.approx(one.loss, rel=1e-6)
    assert other.norm == pytest.approx(one.norm, rel=1e-6)
    assert other.parts["rows"] == 8 / pieces
    assert split.layer.weight.item() == pytest.approx(whole.layer.weight.item(), rel=1e-6)


def test_pieces_must_divide_the_batch(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="accumulate = 3 does not divide batch_size = 8"):
        stepper(tmp_path, Line(), grad_accum_steps=3)


def test_an_exploding_loss_stops_before_the_weights_are_harmed(tmp_path: Path) -> None:
    task = Line()
    steps = stepper(tmp_path, task, explodes=50, lr=1e-3)
    for step in range(3):
        steps.advance(batch(), step)
    before = task.layer.weight.item()
    task.scale = 1000.0
    with pytest.raises(TrainingError, match=r"the loss is .* and was .* at step 3: lower optim\.lr"):
        steps.advance(batch(), 3)
    assert task.layer.weight.item() == before
    assert json.loads((tmp_path / "diverged.json").read_text())["samples"] == [f"k{i}" for i in range(8)]
    stepper(tmp_path, task, explodes=0).advance(batch(), 0)  # 0 never stops


def test_a_gradient_that_is_no_number_stops_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Line()
    steps = stepper(tmp_path, task)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.inf))
    with pytest.raises(TrainingError, match="the gradient's norm is inf at step 0"):
        steps.advance(batch(), 0)
    assert task.layer.weight.item() == 0.5


def test_averaged_weights_by_hand() -> None:
    task = Line()
    average = snapshot.Average(task, 0.5)
    with torch.no_grad():
        task.layer.weight.fill_(1.5)
    average.update(1)  # the first steps count more: min(0.5, 2 / 11)
    expected = 0.5 + (1 - 2 / 11) * 1.0
    assert average.weights["layer.weight"].item() == pytest.approx(expected)
    with average.worn():
        assert task.layer.weight.item() == pytest.approx(expected)
    assert task.layer.weight.item() == 1.5
    assert average.weights["layer.weight"].item() == pytest.approx(expected)


def test_recomputed_activations_give_the_same_gradients(tiny: ModelConfig) -> None:
    found: list[list[torch.Tensor]] = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = EViLM(tiny.model_copy(update={"dropout": 0.1}), 50)
        apply_memory_options(model, grad_checkpointing=recompute)
        model.train()
        torch.manual_seed(1)
        frames = torch.randint(0, 256, (2, 2, 3, 64, 64), dtype=torch.uint8)
        model.fuse(model.encode_video(model.normalise(frames))).cls.pow(2).sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 20
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_what_changed_since_a_run_was_begun_is_said() -> None:
    then = {
        "recipe": {"optim": {"lr": 1.0}, "run": {"output_dir": "a"}},
        "data": {"rows": 3},
        "versions": {"torch": "2.11"},
    }
    now = {
        "recipe": {"optim": {"lr": 2.0}, "run": {"output_dir": "b"}},
        "data": {"rows": 4},
        "versions": {"torch": "2.12"},
    }
    said = snapshot.differences(then, now)
    assert said[0] == "optim.lr was 1.0 and is 2.0"
    assert "training rows" in said[1]
    assert said[2] == "torch was 2.11 and is 2.12: the last bits may differ"
    assert snapshot.differences(then, then) == []
