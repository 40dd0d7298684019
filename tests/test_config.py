"""A typo in a recipe is an error that says what there is, never a default taken in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from evilm import config
from evilm.config import Config
from evilm.errors import ConfigError


class Shape(Config):
    width: int = Field(default=8, gt=0)
    depth: int = 2


class Paint(Config):
    name: Literal["paint"] = "paint"
    colour: str = "red"
    shape: Shape = Shape()


class Carve(Config):
    name: Literal["carve"] = "carve"
    tool: Literal["knife", "chisel"] = "knife"
    shape: int = 1


class Job(Config):
    task: Annotated[Paint | Carve, Field(discriminator="name")]
    shape: Shape = Shape()
    maybe: Shape | None = None
    rate: float = 0.1
    out: Path = Path("here")


def written(folder: Path, text: str) -> Path:
    path = folder / "job.toml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(folder: Path, text: str, *overrides: str) -> str:
    path = written(folder, text)
    with pytest.raises(ConfigError) as caught:
        config.load(Job, path, overrides)
    message = str(caught.value)
    assert message.startswith((str(path), "override"))
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = written(tmp_path, 'out = "~/runs/a"\n[task]\nname = "paint"\ncolour = "~/b"\n')
    found = config.load(Job, path)
    assert found.out == tmp_path / "runs" / "a"
    assert isinstance(found.task, Paint)
    assert found.task.colour == str(tmp_path / "b")  # a text that stands for a path, as task.tokenizer does
    assert config.load(Job, path, ["out=~/c", "task.colour=a~/b"]).out == tmp_path / "c"
    assert config.load(Job, path, ["task.colour=a~/b"]).task == Paint(colour="a~/b")
    assert config.load(Job, path, ["out=~nobody-of-that-name/x"]).out == Path("~nobody-of-that-name/x")


def test_a_recipe_is_read(tmp_path: Path) -> None:
    path = written(
        tmp_path, 'rate = 1e-4\nout = "there"\n[task]\nname = "carve"\ntool = "chisel"\n[shape]\nwidth = 3\n'
    )
    job = config.load(Job, path)
    assert isinstance(job.task, Carve)
    assert (job.task.tool, job.shape.width, job.shape.depth, job.rate, job.out) == ("chisel", 3, 2, 1e-4, Path("there"))


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Shape().width = 3


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(b'\xef\xbb\xbf[task]\nname = "paint"\n')
    assert config.load(Job, path).task.name == "paint"


def test_an_unknown_key_names_the_close_one_and_all_there_are(tmp_path: Path) -> None:
    found = complaint(tmp_path, 'rat = 1\n[task]\nname = "paint"')
    assert found == "unknown key 'rat': did you mean 'rate'? known keys here are maybe, out, rate, shape, task"


def test_an_unknown_key_of_a_group_lists_the_keys_of_that_group(tmp_path: Path) -> None:
    found = complaint(tmp_path, '[task]\nname = "paint"\n[shape]\nwith = 1')
    assert found == "unknown key 'shape.with': did you mean 'width'? known keys here are depth, width"
    assert "known keys here are depth, width" in complaint(tmp_path, '[task]\nname = "paint"\n[maybe]\nzzz = 1')


def test_an_unknown_key_of_a_task_lists_the_keys_of_that_very_task(tmp_path: Path) -> None:
    """And the place is called as the recipe calls it, without the name of the union's member."""
    found = complaint(tmp_path, '[task]\nname = "carve"\ntol = "knife"')
    assert found == "unknown key 'task.tol': did you mean 'tool'? known keys here are name, shape, tool"
    found = complaint(tmp_path, '[task]\nname = "paint"\ntol = "knife"')
    assert found == "unknown key 'task.tol': known keys here are colour, name, shape"
    found = complaint(tmp_path, '[task]\nname = "paint"\n[task.shape]\nhigh = 1')
    assert found == "unknown key 'task.shape.high': known keys here are depth, width"


def test_several_mistakes_are_said_at_once(tmp_path: Path) -> None:
    found = complaint(tmp_path, 'rat = 1\nrate = "fast"\n[task]\nname = "paint"')
    assert "'rat'" in found
    assert "'rate' = 'fast'" in found


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ('rate = "fast"', "'rate' = 'fast': input should be a valid number"),
        ("[shape]\nwidth = 0", "'shape.width' = 0: input should be greater than 0"),
        ("[shape]\nwidth = 1.5", "'shape.width' = 1.5: input should be a valid integer"),
        ("shape = 3", "'shape' = 3: input should be a valid dictionary"),
    ],
)
def test_an_ill_typed_value_is_named_with_what_it_should_be(tmp_path: Path, line: str, wanted: str) -> None:
    assert complaint(tmp_path, line + "\n", "task.name=paint").startswith(wanted)


def test_a_value_of_a_closed_list(tmp_path: Path) -> None:
    found = complaint(tmp_path, '[task]\nname = "carve"\ntool = "spoon"')
    assert found == "'task.tool' = 'spoon': input should be 'knife' or 'chisel'"


def test_a_task_that_does_not_exist_or_is_not_named(tmp_path: Path) -> None:
    found = complaint(tmp_path, '[task]\nname = "glue"')
    assert "glue" in found
    assert "'paint', 'carve'" in found
    assert complaint(tmp_path, "[task]") == "'task.name' is missing"
    assert complaint(tmp_path, "rate = 1") == "'task' is missing"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("out = 'x'\nrate = \n", "line 2, column 8"),
        ("rate = 1\nrate = 2\n", "line 2"),
        ("[task\n", "line 1"),
        ("\u0000", "line 1"),
        ("rate =", "end of document"),
    ],
)
def test_what_is_no_toml_is_said_with_its_place(tmp_path: Path, text: str, where: str) -> None:
    found = complaint(tmp_path, text)
    assert found.startswith("not TOML")
    assert where in found


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: no such recipe"):
        config.read(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        config.read(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'a = "\xe9"')
    with pytest.raises(ConfigError, match="cannot be read"):
        config.read(tmp_path / "latin.toml")


def test_overrides_are_toml_or_bare_words() -> None:
    table = config.override(
        {"a": {"b": 1}}, ["a.b=2", "a.c=true", "d.e.f=1e-3", "g=word", "h=[1, 2]", 'i="3"', "j=a=b", "k=a/b c"]
    )
    assert table == {
        "a": {"b": 2, "c": True},
        "d": {"e": {"f": 1e-3}},
        "g": "word", "h": [1, 2], "i": "3", "j": "a=b", "k": "a/b c",
    }  # fmt: skip


def test_overrides_leave_the_table_they_start_from() -> None:
    table = {"a": {"b": 1}}
    config.override(table, ["a.b=2"])
    assert table == {"a": {"b": 1}}


@pytest.mark.parametrize("assignment", ["a.b", "=3", ""])
def test_an_override_that_assigns_nothing(assignment: str) -> None:
    with pytest.raises(ConfigError, match=r"not of the form a\.b=value"):
        config.override({}, [assignment])


def test_an_override_through_a_value() -> None:
    with pytest.raises(ConfigError, match="'b' is a value, not a table"):
        config.override({"a": {"b": 1}}, ["a.b.c=2"])


def test_an_override_with_a_typo_is_found_like_any_other(tmp_path: Path) -> None:
    assert "did you mean 'width'" in complaint(tmp_path, '[task]\nname = "paint"', "shape.widht=3")


def test_there_are_at_most_130_settings() -> None:
    """A setting counts once, in the class that defines it."""
    from evilm.training.recipe import Recipe

    settings: set[tuple[str, str]] = set()

    def collect(kind: type[Config]) -> None:
        for name, field in kind.model_fields.items():
            members = config._members(field.annotation)
            for member in members:
                collect(member)
            if not members:
                owner = [base for base in kind.__mro__ if name in vars(base).get("__annotations__", {})][-1]
                settings.add((owner.__name__, name))

    collect(Recipe)
    assert len(settings) <= 130
