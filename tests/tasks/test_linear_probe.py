"""The probe: nothing but its own layers is trained, and what it remembers is what it would compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from evilm.errors import DataError
from evilm.tasks.linear_probe import LinearProbe, LinearProbeConfig
from evilm.tasks.predictions import Prediction
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Callable

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.evilm import EViLM
    from evilm.types import Batch

NAMES = ("spins", "jumps", "grows")
ROWS = [
    Example(str(i), f"v{i}", Clip(Path(f"{i}.mp4")), label=i % 3, kind=NAMES[i % 3]) for i in range(6)
]  # fmt: skip


@pytest.fixture
def build(model: EViLM, vocabulary: Vocabulary) -> Callable[..., LinearProbe]:
    def make(**settings: object) -> LinearProbe:
        config = LinearProbeConfig.model_validate(settings)
        torch.manual_seed(1)
        return LinearProbe(model, vocabulary, config, LinearProbe.learn_facts(config, ROWS))

    return make


def test_classes_come_by_their_labels(build: Callable[..., LinearProbe]) -> None:
    assert build().classes == list(NAMES)
    gap = [replace(ROWS[0], label=2, kind="last"), replace(ROWS[0], label=0, kind=None)]
    assert LinearProbe.learn_facts(LinearProbeConfig(), gap) == {"classes": ["0", "1", "last"]}
    with pytest.raises(DataError, match=r"data\.train: row .* has no class label, which linear_probe needs"):
        LinearProbe.check_rows([replace(ROWS[0], label=None)], "data.train")


@pytest.mark.parametrize(("protocol", "count"), [("strict", 1), ("all-in-one", 3)])
def test_only_the_probe_is_trained(
    build: Callable[..., LinearProbe], random_batch: Callable[..., Batch], protocol: str, count: int,
    without_gradient: Callable[..., list[str]],
) -> None:  # fmt: skip
    task = build(protocol=protocol).train()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    trained = [name for name, parameter in task.named_parameters() if parameter.requires_grad]
    assert trained == [name for name in trained if name.startswith("classifier.")]
    assert len(trained) == 2 * count
    assert without_gradient(task, task.losses(random_batch(ROWS))) == []
    assert not task.model.training
    after = task.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in task.model.parameters())


def test_each_clip_is_encoded_once(build: Callable[..., LinearProbe], random_batch: Callable[..., Batch]) -> None:
    task, batch = build().train(), random_batch(ROWS)
    with torch.no_grad():
        expected = task.model.fuse_cls(video=task.encode(batch))
    assert torch.allclose(task._features(batch), expected, atol=1e-6)
    blank = replace(batch, frames=torch.zeros_like(batch.frames))
    assert torch.equal(task._features(blank), task._features(batch))
    # A new clip among known ones gets its own state.
    more = random_batch([ROWS[3], replace(ROWS[0], clip=Clip(Path("new.mp4"))), ROWS[1]])
    found = task._features(more)
    assert torch.equal(found[[0, 2]], task._features(batch)[[3, 1]])
    with torch.no_grad():
        assert torch.allclose(found[1], task.model.fuse_cls(video=task.encode(more))[1], atol=1e-6)


def test_evaluation_looks_at_the_frames_it_is_given(
    build: Callable[..., LinearProbe], random_batch: Callable[..., Batch]
) -> None:
    task = build().train()
    batch = random_batch(ROWS)
    task.losses(batch)
    task.eval()
    one = task.predict(batch)
    two = task.predict(replace(batch, frames=torch.zeros_like(batch.frames)))
    assert not np.allclose(one[0].values["logits"], two[0].values["logits"], atol=1e-4)


def test_metrics_by_hand(build: Callable[..., LinearProbe]) -> None:
    guesses = [0, 1, 1, 0, 0, 2]  # true: 0, 1, 2, 0, 1, 2
    predictions = [
        Prediction(row, i != 3, {"logits": np.eye(3)[guess]})
        for i, (row, guess) in enumerate(zip(ROWS, guesses, strict=True))
    ]
    summary = build().compute_metrics(predictions)
    # Right are 0, 1 and 5; row 3 would be, but has no frames.
    assert summary.metrics["accuracy"] == 50
    assert summary.metrics["top5"] == pytest.approx(500 / 6)
    assert summary.chance["accuracy"] == pytest.approx(100 / 3)
    assert summary.details["confusion"] == [[2, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert [row["predicted"] for row in summary.rows] == guesses


def test_a_label_outside_the_classes_is_wrong(build: Callable[..., LinearProbe]) -> None:
    rows = [replace(ROWS[0], label=None), replace(ROWS[0], label=17)]
    summary = build().compute_metrics([Prediction(row, True, {"logits": np.eye(3)[0]}) for row in rows])
    assert summary.metrics["accuracy"] == 0


def test_tied_classes_share_their_credit(build: Callable[..., LinearProbe]) -> None:
    def found(*logits: list[float]) -> tuple[dict[str, float], dict[str, float]]:
        rows = [Prediction(row, True, {"logits": np.array(one)}) for row, one in zip(ROWS, logits, strict=False)]
        metrics = build().compute_metrics(rows)
        return metrics.metrics, metrics.chance

    constant, chance = found(*[[0.5] * 3] * 6)
    assert constant["accuracy"] == pytest.approx(chance["accuracy"]) == pytest.approx(100 / 3)
    # Row i has the class i % 3: right alone, half of a tie of two, wrong, and wrong because its scores are undefined.
    assert found([2.0, 1, 0], [1.0, 1, 0], [1.0, 1, 0], [float("nan")] * 3)[0] == {"accuracy": 37.5, "top5": 75}
