"""The ``evilm`` command: the table of subcommands, and what becomes of their errors.

What a user can mend ends in one line on stderr and exit code 2; what nobody foresaw in one line and exit code 1.
The commands stand in ``evilm.commands``; they import heavy packages inside, so that help and the world come at once.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from evilm import __version__
from evilm.commands import adopting, data, export, making, packing, report, search, training, videos
from evilm.commands.console import say
from evilm.errors import DependencyError, EvilmError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TRAIN_PACKAGES = {"matplotlib", "tensorboard", "timm", "torch", "torchvision", "transformers"}  # of the extra [train]

COMMANDS: dict[str, Callable[..., None]] = {
    "try": adopting.try_out,
    "cost": making.cost,
    "world": making.world,
    "tokenizer": training.tokenizer,
    "pretrain": training.pretrain,
    "finetune": training.finetune,
    "evaluate": training.evaluate,
    "adapt": adopting.adapt,
    "export": export.export,
    "ask": export.ask,
    "demo": training.demo,
    "index": search.index,
    "search": search.search,
    "check-videos": videos.check_videos,
    "doctor": making.doctor,
}

# A group's name to what it is about and its commands.
GROUPS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "data": ("Look into data sets, and pack their frames.", {"check": data.check, "pack": packing.pack}),
    "vocabulary": ("Make word pieces of captions.", {"build": making.vocabulary_build}),
    "report": (
        "The paper's tables and figures, our own runs beside.",
        {"table": report.table, "figure": report.figure},
    ),
}


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"evilm {__version__}")
        raise typer.Exit


def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from; may stand anywhere.")] = False,
) -> None:
    """What every command understands."""


def _assemble() -> typer.Typer:
    """The application of the two tables above."""
    made = typer.Typer(
        name="evilm",
        help="E-ViLM: a small video-language model. `evilm COMMAND --help` explains each command.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(options)
    for name, command in COMMANDS.items():
        made.command(name)(command)
    for name, (about, commands) in GROUPS.items():
        group = typer.Typer(help=about, no_args_is_help=True, rich_markup_mode=None)
        for each, command in commands.items():
            group.command(each)(command)
        made.add_typer(group, name=name)
    return made


app = _assemble()


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
        say(f"error: {_line(_usage(error))}")
        return 2
    if isinstance(error, EvilmError):
        say(f"error: {_line(str(error))}")
        return 2
    say(f"error: {type(error).__name__}: {_line(str(error))}; this is a fault of evilm: add --debug to see where")
    return 1


def _usage(error: typer.TyperException) -> str:
    """A complaint about the command line, and which help to read."""
    context = getattr(error, "ctx", None)
    text = error.format_message() if isinstance(error, typer.BadParameter) else str(error)
    return f"{text.rstrip('.')}; see `{getattr(context, 'command_path', 'evilm')} --help`"


def _line(text: str) -> str:
    return " ".join(text.split()) or "no message"
