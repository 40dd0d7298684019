"""The model card: what a model is, its training data, measured figures, and limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evilm.inference.export_format import ExportDescription
    from evilm.inference.runtime import Metadata


def text(export: ExportDescription) -> str:
    """The card of an export: Markdown with the header that the hub reads."""
    measured = export.measured
    kinds = ", ".join(f"{name} {kind}" for name, kind in export.precision.items())
    lines = [*_head(export.metadata), "## Export", "", f"Runs on {export.runtime}: {kinds}."]
    for name, cosine in cast("Mapping[str, Any]", measured.get("cosine", {})).items():
        lines.append(
            f"Cosine with the checkpoint, {name}: mean {cosine['mean']:.4f}, 1st percentile "
            f"{cosine['percentile_1']:.4f}, {cosine['samples']} samples."
        )
    metrics: Any = measured.get("metrics")
    if metrics:
        rows = [
            f"| {name} | {value:.1f} | {metrics['export'][name]:.1f} | {_change(metrics['differences'].get(name))} |"
            for name, value in metrics["checkpoint"].items()
        ]
        header = ["| metric | checkpoint | export | change, 95 % interval |", "|---|---|---|---|"]
        lines += ["", f"On {metrics['rule']}, in percent:", "", *header, *rows, ""]
    if "not measured" in measured:
        lines.append(f"Not measured: {measured['not measured']}.")
    lines += [f"Precision given up: {line}." for line in measured.get("given up", ())]
    faster: Any = measured.get("latency", {}).get("times faster", {})
    if faster:
        each = ", ".join(f"{what} {ratio:.1f}" for what, ratio in faster.items())
        lines.append(f"Times faster than torch (eager, fp32) on the machine of the export: {each}.")
    if "size in MB" in measured:
        lines.append(f"Size: {measured['size in MB']['all']:.1f} MB.")
    return "\n".join([*lines, "", *_limits(export.metadata)]) + "\n"


def of_checkpoint(metadata: Metadata) -> str:
    """The card of a checkpoint."""
    return "\n".join([*_head(metadata), *_limits(metadata)]) + "\n"


def _change(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return ""
    low, high = difference["interval"]
    return f"{low:+.1f} to {high:+.1f}"


def _head(metadata: Metadata) -> list[str]:
    """Header, usage, training data, and the metrics of the run's own validation."""
    recipe = cast("Mapping[str, Any]", metadata.source.get("recipe") or {})
    data = cast("Mapping[str, Any]", recipe.get("data") or {})
    train = cast("Mapping[str, Any]", data.get("train") or {})
    validation = cast("Mapping[str, float]", metadata.source.get("validation") or {})
    start = f"a start from {_last_parts(recipe['start'])}" if recipe.get("start") else "a random start"
    lines = [
        "---", "library_name: evilm", "license: apache-2.0", "tags: [video, video-text, e-vilm]", "---", "",
        f"# E-ViLM, {metadata.task.replace('_', ' ')}", "",
        "A small video-language model after E-ViLM (arXiv 2311.17267).", "",
        "```python", "import evilm", "", 'model = evilm.load("this folder, or its name on the hub")', "```", "",
        f"Input: {metadata.num_frames} frames of {metadata.image_size}x{metadata.image_size} pixels, and texts of",
        f"up to {metadata.max_text_len} word pieces. Heads: {', '.join(metadata.heads) or 'none'}.", "",
        "## Training", "",
        f"Last stage: `{_last_parts(train.get('annotations'))}`, reader {train.get('reader')},",
        f"split {train.get('split')}, seed {recipe.get('seed', 'unknown')},",
        f"{metadata.source.get('step')} steps after {start}.",
        f"Weights: sha256 {metadata.source.get('weights')}.", "",
    ]  # fmt: skip
    if validation:
        rows = [f"| {name} | {value:.1f} |" for name, value in validation.items()]
        lines += ["## Metrics", "", "Of the run's own validation:", "", "| metric | value |", "|---|---|", *rows, ""]
    if threshold := metadata.answer_threshold:
        lines += [
            f'Answers with a probability below {threshold.probability:.2f} are reported as "cannot tell". On the',
            f"{threshold.samples} validation rows that set this threshold, {threshold.answered:.0f} % are then",
            f"answered, and {threshold.right:.0f} % of these answers are right.", "",
        ]  # fmt: skip
    return lines


def _limits(metadata: Metadata) -> list[str]:
    lines = [
        "## Limits", "",
        "The model recognises only what its training data show; the metrics above hold for that kind of video only.",
        "It is not made for decisions about people.",
    ]  # fmt: skip
    if metadata.answers:
        lines.append(f"It answers every question with one of {len(metadata.answers)} answers.")
    return lines


def _last_parts(path: Any) -> str:
    """The last two parts of a path: a card is published, and must not show the author's folders."""
    return "/".join(str(path or "unknown").rstrip("/").split("/")[-2:])
