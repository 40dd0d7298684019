"""``evilm data``: generate, check and pack data sets, build vocabularies, check video files.

Typer reads annotations at run time, so this module does not postpone their evaluation.
"""

import json
import time
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from evilm.commands.console import AsJson, Cluster, say, say_how_to_resume
from evilm.errors import ConfigError, DataError

QUIET_SECONDS = 15.0  # between two lines of progress
_LISTED = 5  # unreadable clips that are printed; a file lists all of them

Reader = Annotated[str, typer.Argument(metavar="READER", help="Annotation format: see docs/data.md.")]
Annotations = Annotated[Path, typer.Argument(metavar="ANNOTATIONS", help="Annotation file, or the folder that has it.")]
Videos = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Folder of the videos. [default: beside ANNOTATIONS]")
]


class ResizeMode(StrEnum):
    """How a picture becomes square."""

    crop = "crop"
    squash = "squash"


def synthetic(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder, or a data set to complete.")],
    clips: Annotated[int, typer.Option(help="Number of videos in all splits.")] = 1000,
    seed: Annotated[int, typer.Option(help="Random seed of the whole data set.")] = 0,
    val: Annotated[int | None, typer.Option(help="Number of validation videos. [default: 5 % of --clips]")] = None,
    test: Annotated[int | None, typer.Option(help="Number of test videos. [default: 10 % of --clips]")] = None,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="Use a colour and an action that other synthetic data sets lack.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Number of processes. [default: one per CPU]")] = None,
) -> None:
    """Generate a data set of moving shapes: videos, captions, questions."""
    from evilm.data.synthetic import build
    from evilm.progress import Meter

    with Meter("generating", clips, "clips") as meter:
        made = build(
            out, clips, seed, val=val, test=test, unseen=unseen, workers=workers,
            progress=lambda done, _: meter.update(done),
        )  # fmt: skip
    splits = ", ".join(f"{name} {count}" for name, count in made.splits.items())
    typer.echo(
        f"{out}: {clips} clips ({splits}), {made.captions} captions, {made.questions} questions, "
        f"{made.choices} choices; {made.rendered} rendered now"
    )


def check(
    reader: Reader,
    annotations: Annotations,
    videos: Videos = None,
    missing: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write missing videos here. [default: missing-READER.txt]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a data set with its published size and list missing videos."""
    from evilm.report import data_check

    began = printed = time.monotonic()

    def progress(split: str, rows: int) -> None:
        nonlocal printed
        now = time.monotonic()
        if now - printed >= QUIET_SECONDS:
            printed = now
            say(f"reading {split}: {rows:,} rows, {now - began:.0f} s")

    result = data_check.check(data_check.Source(reader, annotations, videos), missing, progress)
    if as_json:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(data_check.as_table(result))
    console.print("\n".join(data_check.as_lines(result)), markup=False, soft_wrap=True)


def pack(
    reader: Reader,
    annotations: Annotations,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder; an interrupted pack is continued there.")],
    videos: Videos = None,
    split: Annotated[str, typer.Option(help="Split to pack; it is written to OUT/SPLIT.")] = "train",
    size: Annotated[int, typer.Option(min=16, help="Frame width and height in pixels.")] = 256,
    cached_frames: Annotated[int, typer.Option(min=1, max=99, help="Number of frames stored for each clip.")] = 8,
    resize_mode: Annotated[
        ResizeMode, typer.Option(help="Make frames square by a centre crop or by squashing.")
    ] = ResizeMode.crop,
    raw: Annotated[
        bool, typer.Option("--raw", help="Store exact pixels instead of JPEG; needs 16 times the space.")
    ] = False,
    per_shard: Annotated[int, typer.Option(min=1, help="Number of clips in a shard.")] = 512,
    workers: Annotated[int, typer.Option(min=0, help="Number of decoding processes.")] = 2,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that one clip may take.")] = 9.0,
    cluster: Cluster = None,
) -> None:
    """Decode the videos of a split once and store small frames in shards."""
    from evilm.data import packed_frames, readers, table
    from evilm.data.pack import pack as run_pack
    from evilm.progress import Meter

    rows = table.collect(readers.stream(reader, annotations, videos, split))
    config = packed_frames.PackConfig(
        size=size, cached_frames=cached_frames, resize_mode=resize_mode.value, frames="raw" if raw else "jpeg",
        per_shard=per_shard,
    )  # fmt: skip
    runner = None
    if cluster is not None:
        from evilm.cluster.jobs import pack_shards

        runner = partial(pack_shards, cluster)
    try:
        with Meter("packing", table.count_clips(rows), "clips") as meter:
            done = run_pack(
                rows, out, split, config, workers=workers, timeout=timeout, runner=runner,
                progress=lambda n, _: meter.update(n),
            )  # fmt: skip
    except KeyboardInterrupt:
        given = ["data", "pack", reader, str(annotations), str(out), "--split", split, "--size", str(size)]
        given += ["--cached-frames", str(cached_frames), "--resize-mode", resize_mode.value]
        given += ["--per-shard", str(per_shard), *(["--videos", str(videos)] if videos else [])]
        given += [*(["--raw"] if raw else []), "--workers", str(workers), "--timeout", f"{timeout:g}"]
        given += [] if cluster is None else ["--cluster", cluster]
        say_how_to_resume("stopped; complete shards are kept", given)
        raise typer.Exit(130) from None
    problems = packed_frames.read_problems(done.folder / packed_frames.PROBLEMS)
    for clip, (status, reason) in list(problems.items())[:_LISTED]:
        say(f"unreadable: {clip}: {status}: {reason}")
    if len(problems) > _LISTED:
        say(f"and {len(problems) - _LISTED} more: {done.folder / packed_frames.PROBLEMS}")
    typer.echo(
        f"{done.folder}: {done.clips} clips in {done.shards} shards ({done.written} written now), {done.unreadable} "
        f"unreadable; train on them with data.packed={out}"
    )


def labels(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="TOML file, or the name of a bundled recipe.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[A.B=C]...", help="Settings that replace those of the recipe.")
    ] = None,
    cluster: Cluster = None,
) -> None:
    """Compute the token labels that a pre-training recipe needs, before it is trained."""
    from evilm.training import build, caches
    from evilm.training import recipe as recipes

    settings = recipes.load(recipes.find(recipe), [*(changes or ()), "task.labels=cached"])
    rows = build.training_examples(settings.data)
    task, _ = build.new_task(settings, rows)
    runner = None
    if cluster is not None:
        from evilm.cluster.jobs import label_blocks

        runner = partial(label_blocks, cluster)
    store = caches.frame_store(settings, rows, task.clip_shape[1], train=True)
    made = caches.cached_labels(settings, task, store, runner)
    if made is None:
        raise ConfigError(f"{recipe}: {settings.task.name} with these settings needs no token labels")
    typer.echo(f"{made.path}: token labels of {len(made.frames)} clips; train on them with task.labels=cached")


def vocabulary(
    captions: Annotated[list[Path], typer.Option(metavar="FILE...", help="Caption files: one or more.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Vocabulary file to write.")],
    more: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="Further caption files.")] = None,
    wordpieces: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Published vocabulary to prune. [default: train a new one]")
    ] = None,
    keep: Annotated[
        float | None, typer.Option(help="Fraction of the published vocabulary to keep. [default: 0.3]")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Word pieces of a new vocabulary. [default: 9157]")] = None,
) -> None:
    """Build a word-piece vocabulary from captions, new or pruned."""
    from evilm.data.vocabulary_build import PAPER_KEEP, PAPER_SIZE, build

    if wordpieces is None and keep is not None:
        raise ConfigError("--keep prunes a published vocabulary: name it with --wordpieces, or use --size to train one")
    if wordpieces is not None and size is not None:
        raise ConfigError("--size is for a new vocabulary and --wordpieces prunes a published one: omit one of them")
    files = [*captions, *(more or [])]
    report = build(files, out, wordpieces, PAPER_KEEP if keep is None else keep, PAPER_SIZE if size is None else size)
    typer.echo(str(report))


def check_videos(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder whose files are all tried, at any depth.")],
    workers: Annotated[int | None, typer.Option(min=1, help="Number of processes. [default: one per CPU]")] = None,
    timeout: Annotated[
        float,
        typer.Option(min=0.1, metavar="SECONDS", help="Time limit of a file; more for frames larger than 1920x1080."),
    ] = 8.0,
    max_pixels: Annotated[
        int, typer.Option(min=1, metavar="N", help="Largest accepted frame in pixels (width x height).")
    ] = 7680 * 4320,
    max_hours: Annotated[float, typer.Option(min=0, help="Longest accepted video in hours.")] = 24.0,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Try to decode every file of a folder; print a status for each."""
    import dataclasses
    import os

    from evilm.data.video import LIMITS, DecoderPool
    from evilm.data.video.check import FolderReport, check_folder, list_files
    from evilm.progress import Meter

    if not os.path.lexists(folder):
        raise DataError(f"{folder}: no such folder")
    files, unlisted = list_files(folder)
    limits = dataclasses.replace(LIMITS, timeout=timeout, max_pixels=max_pixels, max_seconds=max_hours * 3600)
    workers = workers or os.cpu_count() or 1
    try:
        with Meter("checking", len(files), "files") as meter:
            if cluster is not None:
                from evilm.cluster.jobs import check_files

                findings = check_files(cluster, files, limits, workers, meter.update)
                report = FolderReport.of(findings, unlisted)
            else:
                with DecoderPool(workers, limits) as pool:
                    report = check_folder(files, unlisted, pool, workers, meter.update)
    except KeyboardInterrupt:
        say_how_to_resume("stopped; no results are kept", ["data", "check-videos", str(folder)])
        raise typer.Exit(130) from None
    typer.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())
    if unlisted:
        folder, reason = unlisted[0]
        raise DataError(f"{len(unlisted)} folders cannot be listed, the first {folder}: {reason}")
