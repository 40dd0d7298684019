"""Captions, unreadable clips, the held-out part and new words of ``evilm adapt``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import evilm
from evilm.data.config import DataConfig, SourceConfig
from evilm.data.frame_cache import FrameCache
from evilm.data.video import DecoderPool
from evilm.data.video.check import Finding
from evilm.data.vocabulary import Vocabulary
from evilm.errors import AnnotationError, CheckpointError, DataError, VideoError
from evilm.training import adapt_data, checkpoint
from evilm.training.adapt_data import cache_frames, caption_from_name, check_videos, read_clips, split
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Callable

    from evilm.data.pixels import Job


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("a_dog-runs_003", "a dog runs"),
        ("IMG_20240512_101112", ""),
        ("VID-20240512-WA0001", ""),
        ("TwoCatsPlay.final", "two cats play"),
        ("GX010042", ""),
        ("clip 12 - birthday (copy)", "birthday"),
        ("Müll wird geholt", "müll wird geholt"),
        ("7f3a9c", ""),
    ],
)
def test_caption_from_a_file_name(name: str, caption: str) -> None:
    assert caption_from_name(name) == caption


def test_a_list_gives_one_row_for_each_clip_with_all_its_captions(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    table = tmp_path / "mine.csv"
    table.write_text("path,caption,start,end\na.mp4,one,,\nb.mp4,two,0,5\na.mp4,three,,\na.mp4,one,,\nb.mp4,four,5,9\n")
    own = read_clips(table)
    assert [(row.video, row.clip.start, row.clip.end, row.captions) for row in own.examples] == [
        ("a.mp4", 0.0, None, ("one", "three")), ("b.mp4", 0.0, 5.0, ("two",)), ("b.mp4", 5.0, 9.0, ("four",)),
    ]  # fmt: skip
    assert own.root == tmp_path / "videos"
    assert own.origin == "mine.csv"
    assert read_clips(table, tmp_path).examples[0].clip.path == tmp_path / "a.mp4"


def test_a_folder_gives_its_list_or_texts_or_file_names(tmp_path: Path) -> None:
    for name in ("a red disc.mp4", "deep/IMG_0001.mp4", "IMG_0002.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    named = read_clips(tmp_path)
    assert {row.video: row.captions for row in named.examples} == {
        "a red disc.mp4": ("a red disc",), "deep/IMG_0001.mp4": ("deep",),
    }  # fmt: skip
    assert named.uncaptioned == ("IMG_0002.mp4",)
    for path in tmp_path.rglob("*.mp4"):
        path.with_suffix(".txt").write_text("it rains\nwater falls\n")
    beside = read_clips(tmp_path)
    assert {row.captions for row in beside.examples} == {("it rains", "water falls")}
    assert len(beside.examples) == 3
    (tmp_path / "captions.csv").write_text("file,text\nIMG_0002.mp4,snow\n")
    assert [row.captions for row in read_clips(tmp_path).examples] == [("snow",)]


def test_missing_captions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has neither a list of captions \(captions.csv\) nor a video"):
        read_clips(tmp_path)
    (tmp_path / "IMG_0001.mp4").touch()
    with pytest.raises(DataError, match=r"no captions: .* names such as IMG_0001.mp4 do not describe a video"):
        read_clips(tmp_path)
    (tmp_path / "b.mp4").touch()
    (tmp_path / "b.txt").write_text("a boat")
    with pytest.raises(AnnotationError, match=r"has no IMG_0001.txt"):  # not left out in silence
        read_clips(tmp_path)
    with pytest.raises(AnnotationError, match="no such annotation file"):
        read_clips(tmp_path / "none.csv")
    (tmp_path / "list.csv").write_text("a,b\n1,2\n")
    with pytest.raises(AnnotationError, match=r"list.csv:2: has no column for the video"):
        read_clips(tmp_path / "list.csv")


def rows(folder: Path, *names: str) -> list[Example]:
    return [Example(key=name, video=name, clip=Clip(folder / name), captions=("a disc",)) for name in names]


def test_a_file_that_timed_out_or_crashed_is_checked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = Counter[str]()

    def check(_: DecoderPool, path: Path) -> Finding:
        asked[path.name] += 1
        if path.name == "stopped.mp4" and asked[path.name] == 1:
            return Finding("timeout", "not decoded within 8 s")
        if path.name == "hangs.mp4":
            return Finding("crashed", "the decoder died")
        return Finding("corrupt", "no frames") if path.name == "broken.mp4" else Finding("ok")

    monkeypatch.setattr(DecoderPool, "check", check)
    readable, bad = check_videos(rows(tmp_path, "good.mp4", "stopped.mp4", "hangs.mp4", "broken.mp4"))
    assert [row.key for row in readable] == ["good.mp4", "stopped.mp4"]
    assert {line["path"].rpartition("/")[2]: line["status"] for line in bad} == {
        "hangs.mp4": "crashed", "broken.mp4": "corrupt",
    }  # fmt: skip
    assert asked == {"good.mp4": 1, "stopped.mp4": 2, "hangs.mp4": 2, "broken.mp4": 1}
    with pytest.raises(DataError, match=r"none of 1 videos can be read; the first: .*broken\.mp4: no frames"):
        check_videos(rows(tmp_path, "broken.mp4"))


def test_clips_that_timed_out_are_decoded_again(
    monkeypatch: pytest.MonkeyPatch, small_world: Path, tmp_path: Path
) -> None:
    from evilm.data.pixels import FilePixels

    whole, asked = FilePixels.read, Counter[str]()

    def read(self: FilePixels, job: Job, count: int) -> Any:
        name = job.clip.path.name
        asked[name] += 1
        if name == "video1.mp4" or (name == "video0.mp4" and asked[name] == 1):
            raise VideoError(job.clip.path, "timeout", "not decoded within 9 s")
        return whole(self, job, count)

    monkeypatch.setattr(FilePixels, "read", read)
    given = rows(small_world / "videos", "video0.mp4", "video1.mp4", "video2.mp4")
    source = SourceConfig(reader="captions", annotations=tmp_path / "train.jsonl")
    data = DataConfig(train=source, cache=tmp_path / "cache", cached_frames=2, workers=0)
    rows_left, failed = cache_frames(given, data, 32)
    assert [row.key for row in rows_left] == ["video0.mp4", "video2.mp4"]
    [line] = failed
    assert (line["path"].rpartition("/")[2], line["status"]) == ("video1.mp4", "timeout")
    assert asked == {"video0.mp4": 2, "video1.mp4": 2, "video2.mp4": 1}
    store = FrameCache(tmp_path / "cache", [row.clip for row in given], size=32, cached_frames=2)
    assert store.frames_of(store.row(given[0].clip)) is not None
    assert cache_frames(given, data.model_copy(update={"cache": None}), 32) == (tuple(given), [])


def row(name: str, start: float = 0.0, folder: Path = Path("videos")) -> Example:
    return Example(key=f"{name} {start}", video=name, clip=Clip(folder / name, start), captions=(name,))


def test_the_split_does_not_depend_on_the_order_of_clips() -> None:
    rows = [row(f"{i}.mp4") for i in range(50)]
    train, held = split(rows, 0.2, 3)
    assert (len(train), len(held)) == (40, 10)
    again = split(rows[::-1], 0.2, 3)
    assert {each.key for each in again[1]} == {each.key for each in held}
    other = split(rows, 0.2, 4)
    assert {each.key for each in other[1]} != {each.key for each in held}
    assert [each.key for each in (*train, *held)] != [each.key for each in rows]
    assert {*train, *held} == {*rows}


def test_parts_and_copies_of_a_video_are_on_one_side(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i}.mp4").write_bytes(bytes([i]) * 9)
        (tmp_path / f"copy of {i}.mp4").write_bytes(bytes([i]) * 9)
    rows = [row(f"{i}.mp4", start, tmp_path) for i in range(12) for start in (0.0, 5.0)]
    rows += [row(f"copy of {i}.mp4", 0.0, tmp_path) for i in range(12)]
    for seed in range(5):
        train, held = split(rows, 0.25, seed)
        assert len(held) == 9
        of = [{each.video.removeprefix("copy of ") for each in side} for side in (train, held)]
        assert not of[0] & of[1]


def test_still_pictures_are_split() -> None:
    rows = [Example(str(i), f"{i}", Clip(Path("stills") / str(i), frames=("1.jpg", "2.jpg"))) for i in range(10)]
    rows += [Example(f"p{i}", f"p{i}", Clip(Path("pictures"), frames=(f"{i}.jpg",))) for i in range(10)]
    train, held = split(rows)
    assert (len(train), len(held)) == (16, 4)


def test_too_few_videos_are_refused() -> None:
    with pytest.raises(DataError, match=r"7 different videos are too few .* at least 8"):
        split([row(f"{i}.mp4", start) for i in range(7) for start in (0.0, 1.0)])
    with pytest.raises(DataError, match="too few"):
        split([row(f"{i}.mp4") for i in range(8)], 0.9)
    assert [len(side) for side in split([row(f"{i}.mp4") for i in range(8)])] == [6, 2]
    assert [len(side) for side in split([row(f"{i}.mp4") for i in range(9000)])] == [8500, 500]


def captioned_row(*captions: str) -> Example:
    return Example(key=captions[0], video=captions[0], clip=Clip(Path("a.mp4")), captions=captions)


def test_words_are_counted_by_clip(vocabulary: Vocabulary) -> None:
    rows = [
        captioned_row("a Purple disc", "the purple disc"),
        captioned_row("a purple star"),
        captioned_row("a disc sways"),
        captioned_row("a 犬 犬"),
    ]
    found = adapt_data.count_words(vocabulary, rows)
    assert found.count == 15
    assert found.split == 6
    assert found.top == (("purple", 2), ("sways", 1), ("犬", 1))
    assert found.new == ("purple",), "one clip is too few to learn a word from"
    pieces = 15 - 4 + 3 * 6 + 5
    assert found.unknown == pytest.approx(2 / pieces)
    assert "40.0 % of 15 words are not in the model's vocabulary" in str(found)
    assert "most often: purple, sways" in str(found)


def test_new_embeddings_are_the_mean_of_the_pieces(vocabulary: Vocabulary) -> None:
    table = torch.randn(vocabulary.size, 4)
    ids = [vocabulary.pieces.index(piece) for piece in ("c", "##a", "##t")]
    assert torch.equal(adapt_data.mean_embeddings(table, vocabulary, ["cat"])[0], table[ids].mean(0))


def test_extending_does_not_change_old_words(trained: Callable[[str], Path], tmp_path: Path) -> None:
    run = checkpoint.find(trained("retrieval"))
    adapt_data.extend(run, ["zorgish", "blorps"], tmp_path / "start")
    before, after = evilm.load(run), evilm.load(tmp_path / "start")
    old = Vocabulary.load(run / "vocabulary.json")
    new = Vocabulary.load(tmp_path / "start" / "vocabulary.json")
    assert new.pieces == (*old.pieces, "zorgish", "blorps")
    assert new.pieces_of("zorgish") == [old.size]
    texts = ["a red disc moves left", "a star jumps"]
    assert np.array_equal(before.embed_texts(texts), after.embed_texts(texts))
    assert not np.allclose(before.embed_texts(["a zorgish disc"]), after.embed_texts(["a zorgish disc"]))
    about = checkpoint.read_json(tmp_path / "start" / "config.json")
    assert about["extended"] == {"from": str(run), "words": ["zorgish", "blorps"]}


def test_new_words_are_rare_in_pooled_features(vocabulary: Vocabulary, tmp_path: Path) -> None:
    tensors = {
        adapt_data.EMBEDDING: torch.randn(vocabulary.size, 4),
        adapt_data.PIECE_WEIGHTS: torch.linspace(0, 3, vocabulary.size),
    }

    def fill(to: Path) -> None:
        checkpoint.write_tensors(to / "model.safetensors", tensors)
        checkpoint.write_json(to / "config.json", {})
        vocabulary.save(to / "vocabulary.json")

    checkpoint.write(tmp_path / "old", fill)
    adapt_data.extend(tmp_path / "old", ["zorgish", "blorps"], tmp_path / "new")
    weights = checkpoint.read_tensors(tmp_path / "new" / "model.safetensors")[adapt_data.PIECE_WEIGHTS]
    assert torch.equal(weights[:-2], tensors[adapt_data.PIECE_WEIGHTS])
    assert weights[-2:].tolist() == [3, 3]


def test_a_checkpoint_without_words_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "odd"

    def fill(to: Path) -> None:
        checkpoint.write_tensors(to / "model.safetensors", {"a": torch.zeros(1)})
        Vocabulary.default().save(to / "vocabulary.json")

    checkpoint.write(folder, fill)
    with pytest.raises(CheckpointError, match=r"has no model.text_encoder.*for the 9157 pieces"):
        adapt_data.extend(folder, ["zorgish"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
