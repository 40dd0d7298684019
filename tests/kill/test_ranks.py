"""Several processes: they equal one, survive the death of one, and may change in number (T2, T3)."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from evilm import checkpoint, evaluation

if TYPE_CHECKING:
    from tests.kill.conftest import Killing

ALIKE = {
    "tokenizer": ("task.tokenizer.codebook=ema", "task.tokenizer.kmeans=true", "task.tokenizer.restart_below=0.9"),
    "pretrain": ("model.dropout=0.0",),
    "retrieval": (),
    "linear_probe": (),
}


def check_alike(killing: Killing, one: str, several: str) -> None:
    """Losses within 1e-4, the same samples, the same validation."""
    losses, others = (
        [row["loss"] for row in killing.rows(killing.folder / name / "metrics.jsonl")] for name in (one, several)
    )
    assert others == pytest.approx(losses, rel=1e-4)
    assert killing.samples(killing.folder / f"{several}.steps") == killing.samples(killing.folder / f"{one}.steps")
    for mine, theirs in zip(
        *(killing.rows(killing.folder / n / "validation.jsonl") for n in (one, several)), strict=True
    ):
        # Rankings of eight clips, and the use of 24 codes, jump where two scores differ by less than the last bits do.
        codes = [row.pop("voc_rate", 0.0) for row in (mine, theirs)]
        assert abs(codes[0] - codes[1]) < 100 * 1.01 / 24
        assert theirs == pytest.approx(mine, abs=2.5)


@pytest.mark.parametrize("stage", ["tokenizer", pytest.param("retrieval", marks=pytest.mark.slow)])
def test_two_processes_equal_one(killing: Killing, stage: str) -> None:
    killing.unbroken(stage)
    one, two, options = f"{stage}-by-one", f"{stage}-by-two", ALIKE[stage]
    if stage == "retrieval":  # of a model without dropout, which each process draws for itself
        assert killing.wait(killing.start("pretrain", "steady", *ALIKE["pretrain"])) == 0
        options = (f'start="{killing.folder / "steady"}"',)
    assert killing.wait(killing.start(stage, one, *options)) == 0
    for pid in killing.together(stage, two, 2, *options):
        assert killing.wait(pid) == 0, (killing.folder / f"{two}.log").read_text()
    check_alike(killing, one, two)


def torchrun(killing: Killing, stage: str, out: str, count: int, *options: str) -> subprocess.Popen[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command = [*launch, "-m", "evilm", killing.commands[stage], str(killing.recipe(stage, out)), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


@pytest.mark.slow
def test_torchrun(killing: Killing) -> None:
    """``torchrun --nproc-per-node 2 -m evilm pretrain``: the losses of one process with the same global batch."""
    killing.unbroken("tokenizer")
    assert killing.wait(killing.start("pretrain", "alone", *ALIKE["pretrain"])) == 0
    run = torchrun(killing, "pretrain", "launched", 2, *ALIKE["pretrain"])
    try:
        told, _ = run.communicate(timeout=600)
    finally:
        for pid in (*children(run.pid), run.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert run.returncode == 0, told
    assert told.count("run: ") == 1  # one speaks for both
    alone, launched = (
        [row["loss"] for row in killing.rows(killing.folder / name / "metrics.jsonl")] for name in ("alone", "launched")
    )
    assert launched == pytest.approx(alone, rel=1e-4)


def children(pid: int) -> list[int]:
    """The processes that torchrun started."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_a_killed_rank_stops_the_others_and_the_run_goes_on(killing: Killing, count: int) -> None:
    """T2: the others stop within 60 s; restarted, the run equals an unbroken one of as many processes."""
    killing.unbroken("tokenizer")
    rng = random.Random(count)
    options = ("optim.batch_size=12", "optim.epochs=3")
    whole, cut = f"whole-{count}", f"cut-{count}"
    run = torchrun(killing, "pretrain", whole, count, *options)
    assert run.wait(600) == 0
    for number in range(3):
        run = torchrun(killing, "pretrain", cut, count, *options, *(["--resume"] if number else []))
        before = len(killing.rows(killing.folder / cut / "metrics.jsonl")) if number else 0
        while run.poll() is None:
            written = killing.folder / cut / "metrics.jsonl"
            if written.is_file() and len(list(killing.whole_lines(written))) > before + rng.randint(1, 4):
                break
            time.sleep(0.05)
        victims = children(run.pid)
        began = time.monotonic()
        if victims:
            os.kill(rng.choice(victims), signal.SIGKILL)
            killing.kills[f"one of {count} ranks"] += 1
        assert run.wait(60) != 0 or not victims
        assert time.monotonic() - began < 60
        assert not any(Path(f"/proc/{victim}").exists() for victim in victims)
    run = torchrun(killing, "pretrain", cut, count, *options, "--resume")
    assert run.wait(600) == 0
    assert killing.curve(killing.folder / cut) == killing.curve(killing.folder / whole)
    sums = [evaluation.fingerprint(checkpoint.find(killing.folder / name)) for name in (cut, whole)]
    assert sums[0] == sums[1]


@pytest.mark.slow
def test_the_number_of_processes_may_change(killing: Killing) -> None:
    """T3: 4, 2, 1 and 4 processes in turn: the samples and (within 1e-4) the losses of one process throughout."""
    killing.unbroken("tokenizer")
    options = (*ALIKE["pretrain"], "optim.batch_size=12")
    assert killing.wait(killing.start("pretrain", "steady", *options)) == 0
    for number, count in enumerate((4, 2, 1, 4)):
        more = (*options, "--resume") if number else options
        starts = killing.together if count > 1 else lambda *args: [killing.start(args[0], args[1], *args[3:])]
        pids = starts("pretrain", "elastic", count, *more)
        written = killing.folder / "elastic" / "metrics.jsonl"
        while number < 3 and not (written.is_file() and len(list(killing.whole_lines(written))) >= 4 * (number + 1)):
            time.sleep(0.02)
        for pid in pids if number < 3 else []:
            os.killpg(pid, signal.SIGTERM)
        assert {killing.wait(pid) for pid in pids} == {130 if number < 3 else 0}
    check_alike(killing, "steady", "elastic")
