from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import pytest

from evilm import cli
from evilm.report import env

if TYPE_CHECKING:
    from types import ModuleType


def test_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["env"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines.keys() == {"evilm", "torch", "devices", "auto", "video", "cores", "memory"}
    assert f"torchvision {version('torchvision')}" in lines["torch"]
    assert lines["devices"].endswith("cpu")


@pytest.mark.parametrize("message", ["operator torchvision::nms does not exist\nTraceback", ""])
def test_torchvision_for_another_torch_is_explained(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    load = importlib.import_module

    def broken(name: str, *rest: Any) -> ModuleType:
        if name == "torchvision":
            raise RuntimeError(message)
        return load(name, *rest)

    monkeypatch.setattr(importlib, "import_module", broken)
    finding = dict(env.examine())["torch"]
    assert "torchvision cannot be imported because it was built for another version of torch" in finding
    assert finding.endswith("pip install --force-reinstall torch torchvision")
    assert "\n" not in finding


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(env, "version", missing)
    assert dict(env.examine())["torch"].startswith("not installed: torch, torchvision, timm, transformers;")
