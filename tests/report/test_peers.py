"""Models of other papers: their sizes agree with what their papers print, and their parts do what those say."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from evilm import cli
from evilm.report import latency, peers
from evilm.report.cost import Cost, cost_of
from evilm.report.peers import PEERS


@pytest.fixture(scope="module")
def costs() -> dict[str, Cost]:
    return {name: peers.peer_cost(name) for name in PEERS}


@pytest.mark.parametrize(
    ("name", "millions"),
    # As the papers print: all-in-one Table 1, VIOLET; CLIP ViT-B/32 has 151 M. Frozen: ViT-B/16 (86 M), its attention
    # over time (12 x 2.36 M) and DistilBERT (66 M).
    [("all-in-one-T", 12), ("all-in-one-S", 33), ("all-in-one-B", 110), ("VIOLET", 198), ("CLIP4Clip", 151),
     ("Frozen", 86 + 28.4 + 66)],
)  # fmt: skip
def test_parameters_are_those_of_the_papers(costs: dict[str, Cost], name: str, millions: float) -> None:
    assert costs[name].parameters / 1e6 == pytest.approx(millions, abs=0.8)
    assert costs[name].parameters < costs[name].parameters_with_heads


def test_macs_by_hand(costs: dict[str, Cost]) -> None:
    def transformer(depth: int, tokens: int, width: int) -> int:
        return depth * (12 * tokens * width**2 + 2 * tokens**2 * width)

    def vit(frames: int, patches: int, words: int, width: int, patch: int) -> int:
        return frames * (patches * 3 * patch**2 * width + transformer(12, 1 + patches + words, width))

    for name, width in (("T", 192), ("S", 384), ("B", 768)):
        assert costs[f"all-in-one-{name}"].macs == vit(3, 196, 40, width, 16)
    assert costs["CLIP4Clip"].macs == vit(12, 49, 0, 768, 32) + transformer(12, 32, 512)
    over_time = 12 * 196 * (4 * 4 * 768**2 + 2 * 4**2 * 768)
    assert costs["Frozen"].macs == vit(4, 196, 0, 768, 16) + over_time + transformer(6, 30, 768)
    heads = costs["all-in-one-T"].macs_with_heads - costs["all-in-one-T"].macs
    assert heads == 40 * (192 * 192 + 192 * peers.BERT_WORDS) + 192 * 192 + 192


def test_evilm_is_eight_times_cheaper_than_all_in_one_b(costs: dict[str, Cost]) -> None:
    assert costs["all-in-one-B"].macs / cost_of("evilm-small").macs > 8


def test_one_eighth_of_the_patches_rolls_each_way() -> None:
    # 2 clips of 3 frames with 16 patches: the value is the frame's number.
    frames = torch.arange(6.0)[:, None, None].expand(6, 16, 1)
    rolled = peers.roll(frames, 3)[:, :, 0]
    assert rolled[0].tolist() == [2, 2, 1, 1, *[0] * 12], "frame 0 gets patches of frame 2 and of frame 1"
    assert rolled[4].tolist() == [3, 3, 5, 5, *[4] * 12], "clips do not mix"


@pytest.mark.parametrize("name", ["all-in-one-T", "Frozen", "VIOLET"])
def test_frames_and_words_reach_the_outputs(name: str) -> None:
    torch.manual_seed(0)
    small: dict[str, Any] = {
        "all-in-one-T": lambda: peers.AllInOne(64, 1),
        "Frozen": lambda: peers.DualEncoder(64, 32, 64, 1, 50, 8, 16, divided=True, causal=False),
        "VIOLET": lambda: peers.Violet(32, (1, 1, 1, 1), 64),
    }
    model = small[name]().eval()
    for positions in (model.patches.space, model.time) if name != "VIOLET" else (model.space, model.time):
        torch.nn.init.normal_(positions)  # they start at zero, where the order of frames is lost
    frames, ids = torch.rand(2, 3, 3, 224, 224), torch.arange(10).view(2, 5)
    with torch.no_grad():
        out = model.apply_heads(*model(frames, ids))
        other = model.apply_heads(*model(frames[:, [0, 2, 1]], ids))
        words = model.apply_heads(*model(frames, ids + 7))
        alone = model.apply_heads(*model(frames[:1], ids[:1]))
    video = 0 if name == "Frozen" else 1
    assert not torch.allclose(out[-1], words[-1], atol=1e-6)
    assert not torch.allclose(out[video], other[video], atol=1e-7)
    for whole, one in zip(out, alone, strict=True):
        torch.testing.assert_close(whole[:1], one, atol=1e-4, rtol=1e-4)


def test_the_comparison(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(name: str, *sizes: int) -> dict[str, Any]:
        asked[name] = sizes
        return {"seconds": {"all": {"median": 0.25, "fastest": 0.2, "slowest": 1.0, "cpu": 0.3}}, "threads": 2,
                "memory_mib": {"peak": 1234, "before": 200}}  # fmt: skip

    asked: dict[str, tuple[int, ...]] = {}
    monkeypatch.setattr(latency, "measure", measure)
    assert cli.run(["cost", "--peers"]) == 0
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line}
    assert rows["evilm-small"] == "evilm-small 4 256 30 15.0 7.36 14.73 18.8 8.33 250 200 300 1,234".split()
    assert rows["all-in-one-B"][1:7] == "3 224 40 109.3 63.84 127.68".split()
    assert asked["VIOLET"] == (5, 224, 25)
    text = " ".join(shown.split())
    assert "evilm-small 7.4 GMAC, printed 12.2 (1.7 times)" in text
    assert "all-in-one-S 16.8 GMAC, printed 134 (8.0 times)" in text
    assert "all-in-one-B 63.8 GMAC, printed 235 (3.7 times)" in text
    assert cli.run(["cost", "evilm-tiny", "--peers", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [model["preset"] for model in models] == ["evilm-tiny", *PEERS]
    assert all(model["measured"]["memory_mib"]["peak"] == 1234 for model in models)


def test_a_peer_is_measured() -> None:
    found = latency.measure("all-in-one-T", 3, 224, 40)
    assert found["seconds"].keys() == {"all"}
    times = found["seconds"]["all"]
    assert 0 < times["fastest"] <= times["median"]
    assert times["cpu"] > 0
    assert found["memory_mib"]["peak"] > found["memory_mib"]["before"]
