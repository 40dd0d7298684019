"""The retrieval round of the paper's 4.2: so many videos and sentences, from files to recalls, two ways.

    python benchmarks/retrieval_round.py                    # 1,000 videos of 20 s at 320x240, 1,000 sentences
    python benchmarks/retrieval_round.py --model EXPORT     # such as an int8 export of evilm-small

The dual encoder fuses each video and each sentence once, alone. Pairwise matching fuses every pair; of it a part is
carried out, and the whole is extrapolated. Without ``--model`` the model is an untrained ``evilm-small``: its recalls
are chance, its seconds are not. Without ``--videos`` one rendered clip is copied, so that each is decoded anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import untrained

import search
from evilm import metrics
from evilm.data.video import DecoderPool
from evilm.inference import load
from evilm.types import Clip

_BATCH = 16
_PAIRS = 64  # of the pairwise matching that are really fused


class Counted:
    """An engine whose fusion passes are counted, in rows."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.rows, self._guard = engine, 0, threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def fuse(self, tokens: Any, mask: Any) -> Any:
        """The engine's own, counted."""
        with self._guard:
            self.rows += len(tokens)
        return self._engine.fuse(tokens, mask)


def embed(model: Any, paths: list[Path], workers: int) -> Any:
    """Videos to vectors by keyframes: decoding in ``workers`` processes while the model encodes."""
    vectors = np.zeros((len(paths), model.dimensions), np.float32)
    with DecoderPool(workers) as pool, ThreadPoolExecutor(workers) as threads:

        def read(path: Path) -> Any:
            return pool.read(Clip(path), model.num_frames, model.image_size, None, "fast", model.resize_mode)

        groups = [paths[i : i + _BATCH] for i in range(0, len(paths), _BATCH)]
        waiting = [[threads.submit(read, path) for path in group] for group in groups[:2]]
        for i in range(len(groups)):
            if i + 2 < len(groups):
                waiting.append([threads.submit(read, path) for path in groups[i + 2]])
            frames = np.stack([each.result() for each in waiting[i]])
            vectors[i * _BATCH : i * _BATCH + len(frames)] = model.embed_frames(frames)
            waiting[i] = []
    return vectors


def fuse_pairs(model: Any, videos: Any, texts: Any) -> float:
    """Seconds of one fusion of a video with a text; every video is fused with all texts at once."""
    spent: list[float] = []
    seen = np.concatenate([texts.mask, np.ones((len(texts), videos.mask.shape[1]), np.bool_)], 1)
    model.runtime.rows = 0
    for own in videos.tokens:
        began = time.perf_counter()
        model.runtime.fuse(np.concatenate([texts.tokens, np.broadcast_to(own, (len(texts), *own.shape))], 1), seen)
        spent.append(time.perf_counter() - began)
    return float(np.median(spent)) / len(texts)


def main() -> None:
    """One round, printed as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="an export or a checkpoint")
    parser.add_argument("--preset", default="evilm-small", help="of the untrained model where none is named")
    parser.add_argument("--count", type=int, default=1000, help="videos, and sentences")
    parser.add_argument("--videos", type=Path, help="a folder of videos in place of the rendered one")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        model = load(chosen.model or untrained.write(home / "model", chosen.preset))
        paths = sorted(chosen.videos.rglob("*.mp4"))[: chosen.count] if chosen.videos else []
        if not paths:
            search.render(home / "0.mp4", 20, (240, 320))
            paths = [Path(shutil.copyfile(home / "0.mp4", home / f"{i + 1}.mp4")) for i in range(chosen.count)]
        texts = [f"clip number {i} of a man who walks down a street with a red umbrella" for i in range(len(paths))]
        engine = model.runtime = Counted(model.runtime)
        began = time.perf_counter()
        videos = embed(model, paths, chosen.workers)
        sentences = model.embed_texts(texts)
        found = metrics.retrieval((sentences @ videos.T).astype(np.float64), np.eye(len(paths), dtype=bool))
        seconds, passes = time.perf_counter() - began, engine.rows
        frames = np.stack([model.read_frames(Clip(path), "fast") for path in paths[:4]])
        each = fuse_pairs(model, model.encode_frames(frames), model.encode_texts(texts[: _PAIRS // 4]))
    pairs = len(paths) ** 2
    json.dump(
        {
            "videos": len(paths), "sentences": len(texts), "seconds": round(seconds, 1), "fusion_passes": passes,
            "pairwise_fusion_passes": pairs, "ratio": round(pairs / passes, 1),
            "pairwise_fusion_seconds_extrapolated": round(each * pairs), "pairs_really_fused": engine.rows,
            "metrics": found, "model": repr(model), "load": round(os.getloadavg()[0], 1), "cores": os.cpu_count(),
        },
        sys.stdout, indent=2,
    )  # fmt: skip
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
