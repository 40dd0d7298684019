"""int8 graphs: words and matrices by their own range as they come, convolutions by ranges seen in calibration.

Activations of a matrix product are quantized as they come ("dynamic"), which needs no calibration and costs less
accuracy than fixed ranges. Convolutions take fixed ranges. Weights have a scale for each output channel.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

Feed = dict[str, "NDArray[Any]"]
Kind = Literal["int8", "int8 but some layers", "int8 matrices", "fp32"]  # from the smallest to the most exact
_SHARE = 0.25  # of convolutions that stay in fp32 in "int8 but some layers": those that int8 hurts most


def quantize(source: Path, target: Path, kind: Kind, feeds: Sequence[Feed]) -> list[str]:
    """Write ``source`` to ``target`` in int8.

    Args:
        source, target: ONNX files.
        kind: how far to go; ``fp32`` copies.
        feeds: inputs that convolutions are calibrated on.

    Returns:
        the convolutions that stayed in fp32.
    """
    import onnx

    if kind == "fp32":
        target.write_bytes(source.read_bytes())
        return []
    plain = target.with_suffix(".plain.onnx")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # onnxruntime recommends to anyone to prepare a model, prepared or not
    try:
        _prepare(source, plain)
        convolutions = [node.name for node in onnx.load(plain).graph.node if node.op_type == "Conv"]
        spared = convolutions
        if kind in ("int8", "int8 but some layers") and convolutions and feeds:
            spared = worst(plain, feeds) if kind == "int8 but some layers" else []
            _static(plain, plain, feeds, spared)
        _dynamic(plain, target)
    finally:
        logging.disable(before)
        plain.unlink(missing_ok=True)
    return spared


def _prepare(source: Path, target: Path) -> None:
    """Constants folded, names and shapes given: what the quantizer asks for."""
    import onnx

    shapes: Any = importlib.import_module("onnxruntime.quantization.shape_inference")
    shapes.quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
    model = onnx.load(target)
    del model.graph.value_info[:]  # some are still of matrices that were transposed since; they are inferred again
    onnx.save(model, target)


class _Reader:
    """Feeds, one after the other, as the calibration asks for them."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self.left = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self.left, None)


def _static(source: Path, target: Path, feeds: Sequence[Feed], spared: Collection[str]) -> None:
    """Convolutions but ``spared`` in int8, with the ranges that ``feeds`` show."""
    ort: Any = importlib.import_module("onnxruntime.quantization")
    ort.quantize_static(
        str(source), str(target), _Reader(feeds), quant_format=ort.QuantFormat.QDQ, per_channel=True,
        activation_type=ort.QuantType.QUInt8, weight_type=ort.QuantType.QInt8, op_types_to_quantize=["Conv"],
        nodes_to_exclude=list(spared),
    )  # fmt: skip


def _dynamic(source: Path, target: Path) -> None:
    """Matrix products and embeddings in int8."""
    ort: Any = importlib.import_module("onnxruntime.quantization")
    kinds = ["MatMul", "Gemm", "Gather"]
    ort.quantize_dynamic(
        str(source), str(target), op_types_to_quantize=kinds, per_channel=True, weight_type=ort.QuantType.QInt8
    )


def worst(path: Path, feeds: Sequence[Feed]) -> list[str]:
    """The convolutions whose inputs lose most when 256 levels span their range."""
    import onnx

    runtime: Any = importlib.import_module("onnxruntime")
    model = onnx.load(path)
    inputs = {node.name: node.input[0] for node in model.graph.node if node.op_type == "Conv"}
    known = {value.name for value in [*model.graph.input, *model.graph.output]}
    for name in dict.fromkeys(inputs.values()):
        if name not in known:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = runtime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    seen: dict[str, NDArray[Any]] = dict(zip(names, session.run(None, feeds[0]), strict=True))
    lost = {node: loss(seen[name]) for node, name in inputs.items() if name in seen}
    count = max(1, round(_SHARE * len(lost)))
    return sorted(lost, key=lambda node: -lost[node])[:count]


def loss(values: NDArray[Any]) -> float:
    """Mean square of what rounding to 256 levels takes from ``values``, relative to their own."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    step = max(1e-12, (high - low) / 255)
    return float(np.mean((values - np.rint(values / step) * step) ** 2) / max(1e-12, float(np.mean(values**2))))
