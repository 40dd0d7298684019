"""The ``evilm`` command: its subcommands by help panel, and how errors are printed.

An error that the user can fix is printed as one line on stderr with exit code 2; any other error is one line with exit
code 1. The commands are defined in ``evilm.commands``; they import heavy packages when they run, so that help is fast.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, NamedTuple, NoReturn

import typer

from evilm import __version__
from evilm.commands import data, export, index, report, search, serve, train
from evilm.commands.console import say
from evilm.errors import DependencyError, EvilmError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TRAIN_PACKAGES = {
    "jinja2",
    "matplotlib",
    "tensorboard",
    "timm",
    "torch",
    "torchvision",
    "transformers",
}  # of the extra [train]


class Group(NamedTuple):
    """A command that has subcommands."""

    help: str
    commands: dict[str, Callable[..., None]]


# Panels of `evilm --help`, each with its commands.
PANELS: dict[str, dict[str, Callable[..., None] | Group]] = {
    "Search your videos": {
        "quickstart": search.quickstart,
        "index": index.index,
        "embed": index.embed,
        "search": search.search,
        "label": search.label,
        "merge": index.merge,
        "serve": serve.serve,
        "ask": export.ask,
        "adapt": train.adapt,
    },
    "Train a model": {
        "train": train.train,
        "evaluate": train.evaluate,
        "demo": train.demo,
        "export": export.export,
    },
    "Data": {
        "data": Group(
            "Generate, check and pack data sets; build vocabularies; check video files.",
            {
                "synthetic": data.synthetic,
                "check": data.check,
                "pack": data.pack,
                "labels": data.labels,
                "vocabulary": data.vocabulary,
                "check-videos": data.check_videos,
            },
        ),
    },
    "Reports": {
        "cost": report.cost,
        "plan": report.plan,
        "report": Group(
            "Print the tables and figures of the paper beside your own runs, or compare two evaluations.",
            {
                "table": report.table,
                "figure": report.figure,
                "all": report.everything,
                "compare": report.compare,
                "splits": report.splits,
            },
        ),
        "env": report.env,
    },
}

# Commands of earlier versions and what replaced them.
RENAMED = {
    "tokenizer": "train", "pretrain": "train", "finetune": "train", "try": "quickstart", "doctor": "env",
    "world": "data synthetic", "vocabulary": "data vocabulary", "check-videos": "data check-videos",
}  # fmt: skip

# Options of earlier versions and what replaced them.
RENAMED_OPTIONS = {
    "--forget": "--allow-empty", "--fast": "--keyframes-only", "--longer": "--min-duration",
    "--shorter": "--max-duration", "--like": "--query-video", "--store": "--backend", "--held-out": "--val-ratio",
    "--old-words": "--no-extend-vocab",
}  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"evilm {__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")] = False,
) -> None:
    """Options of every command."""


def _assemble() -> typer.Typer:
    """Build the application from ``PANELS``."""
    made = typer.Typer(
        name="evilm",
        help="E-ViLM, a small video-language model. `evilm COMMAND --help` describes a command.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",  # "rich" takes the text "[default: 8]" for a style and drops it
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(options)
    for panel, commands in PANELS.items():
        for name, command in commands.items():
            if not isinstance(command, Group):
                made.command(name, rich_help_panel=panel)(command)
                continue
            group = typer.Typer(help=command.help, no_args_is_help=True, rich_markup_mode="markdown")
            for each, function in command.commands.items():
                group.command(each)(function)
            made.add_typer(group, name=name, rich_help_panel=panel)
    return made


app = _assemble()


def main() -> NoReturn:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code.

    Args:
        arguments: without the program's name; ``--debug`` may be at any position.
    """
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if arguments and (renamed := RENAMED.get(arguments[0])):
        say(f"error: `evilm {arguments[0]}` is now `evilm {renamed}`; see `evilm {renamed} --help`")
        return 2
    try:
        code = app(arguments, prog_name="evilm", standalone_mode=False)
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
    """Print an error as one line and return the exit code."""
    if isinstance(error, typer.Abort):
        return 130
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(str(error))
        return 2
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in TRAIN_PACKAGES:
        error = DependencyError(f"this command needs {error.name}, which is not installed: pip install 'evilm[train]'")
    if isinstance(error, typer.TyperException):
        say(f"error: {_line(_usage(error))}")
        return 2
    if isinstance(error, EvilmError):
        say(f"error: {_line(str(error))}")
        return 2
    say(f"error: {type(error).__name__}: {_line(str(error))}; this is a bug in evilm: add --debug for the traceback")
    return 1


def _usage(error: typer.TyperException) -> str:
    """The message of a usage error and the command that prints the help."""
    context = getattr(error, "ctx", None)
    option = getattr(error, "option_name", "")
    if option in RENAMED_OPTIONS:
        return f"{option} is now {RENAMED_OPTIONS[option]}; see `{getattr(context, 'command_path', 'evilm')} --help`"
    text = error.format_message() if isinstance(error, typer.BadParameter) else str(error)
    return f"{text.rstrip('.')}; see `{getattr(context, 'command_path', 'evilm')} --help`"


def _line(text: str) -> str:
    return " ".join(text.split()) or "no message"
