"""`evilm index` and `evilm search` with the bundled model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evilm import cli
from evilm.inference.loading import BUNDLED, DEFAULT_MODEL
from evilm.search.database import Database

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
    assert (report["files"], report["new"], report["segments"]) == (4, 5, 4)
    assert "0 new, 5 same" in run("index", str(clips), at, "--compact")  # it remembers its model
    found: dict[str, Any] = json.loads(run("search", at, "a red disc", "-k", "3", "--json"))
    assert list(found) == ["query", "hits", "no_good_match"]
    assert [list(hit) for hit in found["hits"]] == [["path", "start", "end", "score", "why"]] * 3
    assert all(Path(hit["path"]).is_file() for hit in found["hits"])
    like: dict[str, Any] = json.loads(run("search", at, "--query-video", str(clips / "red.mp4"), "--json"))
    assert Path(like["hits"][0]["path"]).name == "red.mp4"
    assert len(run("search", at, "a red disc", "--in", str(clips / "deep")).splitlines()) in (1, 2)
    labels = tmp_path / "said.csv"
    labels.write_text("path,caption\nred.mp4,a red disc\nnowhere.mp4,a lost star\nred.mp4,something red\n")
    assert "of 2 captions" in run("index", str(clips), at, "--calibrate", str(labels))
    calibrated = json.loads(run("index", str(clips), at, "--calibrate", str(labels), "--json"))["calibration"]
    assert (calibrated["origin"], calibrated["samples"]) == ("labels", 2)
    (clips / "bad.jpg").write_bytes(b"no picture")
    for arguments, said in (
        (("search", at, ""), "the query is empty"),
        (("search", at, "собака ловит мяч"), "does not know the words"),
        (("search", at, "word " * 10_000), "10,000 words"),
        (("search", at), "name what to search for"),
        (("search", at, "a red disc", "--rerank", "4"), "no fusion decoder"),
        (("search", at, "x", "--after", "soon"), "write it as 2026-01-31"),
        (("search", str(clips), "x"), "holds no index"),
        (("index", str(clips), str(clips), "--model", "world-tiny"), "holds something else"),
        (("index", str(clips), at, "--keyframes-only"), "leave these options out"),
        (("search", at, "--query-video", str(clips / "nope.jpg")), "nope.jpg: not_a_file: there is no such file"),
        (("search", at, "--query-video", str(clips / "bad.jpg")), "bad.jpg: unsupported: "),
        (("search", at, "a red disc", "--in", "/nope"), "/nope: no indexed file lies under this folder"),
        (("index", str(clips), at, "--forget"), "--forget is now --allow-empty"),
        (("index", str(clips), at, "--fast"), "--fast is now --keyframes-only"),
        (("search", at, "--like", "x.mp4"), "--like is now --query-video"),
        (("search", at, "x", "--longer", "3"), "--longer is now --min-duration"),
        (("search", at, "x", "--shorter", "3"), "--shorter is now --max-duration"),
        (("search", at, "x", "--store", "faiss"), "--store is now --backend"),
        (("index", str(clips), at, "--calibrate", str(tmp_path / "none.csv")), "none.csv"),
    ):
        line = run(*arguments, code=2)
        assert said in line
        assert line.startswith("error: ")
        assert line.count("\n") == 1


def test_a_new_index_without_a_model_uses_a_bundled_one(
    clips: Path, small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its name and its training data are printed; world-tiny warns once about videos of anything else."""
    at = str(tmp_path / "index")
    warning = "trained only on moving shapes of the synthetic world"
    assert cli.run(["index", str(clips), at, "--model", "world-tiny"]) == 0
    assert capsys.readouterr().err.count(warning) == 1
    assert cli.run(["index", str(clips), at]) == 0
    assert warning not in capsys.readouterr().err, "nothing new was indexed"
    assert cli.run(["index", str(small_world / "videos"), str(tmp_path / "world"), "--workers", "1"]) == 0
    stderr = capsys.readouterr().err
    assert warning not in stderr
    assert f"no model named: using {DEFAULT_MODEL}" in stderr
    assert all(f"{name} ({trained_on})" in stderr for name, trained_on in BUNDLED.items())


def test_a_link_that_leads_back_to_itself_is_one_unreadable_file(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clips / "loop.mp4").symlink_to("loop.mp4")
    (clips / "loop").symlink_to("loop")
    assert cli.run(["index", str(clips), str(tmp_path / "index"), "--model", "world-tiny", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["files"] == 4
    assert [(Path(each["path"]).name, each["status"]) for each in report["unreadable"]] == [("loop.mp4", "not_a_file")]


def test_limits_reach_the_decoder(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = str(tmp_path / "index")
    assert cli.run(["index", str(clips), at, "--model", "world-tiny", "--max-pixels", "100", "--timeout", "9"]) == 2
    assert "4 too_large" in capsys.readouterr().err
    assert cli.run(["index", str(clips), at, "--json"]) == 0, "files beyond a limit are tried again"
    assert json.loads(capsys.readouterr().out)["files"] == 4


def test_a_file_searched_by_itself_scores_one(
    small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = str(tmp_path / "index")
    assert cli.run(["index", str(small_world / "videos"), at, "--model", "world-tiny"]) == 0
    video = sorted((small_world / "videos").glob("*.mp4"))[3]
    capsys.readouterr()
    assert cli.run(["search", at, "--query-video", str(video), "--json", "-k", "2"]) == 0
    first, second = json.loads(capsys.readouterr().out)["hits"]
    assert (first["path"], first["score"]) == (str(video.resolve()), 1.0)
    assert second["score"] < 1.0


def test_an_index_of_an_earlier_bundled_model_names_the_remedy(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = tmp_path / "index"
    assert cli.run(["index", str(clips), str(at), "--model", "world-tiny"]) == 0
    with Database(at, write=True) as database:
        database.set_metadata("model", {"path": "world-tiny", "fingerprint": "0" * 16})
    capsys.readouterr()
    assert cli.run(["search", str(at), "a red disc"]) == 2
    line = capsys.readouterr().err
    assert "was made by the world-tiny of another version of this package: index again into a new folder" in line
