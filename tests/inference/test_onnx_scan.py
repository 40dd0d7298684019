"""Malicious graphs and weights are refused in one line, before any library opens them."""

from __future__ import annotations

import importlib
import json
import pickle
import struct
import time
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import evilm
from evilm.errors import CheckpointError
from evilm.inference import export_format, onnx_scan
from evilm.training import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def graph(nodes: list[onnx.NodeProto] | None = None, tensors: list[onnx.TensorProto] | None = None) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    nodes = nodes or [helper.make_node("Relu", ["x"], ["y"])]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors or [])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def outside() -> onnx.ModelProto:
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../../etc/passwd"
    return graph(tensors=[tensor])


def claims(*dims: int) -> onnx.ModelProto:
    return graph(tensors=[TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=b"1234")])


def of(operator: str, *inputs: str, domain: str = "") -> onnx.ModelProto:
    """A graph with one operator and a shape of 2^40 elements at hand."""
    shape = numpy_helper.from_array(np.array([2**20, 2**20], np.int64), "shape")
    return graph([helper.make_node(operator, list(inputs), ["y"], domain=domain)], [shape])


def with_function() -> onnx.ModelProto:
    model = graph()
    model.functions.append(helper.make_function("own", "f", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])],
                                                [helper.make_opsetid("", 20)]))  # fmt: skip
    return model


def nested(depth: int) -> onnx.ModelProto:
    inner = graph().graph
    for _ in range(depth):
        node = helper.make_node("Identity", ["x"], ["y"])
        node.attribute.append(helper.make_attribute("body", inner))
        inner = helper.make_graph([node], "g", [], [])
    return helper.make_model(inner, opset_imports=[helper.make_opsetid("", 20)])


ATTACKS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "external data": (outside, "reads weights from another file"),
    "huge dims": (lambda: claims(2**40, 2**20), "claims 1.15e+18 elements and holds 4 bytes"),
    "dims that multiply to nothing": (lambda: claims(2**62, 4), "claims 1.84e+19 elements"),
    "negative dims": (lambda: claims(-1), "has a negative dimension"),
    "loop": (lambda: of("Loop", "shape"), "its operator 'Loop' is not allowed"),
    "custom operator": (lambda: of("Run", "x", domain="evil"), "its operator evil.'Run' is not allowed"),
    "contrib operator": (lambda: of("Attention", "x", domain="com.microsoft"), "com.microsoft.'Attention' is not"),
    "giant of a shape": (lambda: of("ConstantOfShape", "shape"), "ConstantOfShape makes a tensor of 1.1e+12 elements"),
    "giant of an expansion": (lambda: of("Expand", "x", "shape"), "Expand makes a tensor of 1.1e+12"),
    "functions": (with_function, "it defines functions"),
    "nested graphs": (lambda: nested(12), "are nested more than 4 deep"),
    "strings": (lambda: graph(tensors=[helper.make_tensor("s", TensorProto.STRING, [1], [b"x"])]), "is of type 8"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_a_malicious_graph_is_refused_within_two_seconds(name: str, tmp_path: Path) -> None:
    make, complaint = ATTACKS[name]
    path = tmp_path / "video.onnx"
    path.write_bytes(make().SerializeToString())
    began = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        onnx_scan.scan(path)
    assert time.monotonic() - began < 2
    assert complaint in str(caught.value)
    assert str(caught.value).startswith(f"{path}: refused: ")
    assert "\n" not in str(caught.value)


def test_a_constant_node_is_checked_as_a_shape(tmp_path: Path) -> None:
    value = numpy_helper.from_array(np.array([2**40], np.int64))
    nodes = [helper.make_node("Constant", [], ["c"], value=value), helper.make_node("Tile", ["x", "c"], ["y"])]
    (tmp_path / "m.onnx").write_bytes(graph(nodes).SerializeToString())
    with pytest.raises(CheckpointError, match="Tile makes a tensor of"):
        onnx_scan.scan(tmp_path / "m.onnx")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for content in (pickle.dumps({"a": 1}), b"\xff" * 64, b"PK\x03\x04" + bytes(60), graph().SerializeToString()[:-3]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is not an ONNX graph, or it is damaged"):
            onnx_scan.scan(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is not an ONNX graph"):
        onnx_scan.scan(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        onnx_scan.scan(tmp_path / "none.onnx")


def test_random_changes_of_bytes_raise_no_other_error(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones(64, np.float32), "w")
    whole = graph([helper.make_node("Mul", ["x", "w"], ["y"])], [weight]).SerializeToString()
    path, random, refused = tmp_path / "m.onnx", np.random.default_rng(0), 0
    for _ in range(400):
        mutant = bytearray(whole)
        for place in random.integers(0, len(mutant), 3):
            mutant[place] = random.integers(0, 256)
        path.write_bytes(mutant)
        try:
            onnx_scan.scan(path)
        except CheckpointError:
            refused += 1
    assert 50 < refused < 400


def test_an_allowed_graph_passes(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    typed = helper.make_tensor("t", TensorProto.INT64, [2], [-1, 2])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Reshape", ["a", "t"], ["y"])]
    (tmp_path / "m.onnx").write_bytes(graph(nodes, [weight, typed]).SerializeToString())
    onnx_scan.scan(tmp_path / "m.onnx")


def test_an_export_with_a_malicious_graph_is_refused(tmp_path: Path) -> None:
    """Its checksums are right: whoever makes the graph also makes the manifest."""

    def fill(to: Path) -> None:
        metadata = {"task": "retrieval", "num_frames": 2, "image_size": 64, "grid": [4, 4], "max_text_len": 8,
                    "hidden_dim": 32}  # fmt: skip
        table = {"format": 2, "metadata": metadata, "precision": {}}
        (to / export_format.NAME).write_text(json.dumps(table))
        for name in export_format.GRAPHS:
            (to / f"{name}.onnx").write_bytes((outside() if name == "text" else graph()).SerializeToString())

    out = tmp_path / "evil"
    checkpoint.write(out, fill)
    with pytest.raises(CheckpointError, match=r"text\.onnx: refused: it reads weights from another file"):
        evilm.load(out)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"weights": [1.0]}),
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 70) + json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}).encode(),
        struct.pack("<Q", 8) + b"[[[[[[[[",
    ],
    ids=["pickle", "header of an exabyte", "tensor beyond the file", "no object"],
)
def test_malicious_weights_are_refused(content: bytes, tmp_path: Path) -> None:
    importlib.import_module("safetensors.torch")  # whose seconds of import are not the file's
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a readable safetensors file"):
        checkpoint.read_tensors(path)
    assert time.monotonic() - began < 2


def test_settings_that_do_not_fit_the_weights_are_refused(tmp_path: Path) -> None:
    from evilm.inference import runtime_torch
    from evilm.model.presets import ModelConfig

    with pytest.raises(CheckpointError, match=r"its model\.safetensors does not fit its config\.json"):
        runtime_torch.check_shape(tmp_path, ModelConfig(embed_dim=6 * 10**9, depth=10**9), {})
