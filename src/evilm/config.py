"""Recipes: TOML and dotted overrides to frozen, strictly checked dataclasses.

Every setting lives in a ``Config`` beside the code that it configures; this module only knows how to read them.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from evilm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic_core import ErrorDetails


class Config(BaseModel):
    """The base of every group of settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, protected_namespaces=())


C = TypeVar("C", bound=Config)


def read(path: Path) -> dict[str, Any]:
    """The table of a TOML file.

    Raises:
        ConfigError: the file is missing, is not UTF-8, or is not TOML (with line and column).
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe; `ls recipes` shows those that come with the project") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a recipe: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def override(table: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A copy of ``table`` with ``a.b=c`` assignments applied; values are TOML, bare words are strings.

    Raises:
        ConfigError: an assignment without ``=``, or one that goes through a value that is no table.
    """
    result: dict[str, Any] = json.loads(json.dumps(table, default=str))
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise ConfigError(f"override {assignment!r} is not of the form a.b=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *parents, last = name.split(".")
        inner = result
        for parent in parents:
            step = inner.setdefault(parent, {})
            if not isinstance(step, dict):
                raise ConfigError(f"override {assignment!r}: {parent!r} is a value, not a table")
            inner = step
        inner[last] = value
    return result


def check(kind: type[C], table: Mapping[str, Any], origin: str) -> C:
    """``table`` as a frozen ``kind``.

    Args:
        kind: the settings class.
        table: what was read.
        origin: where it was read from, for the message.

    Raises:
        ConfigError: naming each unknown or ill-typed key, and listing the known ones.
    """
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        lines = [_explain(kind, table, detail) for detail in error.errors()]
        raise ConfigError(f"{origin}: " + "; ".join(lines)) from None


def load(kind: type[C], path: Path, assignments: Iterable[str] = ()) -> C:
    """``read``, ``override`` and ``check`` in one: a recipe file to its frozen settings."""
    return check(kind, override(read(path), assignments), str(path))


def _explain(kind: type[Config], table: Mapping[str, Any], detail: ErrorDetails) -> str:
    """One line for one of pydantic's complaints: the key, the value, the remedy."""
    where = ".".join(str(part) for part in detail["loc"]) or "(whole recipe)"
    if detail["type"] == "extra_forbidden":
        *parents, last = detail["loc"]
        known = _keys(kind, table, parents)
        close = difflib.get_close_matches(str(last), known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"unknown key {where!r}: {hint}known keys here are {', '.join(known)}"
    if detail["type"] == "missing":
        return f"{where!r} is missing"
    return f"{where!r} = {detail['input']!r}: {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _keys(kind: type[Config], table: Mapping[str, Any], parents: list[str | int]) -> list[str]:
    """The keys known at a place in a recipe, found by walking the settings classes."""
    here: Any = kind
    for parent in parents:
        found = _settings_class(here, parent)
        if found is None:
            break
        here = found
    return sorted(here.model_fields)


def _settings_class(kind: type[Config], name: str | int) -> type[Config] | None:
    """The settings class behind a key; for a tagged union, the member whose tag is ``name``."""
    if isinstance(name, int) or name not in kind.model_fields:
        return None
    options = _members(kind.model_fields[name].annotation)
    return options[0] if options else None


def _members(annotation: Any) -> list[type[Config]]:
    """Every settings class named in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [member for part in getattr(annotation, "__args__", ()) for member in _members(part)]
