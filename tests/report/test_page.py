from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest

from evilm.errors import DataError, OutputError
from evilm.report.page import write_page
from evilm.report.run import evenly_spaced

if TYPE_CHECKING:
    from pathlib import Path

EVIL = "<script>alert('x')</script> & \"ring\""
RIGHT, WRONG = (f"video{number}" for number in (1, 2))


class Reader(HTMLParser):
    """What a browser would see: elements, their attributes, and the text outside the style sheet."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.style = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in {"meta", "img", "br", "hr"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(path: Path) -> Reader:
    return Reader(path.read_text(encoding="utf-8"))


def leaf(value: float, chance: float | None = None, **more: Any) -> dict[str, Any]:
    return {"value": value, "chance": chance, "baselines": {}, **more}


def put(path: Path, value: object, lines: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in value) if lines and isinstance(value, list) else json.dumps(value)
    path.write_text(text, encoding="utf-8")


def film(path: Path) -> None:
    """A second of plain grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 90, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run, with HTML in every text."""
    run = tmp_path_factory.mktemp("run")
    for name in (RIGHT, WRONG):
        film(run / "world" / "videos" / f"{name}.mp4")
    shuffled = {"frames shuffled": {"value": 62.25, "gain": [-15.0, -9.5]}}
    results: dict[str, Any] = {
        "retrieval": {
            "R@1": leaf(
                56.0, 0.2, target=30.0, met=True, interval=[51.0, 60.5], baselines={"frames shuffled": {"value": 40.0}}
            ),
            "MdR": leaf(1.0, 250.5, target=5.0, met=True),
        },
        "question_answering": {
            "accuracy": leaf(70.0, 2.0, baselines={"question only": {"value": 38.0}}),
            "temporal": leaf(48.0, 2.0, baselines={"frames shuffled": {"value": 31.5}}),
            "kinds": {"colour": leaf(80.0, baselines={"question only": {"value": 20.0}}), EVIL: leaf(1.0)},
        },
        "multiple_choice": {
            "temporal": leaf(50.0, 20.0, target=60.0, met=False, baselines=shuffled),
        },
        "tokenizer": {"voc_rate": leaf(75.0), "perplexity": leaf(87.25)},
        "seconds": {"value": 812, "stages": {"world": 12.0, "tokenizer": 800.0}, "budget": 900},
        "machine": {"processor": EVIL, "cores": 2},
        "versions": {"evilm": "0.1.0"},
    }
    put(run / "results.json", results)
    hits = [
        {"video": RIGHT, "text": EVIL, "rank": 1.0, "first": [RIGHT, WRONG]},
        {"video": WRONG, "text": "a ring", "rank": 7.0, "first": [RIGHT, "video404"]},
    ]
    asked = {"video": RIGHT, "kind": EVIL, "question": EVIL, "answer": EVIL, "predicted": "red"}
    chosen = {"video": RIGHT, "options": [EVIL, "a star"], "answer": 0, "predicted": 1}
    for stage, rows in (("retrieval", hits), ("question_answering", [asked]), ("multiple_choice", [chosen])):
        put(run / stage / "evaluation" / "predictions.jsonl", rows, lines=True)
        put(run / stage / "evaluation" / "metrics.json", {"rule": EVIL})
    real = [{"video": "people/a.mp4", "text": "walking", "rank": 2, "first": ["people/b.mp4", "people/a.mp4"]}]
    for row in ("a", "b"):
        film(run / "real" / "people" / f"{row}.mp4")
    put(run / "real_clips.json", {"folder": str(run / "real"), "searches": real})
    curve = [{"step": step, "loss": 2.0 / step, "mvm": 1.0 / step, "lr": 77.0, EVIL: 0.5} for step in range(1, 400)]
    put(run / "pretrain" / "metrics.jsonl", curve, lines=True)
    case = {
        "video": RIGHT, "caption": EVIL, "grid": [2, 2, 2], "hidden": [True] * 3 + [False] * 5,
        "labels": [4, 4, 5] + [0] * 5, "guesses": [4, 5, 5] + [0] * 5, "code_words": {"4": [EVIL], "5": ["noisy"]},
    }  # fmt: skip
    put(run / "pretrain" / "masked.json", [case])
    put(run / "tokenizer" / "evaluation" / "details.json", {"counts": [5, 0, 3, 0], "collapsed": False})
    put(
        run / "linear_probe" / "evaluation" / "details.json",
        {"classes": [EVIL, "grows"], "confusion": [[3, 1], [0, 2]]},
    )
    return run


def test_text_is_escaped(whole: Path) -> None:
    path = write_page(whole)
    page = read(path)
    assert path == whole / "report.html"
    assert not page.all("script")
    assert "<script" not in path.read_text(encoding="utf-8")
    # Caption of query, question, options, rule, processor, recipe, class, code words: each is there as text.
    assert page.text.count(EVIL) >= 11
    assert not [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)]


def test_the_page_loads_nothing(whole: Path) -> None:
    path = write_page(whole)
    page, html = read(path), path.read_text(encoding="utf-8")
    assert not re.findall(r"(?:https?:)?//[a-z]|url\(|@import", re.sub(r"base64,[^\"]*", "", html))
    assert {name for name, _ in page.tags}.isdisjoint({"link", "iframe", "object", "embed", "form", "base"})
    pictures = [image["src"] for image in page.all("img")] + [image["href"] for image in page.all("image")]
    assert len(pictures) > 8
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in pictures)
    assert all(link["href"].startswith("#") for link in page.all("a"))
    assert path.stat().st_size < 3_000_000


def test_the_policy_allows_this_style_sheet_and_no_other(whole: Path) -> None:
    page = read(write_page(whole))
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy.split("; ")[:3] == ["default-src 'none'", "img-src data:", f"style-src 'sha256-{digest}'"]
    # Under that policy a style attribute would be dropped.
    assert not [name for name, attributes in page.tags if "style" in attributes]


def test_each_section_has_a_link(whole: Path) -> None:
    page = read(write_page(whole))
    assert [link["href"] for link in page.all("a")] == ["#" + section["id"] for section in page.all("section")]
    assert page.open == []


def test_texts_of_the_page(whole: Path) -> None:
    text = read(write_page(whole)).text
    assert "Trained from scratch in 13 min 32 s" in text
    assert "2 of 3 targets are met. Not met: multiple choice temporal." in text
    assert "shuffling costs 16.5 points" in text
    assert "shuffling gains 12.2 points" in text
    assert "51.0 to 60.5" in text
    assert "frames shuffled 62.2 (-15.0 to -9.5)" in text
    assert "✕ not met: 60.0" in text
    assert "2 of 4 codes occur" in text
    assert "evilm demo --minutes 15" in text
    assert "13:32 in total, with a budget of 15:00" in text
    assert "ranks the 1 sample clips of the package" in text
    assert "“walking” ✕ right clip at rank 2" in text


def test_marks_of_a_metric_are_at_its_numbers(whole: Path) -> None:
    html = " ".join(write_page(whole).read_text(encoding="utf-8").split())
    track = html[html.index('aria-label="R@1 56.0, chance 0.2, frames shuffled 40.0"') :].split("</svg> <span")[0]
    assert re.findall(r'<circle class="(\w+)" cx="([\d.]+)%"', track) == [("baseline", "40.00"), ("value", "56.00")]
    assert re.findall(r'<line class="(\w+)" x1="([\d.]+)%" x2="([\d.]+)%"', track)[1:] == [
        ("chance", "0.20", "0.20"),
        ("interval", "51.00", "60.50"),
    ]
    assert '<svg x="30.00%"' in track


def test_confusion_is_shaded_by_row(whole: Path) -> None:
    page = read(write_page(whole))
    assert [r["fill-opacity"] for r in page.all("rect") if r.get("class") == "cell"] == ["0.76", "0.29", "0.05", "1.0"]
    assert "predicted as grows: 1 of 4" in page.text


def test_right_and_wrong_hits_are_marked(whole: Path) -> None:
    page = read(write_page(whole))
    assert "✕ right clip at rank 7 of 2" in page.text
    assert "the clip that belongs to the sentence" in page.text
    # Its own clip; the one shown in place of the second; one real clip..
    assert len([f for f in page.all("figure") if f.get("class") == "hit true"]) == 3
    assert "no frames" in page.text  # video404
    assert "✓ a star" not in page.text
    assert "a star chosen, not correct" in page.text


def test_masked_patches(whole: Path) -> None:
    page = read(write_page(whole))
    marks = [r.get("class") for r in page.all("rect")]
    assert (marks.count("cover"), marks.count("hit-cell"), marks.count("missed-cell")) == (3, 2, 1)
    assert "2 of 3 correct" in page.text
    assert f"✕ {EVIL} predicted noisy ×1" in page.text  # noqa: RUF001  # the sign that is on the page
    # The third hidden region: first frame, second row, first column; the page draws frames of 96 pixels, 4 apart.
    third = [r for r in page.all("rect") if r.get("class") == "cover"][2]
    assert (third["x"], third["y"], third["width"], third["height"]) == ("4.0", "52.0", "48.0", "48.0")


def test_missing_stages_are_marked_as_not_run(tmp_path: Path) -> None:
    page = read(write_page(tmp_path))
    assert "Unfinished run" in page.text
    absent = [section["id"] for section in page.all("section")]
    assert page.text.count("Not run yet") >= len(absent)
    assert "None" not in page.text


def test_an_interrupted_stage(whole: Path, tmp_path: Path) -> None:
    """Curves of a stage that was cut in the middle of a line; nothing else."""
    lines = (whole / "pretrain" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[:5]
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 6, "lo']), encoding="utf-8")
    page = read(write_page(tmp_path))
    assert "total 0.40" in page.text  # 2 / 5
    assert "Not run yet: retrieval." in page.text


def test_a_lone_surrogate_becomes_a_question_mark(tmp_path: Path) -> None:
    row = {"video": "video1", "text": "half \ud83d of it", "rank": 1.0, "first": ["video1"]}
    put(tmp_path / "retrieval" / "evaluation" / "predictions.jsonl", [row], lines=True)
    assert "half ? of it" in read(write_page(tmp_path)).text


def test_nan_and_infinity_are_ignored(tmp_path: Path) -> None:
    results = {"retrieval": {"R@1": {"value": float("nan")}, "R@10": leaf(150.0, float("inf"))}, "seconds": None}
    put(tmp_path / "results.json", results)
    put(
        tmp_path / "pretrain" / "metrics.jsonl", [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1}], lines=True
    )
    put(tmp_path / "tokenizer" / "evaluation" / "details.json", {"counts": [], "collapsed": True})
    html = write_page(tmp_path).read_text(encoding="utf-8")
    assert "nan" not in re.findall(r'="([^"]*)"', html)
    assert "150.00%" not in html


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("results.json", "{", r"results\.json: cannot be read as JSON"),
        ("results.json", "[]", r"results\.json: not a JSON object"),
        ("pretrain/masked.json", "nonsense", r"masked\.json: cannot be read as JSON"),
        ("pretrain/metrics.jsonl", "nonsense\n{}\n", r"metrics\.jsonl:1: cannot be read as JSON"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        write_page(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        write_page(tmp_path / "nowhere")


def test_an_unwritable_page_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OutputError, match=r"report\.html: cannot be written"):
        write_page(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_evenly_spaced_rows() -> None:
    rows = [{"n": n} for n in range(10)]
    assert [row["n"] for row in evenly_spaced(rows, 2)] == [2, 7]
    assert [row["n"] for row in evenly_spaced(rows, 3)] == [1, 5, 8]
    assert evenly_spaced(rows[:2], 3) == rows[:2]
    assert evenly_spaced([], 3) == []
