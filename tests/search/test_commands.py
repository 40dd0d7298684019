"""`evilm index` and `evilm search` with a model of the real kind: untrained, so only the plumbing is judged."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from evilm import cli


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    spec = importlib.util.spec_from_file_location("untrained", repository / "benchmarks" / "untrained.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write(tmp_path_factory.mktemp("model") / "tiny", "evilm-tiny")


def test_a_folder_is_indexed_and_searched(
    clips: Path, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = str(tmp_path / "index")

    def run(*arguments: str, code: int = 0) -> str:
        assert cli.run(list(arguments)) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    (clips / "broken.mp4").write_bytes(b"no video")
    report: dict[str, Any] = json.loads(run("index", str(clips), at, "--model", str(checkpoint), "--json"))
    assert (report["files"], report["new"], report["moments"]) == (4, 5, 4)
    assert "0 new, 5 same" in run("index", str(clips), at, "--compact")  # it remembers its model
    found: dict[str, Any] = json.loads(run("search", at, "a red disc", "-k", "3", "--json"))
    assert list(found) == ["query", "hits", "no_good_match"]
    assert [list(hit) for hit in found["hits"]] == [["path", "start", "end", "score"]] * 3
    assert all(Path(hit["path"]).is_file() for hit in found["hits"])
    like: dict[str, Any] = json.loads(run("search", at, "--like", str(clips / "red.mp4"), "--json"))
    assert Path(like["hits"][0]["path"]).name == "red.mp4"
    assert len(run("search", at, "a red disc", "--rerank", "4", "--in", str(clips / "deep")).splitlines()) in (1, 2)
    for arguments, said in (
        (("search", at, ""), "the query is empty"),
        (("search", at, "собака ловит мяч"), "does not know the words"),
        (("search", at, "word " * 10_000), "10,000 words"),
        (("search", at), "say what to search for"),
        (("search", at, "x", "--after", "soon"), "write it as 2026-01-31"),
        (("search", str(clips), "x"), "holds no index"),
        (("index", str(clips), str(clips), "--model", str(checkpoint)), "holds something else"),
        (("index", str(clips), str(tmp_path / "new")), "name one with --model"),
        (("index", str(clips), at, "--fast"), "leave these settings out"),
    ):
        line = run(*arguments, code=2)
        assert said in line
        assert line.startswith("error: ")
        assert line.count("\n") == 1


def test_the_held_out_clips_of_a_world(small_world: Path, tmp_path: Path, checkpoint: Path) -> None:
    from evilm.search.held_out import index_held_out

    with index_held_out(small_world, checkpoint, tmp_path) as index:
        assert index.files == 16
        assert index.search("a red disc").calibration.origin == "labels"
