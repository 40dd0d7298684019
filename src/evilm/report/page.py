"""Write the page about a demo run: one HTML file without scripts that loads nothing from elsewhere.

Each function below collects the values of one section; ``page.html`` holds the texts and the markup.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from importlib import resources
from itertools import groupby
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from evilm import files
from evilm.errors import OutputError
from evilm.progress import clock
from evilm.report import plots
from evilm.report.results import read_metrics
from evilm.report.run import DemoRun, Row, evenly_spaced

if TYPE_CHECKING:
    from pathlib import Path

Values = dict[str, Any]

_SIDE = 96  # pixels of a frame on the page
# Folders of the demo's stages that are trained.
_STAGES = ("tokenizer", "pretrain", "retrieval", "question_answering", "multiple_choice", "linear_probe")


def write_page(folder: Path) -> Path:
    """Write ``report.html`` into a demo run's folder; sections without data are marked as not run yet.

    Args:
        folder: what ``evilm demo --out`` names, finished or not.

    Returns:
        The page's path.

    Raises:
        DataError: the folder is missing, or one of its files is damaged.
        OutputError: the page cannot be written.
    """
    html = render(DemoRun.open(folder))
    path = folder / "report.html"
    try:
        # A caption may hold half of a surrogate pair, which UTF-8 cannot: it becomes a question mark.
        files.write_atomic(path, html.encode("utf-8", "replace"))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error}); free disk space or check permissions") from None
    return path


def render(run: DemoRun) -> str:
    """The HTML of a run's page."""
    environment = Environment(
        loader=PackageLoader("evilm", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "clock": clock, "duration": _duration}
    style = resources.files("evilm.report").joinpath("page.css").read_text(encoding="utf-8")
    metrics = read_metrics(run.results)
    return environment.get_template("page.html").render(
        style=style,
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        results=run.results,
        world=run.world,
        metrics={metric.id: metric for metric in metrics},
        contact_sheet=_contact_sheet(run),
        retrieval=_searches(run, run.predictions("retrieval")),
        real_clips=_searches(run, run.real_clips["searches"]),
        questions=_questions(run),
        kinds=[metric for metric in metrics if metric.id.startswith("question_answering kinds.")],
        choices=_choices(run),
        masked=_masked(run),
        codes=run.details("tokenizer"),
        usage=plots.usage_plot(counts) if sum(counts := run.details("tokenizer").get("counts", [])) else None,
        probe=_probe(run),
        training=[(stage, plots.curve_plot(curves) if (curves := run.curves(stage)) else None) for stage in _STAGES],
        tables=[(title, run.rule(group), list(rows)) for (group, title), rows
                in groupby(metrics, key=lambda metric: (metric.group, metric.title))],
    )  # fmt: skip


def _percent(value: float) -> str:
    """A place on an axis from 0 to 100 %."""
    return f"{min(100.0, max(0.0, value)):.2f}%"


def _duration(seconds: float) -> str:
    """Seconds in words, as 13 min 32 s."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else clock(seconds)


def _film(run: DemoRun, video: str) -> Values | None:
    frames = run.frames(video, _SIDE)
    return None if frames is None else plots.image(plots.filmstrip(frames))


def _contact_sheet(run: DemoRun) -> list[tuple[str, Values]]:
    """The middle frame of each of eight clips of the test file."""
    rows = list({row["video"]: row for row in run.predictions("retrieval")}.values())
    shots = [(row["video"], run.frames(row["video"], 128)) for row in evenly_spaced(rows, 8)]
    return [(video, plots.image(frames[len(frames) // 2])) for video, frames in shots if frames is not None]


def _searches(run: DemoRun, rows: list[Row]) -> Values:
    """Queries with the clips that they found: three answered correctly and three not."""
    right = [row for row in rows if row["rank"] < 1.5]
    wrong = [row for row in rows if row["rank"] >= 1.5]
    cards: list[Values] = []
    for row in evenly_spaced(right, 3) + evenly_spaced(wrong, 3):
        own, videos = row["video"], row["first"][:5]
        true = run.relevant(row["text"], videos, own)
        shown = [*zip(range(1, 6), videos, true, strict=False), *([] if any(true) else [(None, own, True)])]
        hits = [{"rank": rank, "video": video, "true": is_true, "film": _film(run, video)}
                for rank, video, is_true in shown]  # fmt: skip
        cards.append({**row, "hits": hits[: len(videos)], "missed": hits[len(videos) :]})
    return {"count": len(rows), "right": len(right), "wrong": len(wrong), "cards": cards}


def _questions(run: DemoRun) -> list[Values]:
    """One question of each kind."""
    by_kind: dict[str, list[Row]] = {}
    for row in run.predictions("question_answering"):
        by_kind.setdefault(row.get("kind") or "all", []).append(row)
    # From ever later places of the file, so that the kinds do not all ask about one clip.
    chosen = [
        same[(2 * i + 1) * len(same) // (2 * len(by_kind))] for i, (_, same) in enumerate(sorted(by_kind.items()))
    ]
    return [{**row, "film": _film(run, row["video"])} for row in chosen]


def _choices(run: DemoRun) -> Values:
    """Four rows of multiple choice with their options."""
    rows = run.predictions("multiple_choice")
    cards = [{**row, "film": _film(run, row["video"])} for row in evenly_spaced(rows, 4)]
    return {"count": len(rows), "cards": cards}


def _masked(run: DemoRun) -> list[Values]:
    """Clips with their hidden patches, and what the model predicted there."""
    cards: list[Values] = []
    for case in run.masked:
        words = {int(code): " ".join(words) for code, words in case["code_words"].items()}
        hidden = [(i, case["labels"][i], case["guesses"][i]) for i, is_hidden in enumerate(case["hidden"]) if is_hidden]
        pairs = Counter((label, guess) for _, label, guess in hidden)
        cards.append({
            "caption": case["caption"],
            "film": _film(run, case["video"]),
            "patches": [(*plots.patch_box(i, case["grid"], _SIDE), label, guess) for i, label, guess in hidden],
            "names": {code: words.get(code) or f"code {code}" for pair in pairs for code in pair},
            "right": sum(label == guess for _, label, guess in hidden),
            "common": pairs.most_common(6),
        })  # fmt: skip
    return cards


def _probe(run: DemoRun) -> Values:
    """The confusion of action classes, and the pairs that are confused most often."""
    details = run.details("linear_probe")
    names, counts = [name.replace("_", " ") for name in details.get("classes", [])], details.get("confusion", [])
    pairs = [(count / sum(row), names[i], names[j], count, sum(row))
             for i, row in enumerate(counts) for j, count in enumerate(row) if i != j and count]  # fmt: skip
    return {"classes": names, "counts": counts, "worst": sorted(pairs, key=lambda pair: -pair[0])[:6]}
