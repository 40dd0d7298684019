"""Bundled sample clips, for a first search without videos of one's own; NOTICES.txt states origins and licences."""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """The folder of the sample clips: mp4 files in subfolders by subject."""
    return Path(__file__).parent
