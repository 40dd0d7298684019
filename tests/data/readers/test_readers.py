from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from evilm.data.readers import READERS, read
from evilm.data.readers.captions import captions as read_table
from evilm.errors import AnnotationError, ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def put(path: Path, content: str | bytes | list[Any] | dict[str, Any]) -> Path:
    """Write text, bytes, or what becomes json; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, (str, bytes)) else json.dumps(content)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def complaint(name: str, annotations: Path, split: str = "train", videos: Path | None = None) -> str:
    with pytest.raises(AnnotationError) as caught:
        read(name, annotations, videos, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unknown_reader_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'webvd': did you mean 'webvid'\? known are captions, .*hmdb51.*webvid"):
        read("webvd", tmp_path)


@pytest.mark.parametrize("name", sorted(READERS))
def test_every_reader_names_missing_files(name: str, tmp_path: Path) -> None:
    assert str(tmp_path / "none") in complaint(name, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in complaint(name, tmp_path / "empty")


def test_webvid(tmp_path: Path) -> None:
    put(tmp_path / "videos" / "0001_0050" / "17.mp4", b"x")
    put(
        tmp_path / "results_2M_train.csv",
        "\ufeffvideoid,contentUrl,duration,page_dir,name\r\n"
        '17,http,PT1S,0001_0050,"A cat, ""Tom"", runs"\r\n18,http,PT1S,0001_0050,Two\n',
    )
    first, second = read("webvid", tmp_path)
    assert (first.key, first.video, first.captions) == ("17", "17", ('A cat, "Tom", runs',))
    assert first.clip.path == tmp_path / "videos" / "0001_0050" / "17.mp4"
    assert second.clip.path == tmp_path / "videos" / "0001_0050" / "18.mp4"  # missing, and still an example
    assert [e.clip.path.name for e in read("webvid", tmp_path / "results_2M_train.csv")] == ["17.mp4", "18.mp4"]
    flat = put(tmp_path / "flat" / "17.webm", b"x").parent
    assert read("webvid", tmp_path, flat)[0].clip.path == flat / "17.webm"
    assert "results_2M_train.csv" in complaint("webvid", tmp_path, "val")


def test_table_faults_name_file_line_and_columns(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    put(table, "videoid,page_dir\n1,a\n")
    assert complaint("webvid", table) == f"{table}:2: has no 'name'; fields found: page_dir, videoid"
    put(table, 'videoid,page_dir,name\n1,a,"x\ny"\n2,a\n')
    assert f"{table}:4: has 2 fields, the header names 3" in complaint("webvid", table)
    put(table, "videoid,page_dir,name\n1,a,\n")
    assert f"{table}:2: 'name' is empty" in complaint("webvid", table)
    put(table, 'videoid,page_dir,name\n1,a,"open\n2,a,b\n')
    assert f"{table}:2: is not well-formed csv" in complaint("webvid", table)
    put(table, "videoid,name,name\n1,a,b\n")
    assert "names a column twice" in complaint("webvid", table)
    put(table, b"videoid,page_dir,name\n1,a,caf\xe9\n")
    assert f"{table}:2: is not UTF-8" in complaint("webvid", table)
    put(table, "videoid,page_dir,name\n1\0,a,b\n")
    assert f"{table}:2: " in complaint("webvid", table)
    for empty in ("", "videoid,page_dir,name\n"):
        put(table, empty)
        assert "holds no rows" in complaint("webvid", table)
    put(table, "videoid,page_dir,name\n1,a,b\n".encode("utf-16"))
    assert read("webvid", table)[0].captions == ("b",)
    assert "no such folder of videos" in complaint("webvid", table, videos=tmp_path / "nowhere")


def test_captions_of_any_table(tmp_path: Path) -> None:
    put(tmp_path / "sub" / "a.webm", b"x")
    rows = ("Video_Path\ttext\tstart\tend\tsplit", 'sub/a\tone "1"\t1.5\t3\ttrain', "b.avi\ttwo\t\t\tval")
    table = put(tmp_path / "list.tsv", "\n".join(rows))
    (one,) = read("captions", table)
    assert (one.clip.path, one.clip.start, one.clip.end) == (tmp_path / "sub" / "a.webm", 1.5, 3.0)
    assert one.captions == ('one "1"',)
    assert read("captions", table, None, "val")[0].clip.path == tmp_path / "b.avi"
    lines = put(tmp_path / "l.jsonl", '{"video": "a", "caption": ["x", "y"]}\n\n{"video": "a", "caption": "z"}\n')
    found = [(e.key, e.video, e.captions) for e in read("captions", lines)]
    assert found == [("1", "a", ("x", "y")), ("3", "a", ("z",))]
    odd = put(tmp_path / "odd.csv", "wo,was\na.mp4,ein Hund\n")
    assert "columns found: wo, was; needed one of: path, video_path" in complaint("captions", odd)
    assert next(read_table(odd, None, "train", "wo", "was")).captions == ("ein Hund",)
    put(odd, "path,caption,start,end\na,b,3,2\n")
    assert ":2: 'end' is 2, not after 'start' 3" in complaint("captions", odd)
    for text, match in (('{"video": "a"}', ":1: has no column for the caption"), ("[1]",
                        ":1: row [1] is not an object"), ('{"video": "a", "caption": "b"}\n{', ":2: is not json"),
                        ('{"video": "a", "caption": []}', ":1: 'caption' is []")):  # fmt: skip
        assert match in complaint("captions", put(tmp_path / "l.jsonl", text))


VIDEODATAINFO = {
    "info": {},
    "videos": [{"category": 9, "video_id": "video0", "split": "train", "id": 0},
               {"category": 1, "video_id": "video1", "split": "validate", "id": 1},
               {"category": 2, "video_id": "video2", "split": "test", "id": 2}],
    "sentences": [{"caption": "a car", "video_id": "video0"}, {"caption": "a man", "video_id": "video1"},
                  {"caption": "a red car", "video_id": "video0"}, {"caption": "a game", "video_id": "video2"}],
}  # fmt: skip


def test_msrvtt_retrieval(tmp_path: Path) -> None:
    put(tmp_path / "MSRVTT_data.json", VIDEODATAINFO)
    (train,) = read("msrvtt_retrieval", tmp_path)
    assert (train.key, train.captions, train.label) == ("video0", ("a car", "a red car"), 9)
    assert [e.video for e in read("msrvtt_retrieval", tmp_path, None, "val")] == ["video1"]
    assert [e.captions for e in read("msrvtt_retrieval", tmp_path, None, "test")] == [("a game",)]
    put(tmp_path / "MSRVTT_JSFUSION_test.csv", "key,vid_key,video_id,sentence\nret0,msr2,video2,a person plays\n")
    (test,) = read("msrvtt_retrieval", tmp_path, None, "test")
    assert (test.key, test.video, test.captions) == ("ret0", "video2", ("a person plays",))
    put(tmp_path / "MSRVTT_train.9k.csv", "video_id\nvideo0\nvideo1\n")
    put(tmp_path / "MSRVTT_train.7k.csv", "video_id\nvideo1\n")
    assert [e.video for e in read("msrvtt_retrieval", tmp_path)] == ["video0", "video1"]
    assert [e.video for e in read("msrvtt_retrieval", tmp_path, None, "train.7k")] == ["video1"]
    put(tmp_path / "MSRVTT_train.9k.csv", "video_id\nvideo8\n")
    assert "no caption for 'video8'" in complaint("msrvtt_retrieval", tmp_path)
    assert "its splits: test, train, validate" in complaint("msrvtt_retrieval", tmp_path / "MSRVTT_data.json", "other")
    assert "has no list 'sentences'" in complaint("msrvtt_retrieval", put(tmp_path / "x.json", {"videos": []}))


def test_msrvtt_captions_in_the_older_format(tmp_path: Path) -> None:
    put(tmp_path / "MSR_VTT.json", {"annotations": [{"image_id": "video3", "id": 1, "caption": "a dog"}]})
    put(tmp_path / "train_list_jsfusion.txt", "video3\n")
    (example,) = read("msrvtt_retrieval", tmp_path)
    assert (example.video, example.captions, example.label) == ("video3", ("a dog",), None)


def test_msrvtt_qa(tmp_path: Path) -> None:
    rows = [{"question": "what is a man doing?", "answer": "sing", "video_id": 7, "id": 158, "category_id": 1},
            {"question": "Who sings?", "answer": "man", "video_id": "7", "id": 159},
            {"question": "how often?", "answer": "2", "video_id": "video8", "id": 160, "kind": "count"}]  # fmt: skip
    put(tmp_path / "train_qa.json", rows)
    examples = read("msrvtt_qa", tmp_path)
    assert [(e.key, e.video, e.question, e.answer, e.kind) for e in examples] == [
        ("158", "video7", "what is a man doing?", "sing", "what"),
        ("159", "video7", "Who sings?", "man", "who"),
        ("160", "video8", "how often?", "2", "count"),
    ]
    lines = put(tmp_path / "v.jsonl", '{"video_id":"video6513","question":"a?","answer":"b","answer_type":"what"}\n')
    assert [(e.key, e.kind) for e in read("msrvtt_qa", lines)] == [("1", "what")]
    put(tmp_path / "train_qa.json", [*rows, {"question": "q", "video_id": 1}])
    assert "train_qa.json:4: has no 'answer'; fields found: question, video_id" in complaint("msrvtt_qa", tmp_path)
    put(tmp_path / "train_qa.json", {"question": "q"})
    assert "is not a list of rows" in complaint("msrvtt_qa", tmp_path)


def test_temporal_is_read_if_the_annotations_have_it(tmp_path: Path) -> None:
    row = {"question": "what first", "answer": "a", "video_id": 1}
    flags = (True, False, "true", None)
    put(tmp_path / "train_qa.json", [row if flag is None else {**row, "temporal": flag} for flag in flags])
    assert [example.temporal for example in read("msrvtt_qa", tmp_path)] == [True, False, True, None]
    put(tmp_path / "train_qa.json", [{**row, "temporal": 1}])
    assert "train_qa.json:1: 'temporal' is 1, true or false is needed" in complaint("msrvtt_qa", tmp_path)
    option = {"qid": 1, "clip_name": "video1", "options": ["a", "b"], "answer": 1, "temporal": True}
    put(tmp_path / "mc_train.jsonl", json.dumps(option) + "\n")
    assert [example.temporal for example in read("msrvtt_mc", tmp_path)] == [True]


def test_msrvtt_mc(tmp_path: Path) -> None:
    row = {"qid": 3, "clip_name": "video7010", "options": ["a", "b", "c", "d", "e"], "answer": 4}
    for name in ("mc_test.jsonl", "msrvtt_retrieval_mc_test.jsonl"):
        path = put(tmp_path / name, json.dumps(row) + "\n")
        (example,) = read("msrvtt_mc", tmp_path, None, "test")
        assert (example.key, example.video, example.label) == ("3", "video7010", 4)
        assert example.choices == ("a", "b", "c", "d", "e")
        path.unlink()
    bad = put(tmp_path / "mc_test.jsonl", json.dumps({**row, "answer": 5}))
    assert f"{bad}:1: 'answer' is 5, outside the 5 choices" in complaint("msrvtt_mc", tmp_path, "test")


ACTION = ("gif_name\tquestion\ta1\ta2\ta3\ta4\ta5\tanswer\tvid_id\tkey\r\n"
          'tumblr_1\tWhat does the man do 3 times ?\tjump\trun\tsay "hi"\tsit\tnod\t2\tACTION4\t26\r\n')  # fmt: skip


def test_tgif_choices(tmp_path: Path) -> None:
    put(tmp_path / "Test_action_question.csv", ACTION)
    put(tmp_path / "gifs" / "tumblr_1.gif", b"x")
    (example,) = read("tgif_action", tmp_path, None, "test")
    assert (example.key, example.video, example.label) == ("ACTION4", "tumblr_1", 2)
    assert example.choices == ("jump", "run", 'say "hi"', "sit", "nod")
    assert example.question == "What does the man do 3 times ?"
    assert example.clip.path == tmp_path / "gifs" / "tumblr_1.gif"
    row = {"gif_name": "t", "question": "q", "options": ["a", "b", "c", "d", "e"], "answer": 0}
    put(tmp_path / "transition_train.jsonl", json.dumps(row))
    (example,) = read("tgif_transition", tmp_path)
    assert (example.label, example.clip.path.name) == (0, "t.gif")
    put(tmp_path / "Test_action_question.csv", ACTION.replace("\t2\tACTION4", "\ttwo\tACTION4"))
    assert "csv:2: 'answer' is 'two', a whole number is needed" in complaint("tgif_action", tmp_path, "test")


def test_tgif_frame(tmp_path: Path) -> None:
    put(
        tmp_path / "Test_frameqa_question.csv",
        "gif_name\tquestion\tanswer\ttype\tvid_id\tkey\tdescription\r\nt\twhat ?\tred\t2\tFRAMEQA1\t5\td\r\n",
    )
    (example,) = read("tgif_frame", tmp_path, None, "test")
    assert (example.key, example.answer, example.kind) == ("FRAMEQA1", "red", "color")


def test_hmdb51(tmp_path: Path) -> None:
    splits = tmp_path / "testTrainMulti_7030_splits"
    put(splits / "wave_test_split1.txt", "w 1.avi 1 \nw2.avi 2 \nw3.avi 0 \n")
    put(splits / "climb_test_split1.txt", "c1.avi 1 \n")
    put(splits / "climb_test_split2.txt", "c1.avi 2 \n")
    put(tmp_path / "videos" / "wave" / "w 1.mp4", b"x")
    train = read("hmdb51", tmp_path)
    assert [(e.key, e.label, e.kind) for e in train] == [("climb/c1.avi", 0, "climb"), ("wave/w 1.avi", 1, "wave")]
    assert train[1].clip.path == tmp_path / "videos" / "wave" / "w 1.mp4"
    assert [(e.key, e.label) for e in read("hmdb51", splits, None, "test")] == [("wave/w2.avi", 1)]
    assert [(e.key, e.label) for e in read("hmdb51", splits, None, "test.2")] == [("climb/c1.avi", 0)]
    assert [e.key for e in read("hmdb51", splits, None, "val")] == ["wave/w3.avi"]
    assert "no split 'dev'" in complaint("hmdb51", tmp_path, "dev")
    assert "no <class>" not in complaint("hmdb51", tmp_path, "train.2")  # the file is there, the split is empty
    assert "holds no <class>_test_split3.txt" in complaint("hmdb51", tmp_path, "train.3")
    put(splits / "wave_test_split1.txt", "w1.avi 1\nw2.avi 7\n")
    assert "wave_test_split1.txt:2: 'w2.avi 7' is not a video followed by 0, 1 or 2" in complaint("hmdb51", tmp_path)


def test_classes(tmp_path: Path) -> None:
    for name in ("train/run/2.mp4", "train/run/1.AVI", "train/eat/x/3.webm", "train/eat/note.txt", "val/eat/9.mp4"):
        put(tmp_path / name, b"x")
    assert [(e.key, e.label, e.kind) for e in read("classes", tmp_path)] == [
        ("eat/x/3.webm", 0, "eat"), ("run/1.AVI", 1, "run"), ("run/2.mp4", 1, "run"),
    ]  # fmt: skip
    assert [e.key for e in read("classes", tmp_path, None, "val")] == ["eat/9.mp4"]


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def test_frames(tmp_path: Path) -> None:
    facts = {"captions": ["a", "b", "c"], "category": 10, "sentence_1ka": "b"}
    path = tar(tmp_path / "test.tar", {
        "video9.10.jpg": b"", "video9.2.jpg": b"", "video9.json": json.dumps(facts).encode(), "video1.00.jpg": b"",
    })  # fmt: skip
    nine, one = read("frames", tmp_path, None, "test")
    assert nine.clip.path == path
    assert nine.clip.frames == ("video9.2.jpg", "video9.10.jpg")  # by number, not by letter
    assert (nine.key, nine.captions, nine.label) == ("video9", ("b", "a", "c"), 10)
    assert (one.key, one.captions, one.label, one.clip.frames) == ("video1", (), None, ("video1.00.jpg",))
    tar(path, {"video1.00.jpg": b"", "video1.json": b"{"})
    assert "video1.json is not a json object" in complaint("frames", tmp_path, "test")
    tar(path, {"x.txt": b""})
    assert "no frames named" in complaint("frames", path)


def test_videos_are_found_with_any_suffix(tmp_path: Path) -> None:
    """Tables often name no extension, and cameras write theirs in capitals."""
    for name in ("a.MOV", "b.wmv", "c.MP4", "d.mp4", "d.MP4"):
        (tmp_path / name).touch()
    (tmp_path / "t.csv").write_text("video_id,caption\na,x\nb,x\nc,x\nd,x\ne,x\nc.mp4,x\n")
    found = [example.clip.path.name for example in read("captions", tmp_path / "t.csv", tmp_path)]
    assert found == ["a.MOV", "b.wmv", "c.MP4", "d.mp4", "e.mp4", "c.MP4"]
