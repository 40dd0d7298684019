"""``evilm export``: write a checkpoint as a folder of ONNX graphs that needs no torch.

The graphs are traced, quantized where that is asked for, and compared with the checkpoint (see ``compare``). While a
limit is broken, a graph gets more precision: some layers in fp32, then all convolutions, then the whole graph.
"""

from __future__ import annotations

import contextlib
import errno
import platform
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from evilm import __version__, files
from evilm.data import sampling
from evilm.data.video import DecoderPool
from evilm.errors import ConfigError, DataError, EvilmError, ExportError, OutputError, VideoError
from evilm.export import card, compare, quantize, trace
from evilm.inference import Embedder, export_format, join_question
from evilm.inference.runtime_onnx import OnnxRuntime
from evilm.inference.runtime_torch import TorchRuntime
from evilm.tasks.batches import caption_of
from evilm.training import build, checkpoint
from evilm.types import Clip

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from numpy.typing import NDArray

    from evilm.export.quantize import Feed, Precision
    from evilm.inference.runtime import Metadata

_MAX_CLIPS = 128  # every second one calibrates int8, the others compare the export with the checkpoint
_MAX_TEXTS = 512  # alike
_RANDOM_TEXTS = 64  # calibrate where there are no texts
_LADDER: dict[str, tuple[Precision, ...]] = {  # from the smallest to the most exact
    "video": ("int8", "int8/fp32", "int8 matrices", "fp32"),
    "text": ("int8", "int8/fp32", "fp32"),
    "fusion": ("int8", "int8/fp32", "fp32"),
}
_COSINE_HEADS = ("embed_video", "embed_text")  # one matrix each, directly before the cosines
_DISK_FACTOR = 5  # the drafts' size over that of the weights: fp32 graphs, two drafts, the quantizer's own files


@dataclass
class PrecisionPlan:
    """The precision of each graph, and the steps back that led to it.

    Attributes:
        steps: index of each graph's precision in ``_LADDER``.
        given_up: one line for each step back.
        fp32_layers: number of layers of each graph that stay in fp32.
    """

    steps: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_LADDER, 0))
    given_up: list[str] = field(default_factory=lambda: [])
    fp32_layers: dict[str, int] = field(default_factory=lambda: {})

    def precision(self, graph: str) -> Precision:
        return _LADDER[graph][self.steps[graph]]

    def step_back(self, fault: str) -> bool:
        """Raise the precision of the graph that ``fault`` begins with, else of another; False if all are fp32."""
        cause = fault.partition(":")[0]
        for graph in (cause, *(graph for graph in ("fusion", "video", "text") if graph != cause)):
            if self.steps[graph] + 1 < len(_LADDER[graph]):
                before = self.precision(graph)
                self.steps[graph] += 1
                self.given_up.append(f"{fault}; {graph} is changed from {before} to {self.precision(graph)}")
                return True
        return False


@dataclass(frozen=True)
class Samples:
    """Data that an export is calibrated on and compared on.

    Attributes:
        data: validation rows, or None where there are none.
        frames: (n, T, H, W, 3) uint8 clips of the training videos, or of those named by ``--calibrate``.
        texts: captions or questions of the training rows; may be empty.
        not_measured: what cannot be compared, and why; empty if all can.
    """

    data: compare.EvalData | None
    frames: NDArray[np.uint8]
    texts: list[str]
    not_measured: str


def export(
    source: Path, out: Path, *, int8: bool = False, openvino: bool = False, calibrate: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> export_format.ExportDescription:  # fmt: skip
    """Write a checkpoint as a folder that needs no torch.

    Args:
        source: a run or a checkpoint.
        out: the folder to write: new, empty, or an export, which is replaced.
        int8: quantize the graphs.
        openvino: write for OpenVINO, in bf16.
        calibrate: a video or a folder of videos that int8 is calibrated on and embeddings are compared on; None takes
            the recipe's training videos.
        say: called with each line of progress.

    Raises:
        OutputError: ``out`` holds something else, or the disk is full.
        CheckpointError, ConfigError, DataError, DependencyError: wrong input; found before any work.
        ExportError: a limit of ``compare`` is broken even in fp32; nothing is written.
    """
    if int8 and openvino:
        raise ConfigError("--int8 and --openvino cannot be combined: OpenVINO runs in bf16")
    files.check_output_dir(out, export_format.KIND)
    runtime = TorchRuntime(source)
    precision = "int8" if int8 else "bf16" if openvino else "fp32"
    with _draft_folders((runtime.folder / "model.safetensors").stat().st_size) as (plain, draft):
        samples = _load_samples(runtime, calibrate, say)
        against = compare.reference(runtime, samples.frames[::2], samples.texts[::2], samples.data)
        say("tracing the graphs")
        trace.trace(runtime, plain)
        threshold = against.answer_threshold or runtime.metadata.answer_threshold
        metadata = runtime.metadata.model_copy(update={"answer_threshold": threshold})
        plan = PrecisionPlan() if int8 else PrecisionPlan({graph: len(steps) - 1 for graph, steps in _LADDER.items()})
        feeds: dict[str, list[Feed]] = {}
        if int8:
            frames = samples.frames[1::2] if len(samples.frames) > 1 else samples.frames
            feeds = quantize.calibration_feeds(plain, frames, _token_ids(runtime, samples.texts[1::2]))
        while True:
            _write_draft(plain, draft, plan, runtime, metadata, precision, feeds)
            loaded = OnnxRuntime(draft, torch.get_num_threads())  # as many threads as torch, for the comparison of time
            candidate = Embedder(loaded)
            report, faults = compare.compare(candidate, against, precision)
            if not faults:
                break
            if not int8 or not plan.step_back(faults[0]):
                raise ExportError(f"{source}: not exported: {'; '.join(faults)}")
            say(plan.given_up[-1])
        report["size in MB"] = compare.sizes(draft)
        say("measuring the time for a clip and a text")
        timing = compare.latency(Embedder(runtime), candidate, samples.frames[0], against.texts[0])
        report["latency"] = timing | {"threads": torch.get_num_threads()}
        report["given up"] = plan.given_up
        report["layers in fp32"] = plan.fp32_layers
        if samples.not_measured:
            report["not measured"] = samples.not_measured
        report["machine"] = {"processor": platform.processor() or platform.machine(), "evilm": __version__}
        exported = loaded.export.model_copy(update={"measured": report})
        export_format.write(out, lambda temporary: _fill(temporary, draft, exported))
    return exported


@contextlib.contextmanager
def _draft_folders(weights: int) -> Generator[tuple[Path, Path]]:
    """A folder for fp32 graphs and a path for the draft export, both deleted at the end.

    Free space is checked first, because the quantizer does not notice a full disk.

    Args:
        weights: bytes of the checkpoint's weights.

    Raises:
        OutputError: too little space, or the disk is full.
    """
    place, remedy = tempfile.gettempdir(), "free space, or name another folder in TMPDIR"
    needed, free = _DISK_FACTOR * weights, shutil.disk_usage(place).free
    if free < needed:
        sizes = f"has {free / 1e6:.1f} MB free and the drafts of this export take {needed / 1e6:.1f}"
        raise OutputError(f"{place}: {sizes}; {remedy}")
    try:
        with tempfile.TemporaryDirectory(prefix="evilm-export-") as name:
            plain, draft = Path(name) / "fp32", Path(name) / "draft"
            plain.mkdir()
            yield plain, draft
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutputError(f"{place}: cannot hold the drafts of this export: {error.strerror}; {remedy}") from error


def _load_samples(runtime: TorchRuntime, calibrate: Path | None, say: Callable[[str], None]) -> Samples:
    """Validation rows, clips and texts.

    Raises:
        DataError: no video can be read.
    """
    data, not_measured = None, ""
    try:
        data = compare.load_eval_data(runtime)
    except EvilmError as error:
        say(f"metrics are not measured: {error}")
        # The card is published, so it omits the paths that an error may name.
        not_measured = "metrics: " + (compare.why_not_measurable(runtime) or "the validation data are not on the disk")
    problem, clips, texts = "", list[Clip](), list[str]()
    try:
        rows = build.examples_of(runtime.recipe.data.train)
        clips = list(dict.fromkeys(row.clip for row in rows))
        chosen = [rows[i * len(rows) // _MAX_TEXTS] for i in range(_MAX_TEXTS)] if len(rows) > _MAX_TEXTS else rows
        named = [join_question(row.question, row.choices[0]) if row.choices else row.question for row in chosen]
        texts = [text for i, row in enumerate(chosen) if (text := named[i] or caption_of(row, None))]
    except EvilmError as error:
        problem = str(error)
    if calibrate is not None:
        paths = [calibrate] if calibrate.is_file() else sorted(calibrate.rglob("*"))
        clips = [Clip(path) for path in paths if path == calibrate or path.suffix.lower() in files.VIDEO_SUFFIXES]
    elif problem:
        if data is not None and data.readable.any():
            return Samples(data, data.frames[data.readable][:_MAX_CLIPS], texts, not_measured)
        raise DataError(f"no videos to measure the export on ({problem}): name some with --calibrate")
    metadata = runtime.metadata
    frames: list[NDArray[np.uint8]] = []
    if len(clips) > _MAX_CLIPS:
        clips = [clips[i * len(clips) // _MAX_CLIPS] for i in range(_MAX_CLIPS)]
    with DecoderPool() as decoders:
        for clip in clips:
            with contextlib.suppress(VideoError):
                frames.append(decoders.read(clip, metadata.num_frames, metadata.image_size, fit=metadata.resize_mode))
    if not frames:
        where = calibrate or runtime.recipe.data.train.annotations
        raise DataError(f"{where}: none of its {len(clips)} videos can be read: name others with --calibrate")
    return Samples(data, np.stack(frames), texts, not_measured)


def _token_ids(runtime: TorchRuntime, texts: Sequence[str]) -> list[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Token ids (1, L) and mask (1, L) of each text without padding; random word pieces if there are no texts."""
    vocabulary, longest = runtime.vocabulary, runtime.metadata.max_text_len
    if texts:
        ids, mask = vocabulary.encode_arrays(texts, longest)
        rows = [row[seen] for row, seen in zip(ids, mask, strict=True)]
    else:
        random = sampling.generator(0, "calibration")
        lengths = random.integers(1, longest - 1, _RANDOM_TEXTS)
        rows: list[NDArray[np.int64]] = []
        for length in lengths:
            words: NDArray[np.int64] = random.integers(len(vocabulary.special_ids), vocabulary.size, int(length))
            rows.append(np.concatenate([[vocabulary.cls_id], words, [vocabulary.sep_id]]))
    return [(row[None], np.ones((1, len(row)), dtype=np.bool_)) for row in rows]


def _write_draft(
    plain: Path, draft: Path, plan: PrecisionPlan, runtime: TorchRuntime, metadata: Metadata, precision: str,
    feeds: dict[str, list[Feed]],
) -> None:  # fmt: skip
    """Write a whole export by a plan, to be compared."""

    def fill(to: Path) -> None:
        kinds: dict[str, str] = {}
        for name in (*export_format.GRAPHS, *metadata.heads):
            kind: Precision = "fp32"
            if name in export_format.GRAPHS:
                kind = plan.precision(name)
            elif precision == "int8" and plan.precision("fusion") != "fp32":
                kind = "int8 weights" if name in _COSINE_HEADS else "int8"
            layers = quantize.quantize(plain / f"{name}.onnx", to / f"{name}.onnx", kind, feeds.get(name, []))
            plan.fp32_layers[name] = len(layers)
            kinds[name] = "bf16" if precision == "bf16" and name in export_format.GRAPHS else kind
        runtime.vocabulary.save(to / "vocabulary.json")
        engine: export_format.RuntimeName = "openvino" if precision == "bf16" else "onnxruntime"
        description = export_format.ExportDescription(metadata=metadata, runtime=engine, precision=kinds)
        checkpoint.write_json(to / export_format.NAME, description.model_dump(mode="json"))

    export_format.write(draft, fill)


def _fill(temporary: Path, draft: Path, exported: export_format.ExportDescription) -> None:
    """Copy the files of the accepted draft, and add the measured description and the model card."""
    for path in (*draft.glob("*.onnx"), draft / "vocabulary.json"):
        (temporary / path.name).write_bytes(path.read_bytes())
    checkpoint.write_json(temporary / export_format.NAME, exported.model_dump(mode="json"))
    (temporary / checkpoint.CARD).write_text(card.render(exported.metadata, exported), encoding="utf-8")
