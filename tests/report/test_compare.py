from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from evilm import cli
from evilm.errors import DataError
from evilm.report.compare import compare

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def put(folder: Path, scores: Sequence[float], first: int = 0) -> Path:
    folder.mkdir(parents=True)
    rows = [{"key": f"k{first + i}", "score": score} for i, score in enumerate(scores)]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_interval_is_that_of_paired_differences(tmp_path: Path) -> None:
    # The second is right wherever the first is, and on 8 more of 100: the difference of every resample is about 8.
    one = put(tmp_path / "a", [1.0] * 50 + [0.0] * 50)
    two = put(tmp_path / "b" / "evaluation-test", [1.0] * 58 + [0.0] * 42)
    result = compare(one, tmp_path / "b")
    assert (result["samples"], result["better"], result["worse"]) == (100, 8, 0)
    assert result["scores"] == pytest.approx([50, 58])
    assert result["difference"] == pytest.approx(8)
    # A binomial of 100 draws with 8 %: 95 % lie within 3 to 14. Unpaired intervals would include 0.
    assert 2 <= result["interval"][0] <= 4
    assert 13 <= result["interval"][1] <= 15
    assert compare(two, one)["interval"][1] < 0


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).integers(0, 2, 60).astype(float).tolist()
    one, two = put(tmp_path / "a", scores), put(tmp_path / "b", scores[::-1])
    lines = (two / "predictions.jsonl").read_text().splitlines()
    (two / "predictions.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    three = put(tmp_path / "c", scores[::-1])
    assert compare(one, two)["interval"] == compare(one, three)["interval"]


def test_other_samples_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = put(tmp_path / "a", [1.0] * 5), put(tmp_path / "b", [1.0] * 5, first=2)
    with pytest.raises(DataError, match=r"\(2 are only in the first and 2 only in the second\)"):
        compare(one, two)
    with pytest.raises(DataError, match="holds no evaluation"):
        compare(one, tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds 2 evaluations; name the folder"):
        compare(one, tmp_path)
    assert cli.run(["report", "compare", str(one), str(two)]) == 2
    assert "evaluate both on the same split" in capsys.readouterr().err


def test_the_command_states_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = put(tmp_path / "a", [1.0, 0.0] * 20), put(tmp_path / "b", [1.0, 0.0] * 20)
    assert cli.run(["report", "compare", str(one), str(two)]) == 0
    assert "95 % interval +0.0 to +0.0: no clear difference" in capsys.readouterr().out
    assert cli.run(["report", "compare", str(one), str(two), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 40
