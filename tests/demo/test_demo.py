from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from evilm import config
from evilm.demo.plan import BUDGET, OTHER, RUNS, Demo, OutOfTimeError
from evilm.demo.results import gather
from evilm.demo.stages import KIND, run_demo
from evilm.errors import OutputError
from evilm.report import codes
from evilm.report.results import terminal_table
from evilm.tasks.question_answering import QuestionAnsweringConfig

if TYPE_CHECKING:
    from pathlib import Path

SAMPLES = 200


def outcome(**metrics: float) -> dict[str, Any]:
    chance = {"accuracy": 20.0, "R@1": 0.3}
    return {
        "metrics": {"title": "Title", "metrics": metrics, "chance": chance, "rule": "", "samples": SAMPLES},
        "seconds": 5.0,
    }


def put(folder: Path, right: int, shift: int = 0, **columns: Any) -> None:
    """Predictions on SAMPLES rows, of which ``right`` after the first ``shift`` are correct."""
    folder.mkdir(parents=True)
    rows = [
        {"key": f"k{i}", "score": float(shift <= i < shift + right), "rank": 1 if shift <= i < shift + right else 7,
         "temporal": i % 2 == 0, "kind": "order" if i % 2 == 0 else "colour", **columns}
        for i in range(SAMPLES)
    ]  # fmt: skip
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def finished(out: Path, probe: int = 90, untrained: int = 40) -> Demo:
    """A finished demo; of 200 rows of the linear probe ``probe`` are right, of the untrained one ``untrained``."""
    put(out / "retrieval" / "evaluation", 130)
    put(out / "retrieval" / "evaluation-shuffled", 60)
    put(out / "pretrain" / "evaluation-retrieval", 130)
    for stage, blind in (("question_answering", "question_only"), ("multiple_choice", "text_only")):
        put(out / stage / "evaluation", 120)
        put(out / stage / "evaluation-shuffled", 80)
        put(out / blind / "evaluation", 40)
    put(out / "linear_probe" / "evaluation", probe)
    put(out / "linear_probe" / "evaluation-shuffled", 20)
    put(out / "untrained_probe" / "evaluation", untrained, shift=20)
    ranks = {"R@1": 65.0, "R@5": 65.0, "R@10": 100.0, "MdR": 1.0}
    return Demo(
        out,
        15.0,
        {
            "world": {"clips": 5000, "seconds": 1.0},
            "tokenizer": outcome(voc_rate=90.0, perplexity=200.0, word_mAP=40.0),
            "pretrain": outcome(mvm_accuracy=10.0, score=9.0),
            "retrieval": {**outcome(**ranks), "frames shuffled": ranks, "pre-training alone": ranks},
            "question_answering": outcome(accuracy=60.0),
            "multiple_choice": outcome(accuracy=60.0),
            "linear_probe": outcome(accuracy=probe / 2),
            "export": {
                "metrics": {"R@1": 30.6, "R@5": 59.0, "R@10": 79.8, "MdR": 3.0}, "checkpoint": ranks,
                "megabytes": {"model": 3.0}, "seconds": 7.0,
            },
            "real_clips": {
                "metrics": {"title": "T", "metrics": {"R@1": 50.0}, "chance": {"R@1": 25.0}},
                "searches": [{"video": str(rank), "rank": rank} for rank in (1, 1, 2, 9)], "seconds": 2.0,
            },
        },
    )  # fmt: skip


def test_results_hold_value_chance_and_baselines_of_each_metric(tmp_path: Path) -> None:
    results = gather(finished(tmp_path))
    first = results["retrieval"]["R@1"]
    assert (first["value"], first["chance"], first["target"]) == (65.0, 0.3, 30.0)
    assert 58 < first["interval"][0] < 65 < first["interval"][1] < 72
    assert first["baselines"]["frames shuffled"]["value"] == 30.0
    # 70 of 200 samples are right only with the true order of frames.
    assert 28 < first["baselines"]["frames shuffled"]["gain"][0] < 35
    assert results["question_answering"]["accuracy"]["target"] == 40.0  # question only + 20
    assert results["multiple_choice"]["accuracy"]["target"] == 45.0  # text only + 25
    assert results["question_answering"]["temporal"]["met"] is True
    assert results["question_answering"]["kinds"]["order"]["baselines"]["question only"]["value"] == 20.0
    assert results["export"]["R@1"] == {"value": 30.6, "baselines": {"checkpoint": {"value": 65.0}}}
    assert results["real_clips"]["R@1"]["value"] == 50.0
    assert results["real_clips"]["R@1"]["chance"] == 25.0
    assert results["seconds"]["value"] == 40.0
    assert terminal_table(results).row_count > 10


def test_a_target_is_met_only_above_every_baseline(tmp_path: Path) -> None:
    results = gather(finished(tmp_path))
    # 65 % is above the target of 30 %, and the model is no better than pre-training alone.
    assert results["retrieval"]["R@1"]["baselines"]["pre-training alone"]["gain"] == [0.0, 0.0]
    assert results["retrieval"]["R@1"]["met"] is False
    # 45 % against 20 % of an untrained model, whose answers differ.
    assert results["linear_probe"]["accuracy"]["target"] == 30.0
    assert results["linear_probe"]["accuracy"]["met"] is True


@pytest.mark.parametrize(("probe", "untrained"), [(84, 90), (90, 84)])
def test_a_probe_that_is_not_clearly_above_the_untrained_model_is_not_met(
    tmp_path: Path, probe: int, untrained: int
) -> None:
    leaf = gather(finished(tmp_path, probe, untrained))["linear_probe"]["accuracy"]
    assert leaf["met"] is False
    assert leaf["baselines"]["untrained model"]["gain"][0] < 0 < leaf["baselines"]["untrained model"]["gain"][1]


def test_an_unfinished_demo_has_the_results_of_the_stages_that_are_done(tmp_path: Path) -> None:
    run = finished(tmp_path)
    for name in ("retrieval", "linear_probe", "export"):
        del run.found[name]
    results = gather(run)
    assert "retrieval" not in results
    assert results["question_answering"]["accuracy"]["met"] is True


def test_work_grows_with_the_budget(tmp_path: Path) -> None:
    assert Demo(tmp_path, BUDGET).growth == 1
    assert Demo(tmp_path, 60.0).growth == pytest.approx(2)
    whole = Demo(tmp_path, BUDGET).recipe("pretrain", "pretrain").optim.epochs
    assert Demo(tmp_path, 3.0).recipe("pretrain", "pretrain").optim.epochs < whole / 2


def test_a_run_without_video_has_half_the_epochs(tmp_path: Path) -> None:
    run = Demo(tmp_path, BUDGET)
    sighted = run.recipe("question-answering", "question_answering")
    blind = run.recipe("question-answering", "question_only", *run.blind("question-answering"))
    assert isinstance(blind.task, QuestionAnsweringConfig)
    assert blind.task.text_only
    assert blind.optim.epochs == pytest.approx(sighted.optim.epochs / 2)


def test_another_time_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".evilm").write_text(KIND + "\n")
    (tmp_path / "run" / "plan.json").write_text(json.dumps({"minutes": 3.0, "seed": 0}))
    with pytest.raises(OutputError, match="holds a demo with --minutes 3"):
        run_demo(tmp_path / "run", 15.0)


def test_code_words_are_sorted_by_lift() -> None:
    red, blue = ["a red square"], ["a blue square"]
    clips = [({1, 9}, red)] * 3 + [({2, 9}, blue)] * 3
    # red is in half of the clips and in all with code 1: lift 2; square is everywhere: lift 1.
    assert codes.code_words(clips) == {1: ["red", "square"], 2: ["blue", "square"], 9: ["blue", "red", "square"]}


def test_an_override_creates_a_table_that_is_none() -> None:
    assert config.override({"data": {"test": None}}, ["data.test.split=val"]) == {"data": {"test": {"split": "val"}}}


def test_runs_share_the_time_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine: each stage so far took twice as long as planned, and the rest is planned by that."""
    run = Demo(tmp_path, 15.0)
    run.store()
    first = run.limit("tokenizer", "tokenizer")
    assert 2.0 < first < 5.0
    run.found["tokenizer"] = {"seconds": 60 * first + 2 * 25.0}
    monkeypatch.setattr(Demo, "trained_seconds", lambda *_: 60 * first)
    second = run.limit("pretrain", "pretrain")
    fast = Demo(tmp_path / "fast", 15.0)
    (tmp_path / "fast").mkdir()
    fast.store(runs={"tokenizer": first})
    fast.found["tokenizer"] = {"seconds": 60 * first}
    assert second < fast.limit("pretrain", "pretrain"), "slow decoding leaves less for training"
    assert run.limit("pretrain", "pretrain") == second, "a resumed demo keeps its plan"


def test_the_plan_keeps_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Demo(tmp_path, 15.0)
    monkeypatch.setattr(Demo, "trained_seconds", lambda self, run: 60 * self.load_plan()["runs"].get(run, 0.0))
    run.store()
    total = 0.0
    for stage, runs in RUNS.items():
        minutes: list[float] = []
        run.began = time.monotonic()
        for each in runs:
            minutes.append(run.limit(stage, each))
            run.began -= 60 * minutes[-1]
        run.found[stage] = {"seconds": 60 * sum(minutes) + OTHER[stage]}
        total += run.found[stage]["seconds"]
    assert 0.9 * 900 < total <= 900


def test_no_time_left_is_said(tmp_path: Path) -> None:
    run = Demo(tmp_path, 3.0)
    run.store()
    run.found["world"] = {"seconds": 170.0}
    with pytest.raises(OutOfTimeError, match="tokenizer: 0 s are left"):
        run.limit("tokenizer", "tokenizer")
