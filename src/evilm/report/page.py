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
from evilm.report.results import Metric, as_dict, as_list, as_number, read_metrics
from evilm.report.run import DemoRun, Row, evenly_spaced

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Values = dict[str, Any]

_SIDE = 96  # pixels of a frame on the page
# Folders of the stages, which have a card of loss curves each.
_STAGES = ("tokenizer", "pretrain", "retrieval", "question_answering", "multiple_choice", "linear_probe")
_SUMMARY = (
    ("retrieval", "R@1", "Text-to-video retrieval, R@1", "the right clip comes first"),
    ("retrieval", "R@10", "Text-to-video retrieval, R@10", "the right clip is among the first ten"),
    ("question_answering", "accuracy", "Question answering", "open-ended"),
    ("multiple_choice", "accuracy", "Multiple choice", "one of five sentences"),
    ("linear_probe", "accuracy", "Action classification", "one linear layer, model frozen"),
    ("tokenizer", "voc_rate", "Codebook usage", "fraction of codes that occur"),
)
_ORDER = (
    ("question_answering", "temporal", "Questions about order and motion"),
    ("multiple_choice", "temporal", "Choices about order and motion"),
    ("question_answering", "accuracy", "All questions"),
    ("multiple_choice", "accuracy", "All choices"),
    ("retrieval", "R@1", "Retrieval, R@1"),
)


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
    seconds = as_dict(run.results.get("seconds"))
    return environment.get_template("page.html").render(
        style=style,
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        total=as_number(seconds.get("value")),
        world=run.world(),
        targets=[metric for metric in metrics if metric.met is not None],
        contact_sheet=_contact_sheet(run),
        summary=_select(metrics, _SUMMARY),
        retrieval=_retrieval(run),
        questions=_questions(run, metrics),
        choices=_choices(run),
        order=[row for row in _select(metrics, _ORDER) if "frames shuffled" in row["metric"].baselines],
        masked=_masked(run, metrics),
        codes=_codes(run),
        probe=_probe(run),
        training=[(stage, plots.curve_plot(curves) if (curves := run.curves(stage)) else None) for stage in _STAGES],
        tables=[(title, run.rule(group), list(rows)) for (group, title), rows
                in groupby(metrics, key=lambda metric: (metric.group, metric.title))],
        details=_details(run, seconds),
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


def _select(metrics: Sequence[Metric], wanted: Sequence[tuple[str, ...]]) -> list[Values]:
    """The wanted metrics that the run has: ``metric``, ``title`` and, where given, ``note``."""
    found = {(metric.group, metric.name): metric for metric in metrics}
    return [{"metric": found[group, name], "title": title, "note": note[0] if note else ""}
            for group, name, title, *note in wanted if (group, name) in found]  # fmt: skip


def _film(run: DemoRun, video: str) -> Values | None:
    frames = run.frames(video, _SIDE)
    return None if frames is None else plots.image(plots.filmstrip(frames))


def _contact_sheet(run: DemoRun) -> list[tuple[str, Values]]:
    """The middle frame of each of eight clips of the test file."""
    rows = list({row["video"]: row for row in run.predictions("retrieval", "video")}.values())
    shots = [(row["video"], run.frames(row["video"], 128)) for row in evenly_spaced(rows, 8)]
    return [(video, plots.image(frames[len(frames) // 2])) for video, frames in shots if frames is not None]


def _retrieval(run: DemoRun) -> Values | None:
    """Queries with the clips that they found: three answered correctly and three not."""
    rows = run.predictions("retrieval", "text", "first", "video", "rank")
    right = [row for row in rows if row["rank"] < 1.5]
    wrong = [row for row in rows if row["rank"] >= 1.5]
    cards: list[Values] = []
    for row in evenly_spaced(right, 3) + evenly_spaced(wrong, 3):
        own, videos = row["video"], row["first"][:5]
        true = run.relevant(row["text"], videos, own)
        hits = [{"video": video, "rank": rank, "true": is_true, "film": _film(run, video)}
                for rank, (video, is_true) in enumerate(zip(videos, true, strict=True), 1)]  # fmt: skip
        missed = None if any(true) else {"video": own, "rank": None, "true": True, "film": _film(run, own)}
        cards.append({"text": row["text"], "rank": row["rank"], "hits": hits, "missed": missed})
    return {"count": len(rows), "right": len(right), "wrong": len(wrong), "cards": cards} if rows else None


def _questions(run: DemoRun, metrics: Sequence[Metric]) -> Values | None:
    """Accuracy by kind of question, and one question of each kind."""
    rows = run.predictions("question_answering", "question", "answer", "predicted")
    kinds = [m for m in metrics if m.group == "question_answering" and m.name.startswith("kinds.")]
    by_kind: dict[str, list[Row]] = {}
    for row in rows:
        by_kind.setdefault(str(row.get("kind") or "all"), []).append(row)
    # From ever later places of the file, so that the kinds do not all ask about one clip.
    chosen = [(kind, same[(2 * i + 1) * len(same) // (2 * len(by_kind))])
              for i, (kind, same) in enumerate(sorted(by_kind.items()))]  # fmt: skip
    cards = [{**row, "kind": kind, "film": _film(run, row["video"])} for kind, row in chosen]
    return {"kinds": kinds, "cards": cards} if rows or kinds else None


def _choices(run: DemoRun) -> Values | None:
    """Four rows of multiple choice with their options."""
    rows = run.predictions("multiple_choice", "options", "answer", "predicted")
    cards = [{**row, "film": _film(run, row["video"])} for row in evenly_spaced(rows, 4)]
    return {"count": len(rows), "cards": cards} if rows else None


def _masked(run: DemoRun, metrics: Sequence[Metric]) -> Values | None:
    """Clips with their hidden patches, and what the model predicted there."""
    cards: list[Values] = []
    for case in run.masked[:6]:
        words = {int(code): " ".join(words) for code, words in case["code_words"].items()}
        hidden = [(i, case["labels"][i], case["guesses"][i]) for i, is_hidden in enumerate(case["hidden"]) if is_hidden]
        pairs = Counter((label, guess) for _, label, guess in hidden)
        names = {code: words.get(code) or f"code {code}" for pair in pairs for code in pair}
        cards.append({
            "caption": case["caption"],
            "film": _film(run, case["video"]),
            "patches": [(*plots.patch_box(i, case["grid"], _SIDE), label, guess) for i, label, guess in hidden],
            "names": names,
            "right": sum(label == guess for _, label, guess in hidden),
            "common": pairs.most_common(6),
        })  # fmt: skip
    accuracy = next((metric for metric in metrics if metric.name == "mvm_accuracy"), None)
    return {"cards": cards, "accuracy": accuracy} if cards else None


def _codes(run: DemoRun) -> Values | None:
    """How the codebook is used."""
    details = run.details("tokenizer")
    counts = as_list(details.get("counts"))
    return {"plot": plots.usage_plot(counts), "collapsed": details.get("collapsed")} if sum(counts) else None


def _probe(run: DemoRun) -> Values | None:
    """The confusion of action classes, and the pairs that are confused most often."""
    details = run.details("linear_probe")
    names = [str(name).replace("_", " ") for name in as_list(details.get("classes"))]
    counts = as_list(details.get("confusion"))
    pairs = [(count / sum(row), names[i], names[j], count, sum(row))
             for i, row in enumerate(counts) for j, count in enumerate(row) if i != j and count]  # fmt: skip
    worst = sorted(pairs, key=lambda pair: -pair[0])[:6]
    return {"classes": names, "counts": counts, "worst": worst} if names else None


def _details(run: DemoRun, seconds: Values) -> Values:
    """Time by stage, budget, machine and versions."""
    stages = [(name.replace("_", " "), value) for name, value in as_dict(seconds.get("stages")).items()]
    budget = as_number(seconds.get("budget"))
    whole = as_number(seconds.get("value")) or 0.0
    return {
        "stages": stages,
        "scale": max(whole, budget or 0.0, sum(value for _, value in stages)),
        "budget": budget,
        "facts": [(name, facts) for name in ("machine", "versions") if (facts := as_dict(run.results.get(name)))],
    }
