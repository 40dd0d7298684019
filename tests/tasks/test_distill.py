"""The student follows its teacher, by hand and in a run; the teacher stays out of what is saved."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import evilm
from evilm import cli
from evilm.errors import CheckpointError, ConfigError
from evilm.inference.export_format import read
from evilm.tasks.distill import Distill, DistillConfig
from evilm.tasks.predictions import Prediction
from evilm.tasks.task import Parts
from evilm.training import build as building
from evilm.training import checkpoint, evaluate, trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.evilm import EViLM
    from evilm.training.recipe import Recipe
    from evilm.types import Batch, Clip, Example


class Oracle:
    """A teacher of six numbers that says of each clip and text whatever its name gives."""

    fingerprint, embed_dim, num_frames, image_size, temperature = "oracle", 6, 2, 32, 0.1
    resize_mode: Literal["crop", "squash"] = "crop"

    def __init__(self, reads: bool = True, sees: bool = True) -> None:
        self.sees, self.reads, self.read = sees, reads, list[str]()

    def embed_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise AssertionError("there are no files here")

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.read += texts
        return np.stack([self.says(text) for text in texts])

    @staticmethod
    def says(name: str) -> NDArray[np.float32]:
        vector = np.random.default_rng(sum(name.encode())).standard_normal(6)
        return (vector / np.linalg.norm(vector)).astype(np.float32)


class Said:
    """Its vectors of clips, without any file; of ``blind`` ones there are none."""

    def __init__(self, blind: Sequence[str] = ()) -> None:
        self.blind = blind

    def read(self, clips: Sequence[Clip]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        known = np.array([clip.id not in self.blind for clip in clips])
        return np.stack([Oracle.says(clip.id) for clip in clips]) * known[:, None], known


@pytest.fixture
def build(model: EViLM, vocabulary: Vocabulary, captioned: list[Example]) -> Callable[..., Distill]:
    def make(
        blind: Sequence[str] = (), rows: list[Example] | None = None, reads: bool = True, sees: bool = True,
        **settings: Any,
    ) -> Distill:  # fmt: skip
        config = DistillConfig.model_validate({"teacher": "oracle", **settings})
        teacher: Any = Oracle(reads, sees)
        torch.manual_seed(1)
        parts = Parts(model, vocabulary, lambda path: pytest.fail(f"{path}: no tokenizer is needed"), lambda _: teacher)
        task = Distill.create(config, rows or captioned, parts)
        targets: Any = Said(blind)
        task.targets = targets
        return task

    return make


def test_losses_are_those_of_the_functions(
    build: Callable[..., Distill], captioned: list[Example], random_batch: Callable[..., Batch]
) -> None:
    task = build(blind=["2.mp4"], text_weight=3.0).eval()
    batch = random_batch(captioned)
    found = task.losses(batch)
    with torch.no_grad():
        video, text = task._video(batch), task._text(task.captions(batch), batch)
    wanted = torch.from_numpy(np.stack([Oracle.says(row.clip.id) for row in captioned]))
    said = torch.from_numpy(np.stack([Oracle.says(row.captions[0]) for row in captioned]))
    known = torch.tensor([row.clip.id != "2.mp4" for row in captioned])
    cosine = (1 - (video * wanted).sum(1))[known].mean()
    texts = (1 - (text * said).sum(1)).mean()
    assert {name: part.item() for name, part in found.parts.items()} == pytest.approx(
        {"cosine": cosine.item(), "text": texts.item()}, abs=1e-5
    )
    assert found.total.item() == pytest.approx((cosine + 3 * texts).item(), abs=1e-5)


@pytest.mark.parametrize("how", ["without captions", "text_weight = 0", "a teacher that reads nothing"])
def test_videos_alone(
    build: Callable[..., Distill], captioned: list[Example], random_batch: Callable[..., Batch],
    without_gradient: Callable[..., list[str]], how: str,
) -> None:  # fmt: skip
    rows = [replace(row, captions=()) for row in captioned] if how == "without captions" else captioned
    task = build(
        rows=rows, reads=how != "a teacher that reads nothing", text_weight=float(how != "text_weight = 0")
    ).train()
    batch = random_batch(rows)
    parts = task.losses(batch)
    assert set(parts.parts) == {"cosine"}
    assert without_gradient(task, parts) == []
    assert not any("text_out" in name for name in task.state_dict())
    assert not any(p.requires_grad for p in task.model.text_encoder.parameters())
    assert task.embed.temperature.item() == pytest.approx(0.1)  # the teacher's, and it stays
    assert not task.embed.log_temperature.requires_grad


def test_a_sentence_encoder_teaches_texts_alone(
    build: Callable[..., Distill], captioned: list[Example], random_batch: Callable[..., Batch],
    without_gradient: Callable[..., list[str]],
) -> None:  # fmt: skip
    task = build(sees=False).train()
    assert not task.needs_frames
    batch = random_batch(captioned)
    parts = task.losses(batch)
    assert set(parts.parts) == {"text"}
    assert without_gradient(task, parts) == []
    assert not task.embed.has("video")
    assert not any(p.requires_grad for p in task.model.video_encoder.parameters())
    found = task.eval().compute_metrics(task.predict(batch))
    rows = task._text([row.captions[0] for row in captioned], batch).detach().numpy()
    said = np.stack([Oracle.says(row.captions[0]) for row in captioned])
    assert found.metrics["cosine"] == pytest.approx(100 * float((rows * said).sum(1).mean()), abs=1e-3)
    with pytest.raises(ConfigError, match="teaches texts alone"):
        build(sees=False, text_weight=0.0)


def test_each_text_is_read_by_the_teacher_once_and_rows_without_one_are_left_out(
    build: Callable[..., Distill], captioned: list[Example], random_batch: Callable[..., Batch],
    without_gradient: Callable[..., list[str]],
) -> None:  # fmt: skip
    rows = [replace(captioned[0], captions=()), *captioned[1:]]
    task = build().train()
    teacher: Any = task.teacher
    batch = random_batch(rows)
    for _ in range(2):
        parts = task.losses(batch)
    assert sorted(teacher.read) == sorted(set(teacher.read)) != []
    assert "" not in teacher.read
    assert without_gradient(task, parts) == []
    assert not any(isinstance(module, Oracle) for module in task.modules())


def test_it_learns_what_its_teacher_says(
    build: Callable[..., Distill], captioned: list[Example], random_batch: Callable[..., Batch]
) -> None:
    task, batch = build(text_weight=0.0).train(), random_batch(captioned)
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], 3e-3)
    before = task.losses(batch).parts["cosine"].item()
    for _ in range(40):
        optimizer.zero_grad()
        task.losses(batch).total.backward()
        optimizer.step()
    assert before > 0.8
    assert task.losses(batch).parts["cosine"].item() < 0.35
    summary = task.eval().compute_metrics(task.predict(batch))
    assert summary.metrics["cosine"] > 65
    assert summary.metrics["R@1"] > 50  # chance 17


def test_metrics_by_hand(build: Callable[..., Distill], captioned: list[Example]) -> None:
    task = build(text_weight=0.0)
    wanted = np.eye(6, dtype=np.float32)
    turned = F.normalize(torch.tensor([[1.0, 1.0, 0, 0, 0, 0]]), dim=-1).numpy()[0]
    video = np.stack([wanted[0], turned, wanted[3], wanted[3], wanted[4], wanted[5]])
    rows = [
        Prediction(row, i != 5, {"video": video[i], "target": wanted[i], "text_target": wanted[i]})
        for i, row in enumerate(captioned)
    ]
    summary = task.compute_metrics(rows)
    # 0, 3 and 4 are exact, 1 is half turned to 0 (a tie), 2 is wrong, 5 has no frames.
    assert summary.metrics["cosine"] == pytest.approx(100 * (1 + math.sqrt(0.5) + 0 + 1 + 1 + 0) / 6, abs=1e-3)
    assert summary.metrics["R@1"] == pytest.approx(100 * (1 + 0.5 + 0 + 1 + 1 + 0) / 6)
    assert summary.details["teacher"]["text_R@1"] == pytest.approx(500 / 6)
    # Text 2 is like none of five videos, 3 is like two of them.
    assert summary.metrics["text_R@1"] == pytest.approx(100 * (1 + 1 + 0.2 + 0.5 + 1 + 0) / 6)
    assert "teacher's texts" in summary.rule


def test_a_run_from_a_checkpoint_to_a_student(
    make_recipe: Callable[..., Recipe], trained: Callable[[str], Path], small_world: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Videos alone, the teacher a retrieval run: saved without it, measured with it, exported without texts."""
    teacher = trained("retrieval")
    task = {"name": "distill", "teacher": str(teacher)}
    settings: dict[str, Any] = {
        "optim": {"epochs": 2},
        "data": {"train": {"reader": "videos", "annotations": str(small_world / "videos"), "limit": 48}},
    }
    run = trainer.train(make_recipe(tmp_path / "student", task, **settings))
    folder = checkpoint.find(run)
    names = checkpoint.read_tensors(folder / "model.safetensors").keys()
    assert not any("teacher" in name or "text_out" in name for name in names)
    facts = checkpoint.read_json(folder / "config.json")["facts"]
    assert (facts["embed_dim"], facts["texts"]) == (16, False)
    assert "embedding by the teacher" in capsys.readouterr().err
    done = evaluate.of_checkpoint(run, "test")
    assert {"cosine", "R@1", "text_R@1"} <= done.summary.metrics.keys()
    assert "a video is right when the text is true of it" in done.summary.rule
    student = evilm.load(run)
    frames = np.zeros((1, student.num_frames, student.image_size, student.image_size, 3), dtype=np.uint8)
    assert student.embed_frames(frames).shape == (1, 16)
    with pytest.raises(ConfigError, match="has no text embeddings"):
        student.embed_texts(["a red disc"])
    capsys.readouterr()
    assert cli.run(["export", str(run), str(tmp_path / "export"), "--int8"]) == 0
    assert "times faster than torch" in capsys.readouterr().out
    exported = read(tmp_path / "export").measured
    assert exported["cosine"].keys() == exported["latency"]["times faster"].keys() == {"video"}
    assert exported["not measured"].startswith("metrics: a distill model that does not embed both")
    light = evilm.load(tmp_path / "export", threads=1)
    clips = sorted((small_world / "videos").glob("*.mp4"))[:3]
    assert (light.embed_videos(clips).vectors * student.embed_videos(clips).vectors).sum(1).min() > 0.97
    for ask in (
        lambda: light.embed_texts(["a red disc"]),
        lambda: light.match(clips, ["a red disc"]),
        lambda: light.classify(clips, ["red", "blue"]),
        lambda: evilm.VideoIndex.build(small_world / "videos", light, tmp_path / "index"),
    ):
        with pytest.raises(ConfigError, match="has no text embeddings"):
            ask()
    with pytest.raises(ConfigError, match="has no match head"):
        light.choose(clips[0], ["a red disc", "a blue star"])
    capsys.readouterr()
    trainer.train(make_recipe(tmp_path / "again", task, **settings))
    assert "48/48" not in capsys.readouterr().err  # what the teacher said is kept


def test_a_teacher_that_is_not_there_or_cannot_teach(
    make_recipe: Callable[..., Recipe], trained: Callable[[str], Path], tmp_path: Path
) -> None:
    for name, said in (
        (str(tmp_path / "nowhere"), "nowhere"),
        ("open_clip:owner/name", "no network, and no copy"),
        (str(trained("question_answering")), "without embeddings"),
    ):
        with pytest.raises(CheckpointError, match=said):
            trainer.train(make_recipe(tmp_path / "run", {"name": "distill", "teacher": name}))
        assert not (tmp_path / "run").exists()


def test_a_student_outlives_its_teacher(
    make_recipe: Callable[..., Recipe], trained: Callable[[str], Path], tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(checkpoint.find(trained("retrieval")), teacher)
    run = trainer.train(
        make_recipe(tmp_path / "run", {"name": "distill", "teacher": str(teacher)}, optim={"epochs": 1})
    )
    shutil.rmtree(teacher)
    restored, _ = building.restore(run)
    assert isinstance(restored, Distill)
    assert restored.teacher is None
    with pytest.raises(CheckpointError, match="the teacher cannot be loaded"):
        evaluate.of_checkpoint(run, "test")
    shutil.copytree(checkpoint.find(trained("retrieval")), teacher)
    own = evilm.load(run)
    assert own.embed_texts(["a red disc"]).shape == (1, 16)  # taught by captions
    retrieval = evaluate.of_checkpoint(run, "test", task="retrieval")
    assert "R@1" in retrieval.summary.metrics
