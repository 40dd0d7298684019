"""Commands about data sets: what one holds and lacks.

Typer reads the annotations at run time, so they are evaluated here and not postponed.
"""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from evilm.commands.console import AsJson, say

QUIET_SECONDS = 15.0  # between two lines of progress


def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The format, such as msrvtt_qa; see docs/data.md.")],
    annotations: Annotated[Path, typer.Argument(metavar="ANNOTATIONS", help="The annotation file, or its folder.")],
    videos: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the videos.")] = None,
    missing: Annotated[Path | None, typer.Option(metavar="FILE", help="Lists them (missing-NAME.txt).")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a data set holds, lacks, and whether it is as published."""
    from evilm.report import data_check, data_check_text

    began = spoke = time.monotonic()

    def progress(split: str, rows: int) -> None:
        nonlocal spoke
        now = time.monotonic()
        if now - spoke >= QUIET_SECONDS:
            spoke = now
            say(f"reading {split}: {rows:,} rows, {now - began:.0f} s")

    result = data_check.check(data_check.Source(name, annotations, videos), missing, progress)
    if as_json:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(data_check_text.as_table(result))
    console.print("\n".join(data_check_text.lines(result)), markup=False, soft_wrap=True)
