"""``evilm export``: a checkpoint to a folder that needs no torch, kept once it is known what that cost.

The graphs are traced, made smaller where that is asked for, and compared with the checkpoint: by the cosine of their
embeddings, by the task's metric on its validation data, by time and by size. What loses too much is taken back, graph
by graph: some layers first, then all convolutions, then the whole graph.
"""

from __future__ import annotations

import contextlib
import errno
import platform
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evilm import __version__, files
from evilm.data import sampling
from evilm.data.video import DecoderPool
from evilm.errors import ConfigError, DataError, EvilmError, ExportError, OutputError, VideoError
from evilm.export import card, compare, latency, quantize, trace
from evilm.inference import Embedder, export_format
from evilm.inference.runtime_onnx import OnnxRuntime
from evilm.inference.runtime_torch import TorchRuntime
from evilm.training import checkpoint, feed
from evilm.types import Clip

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from numpy.typing import NDArray

    from evilm.export.quantize import Feed, Kind
    from evilm.inference.runtime import Metadata

VIDEOS = frozenset(".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .flv .wmv .ogv .gif".split())
_CLIPS = 64  # clips that embeddings are compared on, and that convolutions are calibrated on
_LADDER: dict[str, tuple[Kind, ...]] = {
    "video": ("int8", "int8 but some layers", "int8 matrices", "fp32"),
    "text": ("int8", "fp32"),
    "fusion": ("int8", "fp32"),
}
_ROOM = 5  # times the weights that drafts take: plain graphs, two drafts, and what the quantizer writes in between
_ELSEWHERE = "free space, or name another folder in TMPDIR"
_SMALL_HEADS = ("embed_video", "embed_text")  # one small matrix each, and the last before cosines: never in int8


@dataclass
class Plan:
    """How precise each graph is to be, and what was given up on the way.

    Attributes:
        rungs: the place of each graph on its ladder.
        said: one line for each step back.
        spared: convolutions of a graph that stay in fp32.
    """

    rungs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_LADDER, 0))
    said: list[str] = field(default_factory=lambda: [])
    spared: dict[str, int] = field(default_factory=lambda: {})

    def kind(self, graph: str) -> Kind:
        return _LADDER[graph][self.rungs[graph]]

    def step_back(self, fault: str) -> bool:
        """Take back some precision for a fault that begins with its graph; False where there is none left to take."""
        guilty = fault.partition(":")[0]
        order = [guilty, *(graph for graph in ("fusion", "video", "text") if graph != guilty)]
        for graph in order:
            if self.rungs[graph] + 1 < len(_LADDER[graph]):
                before = self.kind(graph)
                self.rungs[graph] += 1
                self.said.append(f"{fault}; {graph}: {before} gave way to {self.kind(graph)}")
                return True
        return False


def export(
    source: Path, out: Path, *, int8: bool = False, openvino: bool = False, calibrate: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> export_format.ExportDescription:  # fmt: skip
    """Write a checkpoint as a folder that needs no torch.

    Args:
        source: a run or a checkpoint.
        out: the folder to write: new, empty, or an export that then gives way.
        int8: make it small and fast.
        openvino: for OpenVINO, in bf16.
        calibrate: videos (a folder or a file) whose values int8 is fitted to, and on which embeddings are compared;
            None takes the recipe's training videos.
        say: told of what happens, a line at a time.

    Raises:
        OutputError: ``out`` holds something else, or the disk is full.
        CheckpointError, ConfigError, DataError, DependencyError: whatever does not fit, before any work.
        ExportError: the export would lose too much even so; nothing is kept.
    """
    if int8 and openvino:
        raise ConfigError("--int8 and --openvino do not go together: OpenVINO runs in bf16, and loses less")
    files.check_output_dir(out, export_format.KIND)
    engine = TorchRuntime(source)
    _check_room(engine)
    rows, frames, unmeasured = _evidence(engine, calibrate, say)
    against = compare.standard(engine, frames, rows)
    precision = "int8" if int8 else "bf16" if openvino else "fp32"
    with _drafts() as (plain, draft):
        say("tracing the graphs")
        trace.trace(engine, plain)
        about = engine.metadata.model_copy(
            update={"answer_threshold": against.cannot_tell or engine.metadata.answer_threshold}
        )
        plan = Plan() if int8 else Plan({graph: len(kinds) - 1 for graph, kinds in _LADDER.items()})
        while True:
            _draft(plain, draft, plan, engine, about, precision, frames)
            runnable = OnnxRuntime(draft, torch.get_num_threads())  # as many as torch, which it is compared with
            candidate = Embedder(runnable)
            report, faults = compare.compare(candidate, against, precision)
            if not faults:
                break
            if not int8 or not plan.step_back(faults[0]):
                raise ExportError(f"{source}: not exported: {'; '.join(faults)}")
            say(plan.said[-1])
        report["size in MB"] = compare.size(draft)
        say("measuring how long it takes")
        report["latency"] = latency.latency(engine, candidate, frames[0], against.texts[0])
        report["given up"] = plan.said
        report["kept in fp32"] = plan.spared
        if unmeasured:
            report["not measured"] = unmeasured
        report["machine"] = {"processor": platform.processor() or platform.machine(), "evilm": __version__}
        exported = runnable.export.model_copy(update={"measured": report})
        export_format.write(out, lambda temporary: _fill(temporary, draft, exported))
    return exported


def _check_room(engine: TorchRuntime) -> None:
    """Whether drafts will have room; asked beforehand, as the quantizer does not notice a full disk.

    Raises:
        OutputError: they will not.
    """
    place = tempfile.gettempdir()
    needed, free = _ROOM * (engine.folder / "model.safetensors").stat().st_size, shutil.disk_usage(place).free
    if free < needed:
        raise OutputError(
            f"{place}: has {free / 1e6:.1f} MB free and the drafts of this export take {needed / 1e6:.1f}; {_ELSEWHERE}"
        )


@contextlib.contextmanager
def _drafts() -> Generator[tuple[Path, Path]]:
    """A folder for plain graphs and a place for drafts, gone afterwards.

    Raises:
        OutputError: the disk is full all the same.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="evilm-export-") as name:
            plain, draft = Path(name) / "fp32", Path(name) / "draft"
            plain.mkdir()
            yield plain, draft
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = tempfile.gettempdir()
        raise OutputError(f"{place}: cannot keep the drafts of this export: {error.strerror}; {_ELSEWHERE}") from error


def _evidence(
    engine: TorchRuntime, calibrate: Path | None, say: Callable[[str], None]
) -> tuple[compare.Rows | None, NDArray[np.uint8], str]:
    """Evaluation data where there are any, clips for calibration and cosines, and what cannot be measured and why."""
    rows, unmeasured = None, ""
    try:
        rows = compare.rows_of(engine)
    except EvilmError as error:
        say(f"metrics are not measured: {error}")
        # The card is published, so without the paths that an error may name.
        unmeasured = "metrics: " + (compare.immeasurable(engine) or "the recipe's validation data are not here")
    if calibrate is not None:
        clips = [Clip(path) for path in _videos(calibrate)]
    else:
        try:
            clips = list(dict.fromkeys(example.clip for example in feed.examples(engine.recipe.data.train)))
        except EvilmError as error:
            if rows is not None and rows.readable.any():
                return rows, rows.frames[rows.readable][:_CLIPS], unmeasured
            raise DataError(f"no videos to measure the export on ({error}): name some with --calibrate") from None
    return rows, _frames(engine, clips, calibrate), unmeasured


def _frames(engine: TorchRuntime, clips: Sequence[Clip], calibrate: Path | None) -> NDArray[np.uint8]:
    """Up to ``_CLIPS`` clips, spread evenly, as the model takes them; unreadable ones left out."""
    about, found = engine.metadata, list[Any]()
    chosen = [clips[i * len(clips) // _CLIPS] for i in range(_CLIPS)] if len(clips) > _CLIPS else clips
    with DecoderPool() as decoders:
        for clip in chosen:
            try:
                found.append(decoders.read(clip, about.num_frames, about.image_size, fit=about.resize_mode))
            except VideoError:
                continue
    if not found:
        where = calibrate or engine.recipe.data.train.annotations
        raise DataError(f"{where}: none of its {len(clips)} videos can be read: name others with --calibrate")
    return np.stack(found)


def _videos(path: Path) -> list[Path]:
    """The videos of a folder, or the one that ``path`` is.

    Raises:
        DataError: there is none.
    """
    if path.is_file():
        return [path]
    found = sorted(each for each in path.rglob("*") if each.suffix.lower() in VIDEOS)
    if not found:
        raise DataError(f"{path}: holds no videos ({', '.join(sorted(VIDEOS))}): name others with --calibrate")
    return found


def _draft(
    plain: Path,
    draft: Path,
    plan: Plan,
    engine: TorchRuntime,
    about: Metadata,
    precision: str,
    frames: NDArray[np.uint8],
) -> None:
    """A whole export by a plan, to be judged."""

    def fill(to: Path) -> None:
        kinds: dict[str, str] = {}
        for graph in export_format.GRAPHS:
            feeds = _feeds(graph, frames)
            kind = plan.kind(graph)
            plan.spared[graph] = len(quantize.quantize(plain / f"{graph}.onnx", to / f"{graph}.onnx", kind, feeds))
            kinds[graph] = "bf16" if precision == "bf16" else kind
        for head in about.heads:
            small = precision == "int8" and head not in _SMALL_HEADS
            kinds[head] = "int8" if small else "fp32"
            quantize.quantize(plain / f"{head}.onnx", to / f"{head}.onnx", "int8" if small else "fp32", [])
        engine.vocabulary.save(to / "vocabulary.json")
        runtime: export_format.Runtime = "openvino" if precision == "bf16" else "onnxruntime"
        made = export_format.ExportDescription(metadata=about, runtime=runtime, precision=kinds)
        checkpoint.write_json(to / export_format.NAME, made.model_dump(mode="json"))

    export_format.write(draft, fill)


def _feeds(graph: str, frames: NDArray[np.uint8]) -> list[Feed]:
    """What a graph's convolutions are calibrated on; only the video graph has any."""
    if graph != "video":
        return []
    order = sampling.generator(0, "calibration").permutation(len(frames))[: _CLIPS // 2]
    return [{"frames": frames[rows]} for rows in np.array_split(order, max(1, len(order) // 4))]


def _fill(temporary: Path, draft: Path, exported: export_format.ExportDescription) -> None:
    """The files of a draft that was kept, with what it cost and its card."""
    for path in draft.glob("*.onnx"):
        (temporary / path.name).write_bytes(path.read_bytes())
    (temporary / "vocabulary.json").write_bytes((draft / "vocabulary.json").read_bytes())
    checkpoint.write_json(temporary / export_format.NAME, exported.model_dump(mode="json"))
    (temporary / checkpoint.CARD).write_text(card.text(exported), encoding="utf-8")
