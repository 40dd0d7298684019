"""Action classes: HMDB51, UCF101 and Kinetics-400 in their own layouts, and lists of "path frames label"."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from evilm.data.readers.captions import plain_split
from evilm.data.readers.places import VideoFolder, find_beside, find_file, find_optional, video_root
from evilm.data.readers.rows import Row
from evilm.data.readers.tables import lines, read_json, read_names, read_rows
from evilm.errors import AnnotationError, SplitError
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FLAGS = {"val": 0, "train": 1, "test": 2}
_CLASS_FILE = re.compile(r"(.+)_test_split([1-9])\.txt")
_KINETICS_SPLITS = {"train": ("train",), "val": ("val", "validate", "validation"), "test": ("test",)}


def hmdb51(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """The videos of one split, with their class as label; classes are numbered in alphabetical order.

    ``split`` is ``train`` or ``test`` of split 1, ``train.2`` or ``test.3`` of another; ``val`` takes the videos that a
    split does not use (flag 0 in ``<class>_test_split1.txt``; 1 is training, 2 is test). Videos are ``<class>/<video>``
    or all in one folder. Lists ``hmdb51_*{train,val}*split_1*.txt`` are read too.
    """
    name, _, number = split.partition(".")
    if name not in _FLAGS or number not in ("", "1", "2", "3"):
        raise SplitError(
            annotations, f"HMDB51 has no split {split!r}: train, test, val, or of another split train.2, test.3"
        )
    library = VideoFolder(video_root(annotations, videos), ".avi")
    number = number or "1"
    folder = _subfolder(annotations, ("testTrainMulti_7030_splits", "splits"))
    if folder.is_file():
        if _CLASS_FILE.fullmatch(folder.name):
            raise AnnotationError(folder, "is the list of one class: name the folder, which has those of all")
        yield from _label_list(folder, library)
        return
    matches = [match for entry in sorted(folder.iterdir()) if (match := _CLASS_FILE.fullmatch(entry.name))]
    classes = sorted(match[1] for match in matches if match[2] == number)
    if not classes:
        other = "val" if name == "test" else name
        patterns = (f"hmdb51*{name}*split*{number}*.txt", f"hmdb51*{other}*split*{number}*.txt")
        list_file = find_optional(folder, patterns)
        if list_file is None or name == "val":
            raise SplitError(folder, f"holds no <class>_test_split{number}.txt")
        yield from _label_list(list_file, library)
        return
    for label, kind in enumerate(classes):
        nested = (library.root / kind).is_dir()
        for video in _flagged(folder / f"{kind}_test_split{number}.txt", _FLAGS[name]):
            key = f"{kind}/{video}"
            yield Example(key=key, video=key, clip=library.clip(key if nested else video), label=label, kind=kind)


def _flagged(path: Path, wanted: int) -> Iterator[str]:
    """The videos of a split file of HMDB51 with the flag ``wanted``."""
    for line, text in enumerate(lines(path), start=1):
        if not text.strip():
            continue
        video, _, flag = text.strip().rpartition(" ")
        if not video or flag not in ("0", "1", "2"):
            raise AnnotationError(path, f"{text.strip()!r:.80} is not a video followed by 0, 1 or 2", line)
        if int(flag) == wanted:
            yield video.strip()


def ucf101(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """``trainlist01.txt`` and ``testlist01.txt`` with ``<class>/<video>`` lines; labels are those of ``classInd.txt``.

    ``train`` and ``test`` are those of split 1; ``train.2`` and ``test.3`` name another. The labels in the training
    lists must be those of ``classInd.txt``. Lists of "path frames label" are read too.

    Raises:
        AnnotationError: also if a label differs from ``classInd.txt``.
    """
    name, _, number = split.partition(".")
    if name not in ("train", "test") or number not in ("", "1", "2", "3"):
        raise SplitError(
            annotations, f"UCF101 has no split {split!r}: train, test, or of another split train.2, test.3"
        )
    folder = _subfolder(annotations, ("ucfTrainTestlist", "splits"))
    library = VideoFolder(video_root(annotations, videos, ("UCF-101", "videos")), ".avi")
    number = number or "1"
    other = "val" if name == "test" else name
    patterns = (f"{name}list0{number}.txt", f"ucf101*{name}*split*{number}*.txt", f"ucf101*{other}*split*{number}*.txt")
    path = find_file(folder, patterns)
    yield from _label_list(path, library, first=1 if re.fullmatch(r"(train|test)list\d+\.txt", path.name) else 0)


def kinetics400(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """Kinetics-400: csv with ``label, youtube_id, time_start, time_end``, DeepMind's json, or "path<tab>label" lists.

    The names are those published: ``{train,val,validate,test}.csv`` or ``.json`` (also in ``kinetics400/``),
    ``kinetics_train.csv``, ``kinetics400_train.csv``, ``kinetics_400_train.csv``, ``kinetics-400_train.csv``.

    A class's label is its line in ``label_map.txt`` (or ``kinetics_label_map.txt``), else its alphabetical position
    among the classes of all splits in the folder. A video is one trimmed file,
    ``[class/]<youtube_id>_000010_000020.mp4`` or ``[class/]<youtube_id>.mp4``, also below a folder named by the split.
    Rows of another ``split`` are skipped in a single file; in a folder they are an error.
    """
    folder = _subfolder(annotations, ("kinetics400",))
    table = find_file(folder, _kinetics_names(split))
    library = VideoFolder(video_root(annotations, videos))
    if table.suffix in (".list", ".tsv", ".txt"):
        yield from _label_list(table, library)
        return
    order: dict[str, int] | None = None
    for row in _kinetics_rows(table):
        row_split = plain_split(row.first("split") or split)
        if row_split != split:
            if annotations.is_dir():
                raise row.error(f"'split' is {row_split}, in the file of {split}")
            continue
        kind, label = row.first("label"), None
        if kind is not None:
            order = _kinetics_labels(table) if order is None else order
            if kind not in order:
                raise row.error(f"'label' is {kind!r}, which label_map.txt does not have")
            label = order[kind]
        name = row.text("youtube_id")
        start, end = (round(row.seconds(field)) for field in ("time_start", "time_end"))
        stems = (f"{name}_{start:06}_{end:06}", name)
        folders = [""] if kind is None else ["", f"{kind}/", f"{kind.replace(' ', '_')}/"]
        paths = [top + below + stem for top in ("", f"{split}/") for below in folders for stem in stems]
        yield Example(key=name, video=name, clip=Clip(library.path(*paths)), label=label, kind=kind)


def _kinetics_names(split: str) -> tuple[str, ...]:
    """File names of a split, as published by DeepMind, ActivityNet, CVDF and action recognition libraries."""
    words = _KINETICS_SPLITS.get(split, (split,))
    stems = [prefix + word for word in words for prefix in ("", "kinetics_", "kinetics?400_", "kinetics400_")]
    lists = [pattern for word in words for pattern in (f"k400_{word}*.*", f"*{word}*.list")]
    return (*(f"{stem}.csv" for stem in stems), *lists, *(f"{stem}.json" for stem in stems))


def _kinetics_rows(table: Path) -> Iterator[Row]:
    """The rows of a csv, or of a json ``{youtube_id: {annotations: {label, segment}, subset}}``."""
    if table.suffix != ".json":
        yield from read_rows(table, "columns label, youtube_id, time_start, time_end")
        return
    data: Any = read_json(table)
    entries = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    for number, (name, entry) in enumerate(entries.items(), start=1):
        try:
            start, end = entry["annotations"]["segment"]
            values = {"youtube_id": name, "label": entry["annotations"].get("label"), "split": entry.get("subset"),
                      "time_start": start, "time_end": end}  # fmt: skip
        except (KeyError, TypeError, ValueError):
            raise AnnotationError(
                table, f"{name!r:.60} has no annotations with a segment of two times", number
            ) from None
        yield Row(table, number, values)


def _kinetics_labels(table: Path) -> dict[str, int]:
    """Class to label, from the label map beside the table, else alphabetically over the classes of all splits."""
    names = _label_map(table)
    if names is not None:
        return {kind: label for label, kind in names.items()}
    tables = {table, *(path for split in _KINETICS_SPLITS if (path := find_beside(table, _kinetics_names(split))))}
    kinds = {row.text("label") for path in tables if path.suffix == table.suffix for row in _kinetics_rows(path)
             if row.has("label")}  # fmt: skip
    return {kind: label for label, kind in enumerate(sorted(kinds))}


def _label_list(path: Path, library: VideoFolder, first: int = 0) -> Iterator[Example]:
    """The lines "path label" or "path frames label" (by tab or space) of a list, or "class/path" lines.

    Args:
        path: the list.
        library: its videos. A path is tried whole, then its last two parts, then its name alone.
        first: the label of the first class in lines "path label"; lines of three columns count from 0.
    """
    names = _label_map(path) or {}
    labels = {kind: label for label, kind in names.items()}
    for line, text in enumerate(lines(path), start=1):
        if not text.strip():
            continue
        name, numbers = _path_and_numbers(text)
        parts = PurePosixPath(name).parts
        folder = parts[-2] if len(parts) > 1 else None
        if numbers:
            label = numbers[-1] - (first if len(numbers) == 1 else 0)
        elif folder is not None and folder in labels:
            label = labels[folder]
        else:
            known = "is in no folder that names its class" if folder is None else f"no class list names {folder}"
            raise AnnotationError(
                path, f"{text.strip()!r:.80} has no label, and {known}: lines are 'path label', or 'class/file' "
                "beside a class list", line,
            )  # fmt: skip
        kind = names.get(label, folder)
        if label < 0 or (names and label not in names):
            raise AnnotationError(path, f"{text.strip()!r:.80} has label {label + first}, outside the class list", line)
        if first and folder in labels and labels[folder] != label:
            reason = f"{text.strip()!r:.80} has label {label + first}; the class list says {labels[folder] + first}"
            raise AnnotationError(path, reason, line)
        candidates = [name, "/".join(parts[-2:]), parts[-1]] if len(parts) > 1 else [name]
        yield Example(key=name, video=name, clip=library.clip(*candidates), label=label, kind=kind)


def _path_and_numbers(text: str) -> tuple[str, list[int]]:
    """The path of a line and the one or two whole numbers after it; paths may contain spaces."""
    text = text.strip()
    separator = "\t" if "\t" in text else None
    numbers: list[int] = []
    while len(numbers) < 2 and len(words := text.rsplit(separator, 1)) == 2 and words[1].strip().isdecimal():
        numbers.insert(0, int(words[1]))
        text = words[0].rstrip()
    return text.removesuffix(".zip").removesuffix(".tar"), numbers  # some lists name archives of frames


def _label_map(path: Path) -> dict[int, str] | None:
    """Label to class: "1 ApplyEyeMakeup" lines count from 1, plain lines from 0 in their order."""
    patterns = ("classInd.txt", "*classInd.txt", "label_map.txt", "*label_map.txt", "class_list.txt")
    listing = find_beside(path, patterns)
    if listing is None:
        return None
    entries = read_names(listing)
    pairs = [entry.partition(" ") for entry in entries]
    if entries and all(number.isdecimal() and kind.strip() for number, _, kind in pairs):
        names = {int(number) - 1: kind.strip() for number, _, kind in pairs}
    else:
        names = dict(enumerate(entries))
    if len(names) < len(entries) or len(set(names.values())) < len(entries):
        raise AnnotationError(listing, "names a class or a number twice")
    return names


def _subfolder(annotations: Path, names: tuple[str, ...]) -> Path:
    """A folder of splits inside the annotations, else the annotations themselves.

    Raises:
        AnnotationError: they do not exist, or are neither a file nor a folder.
    """
    if not annotations.is_file() and not annotations.is_dir():
        raise AnnotationError(annotations, "no such folder of split files")
    return next((annotations / name for name in names if (annotations / name).is_dir()), annotations)
