"""The parts of the page that show clips: what was asked, what was answered, chosen by rules and by no one."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from evilm.report import figures, pictures
from evilm.report import results as numbers
from evilm.report.blocks import absent, dot_row, mark, section
from evilm.report.evidence import spaced
from evilm.report.markup import Html, join, tag

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from evilm.report.evidence import Evidence, Row
    from evilm.report.results import Metric

_SIDE = 96  # pixels of a frame on the page


def retrieval(evidence: Evidence) -> Html:
    """Queries with the clips that they found."""
    rows = [row for row in evidence.rows("retrieval") if {"text", "first", "video"} <= row.keys()]
    rows = [row for row in rows if numbers.number(row.get("rank")) is not None]
    right, wrong = ([row for row in rows if (row["rank"] < 1.5) is first] for first in (True, False))
    if not rows:
        return section("retrieval", "Finding a clip by a sentence", "", absent("retrieval"))
    chosen = spaced(right, 3) + spaced(wrong, 3)
    lead = (
        f"{len(rows)} sentences, each to be matched with one of {len(rows)} clips. Shown are, in the order of the test "
        f"file, three queries spaced evenly among the {len(right)} answered rightly and three among the {len(wrong)} "
        "that were not: no one picked them. Clips that the sentence is true of are marked."
    )
    cards = [_query(evidence, row, len(rows)) for row in chosen]
    return section("retrieval", "Finding a clip by a sentence", lead, tag("div", *cards, class_="cards two"))


def _query(evidence: Evidence, row: Row, count: int) -> Html:
    """A sentence, its first clip large and the next four small."""
    own, videos = str(row["video"]), [str(video) for video in row["first"][:5]]
    true = evidence.true_of(str(row["text"]), videos, own)
    shots = [
        _hit(evidence, video, place, right) for place, (video, right) in enumerate(zip(videos, true, strict=True), 1)
    ]
    missing = None
    if not any(true):
        missing = tag("div", tag("p", "not among these: the clip that was meant", class_="note"),
                      _hit(evidence, own, None, right=True), class_="meant")  # fmt: skip
    first = row["rank"] < 1.5
    verdict = mark("right", ok=True) if first else mark(f"right clip at rank {row['rank']:g} of {count}", ok=False)
    head = tag("header", tag("h3", f"“{row['text']}”"), verdict)
    return tag("article", head, *shots[:1], tag("div", *shots[1:], class_="more"), missing, class_="card query")


def _hit(evidence: Evidence, video: str, place: int | None, right: bool) -> Html:
    said = f"{video}{'' if place is None else f', rank {place}'}{', true of the sentence' if right else ''}"
    picture = pictures.strip(evidence.clip(video, _SIDE), said)
    label = [
        tag("span", place, class_="rank") if place is not None else None,
        mark("true of it", ok=True) if right else None,
    ]
    return tag("figure", picture, tag("figcaption", *label), class_="hit true" if right else "hit")


def questions(evidence: Evidence, metrics: Sequence[Metric]) -> Html:
    """Accuracy by kind of question, and one question of each kind."""
    title = "Answering questions"
    rows = [row for row in evidence.rows("question_answering") if {"question", "answer", "predicted"} <= row.keys()]
    kinds = [m for m in metrics if m.group == "question_answering" and m.name.startswith("kinds.")]
    if not rows and not kinds:
        return section("questions", title, "", absent("question answering"))
    bars = [dot_row(metric, metric.label, "") for metric in kinds]
    compared = any("question only" in metric.baselines for metric in kinds)
    blind = ", beside a model of the same form that is given the question and no video" if compared else ""
    by_kind: dict[str, list[Row]] = {}
    for row in rows:
        by_kind.setdefault(str(row.get("kind") or "all"), []).append(row)
    # From ever later places, so that the kinds do not all ask about one clip.
    picked = [
        (kind, found[(2 * i + 1) * len(found) // (2 * len(by_kind))])
        for i, (kind, found) in enumerate(sorted(by_kind.items()))
    ]
    cards = [_question(evidence, kind, row) for kind, row in picked]
    return section(
        "questions",
        title,
        "By kind of question"
        + blind
        + ". Below, one question of each kind, from evenly spaced places of the test file: "
        "no one picked them.",
        figures.key(kinds) if bars else None,
        tag("div", *bars, class_="rows") if bars else None,
        tag("div", *cards, class_="cards three"),
    )


def _question(evidence: Evidence, kind: str, row: Row) -> Html:
    right = row["answer"] == row["predicted"]
    truth = None if right else tag("span", f"the answer: {row['answer']}", class_="truth")
    answer = tag("p", mark(row["predicted"], ok=right), truth, class_="answer")
    picture = pictures.strip(evidence.clip(str(row["video"]), _SIDE), str(row["video"]))
    return tag("article", tag("p", kind, class_="kicker"), picture, tag("h3", row["question"]), answer, class_="card")


def choices(evidence: Evidence) -> Html:
    """Four rows of multiple choice with their options."""
    title = "Choosing among five"
    rows = [row for row in evidence.rows("multiple_choice") if {"options", "answer", "predicted"} <= row.keys()]
    if not rows:
        return section("choices", title, "", absent("multiple choice"))
    lead = (
        "The options share most of what can be seen: the same objects doing something else, or something else doing "
        f"the same. Four of the {len(rows)} rows, spaced evenly over the test file."
    )
    cards = [_choice(evidence, row) for row in spaced(rows, 4)]
    return section("choices", title, lead, tag("div", *cards, class_="cards two"))


def _choice(evidence: Evidence, row: Row) -> Html:
    options: list[Html] = []
    for place, option in enumerate(row["options"]):
        right, said = place == row["answer"], place == row["predicted"]
        sign = "✓" if right else "✕" if said else ""
        note = tag("span", "chosen" if right else "chosen, wrongly", class_="note") if said else None
        state = " ".join(word for word, holds in (("right", right), ("said", said)) if holds)
        options.append(
            tag("li", tag("span", sign, class_="sign"), tag("span", option, " ", note), class_=state or None)
        )
    picture = pictures.strip(evidence.clip(str(row["video"]), _SIDE), str(row["video"]))
    return tag("article", picture, tag("ul", *options, class_="options"), class_="card")


def masked(evidence: Evidence, metrics: Sequence[Metric]) -> Html:
    """What was hidden in pre-training, and what the model put there."""
    title = "Filling in what is hidden"
    cases = evidence.masked()[:6]
    if not cases:
        return section("masked", title, "", absent("pre-training"))
    share = next((m for m in metrics if m.name == "mvm_accuracy"), None)
    scored = (
        "" if share is None else f" Over all held-out clips {share.value:.1f} % of hidden regions are named rightly"
    )
    if share is not None:
        scored += "." if share.chance is None else f"; always saying the most frequent code gets {share.chance:.1f} %."
    lead = (
        "Masked video modelling: regions are covered, and the model must say which visual word, a code of the video "
        "tokenizer, stands behind each. Above, what it saw; below, what was there, framed where its guess was right "
        "and crossed where it was not. Codes are described by the caption words that go with them most." + scored
    )
    return section("masked", title, lead, tag("div", *(_case(evidence, case) for case in cases), class_="cards two"))


def _case(evidence: Evidence, case: Row) -> Html:
    frames, high, wide = (int(side) for side in case["grid"])
    pixels = evidence.clip(str(case.get("video")), _SIDE)
    hidden = [place for place, covered in enumerate(case["hidden"]) if covered]
    labels, guesses = list(case["labels"]), list(case["guesses"])
    words = numbers.table_of(case.get("code_words"))

    def name(code: int) -> str:
        known = numbers.list_of(words.get(str(code)))
        return " ".join(str(word) for word in known) or f"code {code}"

    right = sum(labels[i] == guesses[i] for i in hidden)
    shots = tag("div", "no frames", class_="strip absent")
    if pixels is not None and len(pixels) == frames:
        cells = [(*_cell(place, high, wide), labels[place], guesses[place]) for place in hidden]
        covers = [tag("rect", class_="cover", x=x, y=y, width=w, height=h) for x, y, w, h, _, _ in cells]
        found = [_guess(cell, name) for cell in cells]
        shots = join([_overlaid(pixels, covers, "what the model saw"), _overlaid(pixels, found, "what was there")])
    pairs = Counter((labels[i], guesses[i]) for i in hidden).most_common(6)
    said = [
        tag("li", mark(name(label), ok=label == guess),
            None if label == guess else tag("span", f"guessed {name(guess)}", class_="truth"),
            tag("span", f"\N{MULTIPLICATION SIGN}{count}", class_="times"))
        for (label, guess), count in pairs
    ]  # fmt: skip
    head = tag(
        "header",
        tag("h3", f"“{case.get('caption', '')}”"),
        tag("span", f"{right} of {len(hidden)} right", class_="note"),
    )
    return tag("article", head, shots, tag("ul", *said, class_="guesses"), class_="card")


def _cell(place: int, high: int, wide: int) -> tuple[float, float, float, float]:
    """x, y, width, height of a region on the filmstrip."""
    frame, rest = divmod(place, high * wide)
    row, column = divmod(rest, wide)
    w, h = _SIDE / wide, _SIDE / high
    return pictures.GAP + frame * (_SIDE + pictures.GAP) + column * w, pictures.GAP + row * h, w, h


def _guess(cell: tuple[float, float, float, float, int, int], name: Callable[[int], str]) -> Html:
    x, y, w, h, label, guess = cell
    title = tag("title", f"{name(label)}; guessed {name(guess)}")
    box = {"x": x + 1, "y": y + 1, "width": w - 2, "height": h - 2}
    if label == guess:
        return tag("rect", title, class_="hit-cell", **box)
    cross = f"M{x + 3:.1f} {y + 3:.1f} l{w - 6:.1f} {h - 6:.1f} m0 {6 - h:.1f} l{6 - w:.1f} {h - 6:.1f}"
    return tag("g", title, tag("rect", class_="missed-cell", **box), tag("path", class_="cross", d=cross))


def _overlaid(pixels: Any, marks: Sequence[Html], what: str) -> Html:
    sheet = pictures.film(pixels)
    height, width = sheet.shape[:2]
    picture = tag("image", href=pictures.address(sheet), width=width, height=height)
    return tag("svg", picture, *marks, class_="strip", viewBox=f"0 0 {width} {height}", role="img", aria_label=what)
