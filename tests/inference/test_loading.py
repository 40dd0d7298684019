"""Names of models: folders, bundled models, the default; and the time to load one."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import evilm
from evilm import cli, inference
from evilm.errors import CheckpointError
from evilm.inference import loading

if TYPE_CHECKING:
    from pathlib import Path


def test_a_folder_without_a_model_is_an_error(tmp_path: Path, tokenizer_run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none: no such model; name the folder of an export"):
        evilm.load(tmp_path / "none")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        evilm.load(tmp_path)
    with pytest.raises(CheckpointError, match="holds a video tokenizer and no video-language model"):
        evilm.load(tokenizer_run)


def test_every_bundled_model_loads_and_has_a_description() -> None:
    assert next(iter(inference.BUNDLED)) == inference.DEFAULT_MODEL
    assert "world-tiny" in inference.BUNDLED
    for name, description in inference.BUNDLED.items():
        model = evilm.load(name)
        assert model.description == description
        assert {"embed_video", "embed_text"} <= {*model.metadata.heads}
        assert loading.bundled_name(model.runtime.folder) == name


def test_an_unknown_name_lists_the_bundled_models() -> None:
    with pytest.raises(CheckpointError) as caught:
        evilm.load("word-tiny")
    for name, description in inference.BUNDLED.items():
        assert f"{name} ({description})" in str(caught.value)


def test_ask_uses_the_default_model(small_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = str(small_world / "videos" / "video0.mp4")
    assert cli.run(["ask", video, "what is it?", "--choices", "a disc", "a star"]) == 0
    assert capsys.readouterr().out.startswith(("a disc (", "a star ("))


def test_ask_without_choices_says_that_choices_are_needed(
    small_world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = str(small_world / "videos" / "video0.mp4")
    assert cli.run(["ask", video, "what color is it?", "--model", "world-tiny"]) == 2
    assert capsys.readouterr().err == (
        "error: this retrieval model has no answers of its own: give at least two choices, for example: evilm ask "
        "VIDEO 'what color is it?' --choices red green blue\n"
    )


def test_an_export_loads_in_a_second_without_torch() -> None:
    program = (
        "import evilm, sys, time; evilm.load; start = time.process_time(); evilm.load('world-tiny').embed_texts(['a']);"
        "print(time.process_time() - start, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, torch = done.stdout.split()
    assert float(seconds) < 1
    assert torch == "False"
