"""The graphs of a checkpoint as ONNX files: opset 20, any number of clips, one frame size, no external data."""

from __future__ import annotations

import importlib.util
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

OPSET = 20  # in opset 18, GELU is several operators, which runtimes do not fuse
_MAX_ROWS = 4096  # clips or texts in one call


def trace(runtime: TorchRuntime, folder: Path) -> None:
    """Write each graph and head of a checkpoint into ``folder`` as ``<name>.onnx``, in fp32.

    Raises:
        DependencyError: onnx or onnxscript is missing.
        ExportError: the backbone cannot be exported.
    """
    for library in ("onnx", "onnxscript"):
        if importlib.util.find_spec(library) is None:
            raise DependencyError(f"an export needs {library}: pip install 'evilm[export]'")
    model, metadata = runtime.model, runtime.metadata
    patches = Grid(metadata.num_frames, *metadata.grid).patches
    frames = torch.zeros(2, metadata.num_frames, metadata.image_size, metadata.image_size, 3, dtype=torch.uint8)
    ids, mask = torch.full((2, 8), 5), torch.ones(2, 8, dtype=torch.bool)
    tokens, seen = torch.zeros(2, patches, metadata.hidden_dim), torch.ones(2, patches, dtype=torch.bool)
    cls = torch.zeros(2, metadata.hidden_dim)
    rows = {0: torch.export.Dim("rows", min=1, max=_MAX_ROWS)}
    words = rows | {1: torch.export.Dim("pieces", min=3, max=metadata.max_text_len)}
    both = rows | {1: torch.export.Dim("length", min=3, max=_MAX_ROWS + patches)}
    pooled = ["pooled"] if model.config.pools else []
    widths = {"embed_video": model.video_encoder.channels, "embed_text": 2 * model.config.text_embed_dim}
    with constant_positions(model.video_encoder, frames.permute(0, 1, 4, 2, 3)):
        write(runtime.graphs["video"], (frames,), folder / "video.onnx", ["frames"], ["patches", *pooled], (rows,))
    inputs, outputs = ["ids", "mask"], ["words", *pooled]
    write(runtime.graphs["text"], (ids, mask), folder / "text.onnx", inputs, outputs, (words, words))
    inputs, outputs = ["tokens", "mask"], ["cls", "attention"]
    write(runtime.graphs["fusion"], (tokens, seen), folder / "fusion.onnx", inputs, outputs, (both, both))
    for name, head in runtime.heads.items():
        values = {"cls": cls}
        if pooled and name in widths:
            values["pooled"] = torch.zeros(2, widths[name])
            if model.config.embedding == "pooled":
                del values["cls"]
        shapes = ((rows,) * len(values),) if name in widths else (rows,)  # an embedding takes *inputs
        write(head, tuple(values.values()), folder / f"{name}.onnx", [*values], ["scores"], shapes)


class _Constant(nn.Module):
    """A position encoding of one frame size, as a constant."""

    code: Tensor

    def __init__(self, code: Tensor) -> None:
        super().__init__()
        self.register_buffer("code", code)

    def forward(self, shape: tuple[int, int, int]) -> Tensor:
        return self.code.expand(shape[0], -1, -1, -1)


@contextmanager
def constant_positions(encoder: nn.Module, frames: Tensor) -> Generator[None]:
    """Replace EdgeNeXt's position encodings by constants, which they are for one frame size, within the block.

    They are computed by CumSum, which TensorRT computes incorrectly.
    """
    from timm.models.edgenext import PositionalEncodingFourier

    codes: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _: Any, code: Tensor) -> None:
        codes[module] = code[:1].detach()

    places = [
        (parent, name, child)
        for parent in encoder.modules()
        for name, child in parent.named_children()
        if isinstance(child, PositionalEncodingFourier)
    ]
    hooks = [child.register_forward_hook(keep) for _, _, child in places]
    with torch.no_grad():
        encoder(encoder.normalise(frames[:1]))  # pyright: ignore[reportCallIssue], a video encoder
    for hook in hooks:
        hook.remove()
    for parent, name, child in places:
        setattr(parent, name, _Constant(codes[child]))
    try:
        yield
    finally:
        for parent, name, child in places:
            setattr(parent, name, child)


def write(
    module: nn.Module, values: tuple[Tensor, ...], path: Path, inputs: list[str], outputs: list[str], shapes: Any
) -> None:
    """Trace a module and save it as an ONNX file.

    Args:
        module: in evaluation mode.
        values: example inputs.
        path: the file to write.
        inputs, outputs: their names in the graph.
        shapes: the dynamic dimensions of each input.

    Raises:
        ExportError: the module has an operation that ONNX lacks.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.cpu(), values, dynamo=True, opset_version=OPSET, input_names=inputs, output_names=outputs,
                dynamic_shapes=shapes, external_data=False, verbose=False,
            )  # fmt: skip
        assert program is not None
        path.write_bytes(_without_source_paths(program.model_proto).SerializeToString())
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"{path.stem}: this model cannot be turned into an ONNX graph: {reason}") from error
    finally:
        logging.disable(before)
        for parameter in trainable:
            parameter.requires_grad_(True)


def _without_source_paths(model: Any) -> Any:
    """Remove the source files and lines that torch notes for each operator, which are paths of this machine."""
    graphs = [model.graph, *model.functions]
    for part in (model, *graphs, *(one for graph in graphs for one in (*graph.node, *graph.value_info))):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    return model
