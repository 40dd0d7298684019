from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from evilm import config, demo
from evilm.errors import OutputError
from evilm.report import codes, table
from evilm.tasks.question_answering import QuestionAnsweringConfig

if TYPE_CHECKING:
    from pathlib import Path


def outcome(**metrics: float) -> dict[str, Any]:
    return {
        "metrics": metrics,
        "chance": {"accuracy": 20.0, "R@1": 0.3},
        "interval": [1.0, 2.0],
        "rule": "",
        "samples": 9,
    }


def answers() -> dict[str, Any]:
    return {
        "metrics": outcome(**{"accuracy": 60.0, "accuracy[order]": 50.0}),
        "blind": {"accuracy": 21.0, "accuracy[order]": 19.0},
        "frames shuffled": {"accuracy": 45.0, "accuracy[order]": 30.0},
        "temporal": 52.0,
        "temporal blind": 20.0,
        "temporal shuffled": 33.0,
        "seconds": 5.0,
    }


def finished(out: Path) -> demo.Demo:
    ranks = {"R@1": 31.0, "R@5": 60.0, "R@10": 80.0, "MdR": 3.0}
    return demo.Demo(
        out,
        15.0,
        {
            "world": {"clips": 5000, "seconds": 1.0},
            "tokenizer": {"metrics": outcome(voc_rate=90.0, perplexity=200.0, word_mAP=40.0), "seconds": 2.0},
            "pretrain": {"metrics": outcome(mvm_accuracy=10.0, score=9.0), "seconds": 3.0},
            "retrieval": {
                "metrics": outcome(**ranks), "frames shuffled": ranks, "pre-training alone": ranks, "seconds": 4.0,
            },
            "question_answering": answers(),
            "multiple_choice": answers(),
            "linear_probe": {
                "metrics": outcome(accuracy=40.0), "untrained": {"accuracy": 15.0},
                "frames shuffled": {"accuracy": 25.0}, "seconds": 6.0,
            },
            "export": {
                "metrics": {"R@1": 30.6, "R@5": 59.0, "R@10": 79.8, "MdR": 3.0}, "checkpoint": ranks,
                "megabytes": {"model": 3.0}, "seconds": 7.0,
            },
        },
    )  # fmt: skip


def test_results_hold_value_chance_and_baselines_of_every_number(tmp_path: Path) -> None:
    results = demo.gather(finished(tmp_path))
    assert {
        "retrieval",
        "question_answering",
        "multiple_choice",
        "linear_probe",
        "tokenizer",
        "seconds",
    } <= results.keys()
    assert results["retrieval"]["R@1"] == {
        "value": 31.0,
        "chance": 0.3,
        "baselines": {"frames shuffled": 31.0, "pre-training alone": 31.0},
        "interval": [1.0, 2.0],
        "target": 30.0,
    }
    assert results["question_answering"]["accuracy"]["target"] == 41.0  # question only + 20
    assert results["multiple_choice"]["accuracy"]["target"] == 46.0  # text only + 25
    assert results["question_answering"]["temporal"]["met"] is True
    assert results["question_answering"]["kinds"]["order"]["baselines"] == {
        "question only": 19.0,
        "frames shuffled": 30.0,
    }
    assert results["export"]["R@1"] == {"value": 30.6, "chance": None, "baselines": {"checkpoint": 31.0}}
    assert results["seconds"]["value"] == 33.0
    assert table.render(results).row_count > 10


def test_work_grows_with_the_budget(tmp_path: Path) -> None:
    assert demo.Demo(tmp_path, demo.BUDGET).growth == 1
    assert demo.Demo(tmp_path, 54.0).growth == pytest.approx(2)  # 13 minutes of work become 52
    whole = demo.Demo(tmp_path, demo.BUDGET).recipe("pretrain", "pretrain").optim.epochs
    assert demo.Demo(tmp_path, 3.0).recipe("pretrain", "pretrain").optim.epochs < whole / 3


def test_a_blind_twin_has_half_the_epochs_and_no_sight(tmp_path: Path) -> None:
    run = demo.Demo(tmp_path, demo.BUDGET)
    sighted = run.recipe("question-answering", "question_answering")
    blind = run.recipe("question-answering", "question_only", *run.blind("question-answering"))
    assert isinstance(blind.task, QuestionAnsweringConfig)
    assert blind.task.text_only
    assert blind.optim.epochs == pytest.approx(sighted.optim.epochs / 2)


def test_a_demo_of_another_length_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".evilm").write_text(demo.KIND + "\n")
    (tmp_path / "run" / "plan.json").write_text(json.dumps({"minutes": 3.0, "seed": 0}))
    with pytest.raises(OutputError, match="holds a demo of 3 minutes"):
        demo.demo(tmp_path / "run", 15.0)


def test_words_of_codes_are_those_that_go_with_them_most() -> None:
    red, blue = ["a red square"], ["a blue square"]
    clips = [({1, 9}, red)] * 3 + [({2, 9}, blue)] * 3
    # red is in half of the clips and in all with code 1: lift 2; square is everywhere: lift 1.
    assert codes.code_words(clips) == {1: ["red", "square"], 2: ["blue", "square"], 9: ["blue", "red", "square"]}


def test_an_override_goes_into_a_table_that_is_none() -> None:
    assert config.override({"data": {"test": None}}, ["data.test.split=val"]) == {"data": {"test": {"split": "val"}}}
