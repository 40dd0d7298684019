"""The model card: what a model is, its training data, measured figures, and limits."""

from __future__ import annotations

import importlib.resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evilm.inference.export_format import ExportDescription
    from evilm.inference.runtime import Metadata


def render(metadata: Metadata, export: ExportDescription | None = None, licence: str = "apache-2.0") -> str:
    """The card as Markdown with the header that the hub reads, from the template ``card.md``.

    Args:
        metadata: of the model.
        export: the description of an export; None for a checkpoint.
        licence: of the weights, as the hub names it.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=False, keep_trailing_newline=True)  # noqa: S701 - Markdown, not HTML
    environment.filters["last_parts"] = _last_parts
    template = importlib.resources.files("evilm.export").joinpath("card.md").read_text(encoding="utf-8")
    recipe: Any = metadata.source.get("recipe") or {}
    train: Any = recipe.get("data", {}).get("train") or {}
    return environment.from_string(template).render(
        metadata=metadata, export=export, recipe=recipe, train=train, licence=licence
    )


def _last_parts(path: Any) -> str:
    """The last two parts of a path: a card is published, and must not show the author's folders."""
    return "/".join(str(path or "unknown").rstrip("/").split("/")[-2:])
