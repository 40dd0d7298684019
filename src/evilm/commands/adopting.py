"""Commands for whoever has just arrived: a first try of everything.

Typer reads the annotations at run time, so they are evaluated here and not postponed.
"""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from evilm.commands.speech import AsJson, say, say_how_to_go_on


def try_out(
    out: Annotated[Path, typer.Option(metavar="DIR", help="For clips and index; may be deleted.")] = Path("runs/try"),
    model: Annotated[str, typer.Option(metavar="M", help="Another model that embeds.")] = "world-tiny",
    as_json: AsJson = False,
) -> None:
    """Try everything in ten seconds: render clips, index, search, ask."""
    import time

    from evilm.trial import trial

    began = time.perf_counter()
    try:
        found = trial(out, model, say=say if as_json else typer.echo)
    except KeyboardInterrupt:
        say_how_to_go_on("stopped; what was made is kept", ["try", "--out", str(out)])
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=2))
        return
    typer.echo(f"{time.perf_counter() - began:.1f} s in all; no network, no torch")
    video = found.question["video"]
    lines = [
        "",
        "More of these clips:",
        "  " + shlex.join(["evilm", "search", str(out / "index"), "a green cross spins"]),
        "  " + shlex.join(["evilm", "ask", video, "what color is it?", "--model", model, "--choices", "red", "blue"]),
        "The same with your own folder (world-tiny knows moving shapes alone: train or take a model of real videos):",
        "  evilm index ~/clips ~/clips.index --model MODEL",
        '  evilm search ~/clips.index "a dog catches a frisbee"',
        "Train one in this world, then on your own clips (pip install 'evilm[train,export]'):",
        "  evilm demo --out runs/demo",
        "  evilm adapt captions.csv --model runs/demo/retrieval --out runs/mine",
    ]
    typer.echo("\n".join(lines))
