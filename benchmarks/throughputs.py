"""Measure what each stage of a large data set costs on this machine: the file that `evilm plan --throughputs` reads.

    python benchmarks/throughputs.py src/evilm/cluster/throughputs.json [--clips 8] [--preset evilm-small]

Clips of 20 s at 1280x720 are made, indexed, packed and labelled, and some pre-training steps are taken. CPU seconds
of this process and of its decoders are counted, which other programs on the machine change little; the commit of a
file and the start of a worker are seconds on the clock. Models have random weights, which take as long as trained
ones.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import untrained
from pretrain_step import Step, Variant, batches

from evilm.data.pack import pack
from evilm.data.packed_frames import PackConfig
from evilm.inference import load
from evilm.model.tokenizer import TokenizerConfig, VideoTokenizer
from evilm.search.database import Database, NewFile
from evilm.search.model import IndexConfig
from evilm.search.pipeline import Pipeline
from evilm.search.scan import walk
from evilm.types import Clip, Example
from search import FreeModel, render

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SECONDS, SIDE, FILES = 20, (720, 1280), 2000  # of a clip; files that are committed


def cpu(act: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, child processes that have ended included, and its result."""

    def now() -> float:
        both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(each.ru_utime + each.ru_stime for each in both)

    began = now()
    found = act()
    return now() - began, found


def measure(options: argparse.Namespace, home: Path) -> dict[str, Any]:
    """All costs, see ``cluster.plan.Throughputs``."""
    torch.set_num_threads(1)
    videos = home / "videos"
    videos.mkdir()
    render(videos / "0.mp4", options.seconds, tuple(options.pixels))
    for i in range(1, options.clips):
        shutil.copyfile(videos / "0.mp4", videos / f"{i}.mp4")
    checkpoint = untrained.write(home / "model", options.preset)
    began = time.perf_counter()
    model = load(str(checkpoint), threads=1)
    pixels = np.zeros((1, model.num_frames, model.image_size, model.image_size, 3), np.uint8)
    model.embed_frames(pixels)
    start = time.perf_counter() - began
    free: Any = FreeModel(model)
    decoding, groups = cpu(lambda: list(Pipeline(free, IndexConfig(), 1).run(walk(videos).files)))
    segments = sum(len(file.spans) for group in groups for file in group)
    batch = np.repeat(pixels, 16, 0)
    encoding, _ = cpu(lambda: [model.embed_frames(batch) for _ in range(options.rounds)])
    rows = [Example(str(i), f"v{i}", Clip(videos / f"{i}.mp4"), ("a clip",)) for i in range(options.clips)]
    packing, done = cpu(lambda: pack(rows, home / "pack", "train", PackConfig(size=256), workers=1))
    tokenizer = VideoTokenizer(TokenizerConfig()).eval()
    side = tokenizer.config.image_size
    frames = torch.randint(0, 256, (1, 8, 3, side, side), dtype=torch.uint8)
    labelling, labels = cpu(lambda: [tokenizer.labels(frames) for _ in range(options.rounds)])
    shape = argparse.Namespace(preset=options.preset, size=model.image_size, frames=model.num_frames, device="cpu",
                               batch=options.batch)  # fmt: skip
    step, source = Step(shape, Variant(bf16=False), parts=False), batches(shape)
    step.take(next(source))
    training, _ = cpu(lambda: [step.take(next(source)) for _ in range(options.rounds)])
    return {
        "cpu_decode_segment": decoding / segments,
        "cpu_encode_segment": encoding / (16 * options.rounds),
        "cpu_pack_clip": packing / options.clips,
        "cpu_label_clip": labelling / options.rounds,
        "cpu_train_clip": training / (options.batch * options.rounds),
        "start_worker": start,
        "bytes_packed_clip": _size(done.folder) / options.clips,
        "bytes_label_clip": 2.0 * labels[0].numel(),
        **commits(home / "index", options.width),
    }


def commits(folder: Path, width: int) -> dict[str, float]:
    """Seconds to commit a file of three segments, sixteen together, and bytes of a segment in an index."""
    vectors = np.random.default_rng(0).standard_normal((3 * FILES, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    folder.mkdir()
    spans = [(8.0 * i, 8.0 * i + 8) for i in range(3)]
    with Database(folder, write=True) as database:
        began = time.perf_counter()
        for first in range(0, FILES, 16):
            with database.transaction():
                for i in range(first, min(FILES, first + 16)):
                    path = f"/videos/{i:012}.mp4".encode()
                    database.put(NewFile(path, 1, 1, i, b"", "ok", "", 24.0, spans, vectors[3 * i : 3 * i + 3]))
        seconds = time.perf_counter() - began
    # The cache of vectors holds them a second time.
    return {"commit_file": seconds / FILES, "bytes_index_segment": _size(folder) / len(vectors) + 4 * width + 16}


def _size(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--preset", default="evilm-small")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--pixels", type=int, nargs=2, default=SIDE, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    return parser.parse_args(words)


def main() -> None:
    """Measure and write the file."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    about = {
        "machine": f"{os.cpu_count()} cores {platform.machine()}, {_processor()}",
        "command": shlex.join(["python", "benchmarks/throughputs.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
    }
    numbers = {name: float(f"{value:.4g}") for name, value in found.items()}
    text = json.dumps(about | numbers, indent=2) + "\n"
    options.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
