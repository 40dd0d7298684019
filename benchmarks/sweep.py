"""How many clips a second pre-training takes at each batch size, how near the device's ceiling that is, what it costs.

    python benchmarks/sweep.py                                        # evilm-small, 4 frames of 256x256, one GPU
    python benchmarks/sweep.py --compile --profile profile.txt
    python benchmarks/sweep.py --device cpu --preset evilm-tiny --size 64 --batches 2 4 --rounds 2    # the same path

For each batch size, until memory runs out: median seconds of a step, clips a second, peak memory. For the fastest one:
the time of each part, its achieved TFLOP/s by the FLOPs that ``roofline.py`` counts, the share of the matrix rate given
by ``--tflops``, and the bound that arithmetic sets. Then the GPU-hours of 20 epochs of 2.5 million clips, and by
``--profile`` the kernels that took longest.

UNPROVEN on CUDA: this has been run on CPUs only, where it tells nothing about a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pretrain_step import Step, Variant, batches
from roofline import TBYTES, TFLOPS, bound

from evilm import distributed

if TYPE_CHECKING:
    from collections.abc import Sequence

EPOCHS, CLIPS, TARGET = 20, 2_500_000, 2500  # of the paper's pre-training; clips a second that are aimed at


def at_batch(arguments: argparse.Namespace, variant: Variant, batch: int, *, parts: bool) -> dict[str, Any] | None:
    """Median step, clips a second, peak memory and, if asked for, seconds by part; None where memory ran out."""
    arguments.batch = batch
    cuda = arguments.device.startswith("cuda")
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        step, source = Step(arguments, variant, parts=parts), batches(arguments)
        made = [next(source) for _ in range(2)]  # made before, so that drawing noise is not measured
        for number in range(arguments.warmup):
            step.take(made[number % 2])
        step.spent.clear()
        seconds = [step.take(made[number % 2]) for number in range(arguments.rounds)]
    except torch.cuda.OutOfMemoryError:
        return None
    median = statistics.median(seconds)
    found: dict[str, Any] = {"batch": batch, "seconds": round(median, 5), "clips/s": round(batch / median, 1)}
    if cuda:
        found["peak GB"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    if parts:
        found["parts"] = {name: spent / arguments.rounds for name, spent in step.spent.items() if name != "all"}
    return found


def by_part(arguments: argparse.Namespace, best: dict[str, Any], limit: dict[str, Any]) -> dict[str, Any]:
    """Achieved TFLOP/s of each part and its share of the ceiling.

    The way back is one part: a clock cannot tell video, text, fusions and heads apart there.
    """
    a_clip: dict[str, dict[str, Any]] = limit["a clip"]
    flops = {
        "video": a_clip["video forward"]["GFLOP"],
        "text": a_clip["text forward"]["GFLOP"],
        "fuse": a_clip["fuse forward"]["GFLOP"],
        "backward": sum(part["GFLOP"] for name, part in a_clip.items() if name.endswith("back")),
    }
    told: dict[str, Any] = {}
    for name, spent in best["parts"].items():
        told[name] = {"ms": round(1e3 * spent, 3), "share of the step": round(spent / best["seconds"], 3)}
        if name in flops and spent:
            rate = flops[name] * best["batch"] / spent / 1e3
            told[name] |= {"TFLOP/s": round(rate, 3), "share of the ceiling": round(rate / arguments.tflops, 4)}
    return told


def profile(arguments: argparse.Namespace, variant: Variant, batch: int, path: Path) -> None:
    """Write down which kernels took longest in three steps."""
    from torch.profiler import ProfilerActivity

    arguments.batch = batch
    cuda = arguments.device.startswith("cuda")
    step, made = Step(arguments, variant, parts=False), next(batches(arguments))
    step.take(made)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with torch.profiler.profile(activities=kinds) as seen:
        for _ in range(3):
            step.take(made)
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    path.write_text(seen.key_averages().table(sort_by=order, row_limit=40), encoding="utf-8")


def sweep(arguments: argparse.Namespace) -> dict[str, Any]:
    """All of it."""
    bf16 = distributed.uses_bf16(arguments.precision, torch.device(arguments.device))
    variant = Variant(bf16=bf16, compiled=arguments.compile, recompute=arguments.recompute)
    tried: list[dict[str, Any]] = []
    for batch in arguments.batches:
        found = at_batch(arguments, variant, batch, parts=False)
        if found is None:
            tried.append({"batch": batch, "clips/s": 0.0, "out of memory": True})
            break
        tried.append(found)
    best = max(tried, key=lambda each: each["clips/s"])
    if not best["clips/s"]:
        return {"tried": tried}
    shape = (arguments.preset, arguments.frames, arguments.size)
    limit = bound(*shape, best["batch"], arguments.tflops, arguments.tbytes)
    apart = at_batch(arguments, variant, best["batch"], parts=True)
    assert apart is not None
    rate = best["clips/s"]
    whole = limit["GFLOP a clip"] * rate / 1e3
    if arguments.profile is not None:
        profile(arguments, variant, best["batch"], arguments.profile)
    name = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "CPU: tells nothing about a GPU"
    return {
        "device": name,
        "preset": arguments.preset,
        "frames": f"{arguments.frames} of {arguments.size}x{arguments.size}",
        "bf16": bf16,
        "compiled": arguments.compile,
        "recompute": arguments.recompute,
        "tried": tried,
        "clips/s": rate,
        "target met": rate >= TARGET,
        "TFLOP/s": round(whole, 3),
        "share of the ceiling": round(whole / arguments.tflops, 4),
        "at most, by arithmetic": limit["clips/s at most"],
        "parts": by_part(arguments, apart, limit),
        f"hours for {EPOCHS} epochs of {CLIPS:,} clips": round(EPOCHS * CLIPS / rate / 3600, 2),
    }


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="evilm-small")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64, 128, 256, 512, 768, 1024])
    parser.add_argument("--warmup", type=int, default=3, help="steps before those that count")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--profile", type=Path, help="write the kernels that took longest into this file")
    parser.add_argument("--tflops", type=float, default=TFLOPS, help="matrix rate of the device in bf16")
    parser.add_argument("--tbytes", type=float, default=TBYTES, help="copy rate of the device, TB/s")
    return parser.parse_args(words)


def main() -> None:
    """Read the command line, measure, tell."""
    sys.stdout.write(json.dumps(sweep(parse()), indent=2) + "\n")


if __name__ == "__main__":
    main()
