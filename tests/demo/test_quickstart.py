"""The quickstart: its counts are right, and it runs without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from evilm import cli, files
from evilm.data import synthetic
from evilm.data.readers.msrvtt import msrvtt_retrieval
from evilm.demo import quickstart
from evilm.errors import OutputError

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import json, sys
from pathlib import Path
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "onnx", "timm", "transformers", "jinja2"}:
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Wall())
from evilm.demo.quickstart import run
if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), clips=32, say=lambda line: print(line, file=sys.stderr)).as_json()))
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A quickstart with 32 clips where torch cannot be imported: its folder, its JSON, its stderr."""
    out = tmp_path_factory.mktemp("quickstart") / "out"
    (script := out.parent / "program.py").write_text(PROGRAM)
    done = subprocess.run([sys.executable, str(script), str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout), done.stderr


def test_hits_are_marked_true_or_false_rightly(finished: tuple[Path, dict[str, Any], str]) -> None:
    out, found, said = finished
    lines = (out / "world" / "world.jsonl").read_text().splitlines()
    scenes = {one["video"]: one for one in map(json.loads, lines)}
    indexed = {name: one for name, one in scenes.items() if one["split"] == "test"}
    assert len(indexed) == 32
    assert all(one["novelty"] for one in indexed.values()), "training showed none of these combinations"
    assert len(found["searches"]) == 3
    meanings = dict(quickstart.sentences({name: one["scene"] for name, one in indexed.items()}))
    for one in found["searches"]:
        assert len(one["hits"]) == 5
        for hit in one["hits"]:
            name = hit["path"].rpartition("/")[2].removesuffix(".mp4")
            assert hit["true"] == synthetic.is_true(meanings[one["text"]], indexed[name]["scene"])
        assert one["true"] >= 1
    assert "(chance 0." in said
    asked = found["question"]
    assert asked["truth"] in [thing["colour"] for thing in indexed["video1"]["scene"]["things"]]


def test_the_bundled_model_is_far_above_chance(finished: tuple[Path, dict[str, Any], str]) -> None:
    _, found, _ = finished
    assert found["first hit"]["count"] == 32
    assert found["first hit"]["percent"] > 10 * found["first hit"]["chance"] > 0
    assert found["questions"]["percent"] > 3 * found["questions"]["chance"] == 37.5
    assert set(found["seconds"]) == {
        "rendering", "loading the model", "indexing", "searching", "counting first hits", "asking",
    }  # fmt: skip


def test_a_second_run_uses_the_clips_and_the_index_again(finished: tuple[Path, dict[str, Any], str]) -> None:
    out, found, _ = finished
    again = quickstart.run(out, clips=32)
    assert again.searches == found["searches"]
    assert again.seconds["rendering"] < 1


def test_a_folder_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds something else; the quickstart of evilm needs a new or empty folder"):
        quickstart.run(tmp_path)
    assert cli.run(["quickstart", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / files.MARK).exists()


def test_the_command_prints_what_to_run_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = quickstart.Quickstart(question={"video": "a clip.mp4"}, seconds={"asking": 0.1})
    monkeypatch.setattr(quickstart, "run", lambda *_, **__: found)
    assert cli.run(["quickstart", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"evilm search {tmp_path}/index 'a green cross spins'" in said
    assert "evilm ask 'a clip.mp4'" in said
    assert "evilm adapt captions.csv --model" in said


def test_the_test_split_of_a_world_is_indexed_and_calibrated(small_world: Path, tmp_path: Path) -> None:
    with quickstart.index_test_split(small_world, "world-tiny", tmp_path) as index:
        assert index.num_videos == 16
        assert index.search("a red disc").calibration.origin == "labels"
        examples = list(msrvtt_retrieval(small_world, None, "test"))
        ranks = [[hit.path.stem for hit in index.search(each.captions[0], 4)] for each in examples]
        found = sum(each.video in rank for each, rank in zip(examples, ranks, strict=True))
        assert found >= 12, "of 16 captions; by chance four bring their own clip among the first four"
