"""The benchmarks of training do what they say: on a CPU, with next to nothing in them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from evilm.report.cost import cost_of

if TYPE_CHECKING:
    from types import ModuleType

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
TINY = ["--preset", "evilm-tiny", "--size", "64", "--frames", "2", "--device", "cpu", "--rounds", "1"]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``program("sweep")``: a benchmark as a module."""

    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(FOLDER))
        for each in ("pretrain_step", "roofline", name):
            monkeypatch.delitem(sys.modules, each, raising=False)
        return importlib.import_module(name)

    return load


def test_operations_are_counted_by_hand(program: Any) -> None:
    roofline = program("roofline")
    found = roofline.Count()
    x, weight, bias = torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(5)
    with roofline.Counting(found):
        nn.functional.linear(x, weight, bias).relu()
    assert found.each == [("matrix", 2 * 2 * 3 * 5, 6 + 15 + 5 + 10, False), ("pointwise", 0.0, 20, False)]
    found = roofline.Count()
    pixels, kernel = torch.zeros(1, 4, 8, 8), torch.zeros(4, 1, 3, 3, requires_grad=True)
    back = torch.zeros(1, 4, 8, 8)
    with roofline.Counting(found):
        nn.functional.conv2d(pixels, kernel, padding=1, groups=4).backward(back)
    assert [(kind, flops) for kind, flops, _, _ in found.each][:2] == [
        ("depthwise", 2 * 4 * 64 * 9),
        ("depthwise", 2 * 4 * 64 * 9),  # of the kernel alone: the pixels want no gradient
    ]
    # 8 TFLOP at 2 TFLOP/s take 4 s, 4e12 bytes at 2 TB/s take 2 s: the slower counts, and pointwise is left out.
    made = roofline.Count([("matrix", 8e12, 2e12, False), ("norm", 0.0, 2e12, False), ("pointwise", 0.0, 2e12, False)])
    assert roofline.seconds(made, 2.0, 2.0, fused=True) == pytest.approx(4 + 2)
    assert roofline.seconds(made, 2.0, 2.0, fused=False) == pytest.approx(4 + 2 + 2)


def test_the_bound_agrees_with_what_a_model_costs(program: Any) -> None:
    found = program("roofline").bound("evilm-tiny", 2, 64, 64, 790.0, 4.3)
    cost = cost_of("evilm-tiny", 2, 64, 22).parts
    clip = found["a clip"]
    video = cost["video_encoder"].macs
    assert 2 * video / 1e9 <= clip["video forward"]["GFLOP"] <= 2 * (video + cost["projections"].macs) / 1e9 + 1e-3
    # One fusion whole, three whose last block is for [CLS] alone.
    assert 0.4 < clip["fuse forward"]["GFLOP"] / (4 * 2 * cost["fusion"].macs / 1e9) < 1
    assert 1.5 < clip["fuse back"]["GFLOP"] / clip["fuse forward"]["GFLOP"] < 2.6
    assert found["what"] == "arithmetic, not a measurement"
    assert found["clips/s at most"]["fused"] >= found["clips/s at most"]["unfused"] > 0


def test_variants_are_measured_in_turn(program: Any) -> None:
    train = program("train")
    arguments = train.parse([*TINY, "--batch", "4", "--extra", "recompute", "grad_accum_steps", "ema"])
    found = train.measure(arguments)
    names = {"without fused", "without encode_once", "with recompute", "with grad_accum_steps", "with ema", "plain"}
    assert names <= found["full is faster by"].keys()
    assert {"video", "text", "fuse", "backward", "optimiser"} <= found["share of the step"].keys()
    assert 0.5 < sum(found["share of the step"].values()) <= 1.01
    arguments.one = "with recompute"
    found = train.one(arguments)
    assert 0 < found["steps"] < found["process"]


def test_waiting_for_packed_frames_is_a_part_of_the_run(program: Any, small_world: Path) -> None:
    train = program("train")
    asked = [*TINY, "--batch", "4", "--workers", "0", "--steps", "3", "--world", str(small_world)]
    found = train.waiting(train.parse(asked))
    assert found.keys() == {"raw", "jpeg"}
    for each in found.values():
        shares = each["share of the run"]
        assert shares.keys() == {"load", "video", "text", "fuse", "backward", "optimiser"}
        assert 0 < shares["load"] < 0.9
        assert 0.5 < sum(shares.values()) < 1.01


def test_a_sweep_tells_rates_shares_and_hours(program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = program("sweep")
    real = sweep.Step

    def step(arguments: Any, *rest: Any, **named: Any) -> Any:
        if arguments.batch > 4:
            raise torch.cuda.OutOfMemoryError("no room")
        return real(arguments, *rest, **named)

    monkeypatch.setattr(sweep, "Step", step)
    asked = [*TINY, "--warmup", "1", "--batches", "2", "4", "8", "16", "--profile", str(tmp_path / "profile.txt")]
    found = sweep.sweep(sweep.parse(asked))
    assert [each["batch"] for each in found["tried"]] == [2, 4, 8]
    assert found["tried"][2]["out of memory"]
    rate = max(each["clips/s"] for each in found["tried"])
    assert found["clips/s"] == rate
    assert found["hours for 20 epochs of 2,500,000 clips"] == pytest.approx(20 * 2.5e6 / rate / 3600, abs=0.01)
    assert found["share of the ceiling"] == pytest.approx(found["TFLOP/s"] / 790, abs=1e-4)
    assert {"TFLOP/s", "share of the ceiling", "ms"} <= found["parts"]["backward"].keys()
    assert "tells nothing about a GPU" in found["device"]
    assert "aten::" in (tmp_path / "profile.txt").read_text()


def test_claims_are_a_table_between_two_marks(program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = program("claims")
    asked: list[str] = []

    def run(command: str) -> Any:
        asked.append(command)
        return {"ours": 2.0, "theirs": 9.0}

    monkeypatch.setattr(claims, "run", run)
    made = {
        "fast": claims.Claim("fast", "a.py --json {out}", lambda found: found["theirs"] / found["ours"], 5.0),
        "time": claims.Claim("time", "a.py --json {out}", lambda found: found["ours"], 60, False, " s"),
        "broken": claims.Claim("broken", "b.py", lambda found: found["nothing"]),
        "later": claims.Claim("later", "c.py", float),
    }
    results: dict[str, Any] = {}
    claims.measure(["fast", "time", "broken"], made, results)
    assert asked == ["a.py --json {out}", "b.py"]  # one run for both claims
    document = tmp_path / "a.md"
    document.write_text(f"before\n{claims.BEGIN}\nold\n{claims.END}\nafter\n")
    for _ in range(2):
        claims.write(document, claims.table(made, results))
    lines = document.read_text().splitlines()
    assert (lines[0], lines[-1], "old" in lines) == ("before", "after", False)
    assert lines[4].startswith("| fast | 4.5x | at least 5x | no |")
    assert lines[5].startswith("| time | 2 s | at most 60 s | yes |")
    assert "| failed |" in lines[6]
    assert "| not measured |" in lines[7]


def test_every_claim_names_a_program_and_stands_in_the_document(program: Any) -> None:
    claims = program("claims")
    text = claims.DOCUMENT.read_text(encoding="utf-8")
    for claim in claims.CLAIMS.values():
        assert (FOLDER / claim.command.split()[0]).is_file()
        assert f"| {claim.text} |" in text


@pytest.mark.slow
def test_the_run_on_a_gpu_is_rehearsed_on_the_cpu(program: Any, tmp_path: Path) -> None:
    gpu = program("gpu")
    options = gpu.parse([str(tmp_path), "--device", "cpu", "--tiny", "--minutes", "60"])
    lines = gpu.run(options)
    assert [line["stage"] for line in lines] == list(gpu.STAGES)
    assert [line for line in lines if "result" not in line] == []
    found = {line["stage"]: line["result"] for line in lines}
    assert found["agrees"]["fp32"]["agrees"]
    assert found["resumed"]["bit-equal"]
    assert found["eager"]["clips/s"] > 0
    assert found["learned"]["metrics"]
    assert (tmp_path / "results.jsonl").read_text().count("\n") == len(lines)


def test_a_gpu_stage_that_takes_too_long_does_not_cost_the_others(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = program("gpu")
    monkeypatch.setattr(gpu, "STAGES", {"one": (0.05, None), "two": (0.05, None)})
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(gpu, "_child", lambda *_: subprocess.Popen(sleeper))
    options = gpu.parse([str(tmp_path), "--device", "cpu", "--minutes", "1"])
    options.stages = None
    lines = gpu.run(options)
    assert [line["failed"] for line in lines] == ["took too long"] * 2
    options.minutes = 0.1
    assert "skipped" in gpu.run(options)[0]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
def test_throughputs_are_what_a_plan_reads(program: Any, tmp_path: Path) -> None:
    from evilm.cluster.plan import Throughputs

    throughputs = program("throughputs")
    small = ["--clips", "2", "--seconds", "2", "--pixels", "64", "96", "--rounds", "1", "--batch", "2"]
    options = throughputs.parse([str(tmp_path / "out.json"), "--preset", "evilm-tiny", *small])
    found = throughputs.measure(options, tmp_path)
    costs = Throughputs(machine="m", command="c", date="d", **found)
    assert min(value for value in costs.model_dump().values() if isinstance(value, float)) > 0
