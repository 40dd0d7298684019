"""What a data set on this disk holds, what it lacks, and whether that is what was published."""

from __future__ import annotations

import itertools
import os
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from evilm.data.readers import published, reader
from evilm.data.readers.places import beside
from evilm.data.readers.tables import read_json
from evilm.data.readers.text import listed
from evilm.errors import AnnotationError, OutputError, SplitError
from evilm.report.split_counts import SplitCounts, hashes, repeated, texts_of, video_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self, TextIO

    from evilm.types import Example

SAME_ROWS = 1000  # first rows that tell whether two splits are the same rows
EVERY = 10_000  # rows between calls of ``progress``


@dataclass(frozen=True, slots=True)
class Source:
    """What is checked: a format, its annotations, its videos; as for a reader."""

    format: str
    annotations: Path
    videos: Path | None = None

    def rows(self, split: str) -> Iterator[Example]:
        """The rows of a split, one by one."""
        return reader(self.format)(self.annotations, self.videos, split)

    def first(self, split: str, wanted: Callable[[Example], bool], count: int = 3) -> list[str]:
        """Keys of the first rows that are wanted; read again, as nothing but hashes was kept."""
        found = (example.key for example in self.rows(split) if wanted(example))
        return list(itertools.islice(dict.fromkeys(found), count))


def check(
    source: Source, missing: Path | None = None, progress: Callable[[str, int], None] | None = None
) -> dict[str, Any]:
    """Read every split of a data set once and say what is in it.

    Args:
        source: what to check.
        missing: where to list the videos that are not there, a path a line; ``missing-<format>.txt`` by default.
            Nothing is written where all are there.
        progress: called with the split and the rows read so far, now and then.

    Returns:
        JSON-able: ``rows`` (in the splits without a point in their names; the others divide the same data anew),
        ``videos``, ``found``, ``missing`` (different ones, over all splits), ``missing_list``, ``splits`` (see
        ``SplitCounts.as_json``), ``answers``, ``leaks`` and ``notes`` (what deserves a look, a line each).

    Raises:
        ConfigError: there is no such format.
        AnnotationError: an annotation file is wrong, or none is there.
        OutputError: the list of missing videos cannot be written.
    """
    listing = missing or Path(f"missing-{source.format}.txt")
    disk = Disk()
    found: list[SplitCounts] = []
    with Listing(listing) as absent:
        for counts, rows in _splits(source):
            for number, example in enumerate(rows, start=1):
                there = disk.has(example)
                counts.add(example, there)
                if not there:
                    absent.add(video_of(example))
                if progress is not None and number % EVERY == 0:
                    progress(counts.name, number)
            found.append(counts)
    distinct = int(np.unique(np.concatenate([hashes(counts.videos) for counts in found])).size)
    splits = {counts.name: counts.as_json(source.format) for counts in found}
    leaks = [_leak(source, one, other) for one, other in _divided(source.format, found)]
    answers = _answers(source, found)
    return {
        "format": source.format,
        "annotations": str(source.annotations),
        "rows": sum(len(counts) for counts in found if "." not in counts.name),
        "videos": distinct,
        "found": distinct - len(absent),
        "missing": len(absent),
        "missing_list": str(listing) if absent else None,
        "splits": splits,
        "answers": answers,
        "leaks": leaks,
        "notes": [*_notes(source, found, splits), *(_said(leak) for leak in leaks if leak["videos"])],
    }


def _splits(source: Source) -> list[tuple[SplitCounts, Iterator[Example]]]:
    """Each split there is, with its rows.

    Annotations that say nothing of splits give the same rows for each of them: that is one split, called by what the
    name of the file tells.
    """
    found: list[tuple[SplitCounts, Iterator[Example]]] = []
    heads: list[list[tuple[str, str]]] = []
    first: SplitError | None = None
    for split in published.splits(source.format):
        rows = source.rows(split)
        try:
            head = list(itertools.islice(rows, SAME_ROWS))
        except SplitError as error:
            first = first or error
            continue
        if head:
            heads.append([(example.key, example.clip.id) for example in head])
            found.append((SplitCounts(split, split), itertools.chain(head, rows)))
    if not found:
        tried = ", ".join(published.splits(source.format))
        raise first or AnnotationError(source.annotations, f"has no rows in any of the splits {tried}")
    if len(found) > 1 and all(head == heads[0] for head in heads):
        found[0][0].name = _named(source.annotations)
        return found[:1]
    return found


def _named(annotations: Path) -> str:
    """The split that a file's name tells, else ``all``."""
    words = {"train": "train", "val": "val", "dev": "val", "test": "test"}
    name = annotations.stem.lower() if annotations.is_file() else ""
    return next((split for word, split in words.items() if word in name), "all")


class Disk:
    """Which files there are; each folder is listed once."""

    def __init__(self) -> None:
        self._folders: dict[str, frozenset[str] | None] = {}

    def has(self, example: Example) -> bool:
        """Whether the video, or each of its still frames, is there; of a tar its reader has seen the members."""
        path = str(example.clip.path)
        inside = self._listing(path) if example.clip.frames else None
        if inside is not None:
            return all(frame in inside for frame in example.clip.frames)
        folder, file = posixpath.split(path)
        return file in (self._listing(folder or ".") or ())

    def _listing(self, folder: str) -> frozenset[str] | None:
        """The names in a folder; None where it is none."""
        if folder not in self._folders:
            try:
                self._folders[folder] = frozenset(os.listdir(folder))  # noqa: PTH208, nothing but names is needed
            except (OSError, ValueError):
                self._folders[folder] = None
        return self._folders[folder]


class Listing:
    """The list of missing videos, a path a line, each once; whole or not at all, and no file where there are none.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(path.name + ".tmp")
        self._file: TextIO | None = None
        self._known: set[int] = set()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, name: str) -> None:
        """List a video, unless it is listed."""
        if hash(name) in self._known:
            return
        self._known.add(hash(name))
        try:
            if self._file is None:
                self._file = self._temporary.open("w", encoding="utf-8", errors="surrogateescape")
            self._file.write(f"{name}\n")
        except OSError as error:
            raise self._error(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._file is None:
            return
        try:
            self._file.close()
            if kind is None:
                os.replace(self._temporary, self.path)
            else:
                self._temporary.unlink(missing_ok=True)
        except OSError as error:
            if kind is None:
                raise self._error(error) from None

    def _error(self, error: OSError) -> OutputError:
        said = f"the list of missing videos cannot be written: {error.strerror}; name another with --missing"
        return OutputError(f"{self.path}: {said}")


def _divided(name: str, found: list[SplitCounts]) -> Iterator[tuple[SplitCounts, SplitCounts]]:
    """The pairs of splits that may share no video."""
    there = {counts.name: counts for counts in found}
    pairs = [pair for division in published.divisions(name) for pair in itertools.combinations(division, 2)]
    yield from ((there[one], there[other]) for one, other in pairs if one in there and other in there)


def _leak(source: Source, one: SplitCounts, other: SplitCounts) -> dict[str, Any]:
    """What two splits share: videos (with the first rows of the second that have them) and captions or questions."""
    shared: set[int] = set(np.intersect1d(hashes(one.videos), hashes(other.videos)).tolist())
    spoken = int(np.isin(hashes(other.spoken), np.unique(hashes(one.spoken))).sum())
    rows = source.first(other.asked, lambda example: hash(video_of(example)) in shared) if shared else []
    return {"splits": [one.name, other.name], "videos": len(shared), "first_rows": rows, "texts": spoken}


def _said(leak: dict[str, Any]) -> str:
    one, other = leak["splits"]
    return (
        f"{one} and {other} share {leak['videos']:,} videos; in {other} the first rows: {', '.join(leak['first_rows'])}"
    )


def _answers(source: Source, found: list[SplitCounts]) -> dict[str, Any] | None:
    """How much of each split the answer vocabulary covers, in percent: the published list's, else training's own."""
    asked = {counts.name: counts.answers for counts in found if counts.answers}
    if not asked:
        return None
    path = beside(source.annotations, published.ANSWER_FILES) if source.format in published.ANSWERS else None
    size = published.ANSWERS.get(source.format, 1500)
    if path is not None:
        known, origin = _vocabulary(path), path.name
    elif "train" in asked:
        # As the task ranks them: by how often they come, then by the alphabet.
        ranked = sorted(asked["train"], key=lambda answer: (-asked["train"][answer], answer))
        known, origin = set(ranked[:size]), f"the {min(size, len(ranked)):,} most frequent of train"
    else:
        return {"size": None, "from": None, "covered": {}}
    covered = {
        name: round(100 * sum(times for answer, times in answers.items() if answer in known) / answers.total(), 2)
        for name, answers in asked.items()
    }
    return {"size": len(known), "from": origin, "covered": covered}


def _vocabulary(path: Path) -> set[str]:
    """The answers of a published file: a json table of answer to label, or one a line."""
    if path.suffix != ".json":
        return set(listed(path))
    data: Any = read_json(path)
    if not isinstance(data, dict):
        raise AnnotationError(path, "is not a json table of answers to labels")
    return set(cast("dict[str, Any]", data))


def _notes(source: Source, found: list[SplitCounts], splits: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What deserves a look, a line each; leaks aside."""
    for counts in found:
        name, told = counts.name, splits[counts.name]
        known = told.get("published")
        if known and not known["agrees"]:
            sizes = " or ".join(f"{rows:,}" for rows in known["rows"])
            yield f"{name} has {told['rows']:,} rows of {told['videos']:,} videos, published are {sizes} rows"
        if counts.bare:
            yield f"{name} has {counts.bare:,} rows with no caption, question or label: nothing is learned from them"
        if count := told["repeated"]["keys"]:
            twice = repeated(counts.keys)
            rows = source.first(counts.asked, lambda example, twice=twice: twice(hash(example.key)))
            yield f"{name} has {count:,} rows whose key was there before, such as {', '.join(rows)}"
        if count := told["repeated"]["texts"]:
            again = repeated(counts.texts)
            rows = source.first(counts.asked, lambda example, again=again: _says_again(example, again))
            yield f"{name} says {count:,} captions or questions of a video again, such as in {', '.join(rows)}"


def _says_again(example: Example, again: Callable[[int], bool]) -> bool:
    video = hash(video_of(example))
    return any(again(hash((video, text))) for text in texts_of(example))
