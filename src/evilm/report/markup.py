"""HTML and SVG in which text cannot turn into markup: whatever is not ``Html`` is escaped on its way in."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_EMPTY = frozenset({"br", "hr", "img", "meta"})


class Html(str):
    """Text that is markup already; only ``tag`` and ``join`` make it."""

    __slots__ = ()


def tag(name: str, /, *children: str | float | None, **attributes: str | float | None) -> Html:
    """An element.

    Args:
        name: as in HTML or SVG.
        children: ``Html`` as it stands, other text escaped, None left out.
        attributes: ``class_`` stands for ``class`` and ``stroke_width`` for ``stroke-width``; None leaves one out.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = join(children)
    return Html(f"<{name}{said}>" if name in _EMPTY else f"<{name}{said}>{inside}</{name}>")


def join(parts: Iterable[str | float | None], between: str = "") -> Html:
    """Parts one after another, each escaped where it is not ``Html``."""
    shown = (part for part in parts if part is not None)
    return Html(escape(between).join(part if isinstance(part, Html) else escape(_plain(part)) for part in shown))


def _plain(value: str | float) -> str:
    """Numbers as short as they can be without moving anything on a screen."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
