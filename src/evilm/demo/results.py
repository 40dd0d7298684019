"""``results.json`` of the demo: every metric with its interval, chance, baselines and target."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

import numpy as np

from evilm import __version__, metrics
from evilm.demo.plan import SEED
from evilm.report.run import Row, read_predictions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from evilm.demo.plan import Demo, Results

Scores = dict[str, float]  # per-sample scores in [0, 1] by the row's key


def gather(run: Demo) -> Results:
    """Collect the results of the stages that are done.

    A target is met if the value reaches it and lies clearly above chance and above every baseline: the 95 % intervals
    of the value and of the paired differences to the baselines exclude chance and 0.
    """
    groups: dict[str, Callable[[Demo], Results]] = {
        "retrieval": _retrieval,
        "question_answering": _questions,
        "multiple_choice": _choices,
        "linear_probe": _probe,
        "tokenizer": _tokenizer,
        "pretrain": _pretrain,
        "export": _export,
        "real_clips": _real_clips,
    }
    seconds = {name: entry["seconds"] for name, entry in run.found.items()}
    return {
        **{name: group(run) for name, group in groups.items() if name in run.found},
        "seconds": {"value": round(sum(seconds.values()), 1), "stages": seconds, "budget": 60 * run.minutes},
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "system": platform.system(),
        },
        "versions": {"evilm": __version__, "python": platform.python_version()},
        "seed": SEED,
        "world": run.found.get("world", {}),
    }


def _retrieval(run: Demo) -> Results:
    found = run.found["retrieval"]
    rows = read_predictions(run.out / "retrieval" / "evaluation")
    others = {
        "frames shuffled": read_predictions(run.out / "retrieval" / "evaluation-shuffled"),
        "pre-training alone": read_predictions(run.out / "pretrain" / "evaluation-retrieval"),
    }
    group: Results = {"title": found["metrics"]["title"]}
    for count, target in ((1, 30.0), (5, None), (10, 85.0)):
        baselines = {name: _recall(other, count) for name, other in others.items()}
        group[f"R@{count}"] = _leaf(found, f"R@{count}", _recall(rows, count), baselines, target)
    group["MdR"] = _leaf(found, "MdR") | {"baselines": {name: {"value": found[name]["MdR"]} for name in others}}
    return group


def _questions(run: Demo) -> Results:
    return _answers(run, "question_answering", "question_only", 20.0)


def _choices(run: Demo) -> Results:
    return _answers(run, "multiple_choice", "text_only", 25.0)


def _answers(run: Demo, stage: str, blind: str, margin: float) -> Results:
    """Metrics of a task with right and wrong answers: all rows, those that need the order of frames, and each kind.

    Args:
        run: the demo.
        stage: the model's run.
        blind: the run of the same model without video.
        margin: the target, in points above the model without video.
    """
    rows = read_predictions(run.out / stage / "evaluation")
    others = {
        blind.replace("_", " "): read_predictions(run.out / blind / "evaluation"),
        "frames shuffled": read_predictions(run.out / stage / "evaluation-shuffled"),
    }

    def leaf(name: str, wanted: Callable[[Row], bool], target: float | str | None = None) -> Results:
        baselines = {label: _scores(other, wanted) for label, other in others.items()}
        return _leaf(run.found[stage], name, _scores(rows, wanted), baselines, target)

    target = round(_mean(_scores(others[blind.replace("_", " ")])) + margin, 1)
    group: Results = {
        "title": run.found[stage]["metrics"]["title"],
        "accuracy": leaf("accuracy", lambda _: True, target),
    }
    if any(row["temporal"] for row in rows):
        group["temporal"] = leaf("temporal", lambda row: bool(row["temporal"]), "above frames shuffled")
    kinds = sorted({row["kind"] for row in rows if row["kind"]})
    group["kinds"] = {kind: leaf(f"accuracy[{kind}]", lambda row, kind=kind: row["kind"] == kind) for kind in kinds}
    return group


def _probe(run: Demo) -> Results:
    """Accuracy of the linear probe; the target is 10 points above the same probe on an untrained model."""
    untrained = _scores(read_predictions(run.out / "untrained_probe" / "evaluation"))
    shuffled = _scores(read_predictions(run.out / "linear_probe" / "evaluation-shuffled"))
    scores = _scores(read_predictions(run.out / "linear_probe" / "evaluation"))
    baselines = {"untrained model": untrained, "frames shuffled": shuffled}
    target = round(_mean(untrained) + 10, 1)
    found = run.found["linear_probe"]
    return {"title": found["metrics"]["title"], "accuracy": _leaf(found, "accuracy", scores, baselines, target)}


def _tokenizer(run: Demo) -> Results:
    found, targets = run.found["tokenizer"], {"voc_rate": 50.0}
    leaves = {name: _leaf(found, name, target=targets.get(name)) for name in ("voc_rate", "perplexity", "word_mAP")}
    return {"title": found["metrics"]["title"]} | leaves


def _pretrain(run: Demo) -> Results:
    found = run.found["pretrain"]
    leaves = {name: _leaf(found, name) for name in found["metrics"]["metrics"] if name != "score"}
    return {"title": found["metrics"]["title"]} | leaves


def _export(run: Demo) -> Results:
    found = run.found["export"]
    leaves = {
        name: {"value": found["metrics"][name], "baselines": {"checkpoint": {"value": found["checkpoint"][name]}}}
        for name in ("R@1", "R@5", "R@10")
    }
    return {"title": "Retrieval, exported to int8"} | leaves


def _real_clips(run: Demo) -> Results:
    found = run.found["real_clips"]
    leaves = {
        name: _leaf(found, name, {row["video"]: float(row["rank"] <= int(name[2:])) for row in found["searches"]})
        for name in found["metrics"]["metrics"]
    }
    return {"title": found["metrics"]["title"]} | leaves


def _scores(rows: list[Row], wanted: Callable[[Row], bool] = lambda _: True) -> Scores:
    return {row["key"]: row["score"] for row in rows if wanted(row)}


def _recall(rows: list[Row], count: int) -> Scores:
    """Whether the right clip is among the first ``count``; R@1 takes the score, which counts ties at chance."""
    return {row["key"]: row["score"] if count == 1 else float(row["rank"] <= count) for row in rows}


def _leaf(
    found: Results,
    name: str,
    own: Scores | None = None,
    baselines: Mapping[str, Scores] | None = None,
    target: float | str | None = None,
) -> Results:
    """One metric as it is stored.

    Args:
        found: what the stage stored: ``metrics`` with ``metrics`` and ``chance`` by name.
        name: of the metric there; the mean of ``own`` is taken where it is missing.
        own: per-sample scores of this model, from which the intervals are computed.
        baselines: per-sample scores of the baselines on the same samples.
        target: the least value, or a condition in words that the baselines decide.
    """
    own, baselines, report = own or {}, baselines or {}, found["metrics"]
    value = report["metrics"].get(name)
    leaf: Results = {
        "value": _mean(own) if value is None else value,
        "chance": report["chance"].get(name),
    }
    if own:
        leaf["interval"] = _interval(np.array(list(own.values())))
    gains = {label: _interval(np.array([own[key] - other[key] for key in own])) for label, other in baselines.items()}
    leaf["baselines"] = {label: {"value": _mean(baselines[label]), "gain": gain} for label, gain in gains.items()}
    if target is not None:
        reached = isinstance(target, str) or leaf["value"] >= target
        above_chance = not own or leaf["chance"] is None or leaf["interval"][0] > leaf["chance"]
        leaf |= {"target": target, "met": reached and above_chance and all(low > 0 for low, _ in gains.values())}
    return leaf


def _mean(scores: Scores) -> float:
    return 100 * float(np.mean(list(scores.values())))


def _interval(values: NDArray[np.float64]) -> list[float]:
    """Bootstrap 95 % interval of the mean, in percent."""
    return [round(100 * end, 2) for end in metrics.interval(values)]
