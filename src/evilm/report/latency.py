"""Latency and peak memory of a model on the CPU, measured in a process of its own."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evilm.errors import ConfigError
from evilm.model.evilm import EViLM
from evilm.model.presets import preset as find_preset
from evilm.report.peers import PEERS, inputs
from evilm.types import Text

if TYPE_CHECKING:
    from collections.abc import Callable

WARM_UP, REPEATS = 2, 10


def measure(name: str, frames: int, size: int, words: int, vocabulary: int = 9157) -> dict[str, Any]:
    """Median seconds of one clip and one text at batch 1 in float32, and the peak memory of the process.

    Args:
        name: of ``model.presets.PRESETS`` or ``peers.PEERS``; the weights are random. A peer has its own sizes.
        frames: T.
        size: height and width of a frame in pixels.
        words: L, word pieces of the text.
        vocabulary: number of word pieces of the text encoder.

    Returns:
        ``seconds`` of ``encode_video``, ``encode_text``, ``fuse`` (not of peers) and ``all``: median, fastest and
        slowest of ``REPEATS``, and ``cpu``, the least CPU time, which other work on the machine disturbs less;
        ``memory_mib``: ``peak`` of the process, and ``before`` the model was made (Python and torch).

    Raises:
        ConfigError: the process failed, for one for lack of memory.
    """
    if name not in PEERS:
        find_preset(name)
    arguments = [name, *map(str, (frames, size, words, vocabulary))]
    done = subprocess.run(  # noqa: S603, fixed arguments
        [sys.executable, "-m", "evilm.report.latency", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ConfigError(f"{name}: cannot be measured with {frames} frames of {size}x{size}: {reason}")
    return json.loads(done.stdout)


def _peak_mib() -> float:
    """The peak resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss of a child of a large process is that of its parent
        return int(status.read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _measure_here(name: str, frames: int, size: int, words: int, vocabulary: int) -> dict[str, Any]:
    before = _peak_mib()
    with torch.inference_mode():
        if name in PEERS:
            peer: Any = PEERS[name].build().eval()
            clip, ids = inputs(PEERS[name])
            calls: dict[str, Callable[[], object]] = {"all": lambda: peer(clip, ids)}
        else:
            model = EViLM(find_preset(name).model_copy(update={"backbone_weights": "none"}), vocabulary).eval()
            pixels, mask = torch.rand(1, frames, 3, size, size), torch.ones(1, words, dtype=torch.bool)
            text = Text(ids=torch.zeros(1, words, dtype=torch.long), mask=mask, starts=mask)
            video, pieces = model.encode_video(pixels), model.encode_text(text)
            calls = {
                "encode_video": lambda: model.encode_video(pixels),
                "encode_text": lambda: model.encode_text(text),
                "fuse": lambda: model.fuse(video, pieces),
                "all": lambda: model.fuse(model.encode_video(pixels), model.encode_text(text)),
            }
        seconds = {part: _time(call) for part, call in calls.items()}
    return {
        "seconds": seconds,
        "memory_mib": {"peak": round(_peak_mib()), "before": round(before)},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _time(call: Callable[[], object]) -> dict[str, float]:
    spent: list[tuple[float, float]] = []
    for _ in range(WARM_UP + REPEATS):
        began, cpu = time.perf_counter(), time.process_time()
        call()
        spent.append((time.perf_counter() - began, time.process_time() - cpu))
    kept, used = zip(*spent[WARM_UP:], strict=True)
    return {"median": statistics.median(kept), "fastest": min(kept), "slowest": max(kept), "cpu": min(used)}


def as_text(measured: dict[str, Any]) -> str:
    """The latencies in milliseconds and the memory in MiB."""
    memory = measured["memory_mib"]
    lines = [f"{'':<20} {'median ms':>12} {'fastest':>8} {'slowest':>11} {'least CPU ms':>13}"]
    for name, times in measured["seconds"].items():
        milliseconds = [1000 * times[key] for key in ("median", "fastest", "slowest", "cpu")]
        lines.append("{:<20} {:>12.1f} {:>8.1f} {:>11.1f} {:>13.1f}".format(name, *milliseconds))
    return "\n".join([
        *lines,
        f"batch 1, float32, {measured['threads']} CPU threads, torch {measured['torch']}, {REPEATS} repetitions",
        f"peak memory {memory['peak']:,} MiB, of which {memory['before']:,} MiB are Python and torch without a model",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure_here(sys.argv[1], *map(int, sys.argv[2:]))))
