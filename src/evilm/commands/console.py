"""What the commands share: common options, messages on stderr, and the command that resumes interrupted work."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

Cluster = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Work on a Ray cluster: its address, auto, or local to start one here."),
]
Processes = Annotated[
    int, typer.Option(metavar="N", min=1, help="Number of processes with --cluster; one for each GPU.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")]


def say(text: str) -> None:
    """Print a line on stderr, so that stdout holds results only."""
    typer.echo(text, err=True)


def say_how_to_resume(state: str, arguments: Sequence[str]) -> None:
    """Print the state of stopped work and the command that continues it; rank 0 only.

    Args:
        state: such as "stopped and saved".
        arguments: of the ``evilm`` command that continues the work.
    """
    if int(os.environ.get("RANK", "0")):
        return
    launch = ["evilm"]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        launch = ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1"), "-m", "evilm"]
    say(f"{state}; continue with: {shlex.join([*launch, *arguments])}")
