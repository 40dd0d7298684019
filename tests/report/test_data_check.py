"""``evilm data check``: counts, missing videos, shared videos, and the printed report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evilm import cli
from evilm.data.readers import READERS
from evilm.report.data_check import Source, as_lines, check
from evilm.report.split_counts import published

if TYPE_CHECKING:
    from collections.abc import Callable

    Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """``ask("webvid", "annotations", ...)``: the JSON of the command, run in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> dict[str, Any]:
        assert cli.run(["data", "check", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def questions(path: str, *rows: tuple[int, str, str]) -> None:
    table = [{"id": i, "video_id": v, "question": q, "answer": a} for i, (v, q, a) in enumerate(rows)]
    Path(path).write_text(json.dumps(table))


def test_what_is_found_and_missing(ask: Ask) -> None:
    Path("v").mkdir()
    Path("v/a.webm").touch()
    Path("train.csv").write_text("path,caption\na.mp4,a dog runs\na.mp4,a dog\nb.mp4,a cat\nb.mp4,a cat\nc.mp4,one\n")
    found = ask("captions", "train.csv", "--videos", "v")
    assert (found["rows"], found["videos"], found["found"], found["missing"]) == (5, 3, 1, 2)
    assert Path(found["missing_list"]).read_text() == "v/b.mp4\nv/c.mp4\n"
    train = found["splits"]["train"]
    assert list(found["splits"]) == ["train"]  # the file has no splits, and its name contains train
    assert train["captions"] == {"count": 5, "rows_without": 0, "words": {"least": 1, "mean": 2.0, "most": 3}}
    assert train["repeated"] == {"keys": 0, "texts": 1}
    assert found["notes"] == ["train has 1 repeated captions or questions of a video, such as in 4, 5"]
    for name in ("b.mp4", "c.mkv"):
        (Path("v") / name).touch()
    Path(found["missing_list"]).unlink()
    again = ask("captions", "train.csv", "--videos", "v")
    assert (again["missing"], again["missing_list"]) == (0, None)
    assert not Path("missing-captions.txt").exists()


def test_leaks_and_answers(ask: Ask) -> None:
    questions("train_qa.json", (1, "what is it", "dog"), (1, "who", "man"), (2, "what", "dog"))
    questions("test_qa.json", (2, "what is it", "dog"), (3, "who", "zebra"))
    found = ask("msrvtt_qa", ".")
    assert found["leaks"] == [{"splits": ["train", "test"], "videos": 1, "first_rows": ["0"], "texts": 2}]
    assert found["answers"] == {
        "size": 2,
        "from": "the 2 most frequent of train",
        "covered": {"train": 100, "test": 50},
    }
    assert any("train and test share 1 videos; in test the first rows: 0" in note for note in found["notes"])
    assert any("test has 2 rows of 2 videos, published are 72,821 rows" in note for note in found["notes"])
    assert found["splits"]["test"]["published"] == {"rows": [72821], "agrees": False, "which": None}
    Path("train_ans2label.json").write_text('{"zebra": 0}')
    assert ask("msrvtt_qa", ".")["answers"]["covered"] == {"train": 0, "test": 50}


def test_repeated_keys(ask: Ask) -> None:
    row = {"qid": 7, "clip_name": "video1", "options": list("abcde"), "answer": 0}
    Path("msrvtt_mc_test.jsonl").write_text("".join(json.dumps(row | {"answer": i}) + "\n" for i in range(3)))
    found = ask("msrvtt_mc", ".")
    assert found["splits"]["test"]["repeated"]["keys"] == 2
    assert found["splits"]["test"]["options"] == {"least": 5, "most": 5}
    assert "test has 2 rows with the key of an earlier row, such as 7" in found["notes"]


def test_other_divisions_of_the_same_videos_are_not_leaks(ask: Ask) -> None:
    for split, flags in (("1", "12"), ("2", "21"), ("3", "11")):
        Path(f"wave_test_split{split}.txt").write_text("".join(f"w{i}.avi {flag} \n" for i, flag in enumerate(flags)))
    found = ask("hmdb51", ".")
    assert (found["rows"], found["videos"]) == (2, 2)
    assert (found["missing"], found["listed"]) == (2, 2)
    assert list(found["splits"]) == ["train", "test", "train.2", "test.2", "train.3"]
    assert [leak["videos"] for leak in found["leaks"]] == [0, 0]


@pytest.mark.usefixtures("ask")
def test_printed_report(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    Path("MSRVTT_JSFUSION_test.csv").write_text(
        "key,vid_key,video_id,sentence\n" + "".join(f"ret{i},msr{i},video{i},a man [says] {i}\n" for i in range(1000))
    )
    assert cli.run(["data", "check", "msrvtt_retrieval", "."]) == 0
    shown = capsys.readouterr().out
    assert "as published (1k-A, file)" in shown
    assert "1,000 rows of 1,000 videos, 0 of them found" in shown
    assert "1,000 videos are missing, listed in missing-msrvtt_retrieval.txt" in shown
    assert "options" not in shown  # empty columns are omitted


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("msrvtt .", "unknown reader 'msrvtt': did you mean 'msrvtt_"),
        ("msrvtt_qa nowhere", "nowhere: no such annotation file or folder"),
        ("msrvtt_qa .", "holds none of train_qa.json"),
        ("captions empty.csv", "empty.csv: holds no rows; needed: a column of paths"),
        ("captions l.csv --videos gone", "gone: no such folder of videos"),
        ("captions l.csv --missing no/such/list", "no/such/list: the list of missing videos cannot be written"),
        ("captions", "Missing argument 'ANNOTATIONS'"),
    ],
)
@pytest.mark.usefixtures("ask")
def test_mistakes_give_a_one_line_error(capsys: pytest.CaptureFixture[str], arguments: str, said: str) -> None:
    Path("empty.csv").touch()
    Path("l.csv").write_text("path,caption\na.mp4,b\n")
    assert cli.run(["data", "check", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == ["empty.csv", "l.csv"]


def test_only_known_formats_have_counts() -> None:
    assert {name for key in ("sizes", "splits", "answers") for name in published()[key]} <= set(READERS)


@pytest.mark.parametrize(
    ("name", "place"),
    [("msrvtt_retrieval", "msrvtt"), ("msvd_retrieval", "msvd"), ("tgif_action", "tgif-qa"), ("tgif_frame", "tgif-qa"),
     ("didemo", "didemo"), ("hmdb51", "hmdb51"), ("kinetics400", "kinetics400"), ("coco_captions", "coco")],
)  # fmt: skip
def test_real_files_are_as_published(shared_data: Path, tmp_path: Path, name: str, place: str) -> None:
    found = check(Source(name, shared_data / "annotations" / place), tmp_path / "missing.txt")
    assert all(split["published"]["agrees"] for split in found["splits"].values())
    assert not any(leak["videos"] for leak in found["leaks"])
    assert found["missing"] == found["videos"]
    assert found["listed"] == len((tmp_path / "missing.txt").read_text().splitlines())


def test_rows_and_videos_are_of_the_same_splits(shared_data: Path, tmp_path: Path) -> None:
    """HMDB51 divides its videos three times: rows and videos are those of the first division."""
    found = check(Source("hmdb51", shared_data / "annotations" / "hmdb51"), tmp_path / "missing.txt")
    assert (found["rows"], found["videos"], found["missing"], found["listed"]) == (5100, 5100, 5100, 6371)
    assert as_lines(found)[:2] == [
        "5,100 rows of 5,100 videos, 0 of them found",
        f"5,100 videos are missing (6,371 in all splits), listed in {tmp_path / 'missing.txt'}",
    ]
