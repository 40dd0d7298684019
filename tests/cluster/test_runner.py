"""An index made on a Ray cluster equals one made here, whatever dies meanwhile."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest

from evilm import cli
from evilm.errors import DependencyError
from evilm.search.database import Database
from evilm.search.index import VideoIndex

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


def load_fake() -> Any:
    """The model of the tests of search, which workers get by value."""
    if "fake" not in sys.modules:
        place = Path(__file__).parents[1] / "search" / "fake.py"
        spec = importlib.util.spec_from_file_location("fake", place)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["fake"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["fake"])
    return sys.modules["fake"]


def rows(index: Path) -> list[Any]:
    with Database(index) as database:
        told = []
        for record in database.files():
            spans = [(each.start, each.end) for each in database.segments(file_id=record.id)]
            vectors = database._rows("SELECT vector FROM moments WHERE file = ? ORDER BY start, id", [record.id])
            told.append((*record[1:6], record.status, record.duration, spans, vectors))
        return told


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 short videos, two files that are none."""
    folder = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(0)
    for i in range(40):
        with av.open(str(folder / f"{i:02}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=8)
            stream.width = stream.height = 48
            stream.pix_fmt = "yuv420p"
            for picture in rng.integers(0, 255, (8, 48, 48, 3), dtype=np.uint8):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "empty.mp4").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster whose head does no work and that has two more machines, all of them processes here."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray")
    import logging

    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False,
                                                         "object_store_memory": 80 * 2**20})  # fmt: skip
    for _ in range(2):
        made.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
    ray.cloudpickle.register_pickle_by_value(load_fake())
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield made
    ray.shutdown()
    made.shutdown()


def build(films: Path, at: Path, model: Any, **options: Any) -> Any:
    from evilm.cluster.runner import RayRunner

    runner = RayRunner("auto")
    with VideoIndex.build(films, model, at, workers=1, runner=runner, **options) as made:
        return runner, made.report


@needs_ray
@pytest.mark.usefixtures("cluster")
def test_the_rows_are_those_of_one_machine(films: Path, tmp_path: Path) -> None:
    fake = load_fake()
    VideoIndex.build(films, fake.Fake(), tmp_path / "here").close()
    runner, report = build(films, tmp_path / "there", fake.Fake())
    assert len(runner.losses.machines) == 2
    assert (runner.losses.workers, report.new, report.files, len(report.unreadable)) == (0, 42, 40, 2)
    assert report.decoding > 0
    assert report.encoding > 0
    assert rows(tmp_path / "there") == rows(tmp_path / "here")
    assert (tmp_path / "there/unreadable.jsonl").read_text() == (tmp_path / "here/unreadable.jsonl").read_text()
    again = build(films, tmp_path / "there", fake.Fake())[1]
    assert (again.new, again.same) == (0, 42)


def poisonous(**effects: str) -> Any:
    """A model in whose workers some files kill the worker or take 3 s: ``poisonous(f07="kill")``; others, 0.6 s."""

    class Poisonous(load_fake().Fake):
        def __reduce__(self) -> Any:
            return _arm, (effects,)

    return Poisonous()


def _arm(effects: dict[str, str]) -> Any:
    from evilm.search import pipeline

    real = pipeline.content_hash

    def hashed(path: bytes) -> bytes:
        effect = effects.get("f" + Path(os.fsdecode(path)).stem)
        if effect == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep({"slow": 3.0}.get(effect or "", 0.6 if "every" in effects else 0.0))
        return real(path)

    if "hashed" not in real.__name__:
        pipeline.content_hash = hashed
    return load_fake().Fake()


@needs_ray
@pytest.mark.usefixtures("cluster")
def test_a_poisoned_file_is_tried_a_few_times_and_set_aside(films: Path, tmp_path: Path) -> None:
    from evilm.cluster.dispatch import ATTEMPTS

    runner, report = build(films, tmp_path / "there", poisonous(f07="kill"))
    assert runner.losses.items == 1
    assert ATTEMPTS <= runner.losses.workers <= ATTEMPTS + 2
    assert report.files == 39
    [crashed] = [each for each in report.unreadable if each["status"] == "crashed"]
    assert crashed["path"].endswith("07.mp4")
    assert f"died {ATTEMPTS} times" in crashed["reason"]
    fixed = build(films, tmp_path / "there", load_fake().Fake())[1]
    assert (fixed.files, fixed.changed) == (40, 1)


@needs_ray
@pytest.mark.usefixtures("cluster")
def test_an_error_of_a_worker_reaches_the_user(films: Path, tmp_path: Path) -> None:
    from evilm.errors import VideoIndexError

    class Broken(load_fake().Fake):
        def embed_frames(self, frames: Any) -> Any:
            return np.zeros((len(frames), 32), np.float32)

    with pytest.raises(VideoIndexError, match="zero or not finite"):
        build(films, tmp_path / "there", Broken())


@needs_ray
def test_what_a_killed_driver_left_is_done_by_the_next(films: Path, tmp_path: Path) -> None:
    """The real command and model, with a cluster of its own: killed after the first commit, then run again."""
    program = (
        "import os, signal, sys\n"
        "from evilm.search import index\n"
        "from evilm.cluster.runner import RayRunner\n"
        "die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "index.VideoIndex.build(sys.argv[1], 'world-tiny', sys.argv[2], runner=RayRunner('local'), on_commit=die)\n"
    )
    at = tmp_path / "there"
    arguments = [sys.executable, "-c", program, str(films), str(at)]
    assert subprocess.run(arguments, check=False, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    begun = len(rows(at))
    assert 0 < begun < 42
    command = ["index", str(films), str(at), "--cluster", "local", "--json"]
    done = subprocess.run([sys.executable, "-m", "evilm", *command], check=True, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert (report["same"], report["new"]) == (begun, 42 - begun)
    VideoIndex.build(films, "world-tiny", tmp_path / "here").close()
    assert rows(at) == rows(tmp_path / "here")


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(int(os.environ.get("EVILM_CLUSTER_KILLS", "3"))))
def test_machines_that_die_lose_and_double_nothing(films: Path, tmp_path: Path, cluster: Any, seed: int) -> None:
    """Machines are killed and replaced all the time; one file is slow, one kills its workers, 5 % are no videos."""
    rng, kills = np.random.default_rng(seed), 0
    with ThreadPoolExecutor(1) as thread:  # Ray adds machines in the main thread only
        work = thread.submit(build, films, tmp_path / "there", poisonous(f13="kill", f21="slow", every="delayed"))
        while not work.done():
            wait([work], rng.uniform(4, 10))
            nodes = [each for each in cluster.list_all_nodes() if each is not cluster.head_node]
            cluster.remove_node(nodes[rng.integers(len(nodes))], allow_graceful=False)
            cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
            kills += not work.done()
        _, report = work.result()
    assert kills
    found = rows(tmp_path / "there")
    assert len(found) == len({row[0] for row in found}) == 42
    VideoIndex.build(films, load_fake().Fake(), tmp_path / "here").close()
    expected = [row for row in rows(tmp_path / "here") if b"13.mp4" not in row[0]]
    assert [row for row in found if b"13.mp4" not in row[0]] == expected
    assert {each["status"] for each in report.unreadable if each["path"].endswith("13.mp4")} == {"crashed"}


def test_without_ray_the_extra_is_named(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.run(["index", str(films), str(tmp_path / "at"), "--model", "world-tiny", "--cluster", "local"]) == 2
    assert "pip install 'evilm[ray]'" in capsys.readouterr().err
    from evilm.cluster.dispatch import connected

    with pytest.raises(DependencyError), connected("local"):
        pass


@needs_ray
@pytest.mark.slow
def test_the_simulation_predicts_two_machines_from_one(films: Path, tmp_path: Path, cluster: Any) -> None:
    """Files take 0.6 s whatever else the machine does; what one machine needs beyond that is its start."""
    from evilm.cluster.plan import simulate

    seconds = {}
    for count in (1, 2):
        nodes = [each for each in cluster.list_all_nodes() if each is not cluster.head_node]
        for each in nodes[count:]:
            cluster.remove_node(each)
        for _ in range(count - len(nodes)):
            cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        began = time.monotonic()
        runner, report = build(films, tmp_path / str(count), poisonous(every="delayed"))
        seconds[count] = time.monotonic() - began
        assert (report.new, len(runner.losses.machines)) == (42, count)
    start = seconds[1] - 42 * 0.6
    assert start > 0
    predicted = simulate(42, 0.6, 2, commit=0.002, start=start)["seconds"]
    print(f"one machine {seconds[1]:.1f} s, two {seconds[2]:.1f} s, predicted {predicted:.1f} s")  # noqa: T201
    assert seconds[2] == pytest.approx(predicted, rel=0.25)
