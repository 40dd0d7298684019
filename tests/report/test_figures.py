from __future__ import annotations

import io
import re

import av
import numpy as np

from evilm.report import figures, pictures
from evilm.report.markup import Html, join, tag
from evilm.report.results import Metric


def test_markup_escapes_all_but_markup() -> None:
    assert tag("p", "a < b", tag("b", "&"), class_='"x"') == '<p class="&quot;x&quot;">a &lt; b<b>&amp;</b></p>'
    assert tag("img", alt="<") == '<img alt="&lt;">'
    assert join(["<", Html("<br>"), None, 2], ", ") == "&lt;, <br>, 2"
    assert tag("line", stroke_width=1.0, x=1.25, y=None) == '<line stroke-width="1" x="1.25"></line>'


def test_dots_are_where_the_numbers_are() -> None:
    drawn = figures.dots(Metric("retrieval", "R@1", 56.0, 0.5, {"text only": 25.0}, (50.0, 62.0), 30.0))
    assert re.findall(r'<circle class="(\w+)" cx="([\d.]+)%"', drawn) == [("baseline", "25.00"), ("value", "56.00")]
    assert re.findall(r'<line class="(\w+)" x1="([\d.]+)%" x2="([\d.]+)%"', drawn)[1:] == [
        ("chance", "0.50", "0.50"),
        ("interval", "50.00", "62.00"),
    ]
    assert '<svg x="30.00%"' in drawn


def test_a_curve_by_hand() -> None:
    drawn = figures.curves({"loss": [(0, 4.0), (10, 2.0)]}, "x")
    # Plot from x 28 to 206 and y 12 (loss 4) to 166 (loss 0).
    assert 'points="28.0,12.0 206.0,89.0"' in drawn


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    drawn = figures.curves({"loss": [(step, 1.0) for step in range(10_000)]}, "x")
    points = re.findall(r'points="([^"]*)"', drawn)[0].split()
    assert len(points) <= 162
    assert (points[0].split(",")[0], points[-1].split(",")[0]) == ("28.0", "206.0")


def test_names_of_equal_curves_do_not_overlap() -> None:
    lines = {name: [(0.0, 1.0), (1.0, 0.5)] for name in ("loss", "a", "b", "c")}
    heights = sorted(float(y) for y in re.findall(r"y=\"([\d.]+)\">\w+ 0.50", figures.curves(lines, "x")))
    assert len(heights) == 4
    assert min(np.diff(heights)) >= 13


def test_confusion_shades_by_row() -> None:
    drawn = figures.confusion(["a", "b"], [[3, 1], [0, 0]])
    assert re.findall(r'fill-opacity="([\d.]+)"', drawn) == ["0.76", "0.29", "0.05", "0.05"]
    assert "a, taken for b: 1 of 4" in drawn


def test_usage_counts_codes() -> None:
    drawn = figures.usage([0, 9, 0, 99, 0])
    assert "2 of 5 codes occur" in drawn
    # From 22 (100) to 214 (0): 99 uses at the top, 9 half-way, then nothing; each code one unit wide.
    assert 'd="M0 214.0 V22.0 H1 V118.0 H2 V214.0 H3 V214.0 H4 V214.0 H5 V214.0 Z"' in drawn


def test_a_picture_comes_back_as_it_was() -> None:
    pixels = np.zeros((24, 40, 3), dtype=np.uint8)
    pixels[:, :20] = (200, 30, 40)
    pixels[:, 20:] = (20, 60, 220)
    with av.open(io.BytesIO(pictures.jpeg(pixels, quality=2)), format="image2pipe") as container:
        back = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert back.shape == pixels.shape
    assert np.abs(back.astype(int) - pixels).max() <= 12  # colours at full resolution: no bleeding at the edge


def test_frames_lie_side_by_side() -> None:
    frames = np.stack([np.full((6, 5, 3), value, dtype=np.uint8) for value in (100, 200)])
    sheet = pictures.film(frames)
    assert sheet.shape == (14, 22, 3)
    assert (sheet[4:10, 4:9] == 100).all()
    assert (sheet[4:10, 13:18] == 200).all()
    assert (sheet[:, 9:13] == 17).all()
