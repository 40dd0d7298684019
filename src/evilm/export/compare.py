"""Comparison of an export with its checkpoint: cosines of embeddings, metrics on validation data, time, sizes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm import config, metrics
from evilm.errors import EvilmError
from evilm.inference import Embedder
from evilm.inference.runtime import Threshold
from evilm.tasks import TASKS
from evilm.tasks.batches import caption_of
from evilm.tasks.predictions import Prediction
from evilm.tasks.retrieval import Retrieval, RetrievalConfig
from evilm.training import build, evaluate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.data.config import SourceConfig
    from evilm.inference.runtime_torch import TorchRuntime
    from evilm.tasks import Metrics, VideoTextTask
    from evilm.types import Example

# Limits of an export. `evilm export --help` states them.
MIN_MEAN_COSINE = {"fp32": 0.9999, "bf16": 0.98, "int8": 0.98}
MIN_COSINE_P1 = {"fp32": 0.999, "bf16": 0.95, "int8": 0.95}  # the 1st percentile over clips, and over texts
MAX_DROP = 1.0  # points of a metric in percent

_MAX_ROWS = 1000  # of validation data, spread evenly
_MAX_TEXTS = 256
_ROUNDS = 9  # of timing
_SENTENCES = ("a video", "someone walks", "two dogs play in the snow", "a red square moves left")


@dataclass(frozen=True)
class EvalData:
    """Validation rows with their decoded frames.

    Attributes:
        task: computes the metrics.
        examples: n rows.
        frames: (n, T, H, W, 3) uint8.
        readable: (n,) False where the video could not be decoded.
    """

    task: VideoTextTask
    examples: tuple[Example, ...]
    frames: NDArray[np.uint8]
    readable: NDArray[np.bool_]


@dataclass(frozen=True)
class Reference:
    """Results of the checkpoint, which an export is compared with.

    Attributes:
        frames: (n, T, H, W, 3) clips whose embeddings are compared.
        texts: sentences whose embeddings are compared.
        vectors: of ``video`` and ``text``: embeddings, or h^CLS where the model has no embedding head. A student that
            was distilled from videos alone has no ``text``.
        data: validation data, or None where there are none.
        metrics: the checkpoint's metrics on these data, in percent.
        scores: for each gated metric, the score of every row, 0 to 1.
        answer_threshold: the threshold on answers that these data set, for a task that answers.
    """

    frames: NDArray[np.uint8]
    texts: tuple[str, ...]
    vectors: dict[str, NDArray[np.float32]]
    data: EvalData | None
    metrics: dict[str, float]
    scores: dict[str, NDArray[np.float64]]
    answer_threshold: Threshold | None


def load_eval_data(runtime: TorchRuntime) -> EvalData:
    """The validation split of a checkpoint's own recipe, at most 1,000 rows.

    Raises:
        EvilmError: the recipe has none, or its files are missing.
    """
    if reason := why_not_measurable(runtime):
        raise EvilmError(reason)
    source = _source(runtime)
    assert source is not None
    examples = build.examples_of(source)
    if len(examples) > _MAX_ROWS:
        examples = [examples[i * len(examples) // _MAX_ROWS] for i in range(_MAX_ROWS)]
    settings: Any = runtime.recipe.task
    kind = TASKS[settings.name]
    if not kind.measures_exports:
        kind = Retrieval
        settings = RetrievalConfig(max_text_len=settings.max_text_len)
    if kind.uses_relevance:
        update = {"protocol": "dual-encoder", "embed_dim": runtime.metadata.embed_dim}
        settings = settings.model_copy(update=update)
    facts = {"answers": runtime.metadata.answers, "classes": runtime.metadata.classes}
    constructor: Any = kind
    task: VideoTextTask = constructor(runtime.model, runtime.vocabulary, settings, facts).eval()
    truth = (source.annotations if source.annotations.is_dir() else source.annotations.parent) / "world.jsonl"
    if task.uses_relevance and truth.is_file():
        task.relevance = evaluate.by_truth(truth)
    loader = build.make_loader(runtime.recipe, task, examples, train=False)
    try:
        batches = list(loader)
    finally:
        loader.close()
    return EvalData(
        task,
        tuple(example for batch in batches for example in batch.examples),
        np.concatenate([batch.frames.permute(0, 1, 3, 4, 2).numpy() for batch in batches]),
        np.concatenate([batch.readable.numpy() for batch in batches]),
    )


def why_not_measurable(runtime: TorchRuntime) -> str:
    """Why a checkpoint has no metric to compare, whatever data are here; empty where it has one."""
    kind = TASKS[runtime.recipe.task.name]
    if not kind.measures_exports and not {"embed_video", "embed_text"} <= {*runtime.metadata.heads}:
        return f"a {kind.name} model that does not embed both videos and texts has no retrieval metric"
    return "" if _source(runtime) is not None else "the checkpoint's recipe names no validation data"


def _source(runtime: TorchRuntime) -> SourceConfig | None:
    data = runtime.recipe.data
    # Data sets of action classes, for probes of a frozen model, have no validation split.
    return data.validation or (data.test if TASKS[runtime.recipe.task.name].frozen_model else None)


def reference(
    runtime: TorchRuntime, frames: NDArray[np.uint8], texts: Sequence[str], data: EvalData | None
) -> Reference:
    """Compute the checkpoint's own results.

    Args:
        runtime: the checkpoint.
        frames: (n, T, H, W, 3) clips for the cosines.
        texts: for the cosines; where there are none, those of the validation data or four plain sentences.
        data: validation data, where there are any.
    """
    embedder = Embedder(runtime)
    if not texts and data is not None:
        texts = [text for row in data.examples if (text := row.question or caption_of(row, None))]
    texts = tuple(dict.fromkeys(texts))[:_MAX_TEXTS] or _SENTENCES
    vectors = _vectors(embedder, frames, texts)
    if data is None:
        return Reference(frames, texts, vectors, None, {}, {}, None)
    result, scores = evaluate_rows(embedder, data)
    threshold = result.details.get("cannot_tell")
    if threshold is not None:
        threshold = config.check(Threshold, threshold, "the validation split")
    return Reference(frames, texts, vectors, data, result.metrics, scores, threshold)


def _vectors(embedder: Embedder, frames: NDArray[np.uint8], texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    heads = embedder.metadata.heads
    if "embed_video" not in heads:
        return {"video": embedder.cls_of_frames(frames), "text": embedder.cls_of_texts(texts)}
    video = {"video": embedder.embed_frames(frames)}
    return video | {"text": embedder.embed_texts(texts)} if "embed_text" in heads else video


def evaluate_rows(embedder: Embedder, data: EvalData) -> tuple[Metrics, dict[str, NDArray[np.float64]]]:
    """The task's metrics of a model, and for each gated metric the score (n,) of every row.

    Gated are R@1, R@5 and R@10 in both directions for retrieval, else the task's primary metric.
    """
    values = data.task.predict_export(embedder, data.examples, data.frames)
    readable = [bool(ok) for ok in data.readable]
    predictions = [Prediction(*row) for row in zip(data.examples, readable, values, strict=True)]
    result = data.task.compute_metrics(predictions)
    if not data.task.uses_relevance:
        return result, {data.task.primary_metric: np.array([row["score"] for row in result.rows])}
    cosines = np.stack([row["text"] for row in values]) @ np.stack([row["video"] for row in values]).T
    cosines[:, ~data.readable] = -np.inf
    relevant = data.task.relevance(predictions)
    relevant = relevant & data.readable
    scores = {f"R@{k}": metrics.hits(cosines, relevant, k) for k in (1, 5, 10)}
    return result, scores | {f"v2t_R@{k}": metrics.hits(cosines.T, relevant.T, k) for k in (1, 5, 10)}


def compare(export: Embedder, against: Reference, precision: str) -> tuple[dict[str, Any], list[str]]:
    """Measure an export against its checkpoint.

    A metric counts as fallen when the 95 % interval of its paired differences, row by row, lies below ``-MAX_DROP``.

    Args:
        export: the export.
        against: results of the checkpoint.
        precision: ``fp32``, ``bf16`` or ``int8``: which limits apply.

    Returns:
        the report (``ExportDescription.measured``), and one line for each limit that is broken. A line begins with the
        graph that probably causes it.
    """
    faults = list[str]()
    report: dict[str, Any] = {"cosine": {}}
    vectors = _vectors(export, against.frames, against.texts)
    for name, wanted in against.vectors.items():
        a, b = vectors[name].astype(np.float64), wanted.astype(np.float64)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines = (a * b).sum(1) / np.maximum(1e-12, norms)
        mean, low = float(cosines.mean()), float(np.percentile(cosines, 1))
        report["cosine"][name] = {"mean": mean, "percentile_1": low, "samples": len(cosines)}
        if not mean >= MIN_MEAN_COSINE[precision]:
            limit = MIN_MEAN_COSINE[precision]
            faults.append(f"{name}: the mean cosine with the checkpoint is {mean:.4f}, below {limit}")
        elif not low >= MIN_COSINE_P1[precision]:
            limit = MIN_COSINE_P1[precision]
            faults.append(f"{name}: the 1st percentile of cosines with the checkpoint is {low:.4f}, below {limit}")
    if against.data is not None:
        result, scores = evaluate_rows(export, against.data)
        differences: dict[str, Any] = {}
        for name, wanted in against.scores.items():
            change = 100 * (scores[name] - wanted)[against.data.readable]
            low, high = metrics.interval(change)
            differences[name] = {"mean": float(change.mean()) if len(change) else 0.0, "interval": [low, high]}
            if high < -MAX_DROP:
                faults.append(
                    f"fusion: {name} falls from {against.metrics[name]:.1f} to {result.metrics[name]:.1f}, and the "
                    f"95 % interval of the change, {low:.1f} to {high:.1f}, lies below -{MAX_DROP:g} point"
                )
        report["metrics"] = {
            "checkpoint": against.metrics,
            "export": result.metrics,
            "differences": differences,
            "rule": f"the recipe's validation split, {len(against.data.examples)} rows",
        }
    return report, faults


def timed_calls(embedder: Embedder, clip: NDArray[np.uint8], text: str) -> dict[str, Callable[[], object]]:
    """Calls to be timed: ``video`` for one clip (T, H, W, 3), and ``text`` for one text if the model reads texts alone.

    A video is encoded and fused alone or, where the model has no embeddings, with the text.
    """
    heads = embedder.metadata.heads
    if "embed_video" not in heads:
        texts = embedder.encode_texts([text])

        def fuse() -> object:
            tokens = embedder.encode_frames(clip[None])
            return embedder.runtime.fuse(
                np.concatenate([texts.tokens, tokens.tokens], 1), np.concatenate([texts.mask, tokens.mask], 1)
            )

        return {"video": fuse, "text": lambda: embedder.cls_of_texts([text])}
    calls: dict[str, Callable[[], object]] = {"video": lambda: embedder.embed_frames(clip[None])}
    return calls | {"text": lambda: embedder.embed_texts([text])} if "embed_text" in heads else calls


def latency(checkpoint: Embedder, export: Embedder, clip: NDArray[np.uint8], text: str) -> dict[str, Any]:
    """Median milliseconds of ``timed_calls`` in torch (eager, fp32) and as exported, which take turns."""
    forms = {"torch": timed_calls(checkpoint, clip, text), "export": timed_calls(export, clip, text)}
    calls = {f"{form} {what}": call for form, each in forms.items() for what, call in each.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(_ROUNDS + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    medians = {name: 1000 * float(np.median(values)) for name, values in seconds.items()}
    ratios = {what: medians[f"torch {what}"] / medians[f"export {what}"] for what in forms["torch"]}
    return {"milliseconds": medians, "times faster": ratios}


def sizes(folder: Path) -> dict[str, float]:
    """Megabytes (10^6 bytes) of each graph, and of the whole folder as ``all``."""
    files = {path.name: path.stat().st_size / 1e6 for path in sorted(folder.iterdir()) if path.is_file()}
    graphs = {name.removesuffix(".onnx"): value for name, value in files.items() if name.endswith(".onnx")}
    return {**graphs, "all": sum(files.values())}
