"""The command that decodes a data set once and packs its frames.

Typer reads the annotations at run time, so they are evaluated here and not postponed.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from evilm.commands.console import say, say_how_to_go_on


class Fit(StrEnum):
    """What becomes of a picture that is not square."""

    crop = "crop"
    squash = "squash"


def pack(
    reader: Annotated[str, typer.Argument(metavar="NAME", help="The format: one of the readers, such as webvid.")],
    annotations: Annotated[Path, typer.Argument(metavar="ANNOTATIONS", help="Its file or folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Gone on with where it was stopped.")],
    videos: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the videos.")] = None,
    split: Annotated[str, typer.Option(help="Which rows; OUT/SPLIT is written.")] = "train",
    size: Annotated[int, typer.Option(min=16, help="Pixels of a frame's side.")] = 256,
    candidates: Annotated[int, typer.Option(min=1, max=99, help="Frames kept of each clip.")] = 8,
    fit: Annotated[Fit, typer.Option(help="Cut off what is not square, or squash it.")] = Fit.crop,
    raw: Annotated[bool, typer.Option("--raw", help="Exact pixels instead of JPEG, 16 times as large.")] = False,
    per_shard: Annotated[int, typer.Option(min=1, help="Clips in a shard.")] = 512,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 2,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that one clip may take.")] = 9.0,
) -> None:
    """Decode the videos of a split once, into WebDataset shards of small frames."""
    from evilm.data import packed, readers, table
    from evilm.data.pack import pack as run_pack
    from evilm.progress import Meter

    rows = table.collect(readers.stream(reader, annotations, videos, split))
    config = packed.PackConfig(
        size=size, cached_frames=candidates, resize_mode=fit.value, frames="raw" if raw else "jpeg", per_shard=per_shard
    )
    try:
        with Meter("packing", table.distinct_clips(rows), "clips") as meter:
            done = run_pack(
                rows, out, split, config, workers=workers, timeout=timeout, progress=lambda n, _: meter.update(n)
            )
    except KeyboardInterrupt:
        given = ["data", "pack", reader, str(annotations), str(out), "--split", split, "--size", str(size)]
        given += ["--candidates", str(candidates), "--fit", fit.value, "--per-shard", str(per_shard)]
        given += [*(["--videos", str(videos)] if videos else []), *(["--raw"] if raw else [])]
        say_how_to_go_on(
            "stopped; whole shards are kept", [*given, "--workers", str(workers), "--timeout", f"{timeout:g}"]
        )
        raise typer.Exit(130) from None
    problems = packed.read_problems(done.folder / packed.PROBLEMS)
    for clip, (status, reason) in list(problems.items())[:5]:
        say(f"unreadable: {clip}: {status}: {reason}")
    if len(problems) > 5:
        say(f"and {len(problems) - 5} more: {done.folder / packed.PROBLEMS}")
    typer.echo(
        f"{done.folder}: {done.clips} clips in {done.shards} shards ({done.written} written now), {done.unreadable} "
        f"unreadable; train on them with data.packed={out}"
    )
