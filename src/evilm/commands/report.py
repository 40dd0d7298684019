"""Commands that print the cost of a model, the paper's tables and figures beside our runs, and the environment.

Typer reads annotations at run time, so this module does not postpone their evaluation.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from evilm.commands.console import AsJson

Runs = Annotated[list[Path] | None, typer.Argument(metavar="[RUN]...", help="Folders with evaluated runs in them.")]


def table(
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="1 to 6.")], runs: Runs = None, as_json: AsJson = False
) -> None:
    """Print a table of the paper, our own numbers and their data beside."""
    from evilm.report import measured, paper_tables

    evaluations, unusable = measured.read(runs or ())
    found = paper_tables.compare(number, evaluations)
    found = paper_tables.Comparison(found.table, found.lines, (*found.left_out, *unusable))
    if as_json:
        typer.echo(json.dumps(paper_tables.as_json(found), indent=2))
    else:
        typer.echo(paper_tables.as_markdown(found))


def figure(
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="1 or 2.")],
    runs: Runs = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the numbers of a figure of the paper, ours beside; draw it."""
    from evilm.report import measured, paper_figures

    evaluations, unusable = measured.read(runs or ())
    about, points, left_out = paper_figures.points(number, evaluations)
    left_out = [*left_out, *unusable]
    if out is not None:
        paper_figures.draw(about, points, out)
    if as_json:
        typer.echo(json.dumps(paper_figures.as_json(about, points, left_out), indent=2))
    else:
        typer.echo(paper_figures.as_markdown(about, points, left_out))


def cost(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="Model preset, such as evilm-small.")],
    frames: Annotated[int, typer.Option(min=1, help="Frames of a clip.")] = 4,
    size: Annotated[int, typer.Option(min=1, help="Frame width and height in pixels.")] = 256,
    length: Annotated[int, typer.Option("--words", min=1, help="Word pieces of the text.")] = 30,
    as_json: AsJson = False,
) -> None:
    """Print the parameters and operations of a model, part by part."""
    from evilm.report.cost import cost_of

    found = cost_of(preset, frames, size, length)
    typer.echo(json.dumps(found.as_json(), indent=2) if as_json else found.as_text())


def env() -> None:
    """Print what is installed on this machine and what is missing or too old."""
    from evilm.report.env import examine

    for name, finding in examine():
        typer.echo(f"{name:<12} {finding}")
