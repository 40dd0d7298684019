"""Measure the stores of vectors side by side, and the merge of shard indexes, on made vectors.

    python benchmarks/stores.py nearest --segments 1000000 --width 256 --backends exact faiss lance
    python benchmarks/stores.py merge --segments 100000 --shards 4

Each prints one JSON object. ``recall`` is the fraction of the exact ten best hits that a store finds. Vectors lie
around 1,000 centres, as those of real videos do. Each store is measured in a process of its own, for the peak of its
memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from evilm.search.database import Database, NewFile
from evilm.search.merge import merge
from evilm.search.nearest import Exact, open_backend
from evilm.search.vectors import Vectors


class Model:
    """Embeds texts at random: calibration needs no more."""

    fingerprint = "made"

    def __init__(self, width: int) -> None:
        self.width = width

    def embed_texts(self, texts: list[str]) -> Any:
        return unit(np.random.default_rng(1).standard_normal((len(texts), self.width)))


def unit(rows: Any) -> Any:
    """Rows of length 1, float32."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def made(rows: int, width: int) -> Any:
    """Unit vectors around 1,000 centres, made in blocks."""
    rng = np.random.default_rng(0)
    centres, result = unit(rng.standard_normal((1000, width))), np.empty((rows, width), np.float32)
    for start in range(0, rows, 65_536):
        some = slice(start, min(rows, start + 65_536))
        noise = rng.standard_normal((some.stop - start, width), dtype=np.float32) * (1.0 / width**0.5)
        result[some] = unit(centres[rng.integers(0, 1000, len(noise))] + noise)
    return result


def one_store(name: str, rows: int, width: int, queries: int, answer: Any) -> None:
    """Build one store and search it; puts the figures into the queue ``answer``."""
    matrix = made(rows, width)
    numbers = np.arange(1, rows + 1)
    rng = np.random.default_rng(2)
    asked = unit(matrix[rng.integers(0, rows, queries)] + rng.standard_normal((queries, width)) * 0.5 / width**0.5)
    allowed = {"all": None, "1 %": rng.random(rows) < 0.01, "50 %": rng.random(rows) < 0.5}
    exact, result = Exact(matrix), dict[str, Any]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        store = open_backend(name, Vectors(1, numbers, numbers, matrix), Path(folder), "made")  # type: ignore[arg-type]
        result["build_s"] = round(time.perf_counter() - began, 2)
        for label, only in allowed.items():
            seconds, recalls = list[float](), list[float]()
            for query in asked:
                expected = set(exact.nearest(query, 10, only)[0].tolist())
                began = time.perf_counter()
                found = store.nearest(query, 10, only)[0]
                seconds.append(time.perf_counter() - began)
                recalls.append(len(expected & set(found.tolist())) / 10)
            result[label] = {
                "p50_ms": round(1000 * statistics.median(seconds), 2),
                "max_ms": round(1000 * max(seconds), 1),
                "recall": round(statistics.mean(recalls), 4),
            }
        result["disk_mb"] = round(
            sum(each.stat().st_size for each in Path(folder).rglob("*") if each.is_file()) / 2**20, 1
        )
    result["more_memory_mb"] = round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1)
    answer.put(result)


def nearest(options: argparse.Namespace) -> dict[str, Any]:
    """Every store in a process of its own."""
    results: dict[str, Any] = {"segments": options.segments, "width": options.width, "queries": options.queries}
    context = multiprocessing.get_context("spawn")
    for name in options.backends:
        answer = context.Queue()
        arguments = (name, options.segments, options.width, options.queries, answer)
        process = context.Process(target=one_store, args=arguments)
        process.start()
        results[name] = answer.get()
        process.join()
    return results


def merging(options: argparse.Namespace) -> dict[str, Any]:
    """Shard indexes of files with two segments each, merged and merged again."""
    model, vectors = Model(options.width), made(options.segments, options.width)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        parts = [Path(folder) / f"part{i}" for i in range(options.shards)]
        for i, part in enumerate(parts):
            part.mkdir()
            with Database(part, write=True) as database, database.transaction():
                database.set_metadata("model", {"path": "made", "fingerprint": model.fingerprint})
                database.set_metadata("width", options.width)
                for row in range(2 * i, options.segments - 1, 2 * options.shards):
                    file = os.fsencode(f"/videos/{row:012}.mp4")
                    pair = [(0.0, 8.0), (8.0, 16.0)]
                    database.put(NewFile(file, 1, 1, row, b"", "ok", "", 16.0, pair, vectors[row : row + 2]))
        first = merge(Path(folder) / "joined", parts, lambda _: model)  # type: ignore[arg-type, return-value]
        again = merge(Path(folder) / "joined", parts, lambda _: model)  # type: ignore[arg-type, return-value]
    return {"files": first.files, "segments": first.segments, "shards": options.shards,
            "merge_s": round(first.seconds, 1), "files_per_s": round(first.files / first.seconds),
            "again_s": round(again.seconds, 1)}  # fmt: skip


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["nearest", "merge"])
    parser.add_argument("--segments", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument(
        "--folder", type=Path, help="for the indexes of `merge`; default: the system's temporary folder"
    )
    parser.add_argument("--backends", nargs="+", default=["exact", "faiss", "lance"])
    options = parser.parse_args()
    found = nearest(options) if options.what == "nearest" else merging(options)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
