"""Commands with ``--cluster local`` give what they give without it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from evilm import cli
from evilm.errors import DataError, DeviceError
from evilm.training import build, caches, trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from evilm.training.recipe import Recipe

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture(scope="module")
def local() -> Iterator[str]:
    """One Ray for all tests, which `--cluster local` then finds running."""
    from evilm.cluster.dispatch import connected

    os.environ["RAY_TRAIN_ENABLE_STATE_TRACKING"] = "0"
    with connected("local"):
        yield "local"


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_videos_are_checked(local: str, small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(small_world / "videos", folder)
    (folder / "broken.mp4").write_bytes(b"no video")
    told = []
    for more in ([], ["--cluster", local]):
        assert cli.run(["data", "check-videos", str(folder), "--workers", "1", "--json", *more]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0] == told[1]
    assert told[0]["counts"]["unsupported"] + told[0]["counts"]["corrupt"] + told[0]["counts"]["refused"] == 1


def test_a_pack_has_the_same_bytes_and_is_continued(local: str, small_world: Path, tmp_path: Path) -> None:
    command = ["data", "pack", "msrvtt_retrieval", str(small_world)]
    options = ["--size", "32", "--cached-frames", "2", "--per-shard", "16", "--workers", "1"]
    assert cli.run([*command, str(tmp_path / "here"), *options]) == 0
    assert cli.run([*command, str(tmp_path / "there"), *options, "--cluster", local]) == 0
    here = contents(tmp_path / "here")
    assert sum(name.endswith(".tar") for name in here) > 2
    assert contents(tmp_path / "there") == here
    for path in (tmp_path / "there").rglob("train-000001*"):
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "there").rglob("*.tar")}
    assert cli.run([*command, str(tmp_path / "there"), *options, "--cluster", local]) == 0
    assert contents(tmp_path / "there") == here
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


@pytest.mark.usefixtures("local")
def test_a_shard_that_kills_its_workers_is_named_and_the_others_are_written() -> None:
    from evilm.cluster import dispatch

    work = dispatch.Work(partial(_die_at, 3), lambda number, reason: f"{number}: {reason}", 1, most=1)
    losses = dispatch.Losses()
    made = dispatch.Dispatch(work, losses)
    try:
        answers = [*made.run(range(6))]
    finally:
        made.close()
    assert sorted(answers, key=str) == [0, 1, 2, f"3: its worker died {dispatch.ATTEMPTS} times: ActorDiedError", 4, 5]
    assert losses.items == 1


def _die_at(number: int) -> Callable[[Any], Any]:
    def answer(items: Any) -> Any:
        if items[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return items[0]

    return answer


def test_embeddings_are_tables(local: str, small_world: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    tables = {}
    for name, more in (("here", []), ("there", ["--cluster", local])):
        command = ["embed", str(small_world / "videos"), str(tmp_path / name), "--model", "world-tiny"]
        assert cli.run([*command, "--workers", "1", *more]) == 0
        tables[name] = [parquet.read_table(tmp_path / name / f"{which}.parquet").to_pylist()
                        for which in ("segments-00000", "files")]  # fmt: skip
    assert tables["there"] == tables["here"]
    segments, files = tables["there"]
    assert len(segments) == sum(each["segments"] for each in files) >= len(files) > 10
    assert np.linalg.norm(segments[0]["embedding"]) == pytest.approx(1, abs=1e-5)
    from evilm.search import parquet as tables_of

    names = tables_of.write(tmp_path / "here/index", tmp_path / "here", rows=10)
    assert len(names) == -(-len(segments) // 10) + 1
    assert [row for name in names[:-1] for row in parquet.read_table(name).to_pylist()] == segments
    assert tables_of.write(tmp_path / "here/index", tmp_path / "here")[0].name == "segments-00000.parquet"
    assert not (tmp_path / "here/segments-00001.parquet").exists()


def test_token_labels_have_the_same_bytes(
    local: str, make_recipe: Callable[..., Recipe], tokenizer_run: Path, tmp_path: Path
) -> None:
    from evilm.cluster.jobs import label_blocks
    from evilm.data import feature_cache

    task = {"name": "pretrain", "tokenizer": str(tokenizer_run), "labels": "cached", "max_text_len": 24}
    made = {}
    for name, runner in (("here", None), ("there", partial(label_blocks, local))):
        recipe = make_recipe(tmp_path / name, task, data={"cache": str(tmp_path / f"cache-{name}")})
        rows = build.training_examples(recipe.data)
        built, _ = build.new_task(recipe, rows)
        store = caches.frame_store(recipe, rows, built.clip_shape[1], train=True)
        labels = caches.cached_labels(recipe, built, store, runner)
        assert labels is not None
        assert not labels.missing()
        made[name] = labels.path.read_bytes()
        labels.raw[-1] = feature_cache.BLANK
        assert labels.missing() == [(len(labels.raw) - 1) // feature_cache.BATCH]
    assert made["there"] == made["here"]


@pytest.mark.slow
def test_ray_train_equals_one_process(
    local: str, make_recipe: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two processes (gloo) take the steps of one with the whole batch, and evaluate as one does."""
    from evilm.cluster.launch import launch

    rows = {}
    for name in ("one", "two"):
        recipe = make_recipe(tmp_path / name, {"name": "retrieval", "captions_per_video": 3, "max_text_len": 24})
        run = partial(trainer.train, recipe, resume=True)
        out = run() if name == "one" else launch(local, 2, run, tmp_path)
        assert Path(out) == recipe.run.output_dir
        lines = (recipe.run.output_dir / "metrics.jsonl").read_text().splitlines()
        rows[name] = [{**json.loads(line), "seconds": 0} for line in lines]
    assert len(rows["one"]) == len(rows["two"]) > 1
    for mine, theirs in zip(rows["one"], rows["two"], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
    capsys.readouterr()
    told = []
    for more in ([], ["--cluster", local, "--processes", "2"]):
        assert cli.run(["evaluate", str(tmp_path / "one"), "--json", *more]) == 0
        told.append(json.loads(capsys.readouterr().out)["metrics"])
    assert told[1] == pytest.approx(told[0])
    assert not list(tmp_path.glob(".ray-train-*"))


def test_more_processes_than_processors_are_refused(local: str, tmp_path: Path) -> None:
    from evilm.cluster.launch import launch

    with pytest.raises(DeviceError, match="1000 processes need as many processors"):
        launch(local, 1000, int, tmp_path)


def test_an_error_of_a_process_is_raised_once(local: str, tmp_path: Path) -> None:
    from evilm.cluster.launch import launch

    with pytest.raises(DataError, match="bad data"):
        launch(local, 1, partial(_fail, tmp_path / "calls"), tmp_path)
    assert (tmp_path / "calls").read_text() == "x"


def _fail(calls: Path) -> None:
    with calls.open("a") as file:
        file.write("x")
    raise DataError("bad data")


@pytest.mark.slow
def test_the_commands_compute_labels_and_train(
    local: str, make_recipe: Callable[..., Recipe], tokenizer_run: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from evilm.training import recipe as recipes

    task = {"name": "pretrain", "tokenizer": str(tokenizer_run), "labels": "cached", "max_text_len": 24}
    made = make_recipe(tmp_path / "run", task, data={"cache": str(tmp_path / "cache")}, optim={"epochs": 0.5})
    monkeypatch.setattr(recipes, "find", Path)
    monkeypatch.setattr(recipes, "load", lambda *_: made)
    assert cli.run(["data", "labels", "a.toml", "--cluster", local]) == 0
    assert "token labels of 72 clips" in capsys.readouterr().out
    train = ["train", "a.toml", "--cluster", local, "--processes", "2"]
    assert cli.run(train) == 0
    assert f"run: {tmp_path / 'run'}" in capsys.readouterr().out
    assert cli.run(train) == 2
    assert "add --resume" in capsys.readouterr().err
