"""The house stands: imports only go down, the public names are these, the core is light, the recipes load."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import evilm

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "evilm"
RECIPES = sorted((ROOT / "recipes").glob("**/*.toml"))

# From the ground up. A room may import from its own layer and those below, and never from those above.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("types", "config", "errors"),
    ("losses", "metrics", "distributed", "files", "progress", "hub"),
    ("model", "data", "encoders"),
    ("tasks",),
    ("training",),
    ("inference", "export", "search", "report", "demo"),
    ("server", "cluster"),
    ("cli", "commands", "__init__", "__main__"),
)  # fmt: skip

# Rooms of one layer that do not know each other.
STRANGERS: tuple[frozenset[str], ...] = (frozenset({"model", "data"}), frozenset({"server", "cluster"}))

# Rooms whose own files do not know each other; what those files share is named here.
SEPARATE: dict[str, frozenset[str]] = {
    "tasks": frozenset({"task", "settings", "predictions", "batches", "masking", "caption_words", "ranking"}),
}

VAGUE = {"utils", "util", "common", "helpers", "helper", "misc"}

# Sorted as Python sorts: capitals, then underscores, then small letters.
PUBLIC = ["Client", "Embedder", "EvilmError", "VideoIndex", "__version__", "load"]


def module_name(file: Path, source: Path) -> str:
    """``src/evilm/data/video.py`` to ``evilm.data.video``; a package's ``__init__`` to the package."""
    parts = [source.name, *file.relative_to(source).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports(file: Path, source: Path) -> list[tuple[int, str]]:
    """Line and full module name of each import of our own, those inside functions and for type checkers too."""
    known = {module_name(each, source) for each in source.rglob("*.py")}
    packages = {f"{source.name}.{each.parent.relative_to(source).as_posix().replace('/', '.')}" for each in
                source.rglob("*/__init__.py")}  # fmt: skip
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module_name(file, source).split(".")
                up = node.level - (file.name == "__init__.py")
                base = ".".join([*here[: len(here) - up], *([node.module] if node.module else [])])
            # `from evilm.data import video` names a module; `from evilm.data.video import read` a thing in one.
            # The version is a plain string and anyone's.
            for alias in node.names:
                if (base, alias.name) == (source.name, "__version__"):
                    continue
                full = f"{base}.{alias.name}"
                found.append((node.lineno, full if full in known | packages else base))
    return [(line, name) for line, name in dict.fromkeys(found) if name.split(".")[0] == source.name]


def room(module: str) -> str:
    """``evilm.data.video`` to ``data``; ``evilm`` itself to ``__init__``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def violations(source: Path) -> list[str]:
    """Each breach of the layers, in words."""
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    said: list[str] = []
    for file in sorted(source.rglob("*.py")):
        module = module_name(file, source)
        if room(module) not in level:
            said.append(f"{module} is in no layer: give its room {room(module)!r} a place in LAYERS")
            continue
        for line, target in imports(file, source):
            where = f"{file.relative_to(source)}:{line}: {module} imports {target}"
            mine, other = room(module), room(target)
            if other not in level:
                said.append(f"{where}, whose room {other!r} is in no layer")
            elif level[other] > level[mine]:
                said.append(f"{where}, which goes up from layer {level[mine]} to layer {level[other]}")
            elif mine != other and any({mine, other} <= pair for pair in STRANGERS):
                said.append(f"{where}, but {mine} and {other} do not know each other")
            elif mine == other and mine in SEPARATE and _apart(module, target, SEPARATE[mine]):
                said.append(f"{where}, but the files of {mine} do not know each other")
    return said


def _apart(module: str, target: str, shared: frozenset[str]) -> bool:
    """Whether both are files of one room (its ``__init__`` may know all), are not the same, and neither is shared."""
    mine, other = module.split(".")[2:3], target.split(".")[2:3]
    return bool(mine) and bool(other) and mine != other and other[0] not in shared


def test_imports_only_go_down() -> None:
    said = violations(SOURCE)
    assert not said, "\n" + "\n".join(said)


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("losses.py", "def f():\n    from evilm.model.evilm import EViLM", "losses.py:2: evilm.losses imports evilm.m"),
        ("losses.py", "from evilm.model.evilm import EViLM", "which goes up from layer 1 to layer 2"),
        ("losses.py", "from evilm import model", "evilm.losses imports evilm.model, which goes up"),
        ("losses.py", "import evilm", "evilm.losses imports evilm, which goes up from layer 1 to layer 7"),
        ("losses.py", "from .model import evilm", "evilm.losses imports evilm.model.evilm, which goes up"),
        ("data/video.py", "from ..model.evilm import EViLM", "but data and model do not know each other"),
        ("data/__init__.py", "from ..model import evilm", "but data and model do not know each other"),
        ("tasks/probe.py", "from evilm.tasks import retrieval", "but the files of tasks do not know each other"),
        ("attic.py", "", "evilm.attic is in no layer"),
        ("losses.py", "import evilm.attic", "whose room 'attic' is in no layer"),
    ],
)  # fmt: skip
def test_a_breach_is_found_and_said(tmp_path: Path, file: str, text: str, complaint: str) -> None:
    source = _house(tmp_path)
    (source / file).write_text(text)
    assert [line for line in violations(source) if complaint in line]


def test_a_house_in_order_is_left_alone(tmp_path: Path) -> None:
    source = _house(tmp_path)
    (source / "tasks" / "__init__.py").write_text("from evilm.tasks import probe, retrieval")
    (source / "tasks" / "probe.py").write_text(
        "import torch, evilm.losses\nfrom evilm.model import evilm\nfrom evilm.tasks.task import Task"
    )
    (source / "model" / "evilm.py").write_text(
        "from . import blocks\nfrom evilm import __version__\nfrom evilm.errors import EvilmError"
    )
    assert violations(source) == []


def _house(folder: Path) -> Path:
    """A small package with rooms on layers 0 to 3."""
    source = folder / "evilm"
    for name in ("__init__", "errors", "losses", "model/__init__", "model/evilm", "model/blocks", "data/__init__",
                 "data/video", "tasks/__init__", "tasks/task", "tasks/probe", "tasks/retrieval"):  # fmt: skip
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / f"{name}.py").write_text("")
    return source


def cycles(source: Path) -> list[list[str]]:
    """Modules that import each other, types-only imports included: the strongly connected parts of more than one."""
    graph = {
        module_name(file, source): {target for _, target in imports(file, source)} - {module_name(file, source)}
        for file in source.rglob("*.py")
    }
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:  # Tarjan's algorithm
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for target in sorted(graph[module] & graph.keys()):
            if target not in order:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in stack:
                lowest[module] = min(lowest[module], order[target])
        if lowest[module] == order[module]:
            part = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(part) > 1:
                found.append(sorted(part))

    for module in sorted(graph):
        if module not in order:
            visit(module)
    return found


def test_no_import_cycles() -> None:
    assert cycles(SOURCE) == []


def test_a_cycle_is_found(tmp_path: Path) -> None:
    source = _house(tmp_path)
    (source / "model" / "blocks.py").write_text("if TYPE_CHECKING:\n    from evilm.model.evilm import EViLM")
    (source / "model" / "evilm.py").write_text("from evilm.model import blocks")
    assert cycles(source) == [["evilm.model.blocks", "evilm.model.evilm"]]


def test_the_house_is_small() -> None:
    """At most 10 modules and 25 entries at the top, and no file of more than 350 lines."""
    modules = [path for path in SOURCE.glob("*.py") if not path.stem.startswith("__")]
    rooms = [path for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert len(modules) <= 10
    assert len(modules) + len(rooms) <= 25
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in SOURCE.rglob("*.py")}
    assert {str(file.relative_to(SOURCE)): length for file, length in lengths.items() if length > 350} == {}


def test_no_room_has_a_vague_name() -> None:
    vague = [str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*") if path.stem.strip("_") in VAGUE]
    assert vague == [], "name each after what it is about"


def test_public_names() -> None:
    assert evilm.__all__ == PUBLIC, "a public name is a promise: change this list and CHANGELOG.md with it"
    assert sorted(PUBLIC) == PUBLIC
    for name in PUBLIC:
        assert getattr(evilm, name) is not None
    assert dir(evilm) == PUBLIC


def test_an_unknown_name_lists_the_public_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'VideoIndx'.*EvilmError"):
        _ = evilm.VideoIndx


def test_import_is_light() -> None:
    """No torch, and well under a second: the best of three, as other tests run beside this one."""
    program = (
        "import sys, time; start = time.perf_counter(); import evilm; seconds = time.perf_counter() - start; "
        "heavy = {'torch', 'numpy', 'av', 'transformers', 'timm', 'onnxruntime'} & set(sys.modules); "
        "print(seconds, *sorted(heavy))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(3)
    ]
    assert runs[0][1:] == [], f"`import evilm` brings in {runs[0][1:]}"
    assert min(float(run[0]) for run in runs) < 0.3


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_recipe_keys(path: Path) -> None:
    """Every key of every recipe is known to the settings that it is read into."""
    if importlib.util.find_spec("evilm.training.recipe") is None:
        pytest.skip("evilm.training.recipe, which reads recipes, is not there yet")
    importlib.import_module("evilm.training.recipe").load(path, ())
