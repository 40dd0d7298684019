"""How fast search is: a text query over an index, exact ranking alone, and indexing beside its two stages alone.

    python benchmarks/search.py query --moments 100000      # p50 with the text encoder included
    python benchmarks/search.py exact --moments 1000000 --width 512 [--alike 0.1]
    python benchmarks/search.py indexing --clips 64         # of 20 s at 1280x720

Each prints one JSON object. ``--model`` is an export or a checkpoint; without one, an untrained ``evilm-small``.
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

from evilm.search.binding import IndexConfig, bind, remembered
from evilm.search.calibration import UNRELATED
from evilm.search.database import Database
from evilm.search.index import KIND, VideoIndex
from evilm.search.nearest import Exact
from evilm.search.nearest_codes import Coded
from evilm.search.nearest_faiss import Faiss, trained
from evilm.search.pipeline import Pipeline
from evilm.search.records import Entry
from evilm.search.scan import walk
from evilm.search.update import save_caches

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def unit_rows(rows: int, width: int, seed: int = 0, alike: float | None = None) -> NDArray[np.float32]:
    """Random directions; with ``alike``, a thousand of them and noise about each, as videos have kinds."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((rows, width), dtype=np.float32)
    if alike is not None:
        kinds = np.random.default_rng(1).standard_normal((1000, width), dtype=np.float32)
        vectors *= alike
        for i in range(0, rows, 65536):
            vectors[i : i + 65536] += kinds[random.integers(0, 1000, len(vectors[i : i + 65536]))]
    for i in range(0, rows, 65536):
        vectors[i : i + 65536] /= np.linalg.norm(vectors[i : i + 65536], axis=1, keepdims=True)
    return vectors


def timed(act: Callable[[], Any], times: int) -> dict[str, float]:
    """Milliseconds of repeated calls, after three that warm up."""
    return in_turns({"it": act}, times)["it"]


def in_turns(acts: dict[str, Callable[[], Any]], times: int) -> dict[str, dict[str, float]]:
    """Milliseconds of several calls that take turns, after three rounds that warm up."""
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
    """MiB of this process in memory now: its own, and pages of files, which the system takes back at need."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {what: int(lines[name].split()[0]) >> 10 for what, name in (("own", "RssAnon"), ("of files", "RssFile"))}


def query(home: Path, model: Any, moments: int, store: str) -> dict[str, Any]:
    """A real index with ``moments`` vectors at random directions, opened cold and asked in sentences."""
    place, width = home / "index", int(model.embed_texts(["a"]).shape[1])
    place.mkdir()
    (place / ".evilm").write_text(KIND + "\n")
    each = 20
    with Database(place, write=True) as catalogue:
        bind(catalogue, model, None)
        vectors = unit_rows(moments, width)
        spans = [(8.0 * i, 8.0 * i + 8) for i in range(each)]
        began = time.perf_counter()
        with catalogue.transaction():
            for start in range(0, moments, each):
                some = vectors[start : start + each]
                path = f"/videos/{start // each:07}.mp4".encode()
                catalogue.put(Entry(path, 1, 1, start, b"", "ok", "", 160.0, spans[: len(some)], some))
        written = time.perf_counter() - began
        save_caches(catalogue, vectors.load(catalogue, width))
    del vectors, some  # which is a view of them
    began = time.perf_counter()
    index = VideoIndex.open(place, model, store)
    index.search(UNRELATED[0])
    first = time.perf_counter() - began
    texts = iter(UNRELATED * 10)
    whole = timed(lambda: index.search(next(texts)), 40)
    again = iter(UNRELATED * 10)
    return {
        "moments": moments, "width": width, "store": store, "query_ms": whole,
        "of_which_text_encoder_ms": timed(lambda: model.embed_texts([next(again)]), 40),
        "open_and_first_search_s": round(first, 3), "written_moments_per_s": round(moments / written),
        "caches_mib": {path.name: path.stat().st_size >> 20 for path in sorted(place.glob("*.cache"))},
        "resident_mib": resident(),
    }  # fmt: skip


def exact(moments: int, width: int, alike: float | None) -> dict[str, Any]:
    """The nearest of so many vectors, in memory, without a text encoder: each way in turns, on the same queries."""
    vectors = unit_rows(moments, width, 0, alike)
    queries = unit_rows(64, width, 2, alike)
    began = time.perf_counter()
    coded = Coded.of(vectors)
    made = {"codes": time.perf_counter() - began}
    ways: dict[str, Any] = {"every vector": Exact(vectors), "codes": coded}
    if importlib.util.find_spec("faiss") is not None:
        began = time.perf_counter()
        ways["faiss"] = Faiss(vectors, trained(vectors))
        made["faiss"] = time.perf_counter() - began
    differ = dict.fromkeys(ways, 0)
    for query in queries[:16]:
        wanted = ways["every vector"].nearest(query, 10)[0]
        for name, way in ways.items():
            differ[name] += int((way.nearest(query, 10)[0] != wanted).any())
    turns = {name: itertools.cycle(queries) for name in ways}
    acts = {name: lambda way=way, name=name: way.nearest(next(turns[name]), 10) for name, way in ways.items()}
    return {
        "moments": moments, "width": width, "alike": alike, "ms": in_turns(acts, 30),
        "of 16 queries answered otherwise": differ, "seconds_to_make": {name: round(s, 1) for name, s in made.items()},
        "looked_at_again": round(statistics.median(len(coded.candidates(query, 10)) for query in queries[:16])),
        "mib": {"vectors": vectors.nbytes >> 20, "codes": moments * (width + 8) >> 20},
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


class Still:
    """A model whose encoding costs nothing: what is left is decoding."""

    def __init__(self, model: Any) -> None:
        self.fingerprint, self.num_frames, self.image_size, self.resize_mode = (
            "still",
            model.num_frames,
            model.image_size,
            model.resize_mode,
        )

    def embed_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.ones((len(frames), 4), np.float32)

    def embed_texts(self, texts: list[str]) -> NDArray[np.float32]:
        return np.ones((len(texts), 4), np.float32)


def indexing(home: Path, model: Any, clips: int, seconds: int, side: tuple[int, int], workers: int) -> dict[str, Any]:
    """Indexing, beside decoding alone and encoding alone, each as the index does it and in one run."""
    videos = home / "videos"
    videos.mkdir()
    render(videos / "0.mp4", seconds, side)
    for i in range(1, clips):
        shutil.copyfile(videos / "0.mp4", videos / f"{i}.mp4")
    config = IndexConfig()
    with Database(home, write=True) as catalogue:
        decode = remembered(catalogue, model, config)
    began = time.perf_counter()
    moments = sum(len(entry.spans) for entry in Pipeline(Still(model), decode, workers).run(walk(videos).files))
    decoding = time.perf_counter() - began
    pixels = np.random.default_rng(0).integers(
        0, 256, (16, model.num_frames, model.image_size, model.image_size, 3), dtype=np.uint8
    )
    model.embed_frames(pixels)
    began = time.perf_counter()
    for start in range(0, moments, 16):
        model.embed_frames(pixels[: min(16, moments - start)])
    encoding = time.perf_counter() - began
    began = time.perf_counter()
    VideoIndex.build(videos, model, home / "index", config=config, workers=workers).close()
    whole = time.perf_counter() - began
    return {
        "clips": clips, "moments": moments, "seconds_each": seconds, "pixels": side, "workers": workers,
        "decoding_alone_s": round(decoding, 2), "encoding_alone_s": round(encoding, 2), "indexing_s": round(whole, 2),
        "share_of_own_sum": round((decoding + encoding) / whole, 3),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["query", "exact", "indexing"])
    parser.add_argument("--model", help="an export or a checkpoint")
    parser.add_argument("--preset", default="evilm-small", help="of the untrained model where none is named")
    parser.add_argument("--store", default="exact", help="what answers a query")
    parser.add_argument("--moments", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--alike", type=float, metavar="NOISE", help="vectors in a thousand heaps")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--pixels", type=int, nargs=2, default=(720, 1280), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        if chosen.what == "exact":
            found = exact(chosen.moments, chosen.width, chosen.alike)
        else:
            import untrained

            from evilm.inference import load

            model = load(chosen.model or untrained.write(home / "model", chosen.preset))
            if chosen.what == "query":
                found = query(home, model, chosen.moments, chosen.store)
            else:
                found = indexing(home, model, chosen.clips, chosen.seconds, tuple(chosen.pixels), chosen.workers)
            found["model"] = repr(model)
    json.dump(found | {"load": round(os.getloadavg()[0], 1), "cores": os.cpu_count()}, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
