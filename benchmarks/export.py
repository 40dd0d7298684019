"""What each form of an exported model gains over torch: time, size, nearness.

    python benchmarks/export.py [--preset evilm-small] [--checkpoint RUN] [--calibrate VIDEOS] [--forms fp32 int8]

Without a checkpoint the preset's weights are random, with every layer scale set to 0.5 (at 1e-6, where training starts,
int8 would have next to nothing to lose); without videos, clips of the world are rendered. Each form goes through the
gate of ``evilm export``. The forms and torch (eager, fp32) take turns, clip by clip, so that whatever
else the machine does falls on all alike; CPU seconds are given beside, which other work on the machine hardly touches.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import untrained

from evilm.data.synthetic import build as build_world
from evilm.export import latency, writer
from evilm.inference import Embedder
from evilm.inference.runtime_onnx import OnnxRuntime
from evilm.inference.runtime_torch import TorchRuntime

if TYPE_CHECKING:
    from collections.abc import Callable

FORMS: dict[str, dict[str, bool]] = {"fp32": {}, "int8": {"int8": True}, "openvino": {"openvino": True}}
TEXT = "a small dog runs after a red ball and two people laugh"


def measure(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of each call, by the clock and of CPU, in turns."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter(), time.process_time()
            call()
            took[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    middle = {name: 1000 * np.median(np.array(times), axis=0) for name, times in took.items()}
    return {name: {"clock": float(row[0]), "cpu": float(row[1])} for name, row in middle.items()}


def say(text: str) -> None:
    """A line, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    """Make each form, then time them all in turns."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--preset", default="evilm-small")
    arguments.add_argument("--checkpoint", type=Path)
    arguments.add_argument("--calibrate", type=Path)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory(prefix="evilm-benchmark-") as name:
        folder = Path(name)
        source = given.checkpoint or untrained.write(folder / "checkpoint", given.preset)
        videos = given.calibrate or (build_world(folder / "world", 48, 0, val=8, test=8).path / "videos")
        engine = TorchRuntime(source)
        about = engine.metadata
        clip = np.random.default_rng(0).integers(
            0, 256, (about.num_frames, about.image_size, about.image_size, 3), dtype=np.uint8
        )
        calls = {"torch": latency.as_torch(engine, clip, TEXT)}
        reports: dict[str, Any] = {}
        for form in given.forms:
            made = writer.export(source, folder / form, calibrate=videos, say=say, **FORMS[form])
            reports[form] = made.measured
            embedder = Embedder(OnnxRuntime(folder / form, given.threads))
            calls[form] = latency.as_exported(embedder, clip, TEXT)
        for what in calls["torch"]:
            found = measure({form: each[what] for form, each in calls.items()}, given.rounds)
            for form, took in found.items():
                ratios = {kind: found["torch"][kind] / value for kind, value in took.items()}
                say(
                    f"{what:<6} {form:<9} {took['clock']:7.1f} ms ({ratios['clock']:.2f}x)  "
                    f"CPU {took['cpu']:7.1f} ms ({ratios['cpu']:.2f}x)"
                )
        for form, report in reports.items():
            say(form + " " + json.dumps({key: report[key] for key in ("cosine", "size in MB", "given up")}))


if __name__ == "__main__":
    main()
