"""The command line as people use it, and as they misuse it: one line, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest

from evilm import cli

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCES = """
[data]
train = {{ reader = "msrvtt_retrieval", annotations = "{world}", split = "train" }}
validation = {{ reader = "msrvtt_retrieval", annotations = "{world}", split = "val" }}
test = {{ reader = "msrvtt_retrieval", annotations = "{world}", split = "test" }}
cache = "cache"
cached_frames = 2
workers = 0
[optim]
epochs = 1
batch_size = 24
[run]
threads = 1
"""
TOKENIZER = """
[task]
name = "tokenizer"
num_frames = 2
[task.tokenizer]
encoder = "vit_tiny_patch16_224"
encoder_options = { embed_dim = 32, depth = 3, num_heads = 2 }
stride = 16
image_size = 64
codebook_size = 32
embed_dim = 32
depth = 1
num_heads = 2
mlp_dim = 64
"""
PRETRAIN = """
[model]
preset = "evilm-tiny"
backbone = "edgenext_xx_small"
backbone_options = { depths = [1, 1, 1, 1], dims = [8, 16, 24, 32] }
num_frames = 2
embed_dim = 32
depth = 1
num_heads = 2
mlp_dim = 64
text_embed_dim = 16
text_depth = 1
text_num_heads = 2
text_mlp_dim = 32
[task]
name = "pretrain"
tokenizer = "tok"
contrastive_weight = 1.0
max_text_len = 16
embed_dim = 16
"""
RETRIEVAL = """
start = "pre"
[task]
name = "retrieval"
max_text_len = 16
embed_dim = 16
"""


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, small_world: Path) -> Path:
    """A folder with recipes and with runs of a tokenizer, a pre-trained and a fine-tuned model."""
    folder = tmp_path_factory.mktemp("chain")
    for name, text in (("tok", TOKENIZER), ("pre", PRETRAIN), ("ret", RETRIEVAL)):
        whole = text + SOURCES.format(world=small_world.as_posix()) + f'output_dir = "{name}"\n'
        (folder / f"{name}.toml").write_text(whole)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert cli.run(["train", "tok.toml"]) == 0
        assert cli.run(["train", "pre.toml"]) == 0
        assert cli.run(["train", "ret.toml"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(chain: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of ``chain``, as the working directory."""
    monkeypatch.chdir(chain)
    return chain


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """``refused("evaluate nowhere", "no such")``: one line with these words, exit code 2, and no file more or less."""

    def check(command: str | list[str], *words: str) -> None:
        arguments = command.split() if isinstance(command, str) else command
        before = listing(Path())
        capsys.readouterr()
        code = cli.run(arguments)
        said = capsys.readouterr()
        errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
        assert (code, len(errors)) == (2, 1), f"{arguments}: {said.err}"
        assert "Traceback" not in said.err
        assert not said.out
        for word in words:
            assert word in errors[0], f"{arguments}: {errors[0]}"
        assert listing(Path()) == before, f"{arguments}: files came or went"

    return check


def listing(folder: Path) -> list[str]:
    """Every file but those of the frame cache, which is no one's output."""
    return sorted(path.as_posix() for path in folder.rglob("*") if path.parts[0] != "cache")


# Without torch


def test_what_needs_no_torch_runs_without(tmp_path: Path) -> None:
    """In a process where importing torch fails: help, world and vocabulary work, and the rest says what to install."""
    program = """
import sys, time
sys.modules["torch"] = None
from evilm.cli import run
start = time.perf_counter()
assert run(["--help"]) == 0
print("seconds", time.perf_counter() - start)
assert run(["data", "synthetic", "w", "--clips", "20", "--seed", "1", "--workers", "1"]) == 0
files = ["w/captions_train.txt", "w/captions_val.txt"]
assert run(["data", "vocabulary", "--size", "300", "--captions", *files, "--out", "a.json"]) == 0
again = ["--captions", files[0], "--captions", files[1]]
assert run(["data", "vocabulary", "--size", "300", *again, "--out", "b.json"]) == 0
assert run(["env"]) == 0
assert run(["cost", "evilm-tiny"]) == 2
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert "17 train" in done.stdout or "train 17" in done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert errors == ["error: this command needs torch, which is not installed: pip install 'evilm[train]'"]


def test_help_comes_at_once() -> None:
    """Less than half a second of processor time, the best of three, whatever else runs on the machine."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    seconds: list[float] = []
    for _ in range(3):
        before = used()
        done = subprocess.run([sys.executable, "-m", "evilm", "--help"], capture_output=True, text=True, check=True)
        seconds.append(used() - before)
        assert "quickstart" in done.stdout
    assert min(seconds) < 0.5


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from evilm import __version__

    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"evilm {__version__}\n"


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    command = f"{sys.executable} -m evilm --help | true; exit ${{PIPESTATUS[1]}}"
    done = subprocess.run(["/bin/bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# What goes well


def test_cost_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["cost", "evilm-tiny", "--size", "64", "--words", "20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    keys = {"preset", "frames", "size", "words", "parameters", "parameters_with_heads", "macs", "flops", "parts"}
    assert keys <= found.keys()
    assert (found["preset"], found["frames"], found["size"], found["words"]) == ("evilm-tiny", 4, 64, 20)
    assert cli.run(["cost", "evilm-tiny", "--size", "64"]) == 0
    assert "total without heads" in capsys.readouterr().out


@pytest.mark.usefixtures("here")
def test_evaluate_prints_a_table_that_names_the_split(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["evaluate", "ret", "--split", "test"]) == 0
    shown = capsys.readouterr().out
    for words in ("retrieval on the test split", "R@10", "chance", "rule: dual encoder; 16 texts x 16 videos",
                  "a video is right when the text is true of it", "95 % interval", "unreadable videos: 0"):  # fmt: skip
        assert words in shown
    rows = [json.loads(line) for line in Path("ret/evaluation-test/predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 16
    assert {"key", "score", "readable", "rank"} <= rows[0].keys()


@pytest.mark.usefixtures("here")
def test_evaluate_takes_validation_unless_told_and_prints_only_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["evaluate", "ret/step-3", "--json", "--shuffled"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["split"], found["order"], found["samples"]) == ("validation", "shuffled", 8)
    assert found == json.loads(Path("ret/evaluation-validation-shuffled/metrics.json").read_text())
    low, high = found["interval"]
    assert low <= found["metrics"]["R@1"] <= high


@pytest.mark.usefixtures("here")
def test_evaluate_zero_shot_and_every_kind_of_run(capsys: pytest.CaptureFixture[str]) -> None:
    choice = ["--task", "multiple_choice", "data.validation.reader=msrvtt_mc"]
    runs = {
        "tokenizer": ["tok"],
        "pretrain": ["pre"],
        "retrieval": ["pre", "--task", "retrieval"],
        "multiple_choice": ["pre", *choice],
    }
    for task, arguments in runs.items():
        capsys.readouterr()
        assert cli.run(["evaluate", *arguments, "--json", "--out", f"out-{task}"]) == 0
        assert json.loads(capsys.readouterr().out)["task"] == task
        shutil.rmtree(f"out-{task}")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("run", "rule"), [("pre", "zero-shot: softmax"), ("ret", "retrieval-tuned: softmax")])
def test_multiple_choice_names_its_protocol(capsys: pytest.CaptureFixture[str], run: str, rule: str) -> None:
    choice = ["--task", "multiple_choice", "data.validation.reader=msrvtt_mc", "--json", "--out", f"mc-{run}"]
    assert cli.run(["evaluate", run, *choice]) == 0
    assert json.loads(capsys.readouterr().out)["rule"].startswith(rule)
    shutil.rmtree(f"mc-{run}")


@pytest.mark.usefixtures("here")
def test_changes_reach_the_recipe_of_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["evaluate", "ret", "data.validation.limit=5", "--json", "--out", "five"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 5
    shutil.rmtree("five")


@pytest.mark.usefixtures("here")
def test_the_example_trains_and_evaluates(capsys: pytest.CaptureFixture[str], repository: Path) -> None:
    script = runpy.run_path(str(repository / "examples" / "train_and_evaluate.py"))
    script["main"]("ret.toml", "run.output_dir=example")
    shown = capsys.readouterr().out
    assert "R@1" in shown
    assert "dual encoder; 8 texts x 8 videos" in shown
    shutil.rmtree("example")


@pytest.mark.usefixtures("here")
def test_an_interrupted_run_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from evilm.training import trainer

    take_step = trainer.Trainer._take_step

    def interrupted(self: trainer.Trainer, batch: object) -> object:
        if self.step == 1:
            signal.raise_signal(signal.SIGINT)
        return take_step(self, batch)  # pyright: ignore[reportArgumentType]

    command = ["train", "ret.toml", "run.output_dir=cut"]
    monkeypatch.setattr(trainer.Trainer, "_take_step", interrupted)
    assert cli.run(command) == 130
    assert (
        "stopped; a checkpoint was saved; continue with: evilm train ret.toml run.output_dir=cut --resume\n"
        in capsys.readouterr().err
    )
    assert Path("cut/step-2/manifest.json").is_file()
    monkeypatch.setattr(trainer.Trainer, "_take_step", take_step)
    assert cli.run([*command, "--resume"]) == 0
    assert "resuming cut/step-2 at step 2 of 3" in capsys.readouterr().err
    shutil.rmtree("cut")


def test_recipes_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    from evilm.training import recipe

    monkeypatch.chdir(tmp_path)
    assert recipe.find("world-tokenizer") == repository / "recipes" / "world-tokenizer.toml"
    (tmp_path / "mine.toml").write_text("")
    assert recipe.find("mine.toml") == Path("mine.toml")


# What is refused


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", "Usage"),
        ("serach x", "Did you mean 'search'"),
        ("tokenizer a.toml", "`evilm tokenizer` is now `evilm train`; see `evilm train --help`"),
        ("pretrain a.toml", "`evilm pretrain` is now `evilm train`"),
        ("finetune a.toml", "`evilm finetune` is now `evilm train`"),
        ("try", "`evilm try` is now `evilm quickstart`"),
        ("doctor", "`evilm doctor` is now `evilm env`"),
        ("world made", "`evilm world` is now `evilm data synthetic`"),
        ("vocabulary build", "`evilm vocabulary` is now `evilm data vocabulary`"),
        ("check-videos clips", "`evilm check-videos` is now `evilm data check-videos`"),
        ("cost evilm-huge", "unknown preset 'evilm-huge': there are evilm-small"),
        ("cost evilm-tiny --size 50", "must be a multiple"),
        ("cost evilm-tiny --frames 0", "--frames"),
        ("data synthetic made --clips 0", "0 clips are too few"),
        ("data synthetic made --clips -3", "-3 clips are too few"),
        ("data synthetic made --clips 99999999999", "make several"),
        ("data synthetic made --workers 0", "workers = 0"),
        ("data synthetic thesis --clips 10", "thesis: holds something that is not a synthetic data set"),
        ("data synthetic notes.txt --clips 10", "notes.txt: is a file"),
        ("data vocabulary --captions none.txt --out v.json", "none.txt"),
        ("data vocabulary --captions blank.txt --out v.json", "blank.txt: holds no captions"),
        ("data vocabulary --captions columns.csv --out v.json", "columns.csv:2: has no column for a caption"),
        ("data vocabulary --captions utf16.txt --out v.json", "utf16.txt"),
        ("data vocabulary --captions notes.txt --size 160 --out thesis", "thesis: the vocabulary cannot be written"),
        ("data vocabulary --captions notes.txt --keep 0.3 --out v.json", "--wordpieces"),
        ("data vocabulary --captions notes.txt --wordpieces notes.txt --size 9 --out v.json", "--size"),
        ("demo --minutes 1", "--minutes"),
        ("train nonesuch", "no such recipe; give a TOML file or one of "),
        ("train thesis", "thesis: is a folder"),
        ("train blank.txt", "'task' is missing; 'data' is missing"),
        ("train latin.toml", "latin.toml: cannot be read"),
        ("train notes.txt", "notes.txt: not TOML"),
        ("evaluate nowhere", "nowhere: no such checkpoint or run"),
        ("evaluate thesis", "thesis: holds no checkpoint"),
        ("evaluate notes.txt", "notes.txt: holds no checkpoint"),
    ],
)
def test_careless_commands(
    refused: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter-1.txt").write_text("years of work")
    (tmp_path / "notes.txt").write_text("a red disc moves left")
    (tmp_path / "blank.txt").write_text("")
    (tmp_path / "columns.csv").write_text("path,remark\na.mp4,nice\n")
    (tmp_path / "utf16.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "latin.toml").write_bytes(b'out = "\xe9"')
    if command:
        refused(command, words)
    else:
        assert cli.run([]) == 2


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train tok.toml a.b", "'a.b' is not of the form a.b=value"),
        ("train tok.toml optim.speed=1", "unknown key 'optim.speed'"),
        ("train tok.toml optim.lr=fast", "'optim.lr' = 'fast'"),
        ("train tok.toml task.name=dance", "unknown task 'dance': there are 'tokenizer'"),
        ("train tok.toml", "tok: holds a run already; add --resume"),
        ("train tok.toml run.output_dir=notes", "notes: holds something else"),
        ("train tok.toml run.output_dir=tok.toml", "tok.toml: is a file"),
        ("train tok.toml --resume task.tokenizer.codebook_size=64", "trained by another recipe"),
        ("train pre.toml run.output_dir=tok --resume", "trained by another recipe"),
        ("train tok.toml run.output_dir=new run.device=cuda", "this machine has no CUDA device"),
        ("train tok.toml run.output_dir=new task.tokenizer.encoder=vit_none", "unknown backbone 'vit_none'"),
        (
            "train tok.toml run.output_dir=new task.tokenizer.image_size=65",
            "image_size 65 must be a multiple of the stride 16",
        ),
        ("train tok.toml run.output_dir=new task.tokenizer.num_heads=5", "num_heads 5 must divide embed_dim 32"),
        ("train tok.toml run.output_dir=new data.train.reader=nope", "unknown reader 'nope'"),
        ("train tok.toml run.output_dir=new data.train.annotations=nowhere", "nowhere: no such"),
        ("train tok.toml run.output_dir=new optim.batch_size=1000", "larger than the 72 training examples"),
        ("train pre.toml run.output_dir=new model.preset=nope", "unknown preset 'nope'"),
        ("train pre.toml run.output_dir=new model.backbone=nope", "unknown backbone 'nope'"),
        (
            "train pre.toml run.output_dir=new task.tokenizer=ret",
            "ret: is a retrieval checkpoint, not a video tokenizer's",
        ),
        ("train pre.toml run.output_dir=new model.image_size=128", "the tokenizer labels 4x4 patches"),
        ("train pre.toml run.output_dir=new task.max_text_len=500", "at most 64 word pieces"),
        ("train ret.toml run.output_dir=new start=tok", "is a tokenizer checkpoint, which holds no E-ViLM"),
        ("train ret.toml run.output_dir=new start=ret.toml", "ret.toml: holds no checkpoint"),
        ("train ret.toml run.output_dir=new model.preset=evilm-small", "is not of this model's shape"),
        ("evaluate ret.toml", "ret.toml: holds no checkpoint"),
        ("evaluate ret --split tset", "'tset' is not one of 'validation', 'test'"),
        ("evaluate ret --task dance", "unknown task 'dance'"),
        ("evaluate ret task.name=linear_probe", "use --task"),
        ("evaluate ret run.device=cuda", "this machine has no CUDA device"),
        ("evaluate ret --out notes", "notes: holds something else"),
        ("evaluate ret --truth tok.toml", "tok.toml:"),
        ("evaluate ret data.test= --split test", "its recipe has no data.test"),
        ("evaluate ret task.embed_dim=32", "tensors do not fit the model"),
        ("evaluate tok --task retrieval", "holds a video tokenizer"),
        ("evaluate tok --truth tok.toml", "does not rank videos for texts"),
        ("evaluate pre --task multiple_choice", "has no options, which multiple_choice needs"),
        (
            "evaluate pre --task question_answering data.validation.reader=msrvtt_qa",
            "cannot be evaluated as question_answering without training: --task takes",
        ),
    ],
)
def test_what_does_not_fit_a_run(refused: Callable[..., None], here: Path, command: str, words: str) -> None:
    if "cuda" in command:
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has what others lack")
    (here / "notes").mkdir(exist_ok=True)
    (here / "notes" / "chapter-1.txt").write_text("years of work")
    refused(command, words)


def _flip(data: bytes) -> bytes:
    """One bit in the middle turned over."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("model.safetensors", _flip, "model.safetensors: damaged"),
        ("model.safetensors", lambda data: data[:1000], "model.safetensors: damaged"),
        ("vocabulary.json", lambda _: None, "vocabulary.json: missing"),
        ("manifest.json", lambda _: b"[1]", "manifest.json: holds no JSON object"),
        ("manifest.json", lambda _: b'{"format": 1, "sha256": [1]}', "manifest.json: damaged"),
        ("manifest.json", lambda _: None, "manifest.json: missing"),
        ("manifest.json", lambda _: b'{"format": 99}', "format 99"),
    ],
)
def test_a_damaged_checkpoint(
    here: Path, refused: Callable[..., None], name: str, damage: Callable[[bytes], bytes | None], words: str
) -> None:
    shutil.rmtree("damaged", ignore_errors=True)
    shutil.copytree("ret", "damaged")
    file = here / "damaged" / "step-3" / name
    left = damage(file.read_bytes())
    file.unlink() if left is None else file.write_bytes(left)
    refused("evaluate damaged", words)
    refused("train ret.toml run.output_dir=new start=damaged", words)
    shutil.rmtree("damaged")


@pytest.mark.parametrize("cache", ["cache", ""], ids=["cached", "from files"])
def test_too_many_videos_that_cannot_be_read(
    here: Path, refused: Callable[..., None], small_world: Path, cache: str
) -> None:
    """A missing one, an empty one, one of noise, and one of sound alone, among six that are well."""
    odd = here / "odd"
    odd.mkdir(exist_ok=True)
    (odd / "empty.mp4").write_bytes(b"")
    (odd / "noise.mp4").write_bytes(bytes(range(256)) * 8)
    _sound(odd / "audio.mp4")
    good = [(small_world / "videos" / f"video{i}.mp4").as_posix() for i in range(6)]
    names = ["audio.mp4", "empty.mp4", "noise.mp4", "missing.mp4", *good]
    (odd / "rows.csv").write_text("path,caption\n" + "".join(f"{name},a red disc moves\n" for name in names))
    source = "data.train.reader=captions data.train.annotations=odd/rows.csv data.train.videos=odd"
    rest = f"run.output_dir=new task.min_count=1 optim.batch_size=10 data.cache={cache}"
    refused(f"train tok.toml {source} {rest}", "4 of 10 videos cannot be read", "audio.mp4: no_video", "max_bad_ratio")
    shutil.rmtree(odd)


def _sound(path: Path) -> None:
    """An MP4 with sound and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        for _ in range(8):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
            silence.rate = 44100
            container.mux(stream.encode(silence))
        container.mux(stream.encode(None))


# What nobody foresaw


def test_a_fault_of_ours_is_one_line_and_debug_shows_where(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from evilm.report import cost

    def broken(*_: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(cost, "cost_of", broken)
    assert cli.run(["cost", "evilm-tiny"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "ZeroDivisionError: division by zero" in said[0]
    assert "--debug" in said[0]
    with pytest.raises(ZeroDivisionError):
        cli.run(["cost", "evilm-tiny", "--debug"])


def test_ctrl_c_outside_of_training(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from evilm.report import cost

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cost, "cost_of", stopped)
    assert cli.run(["cost", "evilm-tiny"]) == 130
    assert capsys.readouterr() == ("", "")
