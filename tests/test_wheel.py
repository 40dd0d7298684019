"""What is installed: the wheel has the recipes and the words, and works where the sources are not."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the backend of pyproject.toml, without a network and without isolation."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the wheel, is not installed: pip install -e '.[dev]'")
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    [path] = out.glob("evilm-*.whl")
    return path


def test_the_wheel_has_everything_that_the_package_reads(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        words = json.loads(archive.read("evilm/data/words/coco-9157.origin.json"))
    assert words
    for recipe in (ROOT / "recipes").glob("**/*.toml"):
        assert f"evilm/recipes/{recipe.relative_to(ROOT / 'recipes').as_posix()}" in names
    package = ROOT / "src" / "evilm"
    own = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".pyc", ".tmp")}
    lacking = [path for path in own if f"evilm/{path.relative_to(package).as_posix()}" not in names]
    assert lacking == []
    strange = [name for name in names if not name.startswith(("evilm/", "evilm-"))]
    assert strange == []


@pytest.mark.slow
def test_the_wheel_works_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """Its requirements are lent by this environment, its own code is not: the sources are out of reach."""
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    python = home / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, text=True)
    # As a plain path: the .pth file of an editable install counts in a site directory alone.
    environment = os.environ | {"PYTHONPATH": sysconfig.get_paths()["purelib"]}

    def said(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = said(str(python), "-c", "import evilm; print(evilm.__file__)")
    assert Path(where.strip()).is_relative_to(home)
    assert said(str(home / "bin" / "evilm"), "--version").startswith("evilm ")
    recipes = said(
        str(python), "-c",
        "from evilm.training import recipe; path = recipe.find('world-retrieval'); recipe.load(path); print(path)",
    )  # fmt: skip
    assert Path(recipes.strip()).is_relative_to(home)
    program = "from evilm.data.vocabulary import Vocabulary; print(Vocabulary.default().size)"
    assert said(str(python), "-c", program).strip() == "9157"
    assert "27.0 / 51.7 / 64.4" in said(str(home / "bin" / "evilm"), "report", "table", "2")
