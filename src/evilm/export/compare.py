"""What an export costs: how near its embeddings are, what its answers lose, how large it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm import config
from evilm.errors import EvilmError
from evilm.inference import Embedder, softmax
from evilm.inference.runtime import Threshold
from evilm.tasks import FINETUNE
from evilm.tasks.distill import DistillConfig
from evilm.tasks.pretrain import PretrainConfig
from evilm.tasks.retrieval import Retrieval, RetrievalConfig
from evilm.tasks.task import Prediction, caption_of
from evilm.training import evaluate, feed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.data.config import SourceConfig
    from evilm.inference.runtime_torch import TorchRuntime
    from evilm.tasks import Metrics, VideoTextTask
    from evilm.types import Example

COSINE = {"fp32": 0.9999, "bf16": 0.98, "int8": 0.98}  # least mean cosine of embeddings with the checkpoint's
POINTS = 1.0  # most that a metric may lose, in points of a percentage
_ROWS = 1000  # of the evaluation data, spread evenly


@dataclass(frozen=True)
class Rows:
    """Evaluation data, decoded once.

    Attributes:
        task: what summarises predictions on it, and names the metric that counts.
        examples, frames, readable: rows of the validation split, (n, T, H, W, 3) uint8, (n,) bool.
    """

    task: VideoTextTask
    examples: tuple[Example, ...]
    frames: NDArray[np.uint8]
    readable: NDArray[np.bool_]


@dataclass(frozen=True)
class Standard:
    """What the checkpoint itself does: an export is measured against it.

    Attributes:
        frames: (n, T, H, W, 3) clips whose embeddings are compared.
        texts: sentences, the same.
        states: what the checkpoint makes of ``video`` and ``text``: embeddings, or h^CLS where it embeds nothing;
            a student of videos alone has no ``text``.
        rows: evaluation data, or None where there is none.
        metrics: of the checkpoint on these, in percent.
        cannot_tell: the threshold on answers that these set, for a task that answers.
    """

    frames: NDArray[np.uint8]
    texts: tuple[str, ...]
    states: dict[str, NDArray[np.float32]]
    rows: Rows | None
    metrics: dict[str, float]
    cannot_tell: Threshold | None


def rows_of(engine: TorchRuntime) -> Rows:
    """The validation split of a checkpoint's own recipe.

    Raises:
        EvilmError: it has none, or its data are not here.
    """
    if reason := immeasurable(engine):
        raise EvilmError(reason)
    recipe, source = engine.recipe, _source(engine)
    assert source is not None
    examples = feed.examples(source)
    examples = [examples[i * len(examples) // _ROWS] for i in range(_ROWS)] if len(examples) > _ROWS else examples
    task = _task(engine)
    truth = (source.annotations if source.annotations.is_dir() else source.annotations.parent) / "world.jsonl"
    if isinstance(task, Retrieval) and truth.is_file():
        task.relevance = evaluate.by_truth(truth)
    loader = feed.loader(recipe, task, examples, train=False)
    try:
        batches = list(loader)
    finally:
        loader.close()
    return Rows(
        task,
        tuple(example for batch in batches for example in batch.examples),
        np.concatenate([batch.frames.permute(0, 1, 3, 4, 2).numpy() for batch in batches]),
        np.concatenate([batch.readable.numpy() for batch in batches]),
    )


def immeasurable(engine: TorchRuntime) -> str:
    """Why no metric can be taken of a checkpoint, whatever data are here; empty where one can."""
    settings, heads = engine.recipe.task, engine.metadata.heads
    if isinstance(settings, PretrainConfig) and "embed_video" not in heads:
        return "a model pre-trained without the contrastive objective has nothing to be measured by"
    if isinstance(settings, DistillConfig) and "embed_text" not in heads:
        return "a student of videos alone reads no captions to be measured by"
    return "" if _source(engine) is not None else "the checkpoint's recipe names no validation data"


def _source(engine: TorchRuntime) -> SourceConfig | None:
    data = engine.recipe.data
    return data.validation or (data.test if engine.metadata.task == "linear_probe" else None)


def _task(engine: TorchRuntime) -> VideoTextTask:
    """The task that summarises: the checkpoint's own, or retrieval for what was trained otherwise and embeds."""
    settings = engine.recipe.task
    if isinstance(settings, PretrainConfig | DistillConfig):
        settings = RetrievalConfig(max_text_len=settings.max_text_len)
    if isinstance(settings, RetrievalConfig):
        settings = settings.model_copy(update={"protocol": "dual-encoder", "embedding": engine.metadata.embed_dim})
    facts = {"answers": engine.metadata.answers, "classes": engine.metadata.classes}
    task = FINETUNE[settings.name](engine.model, engine.vocabulary, settings, facts)  # pyright: ignore[reportArgumentType]
    return task.eval()


def standard(engine: TorchRuntime, frames: NDArray[np.uint8], rows: Rows | None) -> Standard:
    """Measure the checkpoint itself.

    Args:
        engine: it.
        frames: (n, T, H, W, 3) clips for the cosine.
        rows: evaluation data, where there are any.
    """
    embedder = Embedder(engine)
    texts = tuple(_texts(rows)) or ("a video", "someone walks", "two dogs play in the snow", "a red square moves left")
    found = None if rows is None else measured(embedder, rows)
    told = None if found is None else found.details.get("cannot_tell")
    withheld = None if told is None else config.check(Threshold, told, "the validation split")
    seen = {} if found is None else found.metrics
    return Standard(frames, texts, _states(embedder, frames, texts), rows, seen, withheld)


def _texts(rows: Rows | None) -> list[str]:
    if rows is None:
        return []
    texts = [example.question or caption_of(example, None) for example in rows.examples[:64]]
    return [text for text in dict.fromkeys(texts) if text]


def _states(embedder: Embedder, frames: NDArray[np.uint8], texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Embeddings of clips and of texts, or the h^CLS that other heads stand on."""
    heads = embedder.metadata.heads
    if "embed_video" not in heads:
        return {"video": embedder.cls_of_frames(frames), "text": embedder.cls_of_texts(texts)}
    video = {"video": embedder.embed_frames(frames)}
    return video | {"text": embedder.embed_texts(texts)} if "embed_text" in heads else video


def measured(embedder: Embedder, rows: Rows) -> Metrics:
    """What a model amounts to on evaluation data, by the rules of its task."""
    return rows.task.compute_metrics(_predictions(embedder, rows))


def _predictions(embedder: Embedder, rows: Rows) -> list[Prediction]:
    name = rows.task.name
    values: list[dict[str, Any]]
    if name == "retrieval":
        video = embedder.embed_frames(rows.frames)
        text = embedder.embed_texts([caption_of(example, None) for example in rows.examples])
        values = [{"video": v, "text": t} for v, t in zip(video, text, strict=True)]
    elif name == "question_answering":
        questions = embedder.encode_texts([example.question or "" for example in rows.examples])
        logits, _ = embedder.score_fused("answer", embedder.encode_frames(rows.frames), questions)
        shares = [softmax(row) for row in logits]
        answers = embedder.metadata.answers
        values = [{"answer": answers[int(p.argmax())], "probability": float(p.max())} for p in shares]
    elif name == "multiple_choice":
        videos = embedder.encode_frames(rows.frames)
        values = [
            {"probabilities": softmax(embedder.score_choices(videos[i : i + 1], row.choices, row.question)[0])}
            for i, row in enumerate(rows.examples)
        ]
    else:
        values = [{"logits": row} for row in embedder.score_classes(rows.frames)]
    readable = [bool(ok) for ok in rows.readable]
    return [Prediction(*row) for row in zip(rows.examples, readable, values, strict=True)]


def compare(export: Embedder, against: Standard, precision: str) -> tuple[dict[str, Any], list[str]]:
    """What an export costs, and in what it falls below the limits.

    Args:
        export: to be judged.
        against: the checkpoint.
        precision: ``fp32``, ``bf16`` or ``int8``: which limits.

    Returns:
        the report (see ``Export.measured``), and one line for each limit that is not kept; each begins with the graph
        that is to blame.
    """
    least, faults = COSINE[precision], list[str]()
    report: dict[str, Any] = {"cosine": {}}
    states = _states(export, against.frames, against.texts)
    for name, theirs in against.states.items():
        cosines = _cosines(states[name], theirs)
        report["cosine"][name] = {"mean": float(cosines.mean()), "least": float(cosines.min()), "samples": len(cosines)}
        if not cosines.mean() >= least:
            faults.append(f"{name}: its mean cosine with the checkpoint is {cosines.mean():.4f}, below {least}")
    if against.rows is not None:
        found = measured(export, against.rows).metrics
        report["metrics"] = {"checkpoint": against.metrics, "export": found, "rule": "the recipe's validation split"}
        counted = ("R@10",) if against.rows.task.name == "retrieval" else (against.rows.task.primary_metric,)
        faults += [
            f"fusion: {name} falls from {against.metrics[name]:.1f} to {found[name]:.1f}, by more than {POINTS:g} point"
            for name in counted
            if not found[name] >= against.metrics[name] - POINTS
        ]
    return report, faults


def _cosines(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float64]:
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    return (a * b).sum(1) / np.maximum(1e-12, np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def size(folder: Path) -> dict[str, float]:
    """Megabytes (10^6) of each graph, and of the whole folder."""
    files = {path.name: path.stat().st_size / 1e6 for path in sorted(folder.iterdir()) if path.is_file()}
    graphs = {name.removesuffix(".onnx"): value for name, value in files.items() if name.endswith(".onnx")}
    return {**graphs, "all": sum(files.values())}
