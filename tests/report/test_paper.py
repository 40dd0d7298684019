"""The paper's tables and figures with our runs in them: values as printed, ours where they belong, nothing made up."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from evilm import cli
from evilm.errors import ConfigError, DataError, OutputError
from evilm.report import measured, paper_figures, paper_tables, published

if TYPE_CHECKING:
    from pathlib import Path

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.presets import ModelConfig

WORLD = {"reader": "msrvtt_retrieval", "annotations": "world", "split": "train"}


def run(folder: Path, task: dict[str, Any], start: str | None = None, **about: Any) -> Path:
    """A run's folder as far as reports look at it."""
    step = folder / "step-7"
    step.mkdir(parents=True)
    recipe = {"task": task, "data": {"train": WORLD}, "start": start}
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
    with_mvm = run(folder / "with", {**both, "contrastive": 1.0})
    run(folder / "without", {**both, "mvm": 0, "tokenizer": None})
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
    evaluations, said = measured.read([folder])
    assert said == []
    return paper_tables.as_json(paper_tables.compare(number, evaluations, costs=False))


def test_published_values_are_those_of_the_text() -> None:
    """A sample of each table against the paper's text, and what is not printed is not there."""
    values = {(n, row.method): row.values for n in range(1, 7) for row in published.table(n).rows}
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
    assert published.table(1).rows[7].starred == {"msrvtt_mc", "msrvtt_qa", "msvd_qa"}


def test_every_row_is_whole() -> None:
    """Each value stands under a column that there is, with as many numbers as the column has metrics."""
    for number in range(1, 7):
        table = published.table(number)
        for row in table.rows:
            assert row.starred <= row.values.keys()
            for key, value in row.values.items():
                column = table.column(key)
                assert len(value) == len(column.metrics) if isinstance(value, tuple) else len(column.metrics) < 2


def test_contradictions_stand_where_they_are() -> None:
    assert any("39.6 in Table 3 and 33.9 in Table 6" in text for text in published.table(3).contradictions)
    assert published.table(3).contradictions[0] in published.table(6).contradictions
    assert any("35.6 in Table 5 and 37.9" in text for text in published.table(5).contradictions)
    assert published.figure(1).contradictions


@pytest.mark.parametrize("number", range(1, 7))
def test_without_runs_ours_is_empty(number: int) -> None:
    found = paper_tables.compare(number, [])
    said = paper_tables.as_json(found)
    assert said["ours"] == []
    own = [line for line in paper_tables.as_markdown(found).splitlines() if line.startswith("| ours: none |")]
    assert len(own) == sum(row.ours for row in found.table.rows)
    assert all(set(line.removeprefix("| ours: none")) == {"|", " "} for line in own)


def test_table_2_has_the_tuned_run_and_not_the_control(runs: Path) -> None:
    said = compared(2, runs)
    [line] = said["ours"]
    assert line["label"] == "ours/with: MLM + MVM + VTM + contrast (not the paper's)"
    assert line["method"] == "E-ViLM"
    cell = line["values"]["msrvtt"]
    assert cell["value"] == (30.0, 60.5, 80.0)
    assert (cell["samples"], cell["published_size"], cell["split"]) == (1000, True, "test")
    assert cell["run"].endswith("retrieval/evaluation-test")
    assert line["values"]["didemo"] is None
    assert line["values"]["pretraining"]["value"] == "msrvtt_retrieval of world"
    assert any("shuffled" in text and "a control" in text for text in said["left_out"])
    assert any("zero-shot: see Table 4" in text for text in said["left_out"])


def test_table_4_has_the_zero_shot_run_and_says_that_its_data_are_others(runs: Path) -> None:
    [line] = compared(4, runs)["ours"]
    cell = line["values"]["msrvtt"]
    assert (cell["samples"], cell["published_samples"], cell["published_size"]) == (500, 1000, False)
    assert "500 rows: not the published test split, which has 1,000; a rule" in cell["note"]


def test_table_3_tells_with_and_without_mvm(runs: Path) -> None:
    said = compared(3, runs)
    [line] = said["ours"]
    assert line["method"] == "E-ViLM with MVM"
    assert line["values"]["hmdb51"]["value"] == 21.0
    assert any("orphan" in text and "elsewhere/deleted is not there" in text for text in said["left_out"])


def test_table_5_tells_objectives(runs: Path) -> None:
    methods = {line["method"]: line["values"] for line in compared(5, runs)["ours"]}
    assert methods.keys() == {"VTM + MLM + MVM", "VTM + MLM", "no pre-training"}
    assert methods["VTM + MLM"]["msrvtt_qa"]["value"] == 32.0
    assert methods["no pre-training"]["msrvtt_qa"]["value"] == 12.0
    assert methods["VTM + MLM + MVM"]["msrvtt_qa"] is None  # the one that cannot see is a control


def test_objectives_that_the_paper_has_not_are_a_line_of_their_own(tmp_path: Path) -> None:
    run(tmp_path / "mlm", {"name": "pretrain", "mvm_weight": 0, "mlm_weight": 1.0, "vtm_weight": 0})
    evaluate(run(tmp_path / "qa", {"name": "question_answering"}, "mlm"), "question_answering", "msrvtt_qa", 9)
    evaluations, _ = measured.read([tmp_path])
    found = paper_tables.compare(5, evaluations)
    assert [line.method for line in found.lines] == [None]
    assert paper_tables.as_markdown(found).count("ours: none") == 4


def test_table_6_tells_tokenizers_and_their_use(runs: Path, tmp_path: Path) -> None:
    methods = {line["method"]: line["values"] for line in compared(6, runs)["ours"]}
    assert methods.keys() == {"E-ViLM + T_L_TOKEN", "Baseline (no MVM)"}
    assert methods["E-ViLM + T_L_TOKEN"]["voc_rate"]["value"] == 91.2
    assert "at the end of the training" in methods["E-ViLM + T_L_TOKEN"]["voc_rate"]["note"]
    assert methods["Baseline (no MVM)"]["voc_rate"] is None
    evaluate(runs / "tok", "tokenizer", "msrvtt_retrieval", 8, metrics={"voc_rate": 90.0, "perplexity": 3.0})
    methods = {line["method"]: line["values"] for line in compared(6, runs)["ours"]}
    assert methods["E-ViLM + T_L_TOKEN"]["voc_rate"]["value"] == 90.0
    run(tmp_path / "px" / "tok", {"name": "reconstruction", "target": "pixels"}, validation={"voc_rate": 50.0})
    run(tmp_path / "px" / "pre", {"name": "pretrain", "mvm_weight": 1.0, "tokenizer": "x/tok"})
    evaluate(run(tmp_path / "px" / "probe", {"name": "linear_probe"}, "x/pre"), "linear_probe", "hmdb51", 1530)
    [line] = compared(6, tmp_path / "px")["ours"]
    assert line["method"] == "E-ViLM + T_DALL-E (pixels)"
    assert line["values"]["voc_rate"]["value"] == 50.0


def test_a_tokenizer_without_a_model_has_its_use_in_table_6(tmp_path: Path) -> None:
    made = run(tmp_path / "features", {"name": "reconstruction", "target": "features"})
    evaluate(made, "reconstruction", "msrvtt_retrieval", 8, metrics={"voc_rate": 85.44, "perplexity": 280.0})
    [line] = compared(6, tmp_path)["ours"]
    assert line["method"] == "E-ViLM + T_BEVT/PeCo (features)"
    assert line["label"].endswith("/features, no model pre-trained with it")
    assert line["values"]["voc_rate"]["value"] == 85.4
    assert line["values"]["hmdb51"] is None
    assert compared(5, tmp_path)["ours"] == []


def test_a_second_evaluation_of_one_cell_is_said(runs: Path) -> None:
    evaluate(runs / "retrieval", "retrieval", "msrvtt_retrieval", 200, "evaluation-validation", split="validation")
    said = compared(2, runs)
    assert said["ours"][0]["values"]["msrvtt"]["samples"] == 1000
    assert any("MSRVTT of ours/with" in text and "is there already" in text for text in said["left_out"])


def test_markdown_numbers_its_sources(runs: Path) -> None:
    evaluations, _ = measured.read([runs])
    text = paper_tables.as_markdown(paper_tables.compare(2, evaluations))
    lines = text.splitlines()
    paper = next(i for i, line in enumerate(lines) if line.startswith("| E-ViLM |"))
    assert lines[paper] == "| E-ViLM | Web2.5M | 27.0 / 51.7 / 64.4 | 23.8 / 44.9 / 53.2 |"
    assert lines[paper + 1].startswith("| ours: ours/with")
    assert "30.0 / 60.5 / 80.0 [1] |" in lines[paper + 1]
    assert "* [1] msrvtt_retrieval of world, test split, 1,000 rows; a rule" in lines
    assert "| all-in-one-T | HT100M+Web2.5M | 16.3 / 37.4 / 53.1* | 12.5 / 26.4 / 38.9* |" in lines
    assert "arXiv 2311.17267" in text


def test_table_1_counts_our_own_model(tmp_path: Path, tiny: ModelConfig, vocabulary: Vocabulary) -> None:
    from evilm.report.cost import cost_of_shape

    shape = tiny.model_dump()
    run(tmp_path / "pre", {"name": "pretrain", "mvm_weight": 0, "mlm_weight": 1.0, "vtm_weight": 1.0}, model=shape)
    tuned = run(tmp_path / "qa", {"name": "question_answering"}, "pre", model=shape)
    vocabulary.save(tuned / "step-7" / "vocabulary.json")
    evaluate(tuned, "question_answering", "msrvtt_qa", 600)
    evaluations, _ = measured.read([tmp_path])
    [line] = paper_tables.compare(1, evaluations).lines
    cost = cost_of_shape("tiny", tiny, 2, 64, 30, vocabulary.size)
    assert line.cells["parameters"].value == round(cost.parameters / 1e6, 2)
    assert line.cells["flops"].value == round(2 * cost.macs / 1e9, 2)
    assert line.cells["frames"].value == 2
    # Figure 1: the paper's two models in six series each, and ours in the one that was measured.
    _, found, said = paper_figures.points(1, evaluations)
    assert said == []
    assert len([point for point in found if point.paper]) == 12
    [own] = [point for point in found if not point.paper]
    assert (own.series, own.value, own.parameters) == ("MSRVTT QA", 32.0, line.cells["parameters"].value)
    assert next(p for p in found if p.method == "all-in-one-B" and p.series == "MSRVTT R@10").value == 71.9


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


def test_figure_2_is_the_gain_of_pairs_that_differ_in_mvm_alone(pair: Path) -> None:
    evaluations, _ = measured.read([pair])
    figure, [point], said = paper_figures.points(2, evaluations)
    assert point.value == 5.5
    assert "46.0 against 40.5" in point.note
    assert not point.paper
    assert len(said) == 1
    assert "there is no run without MVM" in said[0]
    assert "its numbers are printed nowhere" in paper_figures.as_markdown(figure, [point], said)
    assert paper_figures.as_json(figure, [point], said)["points"][0]["value"] == 5.5


def test_figures_are_drawn_whole_or_not_at_all(pair: Path, tmp_path: Path) -> None:
    evaluations, _ = measured.read([pair])
    figure, found, _ = paper_figures.points(2, evaluations)
    out = tmp_path / "pictures" / "two.svg"
    paper_figures.draw(figure, found, out)
    assert "</svg>" in out.read_text()
    assert [path.name for path in out.parent.iterdir()] == ["two.svg"]
    with pytest.raises(OutputError, match=r"ends in \.png"):
        paper_figures.draw(figure, found, tmp_path / "two.doc")


def test_commands(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["report", "table", "5", str(runs)]) == 0
    assert "| VTM + MLM + MVM | 27.0 / 51.7 / 64.4 | 39.3 | 89.2 |" in capsys.readouterr().out
    assert cli.run(["report", "table", "6", str(runs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["table"] == 6
    assert cli.run(["report", "figure", "1", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["points"]) == 12


def test_what_cannot_be_reported(tmp_path: Path, runs: Path) -> None:
    with pytest.raises(ConfigError, match="has no Table 7: its tables are 1 to 6"):
        paper_tables.compare(7, [])
    with pytest.raises(ConfigError, match="has no Figure 3"):
        paper_figures.points(3, [])
    with pytest.raises(DataError, match="no such file or folder"):
        measured.read([tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no evaluation"):
        measured.read([tmp_path / "empty"])
    (runs / "retrieval" / "evaluation-test" / "metrics.json").write_text('{"task": ')
    (runs / "probe" / "evaluation-test" / "metrics.json").write_text("[1]")
    found, said = measured.read([runs])
    assert len(said) == 2
    assert all("left out: not an evaluation of ours" in line for line in said)
    assert len(found) == 6
