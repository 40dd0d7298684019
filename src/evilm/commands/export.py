"""Commands that take a trained model to where it is used, and ask it something.

Typer reads the annotations at run time, so they are evaluated here and not postponed.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from evilm.commands.console import AsJson, say


def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A run, or one of its checkpoints.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new or empty folder, or an export to be replaced.")],
    int8: Annotated[bool, typer.Option("--int8", help="Small and fast; kept where it loses little.")] = False,
    openvino: Annotated[bool, typer.Option("--openvino", help="For OpenVINO, in bf16.")] = False,
    calibrate: Annotated[
        Path | None, typer.Option(metavar="VIDEOS", help="Videos to fit int8 to (the training videos).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a model that needs no torch, and say what it cost."""
    from evilm.export import writer

    made = writer.export(checkpoint, out, int8=int8, openvino=openvino, calibrate=calibrate, say=say)
    if as_json:
        typer.echo(json.dumps({"out": str(out), "precision": made.precision, **made.measured}, indent=2))
        return
    measured = made.measured
    typer.echo(f"{out}: {', '.join(f'{name} {kind}' for name, kind in made.precision.items())}; {made.runtime}")
    for name, cosine in measured["cosine"].items():
        typer.echo(f"cosine, {name}: mean {cosine['mean']:.4f}, least {cosine['least']:.4f} of {cosine['samples']}")
    if "metrics" in measured:
        before, after = measured["metrics"]["checkpoint"], measured["metrics"]["export"]
        shown = [f"{name} {before[name]:.1f} -> {after[name]:.1f}" for name in before if "[" not in name]
        typer.echo(f"{measured['metrics']['rule']}: {', '.join(shown)}")
    took = measured["latency"]["milliseconds"]
    for what, faster in measured["latency"]["times faster"].items():
        typer.echo(f"{what}: {took[f'export {what}']:.1f} ms, {faster:.1f} times faster than torch")
    typer.echo(f"size: {measured['size in MB']['all']:.1f} MB")


def ask(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video file.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="Such as 'what color is the car?'.")],
    model: Annotated[str, typer.Option(metavar="M", help="An export, a run, or a name on the hub.")],
    choices: Annotated[list[str] | None, typer.Option(metavar="A B C", help="Answers to choose from.")] = None,
    more: Annotated[list[str] | None, typer.Argument(metavar="[CHOICE]...", help="More choices.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a question about a video."""
    from evilm import inference

    options = [*(choices or []), *((more or []) if choices else [])]
    if more and not choices:
        raise typer.BadParameter(f"unexpected {more[0]!r}: put the question in quotes, and choices behind --choices")
    loaded = inference.load(model)
    found = loaded.ask(video, question, options)
    if as_json:
        typer.echo(json.dumps({"video": str(video), "question": question, **found.as_json()}, indent=2))
        return
    typer.echo(f"{found.answer if found.confident else 'cannot tell'} ({100 * found.probability:.0f} %)")
    if not found.confident:
        typer.echo(
            f"the best guess is {found.answer!r}, below the {100 * (found.threshold or 0):.0f} % that validation set"
        )
    if found.threshold is None:
        say("this model's threshold for 'cannot tell' was never set; an export with its validation data sets it")
    for moment, share, (row, column) in found.attended_frames():
        typer.echo(f"looked at {moment:.2f} s: {100 * share:.0f} % of its attention, most on {_place(row, column)}")


def _place(row: float, column: float) -> str:
    """Where in a picture, in words, from shares of its height and width."""
    vertical = ("the top", "the middle", "the bottom")[min(2, int(3 * row))]
    horizontal = (", left", "", ", right")[min(2, int(3 * column))]
    return vertical + horizontal
