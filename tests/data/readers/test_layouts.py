"""Small files in the published formats of the data sets, original and converted."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest

from evilm.data.readers import read
from evilm.errors import SplitError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Put = Callable[..., Path]
    Complaint = Callable[..., str]

MAPPING = "-4wsuPCjDBc_5_15 vid1\n-7KMZQEsJW4_205_208 vid2\r\n"
DESCRIPTIONS = """# comments stand first

-4wsuPCjDBc_5_15 A squirrel is eating a peanut.
-7KMZQEsJW4_205_208 Someone is cooking.
-4wsuPCjDBc_5_15 A chipmunk, "hungry", eats.
"""


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_msvd_captions(tmp_path: Path, put: Put, complaint: Complaint) -> None:
    put("AllVideoDescriptions.txt", DESCRIPTIONS)
    put("train_list.txt", "-4wsuPCjDBc_5_15\n")
    put("test_list.txt", "-7KMZQEsJW4_205_208\r\n")
    put("YouTubeClips/-4wsuPCjDBc_5_15.avi")
    (one,) = read("msvd_retrieval", tmp_path)
    assert one.captions == ("A squirrel is eating a peanut.", 'A chipmunk, "hungry", eats.')
    assert one.clip.path == tmp_path / "YouTubeClips" / "-4wsuPCjDBc_5_15.avi"
    assert [e.video for e in read("msvd_retrieval", tmp_path, None, "test")] == ["-7KMZQEsJW4_205_208"]
    assert len(read("msvd_retrieval", tmp_path / "AllVideoDescriptions.txt")) == 2
    put("val_list.txt", "gone_1_2\n")
    assert "val_list.txt: AllVideoDescriptions.txt has no caption for 'gone_1_2'" in complaint(
        "msvd_retrieval", tmp_path, "val"
    )
    bad = put("bad/AllVideoDescriptions.txt", "# c\nlonely\n")
    assert f"{bad}:2: 'lonely' is not a video followed by a sentence" in complaint("msvd_retrieval", bad)


def test_msvd_captions_in_json(tmp_path: Path, put: Put) -> None:
    put("captions_msvd.json", {"-4wsuPCjDBc_5_15": ["a squirrel eats", "a chipmunk"]})
    put("train_list.txt", "-4wsuPCjDBc_5_15\n")
    assert [e.captions for e in read("msvd_retrieval", tmp_path)] == [("a squirrel eats", "a chipmunk")]
    put("youtube_mapping.txt", MAPPING)
    put("captions_msvd.json", [{"video_id": "vid1", "caption": "x"}, {"video_id": 1, "caption": "y"}])
    assert [e.captions for e in read("msvd_retrieval", tmp_path)] == [("x", "y")]


def test_msvd_qa(tmp_path: Path, put: Put, complaint: Complaint) -> None:
    rows = [{"answer": "someone", "id": 0, "question": "who cooks?", "video_id": 2},
            {"answer": "eat", "id": 1, "question": "what does a squirrel do?", "video_id": "vid1"}]  # fmt: skip
    put("test_qa.json", rows)
    put("msvd_train_qa_encode.json", lines(*rows))  # a table a line, and called json
    assert [e.video for e in read("msvd_qa", tmp_path)] == ["vid2", "vid1"]
    put("youtube_mapping.txt", MAPPING)
    put("YouTubeClips/-7KMZQEsJW4_205_208.avi")
    first, second = read("msvd_qa", tmp_path, None, "test")
    assert (first.key, first.video, first.answer, first.kind) == ("0", "-7KMZQEsJW4_205_208", "someone", "who")
    assert first.clip.path == tmp_path / "YouTubeClips" / "-7KMZQEsJW4_205_208.avi"
    assert (second.video, second.kind) == ("-4wsuPCjDBc_5_15", "what")
    assert [e.answer for e in read("msvd_qa", tmp_path)] == ["someone", "eat"]
    put("test_qa.json", [{**rows[0], "video_id": 9}])
    assert "test_qa.json:1: 'video_id' is 9, and youtube_mapping.txt has no vid9" in complaint(
        "msvd_qa", tmp_path, "test"
    )
    put("youtube_mapping.txt", "a vid1\nb vid1\n")
    assert "youtube_mapping.txt:2: vid1 is named twice: a, b" in complaint("msvd_qa", tmp_path, "test")


def test_tgif_count(tmp_path: Path, put: Put, complaint: Complaint) -> None:
    head = "gif_name\tquestion\tanswer\tvid_id\tkey\r\n"
    put("Test_count_question.csv", head + "tumblr_1\tHow many times does the man nod ?\t3\tCOUNT12\t52\r\n")
    (example,) = read("tgif_count", tmp_path, None, "test")
    assert (example.key, example.video, example.answer, example.kind) == ("COUNT12", "tumblr_1", "3", "count")
    put("Test_count_question.csv", head + "t\tq\t3\tCOUNT1\t1\r\nt\tq\tthree\tCOUNT2\t2\r\n")
    assert "csv:3: 'answer' is 'three', a whole number is needed" in complaint("tgif_count", tmp_path, "test")


def test_didemo_paragraphs(tmp_path: Path, put: Put) -> None:
    rows = [{"description": "a man bends", "times": [[1, 1]], "video": "9@N01_60_dc.mov", "annotation_id": 1},
            {"description": "a baby.", "times": [[0, 0]], "video": "8@N00_36_45.3gp", "annotation_id": 2},
            {"description": "he stands", "times": [[2, 3]], "video": "9@N01_60_dc.", "annotation_id": 3}]  # fmt: skip
    put("val_data.json", rows)
    put("videos/8@N00_36_45.3gp")
    put("videos/9@N01_60_dc.mp4")
    man, baby = read("didemo", tmp_path, None, "val")
    assert (man.video, man.captions) == ("9@N01_60_dc", ("a man bends he stands",))  # two spellings of one video
    assert (man.clip.path.name, man.clip.start, man.clip.end) == ("9@N01_60_dc.mp4", 0, 31)
    assert baby.clip.path == tmp_path / "videos" / "8@N00_36_45.3gp"
    put("val_list.txt", "8@N00_36_45\n")
    assert [e.video for e in read("didemo", tmp_path, None, "val")] == ["8@N00_36_45"]
    put("DiDeMo_train.tsv", "caption\tpath\na dog runs. it barks\t9@N01_60_dc.mov\n")
    assert [e.captions for e in read("didemo", tmp_path)] == [("a dog runs. it barks",)]
    put("train_data.json", [{"video": "a.avi", "caption": ["one", "two"]}])
    assert [e.captions for e in read("didemo", tmp_path)] == [("one two",)]


def test_hmdb51_lists(tmp_path: Path, put: Put, complaint: Complaint) -> None:
    listing = put("hmdb51_rgb_train_split_1.txt", "frames/brush_hair/April_09 a 70 0\nframes/wave/w 61 1 \n")
    put("hmdb51_classInd.txt", "1 brush_hair\n2 wave\n")
    put("videos/April_09 a.avi")
    one, two = read("hmdb51", tmp_path)
    assert (one.label, one.kind, one.clip.path.name) == (0, "brush_hair", "April_09 a.avi")
    assert (two.label, two.kind, two.clip.path.name) == (1, "wave", "w.avi")
    assert read("hmdb51", listing) == [one, two]
    put("hmdb51_rgb_val_split_1.txt", "wave/w 61 2\n")
    assert "split_1.txt:1: 'wave/w 61 2' has label 2, outside the class list" in complaint("hmdb51", tmp_path, "test")
    one_class = put("wave_test_split1.txt", "w.avi 1\n")
    assert "is the list of one class: name the folder" in complaint("hmdb51", one_class)


def test_ucf101(tmp_path: Path, put: Put, complaint: Complaint) -> None:
    put("ucfTrainTestlist/classInd.txt", "1 ApplyEyeMakeup\n2 Archery\n")
    put("ucfTrainTestlist/trainlist01.txt", "ApplyEyeMakeup/v_A_g08_c01.avi 1\r\nArchery/v_B_g01_c01.avi 2\r\n")
    put("ucfTrainTestlist/testlist01.txt", "Archery/v_B_g02_c01.avi\n")
    put("UCF-101/Archery/v_B_g01_c01.avi")
    first, second = read("ucf101", tmp_path)
    assert (first.label, first.kind, second.label, second.kind) == (0, "ApplyEyeMakeup", 1, "Archery")
    assert second.clip.path == tmp_path / "UCF-101" / "Archery" / "v_B_g01_c01.avi"
    assert [(e.label, e.kind) for e in read("ucf101", tmp_path / "ucfTrainTestlist", None, "test")] == [(1, "Archery")]
    with pytest.raises(SplitError, match=r"holds none of testlist02.txt"):
        read("ucf101", tmp_path, None, "test.2")
    put("ucfTrainTestlist/trainlist01.txt", "Archery/v_B_g01_c01.avi 1\n")
    assert "trainlist01.txt:1: 'Archery/v_B_g01_c01.avi 1' has label 1; the class list says 2" in complaint(
        "ucf101", tmp_path
    )
    put("ucfTrainTestlist/testlist01.txt", "Bowling/v_C.avi\n")
    assert ":1: 'Bowling/v_C.avi' has no label, and no class list names Bowling" in complaint(
        "ucf101", tmp_path, "test"
    )


def test_kinetics400(tmp_path: Path, put: Put, complaint: Complaint) -> None:
    head = "label,youtube_id,time_start,time_end,split,is_cc\n"
    put("train.csv", head + '"air drumming",aaaaaaaaaaa,1,11,train,0\nzumba,bbbbbbbbbbb,0,10,train,0\n')
    table = put("val.csv", head + "zumba,ccccccccccc,417,427,val,0\nzumba,dddddddddd-,2,12,val,1\n")
    put("videos/val/zumba/ccccccccccc_000417_000427.mp4")
    put("videos/dddddddddd-.mkv")
    one, two = read("kinetics400", tmp_path, None, "val")
    assert (one.label, one.kind) == (1, "zumba")  # by the classes of train and val together
    assert one.clip.path == tmp_path / "videos" / "val" / "zumba" / "ccccccccccc_000417_000427.mp4"
    assert two.clip.path.name == "dddddddddd-.mkv"
    put("label_map.txt", "abseiling\nair drumming\nzumba\n")
    assert [e.label for e in read("kinetics400", table, None, "val")] == [2, 2]
    assert "has no examples in split 'train'" in complaint("kinetics400", table)
    put("val.csv", head + "zumba,x,1,2,train,0\n")
    assert "val.csv:2: 'split' is train, in the file of val" in complaint("kinetics400", tmp_path, "val")
    listing = put("k400_test_tsm.list", "/data/k/snow boarding/MCgJO4s1qBA_000129_000139.zip\t2\n")
    put("videos/snow boarding/MCgJO4s1qBA_000129_000139.mp4")
    (example,) = read("kinetics400", listing, None, "test")
    assert (example.label, example.kind) == (2, "zumba")
    assert example.clip.path == tmp_path / "videos" / "snow boarding" / "MCgJO4s1qBA_000129_000139.mp4"


def test_coco_captions(tmp_path: Path, put: Put, complaint: Complaint) -> None:
    data = {"images": [{"id": 9, "file_name": "000009.jpg"}, {"id": 7, "file_name": "000007.jpg"}],
            "annotations": [{"image_id": 7, "id": 1, "caption": "A cat. "}, {"image_id": 9, "id": 2, "caption": "Dog"},
                            {"image_id": 7, "id": 3, "caption": "Two cats"}]}  # fmt: skip
    put("captions_val2017.json", data)
    put("val2017/000009.jpg")
    nine, seven = read("coco_captions", tmp_path, None, "val")
    assert (nine.key, nine.clip.path, nine.clip.frames) == ("9", tmp_path / "val2017", ("000009.jpg",))
    assert seven.captions == ("A cat.", "Two cats")
    put("captions_val2017.json", {**data, "images": data["images"][:1]})
    assert "has captions of picture 7, which is not in 'images'" in complaint("coco_captions", tmp_path, "val")
    karpathy = {"images": [{"filepath": "val2014", "filename": "a.jpg", "imgid": 3, "split": "restval",
                            "sentences": [{"raw": "A man"}, {"raw": "A person"}]}]}  # fmt: skip
    (example,) = read("coco_captions", put("k/dataset_coco.json", karpathy))
    assert (example.key, example.captions) == ("3", ("A man", "A person"))
    assert "has no pictures of split 'test'; its splits: restval" in complaint("coco_captions", tmp_path / "k", "test")


def test_flickr8k(tmp_path: Path, put: Put, complaint: Complaint) -> None:
    put("Flickr8k.token.txt", "1_a.jpg#0\tA child , in a dress .\n1_a.jpg#1\tA girl .\n2_b.jpg#0\tA dog .\n")
    put("Flickr_8k.devImages.txt", "2_b.jpg\n")
    (dog,) = read("flickr8k", tmp_path, None, "val")
    assert (dog.captions, dog.clip.frames) == (("A dog .",), ("2_b.jpg",))
    with pytest.raises(SplitError, match=r"has no Flickr_8k.trainImages.txt"):
        read("flickr8k", tmp_path)
    table = put("kaggle/captions.txt", 'image,caption\n1_a.jpg,"A child , in a dress ."\n1_a.jpg,A girl .\n')
    assert [e.captions for e in read("flickr8k", table)] == [("A child , in a dress .", "A girl .")]
    bad = put("bad/Flickr8k.token.txt", "1_a.jpg#0\tA\n1_a.jpg A girl\n")
    assert f"{bad}:2: '1_a.jpg A girl' is not picture#0, a tab and a caption" in complaint("flickr8k", bad)


def test_sidecars(tmp_path: Path, put: Put, complaint: Complaint) -> None:
    for name in ("a.mp4", "sub/b.gif", "sub/c.mkv"):
        put(f"train/{name}")
    put("train/a.txt", "\ufeffa dog runs\n\na dog\tjumps \r\n")
    put("train/sub/b.json", {"caption": "a gif"})
    put("train/sub/c.json", ["one", "two"])
    found = read("sidecars", tmp_path)
    assert [(e.key, e.captions) for e in found] == [
        ("a.mp4", ("a dog runs", "a dog\tjumps")), ("sub/b.gif", ("a gif",)), ("sub/c.mkv", ("one", "two")),
    ]  # fmt: skip
    assert [e.clip.path for e in found][1] == tmp_path / "train" / "sub" / "b.gif"
    with pytest.raises(SplitError, match="has no folder 'val'; its splits: train"):
        read("sidecars", tmp_path, None, "val")
    put("train/z.mp4")
    assert "z.mp4: has no z.txt or z.json with captions beside it" in complaint("sidecars", tmp_path)
    put("train/z.txt", " \n")
    assert "z.txt: holds no caption" in complaint("sidecars", tmp_path)


def test_folders_of_frames(tmp_path: Path, put: Put, complaint: Complaint) -> None:
    for name in ("f10.jpg", "f2.jpg", "f1.jpg", "note.txt"):
        put(f"val/clip/{name}")
    put("val/clip.txt", "a cat sits\n")
    put("val/empty/note.txt")
    (example,) = read("frames", tmp_path, None, "val")
    assert (example.key, example.captions) == ("clip", ("a cat sits",))
    assert (example.clip.path, example.clip.frames) == (tmp_path / "val" / "clip", ("f1.jpg", "f2.jpg", "f10.jpg"))
    table = put("list.csv", "path,caption\nval/clip,a cat\nval/clip/f2.jpg,a still\n")
    folder, still = read("captions", table)
    assert folder.clip == example.clip
    assert (still.clip.path, still.clip.frames) == (tmp_path / "val" / "clip", ("f2.jpg",))
    (tmp_path / "bare").mkdir()
    assert "holds no train.tar and no folders of pictures" in complaint("frames", tmp_path / "bare")


def test_classes_are_numbered_over_all_splits(tmp_path: Path, put: Put) -> None:
    put("train/a/1.mp4")
    put("train/c/2.mp4")
    put("val/b/3.mp4")
    assert [(e.label, e.kind) for e in read("classes", tmp_path)] == [(0, "a"), (2, "c")]
    assert [(e.label, e.kind) for e in read("classes", tmp_path, None, "val")] == [(1, "b")]


def test_other_formats_of_msrvtt(tmp_path: Path, put: Put, complaint: Complaint) -> None:
    put(
        "msrvtt_caption_test.json", [{"video": "video7010.mp4", "caption": ["a", "b"]}, {"video": 7011, "caption": "c"}]
    )
    found = [(e.video, e.captions) for e in read("msrvtt_retrieval", tmp_path, None, "test")]
    assert found == [("video7010", ("a", "b")), ("video7011", ("c",))]
    put("val_list_jsfusion.txt", "video7011\n")
    assert [e.video for e in read("msrvtt_retrieval", tmp_path, None, "test")] == ["video7011"]
    assert [e.video for e in read("msrvtt_retrieval", tmp_path, None, "test.full")] == ["video7010", "video7011"]
    listing = put("MSRVTT_train.7k.csv", "video_id\nvideo0\nvideo10\n")
    assert "names 2 videos in split 'train', and no caption, question or label" in complaint(
        "msrvtt_retrieval", listing
    )
    table = put("MSRVTT_JSFUSION_test.csv", "key,vid_key,video_id,sentence\nret0,msr2,video2,\n")
    assert f"{table}:2: 'sentence' is empty" in complaint("msrvtt_retrieval", tmp_path, "test")


def test_parquet(tmp_path: Path, put: Put, complaint: Complaint) -> None:
    pyarrow: Any = pytest.importorskip("pyarrow")
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    columns = {"video": ["a.mp4", "b.mp4"], "caption": [["x", "y"], ["z"]], "start": [1.5, None], "end": [2.0, None]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "train.parquet")
    one, two = read("captions", tmp_path)
    assert (one.captions, one.clip.start, one.clip.end) == (("x", "y"), 1.5, 2.0)
    assert (two.captions, two.clip.end, two.clip.path) == (("z",), None, tmp_path / "b.mp4")
    assert "cannot be read as parquet" in complaint("captions", put("x.parquet", b"PAR1 no"))
    parquet.write_table(pyarrow.table({"video": ["a"], "caption": [None]}), tmp_path / "train.parquet")
    assert "train.parquet:1: has no 'caption'" in complaint("captions", tmp_path)


def test_sentences_without_videos(tmp_path: Path, put: Put, complaint: Complaint) -> None:
    put("b.txt", "A dog runs.\n\nA dog runs.\n")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("A café.\nA dog runs.\n".encode()))
    found = read("sentences", tmp_path)
    assert [(e.key, e.captions) for e in found] == [("a.txt.gz:1", ("A café.",)), ("a.txt.gz:2", ("A dog runs.",))]
    assert [e.captions for e in read("sentences", tmp_path / "b.txt")] == [("A dog runs.",)]
    assert len({e.clip.id for e in found}) == 2
    assert "cannot be read as gzipped UTF-8 text" in complaint("sentences", put("c.txt.gz", b"no gzip"))
    assert "no such annotation file" in complaint("sentences", tmp_path / "none.txt")
