"""A run that was cut equals one that was not, to the last bit; and a loss curve that refactoring may not move."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import nn

from evilm import config, distributed
from evilm.data import sampling
from evilm.errors import CheckpointError, ConfigError, OutputError, TrainingError
from evilm.model.evilm import EViLM
from evilm.model.layers import apply_memory_options
from evilm.tasks.pretrain import Pretrain
from evilm.tasks.task import Task
from evilm.training import build as building
from evilm.training import checkpoint, evaluate, trainer
from evilm.training.recipe import Recipe
from evilm.types import Batch, Clip, Example, Losses

if TYPE_CHECKING:
    from collections.abc import Callable

    from evilm.model.presets import ModelConfig


def rows_of(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def curve(run: Path) -> list[tuple[int, str, str]]:
    """Step, loss and gradient norm of every step, floats to the last bit."""
    return [(row["step"], row["loss"].hex(), row["gradient"].hex()) for row in rows_of(run)]


def weights(run: Path) -> str:
    """sha256 of the weights of the newest checkpoint."""
    return evaluate.fingerprint(checkpoint.find(run))


TASKS: dict[str, tuple[dict[str, Any], str]] = {
    "tokenizer": ({"name": "tokenizer"}, "msrvtt_retrieval"),
    "pretrain": (
        {
            "name": "pretrain",
            "contrastive_weight": 1.0,
            "hard_negatives": True,
            "labels": "cached",
            "max_text_len": 24,
            "embed_dim": 16,
        },
        "msrvtt_retrieval",
    ),
    "question_answering": ({"name": "question_answering", "dropout": 0.2}, "msrvtt_qa"),
    "linear_probe": ({"name": "linear_probe"}, "hmdb51"),
}


@pytest.fixture
def build(make_recipe: Callable[..., Recipe], tokenizer_run: Path) -> Callable[..., Recipe]:
    def make(out: Path, name: str, **rest: Any) -> Recipe:
        task, reader = TASKS[name]
        if name == "pretrain":
            task = {**task, "tokenizer": str(tokenizer_run)}
        changes = {"optim": {"epochs": 3, "batch_size": 18}, "run": {"validate_every": 0.5}, **rest}
        if name == "question_answering":
            changes["data"] = {"train": {"reader": reader, "annotations": str(make.world), "limit": 72}}
        return make_recipe(out, task, reader, **changes)

    return make


@pytest.fixture(autouse=True)
def _world(build: Callable[..., Recipe], small_world: Path) -> None:
    build.world = small_world


class PowerCutError(Exception):
    """The power goes out."""


def cut_at(monkeypatch: pytest.MonkeyPatch, step: int, blow: Callable[[], None]) -> None:
    """Strike in the middle of a step: after its losses, before its update."""
    real = distributed.all_reduce_gradients
    taken = [0]

    def reduce(*args: Any) -> None:
        taken[0] += 1
        if taken[0] == step:
            blow()
        real(*args)

    monkeypatch.setattr(distributed, "all_reduce_gradients", reduce)


@pytest.mark.parametrize("name", TASKS)
def test_a_cut_run_equals_an_unbroken_one(
    build: Callable[..., Recipe], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trainer.train(build(tmp_path / "whole", name))
    total = len(rows_of(whole))
    assert total == 3 * (54 // 18 if name == "linear_probe" else 72 // 18)

    def blow() -> None:
        raise PowerCutError

    cut = build(tmp_path / "cut", name, run={"validate_every": 0.5, "checkpoint_minutes": 1e-9})
    for step in (2, 5):
        with monkeypatch.context() as patch:
            cut_at(patch, step, blow)
            with pytest.raises(PowerCutError):
                trainer.train(cut, resume=step > 2)
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # what a kill leaves of a line
    trainer.train(cut, resume=True)
    assert curve(tmp_path / "cut") == curve(whole)
    assert weights(tmp_path / "cut") == weights(whole)
    assert rows_of(tmp_path / "cut", "validation.jsonl") == rows_of(whole, "validation.jsonl")


def test_the_newest_checkpoint_is_passed_over_when_it_is_damaged(
    build: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trainer.train(build(tmp_path / "whole", "pretrain"))
    cut = build(tmp_path / "cut", "pretrain", run={"validate_every": 0.5, "checkpoint_minutes": 1e-9})

    def blow() -> None:
        raise PowerCutError

    with monkeypatch.context() as patch:
        cut_at(patch, 7, blow)
        with pytest.raises(PowerCutError):
            trainer.train(cut)
    newest = checkpoint.steps(tmp_path / "cut")[-1]
    assert newest.name == "step-6"
    (newest / "model.safetensors").write_bytes(b"gone")
    trainer.train(cut, resume=True)
    said = capsys.readouterr().err
    assert "ignored: " in said
    assert "step-6" in said
    assert "resuming" in said
    assert "step-5 at step 5 of 12" in said
    assert curve(tmp_path / "cut") == curve(whole)
    assert weights(tmp_path / "cut") == weights(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [3, 12])
def test_a_signal_saves_and_stops(
    build: Callable[..., Recipe], tmp_path: Path, number: signal.Signals, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread alone")
    whole = trainer.train(build(tmp_path / "whole", "pretrain"))
    before = signal.getsignal(number)
    cut = build(tmp_path / "cut", "pretrain")
    with monkeypatch.context() as patch:
        cut_at(patch, step, lambda: os.kill(os.getpid(), number))
        with pytest.raises(trainer.Interrupted) as caught:  # at the last step it cuts the validation that is left
            trainer.train(cut)
        assert caught.value.folder == tmp_path / "cut"
        assert checkpoint.find(tmp_path / "cut").name == f"step-{step}"
    assert signal.getsignal(number) is before
    trainer.train(cut, resume=True)
    assert curve(tmp_path / "cut") == curve(whole)
    assert weights(tmp_path / "cut") == weights(whole)
    assert rows_of(tmp_path / "cut", "validation.jsonl") == rows_of(whole, "validation.jsonl")


def test_a_folder_that_holds_a_run_is_refused(build: Callable[..., Recipe], tmp_path: Path) -> None:
    out = trainer.train(build(tmp_path / "run", "question_answering", optim={"epochs": 0.25, "batch_size": 18}))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match="holds a run already; add --resume"):
        trainer.train(build(tmp_path / "run", "question_answering"))
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(OutputError, match="holds something else"):
        trainer.train(build(tmp_path / "photos", "question_answering"))


def test_a_complete_run_is_not_run_again(build: Callable[..., Recipe], tmp_path: Path) -> None:
    made = build(tmp_path / "run", "question_answering", optim={"epochs": 0.5, "batch_size": 18})
    out = trainer.train(made)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    trainer.train(made, resume=True)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_time_limit_shortens_the_run_and_is_taken_up_on_resume(
    build: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    optim = {"epochs": 4000, "batch_size": 18, "max_minutes": 0.05}
    out = trainer.train(build(tmp_path / "run", "question_answering", optim=optim))
    rows = rows_of(out)
    planned = json.loads(capsys.readouterr().err.split("steps fit")[0].split()[-1])
    assert rows[-1]["step"] < planned
    assert rows[-1]["seconds"] < 6.0
    assert rows[-1]["lr"] < 0.05 * max(row["lr"] for row in rows), "the schedule ends with the run"
    trainer.train(build(tmp_path / "run", "question_answering", optim=optim), resume=True)
    assert "is complete" in capsys.readouterr().err


def test_resuming_with_another_recipe_is_refused(build: Callable[..., Recipe], tmp_path: Path) -> None:
    trainer.train(build(tmp_path / "run", "question_answering", optim={"epochs": 0.25, "batch_size": 18}))
    with pytest.raises(CheckpointError, match="was trained by another recipe"):
        trainer.train(build(tmp_path / "run", "pretrain"), resume=True)


def test_what_was_skipped_is_listed_at_the_end(
    build: Callable[..., Recipe], small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(small_world, tmp_path / "world", symlinks=True)
    rows = building.examples_of(build(tmp_path / "run", "tokenizer").data.train)
    name = rows[5].clip.path.name
    (tmp_path / "world" / "videos" / name).write_bytes(b"no video")
    source = {"reader": "msrvtt_retrieval", "annotations": str(tmp_path / "world")}
    data = {"train": source, "validation": None, "cache": None}
    run = trainer.train(build(tmp_path / "run", "tokenizer", data=data, optim={"epochs": 1, "batch_size": 18}))
    said = capsys.readouterr().err
    assert f"skipped: 1 clips could not be read and were not trained on: {run / 'skipped.json'}" in said
    listed = json.loads((run / "skipped.json").read_text())
    assert [Path(clip).name for clip in listed] == [name]
    assert [row["skipped"] for row in rows_of(run)][-1] == 1


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_batch(
    build: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(tmp_path / "run", "pretrain", run={"validate_every": 0})
    real = Pretrain.losses
    seen: list[list[str]] = []

    def losses(self: Pretrain, batch: Batch) -> Losses:
        found = real(self, batch)
        seen.append([example.key for example in batch.examples])
        return (
            Losses(found.total * math.nan, {**found.parts, "mvm": torch.tensor(math.nan)}) if len(seen) == 3 else found
        )

    monkeypatch.setattr(Pretrain, "losses", losses)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 2: lower optim\.lr") as caught:
        trainer.train(made)
    assert "diverged.json" in str(caught.value)
    told = json.loads((tmp_path / "run" / "diverged.json").read_text())
    assert told["step"] == 2
    assert told["samples"] == seen[2]
    assert told["losses"]["mvm"] == "nan"
    assert len(rows_of(tmp_path / "run")) == 2


def test_every_sample_is_seen_once_an_epoch_in_the_order_of_its_seed(
    build: Callable[..., Recipe], tmp_path: Path
) -> None:
    made = build(tmp_path / "run", "question_answering")
    rows = building.examples_of(made.data.train)
    task, _ = building.new_task(made, rows)
    loader = building.make_loader(made, task, rows, train=True)
    for epoch in (0, 1):
        order = [example.key for batch in loader.epoch(epoch) for example in batch.examples]
        assert order == [rows[i].key for i in sampling.epoch_order(0, epoch, 72)]
    tail = [example.key for batch in loader.epoch(1, first=2) for example in batch.examples]
    assert tail == order[36:]


def test_unfinished_checkpoints_are_removed_on_resume(build: Callable[..., Recipe], tmp_path: Path) -> None:
    short = {"epochs": 0.5, "batch_size": 18}
    out = trainer.train(build(tmp_path / "run", "question_answering", optim=short))
    for name in ("step-1.tmp", "step-9.tmp"):
        (out / name).mkdir()
        (out / name / "model.safetensors").write_bytes(b"half")
    trainer.train(build(tmp_path / "run", "question_answering", optim=short), resume=True)
    assert not list(out.glob("*.tmp"))


# Single steps


class Line(Task):
    """A straight line through the mean of a clip's pixels, to its seed."""

    name = "line"
    title = "Line"
    primary_metric = "square"

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__({})
        self.layer, self.scale = nn.Linear(1, 1), scale
        with torch.no_grad():
            self.layer.weight.fill_(0.5)
            self.layer.bias.zero_()

    def losses(self, batch: Batch) -> Losses:
        x = batch.frames.float().mean((1, 2, 3, 4))[:, None]
        loss = self.scale * (self.layer(x)[:, 0] - batch.seeds.float()).pow(2).mean()
        return Losses(loss, {"square": loss.detach(), "rows": torch.tensor(len(batch))})

    @classmethod
    def create(cls, config: Any, examples: Any, parts: Any) -> Any: ...

    @classmethod
    def restore(cls, config: Any, facts: Any, parts: Any) -> Any: ...

    @property
    def clip_shape(self) -> tuple[int, int]:
        return 1, 2

    def predict(self, batch: Batch) -> Any: ...

    def compute_metrics(self, predictions: Any) -> Any: ...


def batch(rows: int = 8) -> Batch:
    examples = tuple(Example(f"k{i}", f"v{i}", Clip(Path(f"{i}.mp4"))) for i in range(rows))
    frames = torch.arange(rows, dtype=torch.uint8).view(-1, 1, 1, 1, 1).expand(-1, 1, 3, 2, 2)
    return Batch(examples, frames, torch.arange(rows), torch.ones(rows, dtype=torch.bool))


class OneBatch:
    """A loader of ten times the same batch."""

    unreadable: ClassVar[dict[str, str]] = {}

    def __len__(self) -> int:
        return 10


def line_trainer(folder: Path, task: Task, **settings: Any) -> trainer.Trainer:
    table = {
        "task": {"name": "retrieval"},
        "model": {"preset": "evilm-tiny"},
        "data": {"train": {"reader": "webvid", "annotations": "nowhere"}},
        "optim": {"batch_size": 8, "lr": 0.1, "grad_clip": 0, "epochs": 1, **settings},
        "run": {"output_dir": str(folder), "device": "cpu", "precision": "fp32"},
    }
    made = config.check(Recipe, table, "test")
    loader: Any = OneBatch()
    return trainer.Trainer(made, task, loader, torch.device("cpu"), {})


@pytest.mark.parametrize("pieces", [2, 4, 8])
def test_pieces_add_up_to_the_whole(tmp_path: Path, pieces: int) -> None:
    whole, split = Line(), Line()
    one = line_trainer(tmp_path, whole)._take_step(batch())
    other = line_trainer(tmp_path, split, grad_accum_steps=pieces)._take_step(batch())
    assert other.loss == pytest.approx(one.loss, rel=1e-6)
    assert other.norm == pytest.approx(one.norm, rel=1e-6)
    assert other.parts["rows"] == 8 / pieces
    assert split.layer.weight.item() == pytest.approx(whole.layer.weight.item(), rel=1e-6)


def test_pieces_must_divide_the_batch(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="grad_accum_steps = 3 does not divide batch_size = 8"):
        line_trainer(tmp_path, Line(), grad_accum_steps=3)


def test_an_exploding_loss_stops_before_the_weights_are_harmed(tmp_path: Path) -> None:
    task = Line()
    run = line_trainer(tmp_path, task, loss_spike_factor=50, lr=1e-3)
    for _ in range(3):
        run._take_step(batch())
    before = task.layer.weight.item()
    task.scale = 1000.0
    with pytest.raises(TrainingError, match=r"the loss is .* and was .* on average at step 3: lower optim\.lr"):
        run._take_step(batch())
    assert task.layer.weight.item() == before
    assert json.loads((tmp_path / "diverged.json").read_text())["samples"] == [f"k{i}" for i in range(8)]
    line_trainer(tmp_path, task, loss_spike_factor=0)._take_step(batch())  # 0 never stops


def test_a_gradient_that_is_no_number_stops_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Line()
    run = line_trainer(tmp_path, task)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.inf))
    with pytest.raises(TrainingError, match="the gradient norm is inf at step 0"):
        run._take_step(batch())
    assert task.layer.weight.item() == 0.5


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
