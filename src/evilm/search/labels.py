"""Zero-shot labels: for each segment of an index, the best of the user's own class names."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evilm.errors import QueryError
from evilm.inference.results import softmax
from evilm.search import calibration
from evilm.search.query import check_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from evilm.inference import Embedder
    from evilm.search.database import Database, Segment
    from evilm.search.searcher import Loaded

PROMPTS = ("{}", "a photo of {}", "a video of {}")  # their embeddings are averaged
_BLOCK = 4096  # segments labelled at once
_COLUMNS = ("path", "start", "end", "label", "probability", "lift")


class Label(NamedTuple):
    """The best class name of a segment.

    Attributes:
        segment: what is labelled.
        name: the class name.
        probability: softmax over all names of the cosines divided by the model's temperature.
        lift: standard deviations by which the name's cosine exceeds its mean over the index. Near or below 0, the
            segment shows this class no more than any other segment does, whatever the probability.
    """

    segment: Segment
    name: str
    probability: float
    lift: float


def read_names(path: Path) -> list[str]:
    """Class names, one a line; empty lines and lines that begin with # are left out.

    Raises:
        QueryError: the file is unreadable, has fewer than two names, or has a name twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise QueryError(f"{path}: not readable as a list of class names, one a line: {error}") from None
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name = " ".join(line.split())
        if not name or name.startswith("#"):
            continue
        if name in seen:
            raise QueryError(f"{path}:{number}: {name!r} stands in line {seen[name]} too; remove one")
        seen[name] = number
    if len(seen) < 2:
        raise QueryError(f"{path}: has {len(seen)} class names; write at least two, one a line")
    return list(seen)


def label(database: Database, loaded: Loaded, model: Embedder, names: Sequence[str]) -> Iterator[Label]:
    """The best name for each segment, in order of segment ids; see ``VideoIndex.label``."""
    texts = [prompt.format(check_text(name, model)) for name in names for prompt in PROMPTS]
    queries = model.embed_texts(texts).reshape(len(names), len(PROMPTS), -1).mean(1)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    for start in range(0, len(loaded.vectors), _BLOCK):
        ids = loaded.vectors.segment_ids[start : start + _BLOCK]
        cosines = loaded.vectors.matrix[start : start + _BLOCK] @ queries.T
        best = cosines.argmax(1)
        lifts = calibration.lifts(cosines, queries, loaded.sample)
        found = {segment.id: segment for segment in database.segments([int(number) for number in ids])}
        for row, number in enumerate(ids):
            if number in found:  # else it was removed since the vectors were read
                name = best[row]
                share = softmax(cosines[row] / model.temperature)[name]
                yield Label(found[int(number)], names[int(name)], float(share), float(lifts[row, name]))


def as_csv(labels: Iterator[Label]) -> Iterator[bytes]:
    """Lines of a CSV file, the column names first."""
    yield _line(_COLUMNS)
    for each in labels:
        path, start, end = each.segment.path, each.segment.start, each.segment.end
        yield _line((str(path), f"{start:.2f}", f"{end:.2f}", each.name, f"{each.probability:.4f}", f"{each.lift:.2f}"))


def _line(values: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode("utf-8", "surrogateescape")
