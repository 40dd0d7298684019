"""The description of an export is checked against its graphs; the model card may be edited."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

import evilm
from evilm.errors import CheckpointError
from evilm.inference import loading

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def edit(tmp_path: Path) -> Callable[..., Path]:
    """``edit(key=value)``: a copy of world-tiny with other metadata and a correct manifest."""
    source = loading.bundled_folder("world-tiny")
    assert source is not None

    def make(top: dict[str, Any] | None = None, **metadata: Any) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(source, folder)
        table = json.loads((folder / "export.json").read_text())
        table["metadata"] |= metadata
        table |= top or {}
        (folder / "export.json").write_text(json.dumps(table))
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["sha256"]["export.json"] = hashlib.sha256((folder / "export.json").read_bytes()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return make


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ({"embed_dim": 64}, r"scores of embed_video\.onnx the shape \(None, 64\), and the graph has \(None, 128\)"),
        ({"embed_dim": None}, r"scores of embed_video\.onnx"),
        ({"hidden_dim": 96}, r"patches of video\.onnx"),
        ({"num_frames": 8}, r"frames of video\.onnx the shape \(None, 8, 64, 64, 3\)"),
        ({"image_size": 32}, r"frames of video\.onnx"),
        ({"grid": [2, 8]}, r"grid is \(2, 8\), and a frame is square"),
        ({"grid": [8, 8]}, r"patches of video\.onnx"),
        ({"heads": ["embed_text"]}, "embed_dim is 128, and the heads are embed_text"),
        ({"heads": ["embed_video", "match"]}, r"match\.onnx: missing from the export"),
    ],
)
def test_metadata_that_do_not_fit_the_graphs_are_refused(
    edit: Callable[..., Path], metadata: dict[str, Any], complaint: str
) -> None:
    folder = edit(**metadata)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        evilm.load(folder)
    assert "export the checkpoint again" in str(caught.value)


def test_a_wrong_precision_is_refused(edit: Callable[..., Path]) -> None:
    precision = dict.fromkeys(("video", "text", "fusion", "embed_video", "embed_text"), "fp32")
    with pytest.raises(CheckpointError, match="precision of video is fp32, and the graph is not"):
        evilm.load(edit({"precision": precision}))


@pytest.mark.parametrize("metadata", [{"temperature": 0.5}, {"max_text_len": 12}, {"resize_mode": "squash"}])
def test_metadata_that_change_results_change_the_fingerprint(
    edit: Callable[..., Path], metadata: dict[str, Any]
) -> None:
    assert evilm.load(edit(**metadata)).fingerprint != evilm.load("world-tiny").fingerprint


def test_the_card_may_be_edited(edit: Callable[..., Path]) -> None:
    folder = edit()
    (folder / "README.md").write_text("my own words")
    assert evilm.load(folder).fingerprint == evilm.load("world-tiny").fingerprint
    (folder / "README.md").unlink()
    evilm.load(folder)


def test_an_old_export_names_the_remedy(edit: Callable[..., Path]) -> None:
    folder = edit({"format": 1})
    with pytest.raises(CheckpointError, match=r"export format 1, and this version reads 2: export the checkpoint ag"):
        evilm.load(folder)
