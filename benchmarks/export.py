"""Time, size and cosines of each form of an exported model, beside torch.

    python benchmarks/export.py [--preset evilm-small] [--checkpoint RUN] [--calibrate VIDEOS] [--forms fp32 int8]

Without a checkpoint the preset has random weights, with every layer scale set to 0.5 (at 1e-6, where training starts,
int8 would hardly change the output); without videos, synthetic clips are rendered. Each form must keep the limits of
``evilm export``. Torch (eager, fp32) and the forms take turns, so that other work on the machine slows all of them
alike; the CPU seconds beside the clock are hardly affected by it.
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
from evilm.export import compare, writer
from evilm.inference import Embedder
from evilm.inference.runtime_onnx import OnnxRuntime
from evilm.inference.runtime_torch import TorchRuntime
from evilm.progress import say

if TYPE_CHECKING:
    from collections.abc import Callable

FORMS: dict[str, dict[str, bool]] = {"fp32": {}, "int8": {"int8": True}, "openvino": {"openvino": True}}
TEXT = "a small dog runs after a red ball and two people laugh"


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of each call, by the clock and of CPU, in turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            clock, cpu = time.perf_counter(), time.process_time()
            call()
            if number:  # the first round warms up
                times[name].append((time.perf_counter() - clock, time.process_time() - cpu))
    medians = {name: 1000 * np.median(np.array(values), axis=0) for name, values in times.items()}
    return {name: {"clock": float(row[0]), "cpu": float(row[1])} for name, row in medians.items()}


def main() -> None:
    """Export each form, then time all of them in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="evilm-small")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--calibrate", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="evilm-benchmark-") as name:
        folder = Path(name)
        source = arguments.checkpoint or untrained.write(folder / "checkpoint", arguments.preset)
        videos = arguments.calibrate or (build_world(folder / "world", 48, 0, val=8, test=8).path / "videos")
        runtime = TorchRuntime(source)
        side = runtime.metadata.image_size
        shape = (runtime.metadata.num_frames, side, side, 3)
        clip = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        calls = {"torch": compare.timed_calls(Embedder(runtime), clip, TEXT)}
        reports: dict[str, Any] = {}
        found: dict[str, dict[str, dict[str, float]]] = {}
        for form in arguments.forms:
            made = writer.export(source, folder / form, calibrate=videos, say=say, **FORMS[form])
            reports[form] = made.measured
            calls[form] = compare.timed_calls(Embedder(OnnxRuntime(folder / form, arguments.threads)), clip, TEXT)
        for what in calls["torch"]:
            medians = measure({form: each[what] for form, each in calls.items()}, arguments.rounds)
            found[what] = medians
            for form, values in medians.items():
                ratios = {kind: medians["torch"][kind] / value for kind, value in values.items()}
                sys.stdout.write(
                    f"{what:<6} {form:<9} {values['clock']:7.1f} ms ({ratios['clock']:.2f}x)  "
                    f"CPU {values['cpu']:7.1f} ms ({ratios['cpu']:.2f}x)\n"
                )
        for form, report in reports.items():
            shown = {key: report[key] for key in ("cosine", "size in MB", "given up")}
            sys.stdout.write(f"{form} {json.dumps(shown)}\n")
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
