"""Retrieval: the three protocols agree where they must, and a video without frames is found by nobody."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from evilm import losses
from evilm.errors import ConfigError
from evilm.tasks.predictions import Prediction
from evilm.tasks.retrieval import Retrieval, RetrievalConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.evilm import EViLM
    from evilm.types import Batch, Example


@pytest.fixture
def build(model: EViLM, vocabulary: Vocabulary) -> Callable[..., Retrieval]:
    def make(**settings: object) -> Retrieval:
        torch.manual_seed(1)
        return Retrieval(model, vocabulary, RetrievalConfig.model_validate({"embed_dim": 16, **settings}), {})

    return make


def whole(task: Retrieval, predictions: list[Prediction]) -> np.ndarray:
    """All scores of a task as one matrix."""
    every = np.arange(len(predictions))
    return task._scores(predictions)(every, every)


def predicted(rows: list[Example], video: np.ndarray, text: np.ndarray) -> list[Prediction]:
    """Predictions with given embeddings."""
    return [Prediction(row, True, {"video": v, "text": t}) for row, v, t in zip(rows, video, text, strict=True)]


@pytest.mark.parametrize(("vtm", "captions"), [(0.0, 1), (1.0, 1), (1.0, 2)])
def test_gradients_reach_every_parameter(
    build: Callable[..., Retrieval], random_batch: Callable[..., Batch], captioned: list[Example], vtm: float,
    captions: int, without_gradient: Callable[..., list[str]],
) -> None:  # fmt: skip
    task = build(vtm_weight=vtm, captions_per_video=captions).train()
    found = task.losses(random_batch(captioned))
    assert set(found.parts) == ({"contrastive", "vtm"} if vtm else {"contrastive"})
    assert without_gradient(task, found) == []


def test_two_rows_of_one_video_are_no_negatives(
    build: Callable[..., Retrieval], random_batch: Callable[..., Batch], captioned: list[Example]
) -> None:
    task = build(vtm_weight=1.0).eval()
    batch = random_batch([captioned[0], replace(captioned[0], key="again")])
    assert task.losses(batch).parts["contrastive"].item() == 0


def test_several_captions_of_a_video_are_drawn_together_and_each_looks_for_it(
    build: Callable[..., Retrieval], random_batch: Callable[..., Batch], captioned: list[Example]
) -> None:
    task = build(captions_per_video=3).train()
    batch = random_batch([replace(captioned[0], captions=("a", "b", "c", "d")), replace(captioned[1], captions=("e",))])
    drawn = task.several_captions(batch, 3)
    assert len(set(drawn[:3])) == 3  # none twice while there are others
    assert set(drawn[:3]) <= set("abcd")
    assert drawn[3:] == ["e", "e", "e"]
    assert drawn == task.several_captions(batch, 3)  # by the samples' seeds alone
    assert [drawn[0], drawn[3]] == task.captions(batch)
    assert task.eval().several_captions(batch, 3)[:3] == ["a", "b", "c"]
    with torch.no_grad():
        video, text = task.embed_encoded(task.encode(batch), task.model.encode_text(task.text(list("abceee"), batch)))
        wanted = losses.contrastive(video, text, task.embed.temperature)
        assert task.losses(batch).parts["contrastive"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_matching_takes_the_hardest_of_all_the_other_videos_captions(
    build: Callable[..., Retrieval], random_batch: Callable[..., Batch], captioned: list[Example]
) -> None:
    task = build(captions_per_video=2, vtm_weight=1.0).eval()
    batch = random_batch(captioned[:3])
    with torch.no_grad():
        video, text = task.encode(batch), task.model.encode_text(task.text(task.several_captions(batch, 2), batch))
        v, t = task.embed_encoded(video, text)
        closeness = v @ t.T
        scores: list[float] = []
        for i in range(3):
            closeness[i, 2 * i : 2 * i + 2] = -2
            rows = torch.tensor([2 * i, int(closeness[i].argmax())])
            scores += task.match(task.model.fuse_cls(video[torch.tensor([i, i])], text[rows])).tolist()
        wanted = losses.binary_matching(torch.tensor(scores).view(3, 2)).item()
        assert task.losses(batch).parts["vtm"].item() == pytest.approx(wanted, rel=1e-4)


def test_embeddings_have_length_one_and_one_modality_each(
    build: Callable[..., Retrieval], random_batch: Callable[..., Batch], captioned: list[Example]
) -> None:
    task = build().eval()
    batch = random_batch(captioned)
    first = task.predict(batch)
    other = task.predict(replace(batch, frames=batch.frames.flip(0)))
    for i, p in enumerate(first):
        assert np.linalg.norm(p.values["video"]) == pytest.approx(1, rel=1e-5)
        assert np.allclose(p.values["text"], other[i].values["text"], atol=1e-6)
        assert np.allclose(p.values["video"], other[5 - i].values["video"], atol=1e-5)


def test_metrics_by_hand(build: Callable[..., Retrieval], captioned: list[Example]) -> None:
    task = build()
    # Text i ranks videos by cosine: right at rank 1, 2, 3.
    angles = np.deg2rad([0.0, 40.0, 90.0])
    video = np.stack([np.cos(angles), np.sin(angles)], 1)
    turned = np.deg2rad([5.0, 10.0, 15.0])
    text = np.stack([np.cos(turned), np.sin(turned)], 1)
    summary = task.compute_metrics(predicted(captioned[:3], video, text))
    assert [row["rank"] for row in summary.rows] == [1, 2, 3]
    assert summary.metrics["R@1"] == pytest.approx(100 / 3)
    assert summary.metrics["R@5"] == 100
    assert summary.metrics["MdR"] == 2
    assert summary.rows[2]["first"] == ["video0", "video1", "video2"]
    # Video 0 finds its text first, video 1 has it second (15 is nearer to 40 degrees), video 2 first.
    assert summary.metrics["v2t_R@1"] == pytest.approx(200 / 3)
    assert summary.chance["R@1"] == pytest.approx(100 / 3)
    assert "3 texts x 3 videos" in summary.rule


def test_constant_embeddings_score_chance(build: Callable[..., Retrieval], captioned: list[Example]) -> None:
    summary = build().compute_metrics(predicted(captioned, np.ones((6, 4)), np.ones((6, 4))))
    assert summary.metrics["R@1"] == pytest.approx(100 / 6)
    assert summary.metrics["v2t_R@1"] == pytest.approx(100 / 6)
    assert summary.metrics["MdR"] == pytest.approx(3.5)


def test_an_unreadable_video_is_found_by_nobody(build: Callable[..., Retrieval], captioned: list[Example]) -> None:
    predictions = predicted(captioned[:4], np.eye(4), np.eye(4))
    predictions[1].readable = False
    summary = build().compute_metrics(predictions)
    assert [row["score"] for row in summary.rows] == [1, 0, 1, 1]
    assert summary.metrics["R@1"] == 75
    assert summary.metrics["R@10"] == 75
    assert summary.metrics["v2t_R@10"] == 75
    # Were it found by other texts instead, it would push others down.
    predictions[1].values["video"] = np.ones(4)
    assert build().compute_metrics(predictions).metrics["R@1"] == 75


def test_several_texts_of_one_video_all_find_it(build: Callable[..., Retrieval], captioned: list[Example]) -> None:
    rows = [captioned[0], replace(captioned[0], key="b"), captioned[1]]
    summary = build().compute_metrics(predicted(rows, np.eye(3)[[0, 0, 1]], np.eye(3)[[0, 0, 1]]))
    assert summary.metrics["R@1"] == 100


def test_relevance_can_be_said_from_outside(build: Callable[..., Retrieval], captioned: list[Example]) -> None:
    task = build()
    task.relevance = lambda predictions: np.ones((len(predictions), len(predictions)), dtype=bool)
    summary = task.compute_metrics(predicted(captioned, np.eye(6), np.eye(6)[::-1]))
    assert summary.metrics["R@1"] == 100
    assert summary.chance["R@1"] == 100


@pytest.fixture
def all_protocols(
    build: Callable[..., Retrieval], random_batch: Callable[..., Batch], captioned: list[Example]
) -> tuple[Callable[..., Retrieval], list[Prediction]]:
    """A maker of tasks with equal weights, and the predictions of one that keeps what fusion needs."""
    task = build(protocol="re-rank").eval()
    batches = [random_batch(captioned[i : i + 2], seed=i) for i in range(0, 6, 2)]
    return build, [p for batch in batches for p in task.predict(batch)]


def test_pairwise_scores_are_those_of_fusing_each_pair(
    all_protocols: tuple[Callable[..., Retrieval], list[Prediction]], random_batch: Callable[..., Batch],
    captioned: list[Example], vocabulary: Vocabulary,
) -> None:  # fmt: skip
    build, predictions = all_protocols
    task = build(protocol="pairwise").eval()
    scores = whole(task, predictions)
    with torch.no_grad():
        for column in range(6):
            seed = column // 2 * 2
            frames = random_batch(captioned[seed : seed + 2], seed=seed).frames[column - seed : column - seed + 1]
            video = task.model.encode_video(task.model.normalise(frames))
            for row in range(6):
                text = task.model.encode_text(vocabulary.encode([captioned[row].captions[0]], 30))
                wanted = task.match(task.model.fuse(video, text).cls).item()
                assert scores[row, column] == pytest.approx(wanted, abs=3e-3)  # kept in 16 bits


def test_re_ranking_everything_is_pairwise_and_one_is_the_dual_encoder(
    all_protocols: tuple[Callable[..., Retrieval], list[Prediction]],
) -> None:
    build, predictions = all_protocols
    pairwise = whole(build(protocol="pairwise").eval(), predictions)
    everything = whole(build(protocol="re-rank", rerank_top_k=6).eval(), predictions)
    assert (np.argsort(-everything) == np.argsort(-pairwise)).all()
    dual = build(protocol="dual-encoder").eval()
    one = build(protocol="re-rank", rerank_top_k=1).eval()
    assert (np.argsort(-whole(one, predictions)) == np.argsort(-whole(dual, predictions))).all()
    assert one.compute_metrics(predictions).metrics["R@1"] == dual.compute_metrics(predictions).metrics["R@1"]


def test_re_ranking_reorders_the_first_and_leaves_the_rest(
    all_protocols: tuple[Callable[..., Retrieval], list[Prediction]],
) -> None:
    build, predictions = all_protocols
    dual = np.argsort(-whole(build(protocol="dual-encoder").eval(), predictions), kind="stable")
    fused = whole(build(protocol="pairwise").eval(), predictions)
    found = np.argsort(-whole(build(protocol="re-rank", rerank_top_k=3).eval(), predictions), kind="stable")
    assert (found[:, 3:] == dual[:, 3:]).all()
    for row in range(6):
        wanted = sorted(dual[row, :3], key=lambda column: -fused[row, column])
        assert found[row, :3].tolist() == wanted


def test_ranking_by_pairs_needs_no_dual_encoder(
    build: Callable[..., Retrieval], random_batch: Callable[..., Batch], captioned: list[Example],
    without_gradient: Callable[..., list[str]],
) -> None:  # fmt: skip
    task = build(protocol="pairwise", contrastive_weight=0.0, vtm_weight=1.0)
    assert not any(name.startswith("embed.") for name in task.state_dict())
    batch = random_batch(captioned)
    found = task.train().losses(batch)
    assert set(found.parts) == {"vtm"}
    assert without_gradient(task, found) == []
    summary = task.eval().compute_metrics(task.predict(batch))
    assert "every pair fused" in summary.rule
    # With the same matching weights and a dual encoder beside them, the ranking is the same.
    other = build(protocol="pairwise", vtm_weight=1.0).eval()
    other.load_state_dict({**other.state_dict(), **task.state_dict()})
    assert other.compute_metrics(other.predict(batch)).metrics == summary.metrics


@pytest.mark.parametrize(
    ("settings", "loaded", "complaint"),
    [
        ({"protocol": "re-rank"}, (), r"'re-rank' ranks by the 'match' head, which is random.*set task\.vtm_weight=1"),
        ({"protocol": "pairwise"}, ("embed.text_out.weight",), "ranks by the 'match' head, which is random"),
        (
            {"protocol": "re-rank", "contrastive_weight": 0.0, "vtm_weight": 1.0},
            (),
            r"by the 'embed' head.*set task\.contrastive_weight=1",
        ),
        ({"contrastive_weight": 0.0}, ("embed.text_out.weight",), "both 0: nothing would be learned"),
        ({"protocol": "re-rank"}, ("match.layers.0.weight",), None),
        ({"protocol": "re-rank", "vtm_weight": 1.0}, (), None),
        ({}, (), None),
    ],
)
def test_a_random_head_does_not_rank(
    build: Callable[..., Retrieval], settings: dict[str, object], loaded: tuple[str, ...], complaint: str | None
) -> None:
    task = build(**settings)
    if complaint is None:
        task.check_start(loaded)
    else:
        with pytest.raises(ConfigError, match=complaint):
            task.check_start(loaded)
