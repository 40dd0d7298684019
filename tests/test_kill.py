"""A run that is killed, wherever it happens to be, ends as one that was not (docs/reliability.md, T1)."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evilm import checkpoint, evaluation

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = Path(__file__).parent / "kill" / "host.py"
PUBLISH = os.environ.get("EVILM_KILL_REPORT")  # a file that counts are appended to

DATA = """
[data]
train = { reader = "{reader}", annotations = "{world}" }
validation = { reader = "{reader}", annotations = "{world}", split = "{split}" }
cache = "{runs}/cache"
candidates = 4
workers = 0

[optim]
epochs = 3
batch_size = 18
lr = 2e-3
ema = {ema}

[run]
out = "{runs}/{out}"
device = "cpu"
precision = "fp32"
threads = 1
log_every = 1
checkpoint_minutes = 1e-9
validate_every = 0.5
curves = false
"""

MODEL = """
[model]
backbone = "edgenext_xx_small"
backbone_options = { depths = [1, 1, 1, 1], dims = [8, 16, 24, 32] }
stride = 16
size = 64
frames = 2
width = 32
depth = 2
heads = 2
hidden = 64
text_width = 16
text_layers = 1
text_heads = 2
text_hidden = 32
text_positions = 64
dropout = 0.1
"""

TOKENIZER = """
[task]
name = "tokenizer"
frames = 2
at_least = 4

[task.tokenizer]
encoder = "vit_tiny_patch16_224"
encoder_options = { embed_dim = 32, depth = 3, num_heads = 2 }
stride = 16
size = 64
codes = 24
code_width = 8
width = 32
depth = 1
heads = 2
hidden = 64
"""

# A task's recipe, the command that carries it out, and whose result it needs.
STAGES: dict[str, tuple[str, str, str | None]] = {
    "tokenizer": ("tokenizer", TOKENIZER, None),
    "pretrain": (
        "pretrain",
        '[task]\nname = "pretrain"\ncontrastive = 1.0\nhard_negatives = true\nlabels = "cached"\nwords = 24\n'
        'embedding = 16\ntokenizer = "{runs}/tokenizer"\n' + MODEL,
        "tokenizer",
    ),
    "retrieval": (
        "finetune",
        'start = "{runs}/pretrain"\n[task]\nname = "retrieval"\nwords = 24\nembedding = 16\nvtm = 1.0\n',
        "pretrain",
    ),
    "linear_probe": ("finetune", 'start = "{runs}/pretrain"\n[task]\nname = "linear_probe"\n', "pretrain"),
}


class Killing:
    """A host of commands, the recipes they carry out, and what unbroken runs of them gave."""

    def __init__(self, folder: Path, world: Path) -> None:
        self.folder, self.world = folder, world
        self.seconds: dict[str, float] = {}
        self.points: dict[str, int] = {}
        self.kills: Counter[str] = Counter()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(HOST)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()

    def start(self, stage: str, out: str, *options: str, **rest: Any) -> int:
        """Start a stage's command into ``out``; its process."""
        return self.ask(
            argv=[STAGES[stage][0], str(self.recipe(stage, out)), *options],
            log=str(self.folder / f"{out}.log"),
            steps=str(self.folder / f"{out}.steps"),
            **rest,
        )["pid"]

    def together(self, stage: str, out: str, count: int, *options: str) -> list[int]:
        """Start a stage in several processes, as torchrun would; they share one log and one list of steps."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                  "MASTER_PORT": str(port)}  # fmt: skip
        return [
            self.start(stage, out, *options, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(count)
        ]

    def wait(self, pid: int) -> int:
        return self.ask(wait=pid)["status"]

    def recipe(self, stage: str, out: str) -> Path:
        path = self.folder / f"{out}.toml"
        probe = stage == "linear_probe"
        text = "seed = 0\n" + STAGES[stage][1] + DATA
        for name, value in {
            "reader": "hmdb51" if probe else "msrvtt_retrieval", "split": "test" if probe else "val",
            "ema": "0.9" if stage == "pretrain" else "0.0", "world": self.world, "runs": self.folder, "out": out,
        }.items():  # fmt: skip
            text = text.replace("{" + name + "}", str(value))
        path.write_text(text)
        return path

    def unbroken(self, stage: str) -> Path:
        """The run of a stage that nobody disturbed, and of those it needs."""
        run = self.folder / stage
        if not (run / "latest").is_file():
            needs = STAGES[stage][2]
            if needs is not None:
                self.unbroken(needs)
            began = time.monotonic()
            listing = self.folder / f"{stage}.points"
            status = self.wait(self.start(stage, stage, points=str(listing)))
            assert status == 0, (self.folder / f"{stage}.log").read_text()
            self.seconds[stage] = time.monotonic() - began
            self.points[stage] = len(listing.read_text().splitlines())
        return run

    def broken(self, stage: str, out: str, kills: int, rng: random.Random) -> Path:
        """The same run, killed that many times: at named points and at random moments in turn."""
        self.unbroken(stage)
        names = (self.folder / f"{stage}.points").read_text().splitlines()
        each = next(n for n, name in enumerate(names) if name == "after replacing latest") + 1
        for number in range(kills):
            options = ["--resume"] if number else []
            log = self.folder / f"{out}.passed"
            log.unlink(missing_ok=True)
            if number % 10 < 6:  # inside checkpoint writing; within the first few of this start
                pid = self.start(stage, out, *options, die=rng.randint(1, 2 * each), points=str(log))
                status = self.wait(pid)
                where = log.read_text().splitlines()[-1] if status else "ended before its point"
            else:
                pid = self.start(stage, out, *options)
                time.sleep(rng.uniform(0, self.seconds[stage]))
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                status = self.wait(pid)
                where = "at a random moment" if status else "ended before its moment"
            assert status in {0, -signal.SIGKILL}, (self.folder / f"{out}.log").read_text()
            self.kills[where] += 1
            if status == 0:
                break
        status = self.wait(self.start(stage, out, "--resume"))
        assert status == 0, (self.folder / f"{out}.log").read_text()
        return self.folder / out

    def compare(self, stage: str, out: str) -> None:
        """Every step's loss as float hex, the samples of every step, the validation, and sha256 of the weights."""
        whole, cut = self.folder / stage, self.folder / out
        assert curve(cut) == curve(whole)
        assert rows(cut / "validation.jsonl") == rows(whole / "validation.jsonl")
        assert evaluation.fingerprint(checkpoint.find(cut)) == evaluation.fingerprint(checkpoint.find(whole))
        expected = {row["step"]: row for row in rows(self.folder / f"{stage}.steps")}
        seen = list(whole_lines(self.folder / f"{out}.steps"))
        assert {row["step"] for row in seen} == expected.keys()
        assert all(row == expected[row["step"]] for row in seen), "a step taken again saw other samples"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def curve(run: Path) -> list[tuple[int, str, str]]:
    return [(row["step"], row["loss"].hex(), row["gradient"].hex()) for row in rows(run / "metrics.jsonl")]


@pytest.fixture(scope="module")
def killing(tmp_path_factory: pytest.TempPathFactory, small_world: Path) -> Iterator[Killing]:
    made = Killing(tmp_path_factory.mktemp("kill"), small_world)
    yield made
    made.close()
    if PUBLISH:
        with Path(PUBLISH).open("a") as file:
            file.write(json.dumps(dict(made.kills)) + "\n")


def test_a_killed_run_equals_an_unbroken_one(killing: Killing) -> None:
    killing.broken("tokenizer", "cut", 7, random.Random(1))
    killing.compare("tokenizer", "cut")


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(5))
@pytest.mark.parametrize("stage", STAGES)
def test_two_hundred_kills(killing: Killing, stage: str, trial: int) -> None:
    """Ten kills in each of twenty runs."""
    out = f"{stage}-{trial}"
    killing.broken(stage, out, 10, random.Random(f"{stage} {trial}"))
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
    assert f"stopped and saved; go on with: evilm tokenizer {killing.folder / out}.toml --resume" in told
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


# Several processes


def samples(path: Path) -> dict[int, list[str]]:
    """The samples of every step, those of all ranks in order; a step taken twice must have seen the same."""
    found: dict[tuple[int, int], list[str]] = {}
    for row in whole_lines(path):
        known = found.setdefault((row["step"], row["rank"]), row["keys"])
        assert known == row["keys"] or len(known) != len(row["keys"]), "a step taken again saw other samples"
        found[row["step"], row["rank"]] = row["keys"]
    steps: dict[int, list[str]] = {}
    for step, rank in sorted(found):
        steps.setdefault(step, []).extend(found[step, rank])
    return steps


ALIKE = {
    "tokenizer": ("task.tokenizer.codebook=ema", "task.tokenizer.kmeans=true", "task.tokenizer.restart_below=0.9"),
    "pretrain": ("model.dropout=0.0",),
    "retrieval": ("optim.accumulate=1",),
    "linear_probe": (),
}


def check_alike(killing: Killing, one: str, several: str) -> None:
    """Losses within 1e-4, the same samples, the same validation."""
    losses, others = ([row["loss"] for row in rows(killing.folder / name / "metrics.jsonl")] for name in (one, several))
    assert others == pytest.approx(losses, rel=1e-4)
    assert samples(killing.folder / f"{several}.steps") == samples(killing.folder / f"{one}.steps")
    for mine, theirs in zip(*(rows(killing.folder / n / "validation.jsonl") for n in (one, several)), strict=True):
        assert theirs == pytest.approx(mine, rel=2e-2)


@pytest.mark.parametrize("stage", ["tokenizer", pytest.param("retrieval", marks=pytest.mark.slow)])
def test_two_processes_equal_one(killing: Killing, stage: str) -> None:
    killing.unbroken(stage)
    one, two = f"{stage}-by-one", f"{stage}-by-two"
    assert killing.wait(killing.start(stage, one, *ALIKE[stage])) == 0
    for pid in killing.together(stage, two, 2, *ALIKE[stage]):
        assert killing.wait(pid) == 0, (killing.folder / f"{two}.log").read_text()
    check_alike(killing, one, two)


def torchrun(killing: Killing, stage: str, out: str, count: int, *options: str) -> subprocess.Popen[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--master-port", "0"]
    command = [*launch, "-m", "evilm", STAGES[stage][0], str(killing.recipe(stage, out)), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def test_torchrun(killing: Killing) -> None:
    """``torchrun --nproc-per-node 2 -m evilm pretrain``: the losses of one process with the same global batch."""
    killing.unbroken("tokenizer")
    assert killing.wait(killing.start("pretrain", "alone", *ALIKE["pretrain"])) == 0
    run = torchrun(killing, "pretrain", "launched", 2, *ALIKE["pretrain"])
    told, _ = run.communicate(timeout=600)
    assert run.returncode == 0, told
    assert told.count("run: ") == 1  # one speaks for both
    alone, launched = (
        [row["loss"] for row in rows(killing.folder / name / "metrics.jsonl")] for name in ("alone", "launched")
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
        before = len(rows(killing.folder / cut / "metrics.jsonl")) if number else 0
        while run.poll() is None:
            written = killing.folder / cut / "metrics.jsonl"
            if written.is_file() and len(list(whole_lines(written))) > before + rng.randint(1, 4):
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
    assert curve(killing.folder / cut) == curve(killing.folder / whole)
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
        while number < 3 and not (written.is_file() and len(list(whole_lines(written))) >= 4 * (number + 1)):
            time.sleep(0.02)
        for pid in pids if number < 3 else []:
            os.killpg(pid, signal.SIGTERM)
        assert {killing.wait(pid) for pid in pids} == {130 if number < 3 else 0}
    check_alike(killing, "steady", "elastic")
