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
    from evilm.search.calibration import Calibration
    from evilm.search.model import IndexConfig
    from evilm.search.query import Hits
    from evilm.search.update import Report

_LISTED = 5  # unreadable files that are printed; a file in the index lists all


class Cut(StrEnum):
    """How long videos are cut into segments."""

    shots = "shots"
    windows = "windows"


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


def index(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER",
            help="Folder of videos with all folders below it, list of videos (.txt), or s3://... address.",
        ),
    ],
    index_dir: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of the index: new, or to be updated.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            show_default="the index's model; a bundled model for a new index",
            help="Model that embeds the videos: an export, a run, a bundled model or owner/name on the hub.",
        ),
    ] = None,
    cut: Annotated[
        Cut | None,
        typer.Option(
            show_default="shots", help="Cut long videos into segments at shot changes, or into equal windows."
        ),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(metavar="SECONDS", show_default="8", help="Maximum segment length in seconds.")
    ] = None,
    keyframes_only: Annotated[
        bool, typer.Option("--keyframes-only", help="Decode keyframes only: faster, less exact in time.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Number of decoder processes.")] = 2,
    timeout: Annotated[
        float,
        typer.Option(
            min=0.1, metavar="SECONDS", help="Time limit of a decoder request; larger frames than 1920x1080 get more."
        ),
    ] = 30.0,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="PIXELS", show_default="7680 x 4320", help="Maximum pixels of a frame, width x height."
        ),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Index only part I of N, counted from 0; see `evilm merge`.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Work on a Ray cluster: its address, auto, or local to start one here."),
    ] = None,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Remove all entries of the folder if it has no videos.")
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--calibrate", metavar="LIST", help="Captions of the videos, to calibrate scores of text searches."
        ),
    ] = None,
    compact: Annotated[bool, typer.Option("--compact", help="Reclaim disk space after the update.")] = False,
    as_json: AsJson = False,
) -> None:
    """Index a folder of videos, or bring its index up to date."""
    import dataclasses

    from evilm.progress import Meter
    from evilm.search.index import VideoIndex
    from evilm.search.pipeline import LIMITS
    from evilm.search.source import Shard

    runner = None
    if cluster is not None:
        from evilm.cluster.runner import RayRunner

        runner = RayRunner(cluster)
    meters: list[Meter] = []

    def show(_: object, done: int, total: int) -> None:
        if not meters:
            meters.append(Meter("indexing", total, "files"))
            meters[0].__enter__()
        meters[0].update(done)

    limits = dataclasses.replace(LIMITS, timeout=timeout)
    if max_pixels is not None:
        limits = dataclasses.replace(limits, max_pixels=max_pixels)
    try:
        with VideoIndex.build(
            folder, model, index_dir, config=_config(cut, seconds, keyframes_only), workers=workers, limits=limits,
            allow_empty=allow_empty, on_commit=show, shard=None if shard is None else Shard.parse(shard), runner=runner,
        ) as made:  # fmt: skip
            report = made.report
            calibration = None if labels is None else made.calibrate(_pairs(labels, Path(folder)))
            if compact:
                made.compact()
    except KeyboardInterrupt:
        options = {"--model": model, "--shard": shard, "--cluster": cluster}
        named = [word for option, value in options.items() if value is not None for word in (option, value)]
        say_how_to_resume("stopped; what was indexed is kept", ["index", folder, str(index_dir), *named])
        raise typer.Exit(130) from None
    finally:
        for meter in meters:
            meter.__exit__()
    assert report is not None
    if as_json:
        extra = {} if calibration is None else {"calibration": calibration.as_json()}
        typer.echo(json.dumps(report.as_json() | extra, indent=2))
    else:
        _print_report(index_dir, report, calibration)


def _pairs(labels: Path, folder: Path) -> list[tuple[str, Path]]:
    """Captions and the videos that they describe, from a list whose paths are relative to ``folder``."""
    from evilm.data.readers.captions import captions

    rows = captions(labels, folder, "validation")
    return [(text, row.clip.path) for row in rows for text in row.captions if not row.clip.frames]


def _config(cut: Cut | None, seconds: float | None, keyframes_only: bool) -> "IndexConfig | None":
    """Settings for a new index; None if no option was given, which keeps those of an existing index."""
    from evilm.config import check
    from evilm.search.model import IndexConfig

    if cut is None and seconds is None and not keyframes_only:
        return None
    options = {"method": cut and cut.value, "max_seconds": seconds}
    segments = {name: value for name, value in options.items() if value is not None}
    return check(IndexConfig, {"mode": "fast" if keyframes_only else "exact", "segments": segments}, "evilm index")


def _print_report(index_dir: Path, report: "Report", calibration: "Calibration | None") -> None:
    typer.echo(f"{index_dir}: {report}")
    for folder in report.unlisted:
        typer.echo(f"  {folder['path']}: {folder['reason']}; the index keeps what it has of this folder")
    if report.unreadable:
        typer.echo(
            f"{len(report.unreadable)} files could not be read, or only in part; all are listed in "
            f"{index_dir / 'unreadable.jsonl'}"
        )
        for file in report.unreadable[:_LISTED]:
            typer.echo(f"  {file['path']}: {file['status']}: {file['reason']}")
    if calibration is not None and calibration.right is not None:
        by_cosine = calibration.lift_centre is None
        limit = f"a cosine of {calibration.centre:.2f}" if by_cosine else f"a lift of {calibration.lift_centre:.2f}"
        typer.echo(
            f'hits below {limit} are "no good match"; this is right for {100 * calibration.right:.0f} % of '
            f"{calibration.samples} captions and as many unrelated sentences"
        )


def merge(
    index_dir: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of the index: new, or to be extended.")],
    parts: Annotated[list[Path], typer.Argument(metavar="PART...", help="Folders of the indexes to join.")],
    as_json: AsJson = False,
) -> None:
    """Join indexes of one model, such as the shards of a folder."""
    from evilm.inference import load
    from evilm.progress import Meter
    from evilm.search.merge import merge as join

    meters: list[Meter] = []

    def show(done: int, total: int) -> None:
        if not meters:
            meters.append(Meter("merging", total, "files"))
            meters[0].__enter__()
        meters[0].update(done)

    try:
        merged = join(index_dir, parts, load, show)
    except KeyboardInterrupt:
        say_how_to_resume("stopped; what was copied is kept", ["merge", str(index_dir), *map(str, parts)])
        raise typer.Exit(130) from None
    finally:
        for meter in meters:
            meter.__exit__()
    typer.echo(json.dumps(merged.__dict__, indent=2) if as_json else f"{index_dir}: {merged}")


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
    from evilm.progress import clock
    from evilm.search.remote import address

    if not hits:
        say("nothing found: " + ("the index is empty" if empty else "no indexed file meets the conditions"))
        return
    if hits.no_good_match:
        typer.echo("no good match; the nearest segments are:")
    for hit in hits:
        typer.echo(f"{hit.score:4.2f}  {clock(hit.start)}-{clock(hit.end)}  {address(hit.path)}")
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
