"""Zero-shot labels of an index's segments, against the same by hand, and lists of names that are refused."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np
import pytest

from evilm import cli
from evilm.errors import QueryError
from evilm.search import labels
from evilm.search.index import VideoIndex

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ["red ball", "blue square", "green cross"]


@pytest.fixture(scope="module")
def made(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels") / "index"
    VideoIndex.build(small_world / "videos", "world-tiny", folder).close()
    return folder


def test_labels_are_those_of_the_mean_prompt(made: Path) -> None:
    with VideoIndex.open(made) as index:
        found = list(index.label(NAMES))
        model = index.model
        prompts = [[prompt.format(name) for prompt in labels.PROMPTS] for name in NAMES]
        texts = np.stack([model.embed_texts(each).mean(0) for each in prompts])
        texts /= np.linalg.norm(texts, axis=1, keepdims=True)
        assert len(found) == len(index)
        for each in found:
            vector = index._database.vectors(np.array([each.segment.id]), texts.shape[1])[0]
            logits = texts @ vector / model.temperature
            share = np.exp(logits - logits.max())
            share /= share.sum()
            assert each.name == NAMES[int(share.argmax())]
            assert each.probability == pytest.approx(float(share.max()), abs=1e-4)


def test_the_command_writes_a_table(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names.txt").write_text("# colours\n\nred ball\nblue  square\n")
    assert cli.run(["label", str(made), str(tmp_path / "names.txt"), "--out", str(tmp_path / "labels.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "labels.csv").open()))
    assert {row["label"] for row in rows} <= {"red ball", "blue square"}
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)
    capsys.readouterr()
    assert cli.run(["label", str(made), str(tmp_path / "names.txt")]) == 0
    assert capsys.readouterr().out == (tmp_path / "labels.csv").read_text()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "has 0 class names"),
        ("dog\n", "has 1 class names"),
        ("dog\ncat\n dog \n", r":3: 'dog' stands in line 1 too"),
        (None, "not readable as a list of class names"),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, content: str | None, complaint: str) -> None:
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(QueryError, match=complaint):
        labels.read_names(path)
