"""Everything that only a CUDA GPU can tell, in one run of at most nine minutes: `make bench-gpu`.

    python benchmarks/gpu.py OUT [--minutes 9] [--wheels FOLDER]
    python benchmarks/gpu.py OUT --device cpu --tiny        # the dry run of the tests: tells nothing about a GPU

The machine needs its own Python with torch, timm, transformers and onnxruntime. What it lacks (PyAV, pydantic, ...)
is installed from the wheels in FOLDER into OUT/packages, without a network: `pip download -d FOLDER av pydantic rich`
makes that folder. Each stage is a process of its own with a limit; its result is appended to OUT/results.jsonl when it
ends, so an interruption loses only the stage that runs. A stage that does not fit into the time left is skipped.

UNPROVEN on CUDA: this has been run on CPUs only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HERE = Path(__file__).resolve().parent
RESERVE = 10.0  # seconds that are left for writing


def environment(options: argparse.Namespace) -> dict[str, Any]:
    """Versions and the device."""
    import torch

    from evilm.training import logger

    cuda = options.device == "cuda"
    return {
        "python": sys.version.split()[0], "packages": logger.packages(), "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name() if cuda else "CPU: tells nothing about a GPU",
    }  # fmt: skip


def agrees(options: argparse.Namespace) -> dict[str, Any]:
    """Losses and gradients on the device against those of the CPU, in float32, and in bf16."""
    import torch
    from pretrain_step import Step, Variant, batches

    shape = _shape(options, batch=4)
    found: dict[str, Any] = {}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    batch = next(batches(argparse.Namespace(**{**vars(shape), "device": "cpu"})))
    told: dict[str, tuple[float, float]] = {}
    for name, device, bf16 in (("cpu", "cpu", False), ("fp32", options.device, False), ("bf16", options.device, True)):
        step = Step(argparse.Namespace(**{**vars(shape), "device": device}), Variant(bf16=bf16), parts=False)
        step.tasks.eval()  # dropout draws other numbers on a GPU
        moved = batch.to(torch.device(device))
        with torch.autocast(step.device.type, torch.bfloat16, enabled=bf16):
            loss = torch.stack([task.losses(moved).total for task in step.tasks]).sum()
        loss.backward()
        norms = [p.grad.float().norm() for p in step.tasks.parameters() if p.grad is not None]
        told[name] = float(loss), float(torch.stack(norms).norm())
        found[name] = {"loss": told[name][0], "gradient": told[name][1]}
    for name, allowed in (("fp32", 1e-3), ("bf16", 5e-2)):
        worst = max(abs(a - b) / abs(b) for a, b in zip(told[name], told["cpu"], strict=True))
        found[name]["relative difference"] = worst
        found[name]["agrees"] = worst <= allowed
    return found


def swept(options: argparse.Namespace, *, compiled: bool) -> dict[str, Any]:
    """Clips a second over batch sizes in bf16, and the share of the peak FLOP/s."""
    import sweep

    words = ["--device", options.device, *(["--compile"] if compiled else [])]
    if options.tiny:
        words += ["--preset", "evilm-tiny", "--size", "64", "--frames", "2", "--batches", "2", "4", "--rounds", "1"]
        words += ["--warmup", "1"]
    elif compiled:
        words += ["--batches", "128", "256", "512"]
    return sweep.sweep(sweep.parse(words))


def waiting(options: argparse.Namespace) -> dict[str, Any]:
    """Share of a run's time in which the device waits for packed frames."""
    import train

    shape = _shape(options, batch=4 if options.tiny else 64)
    words = [
        word for key in ("preset", "size", "frames", "device", "batch") for word in (f"--{key}", str(vars(shape)[key]))
    ]
    words += ["--world", str(_world(options)), "--steps", "3" if options.tiny else "60"]
    return train.waiting(train.parse([*words, "--workers", "0" if options.tiny else "8"]))


def resumed(options: argparse.Namespace) -> dict[str, Any]:
    """Weights of a run that was killed and resumed against those of an unbroken run, bit by bit."""
    weights, killed = list[str](), 0
    for name in ("unbroken", "killed"):
        out = options.out / "runs" / name
        if name == "killed":
            child = _child(options, "train-once", str(out))
            while child.poll() is None and not list(out.glob("step-*[0-9]")):
                time.sleep(0.05)
            time.sleep(0.3)
            child.kill()
            child.wait()
            killed = max((_step(path) for path in out.glob("step-*[0-9]")), default=0)
        _train(options, out)
        newest = max(out.glob("step-*[0-9]"), key=_step)
        weights.append(hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest())
    return {"bit-equal": weights[0] == weights[1], "sha256": weights, "killed at step": killed, "of": _step(newest)}


def _step(path: Path) -> int:
    return int(path.name.split("-")[1])


def learned(options: argparse.Namespace) -> dict[str, Any]:
    """A short real training: retrieval on a world of made clips, and its metrics on the test split."""
    from evilm.training import evaluate

    out = options.out / "runs" / "learned"
    began = time.monotonic()
    _train(options, out, epochs=0.5 if options.tiny else 20, every=1e9)
    done = evaluate.of_checkpoint(out, "test")
    return {"seconds": round(time.monotonic() - began, 1), "metrics": done.summary.metrics,
            "chance": done.summary.chance}  # fmt: skip


# Name, seconds that it may take, what it does. The first ones matter most.
STAGES: dict[str, tuple[float, Callable[[argparse.Namespace], dict[str, Any]]]] = {
    "environment": (60, environment),
    "agrees": (60, agrees),
    "eager": (100, lambda options: swept(options, compiled=False)),
    "resumed": (90, resumed),
    "compiled": (150, lambda options: swept(options, compiled=True)),
    "waiting": (80, waiting),
    "learned": (120, learned),
}


def _shape(options: argparse.Namespace, batch: int) -> argparse.Namespace:
    tiny = {"preset": "evilm-tiny", "size": 64, "frames": 2}
    full = {"preset": "evilm-small", "size": 256, "frames": 4}
    return argparse.Namespace(**(tiny if options.tiny else full), device=options.device, batch=batch)


def _world(options: argparse.Namespace) -> Path:
    from evilm.data.synthetic import build

    clips = 24 if options.tiny else 600
    return build(options.out / "world", clips, 0, val=clips // 6, test=clips // 6).path


def _train(options: argparse.Namespace, out: Path, epochs: float = 2, every: float = 1e-9) -> None:
    from evilm import config
    from evilm.training import trainer
    from evilm.training.recipe import Recipe

    source = {"reader": "msrvtt_retrieval", "annotations": str(_world(options))}
    recipe = {
        "task": {"name": "retrieval", "max_text_len": 32},
        "model": {"preset": "evilm-tiny", "backbone_weights": "none"},
        "data": {
            "train": source, "test": {**source, "split": "test"}, "cache": str(options.out / "cache"), "workers": 0,
        },
        "optim": {"epochs": epochs, "batch_size": 8 if options.tiny else 64, "lr": 1e-3},
        "run": {"output_dir": str(out), "device": options.device, "checkpoint_minutes": every},
    }  # fmt: skip
    trainer.train(config.check(Recipe, recipe, "benchmarks/gpu.py"), resume=True)


def _child(options: argparse.Namespace, stage: str, *more: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, __file__, str(options.out), "--device", options.device, "--stage", stage, *more]
    paths = [str(HERE.parent / "src"), str(HERE), str(options.out / "packages"), os.environ.get("PYTHONPATH", "")]
    # The seed of cuBLAS's workspace makes its results repeatable, which bit-equality needs.
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    with (options.out / f"{stage}.log").open("wb") as log:
        words += ["--tiny"] if options.tiny else []
        return subprocess.Popen(words, env=variables, stdout=log, stderr=log)  # noqa: S603 - our own words


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Carry out the stages; returns their lines."""
    began = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.wheels is not None:
        words = ["install", "--quiet", "--no-index", "--no-deps", "--target", str(options.out / "packages")]
        wheels = [str(each) for each in sorted(options.wheels.glob("*.whl"))]
        subprocess.run([sys.executable, "-m", "pip", *words, *wheels], check=True)  # noqa: S603 - our own words
    lines: list[dict[str, Any]] = []
    for name in options.stages or STAGES:
        left = 60 * options.minutes - (time.monotonic() - began) - RESERVE
        start, line = time.monotonic(), {"stage": name}
        if left < 20:
            line["skipped"] = f"{left:.0f} s were left"
        else:
            child = _child(options, name)
            try:
                code = child.wait(min(left, 10 * STAGES[name][0] if options.device == "cpu" else STAGES[name][0]))
                result = options.out / f"{name}.json"
                if code == 0:
                    line["result"] = json.loads(result.read_text(encoding="utf-8"))
                else:
                    line["failed"] = (options.out / f"{name}.log").read_text(errors="replace")[-500:]
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                line["failed"] = "took too long"
        line["seconds"] = round(time.monotonic() - start, 1)
        lines.append(line)
        with (options.out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        sys.stderr.write(f"{name}: {next(key for key in line if key != 'stage')}, {line['seconds']} s\n")
    return lines


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--wheels", type=Path, help="folder of wheels that this machine lacks")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="the smallest model and data")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES))
    parser.add_argument("--stage", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    options.out = options.out.absolute()
    return options


def main() -> int:
    """Carry out all stages, or in a child one of them; 1 if any failed."""
    options = parse()
    if options.stage is None:
        return int(any("failed" in line for line in run(options)))
    if options.stage[0] == "train-once":
        _train(options, Path(options.stage[1]))
        return 0
    result = STAGES[options.stage[0]][1](options)
    (options.out / f"{options.stage[0]}.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
