"""int8 with static scales, and the layers that int8 harms most."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from evilm.export import quantize
from evilm.inference import loading

if TYPE_CHECKING:
    from pathlib import Path


def test_sensitive_layers_are_those_with_outliers(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), "w")
    scale = numpy_helper.from_array(np.array([1, 1e4], np.float32).reshape(1, 2, 1, 1), "s")
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], "first"), helper.make_node("Mul", ["a", "s"], ["b"], "grow"),
             helper.make_node("Conv", ["b", "w"], ["y"], "second")]  # fmt: skip
    shape = [1, 2, 4, 4]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight, scale])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    feed = {"x": np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    assert len(quantize.sensitive_layers(path, [feed])) == 1
    outlier = np.append(np.ones(9999, np.float32), np.float32(1e4))
    assert quantize.rounding_error(outlier[:-1]) < 1e-6 < quantize.rounding_error(outlier + np.float32(0.3))


def convolution_model(path: Path, nodes: list[onnx.NodeProto], **arrays: np.ndarray) -> None:
    """Save a graph from ``x`` to ``y``, both (1, 2, 4, 4)."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 4, 4]) for name in "xy"]
    constants = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def outputs(path: Path, feeds: list[quantize.Feed]) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0] for feed in feeds])


@pytest.mark.parametrize("activation", ["Clip", "Relu"])
def test_an_activation_is_quantized_after_it_cuts_off(tmp_path: Path, activation: str) -> None:
    """Values before ReLU6 reach -900 here: 256 levels over them would leave three for 0 to 6."""
    limits = ["low", "high"] if activation == "Clip" else []
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["a"], "first"),
             helper.make_node(activation, ["a", *limits], ["c"], "cut"),
             helper.make_node("Conv", ["c", "w", "b"], ["y"], "second")]  # fmt: skip
    arrays = {"w": np.eye(2).reshape(2, 2, 1, 1), "b": np.zeros(2), "low": np.array(0), "high": np.array(6)}
    convolution_model(tmp_path / "m.onnx", nodes, **arrays)
    feeds = [{"x": np.random.default_rng(i).uniform(-900, 6, (1, 2, 4, 4)).astype(np.float32)} for i in range(4)]
    for feed in feeds:
        feed["x"][0, :, 0] = np.linspace(0, 6, 4)
    quantize.quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", "int8", feeds)
    graph = onnx.load(tmp_path / "q.onnx").graph
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    steps = [float(scales[node.input[1]]) for node in graph.node if node.op_type == "QuantizeLinear"]
    assert sorted(steps) == pytest.approx([6 / 255, 6 / 255, 906 / 255], rel=0.02)  # of x, of the cut values, and of y


@pytest.mark.parametrize("group", [1, 2])
def test_rounded_weights_leave_the_mean_output(tmp_path: Path, group: int) -> None:
    """Eight weights of 0.012 are less than half a step of 2/64 and round to 0, which takes 0.38 from an output."""
    kernel = np.full((2, 2 // group, 3, 3), 0.012)
    kernel[:, :, 1, 1] = 2
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "only", pads=[1, 1, 1, 1], group=group)
    convolution_model(tmp_path / "m.onnx", [node], w=kernel, b=np.array([0.5, -1]))
    shape = (1, 2, 4, 4)
    feeds = [{"x": np.random.default_rng(i).uniform(3, 5, shape).astype(np.float32)} for i in range(16)]
    quantize.quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", "int8", feeds)
    plain, rounded = (outputs(tmp_path / name, feeds).mean((0, 2, 3)) for name in ("m.onnx", "q.onnx"))
    np.testing.assert_allclose(rounded, plain, atol=0.02)  # 0.38 or more without


def test_activation_scales_are_constants(exported: Path) -> None:
    """A scale that depends on the data depends on the whole batch."""
    for name in ("video", "text", "fusion", "match"):
        graph = onnx.load(exported / f"{name}.onnx").graph
        operators = {node.op_type for node in graph.node}
        assert "QuantizeLinear" in operators
        assert not {"DynamicQuantizeLinear", "MatMulInteger"} & operators
        constants = {tensor.name for tensor in graph.initializer}
        assert all(node.input[1] in constants for node in graph.node if node.op_type == "QuantizeLinear")


@pytest.mark.parametrize("form", ["int8", "world-tiny"])
def test_no_sum_of_two_products_overflows_16_bits(exported: Path, form: str) -> None:
    """x86 CPUs without VNNI add pairs of products of an unsigned and a signed byte in 16 bits."""
    folder = exported if form == "int8" else loading.bundled_folder(form)
    assert folder is not None
    count = 0
    for path in folder.glob("*.onnx"):
        graph = onnx.load(path).graph
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        sources = {output: node for node in graph.node for output in node.output}
        for node in graph.node:
            quantized = sources.get(node.input[0]) if node.op_type in ("Conv", "Gemm") else None
            if node.op_type == "Gemm" and (quantized is None or quantized.op_type != "DequantizeLinear"):
                continue  # an embedding's map is multiplied in fp32
            name = node.input[1] if node.op_type == "MatMulIntegerToFloat" else ""
            if node.op_type in ("Conv", "Gemm") and sources.get(node.input[1]) is not None:
                name = sources[node.input[1]].input[0]
            if name in arrays:
                assert arrays[name].dtype == np.int8
                assert 255 * 2 * np.abs(arrays[name].astype(np.int64)).max() < 2**15
                count += 1
    assert count > 10
