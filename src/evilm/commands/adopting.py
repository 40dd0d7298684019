"""Commands for whoever has just arrived: a first try of everything, and a model for one's own clips.

Typer reads the annotations at run time, so they are evaluated here and not postponed.
"""

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from evilm.commands.console import AsJson, say, say_how_to_go_on


def try_out(
    out: Annotated[Path, typer.Option(metavar="DIR", help="For clips and index; may be deleted.")] = Path("runs/try"),
    model: Annotated[str, typer.Option(metavar="M", help="Another model that embeds.")] = "world-tiny",
    as_json: AsJson = False,
) -> None:
    """Try everything in ten seconds: render clips, index, search, ask."""
    import time

    from evilm.demo.quickstart import trial

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


def adapt(
    source: Annotated[Path, typer.Argument(metavar="CAPTIONS|FOLDER", help="A list of captions, or clips.")],
    model: Annotated[str, typer.Option(metavar="M", help="A run or checkpoint that embeds, or owner/name.")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="New or empty folder.")],
    changes: Annotated[list[str] | None, typer.Argument(metavar="[A.B=C]...", help="Changes to the recipe.")] = None,
    videos: Annotated[Path | None, typer.Option(metavar="DIR", help="Where paths of a list start from.")] = None,
    share: Annotated[float, typer.Option("--held-out", min=0.01, max=0.9, help="Share of the videos.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Of the part held out, and of training.")] = 0,
    new_words: Annotated[bool, typer.Option("--new-words/--old-words", help="Room for words it does not know.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it was stopped.")] = False,
    as_json: AsJson = False,
) -> None:
    """Go on training on your own clips; numbers before and after."""
    from evilm.training.adapt.adapting import Request, adapt

    told = None if videos is None else str(videos.resolve())
    request = Request(str(source.resolve()), told, model, seed, share, new_words, tuple(changes or ()))
    again = ["adapt", str(source), *(changes or []), "--model", model, "--out", str(out), "--seed", str(seed)]
    again += ["--held-out", str(share), *([] if new_words else ["--old-words"])]
    again += [] if videos is None else ["--videos", str(videos)]
    try:
        found = adapt(request, out, resume=resume, say=say)
    except KeyboardInterrupt:
        say_how_to_go_on("stopped; what was done is kept", [*again, "--resume"])
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    _show(found)
    line = json.loads((out / "held-out.jsonl").read_text(encoding="utf-8").splitlines()[0])["captions"][0]
    folder = source if source.is_dir() else videos or source.parent
    commands = (
        ["evilm", "export", str(out), f"{out}-export", "--int8"],
        [
            "evilm",
            "index",
            str(folder),
            f"{out}-index",
            "--model",
            str(out),
            "--calibrate",
            str(out / "held-out.jsonl"),
        ],
        ["evilm", "search", f"{out}-index", line],
    )
    typer.echo("\n".join([f"written to {out / 'adapt.json'}; next:", *("  " + shlex.join(each) for each in commands)]))


def _show(found: dict[str, Any]) -> None:
    """The numbers before and after, beside chance."""
    from rich.console import Console
    from rich.table import Table

    from evilm.training.adapt.adapting import SHOWN

    clips = found["clips"]
    held, every = clips["held out"], clips["held out"] + clips["train"]
    title = f"{held} clips held out of {every}; in percent, but for the median rank"
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for name in ("before", "after", "chance"):
        table.add_column(name, justify="right")
    for metric in SHOWN:
        row = (f"{found[name][metric]:.1f}" for name in ("before", "after", "chance"))
        table.add_row("median rank" if metric == "MdR" else metric, *row)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"rule: {found['rule']}; training took {found['seconds']:.0f} s", markup=False, soft_wrap=True)
