"""Weights by name where there is no network: one sentence at once, and nothing is left behind."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from evilm import hub
from evilm.errors import CheckpointError
from evilm.training import trainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import NoReturn

    from evilm.model.presets import ModelConfig
    from evilm.model.tokenizer import TokenizerConfig
    from evilm.training.recipe import Recipe

BERT = "google/bert_uncased_L-6_H-128_A-2"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A machine without a network, whose libraries have not been told so; the hosts that are asked for."""
    from huggingface_hub import constants

    hosts: list[str] = []

    def nobody(address: tuple[str, int], *_: Any, **__: Any) -> NoReturn:
        hosts.append(address[0])
        raise TimeoutError

    def nowhere(host: str, *_: Any, **__: Any) -> NoReturn:
        hosts.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    def waits(_: float) -> NoReturn:
        raise AssertionError("somebody waits to try again")

    monkeypatch.setattr(socket, "create_connection", nobody)
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    monkeypatch.setattr(time, "sleep", waits)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return hosts


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"backbone_weights": "hub"}, r"backbone 'edgenext_xx_small': its weights cannot be fetched .* without a netw"),
        (
            {"text_weights": BERT},
            rf"model\.text_weights = '{BERT}': .* cannot be fetched .*; without a network, name a",
        ),
    ],
    ids=["timm", "bert"],
)
def test_a_model_by_name(
    make_recipe: Callable[..., Recipe], tiny: ModelConfig, tmp_path: Path, asked: list[str],
    change: dict[str, str], complaint: str,
) -> None:  # fmt: skip
    model = {**tiny.model_dump(), "backbone_options": {}, **change}
    made = make_recipe(tmp_path / "run", {"name": "pretrain", "mvm_weight": 0}, model=model)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        trainer.train(made)
    assert "\n" not in str(caught.value)
    assert asked == ["huggingface.co"]
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_by_name(tiny_tokenizer: TokenizerConfig, asked: list[str]) -> None:
    from evilm.model.tokenizer import Tokenizer

    swin = {"encoder": "swin3d_t", "encoder_options": {}, "stride": 32, "encoder_weights": "hub"}
    with pytest.raises(CheckpointError, match=r"'swin3d_t': its weights cannot be fetched .* without a network, use"):
        Tokenizer(tiny_tokenizer.model_copy(update=swin), 5)
    assert asked == ["download.pytorch.org"]


def test_what_was_fetched_before_is_found_without_asking(asked: list[str]) -> None:
    from huggingface_hub import constants

    with hub.hub_or_cache():
        assert constants.is_offline_mode()
    assert not constants.is_offline_mode()
    constants.HF_HUB_OFFLINE = True
    assert not hub.hub_reachable()
    assert len(asked) == 1


def test_a_proxy_is_believed(monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    assert not hub.reachable("https://huggingface.co")
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    assert hub.reachable("https://huggingface.co")
    assert asked == ["huggingface.co"]
