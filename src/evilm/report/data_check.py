"""``evilm data check``: rows, videos and missing files of a data set, compared with the published counts."""

from __future__ import annotations

import itertools
import os
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from rich.table import Table

from evilm.data.readers import reader
from evilm.data.readers.places import find_beside
from evilm.data.readers.tables import read_json, read_names
from evilm.errors import AnnotationError, OutputError, SplitError
from evilm.report.split_counts import SplitCounts, hashes, is_repeated, published, texts_of, video_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self, TextIO

    from evilm.types import Example

SAME_ROWS = 1000  # two splits with the same first rows are the same rows
EVERY = 10_000  # rows between calls of ``progress``


@dataclass(frozen=True, slots=True)
class Source:
    """The data set to check: a reader and its arguments."""

    format: str
    annotations: Path
    videos: Path | None = None

    def rows(self, split: str) -> Iterator[Example]:
        return reader(self.format)(self.annotations, self.videos, split)

    def first_keys(self, split: str, wanted: Callable[[Example], bool], count: int = 3) -> list[str]:
        """Keys of the first wanted rows. The split is read again, as only hashes of its rows are kept."""
        keys = (example.key for example in self.rows(split) if wanted(example))
        return list(itertools.islice(dict.fromkeys(keys), count))


def check(
    source: Source, missing: Path | None = None, progress: Callable[[str, int], None] | None = None
) -> dict[str, Any]:
    """Read every split of a data set once and count its content.

    Args:
        source: the data set.
        missing: file to list missing videos in, a path a line; ``missing-<format>.txt`` by default. It is not written
            if no video is missing.
        progress: called with the split and the number of rows read so far.

    Returns:
        JSON-able. ``rows``, ``videos``, ``found`` and ``missing`` count the splits without a dot in their names; the
        others, such as HMDB51's ``train.2``, divide the same data again. ``listed`` counts the missing videos of all
        splits, in the file ``missing_list``. ``splits`` (see ``SplitCounts.as_json``), ``answers``, ``leaks``,
        ``notes``.

    Raises:
        ConfigError: there is no such format.
        AnnotationError: an annotation file is wrong or missing.
        OutputError: the list of missing videos cannot be written.
    """
    listing = missing or Path(f"missing-{source.format}.txt")
    disk = _Disk()
    found: list[SplitCounts] = []
    with _Listing(listing) as absent:
        for counts, rows in _splits(source):
            for number, example in enumerate(rows, start=1):
                exists = disk.has(example)
                counts.add(example, exists)
                if not exists:
                    absent.add(video_of(example))
                if progress is not None and number % EVERY == 0:
                    progress(counts.name, number)
            found.append(counts)
    main = [counts for counts in found if "." not in counts.name]
    videos = int(np.unique(np.concatenate([hashes(counts.videos) for counts in main])).size)
    lost = int(np.unique(np.concatenate([hashes(counts.missing) for counts in main])).size)
    splits = {counts.name: counts.as_json(source.format) for counts in found}
    by_name = {counts.name: counts for counts in found}
    divisions = published()["divisions"].get(source.format, [published()["usual_splits"]])
    pairs = [pair for division in divisions for pair in itertools.combinations(division, 2)]
    leaks = [_leak(source, by_name[a], by_name[b]) for a, b in pairs if a in by_name and b in by_name]
    return {
        "format": source.format,
        "annotations": str(source.annotations),
        "rows": sum(map(len, main)),
        "videos": videos,
        "found": videos - lost,
        "missing": lost,
        "listed": len(absent),
        "missing_list": str(listing) if absent else None,
        "splits": splits,
        "answers": _answers(source, found),
        "leaks": leaks,
        "notes": [*_notes(source, found, splits), *(_leak_note(leak) for leak in leaks if leak["videos"])],
    }


def _splits(source: Source) -> list[tuple[SplitCounts, Iterator[Example]]]:
    """Each split that exists, with its rows.

    Annotations without splits give the same rows for each of them: that is one split, named by the file's name.
    """
    found: list[tuple[SplitCounts, Iterator[Example]]] = []
    heads: list[list[tuple[str, str]]] = []
    first: SplitError | None = None
    names = published()["splits"].get(source.format, published()["usual_splits"])
    for split in names:
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
        raise first or AnnotationError(source.annotations, f"has no rows in any of the splits {', '.join(names)}")
    if len(found) > 1 and all(head == heads[0] for head in heads):
        words = {"train": "train", "val": "val", "dev": "val", "test": "test"}
        name = source.annotations.stem.lower() if source.annotations.is_file() else ""
        found[0][0].name = next((split for word, split in words.items() if word in name), "all")
        return found[:1]
    return found


class _Disk:
    """Which files exist; each folder is listed once."""

    def __init__(self) -> None:
        self._folders: dict[str, frozenset[str] | None] = {}

    def has(self, example: Example) -> bool:
        """Whether the video, or each of its still frames, exists; the reader has checked the members of a tar."""
        path = str(example.clip.path)
        inside = self._listing(path) if example.clip.frames else None
        if inside is not None:
            return all(frame in inside for frame in example.clip.frames)
        folder, file = posixpath.split(path)
        return file in (self._listing(folder or ".") or ())

    def _listing(self, folder: str) -> frozenset[str] | None:
        """The names in a folder; None if it is not a folder."""
        if folder not in self._folders:
            try:
                self._folders[folder] = frozenset(os.listdir(folder))  # noqa: PTH208, only names are needed
            except (OSError, ValueError):
                self._folders[folder] = None
        return self._folders[folder]


class _Listing:
    """The list of missing videos, a path a line, each once. No file is written if there are none.

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
        reason = f"the list of missing videos cannot be written: {error.strerror}; name another with --missing"
        return OutputError(f"{self.path}: {reason}")


def _leak(source: Source, one: SplitCounts, other: SplitCounts) -> dict[str, Any]:
    """Shared videos (with the first rows of the second split that have them) and shared captions or questions."""
    shared: set[int] = set(np.intersect1d(hashes(one.videos), hashes(other.videos)).tolist())
    texts = int(np.isin(hashes(other.plain_texts), np.unique(hashes(one.plain_texts))).sum())
    keys = source.first_keys(other.requested, lambda example: hash(video_of(example)) in shared) if shared else []
    return {"splits": [one.name, other.name], "videos": len(shared), "first_rows": keys, "texts": texts}


def _leak_note(leak: dict[str, Any]) -> str:
    one, other = leak["splits"]
    rows = ", ".join(leak["first_rows"])
    return f"{one} and {other} share {leak['videos']:,} videos; in {other} the first rows: {rows}"


def _answers(source: Source, found: list[SplitCounts]) -> dict[str, Any] | None:
    """The percentage of each split's answers in the answer vocabulary: the published one, else the training split's."""
    answers = {counts.name: counts.answers for counts in found if counts.answers}
    if not answers:
        return None
    size = published()["answers"].get(source.format)
    path = find_beside(source.annotations, published()["answer_files"]) if size else None
    size = size or 1500
    if path is not None:
        known, origin = _vocabulary(path), path.name
    elif "train" in answers:
        # As the task ranks them: by frequency, then alphabetically.
        ranked = sorted(answers["train"], key=lambda answer: (-answers["train"][answer], answer))
        known, origin = set(ranked[:size]), f"the {min(size, len(ranked)):,} most frequent of train"
    else:
        return {"size": None, "from": None, "covered": {}}
    covered = {
        name: round(100 * sum(times for answer, times in counter.items() if answer in known) / counter.total(), 2)
        for name, counter in answers.items()
    }
    return {"size": len(known), "from": origin, "covered": covered}


def _vocabulary(path: Path) -> set[str]:
    """The answers of a published file: a json object of answer to label, or one a line."""
    if path.suffix != ".json":
        return set(read_names(path))
    data: Any = read_json(path)
    if not isinstance(data, dict):
        raise AnnotationError(path, "is not a json object of answers to labels")
    return set(cast("dict[str, Any]", data))


def _notes(source: Source, found: list[SplitCounts], splits: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Likely mistakes in the data, a line each; shared videos are separate."""
    for counts in found:
        name, values = counts.name, splits[counts.name]
        known = values.get("published")
        if known and not known["agrees"]:
            sizes = " or ".join(f"{rows:,}" for rows in known["rows"])
            yield f"{name} has {values['rows']:,} rows of {values['videos']:,} videos, published are {sizes} rows"
        if counts.bare:
            yield f"{name} has {counts.bare:,} rows without caption, question or label: nothing is learned from them"
        if count := values["repeated"]["keys"]:
            twice = is_repeated(counts.keys)
            keys = source.first_keys(counts.requested, lambda example, twice=twice: twice(hash(example.key)))
            yield f"{name} has {count:,} rows with the key of an earlier row, such as {', '.join(keys)}"
        if count := values["repeated"]["texts"]:
            again = is_repeated(counts.texts)

            def repeats(example: Example, again: Callable[[int], bool] = again) -> bool:
                return any(again(hash((hash(video_of(example)), text))) for text in texts_of(example))

            keys = source.first_keys(counts.requested, repeats)
            yield f"{name} has {count:,} repeated captions or questions of a video, such as in {', '.join(keys)}"


# Text for a terminal


def as_table(result: dict[str, Any]) -> Table:
    """A row for each split; columns that are empty for all are omitted."""
    table = Table(pad_edge=False)
    rows = [_cells(name, split) for name, split in result["splits"].items()]
    for heading in rows[0]:
        if any(row[heading] for row in rows):
            table.add_column(heading, justify="left" if heading in ("split", "published") else "right")
    for row in rows:
        table.add_row(*(row[str(column.header)] for column in table.columns))
    return table


def _cells(name: str, split: dict[str, Any]) -> dict[str, str]:
    captions, options, known = split.get("captions"), split.get("options"), split.get("published")
    words = captions["words"] if captions else None
    if known is None:
        compared = ""
    elif known["agrees"]:
        compared = f"as published ({known['which']})"
    else:
        compared = "differs: " + " or ".join(f"{rows:,}" for rows in known["rows"])
    return {
        "split": name,
        "rows": f"{split['rows']:,}",
        "videos": f"{split['videos']:,}",
        "missing": f"{split['missing']:,}",
        "captions": f"{captions['count']:,}" if captions else "",
        "words each": f"{_span(words['least'], words['most'])}, {words['mean']:g}" if words else "",
        "answers": f"{split['answers']:,}" if "answers" in split else "",
        "classes": f"{split['classes']:,}" if "classes" in split else "",
        "options": _span(options["least"], options["most"]) if options else "",
        "published": compared,
    }


def _span(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"


def as_lines(result: dict[str, Any]) -> list[str]:
    """The lines below the table."""
    lines = [f"{result['rows']:,} rows of {result['videos']:,} videos, {result['found']:,} of them found"]
    if result["missing_list"]:
        others = f" ({result['listed']:,} in all splits)" if result["listed"] != result["missing"] else ""
        lines.append(f"{result['missing']:,} videos are missing{others}, listed in {result['missing_list']}")
    answers = result["answers"]
    if answers and answers["size"]:
        covered = ", ".join(f"{share:g} % of {name}" for name, share in answers["covered"].items())
        lines.append(f"answers: {answers['size']:,} ({answers['from']}) cover {covered}")
    elif answers:
        lines.append("answers: their coverage is unknown, as there is no training split and no published list")
    for leak in result["leaks"]:
        one, other = leak["splits"]
        texts = f"; {leak['texts']:,} captions or questions of {other} are in {one} too, word for word"
        shared = f"{leak['videos']:,} videos" if leak["videos"] else "no video"
        lines.append(f"{one} and {other} share {shared}{texts if leak['texts'] else ''}")
    return lines + [f"note: {note}" for note in result["notes"]]
