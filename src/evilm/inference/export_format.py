"""An exported model's folder: what lies in it, and how it is opened without trusting it.

export.json       what the model takes and gives, how precise it is, what the export cost
video.onnx        text.onnx        fusion.onnx        <head>.onnx
vocabulary.json   its words
README.md         the model card; its owner may edit it
manifest.json     checksums of all files but the card, written last
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

from evilm import config, files
from evilm.config import Config
from evilm.errors import CheckpointError, ConfigError
from evilm.inference import onnx_scan
from evilm.inference.runtime import Metadata
from evilm.training import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KIND = "export of evilm"  # what the mark of an export's folder says
NAME = "export.json"
GRAPHS = ("video", "text", "fusion")
FORMAT = 2

Runtime = Literal["onnxruntime", "openvino"]


class ExportDescription(Config):
    """``export.json``.

    Attributes:
        format: of this file.
        about: what the model takes and gives.
        runtime: what runs the graphs.
        precision: of each graph and head: ``fp32``, ``int8``, ``bf16``.
        measured: what the export cost, see ``gate.Report``; empty where nothing could be measured.
    """

    format: Literal[2] = FORMAT
    metadata: Metadata
    runtime: Runtime = "onnxruntime"
    precision: dict[str, str]
    measured: dict[str, Any] = {}


def read(folder: Path) -> ExportDescription:
    """What an export says of itself, once all of its files are known to be whole and harmless.

    Raises:
        CheckpointError: damaged, of another version, or with a graph that is refused.
    """
    path = folder / NAME
    listed: Any = checkpoint.read_json(folder / checkpoint.MANIFEST).get("sha256")
    names: list[str] = [str(name) for name in listed] if isinstance(listed, dict) else []  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    for name in names:
        file = folder / name
        if file.is_file() and file.stat().st_size > onnx_scan.MAX_BYTES:
            raise CheckpointError(f"{file}: refused: {file.stat().st_size:,} bytes; an export's files are smaller")
    checkpoint.verify(folder)
    table = checkpoint.read_json(path)
    if table.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: export format {table.get('format')!r}, and this version reads format {FORMAT}: export the "
            "checkpoint again with `evilm export`"
        )
    try:
        export = config.check(ExportDescription, table, str(path))
    except ConfigError as error:
        raise CheckpointError(f"{error}; export the checkpoint anew") from None
    for name in (*GRAPHS, *export.metadata.heads):
        file = folder / f"{name}.onnx"
        if file.name not in names:
            raise CheckpointError(f"{file}: missing from the export; export the checkpoint anew")
        onnx_scan.check(file)
    return export


def write(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make ``folder`` an export: ``fill`` a temporary one, seal it, move it into place; an export before it gives way.

    Raises:
        OutputError: it holds something else, or the disk is full; what was there is still there.
    """
    files.check_output_dir(folder, KIND)
    old = folder.with_name(folder.name + checkpoint.OLD)

    def marked(temporary: Path) -> None:
        fill(temporary)
        (temporary / files.MARK).write_text(KIND + "\n")

    try:
        checkpoint.write(folder, marked, what="export", remedy="nothing half-written is left: free space, export again")
    except BaseException:
        if old.is_dir() and not folder.exists():  # it had been moved away already
            os.replace(old, folder)
        raise
