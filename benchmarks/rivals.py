"""Index a folder by `evilm index`, and as a plain script would: one frame a second through a CLIP of size B/32.

    python benchmarks/rivals.py [--model EXPORT] [--clips 4] [--seconds 20]

The plain script decodes every frame with PyAV, keeps one a second, scales it to 224x224 and encodes batches of 16 with
open_clip's ViT-B-32, as rclip and most notebooks do. Weights are random, which takes as long. Both sides get the same
clips, in turns; CPU seconds of each process and of its decoders are counted. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import open_clip
import throughputs
import torch
import untrained

import search
from evilm.inference import load
from evilm.search.index import VideoIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZE, BATCH = 224, 16


def plain(videos: Path, clip: Any) -> int:
    """The plain script; returns the number of frames that were encoded."""
    frames: list[Any] = []
    done = 0

    def encode() -> None:
        nonlocal done
        pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            clip.encode_image(pixels)
        done += len(frames)
        frames.clear()

    for path in sorted(videos.iterdir()):
        due = 0.0
        with av.open(str(path)) as container:
            for picture in container.decode(video=0):
                if picture.time is not None and picture.time >= due:
                    due += 1.0
                    frames.append(picture.reformat(SIZE, SIZE, "rgb24").to_ndarray())
                    if len(frames) == BATCH:
                        encode()
    if frames:
        encode()
    return done


def measure(options: argparse.Namespace, home: Path) -> dict[str, Any]:
    """CPU seconds of both, the least of some rounds."""
    torch.set_num_threads(1)
    videos = home / "videos"
    videos.mkdir()
    search.render(videos / "0.mp4", options.seconds, tuple(options.pixels))
    for i in range(1, options.clips):
        shutil.copyfile(videos / "0.mp4", videos / f"{i}.mp4")
    model = load(options.model or str(untrained.write(home / "model", options.preset)), threads=1)
    clip = open_clip.create_model("ViT-B-32").eval()
    spent: dict[str, list[float]] = {"plain": [], "evilm": []}
    frames = 0
    for number in range(options.rounds):
        seconds, frames = throughputs.cpu(lambda: plain(videos, clip))
        spent["plain"].append(seconds)
        place = home / f"index{number}"
        spent["evilm"].append(throughputs.cpu(lambda: VideoIndex.build(videos, model, place, workers=1).close())[0])  # noqa: B023 - called at once
    medians = {name: round(statistics.median(each), 2) for name, each in spent.items()}
    return {
        "clips": options.clips, "seconds_each": options.seconds, "plain_frames": frames, "cpu_s": medians,
        "faster": round(medians["plain"] / medians["evilm"], 2), "model": repr(model),
    }  # fmt: skip


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="export or checkpoint")
    parser.add_argument("--preset", default="evilm-small", help="of the untrained model that is used without --model")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--pixels", type=int, nargs=2, default=(720, 1280), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(words)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(parse(), Path(folder))
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
