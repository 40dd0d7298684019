"""Cost of reading the frames of a clip in several ways, in processor time of one thread.

Usage: python benchmarks/decode.py [--rounds 5] [--folder /tmp/films] [--json FILE]

The video has 20 s of 1280x720 (moving noise, H.264 with x264's defaults: a keyframe every 250 frames, three B-frames).
Each way reads four frames of 224x224 in the middles of its quarters:

    linear      PyAV, decoding all frames up to the last one needed
    exact, fast VideoReader in this process
    pool        `exact` in a decoder process, including the time of that process
    opencv      CAP_PROP_POS_MSEC for each frame, if OpenCV is installed
    torchcodec  get_frames_played_at, if torchcodec is installed and runs

With `--hour` it also reads 20 s near the end of a video of one hour. The ways take turns within a round; the ratio to
`linear` is that of the medians. OpenCV and torchcodec are not dependencies of the project: install
`opencv-python-headless` or `torchcodec` to include them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np

from evilm.data.sampling import frame_times
from evilm.data.video import DecoderPool, VideoReader, read_clip
from evilm.types import Clip

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Way = Callable[[Path, NDArray[np.float64]], object]

RATE, SIZE, FRAMES, SECONDS = 25, 224, 4, 20
HOUR = 3600


def film(path: Path, seconds: int, height: int, width: int) -> Path:
    """Write a video of smooth moving noise, whose frames differ as those of a real video do."""
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, size=(height // 8 + 64, width // 8 + 64, 3), dtype=np.uint8)
    scene = np.repeat(np.repeat(small, 8, 0), 8, 1)
    unfinished = path.with_name("unfinished.mp4")
    with av.open(str(unfinished), "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "threads": "2"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(seconds * RATE):
            down, right = 2 * i % 512, 3 * i % 512
            picture = np.ascontiguousarray(scene[down : down + height, right : right + width])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return unfinished.rename(path)


def linear(path: Path, times: NDArray[np.float64]) -> None:
    """Decode all frames up to the last one needed, and scale those needed."""
    wanted, taken = list(times), []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for picture in container.decode(stream):
            if wanted and picture.time is not None and picture.time >= wanted[0] - 1 / RATE:
                wanted.pop(0)
                taken.append(picture.reformat(SIZE, SIZE, "rgb24").to_ndarray())
            if not wanted:
                return


def ours(mode: str) -> Way:
    """``VideoReader`` in this process."""

    def read(path: Path, times: NDArray[np.float64]) -> None:
        with VideoReader(path) as reader:
            reader.frames_at(times, "fast" if mode == "fast" else "exact", SIZE)

    return read


def others(path: Path) -> dict[str, Way]:
    """The other libraries that are installed and run."""
    ways: dict[str, Way] = {}
    try:
        import cv2
    except ImportError:
        pass
    else:
        cv2.setNumThreads(1)

        def opencv(path: Path, times: NDArray[np.float64]) -> None:
            video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
            for time in times:
                video.set(cv2.CAP_PROP_POS_MSEC, time * 1000)
                _, picture = video.read()
                cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA)

        ways["opencv"] = opencv
    try:
        from torchcodec.decoders import VideoDecoder

        VideoDecoder(str(path), num_ffmpeg_threads=1)  # loads its libraries
    except (ImportError, RuntimeError, OSError) as error:
        print(f"torchcodec: does not run here ({type(error).__name__})")  # noqa: T201
    else:

        def torchcodec(path: Path, times: NDArray[np.float64]) -> None:
            VideoDecoder(str(path), num_ffmpeg_threads=1, seek_mode="approximate").get_frames_played_at(list(times))

        ways["torchcodec (without scaling)"] = torchcodec
    return ways


def processor_time() -> float:
    """Processor seconds of this process and of its finished children."""
    return sum(
        sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )  # fmt: skip


def child_time(pool: DecoderPool) -> float:
    """Processor seconds of the running decoder processes."""
    fields = [
        Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split() for pid in pool.processes
    ]
    return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")


def measure(path: Path, times: NDArray[np.float64], ways: dict[str, Way], rounds: int) -> dict[str, float]:
    """Median milliseconds of processor time of each way; the ways take turns."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    with DecoderPool() as pool:
        pool.check(path)
        clip = Clip(path, times[0] - SECONDS / FRAMES / 2, times[-1] + SECONDS / FRAMES / 2)
        for _ in range(rounds):
            for name, way in ways.items():
                began = processor_time()
                way(path, times)
                spent[name].append(processor_time() - began)
            began = processor_time() + child_time(pool)
            pixels = pool.read(clip, FRAMES, SIZE)
            spent.setdefault("pool", []).append(processor_time() + child_time(pool) - began)
        assert (pixels == read_clip(clip, FRAMES, SIZE)).all()
    return {name: 1000 * statistics.median(seconds) for name, seconds in spent.items()}


def main() -> None:
    """Make the videos, measure, print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--folder", type=Path, help="folder that keeps the videos between calls")
    options.add_argument("--hour", action="store_true", help="also read a video of one hour (takes minutes to make)")
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    result: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = chosen.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        short = film(folder / "short.mp4", SECONDS, 720, 1280)
        ways = {"linear": linear, "exact": ours("exact"), "fast": ours("fast"), **others(short)}
        result["20 s of 1280x720"] = measure(short, frame_times(FRAMES, SECONDS), ways, chosen.rounds)
        if chosen.hour:
            seeking = {name: way for name, way in ways.items() if name != "linear"}
            for title, seconds in (("20 s of 320x180", SECONDS), ("20 s at 0:58:20 of an hour of 320x180", HOUR)):
                path = film(folder / f"small-{seconds}.mp4", seconds, 180, 320)
                start = 3500.0 if seconds == HOUR else 0.0
                result[title] = measure(path, frame_times(FRAMES, SECONDS, start=start), seeking, chosen.rounds)
    for title, spent in result.items():
        print(f"\n{title}, {FRAMES} frames, milliseconds of processor time")  # noqa: T201
        for name, milliseconds in spent.items():
            ratio = f"{spent['linear'] / milliseconds:6.1f}x" if "linear" in spent else ""
            print(f"  {name:<30} {milliseconds:8.1f} {ratio}")  # noqa: T201
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
