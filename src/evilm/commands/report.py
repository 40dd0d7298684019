"""Commands that print the cost of a model, the paper's tables and figures beside our runs, and the environment.

Typer reads annotations at run time, so this module does not postpone their evaluation.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from evilm.commands.console import AsJson, say, say_how_to_resume

Runs = Annotated[
    list[Path] | None, typer.Argument(metavar="[RUN]...", help="Folders that contain evaluated runs. [default: none]")
]

OnData = Annotated[
    str | None,
    typer.Option(
        "--on", metavar="DATA", help="Use only evaluations on synthetic, flickr8k, msrvtt-mini or other data."
    ),
]


def table(
    number: Annotated[int, typer.Argument(metavar="NUMBER", min=1, max=6, help="Number of the table, 1 to 6.")],
    runs: Runs = None,
    on: OnData = None,
    as_json: AsJson = False,
) -> None:
    """Print a table of the paper with the results of our runs, as Markdown."""
    from evilm.report import tables
    from evilm.report.evaluations import read_evaluations, select

    evaluations, unusable = read_evaluations(runs or ())
    filled = tables.fill(number, select(evaluations, on), unusable)
    typer.echo(json.dumps(tables.as_json(filled), indent=2) if as_json else tables.as_markdown(filled))


def figure(
    number: Annotated[int, typer.Argument(metavar="NUMBER", min=1, max=2, help="Number of the figure, 1 or 2.")],
    runs: Runs = None,
    on: OnData = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw it: .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the numbers of a figure of the paper with the results of our runs, as Markdown."""
    from evilm.report import figures
    from evilm.report.evaluations import read_evaluations, select

    evaluations, unusable = read_evaluations(runs or ())
    filled = figures.fill(number, select(evaluations, on), unusable)
    if out is not None:
        figures.draw(filled, out)
    typer.echo(json.dumps(figures.as_json(filled), indent=2) if as_json else figures.as_markdown(filled))


def everything(
    runs: Runs = None,
    on: OnData = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the files.")] = Path("docs/results/paper"),
) -> None:
    """Write all tables and figures of the paper with our runs: Markdown, CSV, LaTeX, PNG."""
    from evilm.report import write

    for path in write.write_all(runs or (), out, on):
        typer.echo(path)


def compare(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="Folder of an evaluation.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Folder of another evaluation of the same samples.")],
    as_json: AsJson = False,
) -> None:
    """Compare two evaluations: the difference with a paired bootstrap 95 % interval."""
    from evilm.report import compare as comparison

    result = comparison.compare(first, second)
    typer.echo(json.dumps(result, indent=2) if as_json else comparison.as_text(result))


def splits(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="TOML file, or the name of a bundled recipe.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[A.B=C]...", help="Settings that replace those of the recipe.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train and evaluate on the three splits of HMDB51 or UCF101; print their mean."""
    from evilm.report import splits as three
    from evilm.training import recipe as recipes

    again = ["report", "splits", recipe, *(changes or [])]
    try:
        result = three.run_splits(recipes.find(recipe), changes or (), say)
    except KeyboardInterrupt:
        say_how_to_resume("stopped; finished work is kept", again)
        raise typer.Exit(130) from None
    typer.echo(json.dumps(result, indent=2) if as_json else three.as_text(result))


def cost(
    preset: Annotated[str, typer.Argument(metavar="[PRESET]", help="Model preset.")] = "evilm-small",
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of a clip. [default: the preset's]")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Frame size in pixels. [default: the preset's]")] = None,
    length: Annotated[int, typer.Option("--words", min=1, help="Word pieces of the text.")] = 30,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also measure latency and peak memory on this machine's CPU.")
    ] = False,
    with_peers: Annotated[
        bool, typer.Option("--peers", help="Compare with published models, measured one after another (minutes).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the parameters and operations of a model, part by part, or beside those of published models."""
    from evilm.report import latency, peers
    from evilm.report.cost import cost_of

    found = cost_of(preset, frames, size, length)
    rows = [found, *map(peers.peer_cost, peers.PEERS)] if with_peers else [found]
    measured = {
        row.preset: latency.measure(row.preset, row.frames, row.size, row.words)
        for row in rows
        if measure or with_peers
    }
    if as_json:
        tables = [row.as_json() | ({"measured": measured[row.preset]} if measured else {}) for row in rows]
        typer.echo(json.dumps({"models": tables} if with_peers else tables[0], indent=2))
    elif with_peers:
        typer.echo(peers.compare(measured, rows))
    else:
        typer.echo("\n\n".join([found.as_text(), *map(latency.as_text, measured.values())]))


def plan(
    clips: Annotated[str, typer.Option(metavar="N", help="Number of videos, such as 300k, 2.5M or 1B.")],
    seconds: Annotated[float, typer.Option(min=0.1, help="Mean length of a video in seconds.")] = 18.0,
    nodes: Annotated[int, typer.Option(min=1, help="Number of machines.")] = 1,
    cpus: Annotated[int, typer.Option(min=1, help="Processors of a machine.")] = 32,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of a machine.")] = 0,
    mbit: Annotated[float, typer.Option(min=0, help="Mean bit rate of the videos in Mbit/s.")] = 1.0,
    epochs: Annotated[float, typer.Option(min=0, help="Epochs of pre-training.")] = 20,
    months: Annotated[float, typer.Option(min=0, help="Months that the results are stored.")] = 1,
    prices: Annotated[Path | None, typer.Option(metavar="FILE", help="Price list in TOML; see docs/scale.md.")] = None,
    throughputs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Costs measured by benchmarks/throughputs.py. [default: ours]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the hours, storage and cost of packing, labels, pre-training and indexing."""
    from evilm.cluster import plan as planning

    job = planning.Job(planning.parse_count(clips), seconds, nodes, cpus, gpus, mbit, epochs, months)
    costs = planning.read_throughputs(throughputs or planning.THROUGHPUTS)
    listed = planning.Prices() if prices is None else planning.read_prices(prices)
    if as_json:
        typer.echo(json.dumps(planning.as_json(job, costs, listed), indent=2))
    else:
        typer.echo(planning.as_text(job, costs, listed))


def env() -> None:
    """Print what is installed on this machine and what is missing or too old."""
    from evilm.report.env import examine

    for name, finding in examine():
        typer.echo(f"{name:<12} {finding}")
