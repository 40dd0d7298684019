"""Commands that train a model, evaluate one, or show the whole chain.

Typer reads the annotations at run time, so they are evaluated here and not postponed.
"""

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evilm.commands.console import AsJson, say_how_to_go_on
from evilm.errors import ConfigError

if TYPE_CHECKING:
    from evilm.training.evaluate import Evaluation


class Split(StrEnum):
    """Which rows to evaluate on."""

    validation = "validation"
    test = "test"


RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A TOML file, or the name of one that comes along.")]
Changes = Annotated[list[str] | None, typer.Argument(metavar="[A.B=C]...", help="Changes to the recipe.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run.")]


def tokenizer(recipe: RecipeName, changes: Changes = None, resume: Resume = False) -> None:
    """Train a video tokenizer: the semantic one, or one to compare it with."""
    _train("tokenizer", recipe, changes, resume)


def pretrain(recipe: RecipeName, changes: Changes = None, resume: Resume = False) -> None:
    """Pre-train an E-ViLM on videos and captions, or its text side on captions alone."""
    _train("pretrain", recipe, changes, resume)


def finetune(recipe: RecipeName, changes: Changes = None, resume: Resume = False) -> None:
    """Fine-tune a pre-trained model on a task, probe it, or distil a teacher into it."""
    _train("finetune", recipe, changes, resume)


def _train(command: str, name: str, changes: list[str] | None, resume: bool) -> None:
    """Carry out a recipe whose task is of the kind of ``command``."""
    from evilm.tasks import PRETRAINING, TOKENIZERS
    from evilm.training import recipe as recipes
    from evilm.training import trainer

    path = recipes.find(name)
    recipe = recipes.load(path, changes or ())
    task = recipe.task.name
    right = "tokenizer" if task in TOKENIZERS else "pretrain" if task in PRETRAINING else "finetune"
    if command != right:
        raise ConfigError(f"{path}: its task is {task}: carry it out with `evilm {right} {name}`")
    try:
        out = trainer.train(recipe, resume=resume)
    except trainer.Interrupted:
        say_how_to_go_on("stopped and saved", [command, name, *(changes or []), "--resume"])
        raise typer.Exit(130) from None
    except KeyboardInterrupt:
        go_on = ["--resume"] if resume else []
        say_how_to_go_on("stopped before there was anything to save", [command, name, *(changes or []), *go_on])
        raise typer.Exit(130) from None
    if int(os.environ.get("RANK", "0")):
        return  # the first process speaks for all
    typer.echo(f"run: {out}")
    written = out / "validation.jsonl"
    if recipe.data.validation is not None and written.is_file():
        last = json.loads(written.read_text(encoding="utf-8").splitlines()[-1])
        typer.echo("validation: " + ", ".join(f"{key} {value:.1f}" for key, value in last.items() if key != "step"))


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A run, or one of its checkpoints.")],
    changes: Annotated[list[str] | None, typer.Argument(metavar="[A.B=C]...", help="Changes to its recipe.")] = None,
    split: Annotated[Split, typer.Option(help="The test split is only taken when it is asked for.")] = Split.validation,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="Evaluate as this task instead: zero-shot.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="For predictions and metrics.")] = None,
    shuffled: Annotated[bool, typer.Option("--shuffled", help="Frames in a wrong order, as a control.")] = False,
    truth: Annotated[Path | None, typer.Option(metavar="FILE", help="world.jsonl that says what is relevant.")] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a checkpoint on a split of its recipe."""
    from evilm import distributed
    from evilm.training import evaluate

    with distributed.process_group("auto"):
        done = evaluate.of_checkpoint(
            checkpoint, split.value, changes or (), task=task, shuffled=shuffled, truth=truth, out=out
        )
    if int(os.environ.get("RANK", "0")):
        return  # the first process writes and speaks for all
    evaluate.save(done.folder, done.result, done.summary)
    if as_json:
        typer.echo(json.dumps(done.result, indent=2, sort_keys=True, default=str))
    else:
        _show(done)


def _show(done: "Evaluation") -> None:
    """Metrics beside chance, the rule behind them, and what could not be read."""
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


def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Gone on with where it was stopped.")] = Path("runs/demo"),
    minutes: Annotated[float, typer.Option(min=3, max=120, help="How long it may take.")] = 15.0,
) -> None:
    """Run the whole chain on a small world; write a report."""
    from evilm.demo import demo as run_demo

    try:
        run_demo(out, minutes)
    except KeyboardInterrupt:
        say_how_to_go_on("stopped", ["demo", "--out", str(out), "--minutes", f"{minutes:g}"])
        raise typer.Exit(130) from None
