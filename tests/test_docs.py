"""The documents: every relative link leads somewhere, and every block of commands marked as run is run.

A block of commands in a document is executed here, in an empty folder, when the line before it is ``<!-- run -->``
(in the fast suite) or ``<!-- run: slow -->``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^<!-- run(: slow)? -->\n+```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """Commands of a document, and whether running them takes long."""

    where: str
    commands: str
    slow: bool


def anchors(text: str) -> set[str]:
    """The names under which a document's headings are linked to."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(document: Path) -> list[str]:
    """Each relative link that leads nowhere; addresses of the world are not followed."""
    text = document.read_text(encoding="utf-8")
    said: list[str] = []
    for target in LINK.findall(FENCE.sub("", text)):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = document.parent / path if path else document
        if not file.exists():
            said.append(f"{document.name}: {target}: no such file")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8")):
            said.append(f"{document.name}: {target}: no such heading")
    return said


def blocks(document: Path) -> list[Block]:
    """The blocks of commands that a document marks as run."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(f"{document.name}:{text.count(chr(10), 0, found.start(2)) + 1}", found[2], bool(found[1]))
        for found in BLOCK.finditer(text)
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    assert broken(document) == []


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=block.where, marks=[pytest.mark.slow] if block.slow else [])
        for document in DOCUMENTS
        for block in blocks(document)
    ],
)
def test_commands_run(block: Block, tmp_path: Path) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", block.commands],
        cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{block.where}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# What's *here*?\n")
    document = tmp_path / "a.md"
    document.write_text(
        "[ok](b.md) [ok](b.md#whats-here) [ok](#top) [ok](https://example.org/x) ![no](c.png) [no](b.md#there)\n"
        "# Top\n```\n[not a link](nowhere.md)\n```\n"
    )
    assert broken(document) == ["a.md: c.png: no such file", "a.md: b.md#there: no such heading"]


def test_marked_blocks_are_found(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text("```sh\nno\n```\n<!-- run -->\n```sh\none\ntwo\n```\n\n<!-- run: slow -->\n\n```\nthree\n```\n")
    assert blocks(document) == [Block("a.md:6", "one\ntwo\n", slow=False), Block("a.md:13", "three\n", slow=True)]
