"""Commands that make or tell something without training: costs, vocabularies, worlds, the state of the machine.

Typer reads the annotations at run time, so they are evaluated here and not postponed.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from evilm.commands.console import AsJson
from evilm.errors import ConfigError


def cost(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="Such as evilm-small.")],
    frames: Annotated[int, typer.Option(min=1, help="Frames of a clip.")] = 4,
    size: Annotated[int, typer.Option(min=1, help="Pixels of a frame's side.")] = 256,
    length: Annotated[int, typer.Option("--words", min=1, help="Word pieces of the text.")] = 30,
    as_json: AsJson = False,
) -> None:
    """Print what a model costs, by part."""
    from evilm.report.cost import cost_of

    found = cost_of(preset, frames, size, length)
    typer.echo(json.dumps(found.as_json(), indent=2) if as_json else found.as_text())


def vocabulary_build(
    captions: Annotated[list[Path], typer.Option(metavar="FILE...", help="Caption files: one or several, and again.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The vocabulary to write.")],
    more: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="More caption files.")] = None,
    wordpieces: Annotated[Path | None, typer.Option(metavar="FILE", help="Published vocabulary to cut.")] = None,
    keep: Annotated[float | None, typer.Option(help="Share to keep of a published one (0.3).")] = None,
    size: Annotated[int | None, typer.Option(help="Pieces to train without a published one (9157).")] = None,
) -> None:
    """Make a vocabulary: cut a published one to what captions use, or train one."""
    from evilm.data.vocabulary_build import PAPER_KEEP, PAPER_SIZE, build

    if wordpieces is None and keep is not None:
        raise ConfigError("--keep cuts a published vocabulary: name it with --wordpieces, or train with --size")
    if wordpieces is not None and size is not None:
        raise ConfigError("--size is of a trained vocabulary and --wordpieces names one to cut: leave one of them out")
    files = [*captions, *(more or [])]
    report = build(files, out, wordpieces, PAPER_KEEP if keep is None else keep, PAPER_SIZE if size is None else size)
    typer.echo(str(report))


def world(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder, or a world to go on with.")],
    clips: Annotated[int, typer.Option(help="Videos over all splits.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    val: Annotated[int | None, typer.Option(help="Videos for validation (5 %).")] = None,
    test: Annotated[int | None, typer.Option(help="Videos for the test (10 %).")] = None,
    unseen: Annotated[bool, typer.Option("--unseen", help="Of a colour and an action no other world has.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes (one for each CPU).")] = None,
) -> None:
    """Make a procedural world of videos, sentences, questions."""
    from evilm.data.synthetic import build
    from evilm.progress import Meter

    with Meter("world", clips, "clips") as meter:
        made = build(
            out, clips, seed, val=val, test=test, unseen=unseen, workers=workers,
            progress=lambda done, _: meter.update(done),
        )  # fmt: skip
    splits = ", ".join(f"{name} {count}" for name, count in made.splits.items())
    typer.echo(
        f"{out}: {clips} clips ({splits}), {made.captions} captions, {made.questions} questions, "
        f"{made.choices} choices; {made.rendered} rendered now"
    )


def doctor() -> None:
    """Say what this machine has and what does not fit."""
    from evilm.report.env import examine

    for name, finding in examine():
        typer.echo(f"{name:<12} {finding}")
