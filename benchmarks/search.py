"""Measure search: a text query over an index, nearest neighbours alone, and indexing beside its two stages alone.

    python benchmarks/search.py query --segments 100000      # p50 with the text encoder included
    python benchmarks/search.py nearest --segments 1000000 --width 512 [--noise 0.1]
    python benchmarks/search.py indexing --clips 64          # of 20 s at 1280x720

Each prints one JSON object. ``--model`` is an export or a checkpoint; without it, an untrained ``evilm-small``.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm.search import vectors
from evilm.search.calibration import UNRELATED
from evilm.search.database import Database, NewFile
from evilm.search.index import VideoIndex
from evilm.search.model import IndexConfig, bind_model
from evilm.search.nearest import Exact, Faiss
from evilm.search.pipeline import Pipeline
from evilm.search.scan import walk
from evilm.search.update import KIND

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def unit_rows(rows: int, width: int, seed: int = 0, noise: float | None = None) -> NDArray[np.float32]:
    """Random unit vectors; with ``noise``, a thousand random directions with so much noise around each."""
    random = np.random.default_rng(seed)
    matrix = random.standard_normal((rows, width), dtype=np.float32)
    if noise is not None:
        kinds = np.random.default_rng(1).standard_normal((1000, width), dtype=np.float32)
        matrix *= noise
        for i in range(0, rows, 65536):
            matrix[i : i + 65536] += kinds[random.integers(0, 1000, len(matrix[i : i + 65536]))]
    for i in range(0, rows, 65536):
        matrix[i : i + 65536] /= np.linalg.norm(matrix[i : i + 65536], axis=1, keepdims=True)
    return matrix


def timed(act: Callable[[], Any], times: int) -> dict[str, float]:
    """Milliseconds of repeated calls, after three to warm up."""
    return in_turns({"it": act}, times)["it"]


def in_turns(acts: dict[str, Callable[[], Any]], times: int) -> dict[str, dict[str, float]]:
    """Milliseconds of several calls that take turns, after three rounds to warm up."""
    spent: dict[str, list[float]] = {name: [] for name in acts}
    for i in range(times + 3):
        for name, act in acts.items():
            began = time.perf_counter()
            act()
            if i >= 3:
                spent[name].append(1000 * (time.perf_counter() - began))
    return {
        name: {"p50": round(statistics.median(each), 2), "p95": round(float(np.percentile(each, 95)), 2),
               "least": round(min(each), 2)}
        for name, each in spent.items()
    }  # fmt: skip


def resident() -> dict[str, int]:
    """MiB of this process in memory: its own, and mapped files, which the system takes back when needed."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {what: int(lines[name].split()[0]) >> 10 for what, name in (("own", "RssAnon"), ("of files", "RssFile"))}


def query(home: Path, model: Any, segments: int, backend: str) -> dict[str, Any]:
    """Open an index with ``segments`` random vectors and search it with sentences."""
    place, width = home / "index", int(model.embed_texts(["a"]).shape[1])
    place.mkdir()
    (place / ".evilm").write_text(KIND + "\n")
    each = 20
    with Database(place, write=True) as database:
        bind_model(database, model, None)
        matrix = unit_rows(segments, width)
        spans = [(8.0 * i, 8.0 * i + 8) for i in range(each)]
        began = time.perf_counter()
        with database.transaction():
            for start in range(0, segments, each):
                some = matrix[start : start + each]
                path = f"/videos/{start // each:07}.mp4".encode()
                database.put(NewFile(path, 1, 1, start, b"", "ok", "", 160.0, spans[: len(some)], some))
        written = time.perf_counter() - began
        vectors.save(place, database.metadata("identity"), vectors.load(database, width))
    del matrix, some  # which is a view of it
    began = time.perf_counter()
    index = VideoIndex.open(place, model, backend)
    index.search(UNRELATED[0])
    first = time.perf_counter() - began
    texts = iter(UNRELATED * 10)
    whole = timed(lambda: index.search(next(texts)), 40)
    again = iter(UNRELATED * 10)
    return {
        "segments": segments, "width": width, "backend": backend, "query_ms": whole,
        "of_which_text_encoder_ms": timed(lambda: model.embed_texts([next(again)]), 40),
        "open_and_first_search_s": round(first, 3), "written_segments_per_s": round(segments / written),
        "caches_mib": {path.name: path.stat().st_size >> 20 for path in sorted(place.glob("*.cache"))},
        "resident_mib": resident(),
    }  # fmt: skip


def nearest(segments: int, width: int, noise: float | None) -> dict[str, Any]:
    """Search random vectors in memory, without a text encoder: each backend in turns, with the same queries."""
    matrix = unit_rows(segments, width, 0, noise)
    queries = unit_rows(64, width, 2, noise)
    backends: dict[str, Any] = {"exact": Exact(matrix)}
    made: dict[str, float] = {}
    if importlib.util.find_spec("faiss") is not None:
        began = time.perf_counter()
        backends["faiss"] = Faiss(matrix, Faiss.train(matrix))
        made["faiss"] = round(time.perf_counter() - began, 1)
    differ = dict.fromkeys(backends, 0)
    for query in queries[:16]:
        expected = backends["exact"].nearest(query, 10)[0]
        for name, backend in backends.items():
            differ[name] += int((backend.nearest(query, 10)[0] != expected).any())
    turns = {name: itertools.cycle(queries) for name in backends}
    acts = {
        name: lambda backend=backend, name=name: backend.nearest(next(turns[name]), 10)
        for name, backend in backends.items()
    }
    return {
        "segments": segments, "width": width, "noise": noise, "ms": in_turns(acts, 30),
        "of 16 queries with other hits": differ, "seconds_to_build": made, "mib": matrix.nbytes >> 20,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip


def render(path: Path, seconds: int, side: tuple[int, int]) -> None:
    """A moving pattern as H.264, a keyframe every two seconds or so."""
    import av

    height, width = side
    rows, columns = np.mgrid[0:height, 0:width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.gop_size, stream.options = 50, {"preset": "ultrafast", "crf": "30"}
        stream.codec_context.time_base = Fraction(1, 25)
        for i in range(25 * seconds):
            wave = 127 + 120 * np.sin((rows + columns + 9 * i) / 40)
            picture = np.stack([wave, np.roll(wave, 5 * i, 1), 255 - wave], -1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


class FreeModel:
    """A model whose encoding costs nothing, so that only decoding is measured."""

    def __init__(self, model: Any) -> None:
        self.fingerprint, self.num_frames, self.image_size = "free", model.num_frames, model.image_size
        self.resize_mode = model.resize_mode

    def embed_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.ones((len(frames), 4), np.float32)


def indexing(home: Path, model: Any, clips: int, seconds: int, side: tuple[int, int], workers: int) -> dict[str, Any]:
    """Index clips; and decode alone and encode alone, each as the index does it, in the same run."""
    videos = home / "videos"
    videos.mkdir()
    render(videos / "0.mp4", seconds, side)
    for i in range(1, clips):
        shutil.copyfile(videos / "0.mp4", videos / f"{i}.mp4")
    config, free = IndexConfig(), FreeModel(model)
    began = time.perf_counter()
    groups = Pipeline(free, config, workers).run(walk(videos).files)  # pyright: ignore[reportArgumentType]
    segments = sum(len(file.spans) for group in groups for file in group)
    decoding = time.perf_counter() - began
    pixels = np.random.default_rng(0).integers(
        0, 256, (16, model.num_frames, model.image_size, model.image_size, 3), dtype=np.uint8
    )
    model.embed_frames(pixels)
    began = time.perf_counter()
    for start in range(0, segments, 16):
        model.embed_frames(pixels[: min(16, segments - start)])
    encoding = time.perf_counter() - began
    began = time.perf_counter()
    VideoIndex.build(videos, model, home / "index", config=config, workers=workers).close()
    whole = time.perf_counter() - began
    return {
        "clips": clips, "segments": segments, "seconds_each": seconds, "pixels": side, "workers": workers,
        "decoding_alone_s": round(decoding, 2), "encoding_alone_s": round(encoding, 2), "indexing_s": round(whole, 2),
        "share_of_own_sum": round((decoding + encoding) / whole, 3),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["query", "nearest", "indexing"])
    parser.add_argument("--model", help="export or checkpoint")
    parser.add_argument("--preset", default="evilm-small", help="of the untrained model that is used without --model")
    parser.add_argument("--backend", default="exact", help="nearest-neighbour search of a query")
    parser.add_argument("--segments", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--noise", type=float, help="vectors around a thousand directions")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--pixels", type=int, nargs=2, default=(720, 1280), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        if options.what == "nearest":
            found = nearest(options.segments, options.width, options.noise)
        else:
            import untrained

            from evilm.inference import load

            model = load(options.model or untrained.write(home / "model", options.preset))
            if options.what == "query":
                found = query(home, model, options.segments, options.backend)
            else:
                found = indexing(home, model, options.clips, options.seconds, tuple(options.pixels), options.workers)
            found["model"] = repr(model)
    json.dump(found | {"load": round(os.getloadavg()[0], 1), "cores": os.cpu_count()}, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
