"""int8 graphs with static scales: weights by output channel, activations by the ranges that calibration data show.

Static activation scales make a vector independent of the clips and texts that are computed beside it. Dynamic scales,
which ONNX Runtime takes from the whole batch, do not: with them a score changes with the batch size.

The output of a convolution is quantized after its ReLU or ReLU6, and its bias is corrected for the rounded weights.

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
Precision = Literal["int8", "int8/fp32", "int8 matrices", "int8 weights", "fp32"]

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
        precision: ``fp32`` copies the file; with ``int8 weights`` all is computed in fp32.
        feeds: calibration inputs, see ``calibration_feeds``.

    Returns:
        names of the convolutions and matrix products that stayed in fp32.
    """
    import onnx

    if precision == "fp32":
        target.write_bytes(source.read_bytes())
        return []
    if precision == "int8 weights":
        model = onnx.load(source)
        round_weights(model)
        onnx.save(model, target)
        return []
    ort: Any = importlib.import_module("onnxruntime.quantization")
    plain = target.with_suffix(".plain.onnx")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the quantizer advises to prepare the model, also where it is prepared
    try:
        fold_constants(source, plain)
        model = onnx.load(plain)
        del model.graph.value_info[:]  # some shapes are outdated after the transpositions above; they are inferred anew
        onnx.save(model, plain)
        layers = {node.name: node for node in _layers(model)}
        if precision == "int8 matrices":
            spared = [name for name, node in layers.items() if node.op_type == "Conv"]
        else:
            spared = early_or_sensitive_layers(plain, feeds) if precision == "int8/fp32" else []
        attention = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.name not in layers]
        # ReLU and ReLU6 are part of the convolution before them: their output is quantized, and not their input.
        convolved = {node.output[0] for node in layers.values() if node.op_type == "Conv" and node.name not in spared}
        activations = [node for node in model.graph.node if node.op_type in ("Clip", "Relu")]
        others = [node.name for node in activations if node.input[0] not in convolved]
        ort.quantize_static(
            str(plain), str(target), _Reader(feeds), quant_format=ort.QuantFormat.QDQ, per_channel=True,
            reduce_range=True, activation_type=ort.QuantType.QUInt8, weight_type=ort.QuantType.QInt8,
            op_types_to_quantize=["Conv", "MatMul", "Gemm", "Clip", "Relu"],
            nodes_to_exclude=[*spared, *attention, *others],
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
        )  # fmt: skip
        quantized = onnx.load(target)
        correct_biases(quantized, model, feeds)
        onnx.save(quantized, target)
        # An embedding has no activations: only its weights are made int8.
        ort.quantize_dynamic(
            str(target), str(target), op_types_to_quantize=["Gather"], per_channel=True, weight_type=ort.QuantType.QInt8
        )
        model = onnx.load(target)
        fuse_products(model)
        onnx.save(model, target)
    finally:
        logging.disable(before)
        plain.unlink(missing_ok=True)
    return spared


def fold_constants(source: Path, target: Path) -> None:
    """Write the ONNX file ``source`` to ``target`` with its constants folded, which the quantizer needs."""
    shapes: Any = importlib.import_module("onnxruntime.quantization.shape_inference")
    shapes.quant_pre_process(str(source), str(target), skip_symbolic_shape=True)


def round_weights(model: Any) -> None:
    """Store the matrices of a graph in int8, one scale for each output: a quarter of the bytes, cosine above 0.9999.

    Args:
        model: an ``onnx.ModelProto``, which is changed.
    """
    import onnx

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in _layers(model) if node.op_type != "Conv"]:
        name = node.input[1]
        weight = onnx.numpy_helper.to_array(tensors[name])
        axis = 0 if any(each.name == "transB" and each.i for each in node.attribute) else 1
        scale = np.maximum(np.abs(weight).max(1 - axis), 1e-12).astype(np.float32) / 127
        rounded = np.rint(weight / np.expand_dims(scale, 1 - axis)).astype(np.int8)
        for array, kind in ((rounded, "rounded"), (scale, "scale")):
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{name}.{kind}"))
        model.graph.initializer.remove(tensors[name])
        inputs = [f"{name}.rounded", f"{name}.scale"]
        model.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", inputs, [name], f"{name}.fp32", axis=axis))


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


def correct_biases(model: Any, plain: Any, feeds: Sequence[Feed]) -> None:
    """Add to the bias of each int8 convolution the mean output that rounding its weights takes away.

    This is bias correction (Nagel et al., 2019, section 4.2). Without it the shifts of all layers add up.

    Args:
        model: the quantized graph, which is changed.
        plain: the same graph in fp32, which is changed too: it gets outputs for the means.
        feeds: calibration inputs, over which the means are taken.
    """
    import onnx

    array, tensor = onnx.numpy_helper.to_array, onnx.numpy_helper.from_array
    weights = {each.name: each for each in plain.graph.initializer}
    layers = {node.name: node for node in _layers(plain) if node.op_type == "Conv"}
    constants = {each.name: each for each in model.graph.initializer}
    dequantizers = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    biases: list[tuple[str, str]] = []  # names of int32 biases, and of their scales
    for node in model.graph.node:
        if node.name not in layers or len(node.input) < 3 or not {*node.input[1:3]} <= dequantizers.keys():
            continue
        mean, own = f"mean_{len(biases)}", layers[node.name]
        weight, (rounded, scale) = array(weights[own.input[1]]), dequantizers[node.input[1]].input[:2]
        steps = array(constants[scale]).reshape(-1, *[1] * (weight.ndim - 1))
        axes = np.array([axis for axis in range(weight.ndim) if axis != 1])
        probe = onnx.NodeProto()
        probe.CopyFrom(own)
        probe.name = probe.output[0] = f"{mean}_values"
        probe.input[:] = [own.input[0], f"{mean}_weights"]
        constant = {"weights": weight - array(constants[rounded]) * steps, "axes": axes}
        plain.graph.initializer.extend([tensor(value, f"{mean}_{name}") for name, value in constant.items()])
        average = onnx.helper.make_node("ReduceMean", [probe.output[0], f"{mean}_axes"], [mean], keepdims=0)
        plain.graph.node.extend([probe, average])
        plain.graph.output.append(onnx.helper.make_empty_tensor_value_info(mean))
        biases.append(dequantizers[node.input[2]].input[:2])
    if not biases:
        return
    session = _session(plain.SerializeToString())
    rows = [session.run([f"mean_{i}" for i in range(len(biases))], feed) for feed in feeds]
    for (name, scale), shifts in zip(biases, zip(*rows, strict=True), strict=True):
        steps = np.rint(np.mean(shifts, axis=0) / array(constants[scale]))
        constants[name].CopyFrom(tensor(array(constants[name]) + steps.astype(np.int32), name))


def early_or_sensitive_layers(path: Path, feeds: Sequence[Feed]) -> list[str]:
    """The first fifth of a graph's convolutions if it has many, else its sensitive layers.

    Pooled features of EfficientNet-lite2, cosine with fp32: all int8 0.9937, the most sensitive quarter in fp32 0.9938,
    the first fifth in fp32 0.9980 (docs/decisions.md).
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
