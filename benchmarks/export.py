"""What each form of an exported model gains over torch: time, size, nearness.

    python benchmarks/export.py [--preset evilm-small] [--checkpoint RUN] [--calibrate VIDEOS] [--forms fp32 int8]

Without a checkpoint the preset's weights are random, with every layer scale set to 0.5 (at 1e-6, where training starts,
int8 would have next to nothing to lose). The forms and torch (eager, fp32) take turns, clip by clip, so that whatever
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

from evilm import assembly, checkpoint, config, feed, trainer
from evilm import recipe as recipes
from evilm.data.world import build as build_world
from evilm.export import gate, writer
from evilm.export.onnx_engine import OnnxEngine
from evilm.export.torch_engine import TorchEngine
from evilm.inference import Embedder

if TYPE_CHECKING:
    from collections.abc import Callable

FORMS: dict[str, dict[str, bool]] = {"fp32": {}, "int8": {"int8": True}, "openvino": {"openvino": True}}
TEXT = "a small dog runs after a red ball and two people laugh"


def random_checkpoint(preset: str, folder: Path) -> Path:
    """A checkpoint of retrieval with random weights, on a small world."""
    world = build_world(folder / "world", 48, 0, val=8, test=8).path
    source = {"reader": "msrvtt_retrieval", "annotations": str(world)}
    table = {"task": {"name": "retrieval"}, "data": {"train": source}, "model": {"preset": preset}}
    recipe = config.check(recipes.Recipe, table, "benchmark")
    task, facts, start = assembly.new_task(recipe, feed.examples(recipe.data.train))
    with torch.no_grad():
        for name, parameter in task.named_parameters():
            if "gamma" in name:
                parameter.fill_(0.5)

    def fill(to: Path) -> None:
        checkpoint.write_tensors(to / "model.safetensors", task.state_dict())
        checkpoint.write_json(to / "config.json", {**trainer.describe(recipe, task, facts, start), "step": 0})
        task.vocabulary.save(to / "vocabulary.json")

    checkpoint.write(folder / "checkpoint", fill)
    return folder / "checkpoint"


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
        source = given.checkpoint or random_checkpoint(given.preset, folder)
        engine = TorchEngine(source)
        about = engine.about
        clip = np.random.default_rng(0).integers(0, 256, (about.frames, about.size, about.size, 3), dtype=np.uint8)
        videos, texts = {}, {}
        videos["torch"], texts["torch"] = gate.as_torch(engine, clip, TEXT)
        reports: dict[str, Any] = {}
        for form in given.forms:
            made = writer.export(source, folder / form, calibrate=given.calibrate, say=say, **FORMS[form])
            reports[form] = made.measured
            embedder = Embedder(OnnxEngine(folder / form, given.threads))
            videos[form], texts[form] = gate.as_exported(embedder, clip, TEXT)
        for what, calls in (("video", videos), ("text", texts)):
            found = measure(calls, given.rounds)
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
