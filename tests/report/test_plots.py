from __future__ import annotations

import io

import av
import numpy as np

from evilm.report import plots


def test_a_curve_by_hand() -> None:
    plot = plots.curve_plot({"loss": [(0, 4.0), (10, 2.0)]})
    # Plot from x 28 to 206 and y 12 (loss 4) to 166 (loss 0).
    assert [line["points"] for line in plot["series"]] == ["28.0,12.0 206.0,89.0"]
    assert plot["ticks"] == [(166.0, "0"), (89.0, "2"), (12.0, "4")]


def test_names_of_equal_curves_do_not_overlap() -> None:
    plot = plots.curve_plot({name: [(0.0, 1.0), (1.0, 0.5)] for name in ("loss", "a", "b", "c")})
    assert [line["label"] for line in plot["series"]] == ["a 0.50", "b 0.50", "c 0.50", "total 0.50"]
    assert min(np.diff(sorted(line["y"] for line in plot["series"]))) >= 13


def test_a_total_of_one_part_is_drawn_once() -> None:
    curve = [(0.0, 1.0), (1.0, 0.5)]
    assert len(plots.curve_plot({"loss": curve, "nll": curve})["series"]) == 1


def test_code_usage_by_hand() -> None:
    plot = plots.usage_plot([0, 9, 0, 99, 0])
    assert (plot["used"], plot["count"], plot["edge"]) == (2, 5, 40)
    # From 22 (100) to 214 (0): 99 uses at the top, 9 half-way, then nothing; each code one unit wide.
    assert plot["area"] == "M0 214.0 V22.0 H1 V118.0 H2 V214.0 H3 V214.0 H4 V214.0 H5 V214.0 Z"


def test_patches_on_a_filmstrip() -> None:
    # Frames of 96 pixels, 4 apart; patch 7 of 2x2x2 is the last of the second frame.
    assert plots.patch_box(0, (2, 2, 2), 96) == (4, 4, 48, 48)
    assert plots.patch_box(7, (2, 2, 2), 96) == (4 + 96 + 4 + 48, 4 + 48, 48, 48)


def test_a_jpeg_keeps_colours_at_full_resolution() -> None:
    pixels = np.zeros((24, 40, 3), dtype=np.uint8)
    pixels[:, :20] = (200, 30, 40)
    pixels[:, 20:] = (20, 60, 220)
    with av.open(io.BytesIO(plots.jpeg(pixels, quality=2)), format="image2pipe") as container:
        back = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert back.shape == pixels.shape
    assert np.abs(back.astype(int) - pixels).max() <= 12


def test_a_filmstrip_has_frames_side_by_side() -> None:
    frames = np.stack([np.full((6, 5, 3), value, dtype=np.uint8) for value in (100, 200)])
    sheet = plots.filmstrip(frames)
    assert sheet.shape == (14, 22, 3)
    assert (sheet[4:10, 4:9] == 100).all()
    assert (sheet[4:10, 13:18] == 200).all()
    assert (sheet[:, 9:13] == 17).all()
