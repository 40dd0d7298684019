"""What a pre-training step costs, part by part, and what each way of saving time or memory is worth.

    python benchmarks/train.py                          # evilm-xx-small at 128x128 on the CPU, one thread
    python benchmarks/train.py --extra compiled recompute grad_accum_steps ema
    python benchmarks/train.py --memory                 # also the peak memory of each variant, a process each
    python benchmarks/train.py --world FOLDER           # also the parts of a run's time, loading packed frames included

``benchmarks/sweep.py`` sweeps the batch, on a GPU above all; ``benchmarks/roofline.py`` says what could be had at most.

Variants are measured in turn, round after round, so that what else the machine does hits all alike; the median counts.
On a CPU the clock is this process's own CPU time, which other programs do not slow; on a GPU it is the wall's.
``plain`` is the usual start: contiguous float32, an encoding for each objective, one kernel a weight.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pretrain_step import Step, Variant, batches

from evilm import distributed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evilm.data.pixels import Store
    from evilm.types import Example

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
EXTRA = {
    "compiled": True,
    "recompute": True,
    "grad_accum_steps": 4,
    "ema": True,
}  # off by default, and what turns them on


def variants(arguments: argparse.Namespace) -> dict[str, Variant]:
    """What is compared, by name; the full one first."""
    full = Variant(bf16=distributed.uses_bf16(arguments.precision, torch.device(arguments.device)))
    found = {"full": full, "plain": Variant(False, False, False, False)}
    for name in ("channels_last", "bf16", "fused", "encode_once"):
        if getattr(full, name):
            found[f"without {name}"] = replace(full, **{name: False})
    for name in arguments.extra:
        found[f"with {name}"] = replace(full, **{name: EXTRA[name]})
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of every variant, interleaved, and the parts of the full one."""
    source = batches(arguments)
    steps = {name: Step(arguments, variant) for name, variant in variants(arguments).items()}
    seconds: dict[str, list[float]] = defaultdict(list)
    for number in range(arguments.rounds + 1):
        for name, step in steps.items():
            spent = step.take(next(source))
            if number:  # the first round warms up
                seconds[name].append(spent)
            else:
                step.spent.clear()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    spent = steps["full"].spent
    return {
        "preset": arguments.preset,
        "frames": f"{arguments.frames} of {arguments.size}x{arguments.size}",
        "batch": arguments.batch,
        "device": arguments.device,
        "threads": torch.get_num_threads(),
        "rounds": arguments.rounds,
        "clips/s": {name: round(arguments.batch / value, 3) for name, value in median.items()},
        "full is faster by": {n: round(value / median["full"], 2) for n, value in median.items() if n != "full"},
        "share of the step": {n: round(value / spent["all"], 3) for n, value in spent.items() if n != "all"},
    }


def memory(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """MB of each variant, in a process of its own: at most, and how much of it two steps took beyond the model."""
    found: dict[str, dict[str, float]] = {}
    for name in variants(arguments):
        command = [sys.executable, __file__, "--one", name, "--extra", *arguments.extra]
        for key in ("preset", "size", "frames", "batch", "device", "precision", "threads"):
            command += [f"--{key}", str(getattr(arguments, key))]
        found[name] = _told(command)
    return found


def _told(command: list[str]) -> dict[str, float]:
    """What this program, started again, says."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603, our own words
    return json.loads(done.stdout)


def one(arguments: argparse.Namespace) -> dict[str, float]:
    """Two steps of one variant, and the MB that there were at most; weights and imports are no part of the steps."""
    step, source = Step(arguments, variants(arguments)[arguments.one]), batches(arguments)
    batch = next(source)
    before = _held(arguments.device)
    for _ in range(2):
        step.take(batch)
    most = _most(arguments.device)
    return {"process": round(most), "steps": round(most - before)}


def _held(device: str) -> float:
    """MB in use now; from now on ``_most`` counts."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    with contextlib.suppress(AttributeError):  # only glibc keeps what was freed, and can be told to give it back
        ctypes.CDLL(None).malloc_trim(0)
    RESET.write_text("5")  # of the peak of resident memory, which importing torch had driven up
    return _resident("VmRSS")


def _most(device: str) -> float:
    """MB in use at most, since ``_held`` was asked."""
    return torch.cuda.max_memory_allocated() / 2**20 if device.startswith("cuda") else _resident("VmHWM")


def _resident(name: str) -> float:
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) / 1024


def waiting(arguments: argparse.Namespace) -> dict[str, Any]:
    """The parts of a run's wall time, waiting for its loader among them, from raw and from JPEG packs."""
    from evilm.data import readers
    from evilm.data.pack import pack
    from evilm.data.packed_frames import PackConfig, packed_for

    rows = readers.read("msrvtt_retrieval", arguments.world, None, "train")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="evilm-packs-") as name:
        for kind in ("raw", "jpeg"):
            config = PackConfig.model_validate({"size": arguments.size, "frames": kind})
            pack(rows, Path(name) / kind, "train", config)
            found[kind] = _waited(arguments, rows, packed_for(Path(name) / kind, rows[0].clip, arguments.size, "crop"))
    return found


def _waited(arguments: argparse.Namespace, rows: Sequence[Example], store: Store) -> dict[str, Any]:
    """Steps on batches of a store, as a run takes them."""
    from evilm.data.loader import Loader
    from evilm.data.pixels import StoredPixels

    loader = Loader(
        rows, StoredPixels(store), arguments.frames, arguments.size, arguments.batch, train=True, prefetch=2,
        workers=arguments.workers,
    )  # fmt: skip
    step, source = Step(arguments, variants(arguments)["full"], wall=True), batches(arguments)
    waited, steps, began = 0.0, -1, 0.0
    while steps < arguments.steps:
        feed = loader.epoch(max(0, steps) // len(loader))
        for _ in range(len(loader)):
            asked = time.perf_counter()
            batch = next(feed)
            waited += time.perf_counter() - asked
            step.take(replace(batch, labels=next(source).labels))
            steps += 1
            if steps == 0:  # the first step warms up, and waits for the first batch
                step.spent.clear()
                waited, began = 0.0, time.perf_counter()
            if steps == arguments.steps:
                break
        feed.close()
    whole = time.perf_counter() - began
    loader.close()
    parts = {"load": waited, **{name: seconds for name, seconds in step.spent.items() if name != "all"}}
    return {
        "steps": steps,
        "clips/s": round(steps * arguments.batch / whole, 2),
        "share of the run": {name: round(seconds / whole, 4) for name, seconds in parts.items()},
    }


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="evilm-xx-small")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40, help="steps of the run, for --world")
    parser.add_argument("--workers", type=int, default=2, help="processes of the loader, for --world")
    parser.add_argument("--extra", nargs="*", default=[], choices=list(EXTRA), help="what is off by default")
    parser.add_argument("--memory", action="store_true", help="peak memory too, a process for each variant")
    parser.add_argument(
        "--world", type=Path, help="a world (`evilm data synthetic FOLDER`), to measure waiting for its frames"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main() -> None:
    """Read the command line, measure, tell."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.one is not None:
        found: dict[str, Any] = one(arguments)
    else:
        found = measure(arguments)
        if arguments.memory:
            found["MB at most"] = memory(arguments)
        if arguments.world is not None:
            found["loader"] = waiting(arguments)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
