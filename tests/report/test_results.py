from __future__ import annotations

import io

from rich.console import Console

from evilm.report.results import read_metrics, terminal_table

RESULTS = {
    "seconds": {"value": 10.0},
    "tokenizer": {"perplexity": {"value": 87.25, "chance": None, "baselines": {}}},
    "retrieval": {
        "R@1": {
            "value": 56.04,
            "chance": 0.2,
            "baselines": {"frames [shuffled]": {"value": 40.13, "gain": [11.25, 20.5]}},
            "interval": [51.5, 60],
            "target": 30,
            "met": True,
        },
        "MdR": {"value": 2.5, "chance": 250.5, "baselines": {}, "target": 2, "met": False},
    },
    "question_answering": {
        "kinds": {"colour": {"value": 80, "chance": None, "baselines": {"question only": {"value": 21}}}},
        "temporal": {"value": 50.0, "target": "above shuffled", "met": True},
    },
}


def test_one_metric_for_each_value() -> None:
    assert [(m.group, m.name, m.value) for m in read_metrics(RESULTS)] == [
        ("tokenizer", "perplexity", 87.25),
        ("retrieval", "R@1", 56.04),
        ("retrieval", "MdR", 2.5),
        ("question_answering", "kinds.colour", 80.0),
        ("question_answering", "temporal", 50.0),
    ]
    assert [m.met for m in read_metrics(RESULTS)] == [None, True, False, None, True]


def test_the_terminal_table() -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(terminal_table(RESULTS))
    lines = [" ".join(line.replace("│", " ").split()) for line in console.export_text().splitlines()]
    assert "R@1 56.0 51.5 to 60.0 0.2 frames [shuffled] 40.1 (+11.2 to +20.5) met 30.0" in lines
    assert "median rank 2.5 250.5 not met 2" in lines
    assert "colour 80.0 question only 21.0" in lines
    assert "temporal 50.0 met above shuffled" in lines
    assert "perplexity 87.2" in lines


def test_no_results_give_an_empty_table() -> None:
    assert terminal_table({}).row_count == 0
