"""Commands that search an index of videos and label it.

Typer reads the annotations at run time, so they are evaluated here and not postponed.
"""

import json
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evilm.commands.console import AsJson, say, say_how_to_resume
from evilm.errors import QueryError

if TYPE_CHECKING:
    from evilm.search.query import Hits


class BackendChoice(StrEnum):
    """What computes nearest neighbours."""

    auto = "auto"
    exact = "exact"
    faiss = "faiss"
    lance = "lance"
    qdrant = "qdrant"


def quickstart(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for clips and index; you may delete it.")] = Path(
        "runs/quickstart"
    ),
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="Model that embeds and answers questions.")
    ] = "world-tiny",
    as_json: AsJson = False,
) -> None:
    """Generate clips, index them, search and ask, in ten seconds."""
    import time

    from evilm.demo.quickstart import run

    began = time.perf_counter()
    try:
        result = run(out, model, say=say if as_json else typer.echo)
    except KeyboardInterrupt:
        say_how_to_resume("stopped; finished work is kept", ["quickstart", "--out", str(out)])
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=2))
        return
    typer.echo(f"{time.perf_counter() - began:.1f} s in all; no network, no torch")
    video = result.question["video"]
    lines = [
        "",
        "More of these clips:",
        "  " + shlex.join(["evilm", "search", str(out / "index"), "a green cross spins"]),
        "  " + shlex.join(["evilm", "ask", video, "what color is it?", "--model", model, "--choices", "red", "blue"]),
        "The same with your own folder, by the bundled model of real videos:",
        "  evilm index ~/clips ~/clips.index",
        '  evilm search ~/clips.index "a dog catches a frisbee"',
        "Train a model on such clips, then adapt it to your own (pip install 'evilm[train,export]'):",
        "  evilm demo --out runs/demo",
        "  evilm adapt captions.csv --model runs/demo/retrieval --out runs/mine",
    ]
    typer.echo("\n".join(lines))


def search(
    index_dir: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder that `evilm index` made.")],
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="Description of what the video shows.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of hits.")] = 10,
    query_video: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Video or picture to search with instead of a text.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            show_default="the path in the index",
            help="The index's model, if it was moved: its new path.",
        ),
    ] = None,
    folder: Annotated[Path | None, typer.Option("--in", metavar="FOLDER", help="Only files under this folder.")] = None,
    name: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Only files whose name matches, such as '*.mkv'.")
    ] = None,
    min_duration: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Minimum length of the file in seconds.")
    ] = None,
    max_duration: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Maximum length of the file in seconds.")
    ] = None,
    after: Annotated[
        str | None, typer.Option(metavar="DAY", help="Only files changed on this day (2026-01-31) or later.")
    ] = None,
    before: Annotated[str | None, typer.Option(metavar="DAY", help="Only files changed before this day.")] = None,
    rerank: Annotated[
        int, typer.Option(min=0, metavar="K", help="Number of best hits that the fusion decoder orders.")
    ] = 0,
    backend: Annotated[
        BackendChoice, typer.Option(help="Nearest-neighbour search; faiss, lance and qdrant are optional packages.")
    ] = BackendChoice.auto,
    as_json: AsJson = False,
) -> None:
    """Search an index by a text, a video or a picture."""
    from evilm.search.index import VideoIndex
    from evilm.search.query import Filter, parse_day

    if (text is None) == (query_video is None):
        raise QueryError("name what to search for: either a text or --query-video FILE")
    first, last = parse_day(after) if after else None, parse_day(before) if before else None
    where = Filter(folder, name, min_duration, max_duration, first, last)
    with VideoIndex.open(index_dir, model, backend.value) as opened:
        hits = opened.search(query_video or text or "", k, where, rerank=rerank)
        empty = not len(opened)
    if as_json:
        typer.echo(json.dumps(hits.as_json(), indent=2))
    else:
        _print_hits(hits, empty=empty)


def _print_hits(hits: "Hits", *, empty: bool) -> None:
    from evilm.files import is_picture
    from evilm.progress import clock
    from evilm.search.remote import address

    if not hits:
        say("nothing found: " + ("the index is empty" if empty else "no indexed file meets the conditions"))
        return
    if hits.no_good_match:
        typer.echo("no good match; the nearest segments are:")
    for hit in hits:
        times = "picture" if is_picture(hit.path) else f"{clock(hit.start)}-{clock(hit.end)}"
        why = f"  ({', '.join(hit.words)})" if hit.words else ""
        typer.echo(f"{hit.score:4.2f}  {times}  {address(hit.path)}{why}")
    if hits.calibration.origin == "none":
        say("scores are only a guess: the index has too few segments to calibrate them")


def label(
    index_dir: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder that `evilm index` made.")],
    names: Annotated[Path, typer.Argument(metavar="NAMES", help="Class names, one a line.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", show_default="printed", help="CSV file to write.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", show_default="the path in the index", help="See `evilm search`.")
    ] = None,
) -> None:
    """Give each segment of an index the best of your own class names, as CSV."""
    from evilm.files import write_atomic
    from evilm.search import labels
    from evilm.search.index import VideoIndex

    wanted = labels.read_names(names)
    with VideoIndex.open(index_dir, model) as opened:
        lines = labels.as_csv(opened.label(wanted))
        if out is None:
            for line in lines:
                typer.echo(line, nl=False)
        else:
            write_atomic(out, lines)
            say(f"{out}: {len(opened)} segments, {len(wanted)} names")
