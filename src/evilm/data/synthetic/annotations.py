"""Annotation files of a synthetic data set, in the formats of published data sets.

They are made from records, one for each clip; equal records give equal bytes.
"""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

from evilm.data.synthetic.scene import FRAMES, RATE, SIMPLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Record = dict[str, Any]
SPLITS = ("train", "val", "test")
VIDEOS = "videos"
_FRAMEQA_TYPES = {"shape": 0, "count": 1, "colour": 2, "place": 3}
_MSRVTT_SPLITS = {"train": "train", "val": "validate", "test": "test"}


def annotation_files(records: Sequence[Record]) -> dict[str, bytes]:
    """Every annotation file: its relative path and its bytes."""
    fields = ("video", "split", "novelty", "action", "scene", "captions")
    files = {"world.jsonl": _lines(_dump({key: record[key] for key in fields}) for record in records)}
    files["MSRVTT_data.json"] = _msrvtt(records)
    files["MSRVTT_JSFUSION_test.csv"] = _jsfusion([record for record in records if record["split"] == "test"])
    for split in SPLITS:
        chosen = [record for record in records if record["split"] == split]
        files[f"results_{split}.csv"] = _webvid(chosen)
        files[f"captions_{split}.txt"] = _lines(caption["text"] for record in chosen for caption in record["captions"])
        files[f"{split}_qa.json"] = _questions(chosen)
        files[f"mc_{split}.jsonl"] = _choices(chosen)
        files[f"{split.capitalize()}_action_question.csv"] = _tgif_choices(chosen, "actions", "ACTION")
        files[f"{split.capitalize()}_transition_question.csv"] = _tgif_choices(chosen, "transitions", "TRANSITION")
        files[f"{split.capitalize()}_frameqa_question.csv"] = _tgif_frames(chosen)
    for action in SIMPLE:
        files[f"splits/{action.replace(' ', '_')}_test_split1.txt"] = _hmdb(records, action)
    return files


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def _webvid(records: Sequence[Record]) -> bytes:
    duration = f"PT00H00M{FRAMES // RATE:02d}S"
    rows = [(record["video"], "", duration, VIDEOS, record["captions"][0]["text"]) for record in records]
    return _table(("videoid", "contentUrl", "duration", "page_dir", "name"), rows)


def _msrvtt(records: Sequence[Record]) -> bytes:
    videos: list[Record] = []
    sentences: list[Record] = []
    for record in records:
        videos.append({
            "category": _category(record), "url": "", "video_id": record["video"], "start time": 0.0,
            "end time": FRAMES / RATE, "split": _MSRVTT_SPLITS[record["split"]], "id": record["index"],
        })  # fmt: skip
        for caption in record["captions"]:
            sentences.append({"caption": caption["text"], "video_id": record["video"], "sen_id": len(sentences)})
    info = {"contributor": "evilm", "version": "1", "description": "procedural video world", "url": ""}
    return (_dump({"info": info, "videos": videos, "sentences": sentences}) + "\n").encode()


def _category(record: Record) -> int:
    """The number of the action class; all sequences share the one after the last simple action."""
    return SIMPLE.index(record["action"]) if record["action"] in SIMPLE else len(SIMPLE)


def _jsfusion(records: Sequence[Record]) -> bytes:
    rows = [
        (f"ret{row}", f"msr{record['index']}", record["video"], record["captions"][0]["text"])
        for row, record in enumerate(records)
    ]
    return _table(("key", "vid_key", "video_id", "sentence"), rows)


def _questions(records: Sequence[Record]) -> bytes:
    rows = [
        {
            "answer": item["answer"], "category_id": _category(record), "id": item["id"],
            "question": item["question"], "video_id": record["index"],
            "kind": item["kind"], "temporal": item["temporal"],
        }
        for record in records
        for item in record["questions"]
    ]  # fmt: skip
    return (_dump(rows) + "\n").encode()


def _choices(records: Sequence[Record]) -> bytes:
    rows = [
        {
            "qid": choice["id"], "clip_name": record["video"], "options": choice["options"],
            "answer": choice["answer"], "kind": choice["kind"], "temporal": choice["temporal"],
        }
        for record in records
        for choice in record["choices"]
    ]  # fmt: skip
    return _lines(map(_dump, rows))


def _tgif_choices(records: Sequence[Record], field: str, prefix: str) -> bytes:
    header = ("gif_name", "question", "a1", "a2", "a3", "a4", "a5", "answer", "vid_id", "key")
    rows = [
        (record["video"], choice["question"], *choice["options"], choice["answer"], f"{prefix}{choice['id']}",
         choice["id"])
        for record in records
        for choice in record[field]
    ]  # fmt: skip
    return _table(header, rows, "\t")


def _tgif_frames(records: Sequence[Record]) -> bytes:
    header = ("gif_name", "question", "answer", "type", "vid_id", "key", "description")
    rows = [
        (record["video"], item["question"], item["answer"], _FRAMEQA_TYPES[item["kind"]], f"FRAMEQA{item['id']}",
         item["id"], record["captions"][0]["text"])
        for record in records
        for item in record["questions"]
        if item["kind"] in _FRAMEQA_TYPES
    ]  # fmt: skip
    return _table(header, rows, "\t")


def _hmdb(records: Sequence[Record], action: str) -> bytes:
    """The list of one class: 1 is train, 2 is test, 0 is neither (validation); published lines end in a space."""
    flags = {"train": 1, "val": 0, "test": 2}
    return _lines(
        f"{record['video']}.mp4 {flags[record['split']]} " for record in records if record["action"] == action
    )
