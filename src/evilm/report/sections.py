"""The parts of the page that show numbers, each from what a run left; a part whose stage has not run says so."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from evilm.progress import clock
from evilm.report import figures
from evilm.report import results as numbers
from evilm.report.blocks import absent, dot_row, mark, section, value_of
from evilm.report.evidence import STAGES
from evilm.report.markup import Html, join, tag

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evilm.report.evidence import Evidence
    from evilm.report.results import Metric

_GLANCE = (
    ("retrieval", "R@1", "Finds a clip by a sentence", "right clip comes first"),
    ("retrieval", "R@10", "… among the first ten", "right clip among ten"),
    ("question_answering", "accuracy", "Answers questions", "open-ended"),
    ("multiple_choice", "accuracy", "Picks the true sentence", "one of five"),
    ("linear_probe", "accuracy", "Tells actions apart", "one linear layer, model frozen"),
    ("tokenizer", "voc_rate", "Uses its visual words", "share of codes that occur"),
)


def glance(metrics: Sequence[Metric]) -> Html:
    """The primary_metric numbers as one figure."""
    found = {(metric.group, metric.name): metric for metric in metrics}
    shown = [found[g, n] for g, n, _, _ in _GLANCE if (g, n) in found]
    rows = [dot_row(found[g, n], title, note) for g, n, title, note in _GLANCE if (g, n) in found]
    if not rows:
        return section("glance", "At a glance", "", absent("evaluation"))
    return section(
        "glance",
        "At a glance",
        "In percent of clips held out from all training. A number means little alone, so each stands on one line with "
        "what chance would get, and with baselines that cannot see, cannot read order, or have not learned.",
        figures.key(shown),
        tag("div", *rows, class_="rows"),
    )


def order(metrics: Sequence[Metric]) -> Html:
    """What it costs to shuffle the frames."""
    title = "Does it see time?"
    names = {
        ("question_answering", "temporal"): "Questions about order and motion",
        ("multiple_choice", "temporal"): "Choices about order and motion",
        ("question_answering", "accuracy"): "All questions",
        ("multiple_choice", "accuracy"): "All choices",
        ("retrieval", "R@1"): "Retrieval, R@1",
    }
    found = {(metric.group, metric.name): metric for metric in metrics}
    rows: list[Html] = []
    for place, name in names.items():
        metric = found.get(place)
        shuffled = None if metric is None else metric.baselines.get("frames shuffled")
        if metric is not None and shuffled is not None:
            lost = metric.value - shuffled
            pair = [
                part
                for said, value, class_ in (("in order", metric.value, "ours"), ("shuffled", shuffled, "other"))
                for part in (
                    tag("span", said, class_="note"),
                    figures.bar(value, class_, metric.chance),
                    value_of(value),
                )
            ]
            cost = f"shuffling {'costs' if lost >= 0 else 'gains'} {abs(lost):.1f} points"
            rows.append(tag("div", tag("h3", name), tag("p", cost, class_="note"), tag("div", *pair, class_="pair")))
    if not rows:
        return section("order", title, "", absent("evaluation with shuffled frames"))
    lead = (
        "The same model, the same frames, in the wrong order. What happens only in time can then no longer be told, so "
        "accuracy must fall where a question is about order or direction. The thin line is chance."
    )
    return section("order", title, lead, tag("div", *rows, class_="pairs"))


def codes(evidence: Evidence) -> Html:
    """How the codebook is used."""
    title = "A vocabulary of its own"
    details = evidence.details("tokenizer")
    counts = [int(count) for count in numbers.list_of(details.get("counts"))]
    if not sum(counts):
        return section("codes", title, "", absent("tokenizer"))
    lead = (
        "The video tokenizer learned its codebook with no other teacher than captions: each region of a frame becomes "
        "one of these codes, and from the codes alone the caption's words must be told. A codebook that collapses uses "
        "only a few."
    )
    collapsed = tag("p", "This codebook has collapsed.", class_="warning") if details.get("collapsed") else None
    return section("codes", title, lead, collapsed, tag("div", figures.usage(counts), class_="card plain"))


def probe(evidence: Evidence) -> Html:
    """The confusion of action classes."""
    title = "What it mistakes for what"
    details = evidence.details("linear_probe")
    names = [str(name).replace("_", " ") for name in numbers.list_of(details.get("classes"))]
    counts = [[int(count) for count in numbers.list_of(row)] for row in numbers.list_of(details.get("confusion"))]
    if not names or any(len(part) != len(names) for part in (counts, *counts)):
        return section("probe", title, "", absent("linear probe"))
    lead = (
        "A single linear layer on the frozen model names the action of each held-out clip. Rows are what happened, "
        "columns what was said; a perfect model is a dark diagonal."
    )
    pairs = [(count, i, j) for i, row in enumerate(counts) for j, count in enumerate(row) if i != j and count]
    worst = [
        tag("li", names[i], tag("span", f"taken for {names[j]}, {count} of {sum(counts[i])}", class_="truth"))
        for count, i, j in sorted(pairs, key=lambda pair: -pair[0] / sum(counts[pair[1]]))[:6]
    ]
    beside = tag("div", tag("h3", "Most often confused"), tag("ol", *worst, class_="worst")) if worst else None
    map_ = tag("div", figures.confusion(names, counts), class_="scroll", tabindex=0)
    return section("probe", title, lead, tag("div", map_, beside, class_="beside"))


def training(evidence: Evidence) -> Html:
    """Loss curves of every stage that ran."""
    cards: list[Html] = []
    for stage in STAGES:
        lines = evidence.curves(stage)
        named = tag("h3", stage.replace("_", " "))
        body = figures.curves(lines, f"losses of {stage}") if lines else absent(stage.replace("_", " "))
        cards.append(tag("figure", named, body, class_="card plain"))
    lead = (
        "The losses of each stage over its training steps, the total in bold and what it is made of; lower is better."
    )
    return section("training", "How it learned", lead, tag("div", *cards, class_="cards three"))


def table(evidence: Evidence, metrics: Sequence[Metric]) -> Html:
    """Every number."""
    if not metrics:
        return section("numbers", "Every number", "", absent("evaluation"))
    body: list[Html] = []
    group = ""
    for metric in metrics:
        if metric.group != group:
            group = metric.group
            rule = evidence.rule("pretrain" if group == "pretraining" else group)
            beside = tag("span", rule, class_="note") if rule else None
            named = tag(
                "th", numbers.GROUPS.get(group, group.replace("_", " ")), " ", beside, colspan=6, scope="colgroup"
            )
            body.append(tag("tr", named, class_="group"))
        body.append(_table_row(metric))
    heads = ("", "value", "95 % interval", "chance", "baselines", "target")
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in heads)))
    lead = (
        "In percent, but for median rank (lower is better) and perplexity. Intervals are bootstrapped over the samples."
    )
    return section(
        "numbers",
        "Every number",
        lead,
        tag("div", tag("table", head, tag("tbody", *body)), class_="scroll", tabindex=0),
    )


def _table_row(metric: Metric) -> Html:
    def show(value: float | None) -> str:
        return numbers.shown(value, metric)

    low_high = " to ".join(show(end) for end in metric.interval) if metric.interval else ""
    others = join(
        [tag("span", f"{name} ", tag("b", show(value)), class_="other") for name, value in metric.baselines.items()]
    )
    target = show(metric.target) if isinstance(metric.target, float) else metric.target
    kept = None if target is None else target if metric.met is None else mark(target, ok=metric.met)
    name = f"kind: {metric.label}" if metric.name.startswith("kinds.") else metric.label
    return tag(
        "tr",
        tag("th", name, scope="row"),
        tag("td", show(metric.value), class_="number ours"),
        tag("td", low_high, class_="number quiet", data_label="95 %"),
        tag("td", show(metric.chance), class_="number quiet", data_label="chance"),
        tag("td", others),
        tag("td", kept, class_="number", data_label="target"),
    )


def making(evidence: Evidence) -> Html:
    """Time, machine, versions, recipes, and how to do it again."""
    results = evidence.results
    seconds = numbers.table_of(results.get("seconds"))
    stages = [
        (str(name), value)
        for name, one in numbers.table_of(seconds.get("stages")).items()
        if (value := numbers.number(one)) is not None
    ]
    budget = numbers.number(seconds.get("budget"))
    whole = numbers.number(seconds.get("value")) or sum(value for _, value in stages)
    blocks: list[Html | None] = []
    if stages:
        scale = max(whole, budget or 0.0, sum(value for _, value in stages))
        named = [(f"{name.replace('_', ' ')}: {clock(value)}", value) for name, value in stages]
        items = [tag("li", tag("span", class_=f"swatch p{i % 4}"), name.replace("_", " "), tag("b", clock(value)))
                 for i, (name, value) in enumerate(stages)]  # fmt: skip
        told = f"{clock(whole)} in all" + (f", of a budget of {clock(budget)}" if budget else "")
        blocks += [tag("p", told, class_="total-time"), figures.parts(named, scale), tag("ul", *items, class_="stages")]
    else:
        blocks.append(absent("run"))
    facts = [_facts(name.title(), numbers.table_of(results.get(name))) for name in ("machine", "versions")]
    recipes = numbers.table_of(results.get("recipes"))
    folded = [
        tag(
            "details",
            tag("summary", name),
            tag("pre", one if isinstance(one, str) else json.dumps(one, indent=2, ensure_ascii=False)),
        )
        for name, one in recipes.items()
    ]
    shown = tag("div", tag("h3", "Recipes"), *folded, class_="recipes") if folded else None
    commands = tag("div", tag("h3", "Do it again"), tag("pre", "\n".join(_commands(results, budget))), class_="again")
    lead = "Where the time went, on what it ran, and how to run it again."
    return section("making", "How it was made", lead, *blocks, tag("div", *facts, class_="facts"), commands, shown)


def _commands(results: Mapping[str, Any], budget: float | None) -> list[str]:
    given = [str(line) for line in numbers.list_of(results.get("commands"))]
    minutes = f" --minutes {budget / 60:g}" if budget else ""
    return given or [f"evilm demo{minutes}"]


def _facts(title: str, found: dict[str, Any]) -> Html | None:
    rows = [join([tag("dt", name.replace("_", " ")), tag("dd", str(value))]) for name, value in found.items()]
    return tag("div", tag("h3", title), tag("dl", *rows)) if rows else None
