"""Damage real videos in thousands of ways and see that each damaged file gets one status, and nothing else happens.

Usage: python benchmarks/mutants.py FOLDER_OF_VIDEOS [--count 20000] [--seed 0] [--workers 2] [--out mutants.json]

Mutant i of a seed is always the same file: a video of the folder, put into one of several containers (its packets
copied), and then damaged: bits flipped, pieces cut out, doubled, swapped, overwritten or cut off, numbers in the header
set to extremes. It goes through the check of `evilm data check-videos`, in decoder processes. Printed are the
statuses, the slowest file, the largest memory of a decoder process, and each file given up (`crashed`, `timeout`), by
number.
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

CONTAINERS = ("mp4", "mkv", "ts", "avi", "flv", "mov")
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
SOURCES = 40  # of the smallest videos: the damage matters, not the length


def remuxed(path: Path, container: str, folder: Path) -> bytes:
    """The video track of a file in another container, its packets copied; nothing where that does not take them."""
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


def place(data: bytearray, rng: Generator) -> int:
    """Where to hit: half of the time in the first or last 4 KiB, where formats keep what they say of themselves."""
    kind = rng.integers(0, 4)
    if kind == 0:
        return int(rng.integers(0, min(4096, len(data))))
    if kind == 1:
        return int(rng.integers(max(0, len(data) - 4096), len(data)))
    return int(rng.integers(0, len(data)))


def flip_bits(data: bytearray, rng: Generator) -> None:
    """1 to 256 bits."""
    for _ in range(int(2 ** rng.uniform(0, 8))):
        data[place(data, rng)] ^= 1 << int(rng.integers(0, 8))


def overwrite(data: bytearray, rng: Generator) -> None:
    """Up to 4 KiB of noise."""
    at, size = place(data, rng), int(2 ** rng.uniform(0, 12))
    data[at : at + size] = rng.bytes(min(size, len(data) - at))


def zero(data: bytearray, rng: Generator) -> None:
    """Up to 16 KiB of zeros."""
    at, size = place(data, rng), int(2 ** rng.uniform(2, 14))
    data[at : at + size] = bytes(min(size, len(data) - at))


def cut_off(data: bytearray, rng: Generator) -> None:
    """The file breaks off."""
    del data[int(rng.integers(1, len(data))) :]


def cut_out(data: bytearray, rng: Generator) -> None:
    """Up to 16 KiB are missing."""
    at = place(data, rng)
    del data[at : at + int(2 ** rng.uniform(0, 14))]


def double(data: bytearray, rng: Generator) -> None:
    """Up to 16 KiB stand there twice."""
    at, size = place(data, rng), int(2 ** rng.uniform(0, 14))
    data[at:at] = data[at : at + size]


def swap(data: bytearray, rng: Generator) -> None:
    """Two pieces of up to 4 KiB change places."""
    size = int(2 ** rng.uniform(2, 12))
    one, other = (int(each) for each in rng.integers(0, max(1, len(data) - size), size=2))
    first, second = data[one : one + size], data[other : other + size]
    data[one : one + size], data[other : other + size] = second, first


def extreme(data: bytearray, rng: Generator) -> None:
    """Numbers of 1 to 8 bytes become the smallest or largest there are."""
    for _ in range(int(rng.integers(1, 5))):
        at, width = place(data, rng), int(rng.choice([1, 2, 4, 8]))
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
    """MiB that the largest decoder process that lives now has had at most."""
    said = "".join(Path(f"/proc/{pid}/status").read_text(encoding="ascii") for pid in pool.processes)
    return max((int(size) >> 10 for size in re.findall(r"VmHWM:\s+(\d+)", said)), default=0)


def main() -> None:
    """Make, check and count."""
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
            found = pool.check(path)
            seconds = time.perf_counter() - began
            path.unlink()
            return number, found.status, found.reason, seconds

        counts: Counter[str] = Counter()
        given_up, slowest, memory = [], (0.0, -1), 0
        began = time.perf_counter()
        with pool, ThreadPoolExecutor(chosen.workers) as threads:
            numbers = range(chosen.first, chosen.first + chosen.count)
            for done, (number, status, reason, seconds) in enumerate(threads.map(one, numbers), 1):
                counts[status] += 1
                slowest = max(slowest, (seconds, number))
                if status in ("crashed", "timeout"):
                    given_up.append({"number": number, "status": status, "reason": reason.replace(name, "")})
                if done % 50 == 0:
                    memory = max(memory, largest(pool))
                meter.update(done, f"{counts['crashed']} crashed, {counts['timeout']} timeout")
        result = {
            "seed": chosen.seed, "first": chosen.first, "mutants": sum(counts.values()), "sources": len(sources),
            "counts": dict(sorted(counts.items())), "given_up": given_up, "slowest": slowest, "largest_mib": memory,
            "seconds": time.perf_counter() - began,
        }  # fmt: skip
    print(json.dumps(result, indent=2))  # noqa: T201 - what the program is for
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
