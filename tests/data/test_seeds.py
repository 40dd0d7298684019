"""Random streams are functions of the integers that name them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from evilm.data import seeds


def test_known_values() -> None:
    """Pinned: another value would give every run of every recipe other crops, masks and captions."""
    assert seeds.derive(0, "sample", 0, 0) == 2454421176976838069
    assert seeds.derive(0) == 4246866556266386882


def test_a_seed_is_a_63_bit_number() -> None:
    found = [seeds.derive(0, i) for i in range(5000)]
    assert all(0 <= seed < 2**63 for seed in found)
    assert max(found) > 2**62
    assert len(set(found)) == len(found)


def test_paths_are_told_apart_part_by_part() -> None:
    assert seeds.derive(1, 23) != seeds.derive(12, 3)
    assert seeds.derive(1, 2) != seeds.derive(2, 1)
    assert seeds.derive(0, "words") != seeds.derive(0, "regions")


def test_equal_in_another_process() -> None:
    code = "from evilm import seeds; print(seeds.derive(3, 'x', 4), *seeds.permutation(3, 4, 8))"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}).stdout
    assert found.split() == [str(seeds.derive(3, "x", 4)), *map(str, seeds.permutation(3, 4, 8))]


def test_an_order_holds_every_sample_once_and_changes_with_epoch_and_seed() -> None:
    first = seeds.permutation(0, 0, 1000)
    assert sorted(first) == list(range(1000))
    assert (first == seeds.permutation(0, 0, 1000)).all()
    assert (first != seeds.permutation(0, 1, 1000)).any()
    assert (first != seeds.permutation(1, 0, 1000)).any()


def test_streams_of_neighbouring_samples_are_unrelated() -> None:
    draws = np.stack([seeds.generator(0, "sample", i).random(64) for i in range(200)])
    assert abs(draws.mean() - 0.5) < 0.01
    correlation = np.corrcoef(draws)[~np.eye(200, dtype=bool)]
    assert np.abs(correlation).max() < 0.6  # of 64 numbers each; 0.125 is one standard deviation
    assert abs(correlation.mean()) < 0.01
