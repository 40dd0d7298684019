"""`evilm index` and `evilm search` with the model that comes with the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evilm import cli
from evilm.data.readers.msrvtt import msrvtt_retrieval

if TYPE_CHECKING:
    import pytest


def test_a_folder_is_indexed_and_searched(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = str(tmp_path / "index")

    def run(*arguments: str, code: int = 0) -> str:
        assert cli.run(list(arguments)) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    (clips / "broken.mp4").write_bytes(b"no video")
    report: dict[str, Any] = json.loads(run("index", str(clips), at, "--model", "world-tiny", "--json"))
    assert (report["files"], report["new"], report["moments"]) == (4, 5, 4)
    assert "0 new, 5 same" in run("index", str(clips), at, "--compact")  # it remembers its model
    found: dict[str, Any] = json.loads(run("search", at, "a red disc", "-k", "3", "--json"))
    assert list(found) == ["query", "hits", "no_good_match"]
    assert [list(hit) for hit in found["hits"]] == [["path", "start", "end", "score"]] * 3
    assert all(Path(hit["path"]).is_file() for hit in found["hits"])
    like: dict[str, Any] = json.loads(run("search", at, "--like", str(clips / "red.mp4"), "--json"))
    assert Path(like["hits"][0]["path"]).name == "red.mp4"
    assert len(run("search", at, "a red disc", "--in", str(clips / "deep")).splitlines()) in (1, 2)
    labels = tmp_path / "said.csv"
    labels.write_text("path,caption\nred.mp4,a red disc\nnowhere.mp4,a lost star\nred.mp4,something red\n")
    assert "of 2 captions" in run("index", str(clips), at, "--calibrate", str(labels))
    calibrated = json.loads(run("index", str(clips), at, "--calibrate", str(labels), "--json"))["calibration"]
    assert (calibrated["origin"], calibrated["samples"]) == ("labels", 2)
    for arguments, said in (
        (("search", at, ""), "the query is empty"),
        (("search", at, "собака ловит мяч"), "does not know the words"),
        (("search", at, "word " * 10_000), "10,000 words"),
        (("search", at), "say what to search for"),
        (("search", at, "a red disc", "--rerank", "4"), "no fusion decoder to re-rank with"),
        (("search", at, "x", "--after", "soon"), "write it as 2026-01-31"),
        (("search", str(clips), "x"), "holds no index"),
        (("index", str(clips), str(clips), "--model", "world-tiny"), "holds something else"),
        (("index", str(clips), str(tmp_path / "new")), "name one with --model"),
        (("index", str(clips), at, "--fast"), "leave these settings out"),
        (("index", str(clips), at, "--calibrate", str(tmp_path / "none.csv")), "none.csv"),
    ):
        line = run(*arguments, code=2)
        assert said in line
        assert line.startswith("error: ")
        assert line.count("\n") == 1


def test_the_held_out_clips_of_a_world(small_world: Path, tmp_path: Path) -> None:
    from evilm.search.held_out import index_held_out

    with index_held_out(small_world, "world-tiny", tmp_path) as index:
        assert index.files == 16
        assert index.search("a red disc").calibration.origin == "labels"
        examples = list(msrvtt_retrieval(small_world, None, "test"))
        ranks = [[hit.path.stem for hit in index.search(each.captions[0], 4)] for each in examples]
        found = sum(each.video in rank for each, rank in zip(examples, ranks, strict=True))
        assert found >= 12, "of 16 captions; by chance four bring their own clip among the first four"
