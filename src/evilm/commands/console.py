"""What the commands share: options that several take, and how they speak to a person."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


def say(text: str) -> None:
    """A line on stderr, where it is in nobody's way."""
    typer.echo(text, err=True)


def say_how_to_go_on(state: str, arguments: Sequence[str]) -> None:
    """What became of a run that was stopped, and the command that goes on with it."""
    if int(os.environ.get("RANK", "0")):
        return  # of several processes the first speaks
    launch = ["evilm"]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        launch = ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1"), "-m", "evilm"]
    say(f"{state}; go on with: {shlex.join([*launch, *arguments])}")
