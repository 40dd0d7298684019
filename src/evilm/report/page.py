"""One page that shows what a run of the demo came to: no script, nothing to fetch, readable anywhere."""

from __future__ import annotations

import base64
import hashlib
import os
from importlib import resources
from typing import TYPE_CHECKING

from evilm.errors import OutputError
from evilm.progress import clock
from evilm.report import pictures, samples, sections
from evilm.report import results as numbers
from evilm.report.evidence import Evidence, spaced
from evilm.report.markup import Html, tag

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from evilm.report.results import Metric

_CONTENTS = (
    ("glance", "At a glance"), ("retrieval", "Finding clips"), ("questions", "Questions"), ("choices", "Choices"),
    ("order", "Time"), ("masked", "What is hidden"), ("codes", "Codes"), ("probe", "Actions"),
    ("training", "Learning"), ("numbers", "Every number"), ("making", "Making"),
)  # fmt: skip


def write_page(run: Path) -> Path:
    """Write ``report.html`` from ``results.json`` and what the stages left; what is missing is said to be.

    Args:
        run: a folder that ``evilm demo`` made, finished or not.

    Returns:
        The page's path.

    Raises:
        DataError: no such folder, or a file in it that is not what it should be.
        OutputError: the page cannot be written.
    """
    html = page(Evidence.of(run))
    path = run / "report.html"
    temporary = run / "report.html.tmp"
    try:
        # A caption may hold half of a surrogate pair, which no file can: it becomes a question mark.
        temporary.write_bytes(html.encode("utf-8", "replace"))
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written ({error}); give the run a folder with room") from None
    return path


def page(evidence: Evidence) -> str:
    """The whole document."""
    metrics = numbers.read(evidence.results)
    style = (resources.files("evilm.report") / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    # Nothing but pictures within the page and this very style sheet, whatever a caption may hold.
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content="evilm demo"),
        tag("title", "E-ViLM: a run of the demo"),
        tag("style", Html(style)),
    )
    main = tag(
        "main",
        _opening(evidence, metrics),
        sections.glance(metrics),
        samples.retrieval(evidence),
        samples.questions(evidence, metrics),
        samples.choices(evidence),
        sections.order(metrics),
        samples.masked(evidence, metrics),
        sections.codes(evidence),
        sections.probe(evidence),
        sections.training(evidence),
        sections.table(evidence, metrics),
        sections.making(evidence),
    )
    foot = tag("footer", tag("p", "E-ViLM. Made by one command, from the files beside this page."))
    return "<!doctype html>\n" + tag("html", head, tag("body", main, foot), lang="en") + "\n"


def _opening(evidence: Evidence, metrics: Sequence[Metric]) -> Html:
    """The name, what was done, whether it came out as promised, some clips, the contents."""
    seconds = numbers.number(numbers.table_of(evidence.results.get("seconds")).get("value"))
    title = f"Trained from scratch in {_span(seconds)}" if seconds else "A run that is not finished yet"
    links = tag("nav", *(tag("a", name, href=f"#{place}") for place, name in _CONTENTS), aria_label="contents")
    words = (tag("p", text, class_="standfirst") for text in (_world(evidence), _verdict(metrics)) if text)
    return tag(
        "header",
        tag("p", "E-ViLM", class_="kicker"),
        tag("h1", title),
        *words,
        _sheet(evidence),
        links,
        class_="opening",
    )


def _world(evidence: Evidence) -> str:
    """What the model was shown and is asked about."""
    plan, counts = (numbers.table_of(evidence.plan().get(name)) for name in ("plan", "counts"))
    splits, novel = (numbers.table_of(counts.get(name)) for name in ("splits", "novel"))
    if not {"train", "test"} <= splits.keys():
        return "A video-language model learns from clips and sentences, and is asked about clips it has never seen."
    told = f"A video-language model learned from {splits['train']:,} clips of a procedural world and their captions"
    told += f" (seed {plan['seed']})" if "seed" in plan else ""
    asked = f", and is asked about {splits['test']:,} clips that it has never seen"
    fresh = (
        f", {novel['test']:,} of them of things in combinations that no training clip shows"
        if novel.get("test")
        else ""
    )
    return f"{told}{asked}{fresh}."


def _verdict(metrics: Sequence[Metric]) -> str:
    """How many targets are met, and which are not."""
    held = [metric for metric in metrics if metric.met is not None]
    missed = [f"{numbers.GROUPS.get(m.group, m.group).lower()} {m.label}" for m in held if not m.met]
    if not held:
        return ""
    if not missed:
        return f"All {len(held)} targets are met."
    return f"{len(held) - len(missed)} of {len(held)} targets are met; missed: {', '.join(missed)}."


def _sheet(evidence: Evidence) -> Html | None:
    """A frame of each of eight clips of the test file."""
    rows = list({str(row.get("video")): row for row in evidence.rows("retrieval") if "video" in row}.values())
    shots = [(str(row["video"]), evidence.clip(str(row["video"]), 128)) for row in spaced(rows, 8)]
    found = [
        tag("img", src=pictures.address(frames[len(frames) // 2]), alt=f"a frame of {video}", width=128, height=128)
        for video, frames in shots
        if frames is not None
    ]
    return tag("div", *found, class_="sheet") if found else None


def _span(seconds: float) -> str:
    """Seconds in words, as 13 min 32 s."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else clock(seconds)
