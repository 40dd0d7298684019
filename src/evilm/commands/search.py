"""Commands that make an index of videos and search it.

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
    from evilm.search.binding import IndexConfig
    from evilm.search.hits import Hits
    from evilm.search.update import Report

_LISTED = 5  # unreadable files that are named on the screen; the file in the index names all


class Cut(StrEnum):
    """How long videos are cut."""

    shots = "shots"
    windows = "windows"


class StoreName(StrEnum):
    """What answers."""

    auto = "auto"
    exact = "exact"
    faiss = "faiss"
    lance = "lance"


ModelName = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="An export, a run, or owner/name.")]


def quickstart(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for clips and index; you may delete it.")] = Path(
        "runs/quickstart"
    ),
    model: Annotated[str, typer.Option(metavar="MODEL", help="Model that embeds videos and texts.")] = "world-tiny",
    as_json: AsJson = False,
) -> None:
    """Generate clips, index them, search, ask a question: ten seconds."""
    import time

    from evilm.demo.quickstart import trial

    began = time.perf_counter()
    try:
        found = trial(out, model, say=say if as_json else typer.echo)
    except KeyboardInterrupt:
        say_how_to_resume("stopped; finished work is kept", ["quickstart", "--out", str(out)])
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
        "The same with your own folder (world-tiny was trained on moving shapes only: use a model of real videos):",
        "  evilm index ~/clips ~/clips.index --model MODEL",
        '  evilm search ~/clips.index "a dog catches a frisbee"',
        "Train a model on such clips, then adapt it to your own (pip install 'evilm[train,export]'):",
        "  evilm demo --out runs/demo",
        "  evilm adapt captions.csv --model runs/demo/retrieval --out runs/mine",
    ]
    typer.echo("\n".join(lines))


def index(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Videos, with all folders below.")],
    place: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of the index: new, or to bring up to date.")],
    model: ModelName = None,
    cut: Annotated[Cut | None, typer.Option(help="Long videos: where shots change, or evenly (shots).")] = None,
    seconds: Annotated[float | None, typer.Option(help="The longest moment (8).")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Look at keyframes only.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that decode.")] = 2,
    forget: Annotated[bool, typer.Option("--forget", help="Also if no video is left: drop them all.")] = False,
    labels: Annotated[
        Path | None,
        typer.Option("--calibrate", metavar="LIST", help='Captions of its videos: where "no good match" begins.'),
    ] = None,
    compact: Annotated[bool, typer.Option("--compact", help="Then give back the space of what was deleted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Index a folder of videos, or bring its index up to date."""
    from evilm.progress import Meter
    from evilm.search.index import VideoIndex

    meters: list[Meter] = []

    def show(_: object, done: int, total: int) -> None:
        if not meters:
            meters.append(Meter("indexing", total, "files"))
            meters[0].__enter__()
        meters[0].update(done)

    reports: list[Report] = []
    try:
        with VideoIndex.build(
            folder, model, place, config=_config(cut, seconds, fast), workers=workers, forget=forget,
            acknowledged=show, reported=reports.append,
        ) as made:  # fmt: skip
            told = None if labels is None else made.calibrate(_pairs(labels, folder))
            if compact:
                made.compact()
    except KeyboardInterrupt:
        named = [] if model is None else ["--model", model]
        say_how_to_resume("stopped; what was indexed is kept", ["index", str(folder), str(place), *named])
        raise typer.Exit(130) from None
    finally:
        for meter in meters:
            meter.__exit__()
    if as_json:
        typer.echo(
            json.dumps(reports[0].as_json() | ({} if told is None else {"calibration": told.as_json()}), indent=2)
        )
        return
    _show_report(place, reports[0])
    if told is not None and told.right is not None:
        share = f"it decides rightly for {100 * told.right:.0f} %"
        where = f"a cosine of {told.centre:.2f}" if told.lift_centre is None else f"a lift of {told.lift_centre:.2f}"
        typer.echo(f'"no good match" begins at {where}: of {told.samples} captions and unlike sentences {share}')


def _pairs(labels: Path, folder: Path) -> list[tuple[str, Path]]:
    """Captions and the videos that they are true of, from a list whose paths start from ``folder``."""
    from evilm.data.readers.generic import captions

    rows = captions(labels, folder, "validation")
    return [(text, row.clip.path) for row in rows for text in row.captions if not row.clip.frames]


def _config(cut: Cut | None, seconds: float | None, fast: bool) -> "IndexConfig | None":
    """Settings for a new index; None where none was named, which an old one takes as its own."""
    from evilm.config import check
    from evilm.search.binding import IndexConfig

    if cut is None and seconds is None and not fast:
        return None
    inner = {name: value for name, value in (("by", cut and cut.value), ("seconds", seconds)) if value is not None}
    return check(IndexConfig, {"mode": "fast" if fast else "exact", "cut": inner}, "evilm index")


def _show_report(place: Path, report: "Report") -> None:
    typer.echo(f"{place}: {report}")
    for closed in report.closed:
        typer.echo(f"  {closed['path']}: {closed['reason']}; what was known of it is kept")
    if report.unreadable:
        typer.echo(
            f"{len(report.unreadable)} files could not be read, or not wholly; {place / 'unreadable.jsonl'} lists them"
        )
        for bad in report.unreadable[:_LISTED]:
            typer.echo(f"  {bad['path']}: {bad['status']}: {bad['reason']}")


def search(
    place: Annotated[Path, typer.Argument(metavar="INDEX", help="As `evilm index` made it.")],
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="What should be seen.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many hits.")] = 10,
    like: Annotated[Path | None, typer.Option(metavar="FILE", help="A video or picture instead of a text.")] = None,
    model: ModelName = None,
    within: Annotated[Path | None, typer.Option("--in", metavar="FOLDER", help="Only files below it.")] = None,
    longer: Annotated[float | None, typer.Option(metavar="SECONDS", help="Only files at least this long.")] = None,
    shorter: Annotated[float | None, typer.Option(metavar="SECONDS", help="Only files at most this long.")] = None,
    after: Annotated[str | None, typer.Option(metavar="DAY", help="Only files changed on this day or later.")] = None,
    before: Annotated[str | None, typer.Option(metavar="DAY", help="Only files changed before this day.")] = None,
    rerank: Annotated[int, typer.Option(min=0, metavar="K", help="Order the first K by the fusion decoder.")] = 0,
    store: Annotated[StoreName, typer.Option(help="What answers; faiss and lance are extras.")] = StoreName.auto,
    as_json: AsJson = False,
) -> None:
    """Search an index by a text, a video or a picture."""
    from evilm.search.index import VideoIndex
    from evilm.search.query import Filter, day

    if (text is None) == (like is None):
        raise QueryError("say what to search for: a text, or --like FILE")
    where = Filter(within, longer, shorter, day(after) if after else None, day(before) if before else None)
    with VideoIndex.open(place, model, store.value) as found:
        hits = found.search(text or "", k, where, rerank) if like is None else found.search_like(like, k, where)
    if as_json:
        typer.echo(json.dumps(hits.as_json(), indent=2))
    else:
        _show_hits(hits)


def _show_hits(hits: "Hits") -> None:
    """A line a hit, and first of all whether they are any good."""
    from evilm.progress import clock

    if not hits:
        say("nothing found: the index is empty, or the filters leave nothing")
        return
    if hits.no_good_match:
        typer.echo("no good match; the nearest are:")
    for hit in hits:
        typer.echo(f"{hit.score:4.2f}  {clock(hit.start)}-{clock(hit.end)}  {hit.path}")
    if hits.calibration.origin == "none":
        say("scores are a guess: the index is too small to tell what a good one is")
