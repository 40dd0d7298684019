"""The model card: what a model is, what it learned from, what was measured, and what it cannot do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evilm.inference.export_format import ExportDescription
    from evilm.inference.runtime import Metadata


def text(export: ExportDescription) -> str:
    """The card of an export, as Markdown with the hub's header."""
    measured = export.measured
    lines = [*_head(export.metadata), "## What the export cost", ""]
    kinds = ", ".join(f"{name} {kind}" for name, kind in export.precision.items())
    lines.append(f"Runs on {export.runtime}: {kinds}.")
    for name, cosine in cast("Mapping[str, Any]", measured.get("cosine", {})).items():
        lines.append(
            f"Cosine with the checkpoint, {name}: mean {cosine['mean']:.4f}, least {cosine['least']:.4f} of "
            f"{cosine['samples']}."
        )
    metrics: Any = measured.get("metrics")
    if metrics:
        lines += ["", f"On {metrics['rule']}, in percent:", "", "| metric | checkpoint | export |", "|---|---|---|"]
        lines += [f"| {name} | {value:.1f} | {metrics['export'][name]:.1f} |" for name, value in
                  metrics["checkpoint"].items()]  # fmt: skip
    lines += [f"Not measured: {measured['not measured']}."] if "not measured" in measured else []
    lines += ["", *[f"Given up: {line}." for line in measured.get("given up", ())]]
    faster: Any = measured.get("latency", {}).get("times faster", {})
    if faster:
        each = ", ".join(f"{what} {times:.1f}" for what, times in faster.items())
        lines.append(f"Times faster than torch (eager, fp32) on the machine of the export: {each}.")
    if "size in MB" in measured:
        lines.append(f"{measured['size in MB']['all']:.1f} MB in all.")
    return "\n".join([*lines, "", *_limits(export.metadata)]) + "\n"


def of_checkpoint(about: Metadata) -> str:
    """The card of a checkpoint."""
    return "\n".join([*_head(about), *_limits(about)]) + "\n"


def _head(about: Metadata) -> list[str]:
    """Header, use, what it learned from, what its own validation said."""
    recipe = cast("Mapping[str, Any]", about.source.get("recipe") or {})
    data = cast("Mapping[str, Any]", recipe.get("data") or {})
    train = cast("Mapping[str, Any]", data.get("train") or {})
    found = cast("Mapping[str, float]", about.source.get("validation") or {})
    lines = [
        "---", "library_name: evilm", "license: apache-2.0", "tags: [video, video-text, e-vilm]", "---", "",
        f"# E-ViLM, {about.task.replace('_', ' ')}", "",
        "A small video-language model after E-ViLM (arXiv 2311.17267).", "",
        "```python", "import evilm", "", 'model = evilm.load("this folder, or its name on the hub")', "```", "",
        f"It looks at {about.num_frames} frames of {about.image_size}x{about.image_size} pixels, and reads up to",
        f"{about.max_text_len} word pieces. It has: {', '.join(about.heads) or 'no heads'}.", "",
        "## Data and training", "",
        f"Trained last on `{_last(train.get('annotations'))}` (reader {train.get('reader')}, ",
        f"split {train.get('split')}), seed {recipe.get('seed', 'unknown')}, {about.source.get('step')} steps;",
        f"started from {_last(recipe.get('start')) if recipe.get('start') else 'nothing'}.",
        f"Weights: sha256 {about.source.get('weights')}.", "",
    ]  # fmt: skip
    if found:
        lines += ["## Numbers", "", "Of the run's own validation, in percent where it is a share:", ""]
        lines += [
            "| metric | value |",
            "|---|---|",
            *[f"| {name} | {value:.1f} |" for name, value in found.items()],
            "",
        ]
    if about.answer_threshold is not None:
        told = about.answer_threshold
        lines += [
            f'Answers less probable than {told.probability:.2f} are "cannot tell": on the {told.samples}',
            f"validation rows that set this, {told.answered:.0f} % are then answered,",
            f"{told.right:.0f} % of these right.", "",
        ]  # fmt: skip
    return lines


def _limits(about: Metadata) -> list[str]:
    lines = [
        "## Limits", "",
        "It knows what its training data showed, and no more; the numbers above are of that kind of video alone.",
        "It is not made for decisions about people.",
    ]  # fmt: skip
    if about.answers:
        lines.append(f"It answers with one of {len(about.answers)} answers, right or wrong.")
    return lines


def _last(path: Any) -> str:
    """The end of a path: a card is published, and where its author keeps files is nobody's business."""
    return "/".join(str(path or "unknown").rstrip("/").split("/")[-2:])
