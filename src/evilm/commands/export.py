"""The commands ``evilm export`` and ``evilm ask``.

Typer reads the annotations at run time, so they are not postponed.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from evilm.commands.console import AsJson, say


def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A run, or one of its checkpoints.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new or empty folder, or an export to replace.")],
    int8: Annotated[bool, typer.Option("--int8", help="Quantize to int8: a quarter of the size, faster.")] = False,
    openvino: Annotated[bool, typer.Option("--openvino", help="Write for OpenVINO, in bf16.")] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="VIDEOS",
            help="A video or a folder of videos to calibrate int8 on. [default: the training videos]",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a checkpoint as ONNX graphs that run without torch.

    The export is compared with the checkpoint. Cosines of embeddings: the mean must be at least 0.98 (fp32: 0.9999),
    the 1st percentile at least 0.95 (fp32: 0.999). Metrics on the recipe's validation split: R@1, R@5 and R@10 in both
    directions for retrieval, the accuracy for questions, choices and classes. A metric has fallen if the 95 % interval
    of its paired change lies below -1 point. Where a limit is broken, int8 is given up layer by layer; where fp32
    breaks one, nothing is written. Without validation data only the cosines are compared.
    """
    from evilm.export import writer

    made = writer.export(checkpoint, out, int8=int8, openvino=openvino, calibrate=calibrate, say=say)
    measured = made.measured
    if as_json:
        typer.echo(json.dumps({"out": str(out), "precision": made.precision, **measured}, indent=2))
        return
    typer.echo(f"{out}: {', '.join(f'{name} {kind}' for name, kind in made.precision.items())}; {made.runtime}")
    for name, cosine in measured["cosine"].items():
        low, count = cosine["percentile_1"], cosine["samples"]
        typer.echo(f"cosine, {name}: mean {cosine['mean']:.4f}, 1st percentile {low:.4f}, {count} samples")
    if "metrics" in measured:
        before, after = measured["metrics"]["checkpoint"], measured["metrics"]["export"]
        shown = [f"{name} {before[name]:.1f} -> {after[name]:.1f}" for name in before if "[" not in name]
        typer.echo(f"{measured['metrics']['rule']}: {', '.join(shown)}")
    milliseconds = measured["latency"]["milliseconds"]
    for what, ratio in measured["latency"]["times faster"].items():
        typer.echo(f"{what}: {milliseconds[f'export {what}']:.1f} ms, {ratio:.1f} times faster than torch")
    typer.echo(f"size: {measured['size in MB']['all']:.1f} MB")


def ask(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video file.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="Such as 'what color is the car?'.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            show_default="a bundled model",
            help="An export, a run, a bundled model or owner/name on the hub.",
        ),
    ] = None,
    choices: Annotated[
        list[str] | None,
        typer.Option(metavar="A B C", help="Answers to choose from. A model without a question head needs them."),
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(metavar="[CHOICE]...", help="More choices.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a question about a video."""
    from evilm.inference import DEFAULT_MODEL, load

    if more and not choices:
        raise typer.BadParameter(f"unexpected {more[0]!r}: put the question in quotes, and choices behind --choices")
    result = load(model or DEFAULT_MODEL).ask(video, question, [*(choices or []), *(more or [])])
    if as_json:
        typer.echo(json.dumps({"video": str(video), "question": question, **result.as_json()}, indent=2))
        return
    typer.echo(f"{result.answer if result.confident else 'cannot tell'} ({100 * result.probability:.0f} %)")
    if not result.confident:
        threshold = 100 * (result.threshold or 0)
        typer.echo(f"the best guess is {result.answer!r}, below the threshold of {threshold:.0f} % set in validation")
    if result.threshold is None:
        say("this model has no threshold for 'cannot tell'; an export with its validation data sets one")
    for time, weight, (row, column) in result.attended_frames():
        vertical = ("the top", "the middle", "the bottom")[min(2, int(3 * row))]
        horizontal = (", left", "", ", right")[min(2, int(3 * column))]
        typer.echo(f"frame at {time:.2f} s: {100 * weight:.0f} % of the attention, most on {vertical}{horizontal}")
