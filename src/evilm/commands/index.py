"""Commands that make, update and join indexes of videos.

Typer reads the annotations at run time, so they are evaluated here and not postponed.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evilm.commands.console import AsJson, Cluster, say, say_how_to_resume

if TYPE_CHECKING:
    from evilm.search.calibration import Calibration
    from evilm.search.model import IndexConfig
    from evilm.search.update import Report

_LISTED = 5  # unreadable files that are printed; a file in the index lists all


class Cut(StrEnum):
    """How long videos are cut into segments."""

    shots = "shots"
    windows = "windows"


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
    pictures: Annotated[
        bool | None,
        typer.Option(
            "--pictures/--no-pictures", show_default="as the last time", help="Index still pictures beside the videos."
        ),
    ] = None,
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
    cluster: Cluster = None,
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
            pictures=pictures,
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


def embed(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder of videos, list or table of videos, or s3://... address.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder; interrupted work is continued there.")],
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="As for `evilm index`. [default: a bundled model]")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of decoder processes.")] = 2,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Embed videos and write Parquet tables: a row for each segment, and a status for each file."""
    from evilm.search import parquet

    parquet.require()
    out.mkdir(parents=True, exist_ok=True)
    try:
        index(source, out / "index", model, workers=workers, cluster=cluster, as_json=as_json)
    except typer.Exit:
        given = [*(["--model", model] if model else []), *(["--cluster", cluster] if cluster else [])]
        say_how_to_resume("the tables are not written yet", ["embed", source, str(out), *given])
        raise
    for path in parquet.write(out / "index", out):
        say(f"written: {path}")


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
