"""``results.json`` of the demo: every number with chance, baselines and target beside it."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

from evilm import __version__
from evilm.demo.plan import SEED

if TYPE_CHECKING:
    from evilm.demo.plan import Demo, Results


def gather(run: Demo) -> Results:
    """``results.json``: every number with chance, baselines and target beside it."""
    found = run.found
    retrieval, qa = found["retrieval"], found["question_answering"]
    choice, probe, export = found["multiple_choice"], found["linear_probe"], found["export"]
    seconds = {name: entry["seconds"] for name, entry in found.items()}
    targets = {"R@1": 30.0, "R@10": 85.0}
    return {
        "retrieval": {
            name: _leaf(retrieval, name, targets.get(name), {
                "frames shuffled": retrieval["frames shuffled"][name],
                "pre-training alone": retrieval["pre-training alone"][name],
            })
            for name in ("R@1", "R@5", "R@10", "MdR")
        },
        "question_answering": _answered(qa, "question only", 20.0),
        "multiple_choice": _answered(choice, "text only", 25.0),
        "linear_probe": {"accuracy": _leaf(probe, "accuracy", None, {
            "untrained model": probe["untrained"]["accuracy"],
            "frames shuffled": probe["frames shuffled"]["accuracy"],
        })},
        "tokenizer": {
            name: _leaf(found["tokenizer"], name, 50.0 if name == "voc_rate" else None, {})
            for name in ("voc_rate", "perplexity", "word_mAP")
        },
        "pretraining": {
            name: _leaf(found["pretrain"], name, None, {})
            for name in found["pretrain"]["metrics"]["metrics"] if name != "score"
        },
        "export": {
            name: {
                "value": export["metrics"][name], "chance": None,
                "baselines": {"checkpoint": export["checkpoint"][name]},
            }
            for name in ("R@1", "R@5", "R@10")
        },
        "seconds": {
            "value": round(sum(seconds.values()), 1), "stages": seconds, "budget": 60 * run.minutes,
            "chance": None, "baselines": {},
        },
        "machine": {
            "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "system": platform.system(),
        },
        "versions": {"evilm": __version__, "python": platform.python_version()},
        "seed": SEED,
        "world": found["world"],
    }  # fmt: skip


def _answered(found: Results, blind: str, margin: float) -> Results:
    """The leaves of a task that answers: all rows, those that need the order of frames, and each kind."""
    metrics: dict[str, float] = found["metrics"]["metrics"]
    kinds = sorted(name for name in metrics if name.startswith("accuracy["))
    without = found["blind"]["accuracy"]
    scrambled = found["temporal shuffled"]
    return {
        "accuracy": _leaf(found, "accuracy", round(without + margin, 1), {
            blind: without, "frames shuffled": found["frames shuffled"]["accuracy"],
        }),
        "temporal": {
            "value": found["temporal"], "chance": None,
            "baselines": {blind: found["temporal blind"], "frames shuffled": scrambled},
            "target": "above frames shuffled", "met": found["temporal"] > scrambled,
        },
        "kinds": {
            name[9:-1]: {
                "value": metrics[name], "chance": None,
                "baselines": {blind: found["blind"][name], "frames shuffled": found["frames shuffled"][name]},
            }
            for name in kinds
        },
    }  # fmt: skip


def _leaf(found: Results, name: str, target: float | None, baselines: dict[str, float]) -> Results:
    """One number: value, chance, baselines, and the interval where it is of this metric."""
    report = found["metrics"]
    leaf = {"value": report["metrics"][name], "chance": report["chance"].get(name), "baselines": baselines}
    if name in ("accuracy", "R@1"):
        leaf["interval"] = report["interval"]
    return leaf if target is None else {**leaf, "target": target}
