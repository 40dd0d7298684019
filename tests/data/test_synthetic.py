"""Synthetic data sets: files, videos, interrupted and repeated generation."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import subprocess
import sys
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest

from evilm.data.synthetic import SIMPLE, Plan, WorldSummary, build, relevance
from evilm.data.synthetic.scene import FRAME, FRAMES, NEW_ACTION, NEW_COLOUR, RATE, compose, track
from evilm.errors import AnnotationError, OutputError

if TYPE_CHECKING:
    from pathlib import Path

CLIPS, VAL, TEST = 80, 10, 20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> WorldSummary:
    return build(tmp_path_factory.mktemp("worlds") / "world", CLIPS, 3, val=VAL, test=TEST, workers=1)


def _annotations(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".mp4"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_summary_and_card(world: WorldSummary) -> None:
    assert world.splits == {"train": CLIPS - VAL - TEST, "val": VAL, "test": TEST}
    assert (world.captions, world.choices, world.rendered) == (5 * CLIPS, 2 * CLIPS, CLIPS)
    assert 2 * CLIPS <= world.questions <= 6 * CLIPS  # looks and action of each; the rest where it is fair
    card = json.loads((world.path / "world.json").read_text())
    assert card["complete"] is True
    assert card["plan"] == {"clips": CLIPS, "seed": 3, "val": VAL, "test": TEST, "novel": 0.5}
    assert card["counts"]["novel"] == {"train": 0, "val": VAL // 2, "test": TEST // 2}
    digests = _annotations(world.path)
    del digests["world.json"]
    assert card["sha256"] == digests


def test_workers_do_not_change_a_byte(world: WorldSummary, tmp_path: Path) -> None:
    again = build(tmp_path / "again", CLIPS, 3, val=VAL, test=TEST, workers=2)
    assert _annotations(again.path) == _annotations(world.path)
    assert build(tmp_path / "other", CLIPS, 4, val=VAL, test=TEST, workers=1).path.is_dir()
    assert _annotations(tmp_path / "other")["world.jsonl"] != _annotations(world.path)["world.jsonl"]


def test_videos_decode(world: WorldSummary) -> None:
    assert len(list((world.path / "videos").iterdir())) == CLIPS
    for index in range(0, CLIPS, 16):
        with av.open(str(world.path / "videos" / f"video{index}.mp4")) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.codec_context.pix_fmt == "yuv420p"
            assert float(stream.duration * stream.time_base) == pytest.approx(FRAMES / RATE) == pytest.approx(3.0)
            shapes = [frame.to_ndarray(format="rgb24").shape for frame in container.decode(stream)]
        assert shapes == [(FRAME, FRAME, 3)] * FRAMES


def _rows(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines, delimiter=delimiter))


def test_published_layouts(world: WorldSummary) -> None:
    out = world.path
    records = [json.loads(line) for line in (out / "world.jsonl").read_text().splitlines()]
    first = {record["video"]: record["captions"][0]["text"] for record in records}

    webvid = _rows(out / "results_train.csv")
    assert len(webvid) == CLIPS - VAL - TEST
    for row in webvid:
        assert (out / row["page_dir"] / f"{row['videoid']}.mp4").is_file()
        assert row["name"] == first[row["videoid"]]

    msrvtt = json.loads((out / "MSRVTT_data.json").read_text())
    assert [video["split"] for video in msrvtt["videos"]].count("validate") == VAL
    assert len(msrvtt["sentences"]) == 5 * CLIPS
    jsfusion = _rows(out / "MSRVTT_JSFUSION_test.csv")
    assert [(row["key"], row["vid_key"]) for row in jsfusion[:2]] == [("ret0", "msr60"), ("ret1", "msr61")]
    assert [row["sentence"] for row in jsfusion] == [first[row["video_id"]] for row in jsfusion]

    questions = json.loads((out / "test_qa.json").read_text())
    assert {row["video_id"] for row in questions} == set(range(CLIPS - TEST, CLIPS))
    assert len({row["id"] for row in questions}) == len(questions)
    choices = [json.loads(line) for line in (out / "mc_test.jsonl").read_text().splitlines()]
    assert all(len(set(row["options"])) == 5 and 0 <= row["answer"] < 5 for row in choices)

    action = _rows(out / "Test_action_question.csv", "\t")
    assert len(action) == TEST
    assert list(action[0]) == "gif_name question a1 a2 a3 a4 a5 answer vid_id key".split()
    frames = _rows(out / "Train_frameqa_question.csv", "\t")
    assert list(frames[0]) == "gif_name question answer type vid_id key description".split()
    moves = _rows(out / "Train_transition_question.csv", "\t")
    assert 0 < len(moves) < CLIPS

    listed = [
        line for name in SIMPLE
        for line in (out / "splits" / f"{name.replace(' ', '_')}_test_split1.txt").read_text().splitlines()
    ]  # fmt: skip
    assert len(listed) == sum(record["action"] in SIMPLE for record in records)
    flags = {"train": "1", "val": "0", "test": "2"}
    split = {record["video"]: record["split"] for record in records}
    for line in listed:
        name, flag, end = line.split(" ")
        assert (flag, end) == (flags[split[name.removesuffix(".mp4")]], "")


def test_relevance(world: WorldSummary) -> None:
    rows = _rows(world.path / "MSRVTT_JSFUSION_test.csv")
    true = relevance(world.path / "world.jsonl", [row["sentence"] for row in rows], [row["video_id"] for row in rows])
    assert true.shape == (TEST, TEST)
    assert true.diagonal().all()
    assert true.sum() < 3 * TEST
    with pytest.raises(AnnotationError, match="no caption 'a cat'"):
        relevance(world.path / "world.jsonl", ["a cat"], [])
    with pytest.raises(AnnotationError, match="no clip 'video999'"):
        relevance(world.path / "world.jsonl", [], ["video999"])
    with pytest.raises(AnnotationError, match="cannot be read"):
        relevance(world.path / "nowhere.jsonl", [], [])


def test_a_finished_data_set_is_kept_and_a_damaged_one_repaired(tmp_path: Path) -> None:
    out = tmp_path / "world"
    seen: list[tuple[int, int]] = []
    build(out, 12, 0, workers=1, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (12, 12)
    before = _annotations(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert build(out, 12, 0, workers=1).rendered == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times

    (out / "videos" / "video4.mp4").unlink()
    (out / "train_qa.json").write_text("[]")
    (out / "videos" / ".video5.mp4.1.tmp").write_bytes(b"half")
    assert build(out, 12, 0, workers=1).rendered == 1
    assert _annotations(out) == before


def test_an_interrupted_call_is_continued(tmp_path: Path) -> None:
    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "cut", 70, 1, workers=1, progress=stop)
    assert json.loads((tmp_path / "cut" / "world.json").read_text())["complete"] is False
    assert build(tmp_path / "cut", 70, 1, workers=1).rendered == 70 - 32
    assert build(tmp_path / "whole", 70, 1, workers=1).rendered == 70
    assert _annotations(tmp_path / "cut") == _annotations(tmp_path / "whole")


def test_invalid_arguments_and_folders_are_refused(world: WorldSummary, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"holds another data set.*seed 3, not 5"):
        build(world.path, CLIPS, 5, val=VAL, test=TEST)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        build(tmp_path / "file", 10, 0)
    with pytest.raises(OutputError, match="not a synthetic data set"):
        build(tmp_path, 10, 0)
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "world.json").write_text("{}")
    with pytest.raises(OutputError, match="is not of a synthetic data set"):
        build(tmp_path / "fake", 10, 0)
    for arguments in ({"clips": 0}, {"clips": 5, "test": 5}, {"clips": 10, "val": -1}):
        with pytest.raises(OutputError, match="are too few for"):
            build(tmp_path / "new", seed=0, **arguments)
    with pytest.raises(OutputError, match="between 0 and 1"):
        build(tmp_path / "new", 10, 0, novel=1.5)
    with pytest.raises(OutputError, match="workers = 0"):
        build(tmp_path / "new", 10, 0, workers=0)
    assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fake", "file"]


def test_unseen_colours_and_actions(world: WorldSummary, tmp_path: Path) -> None:
    made = build(tmp_path / "new", 40, 5, val=4, test=6, unseen=True, workers=1)
    records = [json.loads(line) for line in (made.path / "world.jsonl").read_text().splitlines()]
    mains = [record["scene"]["things"][0] for record in records]
    assert {(main["colour"] == NEW_COLOUR, main["action"] == NEW_ACTION) for main in mains} == {
        (True, False), (False, True),
    }  # fmt: skip
    said = " ".join(caption["text"] for record in records for caption in record["captions"])
    assert "purple" in said
    assert "swaying" in said
    usual = (world.path / "world.jsonl").read_text()
    assert not any(word in usual for word in ("purple", "sway", "from side to side"))
    # It is to and fro in the middles of four segments, which is when a model of four frames looks.
    x = track(["sways"], 13.0, random.Random(0)).x[[3, 9, 14, 20]]
    assert min(abs(x)) > 15
    assert (np.sign(x[:-1]) == -np.sign(x[1:])).all()
    with pytest.raises(OutputError, match="holds another data set"):
        build(made.path, 40, 5, val=4, test=6)


def test_needs_no_torch() -> None:
    code = "import sys, evilm.data.synthetic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _centres(path: Path, rgb: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Centre (T, 2) and area (T,) of the pixels near a colour."""
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)
    near = abs(frames - np.array(rgb)).max(-1) < 45
    area = near.sum((1, 2))
    down, across = np.mgrid[:FRAME, :FRAME]
    centre = np.stack([(near * axis).sum((1, 2)) / np.maximum(area, 1) for axis in (across, down)], -1)
    return centre, area


def _acts(action: str, centre: np.ndarray, area: np.ndarray) -> bool:
    """Whether the centres and areas of a thing look like an action."""
    (right, down), grown = centre[-1] - centre[0], area[-1] / area[0]
    steps = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}
    if action in steps:
        across, along = steps[action]
        return right * across + down * along > 30 and abs(right * along) + abs(down * across) < 3
    if action.startswith("jumps"):
        high = centre[:, 1].max() - centre[:, 1] > 15
        return (np.diff(high.astype(int)) == 1).sum() == {"once": 1, "twice": 2}.get(action.split()[1], 3)
    return {
        "grows": grown > 3,
        "shrinks": grown < 1 / 3,
        "blinks": area.min() < 0.2 * area.max(),
        "stays still": np.ptp(centre, 0).max() < 2,
        "moves in a loop": np.ptp(centre, 0).min() > 30 and np.hypot(right, down) < 6,
        "spins": np.hypot(right, down) < 6,
    }[action]


def test_pixels_follow_the_scene(world: WorldSummary) -> None:
    """Read back from the decoded video, by colour: what moves, where, and what changes its size."""
    rgb = {"red": (214, 20, 32), "blue": (24, 64, 235), "white": (252, 252, 252), "green": (12, 165, 48)}
    plan = Plan(CLIPS, 3, VAL, TEST, 0.5)
    checked = set[str]()
    for index in range(CLIPS):
        thing = compose(3, index, plan.novelty(index)).main
        if thing.colour in rgb and thing.action in SIMPLE:
            centre, area = _centres(world.path / "videos" / f"video{index}.mp4", rgb[thing.colour])
            assert _acts(thing.action, centre, area), f"video{index}: {thing}"
            checked.add(thing.action)
    assert len(checked) >= 8
