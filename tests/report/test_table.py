from __future__ import annotations

import io

from rich.console import Console

from evilm.report.results import read
from evilm.report.table import render

RESULTS = {
    "seconds": {"value": 10.0},
    "tokenizer": {"perplexity": {"value": 87.25, "chance": None, "baselines": {}}},
    "retrieval": {
        "R@1": {
            "value": 56.04,
            "chance": 0.2,
            "baselines": {"frames [shuffled]": {"value": 40.13}},
            "interval": [51.5, 60],
            "target": 30,
        },
        "MdR": {"value": 2.5, "chance": 250.5, "baselines": {}, "target": 2},
    },
    "question_answering": {
        "kinds": {"colour": {"value": 80, "chance": None, "baselines": {"question only": 21}}},
        "temporal": {"value": 50.0, "target": "above shuffled", "met": True},
    },
}


def test_one_row_a_metric_in_the_order_of_the_paper() -> None:
    assert [(m.group, m.name, m.value) for m in read(RESULTS)] == [
        ("retrieval", "R@1", 56.04),
        ("retrieval", "MdR", 2.5),
        ("question_answering", "kinds.colour", 80.0),
        ("question_answering", "temporal", 50.0),
        ("tokenizer", "perplexity", 87.25),
    ]


def test_targets() -> None:
    # A rank of 2.5 misses 2: lower is better.
    assert [m.met for m in read(RESULTS)] == [True, False, None, True, None]
    exact = {"retrieval": {"R@1": {"value": 30.0, "target": 30}, "R@5": {"value": 29.9, "target": 30}}}
    assert [m.met for m in read(exact)] == [True, False]


def test_what_is_printed() -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render(RESULTS))
    lines = [" ".join(line.replace("│", " ").split()) for line in console.export_text().splitlines()]
    assert "R@1 56.0 51.5 to 60.0 0.2 frames [shuffled] 40.1 met 30.0" in lines
    assert "median rank 2.5 250.5 missed 2" in lines
    assert "colour 80.0 question only 21.0" in lines
    assert "temporal 50.0 met above shuffled" in lines
    assert "perplexity 87.2" in lines


def test_nothing_has_run() -> None:
    assert render({}).row_count == 0
