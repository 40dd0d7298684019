"""An exported model run by ONNX Runtime or OpenVINO, without torch."""

from __future__ import annotations

import importlib
import os
import threading
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from evilm.data.vocabulary import Vocabulary
from evilm.errors import CheckpointError, DependencyError
from evilm.inference import export_format
from evilm.inference.runtime import EncodedArrays

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.inference.runtime import Head


class _Graph(Protocol):
    """An opened graph: named arrays to arrays."""

    def __call__(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]: ...


class OnnxRuntime:
    """An exported model. Each graph is opened at its first use.

    Args:
        folder: written by ``evilm export``.
        threads: of the runtime; None takes one for each core.

    Raises:
        CheckpointError: damaged or refused, see ``export_format.read``.
        DependencyError: the export is for OpenVINO, which is not installed.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.folder = folder
        self.export = export_format.read(folder)
        self.metadata = self.export.metadata
        self.vocabulary = Vocabulary.load(folder / "vocabulary.json")
        self.fingerprint = export_format.fingerprint(folder, self.metadata)
        self.threads = threads or len(os.sched_getaffinity(0))
        kinds = sorted({self.export.precision.get(name, "fp32") for name in export_format.GRAPHS})
        self.form = f"{self.export.runtime} {'/'.join(kinds)}"
        self._open = _openvino if self.export.runtime == "openvino" else _onnxruntime
        self._graphs: dict[str, _Graph] = {}
        self._lock = threading.Lock()  # of _graphs

    def encode_video(self, frames: NDArray[np.uint8]) -> EncodedArrays:
        """(n, T, H, W, 3) to patches (n, N, D)."""
        patches, *pooled = self._run("video", {"frames": frames})
        return EncodedArrays(patches, np.ones(patches.shape[:2], dtype=np.bool_), *pooled)

    def encode_text(self, ids: NDArray[np.int64], mask: NDArray[np.bool_]) -> EncodedArrays:
        """(n, L) each to words (n, L, D)."""
        words, *pooled = self._run("text", {"ids": ids, "mask": mask})
        return EncodedArrays(words, mask, *pooled)

    def fuse(
        self, tokens: NDArray[np.float32], mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(n, S, D) and (n, S) to h^CLS (n, D) and its attention (n, S)."""
        cls, attention = self._run("fusion", {"tokens": tokens, "mask": mask})
        return cls, attention

    def apply_head(
        self, name: Head, cls: NDArray[np.float32] | None, pooled: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """h^CLS (n, D), and the pooled features for an embedding, to (n, K)."""
        inputs = {"cls": cls, "pooled": pooled}
        return self._run(name, {key: value for key, value in inputs.items() if value is not None})[0]

    def _run(self, name: str, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        path = self.folder / f"{name}.onnx"
        with self._lock:
            if name not in self._graphs:
                self._graphs[name] = self._open(path, self.threads, self.export.precision.get(name, "fp32"))
        try:
            return self._graphs[name](feed)
        except Exception as error:
            raise CheckpointError(f"{path}: does not run: {_line(error)}; export the checkpoint again") from error


def _onnxruntime(path: Path, threads: int, _: str) -> _Graph:
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    # Threads that spin while they wait would take the cores from the decoder processes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(
            f"{path}: ONNX Runtime refuses it: {_line(error)}; export the checkpoint again"
        ) from error

    def run(feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        return session.run(None, dict(feed))

    return run


def _openvino(path: Path, threads: int, precision: str) -> _Graph:
    try:
        import openvino
    except ModuleNotFoundError:
        raise DependencyError(
            f"{path.parent}: is an export for OpenVINO, which is not installed: pip install 'evilm[openvino]'"
        ) from None
    hint = "bf16" if precision == "bf16" else "f32"
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    try:
        compiled: Any = openvino.Core().compile_model(path, "CPU", settings)
    except Exception as error:
        raise CheckpointError(f"{path}: OpenVINO refuses it: {_line(error)}; export the checkpoint again") from error

    def run(feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        values = compiled.create_infer_request().infer(dict(feed))  # a request serves one thread
        return [values[output] for output in compiled.outputs]

    return run


def _line(error: Exception) -> str:
    """The beginning of a library's error message, in one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__
