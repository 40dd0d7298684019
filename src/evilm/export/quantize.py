"""int8 graphs with static scales: weights by output channel, activations by the ranges that calibration data show.

Static activation scales make a vector independent of the clips and texts that are computed beside it. Dynamic scales,
which ONNX Runtime takes from the whole batch, do not: with them a score changes with the batch size.

Weights use 7 of the 8 bits. With 8, sums of two products overflow 16 bits on x86 CPUs without VNNI instructions, where
ONNX Runtime adds them in pairs: such a CPU would compute other vectors than the one that exported the model.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

Feed = dict[str, "NDArray[Any]"]  # one call's inputs, by name
# How much of a graph is int8: all of it; all but the layers that int8 harms most; all but convolutions; nothing.
Precision = Literal["int8", "int8/fp32", "int8 matrices", "fp32"]

_SENSITIVE_RATIO = 0.25  # of layers that "int8/fp32" leaves in fp32
_EARLY_RATIO = 0.2  # of convolutions: the first ones, whose errors spread through all others
_MANY = 20  # convolutions of a backbone whose early layers decide
_FRAMES_PER_CALL = 4
_DOMAIN = "com.microsoft"  # of the operators of ONNX Runtime itself


def calibration_feeds(
    folder: Path, frames: NDArray[np.uint8], texts: Sequence[tuple[NDArray[np.int64], NDArray[np.bool_]]]
) -> dict[str, list[Feed]]:
    """The inputs of every fp32 graph in ``folder``, computed by running the graphs in order.

    Args:
        folder: holds ``video.onnx``, ``text.onnx``, ``fusion.onnx`` and one graph a head.
        frames: (n, T, H, W, 3) uint8 clips, at least one.
        texts: token ids (1, L) and mask (1, L) of each text, at least one.

    Returns:
        graph name to its inputs. Fusion gets each video alone, each text alone, and each text with a video. Heads on
        both modalities (``match``, ``answer``) get the last of these; ``classify`` gets the first.
    """
    graphs = {path.stem: _session(path.read_bytes()) for path in folder.glob("*.onnx")}
    feeds: dict[str, list[Feed]] = {name: [] for name in graphs}
    videos: list[NDArray[Any]] = []
    for start in range(0, len(frames), _FRAMES_PER_CALL):
        feeds["video"].append({"frames": frames[start : start + _FRAMES_PER_CALL]})
        patches = graphs["video"].run(None, feeds["video"][-1])[0]
        seen = np.ones(patches.shape[:2], dtype=np.bool_)
        feeds["fusion"].append({"tokens": patches, "mask": seen})
        if "classify" in graphs:
            feeds["classify"].append({"cls": graphs["fusion"].run(None, feeds["fusion"][-1])[0]})
        videos += [patches[i : i + 1] for i in range(len(patches))]
    for number, (ids, mask) in enumerate(texts):
        feeds["text"].append({"ids": ids, "mask": mask})
        words = graphs["text"].run(None, feeds["text"][-1])[0]
        feeds["fusion"].append({"tokens": words, "mask": mask})
        if both := [name for name in ("match", "answer") if name in graphs]:
            tokens = np.concatenate([words, videos[number % len(videos)]], 1)
            seen = np.concatenate([mask, np.ones((1, tokens.shape[1] - mask.shape[1]), dtype=np.bool_)], 1)
            feeds["fusion"].append({"tokens": tokens, "mask": seen})
            cls = graphs["fusion"].run(None, feeds["fusion"][-1])[0]
            for name in both:
                feeds[name].append({"cls": cls})
    return feeds


def quantize(source: Path, target: Path, precision: Precision, feeds: Sequence[Feed]) -> list[str]:
    """Write the ONNX file ``source`` to ``target`` in the given precision.

    Args:
        source: an fp32 graph.
        target: where to write.
        precision: ``fp32`` copies the file.
        feeds: calibration inputs, see ``calibration_feeds``.

    Returns:
        names of the convolutions and matrix products that stayed in fp32.
    """
    import onnx

    if precision == "fp32":
        target.write_bytes(source.read_bytes())
        return []
    ort: Any = importlib.import_module("onnxruntime.quantization")
    shapes: Any = importlib.import_module("onnxruntime.quantization.shape_inference")
    plain = target.with_suffix(".plain.onnx")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the quantizer advises to prepare the model, also where it is prepared
    try:
        shapes.quant_pre_process(str(source), str(plain), skip_symbolic_shape=True)
        model = onnx.load(plain)
        del model.graph.value_info[:]  # some shapes are outdated after the transpositions above; they are inferred anew
        onnx.save(model, plain)
        layers = {node.name: node for node in _layers(model)}
        if precision == "int8 matrices":
            spared = [name for name, node in layers.items() if node.op_type == "Conv"]
        else:
            spared = early_or_sensitive_layers(plain, feeds) if precision == "int8/fp32" else []
        attention = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.name not in layers]
        ort.quantize_static(
            str(plain), str(plain), _Reader(feeds), quant_format=ort.QuantFormat.QDQ, per_channel=True,
            reduce_range=True, activation_type=ort.QuantType.QUInt8, weight_type=ort.QuantType.QInt8,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"], nodes_to_exclude=[*spared, *attention],
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
        )  # fmt: skip
        # An embedding has no activations: only its weights are made int8.
        ort.quantize_dynamic(
            str(plain), str(target), op_types_to_quantize=["Gather"], per_channel=True, weight_type=ort.QuantType.QInt8
        )
        model = onnx.load(target)
        fuse_products(model)
        onnx.save(model, target)
    finally:
        logging.disable(before)
        plain.unlink(missing_ok=True)
    return spared


def fuse_products(model: Any) -> None:
    """Replace dequantizers, product and bias by one operator; ONNX Runtime itself leaves the bias out (8 % slower)."""
    import onnx

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    sources = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes: list[Any] = []
    biases: list[Any] = []  # additions that are part of a product now
    for node in graph.node:
        pair = [sources[name] for name in node.input if name in sources] if node.op_type == "MatMul" else []
        if [each.op_type for each in pair] != ["DequantizeLinear"] * 2 or pair[1].input[0] not in constants:
            nodes.append(node)
            continue
        inputs = [each.input[i] for i in range(3) for each in pair]  # values, scales, zero points
        output, after = node.output[0], readers.get(node.output[0], [])
        if len(after) == 1 and after[0].op_type == "Add":
            (bias,) = [name for name in after[0].input if name != output]
            if bias in constants and len(constants[bias].dims) == 1:
                inputs.append(bias)
                output = after[0].output[0]
                biases.append(after[0])
        nodes.append(onnx.helper.make_node("MatMulIntegerToFloat", inputs, [output], node.name, domain=_DOMAIN))
    read = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    kept = [node for node in nodes if node not in biases and any(name in read for name in node.output)]
    del graph.node[:]
    graph.node.extend(kept)
    model.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))


def early_or_sensitive_layers(path: Path, feeds: Sequence[Feed]) -> list[str]:
    """The first fifth of a graph's convolutions if it has many, else its sensitive layers.

    Pooled features of EfficientNet-lite2, cosine with fp32: all int8 0.843, the most sensitive quarter in fp32 0.857,
    the first 3 of 64 convolutions 0.972, the first 6 0.983, the first 12 0.985 (docs/decisions.md).
    """
    import onnx

    convolutions = [node.name for node in _layers(onnx.load(path)) if node.op_type == "Conv"]
    early = convolutions[: round(_EARLY_RATIO * len(convolutions))]
    return early if len(convolutions) >= _MANY else sensitive_layers(path, feeds)


def sensitive_layers(path: Path, feeds: Sequence[Feed]) -> list[str]:
    """The quarter of convolutions and matrix products whose inputs lose most when 256 levels span their range."""
    import onnx

    model = onnx.load(path)
    inputs = {node.name: node.input[0] for node in _layers(model)}
    known = {value.name for value in [*model.graph.input, *model.graph.output]}
    for name in dict.fromkeys(inputs.values()):
        if name not in known:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = _session(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    values: dict[str, NDArray[Any]] = dict(zip(names, session.run(None, feeds[0]), strict=True))
    errors = {node: rounding_error(values[name]) for node, name in inputs.items() if name in values}
    return sorted(errors, key=lambda node: -errors[node])[: max(1, round(_SENSITIVE_RATIO * len(errors)))]


def rounding_error(values: NDArray[Any]) -> float:
    """Mean square error of rounding ``values`` to 256 levels over their range, relative to their mean square."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    step = max(1e-12, (high - low) / 255)
    return float(np.mean((values - np.rint(values / step) * step) ** 2) / max(1e-12, float(np.mean(values**2))))


def _layers(model: Any) -> Iterator[Any]:
    """The nodes with a constant weight. Products of two activations, as in attention, stay in fp32: they are cheap."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm") and node.input[1] in constants:
            yield node


class _Reader:
    """Feeds in the form that the calibration of ONNX Runtime reads."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self.rest = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self.rest, None)


def _session(model: bytes) -> Any:
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # fatal errors only
    return runtime.InferenceSession(model, options, ["CPUExecutionProvider"])
