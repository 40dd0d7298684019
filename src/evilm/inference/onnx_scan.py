"""Whether an ONNX file may be loaded, decided by reading its bytes: nothing in it is run, and no library is needed.

A graph of ours is a plain one: all weights inside the file, each as long as its shape says, operators from a closed
list, constants that make no giant out of a small file. What breaks a rule is refused before a runtime sees it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

from evilm.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MAX_BYTES = 2**31  # protobuf's own limit
MAX_ELEMENTS = 2**28  # of a tensor that an operator makes out of constants
MAX_NODES = 50_000
MAX_DEPTH = 4  # subgraphs within subgraphs; ours have none

# Beyond plain arithmetic on tensors, nothing: no loops, no calls, no sequences, no custom domains.
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
_MAKERS = frozenset({"ConstantOfShape", "Expand", "Tile", "Reshape", "Pad", "Resize", "Range"})

# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = 5, 6, 10, 11, (22, 23)
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_INT64, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 7, 8, 9
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_TENSOR_TYPED = (4, 5, 7, 10, 11)  # repeated values of each kind, a byte each at least
_ATTRIBUTE_INTS = 8
_INT64, _SHORT = 7, 16  # DataType, and the longest tensor that may be a shape
# Bytes of an element, by TensorProto.DataType; strings (8) and what is below a byte are not taken.
_SIZES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}


def check(path: Path) -> None:
    """Refuse an ONNX file that is not a plain one.

    Raises:
        CheckpointError: missing, too large, no ONNX at all, or against one of the rules.
    """
    try:
        size = path.stat().st_size
        if not path.is_file() or not size:
            raise CheckpointError(f"{path}: is not a graph ({'empty' if path.is_file() else 'no file'})")
        if size > MAX_BYTES:
            raise CheckpointError(f"{path}: refused: {size:,} bytes, and a graph has at most {MAX_BYTES:,}")
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: the graph cannot be read: {error.strerror}") from None
    try:
        _check_model(data)
    except _RefusedError as refused:
        raise CheckpointError(f"{path}: refused: {refused}; take the export from where it was made") from None
    except (IndexError, ValueError, OverflowError, TypeError):
        raise CheckpointError(f"{path}: is not an ONNX graph, or a damaged one; take another copy") from None


class _RefusedError(Exception):
    """A rule that is broken."""


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a protobuf message: an int, or the bytes of a length-delimited one."""
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
            raise ValueError("no wire type of protobuf")
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


def _check_model(data: memoryview) -> None:
    graphs = 0
    for number, value in _fields(data):
        if number == _MODEL_FUNCTIONS:
            raise _RefusedError("it defines functions of its own")
        if number == _MODEL_GRAPH:
            graphs += 1
            _check_graph(_message(value), 0)
    if graphs != 1:
        raise ValueError("not one graph")


def _check_graph(data: memoryview, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _RefusedError("its graphs lie too deep in one another")
    nodes: list[memoryview] = []
    wholes: dict[str, list[int]] = {}
    for number, value in _fields(data):
        if number == _GRAPH_NODE:
            nodes.append(_message(value))
            if len(nodes) > MAX_NODES:
                raise _RefusedError(f"it has more than {MAX_NODES} operators")
        elif number == _GRAPH_SPARSE:
            raise _RefusedError("it has sparse tensors")
        elif number == _GRAPH_INITIALIZER:
            name, numbers = _check_tensor(_message(value))
            if numbers:
                wholes[name] = numbers
    for node in nodes:
        _check_node(node, wholes, depth)


def _check_node(data: memoryview, wholes: dict[str, list[int]], depth: int) -> None:
    fields = _gathered(data)
    operator, domain = (_text(fields[number][-1]) if fields[number] else "" for number in (_NODE_OP, _NODE_DOMAIN))
    known = operator in (MICROSOFT if domain == "com.microsoft" else OPERATORS)
    if domain not in DOMAINS or not known:
        raise _RefusedError(f"its operator {domain + '.' if domain else ''}{operator!r:.60} is none that a model needs")
    constants = [found for value in fields[_NODE_ATTRIBUTE] for found in _check_attribute(_message(value), depth)]
    if operator == "Constant" and fields[_NODE_OUTPUT] and constants:
        wholes[_text(fields[_NODE_OUTPUT][0])] = constants[0]
    if operator in _MAKERS:
        for value in fields[_NODE_INPUT]:
            _check_made(operator, wholes.get(_text(value), []))


def _check_made(operator: str, numbers: list[int]) -> None:
    """Whether an operator makes a giant of the whole numbers that it is given: a shape, repeats, pads or a range."""
    sides = [abs(number) for number in numbers]
    made = sum(sides) if operator in ("Pad", "Range") else math.prod(max(1, side) for side in sides)
    if made > MAX_ELEMENTS:
        raise _RefusedError(f"its operator {operator} makes a tensor of {made:.2g} elements")


def _check_attribute(data: memoryview, depth: int) -> list[list[int]]:
    """Whole numbers in the tensors of an attribute, or its list of them."""
    fields = _gathered(data)
    if any(fields[number] for number in _ATTRIBUTE_SPARSE):
        raise _RefusedError("it has sparse tensors")
    for value in (*fields[_ATTRIBUTE_GRAPH], *fields[_ATTRIBUTE_GRAPHS]):
        _check_graph(_message(value), depth + 1)
    tensors = [_check_tensor(_message(value))[1] for value in (*fields[_ATTRIBUTE_TENSOR], *fields[_ATTRIBUTE_TENSORS])]
    return [*tensors, _numbers(fields[_ATTRIBUTE_INTS])]


def _check_tensor(data: memoryview) -> tuple[str, list[int]]:
    """A tensor's name, and its numbers where it is a short one of int64."""
    fields = _gathered(data)
    if fields[_TENSOR_EXTERNAL] or any(fields[_TENSOR_LOCATION]):
        raise _RefusedError("it takes weights from another file (external data)")
    name = _text(fields[_TENSOR_NAME][-1]) if fields[_TENSOR_NAME] else ""
    kind = _numbers(fields[_TENSOR_TYPE])[-1] if fields[_TENSOR_TYPE] else 0
    if kind not in _SIZES:
        raise _RefusedError(f"its tensor {name!r:.60} is of type {kind}, which no model of ours has")
    dims = _numbers(fields[_TENSOR_DIMS])
    if any(side < 0 for side in dims):
        raise _RefusedError(f"its tensor {name!r:.60} has a negative side")
    count = math.prod(dims)
    raw = _message(fields[_TENSOR_RAW][-1]) if fields[_TENSOR_RAW] else memoryview(b"")
    typed = sum(8 if isinstance(value, int) else len(value) for number in _TENSOR_TYPED for value in fields[number])
    if len(raw) != count * _SIZES[kind] if len(raw) else count > typed:
        raise _RefusedError(f"its tensor {name!r:.60} claims {count:.3g} elements and holds {len(raw) or typed} bytes")
    if kind != _INT64 or count > _SHORT:
        return name, []
    if len(raw):
        return name, [int.from_bytes(raw[i : i + 8], "little", signed=True) for i in range(0, len(raw), 8)]
    return name, _numbers(fields[_TENSOR_INT64])


def _gathered(data: memoryview) -> Mapping[int, list[int | memoryview]]:
    """The values of each field of a small message, by number."""
    found: dict[int, list[int | memoryview]] = defaultdict(list)
    for number, value in _fields(data):
        found[number].append(value)
    return found


def _numbers(values: list[int | memoryview]) -> list[int]:
    """A repeated number, packed or not, signed."""
    found: list[int] = []
    for value in values:
        if isinstance(value, int):
            found.append(_signed(value))
            continue
        place = 0
        while place < len(value):
            number, place = _varint(value, place)
            found.append(_signed(number))
    return found


def _signed(value: int) -> int:
    """A varint as the signed number that it stands for."""
    return value - 2**64 if value >= 2**63 else value
