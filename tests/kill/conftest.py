"""A host of commands that may be killed anywhere, and what unbroken runs of them gave."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evilm.training import checkpoint, evaluate

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator

HOST = Path(__file__).parent / "host.py"
PUBLISH = os.environ.get("EVILM_KILL_REPORT")  # a file that counts are appended to

DATA = """
[data]
train = { reader = "{reader}", annotations = "{world}" }
validation = { reader = "{reader}", annotations = "{world}", split = "{split}" }
cache = "{runs}/cache"
cached_frames = 4
workers = 0

[optim]
epochs = 3
batch_size = 18
lr = 2e-3
ema_decay = {ema}

[run]
output_dir = "{runs}/{out}"
device = "cpu"
precision = "fp32"
threads = 1
checkpoint_minutes = 1e-9
validate_every = 0.5
"""

MODEL = """
[model]
backbone = "edgenext_xx_small"
backbone_options = { depths = [1, 1, 1, 1], dims = [8, 16, 24, 32] }
stride = 16
image_size = 64
num_frames = 2
embed_dim = 32
depth = 2
num_heads = 2
mlp_dim = 64
text_embed_dim = 16
text_depth = 1
text_num_heads = 2
text_mlp_dim = 32
max_text_len = 64
dropout = 0.1
"""

TOKENIZER = """
[task]
name = "tokenizer"
num_frames = 2
min_count = 4

[task.tokenizer]
encoder = "vit_tiny_patch16_224"
encoder_options = { embed_dim = 32, depth = 3, num_heads = 2 }
stride = 16
image_size = 64
codebook_size = 24
code_dim = 8
embed_dim = 32
depth = 1
num_heads = 2
mlp_dim = 64
"""

# A task's recipe, and the task whose result it needs.
STAGES: dict[str, tuple[str, str | None]] = {
    "tokenizer": (TOKENIZER, None),
    "pretrain": (
        '[task]\nname = "pretrain"\ncontrastive_weight = 1.0\nhard_negatives = true\nlabels = "cached"\n'
        'max_text_len = 24\nembed_dim = 16\ntokenizer = "{runs}/tokenizer"\n' + MODEL,
        "tokenizer",
    ),
    "retrieval": (
        'start = "{runs}/pretrain"\n[task]\nname = "retrieval"\nmax_text_len = 24\nembed_dim = 16\nvtm_weight = 1.0\n',
        "pretrain",
    ),
    "linear_probe": ('start = "{runs}/pretrain"\n[task]\nname = "linear_probe"\n', "pretrain"),
}


def ranks(count: int) -> list[dict[str, str]]:
    """The variables by which processes that work together find each other, as torchrun sets them; none for one."""
    if count == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(port)}  # fmt: skip
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


class Killing:
    """A host of commands, the recipes they carry out, and what unbroken runs of them gave."""

    def __init__(self, folder: Path, world: Path) -> None:
        self.folder, self.world = folder, world
        self.seconds: dict[str, float] = {}
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
            argv=["train", str(self.recipe(stage, out)), *options],
            log=str(self.folder / f"{out}.log"),
            steps=str(self.folder / f"{out}.steps"),
            **rest,
        )["pid"]

    def together(self, stage: str, out: str, count: int, *options: str) -> list[int]:
        """Start a stage in several processes, as torchrun would; they share one log and one list of steps."""
        return [self.start(stage, out, *options, env=each) for each in ranks(count)]

    def evaluate(self, run: str, out: str, count: int, *options: str) -> tuple[dict[str, float], str]:
        """Metrics and per-sample predictions of a run, from so many processes."""
        log, folder = self.folder / f"{out}.log", self.folder / out
        argv = ["evaluate", str(self.folder / run), *options, "--out", str(folder)]
        asked = [self.ask(argv=argv, log=str(log), steps=os.devnull, env=each)["pid"] for each in ranks(count)]
        assert {self.wait(pid) for pid in asked} == {0}, log.read_text()
        return json.loads((folder / "metrics.json").read_text())["metrics"], (folder / "predictions.jsonl").read_text()

    def wait(self, pid: int) -> int:
        return self.ask(wait=pid)["status"]

    def recipe(self, stage: str, out: str) -> Path:
        path = self.folder / f"{out}.toml"
        probe = stage == "linear_probe"
        text = "seed = 0\n" + STAGES[stage][0] + DATA
        for name, value in {
            "reader": "hmdb51" if probe else "msrvtt_retrieval", "split": "test" if probe else "val",
            "ema": "0.9" if stage == "pretrain" else "0.0", "world": self.world, "runs": self.folder, "out": out,
        }.items():  # fmt: skip
            text = text.replace("{" + name + "}", str(value))
        if not path.is_file() or path.read_text() != text:  # else a process that was started before may be reading it
            path.write_text(text)
        return path

    def unbroken(self, stage: str) -> Path:
        """The run of a stage that nobody disturbed, and of those it needs."""
        run = self.folder / stage
        if not (run / "latest").is_file():
            needs = STAGES[stage][1]
            if needs is not None:
                self.unbroken(needs)
            status = self.wait(self.start(stage, stage, points=str(self.folder / f"{stage}.points")))
            assert status == 0, (self.folder / f"{stage}.log").read_text()
        return run

    def length(self, stage: str) -> float:
        """Seconds of an undisturbed run whose caches are filled. The first run of all takes up to 8 times as long."""
        if stage not in self.seconds:
            out = f"{stage}-timed-{time.monotonic_ns()}"
            began = time.monotonic()
            status = self.wait(self.start(stage, out))
            self.seconds[stage] = time.monotonic() - began
            assert status == 0, (self.folder / f"{out}.log").read_text()
        return self.seconds[stage]

    def broken(self, stage: str, out: str, numbers: Iterable[int], rng: random.Random) -> int:
        """The same run, killed once for each of ``numbers``; how many of them it took before it was over.

        Of every ten, six strike at a named point inside checkpoint writing and four at a random moment, which is drawn
        over the measured length of an undisturbed run.
        """
        self.unbroken(stage)
        names = (self.folder / f"{stage}.points").read_text().splitlines()
        each = next(n for n, name in enumerate(names) if name == "after replacing latest") + 1
        taken = 0
        for number in numbers:
            options = ["--resume"] if taken else []
            log = self.folder / f"{out}.passed"
            log.unlink(missing_ok=True)
            if number % 10 < 6:  # within the first few of this start
                pid = self.start(stage, out, *options, die=rng.randint(1, 2 * each), points=str(log))
                status = self.wait(pid)
                where = log.read_text().splitlines()[-1] if status else "ended before its point"
            else:
                moment = rng.uniform(0, self.length(stage))
                pid = self.start(stage, out, *options)
                time.sleep(moment)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                status = self.wait(pid)
                where = "at a random moment" if status else "ended before its moment"
                if status == 0 and not options:  # the machine is faster now: measure it again
                    del self.seconds[stage]
            assert status in {0, -signal.SIGKILL}, (self.folder / f"{out}.log").read_text()
            self.kills[f"{stage}: {where}"] += 1
            if status == 0:
                break
            taken += 1
        status = self.wait(self.start(stage, out, "--resume"))
        assert status == 0, (self.folder / f"{out}.log").read_text()
        return taken

    def compare(self, stage: str, out: str) -> None:
        """Every step's loss as float hex, the samples of every step, the validation, and sha256 of the weights."""
        self.kills[f"{stage}: runs compared"] += 1
        whole, cut = self.folder / stage, self.folder / out
        assert Killing.curve(cut) == Killing.curve(whole)
        assert Killing.rows(cut / "validation.jsonl") == Killing.rows(whole / "validation.jsonl")
        assert evaluate.fingerprint(checkpoint.find(cut)) == evaluate.fingerprint(checkpoint.find(whole))
        expected = {row["step"]: row for row in Killing.rows(self.folder / f"{stage}.steps")}
        seen = list(Killing.whole_lines(self.folder / f"{out}.steps"))
        assert {row["step"] for row in seen} == expected.keys()
        assert all(row == expected[row["step"]] for row in seen), "a step taken again saw other samples"
        self.kills[f"{stage}: runs equal to the unbroken one"] += 1

    @staticmethod
    def rows(path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    @staticmethod
    def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                yield json.loads(line)

    @staticmethod
    def curve(run: Path) -> list[tuple[int, str, str]]:
        return [(row["step"], row["loss"].hex(), row["gradient"].hex()) for row in Killing.rows(run / "metrics.jsonl")]

    @staticmethod
    def samples(path: Path) -> dict[int, list[str]]:
        """The samples of every step, those of all ranks in order; a step taken twice must have seen the same."""
        found: dict[tuple[int, int], list[str]] = {}
        for row in Killing.whole_lines(path):
            known = found.setdefault((row["step"], row["rank"]), row["keys"])
            assert known == row["keys"] or len(known) != len(row["keys"]), "a step taken again saw other samples"
            found[row["step"], row["rank"]] = row["keys"]
        steps: dict[int, list[str]] = {}
        for step, rank in sorted(found):
            steps.setdefault(step, []).extend(found[step, rank])
        return steps


@pytest.fixture(scope="session")
def killing(tmp_path_factory: pytest.TempPathFactory, small_world: Path) -> Iterator[Killing]:
    made = Killing(tmp_path_factory.mktemp("kill"), small_world)
    yield made
    made.close()
    if PUBLISH:
        with Path(PUBLISH).open("a") as file:
            file.write(json.dumps(dict(made.kills)) + "\n")
