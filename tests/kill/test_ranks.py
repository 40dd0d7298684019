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
import torch

from evilm.training import checkpoint, evaluate

if TYPE_CHECKING:
    from tests.kill.conftest import Killing

ALIKE = {
    "tokenizer": (
        "task.tokenizer.codebook=ema",
        "task.tokenizer.kmeans=true",
        "task.tokenizer.dead_code_threshold=0.9",
    ),
    "pretrain": ("model.dropout=0.0",),
    # With 2 captions the losses agree as well, but one rank of the last validation lies on an edge between two places.
    "retrieval": ("task.captions_per_video=3",),
    "linear_probe": (),
}


# Metrics jump where two scores change places. Of 72 clips one rank is worth 1.4 and of 24 codes one is worth 4.2.
MANY = ("data.validation.split=train", "run.validate_every=1.5")


def check_alike(killing: Killing, one: str, several: str) -> None:
    """Every loss within 1e-4, the same samples, the same validation, codes used as often."""
    alone, together = (killing.rows(killing.folder / name / "metrics.jsonl") for name in (one, several))
    assert len(alone) == len(together)
    for mine, theirs in zip(alone, together, strict=True):
        assert theirs | {"seconds": 0} == pytest.approx(mine | {"seconds": 0}, rel=1e-4)
    assert killing.samples(killing.folder / f"{several}.steps") == killing.samples(killing.folder / f"{one}.steps")
    for mine, theirs in zip(
        *(killing.rows(killing.folder / n / "validation.jsonl") for n in (one, several)), strict=True
    ):
        assert theirs == pytest.approx(mine, abs=0.1)
    weights = [
        checkpoint.read_tensors(checkpoint.find(killing.folder / name) / "model.safetensors") for name in (one, several)
    ]
    for name in weights[0]:
        if name.endswith((".use", ".sums")):
            torch.testing.assert_close(weights[1][name], weights[0][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stage", ["tokenizer", pytest.param("retrieval", marks=pytest.mark.slow)])
def test_two_processes_equal_one(killing: Killing, stage: str) -> None:
    killing.unbroken(stage)
    one, two, options = f"{stage}-by-one", f"{stage}-by-two", (*ALIKE[stage], *MANY)
    if stage == "retrieval":  # of a model without dropout, which each process draws for itself
        assert killing.wait(killing.start("pretrain", "steady", *ALIKE["pretrain"])) == 0
        options = (f'start="{killing.folder / "steady"}"', *ALIKE[stage], *MANY)
    assert killing.wait(killing.start(stage, one, *options)) == 0
    for pid in killing.together(stage, two, 2, *options):
        assert killing.wait(pid) == 0, (killing.folder / f"{two}.log").read_text()
    check_alike(killing, one, two)
    # 72 clips in batches of 15: three batches for the first process, two for the other, the last one of 12.
    found = [killing.evaluate(two, f"{two}-seen-by-{count}", count, "optim.batch_size=15") for count in (1, 2)]
    assert found[0] == found[1]
    assert found[0][1].count("\n") == 72


def torchrun(
    killing: Killing, stage: str, out: str, count: int, *options: str, restarts: int = 0
) -> subprocess.Popen[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    launch += ["--max-restarts", str(restarts)] if restarts else []
    command = [*launch, "-m", "evilm", "train", str(killing.recipe(stage, out)), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def finish(run: subprocess.Popen[str], seconds: float) -> str:
    """Wait for torchrun; what was said. Nothing of it is left behind, whatever happens."""
    try:
        told, _ = run.communicate(timeout=seconds)
    finally:
        for pid in (*children(run.pid), run.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return told


def test_torchrun(killing: Killing) -> None:
    """``torchrun --nproc-per-node 2 -m evilm train``: the losses of one process with the same global batch."""
    killing.unbroken("tokenizer")
    options = (*ALIKE["pretrain"], *MANY, "optim.epochs=1")
    one = killing.start("pretrain", "alone", *options)  # is done while torchrun and what it starts import torch
    run = torchrun(killing, "pretrain", "launched", 2, *options)
    told = finish(run, 300)
    assert run.returncode == 0, told
    assert killing.wait(one) == 0, (killing.folder / "alone.log").read_text()
    assert told.count("run: ") == 1  # one speaks for both
    alone, launched = (killing.rows(killing.folder / name / "metrics.jsonl") for name in ("alone", "launched"))
    assert {"mvm", "mlm", "vtm", "contrastive"} <= launched[0].keys()
    assert len(launched) == len(alone) == 4
    for mine, theirs in zip(alone, launched, strict=True):
        assert theirs | {"seconds": 0} == pytest.approx(mine | {"seconds": 0}, rel=1e-4)
    checks = [killing.rows(killing.folder / name / "validation.jsonl") for name in ("alone", "launched")]
    assert checks[1] == [pytest.approx(check, abs=0.1) for check in checks[0]]


def children(pid: int) -> list[int]:
    """The processes that torchrun started."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def at_work(pid: int) -> bool:
    """Whether a process of the host has not ended; until it is waited for it stays listed, as a zombie."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_a_killed_rank_stops_the_others_and_the_run_goes_on(killing: Killing, count: int) -> None:
    """T2: the others stop within 60 s; restarted, the run equals an unbroken one of as many processes."""
    killing.unbroken("tokenizer")
    rng = random.Random(count)
    options = ("optim.batch_size=12", "optim.epochs=3")
    whole, cut = f"whole-{count}", f"cut-{count}"
    run = torchrun(killing, "pretrain", whole, count, *options)
    told = finish(run, 600)
    assert run.returncode == 0, told
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
            killing.kills[f"pretrain: one of {count} ranks"] += 1
        assert run.wait(60) != 0 or not victims
        assert time.monotonic() - began < 60
        assert not any(Path(f"/proc/{victim}").exists() for victim in victims)
    run = torchrun(killing, "pretrain", cut, count, *options, "--resume")
    told = finish(run, 600)
    assert run.returncode == 0, told
    assert killing.curve(killing.folder / cut) == killing.curve(killing.folder / whole)
    sums = [evaluate.fingerprint(checkpoint.find(killing.folder / name)) for name in (cut, whole)]
    assert sums[0] == sums[1]


@pytest.mark.slow
def test_an_elastic_restart_ends_as_an_unbroken_run(killing: Killing) -> None:
    """``torchrun --max-restarts``: two of its processes die, it starts all again, and the run ends on its own."""
    killing.unbroken("tokenizer")
    options = ("optim.batch_size=12", "optim.epochs=3")
    for pid in killing.together("pretrain", "straight", 2, *options):
        assert killing.wait(pid) == 0, (killing.folder / "straight.log").read_text()
    run = torchrun(killing, "pretrain", "restarted", 2, *options, "--resume", restarts=3)
    written = killing.folder / "restarted" / "metrics.jsonl"
    try:
        for number in (0, 1):
            while not (written.is_file() and len(list(killing.whole_lines(written))) >= 4 + 6 * number):
                assert run.poll() is None, run.communicate()[0]
                time.sleep(0.05)
            victim = random.Random(number).choice(children(run.pid))
            os.kill(victim, signal.SIGKILL)
            killing.kills["pretrain: one of 2 ranks, restarted by torchrun"] += 1
            while victim in children(run.pid):
                time.sleep(0.05)
    finally:
        told = finish(run, 600)
    assert run.returncode == 0, told
    assert told.count("resuming ") == 2
    assert killing.curve(killing.folder / "restarted") == killing.curve(killing.folder / "straight")
    sums = [evaluate.fingerprint(checkpoint.find(killing.folder / name)) for name in ("restarted", "straight")]
    assert sums[0] == sums[1]


@pytest.mark.slow
def test_the_number_of_processes_may_change(killing: Killing) -> None:
    """T3: 4, 2, 1 and 4 processes in turn: the samples and (within 1e-4) the losses of one process throughout."""
    killing.unbroken("tokenizer")
    options = (*ALIKE["pretrain"], *MANY, "optim.batch_size=12")
    one = killing.wait(killing.start("pretrain", "throughout", *options))
    assert one == 0, (killing.folder / "throughout.log").read_text()
    for number, count in enumerate((4, 2, 1, 4)):
        more = (*options, "--resume") if number else options
        starts = killing.together if count > 1 else lambda *args: [killing.start(args[0], args[1], *args[3:])]
        pids = starts("pretrain", "elastic", count, *more)
        written = killing.folder / "elastic" / "metrics.jsonl"
        while number < 3 and not (written.is_file() and len(list(killing.whole_lines(written))) >= 4 * (number + 1)):
            assert all(at_work(pid) for pid in pids), (killing.folder / "elastic.log").read_text()[:3000]
            time.sleep(0.02)
        for pid in pids if number < 3 else []:
            os.killpg(pid, signal.SIGTERM)
        assert {killing.wait(pid) for pid in pids} == {130 if number < 3 else 0}
    check_alike(killing, "throughout", "elastic")
