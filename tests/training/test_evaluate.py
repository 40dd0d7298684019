"""Evaluations: views of a video, the record beside the numbers, Parquet, and no selection on a test split."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from evilm import cli
from evilm.data import readers
from evilm.data.config import SourceConfig
from evilm.data.pixels import FilePixels, Job
from evilm.errors import ConfigError, DependencyError, SelectionError
from evilm.tasks.predictions import Metrics, Prediction
from evilm.training import checkpoint, evaluate, logger, overlap, trainer
from evilm.training.recipe import check_selection
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Callable

    from evilm.training.recipe import Recipe

RETRIEVAL = {"name": "retrieval", "max_text_len": 24, "embed_dim": 16}


@pytest.fixture
def run(make_recipe: Callable[..., Recipe], tmp_path: Path) -> Path:
    return trainer.train(make_recipe(tmp_path / "run", RETRIEVAL, optim={"epochs": 0.2, "batch_size": 12}))


def test_the_mean_of_views_is_that_of_their_scores() -> None:
    row = Example("0", "v", Clip(Path("0.mp4")))
    views = [
        Prediction(row, True, {"video": np.float32([1, 0]), "text": "t"}),
        Prediction(row, True, {"video": np.float32([0, 1]), "text": "t"}),
    ]
    mean = evaluate._average(("video",), views)
    assert mean.values["text"] == "t"
    assert mean.values["video"].tolist() == [0.5, 0.5]
    assert mean.readable


def test_views_take_other_frames_of_each_segment() -> None:
    found = [Job(Clip(Path("a.mp4")), position=(k + 0.5) / 3).positions(2).tolist() for k in range(3)]
    assert found == [pytest.approx([p, p]) for p in (1 / 6, 0.5, 5 / 6)]


def test_videos_that_were_trained_on_are_counted_and_printed(
    run: Path, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    clean = evaluate.of_checkpoint(run, "test")
    assert clean.result["trained_videos"] == {"videos": clean.result["samples"], "trained": 0, "first": []}
    assert "trained on" not in clean.summary.rule
    # The test split is the training split under another name, and here the first 7 rows of it.
    leaked = evaluate.of_checkpoint(run, "test", ["data.test.split=train", "data.test.limit=7"])
    assert leaked.result["trained_videos"]["trained"] == leaked.result["trained_videos"]["videos"] == 7
    assert leaked.summary.rule.endswith("; 7 of 7 videos were trained on")
    assert len(leaked.result["trained_videos"]["first"]) == 3
    # Other annotations of the same files are found by the files.
    other = evaluate.of_checkpoint(
        run,
        "test",
        ["data.test.split=train", "data.test.limit=7", "data.test.reader=msrvtt_mc"],
        task="multiple_choice",
    )
    assert other.result["trained_videos"]["trained"] == other.result["trained_videos"]["videos"] > 0
    # A run before this one trained on it, too.
    config = json.loads((checkpoint.find(run) / "config.json").read_text())
    source = SourceConfig.model_validate(config["recipe"]["data"]["train"] | {"limit": 3})
    rows = [Example("0", name, Clip(Path(f"{name}.mp4"))) for name in ("video0", "stranger")]
    tuned = trainer.train(
        make_recipe(tmp_path / "tuned", RETRIEVAL, start=run, optim={"epochs": 0.2, "batch_size": 12})
    )
    assert len(list(overlap._training_sources(tuned))) == 2
    found = overlap.trained_videos(rows, source, checkpoint.find(tuned))
    assert found == {"videos": 2, "trained": 1, "first": ["video0"]}, "by its id, though the file is another"
    shutil.rmtree(run)
    assert overlap.trained_videos(rows, source, checkpoint.find(tuned)) is None, "the run before is gone: unknown"


def test_views_of_a_run(run: Path, small_world: Path) -> None:
    one = evaluate.of_checkpoint(run, "test")
    two = evaluate.of_checkpoint(run, "test", views=2)
    assert (one.result["views"], two.result["views"]) == (1, 2)
    assert two.folder == run / "evaluation-test-2-views"
    assert two.summary.rule == one.summary.rule + "; mean score of 2 clips a video, each of other frames"
    assert len(two.summary.rows) == len(one.summary.rows)
    assert evaluate.of_checkpoint(run, "test", views=2).summary.rows == two.summary.rows
    with pytest.raises(ConfigError, match=r"--views 3 of 2 frames: only 4 frames .* data\.cached_frames=6"):
        evaluate.of_checkpoint(run, "test", views=3)
    decoded = evaluate.of_checkpoint(run, "test", ["data.cache="], views=3)
    assert decoded.result["samples"] == one.result["samples"]
    choice = [evaluate.of_checkpoint(run, "test", ["data.test.reader=msrvtt_mc"], task="multiple_choice", views=n)
              for n in (1, 2)]  # fmt: skip
    assert choice[1].summary.rule.endswith("; mean score of 2 clips a video, each of other frames")
    assert len(choice[0].summary.rows) == len(choice[1].summary.rows)
    with pytest.raises(ConfigError, match="--views 2: pretrain averages no scores"):
        evaluate._check_views(SimpleNamespace(averaged=(), name="pretrain"), SimpleNamespace(), 2)  # type: ignore[arg-type]
    rows = [*readers.stream("msrvtt_retrieval", small_world, None, "test")]
    frames = [FilePixels(32).read(Job(rows[0].clip, position=p), 2) for p in (0.25, 0.75)]
    assert not np.array_equal(*frames)


def test_the_record_beside_the_numbers(run: Path) -> None:
    done = evaluate.of_checkpoint(run, "test")
    result = json.loads(json.dumps(done.result))
    assert result["versions"] == logger.packages()
    assert result["machine"]["device"] == "cpu"
    assert {"processor", "cores", "threads", "gpus"} <= result["machine"].keys()
    assert result["git"] is None or len(result["git"]["commit"]) == 40
    assert result["seed"] == 0
    assert result["weights"] == evaluate.fingerprint(checkpoint.find(run))
    assert result["rows"]["count"] == result["samples"]
    assert len(result["rows"]["fingerprint"]) == len(result["trained_on"]["fingerprint"]) == 16
    other = evaluate.of_checkpoint(run, "validation").result["rows"]
    assert other["fingerprint"] != result["rows"]["fingerprint"]


def test_selection_on_a_test_split_is_refused(
    make_recipe: Callable[..., Recipe], small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = {"reader": "msrvtt_retrieval", "annotations": str(small_world), "split": "test"}
    made = make_recipe(
        tmp_path / "run", RETRIEVAL, data={"validation": source}, optim={"epochs": 0.2, "batch_size": 12}
    )
    with pytest.raises(SelectionError, match=r"data\.validation has split = 'test': .* --select-on-test"):
        trainer.train(made)
    assert not (tmp_path / "run").exists()
    same = SourceConfig(reader="captions", annotations=Path("all.csv"), split="all")
    data = made.data.model_copy(update={"validation": same, "test": same})
    with pytest.raises(SelectionError, match=r"data\.validation has the rows of data\.test"):
        check_selection(data)
    check_selection(data, select_on_test=True)
    check_selection(data.model_copy(update={"validation": None}))
    run = trainer.train(made, select_on_test=True)
    assert "was selected on a test split" in evaluate.of_checkpoint(run, "test").summary.rule
    assert cli.run(["train", "world-retrieval", "data.validation.split=test", "data.cache="]) == 2
    assert "--select-on-test" in capsys.readouterr().err


def test_thresholds_are_not_chosen_on_a_test_split(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    made = make_recipe(
        tmp_path / "run", {"name": "question_answering"}, "msrvtt_qa", optim={"epochs": 0.2, "batch_size": 12}
    )
    run = trainer.train(made)
    assert "cannot_tell" in evaluate.of_checkpoint(run, "validation").summary.details
    assert "cannot_tell" not in evaluate.of_checkpoint(run, "test").summary.details


def test_predictions_as_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows: list[dict[str, Any]] = [
        {"key": "a", "score": 1.0, "kind": None, "answer": "ä", "rank": 1, "mixed": 1, "nested": [1, 2]},
        {"key": "b", "score": 0.5, "kind": None, "answer": None, "rank": 2, "mixed": "x", "nested": []},
    ]
    summary = Metrics({"R@1": 75.0}, {}, "rule", rows)
    evaluate.save(tmp_path / "out", {"metrics": summary.metrics}, summary, parquet=True)
    found = parquet.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    plain = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [{**row, "mixed": json.loads(row["mixed"])} for row in found] == plain == rows
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DependencyError, match=r"pip install 'evilm\[parquet\]'"):
        evaluate.parquet_bytes(rows)
