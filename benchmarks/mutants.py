"""Damage real videos in thousands of ways and check that each damaged file gets one status and no decoder crashes.

Usage: python benchmarks/mutants.py FOLDER_OF_VIDEOS [--count 20000] [--seed 0] [--workers 2] [--out mutants.json]

Mutant i of a seed is always the same file: a video of the folder is copied into one of several containers and then
damaged: bits are flipped, pieces are removed, doubled, swapped, overwritten or cut off, numbers in the header are set
to extremes. It is checked as by `evilm data check-videos`, in decoder processes. The program prints the number of files
by status, the slowest file, the largest memory of a decoder process, and the numbers of the files that ended as
`crashed` or `timeout`.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np

from evilm.data.video import LIMITS, DecoderPool
from evilm.progress import Meter

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.random import Generator

CONTAINERS = ("mp4", "mkv", "ts", "avi", "flv", "mov", "h264", "mxf")
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
SOURCES = 40  # the smallest videos of the folder


def remuxed(path: Path, container: str, folder: Path) -> bytes:
    """The video track of a file copied into another container; empty if the container cannot hold it."""
    target = folder / f"source.{container}"
    try:
        with av.open(str(path)) as source, av.open(str(target), "w") as out:
            track = source.streams.video[0]
            copy = out.add_stream_from_template(track)
            for packet in source.demux(track):
                if packet.dts is not None:
                    packet.stream = copy
                    out.mux(packet)
    except (av.FFmpegError, ValueError):
        return b""
    return target.read_bytes()


def position(data: bytearray, rng: Generator) -> int:
    """A random position: half of the time in the first or last 4 KiB, where formats keep their metadata."""
    kind = rng.integers(0, 4)
    if kind == 0:
        return int(rng.integers(0, min(4096, len(data))))
    if kind == 1:
        return int(rng.integers(max(0, len(data) - 4096), len(data)))
    return int(rng.integers(0, len(data)))


def flip_bits(data: bytearray, rng: Generator) -> None:
    """Flip 1 to 256 bits."""
    for _ in range(int(2 ** rng.uniform(0, 8))):
        data[position(data, rng)] ^= 1 << int(rng.integers(0, 8))


def overwrite(data: bytearray, rng: Generator) -> None:
    """Overwrite up to 4 KiB with noise."""
    at, size = position(data, rng), int(2 ** rng.uniform(0, 12))
    data[at : at + size] = rng.bytes(min(size, len(data) - at))


def zero(data: bytearray, rng: Generator) -> None:
    """Overwrite up to 16 KiB with zeros."""
    at, size = position(data, rng), int(2 ** rng.uniform(2, 14))
    data[at : at + size] = bytes(min(size, len(data) - at))


def cut_off(data: bytearray, rng: Generator) -> None:
    """Cut off the end of the file."""
    del data[int(rng.integers(1, len(data))) :]


def cut_out(data: bytearray, rng: Generator) -> None:
    """Remove up to 16 KiB."""
    at = position(data, rng)
    del data[at : at + int(2 ** rng.uniform(0, 14))]


def double(data: bytearray, rng: Generator) -> None:
    """Repeat up to 16 KiB."""
    at, size = position(data, rng), int(2 ** rng.uniform(0, 14))
    data[at:at] = data[at : at + size]


def swap(data: bytearray, rng: Generator) -> None:
    """Exchange two pieces of up to 4 KiB."""
    size = int(2 ** rng.uniform(2, 12))
    one, other = (int(each) for each in rng.integers(0, max(1, len(data) - size), size=2))
    first, second = data[one : one + size], data[other : other + size]
    data[one : one + size], data[other : other + size] = second, first


def extreme(data: bytearray, rng: Generator) -> None:
    """Set up to four numbers of 1 to 8 bytes to the smallest or largest value."""
    for _ in range(int(rng.integers(1, 5))):
        at, width = position(data, rng), int(rng.choice([1, 2, 4, 8]))
        value = int(rng.choice(EXTREMES)) & ((1 << 8 * width) - 1)
        data[at : at + width] = value.to_bytes(width, "big" if rng.random() < 0.7 else "little")


DAMAGES: tuple[Callable[[bytearray, Generator], None], ...] = (
    flip_bits, overwrite, zero, cut_off, cut_out, double, swap, extreme, extreme,
)  # fmt: skip


def mutant(sources: list[bytes], seed: int, number: int) -> bytes:
    """Mutant ``number`` of ``seed``."""
    rng = np.random.default_rng([seed, number])
    data = bytearray(sources[int(rng.integers(0, len(sources)))])
    for _ in range(int(rng.integers(1, 4))):
        if data:
            DAMAGES[int(rng.integers(0, len(DAMAGES)))](data, rng)
    return bytes(data)


def largest(pool: DecoderPool) -> int:
    """The peak memory of the running decoder processes, in MiB."""
    status = "".join(Path(f"/proc/{pid}/status").read_text(encoding="ascii") for pid in pool.processes)
    return max((int(size) >> 10 for size in re.findall(r"VmHWM:\s+(\d+)", status)), default=0)


def main() -> None:
    """Make, check and count mutants."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--count", type=int, default=20_000)
    options.add_argument("--first", type=int, default=0, help="number of the first mutant")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--timeout", type=float, default=LIMITS.timeout)
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    files = sorted(chosen.folder.rglob("*.mp4"), key=lambda path: path.stat().st_size)[:SOURCES]
    with tempfile.TemporaryDirectory(prefix="mutants-") as name, Meter("mutants", chosen.count, "files") as meter:
        folder = Path(name)
        sources = [remuxed(path, container, folder) for path in files for container in CONTAINERS]
        sources = [data for data in sources if data]
        pool = DecoderPool(chosen.workers, replace(LIMITS, timeout=chosen.timeout))

        def one(number: int) -> tuple[int, str, str, float]:
            path = folder / f"{number}.mp4"
            path.write_bytes(mutant(sources, chosen.seed, number))
            began = time.perf_counter()
            result = pool.check(path)
            seconds = time.perf_counter() - began
            path.unlink()
            return number, result.status, result.reason, seconds

        counts: Counter[str] = Counter()
        failed, slowest, memory = [], (0.0, -1), 0
        began = time.perf_counter()
        with pool, ThreadPoolExecutor(chosen.workers) as threads:
            numbers = range(chosen.first, chosen.first + chosen.count)
            for done, (number, status, reason, seconds) in enumerate(threads.map(one, numbers), 1):
                counts[status] += 1
                slowest = max(slowest, (seconds, number))
                if status in ("crashed", "timeout"):
                    failed.append({"number": number, "status": status, "reason": reason.replace(name, "")})
                if done % 50 == 0:
                    memory = max(memory, largest(pool))
                meter.update(done, f"{counts['crashed']} crashed, {counts['timeout']} timeout")
        result = {
            "seed": chosen.seed, "first": chosen.first, "mutants": sum(counts.values()), "sources": len(sources),
            "counts": dict(sorted(counts.items())), "failed": failed, "slowest": slowest, "largest_mib": memory,
            "seconds": time.perf_counter() - began,
        }  # fmt: skip
    print(json.dumps(result, indent=2))  # noqa: T201 - the result of the program
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
