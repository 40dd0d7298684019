"""Read an export back as a checkpoint, so that it can be trained further.

Graphs hold no names of weights: the exporter transposes, slices and merges them, and the quantizer rounds them. A model
of the same shape whose weights are random is therefore traced, and each of its weights is looked up among the constants
of its graphs. The constant at the same place of the export's graph is the weight. A convolution with a folded batch
norm gives a convolution with an identity norm. The result is compared with the export.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from evilm import __version__, config
from evilm.data.sampling import generator
from evilm.data.vocabulary import Vocabulary
from evilm.errors import CheckpointError, ConfigError, DependencyError
from evilm.export import quantize, trace
from evilm.inference import Embedder, export_format
from evilm.inference.runtime_onnx import OnnxRuntime
from evilm.inference.runtime_torch import TorchRuntime
from evilm.model.evilm import EViLM
from evilm.model.heads import AnswerHead, EmbeddingHead, MatchHead
from evilm.model.presets import PRESETS, ModelConfig
from evilm.training import checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from evilm.inference.runtime import Metadata

    Place = tuple[str, int, bool]  # name of a tensor, offset of a part of it, and whether the constant is transposed

MIN_COSINE = 0.95  # of the embeddings of the result and the export; int8 activations differ
_UNREAD = ("log_temperature", "num_batches_tracked", "position_ids", "token_type_ids")  # in no graph
_REMEDY = "start from the run or checkpoint that it was made from"


def restore(export: Path, out: Path) -> Path:
    """Write the weights of an export as a checkpoint, in fp32.

    Args:
        export: a folder of ``evilm export``. Its linear probe, if it has one, is left out.
        out: the checkpoint to write.

    Raises:
        CheckpointError: damaged, of a shape that is not known, or with a weight that cannot be found.
        DependencyError: onnx or onnxscript is missing, or openvino for an export that it runs.
        OutputError: ``out`` cannot be written.
    """
    if importlib.util.find_spec("onnx") is None:
        raise DependencyError(f"{export}: to train an export needs onnx: pip install 'evilm[export]'")
    description = export_format.read(export)
    metadata = description.metadata
    if not {"embed_video", "embed_text"} <= set(metadata.heads):
        raise CheckpointError(f"{export}: this {metadata.task} model has no embeddings: use a retrieval model")
    vocabulary = Vocabulary.load(export / "vocabulary.json")
    shape = _shape(export, metadata)
    with tempfile.TemporaryDirectory(prefix="evilm-restore-") as name:
        random = Path(name) / "random"
        tensors = _random_tensors(shape, vocabulary, metadata)
        _write(random, tensors, shape, vocabulary, metadata)
        plain = Path(name) / "graphs"
        plain.mkdir()
        runtime = TorchRuntime(random)
        trace.trace(runtime, plain)
        for graph in plain.glob("*.onnx"):
            if "int8" in description.precision[graph.stem]:  # its constants were folded before it was quantized
                quantize.fold_constants(graph, graph)
        encoder = runtime.model.video_encoder
        empty = torch.zeros(1, metadata.num_frames, *metadata.grid, encoder.channels)
        with torch.no_grad():
            encoder.project.bias.zero_()
            positions = encoder.patches(empty).tokens.reshape(metadata.num_frames, -1, metadata.hidden_dim).numpy()
        norms = [f"model.{name}" for name in _batch_norms(runtime.model)]
        found = _read_weights(export, plain, tensors, norms, positions)
    missing = [name for name in tensors if name not in found and not name.endswith(_UNREAD)]
    if missing:
        raise CheckpointError(
            f"{export}: {len(missing)} of {len(tensors)} weights cannot be found in its graphs ({missing[0]}, ...): "
            f"{_REMEDY}"
        )
    found |= {name: tensors[name] for name in tensors if name not in found}
    if metadata.temperature is not None:
        found["embed.log_temperature"] = torch.tensor(metadata.temperature).log()
    _write(out, found, shape, vocabulary, metadata)
    _compare(export, out)
    return out


def _shape(export: Path, metadata: Metadata) -> ModelConfig:
    """The settings of the model: those noted in the export, or those of the preset that fits."""
    noted: Any = metadata.source.get("model") or (metadata.source.get("recipe") or dict[str, Any]()).get("model")
    if noted is not None:
        try:
            shape = config.check(ModelConfig, noted, f"{export / export_format.NAME}: model")
        except ConfigError as error:
            raise CheckpointError(f"{error}: {_REMEDY}") from None
        return shape.model_copy(update={"backbone_weights": "none", "text_weights": "none"})
    for shape in PRESETS.values():
        side = shape.image_size // shape.stride
        wanted = (metadata.hidden_dim, metadata.image_size, metadata.num_frames, metadata.grid, metadata.embedding)
        if (shape.embed_dim, shape.image_size, shape.num_frames, (side, side), shape.embedding) == wanted:
            return shape
    raise CheckpointError(f"{export}: does not say what its model is, and no preset fits: {_REMEDY}")


def _random_tensors(shape: ModelConfig, vocabulary: Vocabulary, metadata: Metadata) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint with different numbers everywhere, and batch norms that change nothing but the bias."""
    model = EViLM(shape, vocabulary.size)
    heads: dict[str, nn.Module] = {}
    if metadata.embed_dim is not None:
        embed = EmbeddingHead.for_model(model, metadata.embed_dim)
        if "embed_text" not in metadata.heads:
            embed.remove("text")
        heads["embed"] = embed
    if "match" in metadata.heads:
        heads["match"] = MatchHead(model.embed_dim)
    if "answer" in metadata.heads:
        heads["answer_head"] = AnswerHead(model.embed_dim, len(metadata.answers), 0.0)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in [model, *heads.values()]:
            for tensor in [*part.parameters(), *part.buffers()]:
                if tensor.is_floating_point() and tensor.ndim:
                    tensor.copy_(0.02 * torch.randn(tensor.shape, generator=draw))
            for norm in _batch_norms(part).values():
                _make_identity(norm)
    modules = {"model": model, **heads}
    return {f"{name}.{key}": value for name, part in modules.items() for key, value in part.state_dict().items()}


def _batch_norms(module: nn.Module) -> dict[str, Any]:
    kinds, named = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), cast("Iterator[Any]", module.named_modules())
    return {name: part for name, part in named if isinstance(part, kinds)}


def _make_identity(norm: Any) -> None:
    """Make a batch norm add its bias and change nothing else. One without a bias gets a mean to know it by."""
    if norm.weight is None:
        norm.running_var.abs_().add_(1)
    else:
        norm.weight.fill_(1.0)
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0 - norm.eps)


def _write(
    folder: Path, tensors: Mapping[str, torch.Tensor], shape: ModelConfig, vocabulary: Vocabulary, metadata: Metadata
) -> None:
    """Write a checkpoint with a recipe that has what the export says of its training."""
    length = metadata.max_text_len
    table = {
        "task": "retrieval",
        "recipe": {
            "task": {"name": "retrieval", "max_text_len": length, "embed_dim": metadata.embed_dim or 512},
            "data": {"train": {"reader": "captions", "annotations": "none"}, "resize_mode": metadata.resize_mode},
            "start": "none",
        },
        "facts": {"answers": list(metadata.answers)} if metadata.answers else {},
        "model": shape.model_dump(mode="json"),
        "restored": metadata.source,
        "versions": {"evilm": __version__},
    }
    if metadata.answer_threshold is not None:
        table["cannot_tell"] = metadata.answer_threshold.model_dump(mode="json")

    def fill(to: Path) -> None:
        checkpoint.write_tensors(to / "model.safetensors", tensors)
        checkpoint.write_json(to / "config.json", table)
        vocabulary.save(to / "vocabulary.json")

    checkpoint.write(folder, fill)


def _read_weights(
    export: Path, plain: Path, tensors: Mapping[str, torch.Tensor], norms: Sequence[str], positions: NDArray[np.float32]
) -> dict[str, torch.Tensor]:
    """The export's tensors by name, as far as its graphs hold them.

    ``plain`` has graphs of the same model with the random ``tensors``, whose batch norms have these names, and
    ``positions`` (T, h w, D) is the sum of its positions in space and time, one constant of a graph.
    """
    index = _Index({name: tensor.numpy() for name, tensor in tensors.items()})
    found = {name: np.full(tensor.shape, np.nan, np.float32) for name, tensor in tensors.items()}
    for path in sorted(plain.glob("*.onnx")):
        ours, theirs = _Graph(path), _Graph(export / path.name)
        for node, place, own in ours.weights():
            value = theirs.value(node, place)
            if value is None or value.size != own.size:
                continue
            if own.size == positions.size and np.allclose(own.ravel(), positions.ravel(), atol=1e-5):
                _split_positions(value.reshape(positions.shape), found)
            elif (where := index.find(own)) is not None:
                name, offset, transposed = where
                found[name].reshape(-1)[offset : offset + own.size] = (value.T if transposed else value).ravel()
                if node.op_type == "BatchNormalization":
                    _read_norm(name.rpartition(".")[0], node, theirs, found)
    _complete(found, tensors, norms)
    return {name: torch.from_numpy(value.copy()) for name, value in found.items() if not np.isnan(value).any()}


def _read_norm(name: str, node: Any, graph: _Graph, found: Mapping[str, NDArray[np.float32]]) -> None:
    """Read all tensors of a batch norm that is an operator of its own."""
    for place, kind in enumerate(("weight", "bias", "running_mean", "running_var"), 1):
        if f"{name}.{kind}" in found:
            found[f"{name}.{kind}"][:] = graph.value(node, place)


def _complete(found: dict[str, NDArray[np.float32]], tensors: Mapping[str, torch.Tensor], norms: Sequence[str]) -> None:
    """Add what is merged in the graphs: batch norms with convolutions, and equal tables of embeddings."""
    for norm in norms:  # its bias is all that is left of it
        for name in (f"{norm}.weight", f"{norm}.running_mean", f"{norm}.running_var"):
            if name in found and np.isnan(found[name]).all():
                found[name] = tensors[name].numpy()
    bag, words = "model.text_encoder.bag_embeddings.weight", "model.text_encoder.bert.embeddings.word_embeddings.weight"
    if bag in found and np.isnan(found[bag]).any():
        found[bag] = found[words]


def _split_positions(value: NDArray[np.float32], found: Mapping[str, NDArray[np.float32]]) -> None:
    """Write (T, h w, D) as positions in space and in time that have this sum."""
    space = value.mean(0)
    found["model.video_encoder.space"][:] = space.T.reshape(found["model.video_encoder.space"].shape)
    found["model.video_encoder.time"][:] = (value - space).mean(1).T[None]


class _Index:
    """Finds a constant among tensors of different numbers: a whole tensor, some of its rows, or one of them transposed.

    Args:
        tensors: by name.
    """

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self.tensors = {name: np.ravel(tensor) for name, tensor in tensors.items() if tensor.dtype == np.float32}
        starts: list[tuple[float, str, int]] = []
        for name, flat in self.tensors.items():
            row = max(1, flat.size // max(1, len(tensors[name]) if tensors[name].ndim else 1))
            starts += [(float(flat[offset]), name, offset) for offset in range(0, flat.size, row)]
        starts.sort()
        self.starts, self.values = starts, np.array([start[0] for start in starts])

    def find(self, constant: NDArray[np.float32]) -> Place | None:
        for transposed in (False, True) if constant.ndim == 2 else (False,):
            flat = np.ravel(constant.T if transposed else constant)
            near = 1e-5 * abs(float(flat[0]))
            low, high = np.searchsorted(self.values, (flat[0] - near, flat[0] + near))
            for _, name, offset in self.starts[low : high + 1]:
                part = self.tensors[name][offset : offset + flat.size]
                if len(part) == flat.size and np.allclose(part, flat, rtol=1e-5, atol=1e-9):
                    return name, offset, transposed
        return None


class _Graph:
    """An ONNX graph whose constants can be read, also those that are quantized.

    Args:
        path: its file, which ``export_format.read`` has checked.
    """

    def __init__(self, path: Path) -> None:
        onnx = importlib.import_module("onnx")
        graph = onnx.load(path, load_external_data=False).graph
        self.nodes: list[Any] = list(graph.node)
        self.by_name = {node.name: node for node in self.nodes}
        self.sources = {output: node for node in self.nodes for output in node.output}
        self.constants: dict[str, NDArray[Any]] = {
            tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer
        }

    def weights(self) -> Iterator[tuple[Any, int, NDArray[np.float32]]]:
        """Each constant that may be a weight: the node that reads it, the number of the input, and the value."""
        for node in self.nodes:
            for place, name in enumerate(node.input):
                value = self.constants.get(name)
                if value is not None and value.dtype == np.float32 and value.min() < value.max():
                    yield node, place, value

    def value(self, node: Any, place: int) -> NDArray[np.float32] | None:
        """The constant, in fp32, at the place that ``node`` of another graph has in this one; None if there is none."""
        own = self.by_name.get(node.name)
        if own is None:  # an addition may be part of a product, or a product with an addition may be taken apart
            own = self.sources.get(node.output[0])
            if own is not None and own.op_type == "MatMulIntegerToFloat" and len(own.input) > 6:
                return self.constants.get(own.input[6])
            parts = (each for each in self.nodes if each.input[:1] == [f"{node.input[place]}_quantized"])
            own, place = next(parts, None), 0
        if own is None or place >= len(own.input):
            return None
        name, axis, reads = own.input[place], -1, own
        value = self.constants.get(name)
        if own.op_type == "MatMulIntegerToFloat":
            inputs: Sequence[str] = [own.input[1], own.input[3], own.input[5]]
        elif value is not None and value.dtype == np.float32:
            return value
        elif own.op_type == "DequantizeLinear":
            inputs, axis = own.input, next((each.i for each in own.attribute if each.name == "axis"), 1)
        else:  # a dequantizer stands before the operator; behind it, if it looks up rows
            rows = [each for each in self.nodes if own.output[0] in each.input]
            reads = self.sources.get(name) if value is None else rows[0] if rows else None
            if reads is None or reads.op_type != "DequantizeLinear":
                return None
            inputs = [reads.input[0] if value is None else name, *reads.input[1:]]
            axis = next((each.i for each in reads.attribute if each.name == "axis"), 1)
        if any(each not in self.constants for each in inputs):
            return None
        value, scale, *zero = (self.constants[each] for each in inputs)
        if scale.ndim:
            shape = [1] * value.ndim
            shape[axis] = -1
            scale, zero = scale.reshape(shape), [each.reshape(shape) for each in zero]
        return ((value.astype(np.float32) - sum(each.astype(np.float32) for each in zero)) * scale).astype(np.float32)


def _compare(export: Path, restored: Path) -> None:
    """Check that the result computes what the export does, on pictures and texts drawn at random.

    Raises:
        CheckpointError: it does not.
    """
    before, after = Embedder(OnnxRuntime(export)), Embedder(TorchRuntime(restored))
    metadata = before.metadata
    random = generator(0, "restore")
    side, coarse = metadata.image_size, random.integers(0, 256, (8, metadata.num_frames, 4, 4, 3)).astype(np.float32)
    pixels = torch.from_numpy(coarse).flatten(0, 1).permute(0, 3, 1, 2)
    smooth = nn.functional.interpolate(pixels, (side, side), mode="bilinear").permute(0, 2, 3, 1)
    frames = smooth.reshape(8, metadata.num_frames, side, side, 3).byte().numpy()
    pieces = [piece for piece in Vocabulary.load(export / "vocabulary.json").pieces if piece.isalpha()]
    texts = [" ".join(random.choice(pieces, 6)) for _ in range(16)]
    for what, ours, theirs in (
        ("videos", after.embed_frames(frames), before.embed_frames(frames)),
        ("texts", after.embed_texts(texts), before.embed_texts(texts)),
    ):
        cosine = float((ours * theirs).sum(-1).mean())
        if cosine < MIN_COSINE:
            raise CheckpointError(
                f"{export}: the weights read from it embed {what} differently (mean cosine {cosine:.3f}, at least "
                f"{MIN_COSINE} is needed): {_REMEDY}"
            )
