"""The whole system in minutes: a world, the tokenizer, pre-training, four tasks, their baselines.

Each stage is a recipe that anyone can run alone, with its paths and its length changed. A stage that is done leaves
``<stage>.json`` beside the runs, so a demo that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console

from evilm import __version__, checkpoint, evaluation, recipe, trainer
from evilm.data import vocabulary_build, world
from evilm.errors import OutputError
from evilm.progress import Meter, clock
from evilm.report import codes, page, table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from evilm.evaluation import Evaluation

KIND = "demo of evilm"
BUDGET = 15.0  # minutes that the recipes are made for
FIXED = 2.0  # of these, minutes that do not grow with the work: imports, evaluation, the report
TRAIN, VALIDATION, TEST = 4300, 200, 500  # clips at the full budget
SEED = 0
PIECES = 400  # word pieces: a world of some 150 words needs no more

Results = dict[str, Any]


@dataclass
class Demo:
    """One demo: where it lies, how long it may take, and what its stages found.

    Attributes:
        out: its folder.
        minutes: the budget; clips and epochs each grow with its square root, so their product with it.
        found: what each finished stage found.
    """

    out: Path
    minutes: float
    found: dict[str, Results] = field(default_factory=lambda: {})

    @property
    def growth(self) -> float:
        return math.sqrt((self.minutes - FIXED) / (BUDGET - FIXED))

    @property
    def world(self) -> Path:
        return self.out / "world"

    def recipe(self, stage: str, run: str, *changes: str) -> recipe.Recipe:
        """The recipe ``world-<stage>`` with this demo's paths, length and ``changes``."""
        plain = recipe.load(recipe.find(f"world-{stage}"))
        probe = stage == "linear-probe"
        places = [f"data.{split}.annotations={json.dumps(str(self.world / 'splits' if probe else self.world))}"
                  for split in ("train", "validation", "test") if getattr(plain.data, split) is not None]  # fmt: skip
        if probe:
            places += [f"data.{split}.videos={json.dumps(str(self.world / 'videos'))}" for split in ("train", "test")]
        return recipe.load(
            recipe.find(f"world-{stage}"),
            [
                *places,
                f"data.cache={json.dumps(str(self.out / 'cache'))}",
                f"run.out={json.dumps(str(self.out / run))}",
                f"optim.epochs={plain.optim.epochs * self.growth}",
                f"seed={SEED}",
                *changes,
            ],
        )

    def train(self, stage: str, run: str, *changes: str) -> Path:
        """Carry out a stage's recipe, going on where it was stopped."""
        return trainer.train(self.recipe(stage, run, *changes), resume=True)

    def start(self, run: str = "pretrain") -> str:
        """The override that begins with what another run of this demo learned."""
        return f"start={json.dumps(str(self.out / run))}"

    def blind(self, stage: str) -> tuple[str, str]:
        """The overrides of the twin that cannot see: half as long, for there is little to learn (docs/decisions.md)."""
        epochs = self.recipe(stage, stage).optim.epochs
        return "task.blind=true", f"optim.epochs={epochs / 2}"

    def evaluate(self, run: str, split: str = "test", *changes: str, **options: Any) -> Evaluation:
        """Evaluate a run; the true order of frames is also saved, as the run's evaluation."""
        outcome = evaluation.of_checkpoint(self.out / run, split, changes, **options)  # pyright: ignore[reportArgumentType]
        if not options.get("shuffled") and not options.get("task"):
            evaluation.save(self.out / run / "evaluation", outcome.result, outcome.summary)
        return outcome


def demo(out: Path, minutes: float = BUDGET) -> Path:
    """Run what is not done yet, print the table, write ``results.json`` and ``report.html``.

    Args:
        out: its folder, new or a demo's.
        minutes: the budget, 3 to 120.

    Returns:
        the report.

    Raises:
        OutputError: ``out`` holds something else, or a demo of another length.
        trainer.Interrupted: after saving, when Ctrl-C or SIGTERM came.
    """
    checkpoint.claim(out, KIND)
    plan = out / "plan.json"
    if plan.is_file() and checkpoint.read_json(plan)["minutes"] != minutes:
        had = checkpoint.read_json(plan)["minutes"]
        raise OutputError(
            f"{out}: holds a demo of {had:g} minutes; go on with --minutes {had:g}, or name another folder"
        )
    _write(plan, {"minutes": minutes, "seed": SEED})
    run = Demo(out, minutes)
    console = Meter("", 1).console
    for number, (name, (title, stage)) in enumerate(STAGES.items(), 1):
        file = out / f"{name}.json"
        if file.is_file():
            run.found[name] = checkpoint.read_json(file)
            continue
        console.print(f"[{number}/{len(STAGES)}] {title}", markup=False, highlight=False)
        began = time.monotonic()
        before = _seconds_before(out, name)
        found = stage(run)
        run.found[name] = {**found, "seconds": round(time.monotonic() - began + before, 1)}
        _write(file, run.found[name])
    results = gather(run)
    _write(out / "results.json", results)
    report = page.write_page(out)
    # A file or a pipe has no width of its own, and rich would take 80 columns for it.
    Console(width=None if sys.stdout.isatty() else 140).print(table.render(results))
    console.print(f"{clock(results['seconds']['value'])} in all; the report is {report}", markup=False, highlight=False)
    return report


def _seconds_before(out: Path, stage: str) -> float:
    """What an interrupted stage had spent on training until its last checkpoint."""
    folder, _ = checkpoint.newest(out / stage)
    return 0.0 if folder is None else float(checkpoint.read_json(folder / "training" / "state.json")["seconds"])


def _world(run: Demo) -> Results:
    clips = round(TRAIN * run.growth) + VALIDATION + TEST
    with Meter("rendering", clips, "clips") as meter:
        made = world.build(
            run.world, clips, SEED, val=VALIDATION, test=TEST, progress=lambda done, _: meter.update(done)
        )
    report = vocabulary_build.build([_training_text(run.world)], run.out / "vocabulary.json", size=PIECES)
    return {"clips": clips, "splits": dict(made.splits), "pieces": report.pieces}


def _training_text(world_folder: Path) -> Path:
    """One sentence a line: all that the training split says, from which the demo's vocabulary is counted."""
    questions = json.loads((world_folder / "train_qa.json").read_text(encoding="utf-8"))
    choices = (world_folder / "mc_train.jsonl").read_text(encoding="utf-8").splitlines()
    lines = (world_folder / "captions_train.txt").read_text(encoding="utf-8").splitlines()
    lines += [f"{row['question']} {row['answer']}" for row in questions]
    lines += [option for row in choices for option in json.loads(row)["options"]]
    path = world_folder.parent / "words.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _tokenizer(run: Demo) -> Results:
    run.train("tokenizer", "tokenizer")
    outcome = run.evaluate("tokenizer", "validation")
    return {"metrics": _metrics(outcome)}


def _pretrain(run: Demo) -> Results:
    tokenizer = run.out / "tokenizer"
    words = json.dumps(str(run.out / "vocabulary.json"))
    run.train("pretrain", "pretrain", f"task.tokenizer={json.dumps(str(tokenizer))}", f"vocabulary={words}")
    outcome = run.evaluate("pretrain", "validation")
    shown = codes.masked_examples(run.out / "pretrain")
    (run.out / "pretrain" / "masked.json").write_text(json.dumps(shown), encoding="utf-8")
    return {"metrics": _metrics(outcome)}


def _retrieval(run: Demo) -> Results:
    run.train("retrieval", "retrieval", run.start())
    return {
        "metrics": _metrics(run.evaluate("retrieval")),
        "frames shuffled": run.evaluate("retrieval", shuffled=True).summary.metrics,
        "pre-training alone": run.evaluate(
            "pretrain", "test", *_source(run, "retrieval"), task="retrieval"
        ).summary.metrics,
    }


def _question_answering(run: Demo) -> Results:
    start = run.start("retrieval")
    run.train("question-answering", "question_answering", start)
    run.train("question-answering", "question_only", start, *run.blind("question-answering"))
    return _answers(run, "question_answering", "question_only")


def _multiple_choice(run: Demo) -> Results:
    start = run.start("retrieval")
    run.train("multiple-choice", "multiple_choice", start)
    run.train("multiple-choice", "text_only", start, 'task.head="match"', *run.blind("multiple-choice"))
    return _answers(run, "multiple_choice", "text_only")


def _answers(run: Demo, sighted: str, blind: str) -> Results:
    """Accuracy of a task that answers, of its blind twin, and without the order of frames."""
    outcome, shuffled = run.evaluate(sighted), run.evaluate(sighted, shuffled=True)
    alone = run.evaluate(blind)
    return {
        "metrics": _metrics(outcome),
        "blind": alone.summary.metrics,
        "frames shuffled": shuffled.summary.metrics,
        "temporal": _temporal(outcome),
        "temporal blind": _temporal(alone),
        "temporal shuffled": _temporal(shuffled),
    }


def _linear_probe(run: Demo) -> Results:
    run.train("linear-probe", "linear_probe", run.start())
    words = json.dumps(str(run.out / "vocabulary.json"))
    # Its backbone is no other task's, and four frames of each clip are all that it is asked for.
    untrained = ("start=", 'model.preset="evilm-tiny"', f"vocabulary={words}", "data.features=false")
    run.train("linear-probe", "untrained_probe", *untrained)
    return {
        "metrics": _metrics(run.evaluate("linear_probe")),
        "untrained": run.evaluate("untrained_probe").summary.metrics,
        "frames shuffled": run.evaluate("linear_probe", shuffled=True).summary.metrics,
    }


def _export(run: Demo) -> Results:
    """The retrieval model without torch, measured; and with it an index of the held-out clips to search in."""
    from evilm.export import writer
    from evilm.search.held_out import index_held_out

    console = Meter("", 1).console
    made = writer.export(
        run.out / "retrieval", run.out / "export", int8=True,
        say=lambda line: console.print(line, markup=False, highlight=False),
    )  # fmt: skip
    with index_held_out(run.world, run.out / "export", run.out / "search") as index:
        moments = len(index)
    measured = made.measured
    return {
        "metrics": measured["metrics"]["export"],
        "checkpoint": measured["metrics"]["checkpoint"],
        "rule": measured["metrics"]["rule"],
        "cosine": {name: found["mean"] for name, found in measured["cosine"].items()},
        "megabytes": measured["size in MB"]["all"],
        "moments": moments,
    }


STAGES: dict[str, tuple[str, Callable[[Demo], Results]]] = {
    "world": ("a world of moving shapes, as H.264 files and published annotation formats", _world),
    "tokenizer": ("the semantic vector-quantized video tokenizer", _tokenizer),
    "pretrain": ("pre-training: masked video, masked language, matching, contrast", _pretrain),
    "retrieval": ("text-to-video retrieval", _retrieval),
    "question_answering": ("question answering, and the same without the video", _question_answering),
    "multiple_choice": ("multiple choice, and the same without the video", _multiple_choice),
    "linear_probe": ("linear probe of the frozen model, and of an untrained one", _linear_probe),
    "export": ("export to int8 without torch, and an index of the held-out clips", _export),
}


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


def _metrics(outcome: Evaluation) -> Results:
    return {key: outcome.result[key] for key in ("metrics", "chance", "interval", "rule", "samples")}


def _source(run: Demo, stage: str) -> list[str]:
    """Overrides that give a checkpoint of another task the test rows of ``stage``."""
    source = run.recipe(stage, stage).data.test
    assert source is not None
    fields = {"reader": source.reader, "annotations": str(source.annotations), "split": source.split}
    return [f"data.test.{name}={json.dumps(value)}" for name, value in fields.items()]


def _temporal(outcome: Evaluation) -> float:
    """Accuracy on the rows that need the order of frames, in percent."""
    scores = [row["score"] for row in outcome.summary.rows if row["temporal"]]
    return 100 * sum(scores) / max(1, len(scores))


def _write(path: Path, value: Results) -> None:
    temporary = path.with_name(path.name + ".tmp")
    checkpoint.write_json(temporary, value)
    os.replace(temporary, path)
