"""``evilm export``: the export equals its checkpoint within limits, and nothing is half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import evilm
from evilm import cli
from evilm.errors import CheckpointError, ConfigError, ExportError, OutputError
from evilm.export import compare, quantize, trace, writer
from evilm.inference import export_format
from evilm.inference.runtime_torch import TorchRuntime
from evilm.training import checkpoint, trainer

if TYPE_CHECKING:
    from collections.abc import Callable

    from evilm.model.presets import ModelConfig
    from evilm.training.recipe import Recipe

TEXTS = ["a red disc moves left", "a blue star jumps and a green square grows", "what color is it?"]


def test_the_report_and_the_card_state_what_was_measured(exported: Path) -> None:
    report = export_format.read(exported).measured
    for name in ("video", "text"):
        assert report["cosine"][name]["mean"] >= 0.98
        assert report["cosine"][name]["percentile_1"] >= 0.95
    assert set(report["metrics"]["differences"]) == {f"{way}R@{k}" for way in ("", "v2t_") for k in (1, 5, 10)}
    assert all(each["interval"][1] >= -compare.MAX_DROP for each in report["metrics"]["differences"].values())
    assert report["size in MB"]["all"] == pytest.approx(
        sum(p.stat().st_size for p in exported.iterdir() if p.suffix in (".onnx", ".json")) / 1e6, rel=0.1
    )
    assert set(report["latency"]["times faster"]) == {"video", "text"}
    text = (exported / "README.md").read_text()
    assert "| R@10 |" in text
    assert "## Limits" in text


def test_int8_vectors_and_scores_are_near_the_checkpoint(exported: Path, run: Path, small_world: Path) -> None:
    ours, theirs = evilm.load(exported, threads=1), evilm.load(run)
    clips = sorted((small_world / "videos").glob("*.mp4"))[:5]
    a, b = ours.embed_videos(clips), theirs.embed_videos(clips)
    assert (a.vectors * b.vectors).sum(1).min() > 0.97
    assert (ours.embed_texts(TEXTS) * theirs.embed_texts(TEXTS)).sum(1).min() > 0.97
    np.testing.assert_allclose(ours.match(clips, TEXTS), theirs.match(clips, TEXTS), atol=0.2)
    np.testing.assert_allclose(ours.embed_videos(clips[:1]).vectors[0], a.vectors[0], atol=1e-5)
    assert ours.fingerprint != theirs.fingerprint
    assert evilm.load(exported).fingerprint == ours.fingerprint


def test_an_export_runs_without_torch(exported: Path, small_world: Path) -> None:
    clip = min((small_world / "videos").glob("*.mp4"))
    program = (
        "import sys\nclass Wall:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'onnx'}: raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Wall())\nimport evilm\n"
        f"model = evilm.load({str(exported)!r}, threads=1)\n"
        f"print(model.embed_videos([{str(clip)!r}]).vectors @ model.embed_texts(['a red disc']).T)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[[")


def test_precision_is_raised_graph_by_graph() -> None:
    plan = writer.PrecisionPlan()
    assert plan.step_back("video: the mean cosine with the checkpoint is 0.5000, below 0.98")
    assert [plan.precision(graph) for graph in ("video", "text", "fusion")] == ["int8/fp32", "int8", "int8"]
    assert plan.given_up == [
        "video: the mean cosine with the checkpoint is 0.5000, below 0.98; video is changed from int8 to int8/fp32"
    ]
    assert plan.step_back("fusion: R@10 falls")
    assert plan.precision("fusion") == "int8/fp32"
    assert all(plan.step_back("fusion: R@10 falls") for _ in range(5))
    assert {plan.precision(graph) for graph in ("video", "text", "fusion")} == {"fp32"}
    assert not plan.step_back("text: still")


def test_nothing_is_written_if_even_fp32_breaks_a_limit(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every comparison fails, so every step back is taken."""
    monkeypatch.setattr(trace, "trace", lambda *_: None)
    monkeypatch.setattr(quantize, "calibration_feeds", lambda *_: {})
    monkeypatch.setattr(writer, "_write_draft", lambda *_: None)
    monkeypatch.setattr(writer, "OnnxRuntime", lambda *_: None)
    monkeypatch.setattr(writer, "Embedder", lambda *_, **__: None)
    monkeypatch.setattr(compare, "compare", lambda *_: ({}, ["text: the mean cosine is 0.1, below 0.98"]))
    said = list[str]()
    with pytest.raises(ExportError, match=r"not exported: text: the mean cosine is 0\.1, below 0\.98"):
        writer.export(run, tmp_path / "out", int8=True, say=said.append)
    assert len([line for line in said if "is changed from" in line]) == 7
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds something else; the export of evilm needs a new or empty folder"):
        writer.export(run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]
    with pytest.raises(ConfigError, match="--int8 and --openvino cannot be combined"):
        writer.export(run, tmp_path / "new", int8=True, openvino=True)


def test_a_new_export_replaces_the_old_one_unless_the_disk_is_full(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_format.write(out, lambda to: (to / "a").write_text("1") and None)

    def full(to: Path) -> None:
        (to / "a").write_text("2")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left on device"):
        export_format.write(out, full)
    assert (out / "a").read_text() == "1"
    export_format.write(out, lambda to: (to / "a").write_text("3") and None)
    assert (out / "a").read_text() == "3"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


class FullDisk:
    """A disk with room for so many files more; of the next one, half is written."""

    def __init__(self, files: int) -> None:
        self.files, self.real = files, Path.write_bytes

    def writer(self) -> Callable[[Path, bytes], int]:
        def write(path: Path, content: bytes) -> int:
            self.files -= 1
            if self.files < 0:
                self.real(path, content[: len(content) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.real(path, content)

        return write


@pytest.mark.parametrize("before", [True, False], ids=["in place of another", "new"])
@pytest.mark.parametrize("files", [0, 2])
def test_a_full_disk_leaves_the_old_export(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, before: bool
) -> None:
    out, made = tmp_path / "out", export_format.read(exported)
    if before:
        export_format.write(out, lambda to: writer._fill(to, exported, made))
    known = {path.name: path.read_bytes() for path in out.glob("*")}
    full = FullDisk(files)
    monkeypatch.setattr(Path, "write_bytes", full.writer())
    with pytest.raises(OutputError) as caught:
        export_format.write(out, lambda to: writer._fill(to, exported, made))
    remedy = "nothing half-written is left: free space, export again"
    assert str(caught.value) == f"{out}: cannot write the export: No space left on device; {remedy}"
    assert {path.name: path.read_bytes() for path in out.glob("*")} == known
    assert [path.name for path in tmp_path.iterdir()] == ["out"] * before
    if before:
        export_format.read(out)


def test_the_old_export_stays_while_the_new_one_is_written(exported: Path, tmp_path: Path) -> None:
    out, made = tmp_path / "out", export_format.read(exported)
    export_format.write(out, lambda to: writer._fill(to, exported, made))

    def watched(to: Path) -> None:
        export_format.read(out)
        writer._fill(to, exported, made)

    export_format.write(out, watched)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_old_export_is_restored_if_the_move_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, real = tmp_path / "out", Path.rename
    export_format.write(out, lambda to: (to / "a").write_text("1") and None)

    def refused(path: Path, target: Path) -> Path:
        if target == out:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OutputError, match="Input/output error"):
        export_format.write(out, lambda to: (to / "a").write_text("2") and None)
    assert (out / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_too_little_disk_space_for_drafts_is_an_error(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)

    def fill() -> None:
        with writer._draft_folders(1) as (plain, _):
            (plain / "video.onnx").touch()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match="cannot hold the drafts of this export: No space left on device; free space"):
        fill()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    assert cli.run(["export", str(run), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"error: {tmp_path}: has 0.0 MB free and the drafts of this export take ")
    assert said.endswith("; free space, or name another folder in TMPDIR")
    assert not (tmp_path / "out").exists()


def test_a_damaged_export_is_an_error(exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    whole = (copy / "fusion.onnx").read_bytes()
    (copy / "fusion.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"fusion.onnx: damaged"):
        evilm.load(copy)
    (copy / "fusion.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"fusion.onnx: missing"):
        evilm.load(copy)


def test_wrong_arguments_end_in_one_line(
    run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["export", str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert "no such checkpoint or run" in capsys.readouterr().err
    assert cli.run(["export", str(run), str(exported.parent / "int8" / "video.onnx")]) == 2
    assert "is a file; name a folder for the export of evilm" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trained_answerer_is_exported_and_asked(
    trained: Callable[[str], Path], small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = trained("question_answering"), tmp_path / "qa"
    assert cli.run(["export", str(run), str(out)]) == 0
    printed = capsys.readouterr().out
    assert "accuracy" in printed
    video = str(min((small_world / "videos").glob("*.mp4")))
    answers = {}
    for model in (run, out):
        asked = ["ask", video, "what color is the disc?", "--model", str(model), "--json"]
        assert cli.run(asked) == 0
        answers[model] = json.loads(capsys.readouterr().out)
    assert answers[run]["best_guess"] == answers[out]["best_guess"]
    assert answers[run]["probability"] == pytest.approx(answers[out]["probability"], abs=1e-3)
    assert answers[out]["threshold"] == pytest.approx(answers[run]["threshold"], abs=1e-3)
    assert len(answers[out]["frames"]) == 2
    assert torch.isfinite(torch.tensor(answers[out]["threshold"]))


@pytest.mark.slow
def test_openvino_runs_it_in_bf16(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    made = writer.export(run, tmp_path / "vino", openvino=True)
    assert made.runtime == "openvino"
    assert made.measured["cosine"]["video"]["mean"] > 0.98
    assert evilm.load(tmp_path / "vino").form == "openvino bf16"


def test_metadata_of_a_checkpoint(run: Path) -> None:
    about = TorchRuntime(run).metadata
    assert about.heads == ("embed_video", "embed_text", "match")
    assert about.source["recipe"]["task"]["name"] == "retrieval"


@pytest.mark.parametrize(("embedding", "int8"), [("both", False), ("both", True), ("pooled", False), ("pooled", True)])
def test_a_model_with_pooled_features_is_exported_and_indexed(
    make_recipe: Callable[..., Recipe], tiny: ModelConfig, small_world: Path, tmp_path: Path, embedding: str, int8: bool
) -> None:
    """Its export gives the checkpoint's vectors, and an index of either finds the same clips."""
    model = tiny.model_copy(update={"embedding": embedding}).model_dump()
    task = {"name": "retrieval", "max_text_len": 24, "embed_dim": 16}
    run = trainer.train(make_recipe(tmp_path / "run", task, model=model, optim={"epochs": 1}))
    made = writer.export(run, tmp_path / "export", int8=int8)
    assert made.measured["cosine"]["video"]["mean"] > (0.98 if int8 else 0.9999)
    ours, theirs = evilm.load(tmp_path / "export", threads=1), evilm.load(run)
    clips = sorted((small_world / "videos").glob("*.mp4"))[:6]
    least = 0.97 if int8 else 1 - 1e-5
    assert (ours.embed_videos(clips).vectors * theirs.embed_videos(clips).vectors).sum(1).min() > least
    assert (ours.embed_texts(TEXTS) * theirs.embed_texts(TEXTS)).sum(1).min() > least
    alone = np.concatenate([ours.embed_texts([text]) for text in TEXTS])
    np.testing.assert_allclose(ours.embed_texts(TEXTS), alone, rtol=0, atol=1e-5)
    answer = ours.choose(clips[0], TEXTS[:2])
    assert answer.answer in TEXTS
    # The attention of a decoder that the answer does not depend on would mean nothing.
    assert len(answer.attended_frames()) == (0 if embedding == "pooled" else ours.num_frames)
    (tmp_path / "videos").mkdir()
    for clip in clips:
        (tmp_path / "videos" / clip.name).symlink_to(clip)
    with evilm.VideoIndex.build(tmp_path / "videos", ours, tmp_path / "index") as index:
        assert index.search(TEXTS[0], k=3)
    # The task itself, which training evaluates, ranks as the loaded checkpoint does.
    validated = json.loads((checkpoint.find(run) / "config.json").read_text())["validation"]
    assert made.measured["metrics"]["checkpoint"] == pytest.approx(validated)
