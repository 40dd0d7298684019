"""The paper's tables and figures with the results of our runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from evilm import cli
from evilm.errors import ConfigError, DataError, OutputError
from evilm.report import figures, paper, tables
from evilm.report.evaluations import read_evaluations

if TYPE_CHECKING:
    from pathlib import Path

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.presets import ModelConfig

WORLD = {"reader": "msrvtt_retrieval", "annotations": "world", "split": "train"}


def run(folder: Path, task: dict[str, Any], start: str | None = None, **about: Any) -> Path:
    """A run's folder as far as reports look at it."""
    step = folder / "step-7"
    step.mkdir(parents=True)
    recipe = {"task": task, "data": {"train": WORLD}, "start": start, "seed": about.pop("seed", None)}
    (step / "config.json").write_text(json.dumps({"task": task["name"], "recipe": recipe, **about}))
    return folder


def evaluate(run: Path, task: str, reader: str, samples: int, name: str = "evaluation-test", **changes: Any) -> Path:
    """An evaluation within a run."""
    said = {
        "task": task, "split": "test", "samples": samples, "rule": "a rule", "checkpoint": "gone/step-7",
        "data": {"reader": reader, "annotations": "world", "split": "test"}, "interval": [30.0, 34.0],
        "metrics": {"accuracy": 32.04} if task != "retrieval" else {"R@1": 30.0, "R@5": 60.55, "R@10": 80.0, "MdR": 3},
        **changes,
    }  # fmt: skip
    folder = run / name
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(said))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two pre-trainings, with MVM on a focal tokenizer and without; what was tuned from each, and their evaluations."""
    folder = tmp_path / "ours"
    run(folder / "tok", {"name": "tokenizer", "word_loss": "focal"}, validation={"voc_rate": 91.23})
    both = {"name": "pretrain", "mvm_weight": 1.0, "mlm_weight": 1.0, "vtm_weight": 1.0, "tokenizer": "elsewhere/tok"}
    with_mvm = run(folder / "with", {**both, "contrastive_weight": 1.0})
    run(folder / "without", {**both, "mvm_weight": 0, "tokenizer": None})
    tuned = run(folder / "retrieval", {"name": "retrieval"}, "elsewhere/with")
    evaluate(tuned, "retrieval", "msrvtt_retrieval", 1000)
    evaluate(tuned, "retrieval", "msrvtt_retrieval", 1000, "shuffled", order="shuffled")
    evaluate(with_mvm, "retrieval", "msrvtt_retrieval", 500)
    plain = run(folder / "qa-without", {"name": "question_answering"}, "elsewhere/without")
    evaluate(plain, "question_answering", "msrvtt_qa", 72821)
    probe = run(folder / "probe", {"name": "linear_probe"}, "elsewhere/with")
    evaluate(probe, "linear_probe", "hmdb51", 40, metrics={"accuracy": 21.04})
    scratch = run(folder / "scratch", {"name": "question_answering"})
    evaluate(scratch, "question_answering", "msrvtt_qa", 600, metrics={"accuracy": 12.0})
    blind = run(folder / "blind", {"name": "question_answering", "text_only": True}, "elsewhere/with")
    evaluate(blind, "question_answering", "msrvtt_qa", 600)
    orphan = run(folder / "orphan", {"name": "linear_probe"}, "elsewhere/deleted")
    evaluate(orphan, "linear_probe", "hmdb51", 40)
    return folder


def compared(number: int, folder: Path) -> dict[str, Any]:
    evaluations, unusable = read_evaluations([folder])
    assert unusable == []
    return tables.as_json(tables.fill(number, evaluations))


def test_published_values_are_those_of_the_text() -> None:
    """A sample of each table against the paper's text; values that it does not print are absent."""
    values = {(n, row.method): row.values for n in range(1, 7) for row in paper.table(n).rows}
    assert values[1, "E-ViLM"] == {
        "parameters": 16, "flops": 12.2, "frames": 4, "pretraining": "Web2.5M", "action": 84.7, "transition": 94.2,
        "frame": 60.7, "msrvtt_mc": 89.2, "msrvtt_qa": 39.3, "msvd_qa": 41.5,
    }  # fmt: skip
    assert values[1, "VIOLET"]["msrvtt_qa"] == 43.9
    assert "msrvtt_mc" not in values[1, "SSML"]
    assert values[2, "E-ViLM"]["didemo"] == (23.8, 44.9, 53.2)
    assert values[3, "E-ViLM without MVM"] == {"hmdb51": 39.6, "k400": 39.7}
    assert values[4, "E-ViLM"] == {"msrvtt_mc": 65.2, "msrvtt": (6.6, 18.2, 26.9), "didemo": (8.8, 23.0, 32.6)}
    assert values[5, "VTM + MLM"] == {"msrvtt": (23.6, 47.6, 60.1), "msrvtt_qa": 35.6, "msrvtt_mc": 72.8}
    assert values[6, "E-ViLM + T_L_BCE"] == {"voc_rate": 64.2, "hmdb51": 35.9, "msrvtt_qa": 38.7}
    assert "voc_rate" not in values[6, "E-ViLM + T_DALL-E (pixels)"]
    assert paper.table(1).rows[7].starred == {"msrvtt_mc", "msrvtt_qa", "msvd_qa"}


def test_every_value_has_a_column() -> None:
    """Each value belongs to a column and has as many numbers as the column has metrics."""
    for number in range(1, 7):
        table = paper.table(number)
        for row in table.rows:
            assert row.starred <= row.values.keys()
            for key, value in row.values.items():
                column = table.columns[key]
                assert len(value) == len(column.metrics) if isinstance(value, tuple) else len(column.metrics) < 2


def test_contradictions_are_listed_with_their_tables() -> None:
    assert any("39.6 in Table 3 and 33.9 in Table 6" in text for text in paper.table(3).contradictions)
    assert paper.table(3).contradictions[0] in paper.table(6).contradictions
    assert any("35.6 in Table 5 and 37.9" in text for text in paper.table(5).contradictions)
    assert paper.figure(1).contradictions


@pytest.mark.parametrize("number", range(1, 7))
def test_without_runs_our_rows_are_empty(number: int) -> None:
    filled = tables.fill(number, [])
    assert tables.as_json(filled)["ours"] == []
    own = [line for line in tables.as_markdown(filled).splitlines() if line.startswith("| ours: none |")]
    assert len(own) == sum(row.ours for row in filled.table.rows)
    assert all(set(line.removeprefix("| ours: none")) == {"|", " "} for line in own)


def test_table_2_holds_fine_tuned_runs_and_no_controls(runs: Path) -> None:
    filled = compared(2, runs)
    [line] = filled["ours"]
    assert line["label"] == "ours/with: MLM + MVM + VTM + contrastive (not in the paper)"
    assert line["method"] == "E-ViLM"
    cell = line["cells"]["msrvtt"]
    assert cell["value"] == (30.0, 60.5, 80.0)
    evaluation = cell["evaluation"]
    assert (evaluation["samples"], evaluation["split"], evaluation["interval"]) == (1000, "test", [30.0, 34.0])
    assert evaluation["file"].endswith("retrieval/evaluation-test/metrics.json")
    assert "didemo" not in line["cells"]
    assert line["cells"]["pretraining"]["value"] == "msrvtt_retrieval of world"
    assert any("shuffled" in text and "a control" in text for text in filled["unused"])
    assert any("zero-shot: see Table 4" in text for text in filled["unused"])


def test_table_4_holds_zero_shot_runs_and_names_their_data(runs: Path) -> None:
    [line] = compared(4, runs)["ours"]
    cell = line["cells"]["msrvtt"]
    assert cell["evaluation"]["samples"] == 500
    assert "500 rows: not the published test split, which has 1,000; a rule" in cell["note"]


def test_table_3_separates_runs_with_and_without_mvm(runs: Path) -> None:
    filled = compared(3, runs)
    [line] = filled["ours"]
    assert line["method"] == "E-ViLM with MVM"
    assert line["cells"]["hmdb51"]["value"] == 21.0
    assert any("orphan" in text and "elsewhere/deleted does not exist" in text for text in filled["unused"])


def test_table_5_separates_runs_by_objectives(runs: Path) -> None:
    methods = {line["method"]: line["cells"] for line in compared(5, runs)["ours"]}
    assert methods.keys() == {"VTM + MLM + MVM", "VTM + MLM", "no pre-training"}
    assert methods["VTM + MLM"]["msrvtt_qa"]["value"] == 32.0
    assert methods["no pre-training"]["msrvtt_qa"]["value"] == 12.0
    assert "msrvtt_qa" not in methods["VTM + MLM + MVM"]  # the text-only run is a control


def test_objectives_that_are_not_in_the_paper_get_their_own_row(tmp_path: Path) -> None:
    run(tmp_path / "mlm", {"name": "pretrain", "mvm_weight": 0, "mlm_weight": 1.0, "vtm_weight": 0})
    evaluate(run(tmp_path / "qa", {"name": "question_answering"}, "mlm"), "question_answering", "msrvtt_qa", 9)
    evaluations, _ = read_evaluations([tmp_path])
    filled = tables.fill(5, evaluations)
    assert [line.method for line in filled.lines] == [None]
    assert tables.as_markdown(filled).count("ours: none") == 4


def test_table_6_separates_runs_by_tokenizer(runs: Path, tmp_path: Path) -> None:
    methods = {line["method"]: line["cells"] for line in compared(6, runs)["ours"]}
    assert methods.keys() == {"E-ViLM + T_L_TOKEN", "Baseline (no MVM)"}
    assert methods["E-ViLM + T_L_TOKEN"]["voc_rate"]["value"] == 91.2
    assert "at the end of the training" in methods["E-ViLM + T_L_TOKEN"]["voc_rate"]["note"]
    assert "voc_rate" not in methods["Baseline (no MVM)"]
    evaluate(runs / "tok", "tokenizer", "msrvtt_retrieval", 8, metrics={"voc_rate": 90.0, "perplexity": 3.0})
    methods = {line["method"]: line["cells"] for line in compared(6, runs)["ours"]}
    assert methods["E-ViLM + T_L_TOKEN"]["voc_rate"]["value"] == 90.0
    run(tmp_path / "px" / "tok", {"name": "reconstruction", "target": "pixels"}, validation={"voc_rate": 50.0})
    run(tmp_path / "px" / "pre", {"name": "pretrain", "mvm_weight": 1.0, "tokenizer": "x/tok"})
    evaluate(run(tmp_path / "px" / "probe", {"name": "linear_probe"}, "x/pre"), "linear_probe", "hmdb51", 1530)
    [line] = compared(6, tmp_path / "px")["ours"]
    assert line["method"] == "E-ViLM + T_DALL-E (pixels)"
    assert line["cells"]["voc_rate"]["value"] == 50.0


def test_table_6_holds_tokenizers_without_a_model(tmp_path: Path) -> None:
    made = run(tmp_path / "features", {"name": "reconstruction", "target": "features"})
    evaluate(made, "reconstruction", "msrvtt_retrieval", 8, metrics={"voc_rate": 85.44, "perplexity": 280.0})
    [line] = compared(6, tmp_path)["ours"]
    assert line["method"] == "E-ViLM + T_BEVT/PeCo (features)"
    assert line["label"].endswith("/features, no model pre-trained with it")
    assert line["cells"]["voc_rate"]["value"] == 85.4
    assert "hmdb51" not in line["cells"]
    assert compared(5, tmp_path)["ours"] == []


def test_a_second_evaluation_of_one_cell_is_reported(runs: Path) -> None:
    evaluate(runs / "retrieval", "retrieval", "msrvtt_retrieval", 200, "evaluation-validation", split="validation")
    filled = compared(2, runs)
    assert filled["ours"][0]["cells"]["msrvtt"]["evaluation"]["samples"] == 1000
    assert any("MSRVTT of ours/with" in text and "already has a value" in text for text in filled["unused"])


def test_markdown_has_numbered_sources(runs: Path) -> None:
    evaluations, _ = read_evaluations([runs])
    text = tables.as_markdown(tables.fill(2, evaluations))
    lines = text.splitlines()
    paper = next(i for i, line in enumerate(lines) if line.startswith("| E-ViLM |"))
    assert lines[paper] == "| E-ViLM | Web2.5M | 27.0 / 51.7 / 64.4 | 23.8 / 44.9 / 53.2 |"
    assert lines[paper + 1].startswith("| ours: ours/with")
    assert "30.0 / 60.5 / 80.0 [1] |" in lines[paper + 1]
    assert "* [1] msrvtt_retrieval of world, test split, 1,000 rows; a rule; 95 % interval of R@1 30.0 to 34.0" in lines
    assert "| all-in-one-T | HT100M+Web2.5M | 16.3 / 37.4 / 53.1* | 12.5 / 26.4 / 38.9* |" in lines
    assert "arXiv 2311.17267" in text


def test_table_1_counts_parameters_and_operations(tmp_path: Path, tiny: ModelConfig, vocabulary: Vocabulary) -> None:
    from evilm.report.cost import cost_of_shape

    shape = tiny.model_dump()
    run(tmp_path / "pre", {"name": "pretrain", "mvm_weight": 0, "mlm_weight": 1.0, "vtm_weight": 1.0}, model=shape)
    tuned = run(tmp_path / "qa", {"name": "question_answering"}, "pre", model=shape)
    vocabulary.save(tuned / "step-7" / "vocabulary.json")
    evaluate(tuned, "question_answering", "msrvtt_qa", 600)
    evaluations, _ = read_evaluations([tmp_path])
    [line] = tables.fill(1, evaluations).lines
    cost = cost_of_shape("tiny", tiny, 2, 64, 30, vocabulary.size)
    assert line.cells["parameters"].value == round(cost.parameters / 1e6, 2)
    assert line.cells["flops"].value == round(2 * cost.macs / 1e9, 2)
    assert line.cells["frames"].value == 2
    # Figure 1: the paper's two models in six series each, and ours in the one that was measured.
    filled = figures.fill(1, evaluations)
    assert filled.unused == []
    assert len([point for point in filled.points if point.paper]) == 12
    [own] = [point for point in filled.points if not point.paper]
    assert (own.series, own.value, own.parameters) == ("MSRVTT QA", 32.0, line.cells["parameters"].value)
    assert next(p for p in filled.points if p.method == "all-in-one-B" and p.series == "MSRVTT R@10").value == 71.9


@pytest.fixture
def pair(tmp_path: Path, tiny: ModelConfig, vocabulary: Vocabulary) -> Path:
    """Multiple choice with and without MVM, of one shape on one data set, and one more of another shape."""
    for name, mvm, value, shape in (
        ("with", 1.0, 46.0, tiny),
        ("without", 0, 40.5, tiny),
        ("other", 1.0, 50.0, tiny.model_copy(update={"depth": 1})),
    ):  # fmt: skip
        table = {"name": "pretrain", "mvm_weight": mvm, "mlm_weight": 1.0, "vtm_weight": 1.0}
        run(tmp_path / f"pre-{name}", table, model=shape.model_dump())
        made = run(tmp_path / name, {"name": "multiple_choice"}, f"pre-{name}", model=shape.model_dump())
        vocabulary.save(made / "step-7" / "vocabulary.json")
        evaluate(made, "multiple_choice", "msrvtt_mc", 50, metrics={"accuracy": value})
    return tmp_path


def test_figure_2_is_the_gain_of_pairs_that_differ_only_in_mvm(pair: Path) -> None:
    evaluations, _ = read_evaluations([pair])
    filled = figures.fill(2, evaluations)
    [point] = filled.points
    assert point.value == 5.5
    assert "46.0 against 40.5" in point.note
    assert not point.paper
    [unused] = filled.unused
    assert "there is no run without MVM" in unused
    assert "the text prints none" in figures.as_markdown(filled)
    assert figures.as_json(filled)["points"][0]["value"] == 5.5


def test_figures_are_drawn_atomically(pair: Path, tmp_path: Path) -> None:
    evaluations, _ = read_evaluations([pair])
    filled = figures.fill(2, evaluations)
    out = tmp_path / "pictures" / "two.svg"
    figures.draw(filled, out)
    assert "</svg>" in out.read_text()
    assert [path.name for path in out.parent.iterdir()] == ["two.svg"]
    with pytest.raises(OutputError, match=r"use \.png"):
        figures.draw(filled, tmp_path / "two.doc")


def test_commands(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["report", "table", "5", str(runs)]) == 0
    assert "| VTM + MLM + MVM | 27.0 / 51.7 / 64.4 | 39.3 | 89.2 |" in capsys.readouterr().out
    assert cli.run(["report", "table", "6", str(runs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["table"]["number"] == 6
    assert cli.run(["report", "figure", "1", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["points"]) == 12


def test_errors(tmp_path: Path, runs: Path) -> None:
    with pytest.raises(ConfigError, match="has no Table 7 with numbers: its tables are 1 to 6"):
        tables.fill(7, [])
    with pytest.raises(ConfigError, match="has no Figure 3"):
        figures.fill(3, [])
    with pytest.raises(DataError, match="no such file or folder"):
        read_evaluations([tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no evaluation"):
        read_evaluations([tmp_path / "empty"])
    (runs / "retrieval" / "evaluation-test" / "metrics.json").write_text('{"task": ')
    (runs / "probe" / "evaluation-test" / "metrics.json").write_text("[1]")
    evaluations, unusable = read_evaluations([runs])
    assert len(unusable) == 2
    assert all("not used: not an evaluation of evilm" in line for line in unusable)
    assert len(evaluations) == 6


def test_a_run_with_old_settings_is_not_used(tmp_path: Path) -> None:
    evaluate(run(tmp_path / "old", {"name": "pretrain", "mvm": 1.0}), "retrieval", "msrvtt_retrieval", 9)
    evaluations, [line] = read_evaluations([tmp_path])
    assert evaluations == []
    assert "task.mvm is now task.mvm_weight" in line


def pretrained(folder: Path, seed: int, accuracy: float, weight: float = 1.0, **model: Any) -> None:
    """A pre-training of some seed, and questions answered from it."""
    run(folder / "pre", {"name": "pretrain", "mvm_weight": 0, "mlm_weight": weight, "vtm_weight": 1.0}, seed=seed)
    tuned = run(folder / "qa", {"name": "question_answering"}, str(folder / "pre"), seed=seed, **model)
    evaluate(tuned, "question_answering", "msrvtt_qa", 600, metrics={"accuracy": accuracy})


def test_seeds_of_one_recipe_are_one_row_with_their_mean_and_interval(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((30.0, 32.0, 34.0)):
        pretrained(tmp_path / f"seed-{seed}", seed, accuracy)
    pretrained(tmp_path / "other", 3, 50.0, weight=2.0)
    filled = compared(5, tmp_path)
    other, ours = sorted(filled["ours"], key=lambda line: line["label"])
    assert ours["label"] == "seed-0/pre: MLM + VTM, seeds 0, 1, 2"
    assert (other["label"], other["cells"]["msrvtt_qa"]["value"]) == ("other/pre: MLM + VTM", 50.0)
    cell = ours["cells"]["msrvtt_qa"]
    assert cell["value"] == 32.0
    # Standard deviation 2, t of 2 degrees of freedom 4.303: 4.303 x 2 / sqrt(3).
    assert cell["interval_of_seeds"] == pytest.approx((32 - 4.968, 32 + 4.968), abs=1e-3)
    assert cell["note"].endswith("; mean of seeds 0, 1, 2; 95 % interval of accuracy over seeds 27.0 to 37.0")
    assert other["cells"]["msrvtt_qa"]["interval_of_seeds"] is None
    evaluations, _ = read_evaluations([tmp_path])
    assert "| 32.0 (27.0 to 37.0) [" in tables.as_markdown(tables.fill(5, evaluations))
    assert filled["unused"] == []


def test_a_seed_counts_once_and_rules_are_not_mixed(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((30.0, 32.0)):
        pretrained(tmp_path / f"seed-{seed}", seed, accuracy)
    again = tmp_path / "seed-1" / "qa"
    evaluate(again, "question_answering", "msrvtt_qa", 600, "twice", metrics={"accuracy": 99.0})
    evaluate(again, "question_answering", "msrvtt_qa", 600, "views", metrics={"accuracy": 99.0}, rule="another rule")
    filled = compared(5, tmp_path)
    [line] = filled["ours"]
    assert line["cells"]["msrvtt_qa"]["value"] == 31.0
    assert sum("already has a value" in text for text in filled["unused"]) == 2


def test_seeds_without_pretraining_are_one_row(tmp_path: Path) -> None:
    for seed in range(2):
        scratch = run(tmp_path / f"seed-{seed}" / "qa", {"name": "question_answering"}, seed=seed)
        evaluate(scratch, "question_answering", "msrvtt_qa", 600, metrics={"accuracy": 10.0 + seed})
        probe = run(tmp_path / f"seed-{seed}" / "mc", {"name": "multiple_choice"}, seed=seed)
        evaluate(probe, "multiple_choice", "msrvtt_mc", 600, metrics={"accuracy": 20.0 + seed})
    [line] = compared(5, tmp_path)["ours"]
    assert line["label"] == "seed-0: no pre-training, seeds 0, 1"
    assert {key: cell["value"] for key, cell in line["cells"].items()} == {"msrvtt_qa": 10.5, "msrvtt_mc": 20.5}


def test_on_selects_data_for_tables_and_figures(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = run(tmp_path / "real" / "qa", {"name": "question_answering"})
    data = {"reader": "msrvtt_qa", "annotations": "shared/msrvtt-frames", "split": "test"}
    evaluate(real, "question_answering", "msrvtt_qa", 5, metrics={"accuracy": 77.7}, data=data)
    both = [str(runs), str(tmp_path / "real")]
    for on, present in (("msrvtt-mini", True), ("synthetic", False), ("msrvtt-frames", True)):
        assert cli.run(["report", "table", "5", *both, "--on", on]) == 0
        assert ("77.7" in capsys.readouterr().out) is present
    assert cli.run(["report", "figure", "2", *both, "--on", "flickr8k"]) == 2
    assert "--on flickr8k: no evaluation is on such data; there are: " in capsys.readouterr().err


def test_figure_2_pairs_runs_of_one_seed(tmp_path: Path, tiny: ModelConfig, vocabulary: Vocabulary) -> None:
    values = {("with", 0): 46.0, ("without", 0): 40.0, ("with", 1): 47.0, ("without", 1): 43.0, ("with", 2): 90.0}
    for (name, seed), value in values.items():
        table = {"name": "pretrain", "mvm_weight": float(name == "with"), "mlm_weight": 1.0, "vtm_weight": 1.0}
        pre = run(tmp_path / f"{name}-{seed}" / "pre", table, seed=seed, model=tiny.model_dump())
        made = run(tmp_path / f"{name}-{seed}" / "mc", {"name": "multiple_choice"}, str(pre), seed=seed,
                   model=tiny.model_dump())  # fmt: skip
        vocabulary.save(made / "step-7" / "vocabulary.json")
        evaluate(made, "multiple_choice", "msrvtt_mc", 50, metrics={"accuracy": value})
    evaluations, _ = read_evaluations([tmp_path])
    filled = figures.fill(2, evaluations)
    [point] = filled.points
    assert point.value == 5.0
    # Gains 6 and 4: t of 1 degree of freedom 12.706, standard deviation sqrt(2), of 2 runs.
    assert "46.5 against 41.5; seeds 0, 1, 95 % interval of the gain -7.7 to 17.7" in point.note
    assert len(filled.unused) == 1
    assert "with-2" in filled.unused[0]
