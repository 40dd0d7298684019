"""Folders of the server machine by opaque ids: only those below the roots that the command line allows."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from typing import TYPE_CHECKING

from evilm.errors import QueryError

if TYPE_CHECKING:
    from pathlib import Path

MAX_LISTED = 2000  # folders in a folder
_MAX_KNOWN = 20_000  # listed folders whose ids are kept


class Folders:
    """Lists folders and finds them again by their ids.

    Args:
        roots: the allowed folders.
    """

    def __init__(self, roots: tuple[Path, ...]) -> None:
        self._roots = {_id_of(root): root.resolve() for root in roots}
        self._known: OrderedDict[str, Path] = OrderedDict()

    def list(self, parent: str | None) -> list[dict[str, str]]:
        """Folders below another one, hidden ones left out; without a parent the roots.

        Raises:
            QueryError: there is no such folder, or it cannot be listed.
        """
        if parent is None:
            return [{"folder": key, "name": root.name or str(root)} for key, root in self._roots.items()]
        folder = self.find(parent)
        rows: list[dict[str, str]] = []
        try:
            entries = sorted(folder.iterdir(), key=lambda path: path.name.lower())
        except OSError:
            raise QueryError("this folder cannot be listed") from None
        for path in entries:
            if len(rows) == MAX_LISTED:
                break
            if not path.name.startswith(".") and path.is_dir() and self._is_allowed(path):
                self._known[_id_of(path)] = path.resolve()
                rows.append({"folder": _id_of(path), "name": os.fsencode(path.name).decode(errors="replace")})
        while len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        return rows

    def find(self, key: str) -> Path:
        """The folder with an id.

        Raises:
            QueryError: there is no such folder below the roots.
        """
        path = self._roots.get(key) or self._known.get(key)
        if path is None or not self._is_allowed(path):
            raise QueryError("there is no such folder below the allowed ones; see `evilm serve --root`")
        return path

    def _is_allowed(self, path: Path) -> bool:
        real = path.resolve()
        return any(real.is_relative_to(root) for root in self._roots.values())


def _id_of(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:24]
