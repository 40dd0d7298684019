"""VIOLET's files, questions on still frames, and the column names of tables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from evilm.data.pack import write_shard
from evilm.data.readers import read

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Put = Callable[..., Path]
    Complaint = Callable[..., str]

RETRIEVAL = {"train": [{"video": "video7.mp4", "caption": "a dog"}, {"video": "video7.mp4", "caption": "a man"}],
             "val": [{"video": "video9.mp4", "caption": "rain"}], "test": []}  # fmt: skip
OPEN = {"train": [{"video": "video7", "question": "what is it", "answer": 1}],
        "test": [{"video": "video9", "question": "who sings", "answer": "man"}]}  # fmt: skip
OPTIONS = {f"option_{i}": text for i, text in enumerate(("blink", "nod", "jump", "run", "sit"))}
CHOICE = {"train": [{"video": "tumblr_1", "question": "what is done 3 times ?", "answer": 2, **OPTIONS}]}


def test_violet_retrieval(put: Put, tmp_path: Path) -> None:
    put("txt_msrvtt-retrieval.json", RETRIEVAL)
    put("videos/video7.mp4")
    rows = read("violet", tmp_path)
    assert [(row.key, row.video, row.captions) for row in rows] == [
        ("train-1", "video7.mp4", ("a dog",)),
        ("train-2", "video7.mp4", ("a man",)),
    ]
    assert rows[0].clip.path == tmp_path / "videos" / "video7.mp4"
    assert [row.captions for row in read("violet", tmp_path, None, "val")] == [("rain",)]
    assert rows[0].clip.end is None


def test_violet_didemo_ends_after_31_seconds(put: Put) -> None:
    (row,) = read("violet", put("txt_didemo-retrieval.json", RETRIEVAL), None, "val")
    assert row.clip.end == 31


def test_violet_open_questions(put: Put, complaint: Complaint) -> None:
    path = put("txt_msrvtt-qa.json", OPEN)
    (row,) = read("violet", path, None, "test")
    assert (row.question, row.answer, row.kind) == ("who sings", "man", "who")
    assert "has answers as numbers: put the ans2label.json of its answers beside it" in complaint("violet", path)
    put("msrvtt-qa_ans2label.json", {"man": 0, "dog": 1})
    (row,) = read("violet", path)
    assert row.answer == "dog"
    put("msrvtt-qa_ans2label.json", {"man": 0})
    assert ":1: 'answer' is 1, which the file *ans2label.json" in complaint("violet", path)


def test_violet_choices(put: Put, complaint: Complaint) -> None:
    path = put("txt_tgif-action.json", CHOICE)
    (row,) = read("violet", path)
    assert (row.question, row.choices, row.label) == ("what is done 3 times ?", tuple(OPTIONS.values()), 2)
    put("txt_tgif-action.json", {"train": [CHOICE["train"][0] | {"answer": 5}]})
    assert ":1: 'answer' is 5, outside the 5 choices" in complaint("violet", path)


def test_violet_errors_name_what_the_file_has(put: Put, tmp_path: Path, complaint: Complaint) -> None:
    path = put("txt_msrvtt-qa.json", OPEN)
    assert "has no split 'val'; its splits: train, test" in complaint("violet", path, "val")
    put("txt_msrvtt-qa.json", {"train": [{"video": "v", "text": "x"}]})
    assert ":1: has none of caption, question, option_0; fields found: video, text" in complaint("violet", path)
    assert "use the reader of its format (violet reads VIOLET's txt_*.json)" in complaint("msrvtt_qa", path)
    put("txt_tgif-action.json", CHOICE)
    assert "holds several files of VIOLET" in complaint("violet", tmp_path)


def tar(path: Path, **values: dict[str, Any]) -> None:
    write_shard(path, [(key, {"00.jpg": b"x", "json": json.dumps(each).encode()}) for key, each in values.items()])


def test_questions_on_still_frames(tmp_path: Path, complaint: Complaint) -> None:
    qa = [{"question": "what is it", "answer": "dog"}, {"question": "where", "answer": "beach"}]
    tar(tmp_path / "train.tar", video1={"qa": qa}, video2={"qa": qa[:1]})
    rows = read("frames_qa", tmp_path)
    assert [(row.key, row.video, row.answer, row.kind) for row in rows] == [
        ("video1-0", "video1", "dog", "what"),
        ("video1-1", "video1", "beach", "where"),
        ("video2-0", "video2", "dog", "what"),
    ]
    assert "video1 has questions and no captions: use the reader frames_qa" in complaint("frames", tmp_path)
    tar(tmp_path / "test.tar", video1={"captions": ["a dog"]})
    assert "video1 has no list 'qa'; fields found: captions" in complaint("frames_qa", tmp_path, "test")
    tar(tmp_path / "test.tar", video1={"qa": [{"question": "what"}]})
    assert "has no 'answer'" in complaint("frames_qa", tmp_path, "test")


def test_dev_is_a_name_of_val(tmp_path: Path) -> None:
    tar(tmp_path / "dev.tar", photo={"captions": ["a dog"]})
    assert [row.captions for row in read("frames", tmp_path, None, "val")] == [("a dog",)]


def test_the_verb_of_a_table_is_the_kind_of_its_rows(put: Put) -> None:
    table = put(
        "captions.csv", "path,caption,verb,scene,split\na.mp4,open it,Open,lab,train\nb.mp4,shut it,,lab,test\n"
    )
    assert [row.kind for row in read("captions", table)] == ["Open"]
    assert [row.kind for row in read("captions", table, None, "test")] == [None]


@pytest.mark.parametrize("name", ["captions", "webvid", "msrvtt_retrieval", "kinetics400", "tgif_action"])
def test_a_csv_without_rows_names_its_columns_and_those_needed(put: Put, complaint: Complaint, name: str) -> None:
    error = complaint(name, put("l.csv", "clip path,what is said\n"))
    assert "holds no rows below its first line, whose columns are: clip path, what is said; needed: " in error


@pytest.mark.parametrize(
    "names",
    [("train.csv", "validate.csv"), ("kinetics_train.csv", "kinetics_val.csv"),
     ("kinetics-400_train.csv", "kinetics-400_val.csv"), ("kinetics_400_train.csv", "kinetics_400_val.csv"),
     ("kinetics400/train.csv", "kinetics400/validate.csv"), ("kinetics400_train.csv", "kinetics400_validation.csv")],
)  # fmt: skip
def test_published_names_of_kinetics(put: Put, tmp_path: Path, names: tuple[str, str]) -> None:
    head = "label,youtube_id,time_start,time_end,split\n"
    put(names[0], head + "zumba,aaaaaaaaaaa,1,11,train\n")
    put(names[1], head + "abseiling,bbbbbbbbbbb,0,10,validate\n")
    put("kinetics-600_test.csv", head + "yoga,ccccccccccc,0,10,test\n")
    assert [(row.kind, row.label) for row in read("kinetics400", tmp_path)] == [("zumba", 1)]
    assert [(row.kind, row.label) for row in read("kinetics400", tmp_path, None, "val")] == [("abseiling", 0)]


def test_kinetics_json(put: Put, tmp_path: Path, complaint: Complaint) -> None:
    entry = {"annotations": {"label": "zumba", "segment": [3.0, 13.0]}, "duration": 10.0, "subset": "validate"}
    put("validate.json", {"aaaaaaaaaaa": entry})
    put("train.json", {"b": {"annotations": {"label": "yoga", "segment": [0, 10]}, "subset": "train"}})
    (row,) = read("kinetics400", tmp_path, None, "val")
    assert (row.key, row.kind, row.label) == ("aaaaaaaaaaa", "zumba", 1)
    assert row.clip.path.name == "aaaaaaaaaaa_000003_000013.mp4"
    put("train.json", {"b": {"annotations": {"label": "yoga"}}})
    assert "'b' has no annotations with a segment of two times" in complaint("kinetics400", tmp_path)
