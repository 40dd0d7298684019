"""The sample clips: small, readable, and each with its origin and licence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import av

from evilm.demo import clips
from evilm.demo.real_clips import search_by_name

if TYPE_CHECKING:
    from pathlib import Path


def test_clips_are_small_and_browsers_play_them() -> None:
    paths = sorted(clips.folder().rglob("*.mp4"))
    sizes = [path.stat().st_size for path in paths]
    assert len(paths) == 33
    assert sum(sizes) < 4 << 20
    assert max(sizes) < 1 << 18
    for path in paths:
        with av.open(str(path)) as film:
            [stream] = film.streams
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p"), path
            assert next(film.decode(stream)).width >= 192, path


def test_notices_name_every_clip_and_licence() -> None:
    notices = (clips.folder() / "NOTICES.txt").read_text()
    named = {line.strip() for line in notices.splitlines() if line.strip().endswith(".mp4") and line[2] != " "}
    assert named == {path.relative_to(clips.folder()).as_posix() for path in clips.folder().rglob("*.mp4")}
    for text in ("CC0 1.0", "creativecommons.org/licenses/by/4.0", "Copyright (c) 2024 Ekram Alam", "MIT License"):
        assert text in notices
    assert "Permission is hereby granted" in notices
    assert "THE SOFTWARE IS PROVIDED" in notices


def test_the_bundled_model_finds_clips_by_their_names(tmp_path: Path) -> None:
    found = search_by_name(tmp_path / "index")
    assert found["metrics"]["samples"] == len(found["searches"]) == 33
    ranks = {search["text"]: search["rank"] for search in found["searches"]}
    assert found["metrics"]["metrics"]["R@1"] == 100 * sum(rank == 1 for rank in ranks.values()) / 33
    assert found["metrics"]["metrics"]["R@10"] > 1.5 * found["metrics"]["chance"]["R@10"]
    assert ranks["stream of water"] == 1
    assert all(len(set(search["first"])) == 5 for search in found["searches"])
