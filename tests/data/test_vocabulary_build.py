from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from evilm.data.vocabulary import SPECIALS, Vocabulary
from evilm.data.vocabulary_build import build, cut, read_captions, read_wordpieces, train
from evilm.errors import AnnotationError, VocabularyError

if TYPE_CHECKING:
    from pathlib import Path

CAPTIONS = ["a man is playing a guitar", "the man plays", "a woman is slicing an onion", "two dogs are running"] * 5


@pytest.fixture
def published(tmp_path: Path) -> Path:
    pieces = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a", "dog", "cat", "runs", "##ning",
              "man", "b", "tree"]  # fmt: skip
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return path


def test_cut_keeps_the_most_frequent_in_the_published_order(published: Path) -> None:
    # 15 x 0.7 = 10.5 -> 10: 5 special + 3 characters (a, ##a, b) + the 2 most frequent of the others (man 3, cat 2).
    kept = cut(published, ["man cat man", "cat dog man", "a"], keep=0.7)
    assert kept.pieces == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a", "cat", "man", "b")


def test_cut_breaks_ties_by_place_and_drops_unused_first(published: Path) -> None:
    # 15 x 0.8 = 12: four others; man was seen, then dog, cat, runs by their place; [unused0] comes after all.
    kept = cut(published, ["man"], keep=0.8)
    assert kept.pieces[7:] == ("dog", "cat", "runs", "man", "b")
    assert cut(published, ["man"], keep=1.0).size == 15


def test_invalid_fractions_and_files_are_refused(published: Path, tmp_path: Path) -> None:
    for captions, keep, match in (
        ([], 0.7, "no captions"),
        (["a"], 0.2, "at least 0.53"),
        (["a"], 0.0, "not a fraction"),
    ):
        with pytest.raises(VocabularyError, match=match):
            cut(published, captions, keep)
    for content in (b"", b"a\nb\n", b"\xff\n", b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n"):
        (tmp_path / "bad.txt").write_bytes(content)
        with pytest.raises(VocabularyError, match=r"bad\.txt"):
            read_wordpieces(tmp_path / "bad.txt")
    with pytest.raises(VocabularyError, match=r"none\.txt"):
        read_wordpieces(tmp_path / "none.txt")


def test_training_gives_the_requested_size_and_all_characters() -> None:
    vocabulary = train([*CAPTIONS, "ein schöner Ölbaum ☃"], 200)
    assert vocabulary.size == 200
    assert vocabulary.pieces[:5] == SPECIALS
    assert vocabulary.unknown_share([*CAPTIONS, "☃", "xyz!?#0"]) == 0
    assert "man" in vocabulary.pieces


def test_training_errors_name_a_possible_size() -> None:
    with pytest.raises(VocabularyError, match="set --size") as caught:
        train(CAPTIONS, 9157)
    possible = int(str(caught.value).split("set --size ")[1].split()[0])
    assert train(CAPTIONS, possible).size == possible
    with pytest.raises(VocabularyError, match="fewer than"):
        train(CAPTIONS, 20)
    with pytest.raises(VocabularyError, match="no captions"):
        train(["", "  "], 200)


def test_training_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    # Hash tables are seeded anew in each process, so that two processes are the test.
    captions = tmp_path / "c.txt"
    words = [
        f"{a} {b}s the {c}{b}" for a in ("man", "dog") for b in ("run", "jump", "cut") for c in ("re", "over", "out")
    ]
    captions.write_text("\n".join(words), encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from evilm.data.vocabulary_build import build;"
        "build([Path(sys.argv[1])], Path(sys.argv[2]), size=170)"
    )
    for name in ("one", "two"):
        subprocess.run([sys.executable, "-c", code, captions, tmp_path / name], check=True)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_build_report(tmp_path: Path) -> None:
    captions = tmp_path / "c.txt"
    captions.write_text("\n".join(CAPTIONS), encoding="utf-8")
    report = build([captions], tmp_path / "out.json", size=190)
    assert (report.method, report.pieces, report.captions, report.words) == ("trained", 190, 20, 95)
    assert report.unknown == 0
    assert report.pieces_per_word >= 1
    assert Vocabulary.load(tmp_path / "out.json").fingerprint == report.fingerprint
    assert "190 pieces (trained)" in str(report)


def test_nothing_is_written_when_building_fails(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(AnnotationError, match="holds no captions"):
        build([tmp_path / "c.txt"], tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


TWO = ["a dog runs", "two, cats"]
COCO = {"info": {"description": "COCO"}, "images": [{"file_name": "x.jpg"}],
        "annotations": [{"image_id": 1, "id": 2, "caption": text} for text in TWO]}  # fmt: skip
MSRVTT = {"videos": [{"video_id": "v", "split": "train"}], "sentences": [{"video_id": "v", "caption": t} for t in TWO]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.txt", "a dog runs\n\ntwo, cats\n"),
        ("msvd.txt", "# AllVideoDescriptions\n\nmv89psg6zh4_33_46 a dog runs\nmv89psg6zh4_33_46 two, cats\n"),
        ("c.csv", '\ufeffvideo_id,sentence\r\nv1,a dog runs\r\nv2,"two, cats"\r\n'),
        ("c.tsv", "caption\tpath\na dog runs\tx\ntwo, cats\ty\n"),
        ("c.jsonl", '{"caption": "a dog runs"}\n{"caption": "two, cats"}\n'),
        ("coco.json", json.dumps(COCO)),
        ("msrvtt.json", json.dumps(MSRVTT)),
        ("msrvtt_test.json", json.dumps([{"video": "video1.mp4", "caption": TWO}])),
        ("msvd.json", json.dumps({"x_1_2": [TWO[0]], "y_3_4": [TWO[1]]})),
    ],
)
def test_caption_files(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert list(read_captions([path])) == TWO


def test_bad_caption_files_are_named(tmp_path: Path) -> None:
    bad = {"a.json": "{", "b.json": "[1]", "c.csv": "x,y\n1,2\n", "d.pdf": "x", "e.jsonl": "[]\n"}
    for name, content in bad.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(AnnotationError, match=name):
            list(read_captions([tmp_path / name]))


def test_pruning_keeps_all_captions_encodable(shared_data: Path, tmp_path: Path) -> None:
    annotations = shared_data / "annotations"
    coco = list(read_captions([annotations / "coco" / "captions_val2017.json"]))
    assert len(coco) == 25_014
    ways = [Vocabulary.default(), cut(annotations / "bert-base-uncased-vocab.txt", coco, 0.3)]
    assert [way.size for way in ways] == [9157, 9157]
    others = [*read_captions([annotations / "msrvtt" / "msrvtt_caption_test.json"]),
              *read_captions([annotations / "msvd" / "captions_msvd.json"])]  # fmt: skip
    assert len(others) == 59_800 + 80_827
    for way in ways:
        assert way.unknown_share(others[::7]) < 1e-4
    ways[1].save(tmp_path / "cut.json")
    assert Vocabulary.load(tmp_path / "cut.json").pieces == ways[1].pieces


def test_the_shipped_vocabulary_can_be_built_again(shared_data: Path, tmp_path: Path) -> None:
    report = build([shared_data / "annotations" / "coco" / "captions_val2017.json"], tmp_path / "v.json")
    assert (tmp_path / "v.json").read_bytes() == Vocabulary.default().to_bytes()
    assert report.captions == 25_014
