"""Adapting from the command to the checkpoint, its numbers, its interruption, and what it refuses."""

from __future__ import annotations

import csv
import json
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import evilm
from evilm import cli
from evilm.data.vocabulary import Vocabulary
from evilm.errors import CheckpointError, ConfigError, DataError, OutputError
from evilm.export.restore import restore
from evilm.inference.loading import bundled_folder
from evilm.training import adapt as adapting
from evilm.training import checkpoint, evaluate
from evilm.training.adapt import Request, adapt, divide_time, open_start, schedule

if TYPE_CHECKING:
    from collections.abc import Callable

QUICK = (
    "optim.epochs=2",
    "run.threads=1",
    "run.device=cpu",
    "run.precision=fp32",
    "data.workers=0",
)


@pytest.fixture(scope="module")
def mine(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of 40 clips, one of which cannot be read, said in words that the model does not all know."""
    home = tmp_path_factory.mktemp("mine")
    lines = [json.loads(line) for line in (small_world / "world.jsonl").read_text().splitlines()[:40]]
    with (home / "mine.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption"])
        for one in lines:
            writer.writerow([f"{one['video']}.mp4", f"zorg: {one['captions'][0]['text']}"])
    (home / "videos").mkdir()
    for one in lines:
        (home / "videos" / f"{one['video']}.mp4").symlink_to(small_world / "videos" / f"{one['video']}.mp4")
    (home / "videos" / "video7.mp4").unlink()
    (home / "videos" / "video7.mp4").write_bytes(b"no video")
    return home / "mine.csv"


def request(mine: Path, model: Path | str, *changes: str, **rest: Any) -> Request:
    return Request(str(mine), None, str(model), changes=(*QUICK, *changes), **rest)


@pytest.fixture(scope="module")
def adapted(
    mine: Path, trained: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any, str]:
    """A finished run, what it found, and what it said."""
    out = tmp_path_factory.mktemp("adapted") / "run"
    said = list[str]()
    found = adapt(request(mine, trained("retrieval")), out, restore, say=said.append)
    return out, found, "\n".join(said)


def test_numbers_before_and_after_stand_beside_chance(adapted: tuple[Path, Any, str]) -> None:
    out, found, said = adapted
    assert found == json.loads((out / "adapt.json").read_text()) | {"request": found["request"]}
    assert found["clips"] == {
        "train": 31, "held out": 8, "unreadable": 1, "uncaptioned": 0, "captions": "mine.csv",
    }  # fmt: skip
    assert found["chance"]["MdR"] == 4.5
    assert found["chance"]["R@1"] == 12.5
    for when in ("before", "after"):
        assert {"R@1", "R@5", "R@10", "MdR"} <= set(found[when])
    assert "1 of 40 clips cannot be read and are left out" in said
    assert "video7.mp4: " in said
    [bad] = [json.loads(line) for line in (out / "unreadable.jsonl").read_text().splitlines()]
    assert bad["path"].endswith("video7.mp4")
    assert "zorg" in found["words"]["new"]
    assert "most often: zorg" in said


def test_the_result_is_a_checkpoint_like_any_other(adapted: tuple[Path, Any, str], mine: Path) -> None:
    out, found, _ = adapted
    again = evaluate.of_checkpoint(out)
    assert again.summary.metrics == pytest.approx(found["after"])
    assert again.summary.rule == found["rule"]
    model = evilm.load(out)
    assert model.unknown_share(["zorg"]) == 0
    pieces = Vocabulary.load(checkpoint.find(out) / "vocabulary.json").pieces
    assert pieces[-len(found["words"]["new"]) :] == tuple(found["words"]["new"])
    clip = mine.parent / "videos" / "video1.mp4"
    assert model.embed_videos([clip]).statuses == ("ok",)
    parts = [{json.loads(line)["path"] for line in (out / f"{name}.jsonl").read_text().splitlines()}
             for name in ("train", "held-out")]  # fmt: skip
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 39


def test_a_run_is_not_begun_twice_and_goes_on_as_it_was_begun(
    adapted: tuple[Path, Any, str], mine: Path, trained: Callable[[str], Path]
) -> None:
    out, found, _ = adapted
    with pytest.raises(OutputError, match="holds a run already; continue it with --resume"):
        adapt(request(mine, trained("retrieval")), out, restore)
    with pytest.raises(ConfigError, match="was begun with seed 0: use the same"):
        adapt(request(mine, trained("retrieval"), seed=1), out, restore, resume=True)
    assert adapt(request(mine, trained("retrieval")), out, restore, resume=True)["after"] == found["after"]


def test_stopped_and_gone_on_with_it_ends_as_an_unbroken_one(
    adapted: tuple[Path, Any, str], mine: Path, trained: Callable[[str], Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "run"
    line = ["adapt", str(mine), "--model", str(trained("retrieval")), "--out", str(out)]
    from evilm.training import trainer

    whole = trainer.Trainer._take_step

    def interrupting(self: Any, *rest: Any, **more: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return whole(self, *rest, **more)

    assert threading.current_thread() is threading.main_thread()
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_take_step", interrupting)
        assert cli.run([*line, *QUICK]) == 130
    said = capsys.readouterr().err
    assert f"--out {out}" in said
    assert said.rstrip().endswith("--resume")
    assert checkpoint.steps(out)
    assert cli.run([*line, *QUICK, "--resume"]) == 0
    printed = capsys.readouterr().out
    assert f"evilm index {mine.parent} {out}-index --model {out}" in printed
    assert "median rank" in printed
    result = json.loads((out / "adapt.json").read_text())
    assert result["after"] == adapted[1]["after"]


def test_what_cannot_be_adapted_is_refused_and_leaves_nothing(
    mine: Path, trained: Callable[[str], Path], tokenizer_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(CheckpointError, match="this question_answering model has no embedding head to adapt"):
        adapt(request(mine, trained("question_answering")), out, restore)
    with pytest.raises(CheckpointError, match="is a video tokenizer"):
        adapt(request(mine, tokenizer_run), out, restore)
    with pytest.raises(CheckpointError, match="no such"):
        adapt(request(mine, tmp_path / "none"), out, restore)
    few = tmp_path / "few.csv"
    few.write_text("path,caption\n" + "".join(f"{mine.parent}/videos/video{i}.mp4,a disc\n" for i in range(7)))
    with pytest.raises(DataError, match="7 different videos are too few"):
        adapt(request(few, trained("retrieval")), out, restore)
    few.write_text("path,caption\nnone.mp4,a disc\n")
    with pytest.raises(DataError, match=r"none of 1 videos can be read; the first: .*none.mp4"):
        adapt(request(few, trained("retrieval")), out, restore)
    assert not out.exists()
    out.mkdir()
    (out / "diary.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds something else"):
        adapt(request(mine, trained("retrieval")), out, restore)


def test_a_bundled_export_is_adapted(mine: Path, tmp_path: Path) -> None:
    """It is read back as a checkpoint, and the result is a run like any other."""
    out, said = tmp_path / "run", list[str]()
    found = adapt(request(mine, bundled_folder("world-tiny"), "optim.lr=1e-3"), out, restore, say=said.append)
    assert "reading the weights of world-tiny back from its graphs" in said
    assert {"R@1", "R@10"} <= set(found["before"]) & set(found["after"])
    assert "zorg" in found["words"]["new"]
    clip = mine.parent / "videos" / "video1.mp4"
    [before] = evilm.load("world-tiny").embed_videos([clip]).vectors
    assert evilm.load(out / "model").embed_videos([clip]).vectors[0] @ before > 0.98
    assert evilm.load(out).embed_videos([clip]).vectors[0] @ before < 0.9999, "it learned nothing"
    adapt(request(mine, bundled_folder("world-tiny"), "optim.lr=1e-3"), out, restore, resume=True)


def test_features_are_kept_where_they_can_be(adapted: tuple[Path, Any, str], mine: Path, tmp_path: Path) -> None:
    out, found, _ = adapted
    assert found["recipe"]["data"]["features"]
    assert list((out / "cache").glob("*/features-*.f16"))
    begun = open_start(Path(found["request"]["model"]))

    def kept(*changes: str, clips: int = 31) -> bool:
        asked = request(mine, found["request"]["model"], *changes)
        return adapting.recipe_for(asked, begun, mine.parent, tmp_path, clips, begun.folder).data.features

    assert kept()
    assert kept("data.augment.crop_scale=0.6", "data.augment.cached_crops=3", "data.augment.hflip=true")
    assert not kept("data.augment.crop_scale=0.6")
    assert not kept("optim.backbone_lr_scale=0.1")
    assert not kept("data.cache=")
    assert not kept("data.features=false")
    assert not kept(clips=100_000)


def test_the_schedule_follows_the_number_of_clips() -> None:
    steps = {clips: schedule(clips)[1] * (clips // schedule(clips)[0]) for clips in (8, 100, 300, 1000, 20_000)}
    assert schedule(8)[0] == 8
    assert steps[8] == 40
    assert 60 <= steps[300] <= steps[1000] <= 150
    assert steps[20_000] == pytest.approx(6 * 312)


def test_the_time_limit_is_divided_by_hand() -> None:
    """10 minutes, 60 s of them over; an evaluation of 50 s follows (60 with reserve), and 55 s of features, and 5 s."""
    assert divide_time(10, 60, 50, 55) == (pytest.approx(10 - 1 - 2), pytest.approx(2))
    assert divide_time(10, 900, 50, 0)[0] == 1, "training gets a tenth of the limit at least"


def test_few_held_out_clips_are_reported_as_meaningless(adapted: tuple[Path, Any, str]) -> None:
    _, _, said = adapted
    assert "only 8 clips are held out: the metrics will mean nothing (at least 20 are needed)" in said
    assert "training takes at most" in said
    assert "expected end: " in said


def test_class_names_give_class_accuracy(
    small_world: Path, trained: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(path.name for path in (small_world / "videos").glob("*.mp4"))[:24]
    rows = [f"{small_world}/videos/{name},{'a red disc' if i % 3 else 'a blue star'}" for i, name in enumerate(names)]
    table = tmp_path / "classes.csv"
    table.write_text("path,caption\n" + "\n".join(rows) + "\n")
    out = tmp_path / "run"
    line = ["adapt", str(table), "--model", str(trained("retrieval")), "--out", str(out), "--val-ratio", "0.5"]
    assert cli.run([*line, *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "balanced accuracy" in printed
    assert "These numbers mean nothing: 12 clips are held out" in printed
    state = json.loads((out / "adapt.json").read_text())
    assert state["chance"]["class_accuracy"] == 50
    assert "2 captions are class names" in state["rule"]
    assert 0 <= state["after"]["balanced_accuracy"] <= 100
