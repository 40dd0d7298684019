"""The folder of an exported model: its files, how it is written, and how it is read without trusting it.

export.json       what the model takes and gives, the precision of its graphs, what was measured
video.onnx        text.onnx        fusion.onnx        <head>.onnx
vocabulary.json   word pieces
README.md         the model card, which its owner may edit
manifest.json     checksums of all files but the card, written last
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any, Literal

from evilm import config, files
from evilm.config import Config
from evilm.errors import CheckpointError, ConfigError
from evilm.inference import onnx_scan
from evilm.inference.runtime import Metadata
from evilm.training import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from evilm.inference.onnx_scan import GraphInfo

KIND = "export of evilm"  # content of the ownership mark
NAME = "export.json"
GRAPHS = ("video", "text", "fusion")
FORMAT = 2
_REMEDY = "export the checkpoint again with `evilm export`"
_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear"})

RuntimeName = Literal["onnxruntime", "openvino"]


class ExportDescription(Config):
    """``export.json``.

    Attributes:
        format: version of this file.
        metadata: what the model takes and gives; checked against the graphs.
        runtime: the library that runs the graphs.
        precision: of each graph and head: ``fp32``, ``int8``, ``int8/fp32`` (some layers in fp32), ``int8 matrices``
            (convolutions in fp32) or ``bf16``; checked against the graphs.
        measured: the report of ``evilm export``, for people; nothing depends on it.
    """

    format: Literal[2] = FORMAT
    metadata: Metadata
    runtime: RuntimeName = "onnxruntime"
    precision: dict[str, str]
    measured: dict[str, Any] = {}


def read(folder: Path) -> ExportDescription:
    """The description of an export, after checking checksums, graphs, and that the description fits the graphs.

    Raises:
        CheckpointError: damaged, of another format, with a graph that is refused, or with a wrong description.
    """
    path = folder / NAME
    listed: Any = checkpoint.read_json(folder / checkpoint.MANIFEST).get("sha256")
    names: list[str] = [str(name) for name in listed] if isinstance(listed, dict) else []  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    for name in names:
        file = folder / name
        if file.is_file() and file.stat().st_size > onnx_scan.MAX_BYTES:
            raise CheckpointError(f"{file}: refused: {file.stat().st_size:,} bytes; a file of an export is smaller")
    table = checkpoint.read_json(path)
    if table.get("format") != FORMAT:
        version = table.get("format")
        raise CheckpointError(f"{path}: export format {version!r}, and this version reads {FORMAT}: {_REMEDY}")
    checkpoint.verify(folder)
    try:
        export = config.check(ExportDescription, table, str(path))
    except ConfigError as error:
        raise CheckpointError(f"{error}; {_REMEDY}") from None
    graphs: dict[str, GraphInfo] = {}
    for name in (*GRAPHS, *export.metadata.heads):
        file = folder / f"{name}.onnx"
        if file.name not in names:
            raise CheckpointError(f"{file}: missing from the export; {_REMEDY}")
        graphs[name] = onnx_scan.scan(file)
    if problem := _mismatch(export, graphs):
        raise CheckpointError(f"{path}: {problem}; {_REMEDY}")
    return export


def _mismatch(export: ExportDescription, graphs: Mapping[str, GraphInfo]) -> str:
    """The first difference between the description and the graphs; empty if there is none."""
    metadata = export.metadata
    frames, side, dim = metadata.num_frames, metadata.image_size, metadata.hidden_dim
    patches = frames * metadata.grid[0] * metadata.grid[1]
    pooled = {f"embed_{each}": graphs[each].outputs.get("pooled") for each in ("video", "text")}
    if (of_frames := pooled["embed_video"]) and len(of_frames) == 3:  # their mean goes into the head
        pooled["embed_video"] = (of_frames[0], of_frames[2])
    shapes: list[tuple[str, Mapping[str, tuple[int | None, ...]], str, tuple[int | None, ...] | None]] = [
        ("video", graphs["video"].inputs, "frames", (None, frames, side, side, 3)),
        ("video", graphs["video"].outputs, "patches", (None, patches, dim)),
        ("text", graphs["text"].inputs, "ids", (None, None)),
        ("text", graphs["text"].inputs, "mask", (None, None)),
        ("text", graphs["text"].outputs, "words", (None, None, dim)),
        ("fusion", graphs["fusion"].inputs, "tokens", (None, None, dim)),
        ("fusion", graphs["fusion"].inputs, "mask", (None, None)),
        ("fusion", graphs["fusion"].outputs, "cls", (None, dim)),
        ("fusion", graphs["fusion"].outputs, "attention", (None, None)),
    ]
    widths = {"match": 1, "answer": len(metadata.answers), "classify": len(metadata.classes)}
    for head in metadata.heads:
        fused = head not in pooled or metadata.embedding != "pooled"
        shapes.append((head, graphs[head].inputs, "cls", (None, dim) if fused else None))
        shapes.append((head, graphs[head].inputs, "pooled", pooled.get(head)))
        shapes.append((head, graphs[head].outputs, "scores", (None, widths.get(head, metadata.embed_dim))))
    for graph, ends, name, wanted in shapes:
        if ends.get(name) != wanted:
            return f"its metadata gives {name} of {graph}.onnx the shape {wanted}, and the graph has {ends.get(name)}"
    if metadata.grid[0] != metadata.grid[1]:
        return f"grid is {metadata.grid}, and a frame is square"
    if (metadata.embed_dim is None) != ("embed_video" not in metadata.heads):
        return f"embed_dim is {metadata.embed_dim}, and the heads are {', '.join(metadata.heads)}"
    for name, graph in graphs.items():
        precision = export.precision.get(name, "none")
        if ("int8" in precision) != bool(graph.operators & _QUANTIZED):
            return f"precision of {name} is {precision}, and the graph is not"
    return ""


def fingerprint(folder: Path, metadata: Metadata) -> str:
    """16 hex digits that name what an export computes: its graphs, its vocabulary, and its metadata but the source."""
    sums: Any = checkpoint.read_json(folder / checkpoint.MANIFEST)["sha256"]
    lines = [f"{name} {sums[name]}" for name in sorted(sums) if name.endswith(".onnx") or name == "vocabulary.json"]
    lines.append(metadata.model_dump_json(exclude={"task", "source"}))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def write(folder: Path, fill: Callable[[Path], None]) -> None:
    """Write an export: ``fill`` a temporary folder, add the manifest, move it into place; an old export is replaced.

    Raises:
        OutputError: the folder holds something else, or the disk is full; what was there is unchanged.
    """
    files.check_output_dir(folder, KIND)
    old = folder.with_name(folder.name + checkpoint.OLD)

    def fill_and_mark(temporary: Path) -> None:
        fill(temporary)
        (temporary / files.MARK).write_text(KIND + "\n")

    remedy = "nothing half-written is left: free space, export again"
    try:
        checkpoint.write(folder, fill_and_mark, what="export", remedy=remedy)
    except BaseException:
        if old.is_dir() and not folder.exists():  # the old export had been moved away already
            os.replace(old, folder)
        raise
