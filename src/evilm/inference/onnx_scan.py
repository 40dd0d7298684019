"""Scan of an untrusted ONNX file: decide from its bytes whether it may be loaded, and read the shapes of its ends.

A graph may be loaded if its weights are all inside the file and as long as their shapes say, its operators are in a
closed list, and no constant makes a huge tensor out of a small file. Others are refused before a runtime opens them.

The scan is written by hand because inference does not depend on ``onnx``, which itself loads external data.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evilm.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MAX_BYTES = 2**31  # the limit of protobuf
MAX_ELEMENTS = 2**28  # of a tensor whose shape is a constant
MAX_NODES = 50_000
MAX_DEPTH = 4  # of nested subgraphs; exports have none

# Arithmetic on tensors only: no loops, calls, sequences or custom domains.
OPERATORS = frozenset(
    "Abs Add And AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv ConvInteger Cos "
    "DepthToSpace DequantizeLinear Div DynamicQuantizeLinear Einsum Equal Erf Exp Expand Flatten Floor Gather "
    "GatherElements GatherND Gelu Gemm GlobalAveragePool Greater GreaterOrEqual GroupNormalization HardSigmoid "
    "HardSwish Identity InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log "
    "LogSoftmax MatMul MatMulInteger Max MaxPool Min Mish Mod Mul Neg Not Or PRelu Pad Pow QLinearConv QLinearMatMul "
    "QuantizeLinear Range Reciprocal ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare Relu Reshape Resize Round Selu Shape Sigmoid Sign Sin Slice Softmax Softplus SpaceToDepth Split "
    "Sqrt Squeeze Sub Sum Tanh Tile Transpose Trilu Unsqueeze Where".split()
)
DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
MICROSOFT = frozenset({"DequantizeLinear", "QuantizeLinear", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"})
_SHAPE_OPERATORS = frozenset({"ConstantOfShape", "Expand", "Tile", "Reshape", "Pad", "Resize", "Range"})

# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_SPARSE = 1, 5, 11, 12, 15
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_SHAPE, _SHAPE_DIM, _DIM_VALUE = 1, 2, 1, 2, 1, 1
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = 5, 6, 10, 11, (22, 23)
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_INT64, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 7, 8, 9
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_TENSOR_TYPED = (4, 5, 7, 10, 11)  # repeated values of each type, at least one byte each
_ATTRIBUTE_INTS = 8
_INT64, _MAX_RANK = 7, 16  # a DataType, and the longest tensor that is taken as a shape
# Bytes of an element by TensorProto.DataType; strings (8) and types below one byte are refused.
_SIZES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}


@dataclass(frozen=True)
class GraphInfo:
    """What the scan reads of a graph.

    Attributes:
        inputs, outputs: name to shape; None for a dimension of any size. Weights are not inputs.
        operators: the operators that occur.
    """

    inputs: dict[str, tuple[int | None, ...]]
    outputs: dict[str, tuple[int | None, ...]]
    operators: frozenset[str]


def scan(path: Path) -> GraphInfo:
    """Check that an ONNX file keeps the rules above.

    Raises:
        CheckpointError: the file is missing, too large, not ONNX, or breaks a rule.
    """
    try:
        size = path.stat().st_size
        if not path.is_file() or not size:
            raise CheckpointError(f"{path}: is not an ONNX graph ({'empty' if path.is_file() else 'no file'})")
        if size > MAX_BYTES:
            raise CheckpointError(f"{path}: refused: {size:,} bytes, and a graph has at most {MAX_BYTES:,}")
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: the graph cannot be read: {error.strerror}") from None
    try:
        return _scan_model(data)
    except _RefusedError as refused:
        raise CheckpointError(f"{path}: refused: {refused}; export the checkpoint again") from None
    except (IndexError, ValueError, OverflowError, TypeError):
        raise CheckpointError(f"{path}: is not an ONNX graph, or it is damaged; export the checkpoint again") from None


class _RefusedError(Exception):
    """A broken rule."""


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a protobuf message: an int, or the bytes of a length-delimited field."""
    place, end = 0, len(data)
    while place < end:
        key, place = _varint(data, place)
        number, kind = key >> 3, key & 7
        value: int | memoryview
        if kind == 0:
            value, place = _varint(data, place)
        elif kind == 2:
            length, place = _varint(data, place)
            if place + length > end:
                raise ValueError("a field longer than its message")
            value, place = data[place : place + length], place + length
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            if place + width > end:
                raise ValueError("a number longer than its message")
            value, place = int.from_bytes(data[place : place + width], "little"), place + width
        else:
            raise ValueError("not a wire type of protobuf")
        if not number:
            raise ValueError("no field number")
        yield number, value


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise TypeError("a number where a message belongs")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode("utf-8", "replace")


def _scan_model(data: memoryview) -> GraphInfo:
    graphs: list[GraphInfo] = []
    for number, value in _fields(data):
        if number == _MODEL_FUNCTIONS:
            raise _RefusedError("it defines functions")
        if number == _MODEL_GRAPH:
            graphs.append(_scan_graph(_message(value), 0))
    if len(graphs) != 1:
        raise ValueError("not one graph")
    return graphs[0]


def _scan_graph(data: memoryview, depth: int) -> GraphInfo:
    if depth > MAX_DEPTH:
        raise _RefusedError(f"its graphs are nested more than {MAX_DEPTH} deep")
    nodes: list[memoryview] = []
    integers: dict[str, list[int]] = {}  # short int64 constants by name: possible shapes
    weights: set[str] = set()
    ends: dict[int, dict[str, tuple[int | None, ...]]] = {_GRAPH_INPUT: {}, _GRAPH_OUTPUT: {}}
    for number, value in _fields(data):
        if number == _GRAPH_NODE:
            nodes.append(_message(value))
            if len(nodes) > MAX_NODES:
                raise _RefusedError(f"it has more than {MAX_NODES} operators")
        elif number == _GRAPH_SPARSE:
            raise _RefusedError("it has sparse tensors")
        elif number == _GRAPH_INITIALIZER:
            name, numbers = _check_tensor(_message(value))
            weights.add(name)
            if numbers:
                integers[name] = numbers
        elif number in ends:
            name, shape = _shape(_message(value))
            ends[number][name] = shape
    operators = frozenset([_check_node(node, integers, depth) for node in nodes])
    inputs = {name: shape for name, shape in ends[_GRAPH_INPUT].items() if name not in weights}
    return GraphInfo(inputs, ends[_GRAPH_OUTPUT], operators)


def _shape(data: memoryview) -> tuple[str, tuple[int | None, ...]]:
    """Name and shape of a graph's input or output."""
    fields = _by_number(data)
    name = _text(fields[_VALUE_NAME][-1]) if fields[_VALUE_NAME] else ""
    inner = data[:0]
    for step in (_VALUE_TYPE, _TYPE_TENSOR, _TENSOR_SHAPE):
        inner = _message(fields[step][-1]) if fields[step] else data[:0]
        fields = _by_number(inner)
    sizes = [_numbers(_by_number(_message(each))[_DIM_VALUE]) for each in fields[_SHAPE_DIM]]
    return name, tuple(size[-1] if size else None for size in sizes)


def _check_node(data: memoryview, integers: dict[str, list[int]], depth: int) -> str:
    """Check one node, and return its operator."""
    fields = _by_number(data)
    operator, domain = (_text(fields[number][-1]) if fields[number] else "" for number in (_NODE_OP, _NODE_DOMAIN))
    known = operator in (MICROSOFT if domain == "com.microsoft" else OPERATORS)
    if domain not in DOMAINS or not known:
        raise _RefusedError(f"its operator {domain + '.' if domain else ''}{operator!r:.60} is not allowed")
    constants = [each for value in fields[_NODE_ATTRIBUTE] for each in _check_attribute(_message(value), depth)]
    if operator == "Constant" and fields[_NODE_OUTPUT] and constants:
        integers[_text(fields[_NODE_OUTPUT][0])] = constants[0]
    if operator in _SHAPE_OPERATORS:
        for value in fields[_NODE_INPUT]:
            sides = [abs(number) for number in integers.get(_text(value), [])]
            size = sum(sides) if operator in ("Pad", "Range") else math.prod(max(1, side) for side in sides)
            if size > MAX_ELEMENTS:
                raise _RefusedError(f"its operator {operator} makes a tensor of {size:.2g} elements")
    return operator


def _check_attribute(data: memoryview, depth: int) -> list[list[int]]:
    """The integers of an attribute: of its tensors, and its own list."""
    fields = _by_number(data)
    if any(fields[number] for number in _ATTRIBUTE_SPARSE):
        raise _RefusedError("it has sparse tensors")
    for value in (*fields[_ATTRIBUTE_GRAPH], *fields[_ATTRIBUTE_GRAPHS]):
        _scan_graph(_message(value), depth + 1)
    tensors = [_check_tensor(_message(value))[1] for value in (*fields[_ATTRIBUTE_TENSOR], *fields[_ATTRIBUTE_TENSORS])]
    return [*tensors, _numbers(fields[_ATTRIBUTE_INTS])]


def _check_tensor(data: memoryview) -> tuple[str, list[int]]:
    """A tensor's name, and its values if it is a short one of int64."""
    fields = _by_number(data)
    if fields[_TENSOR_EXTERNAL] or any(fields[_TENSOR_LOCATION]):
        raise _RefusedError("it reads weights from another file (external data)")
    name = _text(fields[_TENSOR_NAME][-1]) if fields[_TENSOR_NAME] else ""
    kind = _numbers(fields[_TENSOR_TYPE])[-1] if fields[_TENSOR_TYPE] else 0
    if kind not in _SIZES:
        raise _RefusedError(f"its tensor {name!r:.60} is of type {kind}, which is not allowed")
    dims = _numbers(fields[_TENSOR_DIMS])
    if any(size < 0 for size in dims):
        raise _RefusedError(f"its tensor {name!r:.60} has a negative dimension")
    count = math.prod(dims)
    raw = _message(fields[_TENSOR_RAW][-1]) if fields[_TENSOR_RAW] else memoryview(b"")
    typed = sum(8 if isinstance(value, int) else len(value) for number in _TENSOR_TYPED for value in fields[number])
    if len(raw) != count * _SIZES[kind] if len(raw) else count > typed:
        raise _RefusedError(f"its tensor {name!r:.60} claims {count:.3g} elements and holds {len(raw) or typed} bytes")
    if kind != _INT64 or count > _MAX_RANK:
        return name, []
    if len(raw):
        return name, [int.from_bytes(raw[i : i + 8], "little", signed=True) for i in range(0, len(raw), 8)]
    return name, _numbers(fields[_TENSOR_INT64])


def _by_number(data: memoryview) -> Mapping[int, list[int | memoryview]]:
    """The values of each field of a message, by field number."""
    values: dict[int, list[int | memoryview]] = defaultdict(list)
    for number, value in _fields(data):
        values[number].append(value)
    return values


def _numbers(values: list[int | memoryview]) -> list[int]:
    """The values of a repeated integer field, packed or not, as signed numbers."""
    numbers: list[int] = []
    for value in values:
        if isinstance(value, int):
            numbers.append(_signed(value))
            continue
        place = 0
        while place < len(value):
            number, place = _varint(value, place)
            numbers.append(_signed(number))
    return numbers


def _signed(value: int) -> int:
    """An unsigned varint as the signed number it encodes."""
    return value - 2**64 if value >= 2**63 else value
