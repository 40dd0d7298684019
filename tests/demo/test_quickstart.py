"""The first try: what it counts is true, and it needs neither torch nor what it did before."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from evilm import cli, files
from evilm.data import synthetic
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
from evilm.demo.quickstart import trial
if __name__ == "__main__":
    print(json.dumps(trial(Path(sys.argv[1]), clips=32, say=lambda line: print(line, file=sys.stderr)).as_json()))
"""


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A try with 32 clips where torch cannot be imported: its folder, what it found, what it said."""
    out = tmp_path_factory.mktemp("tries") / "try"
    (script := out.parent / "program.py").write_text(PROGRAM)
    done = subprocess.run([sys.executable, str(script), str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout), done.stderr


def test_what_it_says_of_its_hits_is_true(tried: tuple[Path, dict[str, Any], str]) -> None:
    out, found, said = tried
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


def test_the_shipped_model_is_far_from_chance(tried: tuple[Path, dict[str, Any], str]) -> None:
    _, found, _ = tried
    assert found["first hit"]["count"] == 32
    assert found["first hit"]["percent"] > 10 * found["first hit"]["chance"] > 0
    assert found["questions"]["percent"] > 3 * found["questions"]["chance"] == 37.5
    assert set(found["seconds"]) == {
        "rendering", "loading the model", "indexing", "searching", "counting first hits", "asking",
    }  # fmt: skip


def test_a_second_try_takes_up_the_first(tried: tuple[Path, dict[str, Any], str]) -> None:
    out, found, _ = tried
    again = quickstart.trial(out, clips=32)
    assert again.searches == found["searches"]
    assert again.seconds["rendering"] < 1


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds something else; the first try of evilm needs a new or empty folder"):
        quickstart.trial(tmp_path)
    assert cli.run(["quickstart", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / files.MARK).exists()


def test_the_command_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = quickstart.Trial(question={"video": "a clip.mp4"}, seconds={"asking": 0.1})
    monkeypatch.setattr(quickstart, "trial", lambda *_, **__: found)
    assert cli.run(["quickstart", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"evilm search {tmp_path}/index 'a green cross spins'" in said
    assert "evilm ask 'a clip.mp4'" in said
    assert "evilm adapt captions.csv --model" in said
