"""A checkpoint's graphs as ONNX files: opset 20, any number of clips, one size of frames, nothing outside the file."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from evilm.errors import DependencyError, ExportError
from evilm.types import Grid

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from torch import Tensor

    from evilm.inference.runtime_torch import TorchRuntime

OPSET = 20  # in 18, GELU is several operators that no runtime fuses again
_MOST = 4096  # clips or texts that go in together


class _Constant(nn.Module):
    """What a position code answers for one size, in place of computing it."""

    code: Tensor

    def __init__(self, code: Tensor) -> None:
        super().__init__()
        self.register_buffer("code", code)

    def forward(self, shape: tuple[int, int, int]) -> Tensor:
        return self.code.expand(shape[0], -1, -1, -1)


def trace(engine: TorchRuntime, folder: Path) -> None:
    """Write each graph and head of a checkpoint into ``folder`` as ``<name>.onnx``, in fp32.

    Raises:
        DependencyError: onnx or onnxscript is missing.
        ExportError: a backbone that cannot be exported.
    """
    _needs_onnx()
    about = engine.metadata
    regions = Grid(about.num_frames, *about.grid).patches
    frames = torch.zeros(2, about.num_frames, about.image_size, about.image_size, 3, dtype=torch.uint8)
    ids, mask = torch.full((2, 8), 5), torch.ones(2, 8, dtype=torch.bool)
    tokens, seen = torch.zeros(2, regions, about.hidden_dim), torch.ones(2, regions, dtype=torch.bool)
    rows = torch.export.Dim("rows", min=1, max=_MOST)
    pieces = torch.export.Dim("pieces", min=3, max=about.max_text_len)
    length = torch.export.Dim("length", min=3, max=_MOST + regions)
    pooled = ["pooled"] if engine.model.config.pooled_skip else []
    with folded(engine.model.video_encoder, frames.permute(0, 1, 4, 2, 3)):
        made = ["patches", *pooled]
        write(engine.graphs["video"], (frames,), folder / "video.onnx", ["frames"], made, ({0: rows},))
    each = {0: rows, 1: pieces}
    write(engine.graphs["text"], (ids, mask), folder / "text.onnx", ["ids", "mask"], ["words", *pooled], (each, each))
    each = {0: rows, 1: length}
    given, made = ["tokens", "mask"], ["cls", "attention"]
    write(engine.graphs["fusion"], (tokens, seen), folder / "fusion.onnx", given, made, (each, each))
    cls = torch.zeros(2, about.hidden_dim)
    widths = {"embed_video": engine.model.video_encoder.channels, "embed_text": 2 * engine.model.config.text_embed_dim}
    for name, head in engine.heads.items():
        inputs = (cls, torch.zeros(2, widths[name])) if pooled and name in widths else (cls,)
        given = ["cls", "pooled"][: len(inputs)]
        write(head, inputs, folder / f"{name}.onnx", given, ["scores"], ({0: rows},) * len(inputs))


def _needs_onnx() -> None:
    try:
        import onnx as _onnx
        import onnxscript as _onnxscript
    except ModuleNotFoundError as error:
        raise DependencyError(f"an export needs {error.name}: pip install 'evilm[export]'") from None
    del _onnx, _onnxscript


@contextmanager
def folded(encoder: nn.Module, frames: Tensor) -> Generator[None]:
    """While inside, EdgeNeXt's position codes are constants: TensorRT gets the CumSum that they are made of wrong.

    They depend on nothing but the size of the frames.
    """
    from timm.models.edgenext import PositionalEncodingFourier

    sizes: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _: Any, code: Tensor) -> None:
        sizes[module] = code[:1].detach()

    codes = [
        (parent, name, child)
        for parent in encoder.modules()
        for name, child in parent.named_children()
        if isinstance(child, PositionalEncodingFourier)
    ]
    hooks = [child.register_forward_hook(keep) for _, _, child in codes]
    with torch.no_grad():
        encoder(encoder.normalise(frames[:1]))  # pyright: ignore[reportCallIssue], a module of ours
    for hook in hooks:
        hook.remove()
    for parent, name, child in codes:
        setattr(parent, name, _Constant(sizes[child]))
    try:
        yield
    finally:
        for parent, name, child in codes:
            setattr(parent, name, child)


def write(
    module: nn.Module, inputs: tuple[Tensor, ...], path: Path, given: list[str], made: list[str], shapes: Any
) -> None:
    """Trace a module and save it."""
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.cpu(), inputs, dynamo=True, opset_version=OPSET, input_names=given, output_names=made,
                dynamic_shapes=shapes, external_data=False, verbose=False,
            )  # fmt: skip
        assert program is not None
        path.write_bytes(_anonymous(program.model_proto).SerializeToString())
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"{path.stem}: this model cannot be turned into an ONNX graph: {reason}") from error
    finally:
        logging.disable(before)
        for parameter in wanted:
            parameter.requires_grad_(True)


def _anonymous(model: Any) -> Any:
    """A graph without the files and lines that torch notes for each operator: paths of whoever exported it."""
    graphs = [model.graph, *model.functions]
    for part in (model, *graphs, *(one for graph in graphs for one in (*graph.node, *graph.value_info))):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    return model
