from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from evilm import cli
from evilm.cluster import plan
from evilm.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

COSTS = plan.Throughputs(
    machine="a machine", command="a command", date="2026-01-01", cpu_decode_segment=0.5, cpu_encode_segment=0.25,
    cpu_pack_clip=1.0, cpu_label_clip=2.0, cpu_train_clip=0.5, commit_file=0.001, start_worker=10.0,
    bytes_packed_clip=1e5, bytes_label_clip=1e3, bytes_index_segment=2e3,
)  # fmt: skip
JOB = plan.Job(clips=36_000, seconds=18, nodes=2, cpus=10, mbit=4, epochs=3, months=2)
PRICES = plan.Prices(cpu_hour=0.1, gpu_hour=3.0, gb_month=0.5, gb_network=0.01)


def test_hours_and_costs_are_those_worked_out_by_hand() -> None:
    pack, labels, training, index = plan.plan(JOB, COSTS, PRICES)
    # 36,000 clips of 18 s at 4 Mbit/s are 324 GB; each has three segments of at most 8 s.
    assert (pack.cpu_hours, pack.network_gb, pack.storage_gb) == pytest.approx((10, 324, 3.6))
    assert pack.hours == pytest.approx(10 / 20)
    assert pack.cost == pytest.approx(10 * 0.1 + 3.6 * 2 * 0.5 + 324 * 0.01)
    assert (labels.cpu_hours, labels.storage_gb, labels.network_gb) == pytest.approx((20, 0.036, 3.6))
    assert (training.cpu_hours, training.network_gb) == pytest.approx((15, 3 * 3.6))
    assert (index.cpu_hours, index.storage_gb) == pytest.approx((3 * 36_000 * 0.75 / 3600, 0.216))
    assert {each.gpu_hours for each in (pack, labels, training, index)} == {0}


def test_a_stage_with_a_gpu_cost_moves_to_gpus() -> None:
    costs = COSTS.model_copy(update={"gpu_train_clip": 0.01, "gpu_encode_segment": 0.002})
    job = plan.Job(clips=36_000, seconds=8, nodes=2, cpus=10, gpus=4, epochs=3)
    _, labels, training, index = plan.plan(job, costs, PRICES)
    assert (training.cpu_hours, training.gpu_hours) == pytest.approx((0, 0.3))
    assert training.hours == pytest.approx(0.3 / 8)
    assert labels.gpu_hours == 0
    assert (index.cpu_hours, index.gpu_hours) == pytest.approx((5, 0.02))  # videos are decoded on processors


def test_one_process_that_commits_is_a_limit() -> None:
    job = plan.Job(clips=36_000, seconds=8, nodes=1000, cpus=100)
    assert plan.plan(job, COSTS, PRICES)[3].hours == pytest.approx(36_000 * 0.001 / 3600)
    few, _, many = plan.predictions(job, COSTS)
    assert few["commit"] < many["commit"] <= 1
    assert many["seconds"] >= 36


def test_the_simulation_replays_tasks() -> None:
    # 8 files of 1 s in tasks of 2: one worker needs 2 + 8 s and the last commits 0.2; two workers 2 + 4 s.
    one = plan.simulate(8, 1.0, 1, commit=0.1, start=2.0)
    two = plan.simulate(8, 1.0, 2, commit=0.1, start=2.0)
    assert one["seconds"] == pytest.approx(10.2)
    assert two["seconds"] == pytest.approx(6.2)
    assert two["efficiency"] == pytest.approx(4 / 6.2)
    # If commits take longer than the work, they alone count: the first answer after 3 s, then 8 commits of 5 s.
    assert plan.simulate(8, 1.0, 8, commit=5.0, start=2.0)["seconds"] == pytest.approx(43)


@pytest.mark.parametrize(("text", "count"), [("300k", 3e5), ("2.5M", 2.5e6), ("1B", 1e9), ("12", 12)])
def test_counts(text: str, count: float) -> None:
    assert plan.parse_count(text) == count


@pytest.mark.parametrize("text", ["", "M", "many", "-3", "nan", "1e400"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="such as 300k"):
        plan.parse_count(text)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices, costs = tmp_path / "prices.toml", tmp_path / "costs.json"
    prices.write_text("cpu_hour = 0.1\n")
    costs.write_text(COSTS.model_dump_json())
    command = ["plan", "--clips", "36k", "--nodes", "2", "--prices", str(prices), "--throughputs", str(costs)]
    assert cli.run([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in told["stages"]] == ["pack", "labels", "pre-training", "index"]
    assert [each["nodes"] for each in told["simulated"]] == [2, 8, 64]
    assert cli.run([*command, "--gpus", "8"]) == 0
    assert "no GPU was measured" in capsys.readouterr().out
    prices.write_text("cpu_hours = 0.1\n")
    assert cli.run(command) == 2
    assert "cpu_hours" in capsys.readouterr().err
    costs.write_text("{")
    assert cli.run(["plan", "--clips", "1", "--throughputs", str(costs)]) == 2
    assert "no file of throughputs" in capsys.readouterr().err


def test_the_stored_throughputs_are_complete() -> None:
    costs = plan.read_throughputs()
    assert costs.machine
    assert all(value > 0 for value in costs.model_dump().values() if isinstance(value, float))
