"""The ``evilm`` command: one function a subcommand, each a few lines around the function that does the work.

What a user can mend ends in one line on stderr and exit code 2; what nobody foresaw in one line and exit code 1.
Heavy packages are imported inside the commands, so that help and the world come at once.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from evilm import __version__
from evilm.errors import ConfigError, DependencyError, EvilmError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evilm.evaluation import Evaluation

TRAIN_PACKAGES = {"matplotlib", "tensorboard", "timm", "torch", "torchvision", "transformers"}  # of the extra [train]

app = typer.Typer(
    name="evilm",
    help="E-ViLM: a small video-language model. `evilm COMMAND --help` explains each command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
words = typer.Typer(help="Make word pieces of captions.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(words, name="vocabulary")


class Split(StrEnum):
    """Which rows to evaluate on."""

    validation = "validation"
    test = "test"


RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A TOML file, or the name of one that comes along.")]
Changes = Annotated[list[str] | None, typer.Argument(metavar="[A.B=C]...", help="Changes to the recipe.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


def main() -> NoReturn:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Carry out a command line; its exit code.

    Args:
        arguments: without the program's name. ``--debug`` is taken wherever it stands.
    """
    debug = "--debug" in arguments
    try:
        code = app([a for a in arguments if a != "--debug"], prog_name="evilm", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the flush at exit is quiet too
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if debug:
            raise
        return _explain(error)
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> int:
    """Say in one line what went wrong; the exit code."""
    if isinstance(error, typer.Abort):
        return 130
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(str(error))
        return 2
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in TRAIN_PACKAGES:
        error = DependencyError(f"this command needs {error.name}, which is not installed: pip install 'evilm[train]'")
    if isinstance(error, typer.TyperException):
        _say(f"error: {_line(_usage(error))}")
        return 2
    if isinstance(error, EvilmError):
        _say(f"error: {_line(str(error))}")
        return 2
    _say(f"error: {type(error).__name__}: {_line(str(error))}; this is a fault of evilm: add --debug to see where")
    return 1


def _usage(error: typer.TyperException) -> str:
    """A complaint about the command line, and which help to read."""
    context = getattr(error, "ctx", None)
    text = error.format_message() if isinstance(error, typer.BadParameter) else str(error)
    return f"{text.rstrip('.')}; see `{getattr(context, 'command_path', 'evilm')} --help`"


def _line(text: str) -> str:
    return " ".join(text.split()) or "no message"


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _say_how_to_go_on(state: str, arguments: Sequence[str]) -> None:
    _say(f"{state}; go on with: {shlex.join(['evilm', *arguments])}")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"evilm {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from; may stand anywhere.")] = False,
) -> None:
    """What every command understands."""


@app.command()
def cost(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="Such as evilm-small.")],
    frames: Annotated[int, typer.Option(min=1, help="Frames of a clip.")] = 4,
    size: Annotated[int, typer.Option(min=1, help="Pixels of a frame's side.")] = 256,
    length: Annotated[int, typer.Option("--words", min=1, help="Word pieces of the text.")] = 30,
    as_json: AsJson = False,
) -> None:
    """Print what a model costs, by part."""
    from evilm.report.cost import cost_of

    found = cost_of(preset, frames, size, length)
    typer.echo(json.dumps(found.as_json(), indent=2) if as_json else found.as_text())


@words.command("build")
def vocabulary_build(
    captions: Annotated[list[Path], typer.Option(metavar="FILE...", help="Caption files: one or several, and again.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The vocabulary to write.")],
    more: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="More caption files.")] = None,
    wordpieces: Annotated[Path | None, typer.Option(metavar="FILE", help="Published vocabulary to cut.")] = None,
    keep: Annotated[float | None, typer.Option(help="Share to keep of a published one (0.3).")] = None,
    size: Annotated[int | None, typer.Option(help="Pieces to train without a published one (9157).")] = None,
) -> None:
    """Make a vocabulary: cut a published one to what captions use, or train one."""
    from evilm.data.vocabulary_build import PAPER_KEEP, PAPER_SIZE, build

    if wordpieces is None and keep is not None:
        raise ConfigError("--keep cuts a published vocabulary: name it with --wordpieces, or train with --size")
    if wordpieces is not None and size is not None:
        raise ConfigError("--size is of a trained vocabulary and --wordpieces names one to cut: leave one of them out")
    files = [*captions, *(more or [])]
    report = build(files, out, wordpieces, PAPER_KEEP if keep is None else keep, PAPER_SIZE if size is None else size)
    typer.echo(str(report))


@app.command()
def world(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder, or a world to go on with.")],
    clips: Annotated[int, typer.Option(help="Videos over all splits.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    val: Annotated[int | None, typer.Option(help="Videos for validation (5 %).")] = None,
    test: Annotated[int | None, typer.Option(help="Videos for the test (10 %).")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes (one for each CPU).")] = None,
) -> None:
    """Make a procedural world of videos, sentences, questions."""
    from evilm.data.world import build
    from evilm.progress import Meter

    with Meter("world", clips, "clips") as meter:
        made = build(out, clips, seed, val=val, test=test, workers=workers, progress=lambda done, _: meter.update(done))
    splits = ", ".join(f"{name} {count}" for name, count in made.splits.items())
    typer.echo(
        f"{out}: {clips} clips ({splits}), {made.captions} captions, {made.questions} questions, "
        f"{made.choices} choices; {made.rendered} rendered now"
    )


@app.command()
def tokenizer(recipe: RecipeName, changes: Changes = None, resume: Resume = False) -> None:
    """Train a semantic vector-quantized video tokenizer."""
    _train("tokenizer", recipe, changes, resume)


@app.command()
def pretrain(recipe: RecipeName, changes: Changes = None, resume: Resume = False) -> None:
    """Pre-train an E-ViLM on videos and captions."""
    _train("pretrain", recipe, changes, resume)


@app.command()
def finetune(recipe: RecipeName, changes: Changes = None, resume: Resume = False) -> None:
    """Fine-tune a pre-trained model on a task, or probe it."""
    _train("finetune", recipe, changes, resume)


def _train(command: str, name: str, changes: list[str] | None, resume: bool) -> None:
    """Carry out a recipe whose task is of the kind of ``command``."""
    from evilm import recipe as recipes
    from evilm import trainer

    path = recipes.find(name)
    recipe = recipes.load(path, changes or ())
    task = recipe.task.name
    right = task if task in ("tokenizer", "pretrain") else "finetune"
    if command != right:
        raise ConfigError(f"{path}: its task is {task}: carry it out with `evilm {right} {name}`")
    try:
        out = trainer.train(recipe, resume=resume)
    except trainer.Interrupted:
        _say_how_to_go_on("stopped and saved", [command, name, *(changes or []), "--resume"])
        raise typer.Exit(130) from None
    typer.echo(f"run: {out}")
    written = out / "validation.jsonl"
    if recipe.data.validation is not None and written.is_file():
        last = json.loads(written.read_text(encoding="utf-8").splitlines()[-1])
        typer.echo("validation: " + ", ".join(f"{key} {value:.1f}" for key, value in last.items() if key != "step"))


@app.command()
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
    from evilm import evaluation

    done = evaluation.of_checkpoint(
        checkpoint, split.value, changes or (), task=task, shuffled=shuffled, truth=truth, out=out
    )
    evaluation.save(done.folder, done.result, done.summary)
    if as_json:
        typer.echo(json.dumps(done.result, indent=2, sort_keys=True, default=str))
    else:
        _show(done)


def _show(done: Evaluation) -> None:
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


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Gone on with where it was stopped.")] = Path("runs/demo"),
    minutes: Annotated[float, typer.Option(min=3, max=120, help="How long it may take.")] = 15.0,
) -> None:
    """Run the whole chain on a small world; write a report."""
    from evilm.demo import demo as run_demo

    try:
        run_demo(out, minutes)
    except KeyboardInterrupt:
        _say_how_to_go_on("stopped", ["demo", "--out", str(out), "--minutes", f"{minutes:g}"])
        raise typer.Exit(130) from None


@app.command()
def doctor() -> None:
    """Say what this machine has and what does not fit."""
    from evilm.report.doctor import examine

    for name, finding in examine():
        typer.echo(f"{name:<12} {finding}")
