"""A run that is killed, wherever it happens to be, ends as one that was not (docs/reliability.md, T1)."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.kill.conftest import Killing

STAGES = ("tokenizer", "pretrain", "retrieval", "linear_probe")


def test_a_killed_run_equals_an_unbroken_one(killing: Killing) -> None:
    assert killing.broken("tokenizer", "cut", range(7), random.Random(1)) >= 5
    killing.compare("tokenizer", "cut")


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(5))
@pytest.mark.parametrize("stage", STAGES)
def test_two_hundred_kills(killing: Killing, stage: str, trial: int) -> None:
    """Ten kills in each of twenty trials; what is over before its ten is followed by another run."""
    rng = random.Random(f"{stage} {trial}")
    taken, runs = 0, 0
    while taken < 10:
        runs += 1
        assert runs < 20, f"{taken} kills in {runs} runs: most runs end before their kill"
        out = f"{stage}-{trial}-{runs}"
        taken += killing.broken(stage, out, range(taken, 10), rng)
        killing.compare(stage, out)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_tells_how_to_go_on(killing: Killing, number: signal.Signals) -> None:
    killing.unbroken("tokenizer")
    out = f"asked-{number.name}"
    pid = killing.start("tokenizer", out)
    while not (killing.folder / out / "metrics.jsonl").is_file():
        time.sleep(0.02)
    began = time.monotonic()
    os.killpg(pid, number)
    assert killing.wait(pid) == 130
    assert time.monotonic() - began < 30
    told = (killing.folder / f"{out}.log").read_text()
    assert f"stopped; a checkpoint was saved; continue with: evilm train {killing.folder / out}.toml --resume" in told
    assert killing.wait(killing.start("tokenizer", out, "--resume")) == 0
    killing.compare("tokenizer", out)


def test_a_folder_in_use_is_refused(killing: Killing) -> None:
    killing.unbroken("tokenizer")
    first = killing.start("tokenizer", "busy")
    while not (killing.folder / "busy" / "metrics.jsonl").is_file():
        time.sleep(0.02)
    os.killpg(first, signal.SIGSTOP)  # so that it is still there, however slow the second one starts
    second = killing.start("tokenizer", "busy", "--resume")
    assert killing.wait(second) == 2
    os.killpg(first, signal.SIGCONT)
    assert killing.wait(first) == 0
    assert f"another run is writing into it (process {first} on " in (killing.folder / "busy.log").read_text()
    killing.compare("tokenizer", "busy")
