"""The bundled model world-tiny: small, undamaged, with a card that states how it was made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import evilm
from evilm import cli
from evilm.errors import CheckpointError
from evilm.inference import export_format, loading


@pytest.fixture(scope="module")
def home() -> Path:
    found = loading.bundled_folder("world-tiny")
    assert found is not None
    return found


def test_it_is_small_and_undamaged(home: Path) -> None:
    assert sum(path.stat().st_size for path in home.iterdir()) <= 4e6
    made = export_format.read(home)  # checksums, and the scan of its graphs
    assert {made.precision[graph] for graph in export_format.GRAPHS} == {"int8"}


def test_its_card_states_recipes_seed_and_metrics_and_no_local_paths(home: Path) -> None:
    card, about = (home / "README.md").read_text(), (home / "export.json").read_text()
    assert re.search(r"recipes `world-tokenizer`, `world-pretrain`, `world-retrieval`, seed \d+", card)
    assert re.search(r"\| R@10 \| [\d.]+ \| [\d.]+ \|", card)
    assert "chance" in card
    assert not re.search(r"(?<![\w.])/(?:tmp|home|root|work|Users|var)/", card + about)


def test_a_folder_of_its_name_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = evilm.load("world-tiny", threads=1)
    assert model.metadata.heads == ("embed_video", "embed_text")
    assert evilm.load(Path("world-tiny")).fingerprint == model.fingerprint
    monkeypatch.chdir(tmp_path)
    (tmp_path / "world-tiny").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        evilm.load("world-tiny")
    with pytest.raises(CheckpointError, match=r"no such model; .* or a bundled model: .*world-tiny \(trained on"):
        evilm.load("word-tiny")


def test_it_answers_with_choices_only(small_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = str(small_world / "videos" / "video0.mp4")
    assert cli.run(["ask", video, "what color is it?", "--model", "world-tiny"]) == 2
    assert "give at least two choices, for example: evilm ask" in capsys.readouterr().err
    assert cli.run(["ask", video, "what color is it?", "--model", "world-tiny", "--choices", "red", "blue"]) == 0


def test_its_graphs_hold_no_local_paths(home: Path) -> None:
    for path in home.glob("*.onnx"):
        found = path.read_bytes()
        assert not [trace for trace in (b'File "', b"site-packages", b"/home/", b"/tmp/") if trace in found], path.name
