"""int8 with static scales, and the layers that int8 harms most."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
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
            name = node.input[1] if node.op_type == "MatMulIntegerToFloat" else ""
            if node.op_type in ("Conv", "Gemm") and sources.get(node.input[1]) is not None:
                name = sources[node.input[1]].input[0]
            if name in arrays:
                assert arrays[name].dtype == np.int8
                assert 255 * 2 * np.abs(arrays[name].astype(np.int64)).max() < 2**15
                count += 1
    assert count > 10
