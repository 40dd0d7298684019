"""Commands about video files themselves.

Typer reads the annotations at run time, so they are evaluated here and not postponed.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from evilm.commands.console import AsJson, say_how_to_go_on
from evilm.errors import DataError


def check_videos(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Every file below it is tried, whatever its name.")],
    workers: Annotated[int | None, typer.Option(min=1, help="Processes (one for each CPU).")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that a file may take.")] = 8.0,
    max_hours: Annotated[float, typer.Option(min=0, help="Longest video.")] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Try every file of a folder; one status each."""
    import dataclasses
    import os

    from evilm.data.video import LIMITS
    from evilm.data.video.folder import check_folder, everything_in
    from evilm.progress import Meter

    if not os.path.lexists(folder):
        raise DataError(f"{folder}: no such folder")
    paths = everything_in(folder)
    limits = dataclasses.replace(LIMITS, timeout=timeout, max_seconds=max_hours * 3600)
    try:
        with Meter("checking", len(paths), "files") as meter:
            report = check_folder(paths, workers or os.cpu_count() or 1, limits, meter.update)
    except KeyboardInterrupt:
        say_how_to_go_on("stopped; nothing is kept of what was checked", ["check-videos", str(folder)])
        raise typer.Exit(130) from None
    typer.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())
