"""The documents: every relative link leads somewhere, and every block of commands marked as run is run.

A block of commands in a document is executed here, in an empty folder, when the line before it is ``<!-- run -->``
(in the fast suite), ``<!-- run: slow -->``, or ``<!-- run: small -->``: then worlds have few clips and trainings few
steps. What is not run, in documents and at the head of recipes, is read as far as its recipe and the changes to it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^<!-- run(?:: (slow|small))? -->\n+```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^[#\s]*(evilm train .*)|`(evilm train .*?)`", re.MULTILINE)
SMALL = "optim.epochs=0.4 optim.batch_size=16 data.workers=0 run.threads=1 run.device=cpu"


class Block(NamedTuple):
    """Commands of a document, whether running them takes long, and whether they are run smaller than they are."""

    where: str
    commands: str
    slow: bool
    small: bool = False


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
        Block(
            f"{document.name}:{text.count(chr(10), 0, found.start(2)) + 1}",
            found[2],
            bool(found[1]),
            found[1] == "small",
        )
        for found in BLOCK.finditer(text)
    ]


def shrunk(commands: str) -> str:
    """The same commands with a world of 96 clips and trainings of a few steps."""
    fewer = re.sub(r"--clips \d+", "--clips 96", commands)
    return re.sub(r"^(evilm train [^#\n]*)", rf"\1 {SMALL} ", fewer, flags=re.MULTILINE)


def trainings(path: Path) -> list[list[str]]:
    """The training commands that a document or the head of a recipe names, word by word."""
    found = COMMAND.findall(re.sub(r"\\\n\s*", "", path.read_text(encoding="utf-8")))  # continued lines
    return [shlex.split(first or second, comments=True) for first, second in found]


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
    if "--cluster" in block.commands:
        pytest.importorskip("ray.train", reason="Ray Train is not installed", exc_type=ImportError)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", shrunk(block.commands) if block.small else block.commands],
        cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{block.where}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.parametrize(
    "path", [*DOCUMENTS, *sorted(ROOT.glob("recipes/**/*.toml"))], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_training_commands_name_a_recipe(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evilm.training import recipe

    monkeypatch.chdir(ROOT)
    for _, _, name, *changes in trainings(path):
        if name.isupper():  # RECIPE, in a text about all of them
            continue
        options = {place for place, change in enumerate(changes) if change.startswith("--")}
        values = {place + 1 for place in options if changes[place] in ("--cluster", "--processes")}
        overrides = [change for place, change in enumerate(changes) if place not in options | values]
        recipe.load(recipe.find(name), overrides)


def test_training_commands_are_found_and_shrunk(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text("see `evilm train a.toml x=1` and\n#   evilm train b.toml\nevilm train c y=2  # why\n")
    assert trainings(document) == [
        ["evilm", "train", "a.toml", "x=1"], ["evilm", "train", "b.toml"], ["evilm", "train", "c", "y=2"]
    ]  # fmt: skip
    assert shrunk("evilm data synthetic w --clips 5000\nevilm train c y=2  # why\nevilm evaluate c\n") == (
        f"evilm data synthetic w --clips 96\nevilm train c y=2   {SMALL} # why\nevilm evaluate c\n"
    )


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
    document.write_text("<!-- run: small -->\n```sh\nevilm data synthetic w\n```\n")
    assert blocks(document) == [Block("a.md:3", "evilm data synthetic w\n", slow=True, small=True)]
    document.write_text("```sh\nno\n```\n<!-- run -->\n```sh\none\ntwo\n```\n\n<!-- run: slow -->\n\n```\nthree\n```\n")
    assert blocks(document) == [Block("a.md:6", "one\ntwo\n", slow=False), Block("a.md:13", "three\n", slow=True)]
