"""Cost of loading a sample from files, a frame cache, packed raw frames and packed JPEG frames, side by side.

    python benchmarks/load.py VIDEOS [--size 256] [--frames 4] [--clips 64] [--rounds 3] [--workers 2] [--out FILE]

``VIDEOS`` is a csv for the reader ``captions`` (paths and captions). All sources give the same clips. Their rounds
alternate, so that other load on the machine affects all of them, and the median of the rounds is printed.

* **by stage**, in one process: CPU milliseconds for the frames of a sample, for a random crop and flip, and for copying
  it into a batch.
* **through the loader**: samples per second, with its decoding processes and its prefetching thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm.data import readers, transforms
from evilm.data.frame_cache import FrameCache
from evilm.data.pack import pack
from evilm.data.packed_frames import PackConfig, PackedFrames
from evilm.data.pixels import FilePixels, Job, StoredPixels
from evilm.data.transforms import AugmentConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from evilm.data.loader import Loader
    from evilm.types import Example

AUGMENT = AugmentConfig(crop_scale=0.5, hflip=True)


def main() -> None:
    """Measure and print a table; ``--out`` writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    for name, default in (
        ("size", 256),
        ("frames", 4),
        ("clips", 64),
        ("cached-frames", 8),
        ("rounds", 3),
        ("workers", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = distinct(readers.read("captions", options.videos))[: options.clips]
    with tempfile.TemporaryDirectory() as folder:
        sources, once = make(rows, Path(folder), options)
        stages = measure({name: stage_timer(rows, pixels, options) for name, pixels in sources.items()}, options.rounds)
        loaders = {name: loader(rows, pixels, options) for name, pixels in sources.items()}
        for each in loaders.values():
            sum(len(batch) for batch in each.epoch(0))  # starts processes and reads files into memory
        speeds = measure({name: speed_timer(each) for name, each in loaders.items()}, options.rounds)
        for each in loaders.values():
            each.close()
    found = {
        "clips": len(rows),
        "size": options.size,
        "frames": options.frames,
        "workers": options.workers,
        "cores": os.cpu_count(),
        "preparation, CPU s": once,
        "stages, CPU ms a sample": stages,
        "loader": speeds,
    }
    show(found)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1))


def distinct(rows: list[Example]) -> list[Example]:
    """One row for each clip."""
    return list({row.clip.id: row for row in rows}.values())


def make(rows: list[Example], folder: Path, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, float]]:
    """The four sources of frames, and the CPU seconds of their preparation."""
    once: dict[str, float] = {"files": 0.0}
    size, cached_frames = options.size, options.cached_frames
    began = time.process_time()
    store = FrameCache(folder, [row.clip for row in rows], size=size, cached_frames=cached_frames)
    store.fill()
    once["cache"] = time.process_time() - began
    sources: dict[str, Any] = {"files": FilePixels(size), "cache": StoredPixels(store)}
    for kind in ("raw", "jpeg"):
        began = time.process_time()
        done = pack(rows, folder / kind, "train", PackConfig(size=size, cached_frames=cached_frames, frames=kind))
        once[f"packed {kind}"] = time.process_time() - began
        sources[f"packed {kind}"] = StoredPixels(PackedFrames(done.folder))
    return sources, once


def stage_timer(rows: list[Example], pixels: Any, options: argparse.Namespace) -> Callable[[int], dict[str, float]]:
    """A function that measures CPU milliseconds for each sample of one source, by stage, in an epoch."""

    def timed(epoch: int) -> dict[str, float]:
        spent = {"frames": 0.0, "crop and flip": 0.0, "batch": 0.0}
        batch = np.zeros((len(rows), options.frames, options.size, options.size, 3), dtype=np.uint8)
        for i, row in enumerate(rows):
            seed = epoch * len(rows) + i
            a = time.process_time()
            frames = pixels.read(Job(row.clip, seed), options.frames)
            b = time.process_time()
            changed = transforms.apply(frames, transforms.draw(AUGMENT, row, options.size, 0, seed))
            c = time.process_time()
            batch[i] = changed
            for name, seconds in zip(spent, (b - a, c - b, time.process_time() - c), strict=True):
                spent[name] += 1000 * seconds / len(rows)
        return spent

    return timed


def loader(rows: list[Example], pixels: Any, options: argparse.Namespace) -> Loader:
    """A training loader with the settings of a recipe."""
    from evilm.data.loader import Loader  # not at the top: decoding processes do not need torch

    return Loader(
        rows, pixels, options.frames, options.size, min(32, len(rows)), train=True, workers=options.workers, prefetch=2
    )


def speed_timer(each: Loader) -> Callable[[int], dict[str, float]]:
    """A function that measures samples per second of wall time in an epoch."""

    def timed(epoch: int) -> dict[str, float]:
        began = time.perf_counter()
        count = sum(len(batch) for batch in each.epoch(epoch + 1))
        return {"samples/s": count / (time.perf_counter() - began)}

    return timed


def measure(timers: dict[str, Callable[[int], dict[str, float]]], rounds: int) -> dict[str, dict[str, float]]:
    """The median of some rounds of each timer; the rounds of all timers alternate."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in timers}
    for number in range(rounds):
        for name, timer in timers.items():
            found[name].append(timer(number))
    return {
        name: {key: round(statistics.median(each[key] for each in taken), 3) for key in taken[0]}
        for name, taken in found.items()
    }


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    stages, speeds = found["stages, CPU ms a sample"], found["loader"]
    lines = [
        f"{found['clips']} clips, {found['frames']} frames of {found['size']} pixels, {found['workers']} workers",
        f"{'':<12} {'frames':>9} {'crop+flip':>10} {'batch':>7}  {'vs files':>8}  {'samples/s':>9}  once, CPU s",
    ]
    for name, spent in stages.items():
        times = stages["files"]["frames"] / spent["frames"]
        lines.append(
            f"{name:<12} {spent['frames']:>6.2f} ms {spent['crop and flip']:>7.2f} ms {spent['batch']:>4.2f} ms "
            f"{times:>8.1f}x {speeds[name]['samples/s']:>10.0f}  {found['preparation, CPU s'][name]:.1f}"
        )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
