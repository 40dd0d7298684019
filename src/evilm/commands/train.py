"""Commands that train a model, adapt one, evaluate one, or run the demo.

Typer reads annotations at run time, so this module does not postpone their evaluation.
"""

import json
import os
import shlex
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evilm.commands.console import AsJson, Cluster, Processes, say, say_how_to_resume
from evilm.errors import OutputError

if TYPE_CHECKING:
    from evilm.training.evaluate import Evaluation


class Split(StrEnum):
    """Rows to evaluate on."""

    validation = "validation"
    test = "test"


Changes = Annotated[
    list[str] | None, typer.Argument(metavar="[A.B=C]...", help="Settings that replace those of the recipe.")
]


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="TOML file, or the name of a bundled recipe.")],
    changes: Changes = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run from its newest valid checkpoint.")
    ] = False,
    select_on_test: Annotated[
        bool, typer.Option("--select-on-test", help="Accept a test split as data.validation; evaluations print it.")
    ] = False,
    cluster: Cluster = None,
    processes: Processes = 1,
) -> None:
    """Train what a recipe describes: tokenizer, pre-training, fine-tuning, probe, distillation."""
    from evilm.training import checkpoint, trainer
    from evilm.training import recipe as recipes

    settings = recipes.load(recipes.find(recipe), changes or ())
    again = ["train", recipe, *(changes or []), *(["--select-on-test"] if select_on_test else [])]
    again += [] if cluster is None else ["--cluster", cluster, "--processes", str(processes)]
    try:
        if cluster is None:
            out = trainer.train(settings, resume=resume, select_on_test=select_on_test)
        else:
            from evilm.cluster.launch import launch

            out = settings.run.output_dir
            if checkpoint.steps(out) and not resume:  # restarted processes always resume
                raise OutputError(f"{out}: holds a run already; add --resume, or name another folder")
            run = partial(trainer.train, settings, resume=True, select_on_test=select_on_test)
            launch(cluster, processes, run, out.absolute().parent)
    except trainer.Interrupted:
        say_how_to_resume("stopped; a checkpoint was saved", [*again, "--resume"])
        raise typer.Exit(130) from None
    except KeyboardInterrupt:
        if cluster is not None:
            say_how_to_resume("stopped; checkpoints are kept", [*again, "--resume"])
        else:
            say_how_to_resume("stopped before the first checkpoint", [*again, *(["--resume"] if resume else [])])
        raise typer.Exit(130) from None
    if int(os.environ.get("RANK", "0")):
        return  # rank 0 reports for all processes
    typer.echo(f"run: {out}")
    written = out / "validation.jsonl"
    if settings.data.validation is not None and written.is_file():
        last = json.loads(written.read_text(encoding="utf-8").splitlines()[-1])
        typer.echo("validation: " + ", ".join(f"{key} {value:.1f}" for key, value in last.items() if key != "step"))


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a run or of a checkpoint.")],
    changes: Changes = None,
    split: Annotated[Split, typer.Option(help="Split of the recipe's data to evaluate on.")] = Split.validation,
    task: Annotated[
        str | None, typer.Option(metavar="NAME", help="Evaluate zero-shot as this task. [default: the checkpoint's]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder for the results. [default: in the run]")
    ] = None,
    shuffled: Annotated[bool, typer.Option("--shuffled", help="Shuffle the frames of each clip: a control.")] = False,
    views: Annotated[
        int, typer.Option(min=1, max=64, help="Clips of different frames per video, whose scores are averaged.")
    ] = 1,
    parquet: Annotated[bool, typer.Option("--parquet", help="Also write predictions.parquet.")] = False,
    truth: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="world.jsonl of a synthetic data set, which lists relevant videos."),
    ] = None,
    cluster: Cluster = None,
    processes: Processes = 1,
    as_json: AsJson = False,
) -> None:
    """Evaluate a checkpoint on a split of its recipe's data."""
    from evilm.training import evaluate

    if parquet:
        evaluate.parquet_bytes(())  # fails now, not after the evaluation, if pyarrow is missing
    run = partial(
        evaluate.in_processes, checkpoint, split.value, changes or (), task=task, shuffled=shuffled, views=views,
        truth=truth, out=out,
    )  # fmt: skip
    if cluster is None:
        done = run()
    else:
        from evilm.cluster.launch import launch

        done = launch(cluster, processes, run, checkpoint.absolute())
    if int(os.environ.get("RANK", "0")):
        return  # rank 0 writes and reports for all processes
    evaluate.save(done.folder, done.result, done.summary, parquet=parquet)
    if as_json:
        typer.echo(json.dumps(done.result, indent=2, sort_keys=True, default=str))
    else:
        _show_evaluation(done)


def _show_evaluation(done: "Evaluation") -> None:
    """Print metrics beside chance, the evaluation rule, and the number of unreadable videos."""
    from rich.console import Console
    from rich.table import Table

    result, console = done.result, Console(highlight=False)
    order = ", frames shuffled" if result["order"] == "shuffled" else ""
    console.print(f"{done.task} on the {done.split} split{order}")
    table = Table("metric")
    table.add_column("value", justify="right")
    table.add_column("chance", justify="right")
    for name, value in done.summary.metrics.items():
        chance = done.summary.chance.get(name)
        table.add_row(name.replace("[", "\\["), f"{value:.1f}", "" if chance is None else f"{chance:.1f}")
    console.print(table)
    low, high = result["interval"]
    lines = [
        f"rule: {done.summary.rule}",
        f"mean score of {result['samples']} samples, 95 % interval: {low:.1f} to {high:.1f}",
        f"unreadable videos: {len(result['unreadable'])}",
        f"written to {done.folder}",
    ]
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def adapt(
    source: Annotated[
        Path, typer.Argument(metavar="CAPTIONS|FOLDER", help="File of captions, or folder of captioned videos.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="New or empty folder for the run.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            show_default="a bundled model",
            help="Model with embeddings: a bundled model, an export, a run, a checkpoint or owner/name.",
        ),
    ] = None,
    changes: Changes = None,
    videos: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the videos that CAPTIONS names. [default: its own]")
    ] = None,
    val_ratio: Annotated[
        float, typer.Option("--val-ratio", min=0.01, max=0.9, help="Fraction of the videos held out for evaluation.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the split and of training.")] = 0,
    extend_vocab: Annotated[
        bool, typer.Option("--extend-vocab/--no-extend-vocab", help="Add words that the model's vocabulary lacks.")
    ] = True,
    minutes: Annotated[float, typer.Option(min=1, help="Time limit in minutes; training steps are fitted to it.")] = 10,
    resume: Annotated[bool, typer.Option("--resume", help="Continue interrupted work.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model on your own captioned videos; compare before and after."""
    from evilm.export.restore import restore
    from evilm.inference.loading import DEFAULT_MODEL, model_folder
    from evilm.training.adapt import Request, adapt

    folder_of_videos = None if videos is None else str(videos.resolve())
    start = str(model_folder(model or DEFAULT_MODEL).resolve())
    request = Request(
        str(source.resolve()), folder_of_videos, start, seed, val_ratio, extend_vocab, minutes, tuple(changes or ())
    )
    again = ["adapt", str(source), *(changes or []), "--out", str(out), "--seed", str(seed)]
    again += [] if model is None else ["--model", model]
    again += ["--val-ratio", str(val_ratio), "--minutes", f"{minutes:g}"]
    again += [] if extend_vocab else ["--no-extend-vocab"]
    again += [] if videos is None else ["--videos", str(videos)]
    try:
        result = adapt(request, out, restore, resume=resume, say=say)
    except KeyboardInterrupt:
        say_how_to_resume("stopped; finished work is kept", [*again, "--resume"])
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    _show_adaptation(result)
    line = json.loads((out / "held-out.jsonl").read_text(encoding="utf-8").splitlines()[0])["captions"][0]
    folder = source if source.is_dir() else videos or source.parent
    commands = (
        ["evilm", "export", str(out), f"{out}-export", "--int8"],
        [
            "evilm",
            "index",
            str(folder),
            f"{out}-index",
            "--model",
            str(out),
            "--calibrate",
            str(out / "held-out.jsonl"),
        ],
        ["evilm", "search", f"{out}-index", line],
    )
    typer.echo("\n".join([f"written to {out / 'adapt.json'}; next:", *("  " + shlex.join(each) for each in commands)]))


def _show_adaptation(result: dict[str, Any]) -> None:
    """Print the metrics before and after, beside chance."""
    from rich.console import Console
    from rich.table import Table

    from evilm.training.adapt import MEANINGFUL

    clips = result["clips"]
    held, total = clips["held out"], clips["held out"] + clips["train"]
    table = Table(title=f"{held} of {total} clips held out; in percent, except the median rank", title_justify="left")
    table.add_column("metric")
    for column in ("before", "after", "chance"):
        table.add_column(column, justify="right")
    names = {"R@1": "R@1", "R@5": "R@5", "R@10": "R@10", "MdR": "median rank", "class_accuracy": "class accuracy",
             "balanced_accuracy": "balanced accuracy"}  # fmt: skip
    for metric in (name for name in names if name in result["after"]):
        row = (f"{result[column][metric]:.1f}" for column in ("before", "after", "chance"))
        table.add_row(names[metric], *row)
    console = Console(highlight=False)
    console.print(table)
    if held < MEANINGFUL:
        console.print(
            f"These numbers mean nothing: {held} clips are held out, and at least {MEANINGFUL} are needed. "
            "Add clips, or hold out more of them with --val-ratio.",
            soft_wrap=True,
        )
    console.print(f"rule: {result['rule']}; training took {result['seconds']:.0f} s", markup=False, soft_wrap=True)


def demo(
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Output folder; an interrupted demo is continued there.")
    ] = Path("runs/demo"),
    minutes: Annotated[float, typer.Option(min=3, max=120, help="Time limit in minutes.")] = 15.0,
) -> None:
    """Train and evaluate every task on synthetic videos; write a report."""
    from evilm.demo.stages import run_demo

    try:
        run_demo(out, minutes)
    except KeyboardInterrupt:
        say_how_to_resume("stopped", ["demo", "--out", str(out), "--minutes", f"{minutes:g}"])
        raise typer.Exit(130) from None
