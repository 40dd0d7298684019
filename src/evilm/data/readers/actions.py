"""Actions as classes: HMDB51, UCF101 and Kinetics-400 in their own layouts, and as lists of "path frames label"."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from evilm.data.readers.places import Videos, beside, find, find_optional, video_root
from evilm.data.readers.tables import read_rows
from evilm.data.readers.text import lines, listed
from evilm.errors import AnnotationError, SplitError
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from evilm.data.readers.row import Row

_SPLITS = {"validate": "val", "validation": "val"}
_FLAGS = {"val": 0, "train": 1, "test": 2}
_FILE = re.compile(r"(.+)_test_split([1-9])\.txt")


def hmdb51(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """The videos of one split, with their class as label; classes are numbered in alphabetical order.

    ``split`` is ``train`` or ``test``, of split 1; ``train.2`` or ``test.3`` name another; ``val`` takes the videos
    that a split leaves out (flag 0 in ``<class>_test_split1.txt``, 1 is training, 2 test). Videos are
    ``<class>/<video>`` or lie together in one folder. Lists ``hmdb51_*{train,val}*split_1*.txt`` do as well.
    """
    name, _, number = split.partition(".")
    if name not in _FLAGS or number not in ("", "1", "2", "3"):
        raise SplitError(
            annotations, f"HMDB51 has no split {split!r}: train, test, val, or of another split train.2, test.3"
        )
    library = Videos(video_root(annotations, videos), ".avi")
    number = number or "1"
    folder = _within(annotations, ("testTrainMulti_7030_splits", "splits"))
    if folder.is_file():
        if _FILE.fullmatch(folder.name):
            raise AnnotationError(folder, "is the list of one class: name the folder, which has those of all")
        yield from _of_list(folder, library)
        return
    found = [match for entry in sorted(folder.iterdir()) if (match := _FILE.fullmatch(entry.name))]
    classes = sorted(match[1] for match in found if match[2] == number)
    if not classes:
        other = "val" if name == "test" else name
        list_file = find_optional(folder, (f"hmdb51*{name}*split*{number}*.txt", f"hmdb51*{other}*split*{number}*.txt"))
        if list_file is None or name == "val":
            raise SplitError(folder, f"holds no <class>_test_split{number}.txt")
        yield from _of_list(list_file, library)
        return
    for label, kind in enumerate(classes):
        nested = (library.root / kind).is_dir()
        for video in _flagged(folder / f"{kind}_test_split{number}.txt", _FLAGS[name]):
            clip = library.clip(f"{kind}/{video}" if nested else video)
            yield Example(key=f"{kind}/{video}", video=f"{kind}/{video}", clip=clip, label=label, kind=kind)


def ucf101(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """``trainlist01.txt`` and ``testlist01.txt`` with ``<class>/<video>`` lines; labels are those of ``classInd.txt``.

    ``train`` and ``test`` are those of split 1; ``train.2`` and ``test.3`` name another. The labels that the training
    lists carry must be those of ``classInd.txt``. Lists of "path frames label" do as well.

    Raises:
        AnnotationError: also where a label and ``classInd.txt`` do not agree.
    """
    name, _, number = split.partition(".")
    if name not in ("train", "test") or number not in ("", "1", "2", "3"):
        raise SplitError(
            annotations, f"UCF101 has no split {split!r}: train, test, or of another split train.2, test.3"
        )
    folder = _within(annotations, ("ucfTrainTestlist", "splits"))
    library = Videos(video_root(annotations, videos, ("UCF-101", "videos")), ".avi")
    number = number or "1"
    other = "val" if name == "test" else name
    patterns = (f"{name}list0{number}.txt", f"ucf101*{name}*split*{number}*.txt", f"ucf101*{other}*split*{number}*.txt")
    path = find(folder, patterns)
    yield from _of_list(path, library, first=1 if re.fullmatch(r"(train|test)list\d+\.txt", path.name) else 0)


def kinetics400(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """``{train,val,test}.csv`` with ``label, youtube_id, time_start, time_end``; or lists of "path<tab>label".

    A class's label is its line in ``label_map.txt`` (or ``kinetics_label_map.txt``), else its place among the classes
    of all csv files of the folder, in alphabetical order. A video is one trimmed file,
    ``[class/]<youtube_id>_000010_000020.mp4`` or ``[class/]<youtube_id>.mp4``, also below a folder of the split's name.
    Of a csv given by itself, the rows of another ``split`` are left out; in a folder they are an error.
    """
    patterns = (
        f"{split}.csv",
        f"kinetics400_{split}.csv",
        f"kinetics_{split}.csv",
        f"k400_{split}*.*",
        f"*{split}*.list",
    )
    table = find(annotations, patterns)
    library = Videos(video_root(annotations, videos))
    if table.suffix in (".list", ".tsv", ".txt"):
        yield from _of_list(table, library)
        return
    order: dict[str, int] | None = None
    for row in read_rows(table):
        told = _SPLITS.get(told, told) if (told := row.first("split")) else split
        if told != split:
            if annotations.is_dir():
                raise row.error(f"'split' is {told}, in the file of {split}")
            continue
        kind = row.first("label")
        if kind is not None and order is None:
            order = _order(table)
        if kind is not None and order is not None and kind not in order:
            raise row.error(f"'label' is {kind!r}, which label_map.txt does not have")
        name = row.text("youtube_id")
        clip = Clip(library.path(*_trimmed(row, name, kind, split)))
        label = None if kind is None or order is None else order[kind]
        yield Example(key=name, video=name, clip=clip, label=label, kind=kind)


def _trimmed(row: Row, name: str, kind: str | None, split: str) -> list[str]:
    """What the one trimmed video of a row may be called, the likeliest first."""
    start, end = (round(row.seconds(field)) for field in ("time_start", "time_end"))
    stems = (f"{name}_{start:06}_{end:06}", name)
    kinds = [""] if kind is None else ["", f"{kind}/", f"{kind.replace(' ', '_')}/"]
    return [home + folder + stem for home in ("", f"{split}/") for folder in kinds for stem in stems]


def _order(table: Path) -> dict[str, int]:
    """Class to label: by the label map beside the table, else by the alphabet over all csv files there."""
    named = _label_map(table)
    if named is not None:
        return {kind: label for label, kind in named.items()}
    kinds = {row.text("label") for path in _siblings(table) for row in read_rows(path) if row.has("label")}
    return {kind: label for label, kind in enumerate(sorted(kinds))}


def _siblings(table: Path) -> list[Path]:
    """The csv files of the other splits, beside that of one."""
    words = re.split(r"(train|val|test)", table.name, maxsplit=1)
    if len(words) != 3:
        return [table]
    return [
        path for word in ("train", "val", "test") if (path := table.with_name(words[0] + word + words[2])).is_file()
    ]


def _of_list(path: Path, library: Videos, first: int = 0) -> Iterator[Example]:
    """The lines "path label" or "path frames label" (by tab or space) of a list; a path alone has its class in it.

    Args:
        path: the list.
        library: its videos. A path is looked for as it stands, then by its last two parts, then by its name alone.
        first: the label of the first class in a list "path label"; those of three columns always count from 0.
    """
    named = _label_map(path) or {}
    numbers = {kind: label for label, kind in named.items()}
    for line, text in enumerate(lines(path), start=1):
        if not text.strip():
            continue
        name, numbered = _fields(text)
        parts = PurePosixPath(name).parts
        folder = parts[-2] if len(parts) > 1 else None
        if numbered:
            label = numbered[-1] - (first if len(numbered) == 1 else 0)
        else:
            if folder is None or folder not in numbers:
                known = "is in no folder that names its class" if folder is None else f"no class list names {folder}"
                raise AnnotationError(
                    path, f"{text.strip()!r:.80} has no label, and {known}: lines are 'path label', or 'class/file' "
                    "beside a class list", line,
                )  # fmt: skip
            label = numbers[folder]
        kind = named.get(label, folder)
        if label < 0 or (named and label not in named):
            raise AnnotationError(path, f"{text.strip()!r:.80} has label {label + first}, outside the class list", line)
        if first and folder in numbers and numbers[folder] != label:
            raise AnnotationError(
                path, f"{text.strip()!r:.80} says class {label + first}, the class list {numbers[folder] + first}", line
            )
        tried = [name, "/".join(parts[-2:]), parts[-1]] if len(parts) > 1 else [name]
        yield Example(key=name, video=name, clip=library.clip(*tried), label=label, kind=kind)


def _fields(text: str) -> tuple[str, list[int]]:
    """A line as the path before and the one or two whole numbers after it; paths may hold spaces."""
    words = text.strip().rsplit("\t" if "\t" in text.strip() else None, 2)
    numbers: list[int] = []
    while len(words) > 1 and len(numbers) < 2 and words[-1].strip().isdecimal():
        numbers.insert(0, int(words.pop()))
    if len(words) > 1:
        rest = text.strip()
        for _ in numbers:
            rest = rest.rpartition("\t" if "\t" in rest else " ")[0].rstrip()
        return _plain(rest), numbers
    return _plain(words[0].strip()), numbers


def _plain(name: str) -> str:
    """A path without .zip or .tar: published lists were made of archives of frames."""
    return name.removesuffix(".zip").removesuffix(".tar")


def _label_map(path: Path) -> dict[int, str] | None:
    """Label to class: "1 ApplyEyeMakeup" lines count from 1, plain lines from 0 in their order."""
    patterns = ("classInd.txt", "*classInd.txt", "label_map.txt", "*label_map.txt", "class_list.txt")
    listing: Path | None = beside(path, patterns)
    if listing is None:
        return None
    entries: Sequence[str] = listed(listing)
    split = [entry.partition(" ") for entry in entries]
    if entries and all(number.isdecimal() and kind.strip() for number, _, kind in split):
        found = {int(number) - 1: kind.strip() for number, _, kind in split}
    else:
        found = dict(enumerate(entries))
    if len(found) < len(entries) or len(set(found.values())) < len(entries):
        raise AnnotationError(listing, "names a class or a number twice")
    return found


def _within(annotations: Path, names: Sequence[str]) -> Path:
    """A folder of splits inside the annotations, else the annotations themselves.

    Raises:
        AnnotationError: they do not exist, or are neither a file nor a folder.
    """
    if not annotations.is_file() and not annotations.is_dir():
        raise AnnotationError(annotations, "no such folder of split files")
    return next((annotations / name for name in names if (annotations / name).is_dir()), annotations)


def _flagged(path: Path, flag: int) -> Iterator[str]:
    """The videos of a split file of HMDB51 that carry ``flag``."""
    for number, line in enumerate(lines(path), start=1):
        if not line.strip():
            continue
        video, _, mark = line.strip().rpartition(" ")
        if not video or mark not in ("0", "1", "2"):
            raise AnnotationError(path, f"{line.strip()!r:.80} is not a video followed by 0, 1 or 2", number)
        if int(mark) == flag:
            yield video.strip()
