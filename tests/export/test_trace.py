"""The ONNX graphs equal the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch

from evilm.export import trace
from evilm.inference import graphs
from evilm.model.evilm import EViLM
from evilm.types import Text

if TYPE_CHECKING:
    from pathlib import Path

    from evilm.model.presets import ModelConfig


def test_graphs_hold_no_paths_of_the_machine_that_exported_them(exported: Path) -> None:
    """torch notes the source file and line of every operator."""
    for path in exported.glob("*.onnx"):
        found = path.read_bytes()
        assert not [trace for trace in (b'File "', b"site-packages", b"graphs.py") if trace in found], path.name


@pytest.mark.parametrize("motion", [False, True])
def test_graphs_equal_the_model(tiny: ModelConfig, tmp_path: Path, motion: bool) -> None:
    """Layer scales are set first: at 1e-6, where training starts, they would hide most of the backbone."""
    torch.manual_seed(0)
    model = EViLM(tiny.model_copy(update={"motion": motion}), 60).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gamma" in name:
                parameter.uniform_(0.5, 1.0)
    frames = torch.randint(0, 256, (3, 2, 64, 64, 3), dtype=torch.uint8)
    path = tmp_path / "video.onnx"
    rows = torch.export.Dim("rows", min=1, max=64)
    with trace.constant_positions(model.video_encoder, frames.permute(0, 1, 4, 2, 3)):
        trace.write(graphs.VideoGraph(model), (frames[:2],), path, ["frames"], ["patches"], ({0: rows},))
    proto = onnx.load(path)
    assert [imported.version for imported in proto.opset_import if not imported.domain] == [20]
    assert not {"CumSum", "Loop", "If"} & {node.op_type for node in proto.graph.node}
    with torch.inference_mode():
        encoded = model.encode_video(model.normalise(frames.permute(0, 1, 4, 2, 3)))
        mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 5])
        words = model.encode_text(Text(torch.randint(5, 60, (3, 5)), mask, mask))
        wanted = model.fuse(encoded, words).cls
        patches = encoded.tokens + model.fusion.type_video
        tokens = torch.cat([words.tokens + model.fusion.type_text, patches], 1)
        seen = torch.cat([mask, torch.ones(3, encoded.tokens.shape[1], dtype=torch.bool)], 1)
        cls, attention = graphs.FusionGraph(model.fusion).eval()(tokens, seen)
    found = run_onnx(path, {"frames": frames.numpy()})
    np.testing.assert_allclose(found, patches, atol=1e-4)
    np.testing.assert_allclose(cls, wanted, atol=1e-4)
    assert not attention[1, 3:5].any(), "padding has no attention"
    assert (attention.sum(1) < 1).all(), "[CLS] attends to itself, too"


def run_onnx(path: Path, feed: dict[str, np.ndarray]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]
