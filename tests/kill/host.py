"""Starts the ``evilm`` command again and again without importing torch each time, and lets it die at named points.

A program, not a test: it reads requests from stdin, one JSON object a line, and answers each with one. Every command is
carried out by a fork in a process group of its own, through the same function as the console script.

    {"argv": [...], "log": FILE, "steps": FILE, "env": {...}, "die": N, "points": FILE}    ->  {"pid": PID}
    {"wait": PID}                                                                          ->  {"status": STATUS}

``die`` kills the command at the N-th point that it passes inside checkpoint writing; ``points`` lists those it passed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

# What every command imports, before the first fork.
import torch
import transformers.models.bert.modeling_bert
from transformers import BertModel

from evilm import cli
from evilm.training import checkpoint, evaluate, logger, trainer

_ = (transformers, BertModel, evaluate)


class Points:
    """Counts the points that a command passes, and kills it at one of them."""

    def __init__(self, die: int | None, listing: str | None) -> None:
        self.die, self.count = die, 0
        self.listing = Path(listing) if listing else None

    def due(self) -> bool:
        return self.die is not None and self.count + 1 == self.die

    def pass_by(self, name: str) -> None:
        self.count += 1
        if self.listing is not None:
            with self.listing.open("a") as file:
                file.write(name + "\n")
        if self.die == self.count:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str, label: Callable[..., str], half: Callable[..., None] | None = None) -> None:
        """Make ``owner.name`` a point before, one half-way where ``half`` can do half of it, and one after."""
        real = getattr(owner, name)

        def passed(*args: Any, **named: Any) -> Any:
            what = label(*args)
            self.pass_by(f"before {what}")
            if half is not None:
                if self.due():
                    half(real, *args, **named)
                self.pass_by(f"half of {what}")
            found = real(*args, **named)
            self.pass_by(f"after {what}")
            return found

        setattr(owner, name, passed)

    def install(self) -> None:
        def written(real: Callable[..., Any], path: Path, *rest: Any) -> None:
            real(path, *rest)
            os.truncate(path, path.stat().st_size // 2)

        def emptied(_real: Callable[..., Any], folder: Path, *_: Any, **__: Any) -> None:
            for file in sorted(Path(folder).glob("*"))[:2]:
                if file.is_file():
                    file.unlink()

        def line(_real: Callable[..., Any], self_: logger.RunLogger, name: str, *_: Any) -> None:
            with (self_.folder / name).open("a") as file:
                file.write('{"step": 1, "lo')

        self.around(checkpoint, "write_tensors", lambda path, *_: f"writing {path.name}", written)
        self.around(checkpoint, "write_json", lambda path, *_: f"writing {path.name}", written)
        self.around(checkpoint, "_flush", lambda path: f"syncing {path.name}")
        self.around(checkpoint, "_sync_folder", lambda _: "syncing a folder")
        self.around(Path, "rename", lambda *_: "moving the folder into place")
        self.around(os, "replace", lambda _, to: f"replacing {Path(to).name}")
        self.around(shutil, "rmtree", lambda _, **__: "deleting an old folder", emptied)
        self.around(logger.RunLogger, "add", lambda _, name, *__: f"appending to {name}", line)


def record_steps(path: str) -> None:
    """Write down which samples every step saw, and how its loss came out to the last bit."""
    real = trainer.Trainer._take_step

    def take_step(self: trainer.Trainer, batch: Any) -> Any:
        step = self.step
        result = real(self, batch)
        row = {"step": step, "keys": [e.key for e in batch.examples], "loss": result.loss.hex(), "rank": 0}
        row["rank"] = int(os.environ.get("RANK", "0"))
        with Path(path).open("a") as file:
            file.write(json.dumps(row) + "\n")
        return result

    trainer.Trainer._take_step = take_step


def child(request: dict[str, Any]) -> int:
    os.setpgid(0, 0)
    handle = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(request.get("env", {}))
    record_steps(request["steps"])
    logger.RunLogger.draw = lambda _: None
    Points(request.get("die"), request.get("points")).install()
    return cli.run(request["argv"])


def main() -> None:
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    for text in sys.stdin:
        request = json.loads(text)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answers.write(json.dumps({"status": os.waitstatus_to_exitcode(status)}) + "\n")
        else:
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    code = child(request)
                    sys.stdout.flush()
                    sys.stderr.flush()
                finally:
                    os._exit(code)
            answers.write(json.dumps({"pid": pid}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
