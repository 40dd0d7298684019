"""Reading of settings: TOML and dotted overrides become frozen, strictly checked dataclasses.

Each group of settings is a ``Config`` beside the code that it configures.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from evilm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic_core import ErrorDetails


class Config(BaseModel):
    """Base of every group of settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, protected_namespaces=())

    @field_validator("*")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        """Replace a leading ``~`` by the user's home folder, in paths and in texts that name one."""
        if isinstance(value, Path):
            return _expanded(value)
        return str(_expanded(Path(value))) if isinstance(value, str) and value.startswith("~/") else value


def _expanded(path: Path) -> Path:
    """``path`` with ``~`` replaced; unchanged if the home folder is unknown."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


C = TypeVar("C", bound=Config)
Renamed = Mapping[str, Mapping[str, str | None]]


def read(path: Path) -> dict[str, Any]:
    """The table of a TOML file.

    Raises:
        ConfigError: the file is missing, is not UTF-8, or is not TOML (with line and column).
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe; `ls recipes` lists the bundled ones") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a recipe: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def override(table: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A copy of ``table`` with ``a.b=c`` assignments applied; values are TOML, bare words strings, ``a.b=`` is none.

    Raises:
        ConfigError: an assignment without ``=``, or one into a value that is no table.
    """
    result: dict[str, Any] = json.loads(json.dumps(table, default=str))
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise ConfigError(f"override {assignment!r} is not of the form a.b=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"] if text else None
        except tomllib.TOMLDecodeError:
            value = text
        *parents, last = name.split(".")
        inner = result
        for parent in parents:
            if inner.get(parent) is None:  # missing, or saved as none
                inner[parent] = {}
            step: Any = inner[parent]
            if not isinstance(step, dict):
                raise ConfigError(f"override {assignment!r}: {parent!r} is a value, not a table")
            inner = cast("dict[str, Any]", step)
        inner[last] = value
    return result


def check(kind: type[C], table: Mapping[str, Any], origin: str, renamed: Renamed | None = None) -> C:
    """``table`` as a frozen ``kind``.

    Args:
        kind: the settings class.
        table: the settings.
        origin: where they were read from, for the message.
        renamed: old keys by their table (``"optim"``), and their new names; None for keys without a successor.

    Raises:
        ConfigError: naming each unknown or ill-typed key, and listing the known ones.
    """
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        lines = [_explain(kind, detail, renamed or {}) for detail in error.errors()]
        raise ConfigError(f"{origin}: " + "; ".join(lines)) from None


def load(kind: type[C], path: Path, assignments: Iterable[str] = ()) -> C:
    """``read``, ``override`` and ``check`` in one: a recipe file to its frozen settings."""
    return check(kind, override(read(path), assignments), str(path))


def _explain(kind: type[Config], detail: ErrorDetails, renamed: Renamed) -> str:
    """One line for one of pydantic's errors: the key, the value, the remedy."""
    path, known = _place(kind, detail["loc"])
    where = ".".join(path) or "(whole recipe)"
    if detail["type"] == "extra_forbidden":
        table = ".".join(path[:-1])
        if path[-1] in renamed.get(table, {}):
            new = renamed[table][path[-1]]
            if new is None:
                return f"{where!r} no longer exists: leave it out"
            if new in known:
                return f"{where!r} is now {table + '.' + new!r}: rename it"
        close = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"unknown key {where!r}: {hint}known keys here are {', '.join(known)}"
    if detail["type"] == "union_tag_invalid":
        context = detail.get("ctx", {})
        return f"unknown {where} {context.get('tag')!r}: there are {context.get('expected_tags')}"
    if detail["type"] == "union_tag_not_found":
        return f"'{where}.name' is missing"
    if detail["type"] == "missing":
        return f"{where!r} is missing"
    if detail["type"] == "value_error":  # a rule about several keys, which would print their whole table
        return f"{where!r}: {detail['msg'].removeprefix('Value error, ')}"
    return f"{where!r} = {detail['input']!r}: {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _place(kind: type[Config], loc: tuple[str | int, ...]) -> tuple[list[str], list[str]]:
    """A place in a recipe as the user wrote it, and the known keys of its table.

    After the key of a tagged union pydantic names the tag (``task``, ``pretrain``, ``mask``), which is no key.
    """
    here, path, known = kind, list[str](), sorted(kind.model_fields)
    parts = iter(loc)
    for part in parts:
        path.append(str(part))
        known = sorted(here.model_fields)
        field = here.model_fields.get(str(part))
        members = _members(field.annotation) if field is not None else []
        if not members:
            break
        here = members[0]
        if len(members) > 1:
            tag = next(parts, None)
            here = next((member for member in members if tag in _tags(member)), here)
    return path + [str(part) for part in parts], known


def _tags(kind: type[Config]) -> tuple[Any, ...]:
    """The literal values of the ``name`` of a member of a tagged union."""
    return get_args(kind.model_fields["name"].annotation) if "name" in kind.model_fields else ()


def _members(annotation: Any) -> list[type[Config]]:
    """Every settings class named in a type annotation."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Config) else []
    return [member for part in get_args(annotation) for member in _members(part)]
