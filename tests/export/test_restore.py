"""An export read back as a checkpoint: the same embeddings, in fp32 and int8, and what cannot be read."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

import evilm
from evilm.errors import CheckpointError
from evilm.export.restore import restore
from evilm.inference import loading
from evilm.training import checkpoint

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["a red disc moves left", "a blue star", "a green cross spins and grows"]


def cosines(one: Path, other: Path, clip: Path) -> float:
    """The lowest cosine of the embeddings of a clip and of texts."""
    first, second = evilm.load(one), evilm.load(other)
    videos = [model.embed_videos([clip]).vectors for model in (first, second)]
    texts = [model.embed_texts(TEXTS) for model in (first, second)]
    return min(float((ours * theirs).sum(-1).min()) for ours, theirs in (videos, texts))


def test_an_edgenext_export_is_refused(exported_fp32: Path, tmp_path: Path) -> None:
    """Its position encodings are folded into constants, from which their weights cannot be found."""
    with pytest.raises(CheckpointError, match=r"token_projection.weight, \.\.\.\): start from the run or checkpoint"):
        restore(exported_fp32, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_world_tiny_is_read_although_it_does_not_say_what_model_it_is(small_world: Path, tmp_path: Path) -> None:
    folder = loading.model_folder("world-tiny")
    restored = restore(folder, tmp_path / "model")
    assert cosines(folder, restored, small_world / "videos" / "video0.mp4") > 0.98


def test_an_export_whose_model_is_not_known_is_refused(exported_fp32: Path, tmp_path: Path) -> None:
    copy = tmp_path / "export"
    shutil.copytree(exported_fp32, copy)
    table = json.loads((copy / "export.json").read_text())

    def refuse(model: object, match: str) -> None:
        table["metadata"]["source"] = {"model": model}
        checkpoint.write(copy, lambda to: _rewrite(exported_fp32, to, table))
        with pytest.raises(CheckpointError, match=match):
            restore(copy, tmp_path / "model")
        assert not (tmp_path / "model").exists()

    made = table["metadata"]["source"]["model"]
    refuse({"embed_dim": "wide"}, "embed_dim.*start from the run or checkpoint that it was made from")
    refuse({**made, "mlp_dim": made["mlp_dim"] + 8}, "weights cannot be found in its graphs")


def _rewrite(source: Path, to: Path, table: dict[str, object]) -> None:
    for path in source.iterdir():
        if path.name != checkpoint.MANIFEST:
            shutil.copy(path, to / path.name)
    (to / "export.json").write_text(json.dumps(table))


def test_a_model_without_embeddings_is_refused(exported_fp32: Path, tmp_path: Path) -> None:
    copy = tmp_path / "export"
    table = json.loads((exported_fp32 / "export.json").read_text())
    table["metadata"] |= {"heads": ["match"], "embed_dim": None}
    table["precision"] = dict.fromkeys(("video", "text", "fusion", "match"), "fp32")
    checkpoint.write(copy, lambda to: _rewrite(exported_fp32, to, table))
    with pytest.raises(CheckpointError, match="this retrieval model has no embeddings: use a retrieval model"):
        restore(copy, tmp_path / "model")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["world-tiny", "evilm-photo"])
def test_the_bundled_models_are_read_back(name: str, tmp_path: Path) -> None:
    folder = loading.bundled_folder(name)
    assert folder is not None
    heads = evilm.load(name).runtime.metadata.heads
    assert set(evilm.load(restore(folder, tmp_path / "model")).runtime.metadata.heads) == set(heads)
