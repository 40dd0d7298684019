"""The demo in stages: synthetic videos, tokenizer, pre-training, four tasks with their baselines, export, real clips.

Each stage trains with one of the ``world-*`` recipes, with other paths and another length, and returns its results as
JSON. They are saved as ``<stage>.json``, so that an interrupted demo continues with the first unfinished stage.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console

from evilm import files
from evilm.data import synthetic, vocabulary_build
from evilm.demo.plan import BUDGET, PIECES, RUNS, SEED, TEST, VALIDATION, Demo, OutOfTimeError, Results
from evilm.demo.results import gather
from evilm.errors import OutputError
from evilm.progress import Meter, clock
from evilm.report import codes, page
from evilm.report.results import terminal_table
from evilm.training import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from evilm.training.evaluate import Evaluation


KIND = "demo of evilm"  # content of the mark in a demo's folder


def run_demo(out: Path, minutes: float = BUDGET) -> Path:
    """Run the unfinished stages, print the results, and write ``results.json`` and ``report.html``.

    Args:
        out: a new folder, or that of an interrupted demo.
        minutes: the time limit, 3 to 120.

    Returns:
        The path of the report.

    Raises:
        OutputError: ``out`` holds something else, or a demo with another time limit.
        trainer.Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    files.acquire_dir(out, KIND)
    plan = out / "plan.json"
    if plan.is_file() and checkpoint.read_json(plan)["minutes"] != minutes:
        old = checkpoint.read_json(plan)["minutes"]
        raise OutputError(f"{out}: holds a demo with --minutes {old:g}; use the same value or another folder")
    run = Demo(out, minutes)
    run.store()
    console = Meter("", 1).console
    for number, (name, (title, stage)) in enumerate(STAGES.items(), 1):
        file = out / f"{name}.json"
        if file.is_file():
            run.found[name] = checkpoint.read_json(file)
            continue
        console.print(f"[{number}/{len(STAGES)}] {title}", markup=False, highlight=False)
        before = sum(run.trained_seconds(each) for each in RUNS.get(name, ()))  # of an interrupted stage
        run.began = time.monotonic() - before
        try:
            found = stage(run)
        except OutOfTimeError as error:
            console.print(f"left out, as the time limit is used up: {error}", markup=False, highlight=False)
            continue
        run.found[name] = {**found, "seconds": round(time.monotonic() - run.began, 1)}
        _write(file, run.found[name])
    results = gather(run)
    _write(out / "results.json", results)
    report = page.write_page(out)
    # A file or a pipe has no width of its own, and rich would take 80 columns for it.
    Console(width=None if sys.stdout.isatty() else 140).print(terminal_table(results))
    console.print(f"{clock(results['seconds']['value'])} in total; report: {report}", markup=False, highlight=False)
    return report


def _write(path: Path, value: Results) -> None:
    """Write JSON with its keys in order."""
    files.write_atomic(path, json.dumps(value, indent=2, default=str) + "\n")


def _world(run: Demo) -> Results:
    clips = run.choose_clips()
    with Meter("rendering", clips, "clips") as meter:
        made = synthetic.build(
            run.world, clips, SEED, val=VALIDATION, test=TEST, progress=lambda done, _: meter.update(done)
        )
    report = vocabulary_build.build([_training_text(run.world)], run.out / "vocabulary.json", size=PIECES)
    return {"clips": clips, "splits": dict(made.splits), "pieces": report.pieces}


def _training_text(world_folder: Path) -> Path:
    """Write all texts of the training split, one sentence a line; the demo's vocabulary is built from them."""
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


def _from_retrieval(run: Demo) -> str:
    """The override that starts from the retrieval model; without one, there is no time for what follows it."""
    if "retrieval" not in run.found:
        raise OutOfTimeError("there is no retrieval model to start from")
    return run.start("retrieval")


def _question_answering(run: Demo) -> Results:
    start = _from_retrieval(run)
    run.train("question-answering", "question_answering", start)
    run.train("question-answering", "question_only", start, *run.blind("question-answering"))
    return _answers(run, "question_answering", "question_only")


def _multiple_choice(run: Demo) -> Results:
    start = _from_retrieval(run)
    run.train("multiple-choice", "multiple_choice", start)
    run.train("multiple-choice", "text_only", start, 'task.head="match"', *run.blind("multiple-choice"))
    return _answers(run, "multiple_choice", "text_only")


def _answers(run: Demo, sighted: str, blind: str) -> Results:
    """Evaluate a task that answers, with true and shuffled frames, and its twin without video."""
    outcome = run.evaluate(sighted)
    run.evaluate(sighted, shuffled=True)
    run.evaluate(blind)
    return {"metrics": _metrics(outcome)}


def _linear_probe(run: Demo) -> Results:
    run.train("linear-probe", "linear_probe", run.start())
    words = json.dumps(str(run.out / "vocabulary.json"))
    untrained = ("start=", 'model.preset="evilm-tiny"', f"vocabulary={words}")
    run.train("linear-probe", "untrained_probe", *untrained)
    outcome = run.evaluate("linear_probe")
    run.evaluate("untrained_probe")
    run.evaluate("linear_probe", shuffled=True)
    return {"metrics": _metrics(outcome)}


def _export(run: Demo) -> Results:
    """Export the retrieval model, compare it with the checkpoint, and index the held-out clips with it."""
    from evilm.demo.quickstart import index_test_split
    from evilm.export import writer

    if "retrieval" not in run.found:
        raise OutOfTimeError("export: there is no model to export")
    console = Meter("", 1).console
    made = writer.export(
        run.out / "retrieval", run.out / "export", int8=True,
        say=lambda line: console.print(line, markup=False, highlight=False),
    )  # fmt: skip
    with index_test_split(run.world, run.out / "export", run.out / "search") as index:
        num_segments = len(index)
    measured = made.measured
    return {
        "metrics": measured["metrics"]["export"],
        "checkpoint": measured["metrics"]["checkpoint"],
        "rule": measured["metrics"]["rule"],
        "cosine": {name: found["mean"] for name, found in measured["cosine"].items()},
        "megabytes": measured["size in MB"]["all"],
        "segments": num_segments,
    }


def _real_clips(run: Demo) -> Results:
    from evilm.demo.real_clips import search_by_name

    return search_by_name(run.out / "real-clips")


STAGES: dict[str, tuple[str, Callable[[Demo], Results]]] = {
    "world": ("a world of moving shapes, as H.264 files and published annotation formats", _world),
    "tokenizer": ("the semantic vector-quantized video tokenizer", _tokenizer),
    "pretrain": ("pre-training: masked video, masked language, matching, contrast", _pretrain),
    "retrieval": ("text-to-video retrieval", _retrieval),
    "question_answering": ("question answering, and the same without the video", _question_answering),
    "multiple_choice": ("multiple choice, and the same without the video", _multiple_choice),
    "linear_probe": ("linear probe of the frozen model, and of an untrained one", _linear_probe),
    "export": ("export to int8 without torch, and an index of the held-out clips", _export),
    "real_clips": ("a search over real clips, with the bundled evilm-photo", _real_clips),
}


def _metrics(outcome: Evaluation) -> Results:
    return {key: outcome.result[key] for key in ("title", "metrics", "chance", "interval", "rule", "samples")}


def _source(run: Demo, stage: str) -> list[str]:
    """Overrides that select the test rows of ``stage`` for a checkpoint of another task."""
    source = run.recipe(stage, stage).data.test
    assert source is not None
    fields = {"reader": source.reader, "annotations": str(source.annotations), "split": source.split}
    return [f"data.test.{name}={json.dumps(value)}" for name, value in fields.items()]
