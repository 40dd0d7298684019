"""All tables and figures as files."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

import pytest

from evilm import cli
from evilm.errors import DataError
from evilm.report import write

if TYPE_CHECKING:
    from pathlib import Path


def test_all_tables_and_figures_with_a_run(tmp_path: Path) -> None:
    step = tmp_path / "runs" / "qa" / "step-7"
    step.mkdir(parents=True)
    world = {"reader": "msrvtt_qa", "annotations": "data/my_world", "split": "test"}
    recipe = {"task": {"name": "question_answering"}, "data": {"train": world}, "start": None}
    (step / "config.json").write_text(json.dumps({"task": "question_answering", "recipe": recipe}))
    folder = tmp_path / "runs" / "qa" / "evaluation-test"
    folder.mkdir()
    found = {"task": "question_answering", "split": "test", "samples": 9, "rule": "a rule", "checkpoint": str(step),
             "data": world, "interval": [10.0, 20.0], "metrics": {"accuracy": 12.34}}  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(found))
    out = tmp_path / "out"
    written = write.write_all([tmp_path / "runs"], out, "my_world")
    assert sorted(path.name for path in written) == sorted(path.name for path in out.iterdir())
    assert len(written) == 6 * 3 + 2 * 2
    with (out / "table-5.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert any(row[0].startswith("ours: runs: no pre-training") and "12.3 [1]" in row for row in rows)
    latex = (out / "table-5.tex").read_text().splitlines()
    assert latex[0] == r"\begin{tabular}{lrrr}"
    assert len(latex) == len(rows) + 3
    assert (out / "figure-1.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match=r"--on flickr8k: .* there are: msrvtt_qa of data/my_world"):
        write.write_all([tmp_path / "runs"], out, "flickr8k")


def test_without_runs_the_papers_values_are_written(tmp_path: Path) -> None:
    assert cli.run(["report", "all", "--out", str(tmp_path / "out")]) == 0
    assert "27.0 / 51.7 / 64.4" in (tmp_path / "out" / "table-2.csv").read_text()
    assert write.as_latex([["a", "b"], ["50 %", "x_y \\"]]).splitlines()[3] == r"50 \% & x\_y \textbackslash{} \\"
