"""The whole chain in a minute: a world, a tokenizer, pre-training on its cached labels, fine-tuning, evaluation."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from evilm.errors import CheckpointError, ConfigError
from evilm.tasks.reconstruction import ReconstructionTask
from evilm.tasks.tokenizer import TokenizerTask
from evilm.training import build, checkpoint, evaluate, trainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from evilm.model.tokenizer import TokenizerConfig
    from evilm.training.recipe import Recipe

PRETRAIN = {"name": "pretrain", "contrastive_weight": 1.0, "labels": "cached", "max_text_len": 24, "embed_dim": 16}


def mean_loss(run: Path, part: slice, name: str = "loss") -> float:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float(np.mean([row[name] for row in rows[part]]))


@pytest.fixture(scope="module")
def pretrained(
    make_recipe: Callable[..., Recipe], tokenizer_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    task = {**PRETRAIN, "tokenizer": str(tokenizer_run)}
    out = tmp_path_factory.mktemp("runs") / "pretrain"
    return trainer.train(make_recipe(out, task, optim={"epochs": 6, "batch_size": 18}))


def test_the_tokenizer_learned_and_its_codebook_lives(tokenizer_run: Path) -> None:
    assert mean_loss(tokenizer_run, slice(-3, None), "words") < mean_loss(tokenizer_run, slice(3), "words")
    task, about = build.restore(tokenizer_run)
    assert isinstance(task, TokenizerTask)
    assert not task.tokenizer.collapsed
    assert float(task.tokenizer.perplexity) == pytest.approx(about["validation"]["perplexity"], rel=1e-5)
    assert about["facts"]["words"] == list(task.caption_words.words)


def test_a_moving_codebook_lives_too(
    make_recipe: Callable[..., Recipe], tiny_tokenizer: TokenizerConfig, tmp_path: Path
) -> None:
    """From scratch, with dead codes re-seeded; a decay of 0.99 would find the first dead code after 69 steps."""
    shape = {**tiny_tokenizer.model_dump(), "codebook": "ema", "ema_decay": 0.9}
    longer = {"epochs": 8, "batch_size": 12}
    run = trainer.train(make_recipe(tmp_path / "ema", {"name": "tokenizer", "tokenizer": shape}, optim=longer))
    found = checkpoint.read_json(checkpoint.find(run) / "config.json")["validation"]
    assert found["voc_rate"] > 50
    assert found["perplexity"] > 4
    assert mean_loss(run, slice(-3, None), "words") < mean_loss(run, slice(3), "words")


def test_pre_training_learned_every_objective(pretrained: Path) -> None:
    for name in ("loss", "mlm", "contrastive"):
        assert mean_loss(pretrained, slice(-6, None), name) < mean_loss(pretrained, slice(6), name)
    about = checkpoint.read_json(checkpoint.find(pretrained) / "config.json")
    assert about["facts"]["codes"] == 24
    assert set(about["validation"]) == {"mvm_accuracy", "mlm_accuracy", "vtm_accuracy", "contrastive_R@1", "score"}


@pytest.mark.parametrize(
    ("task", "reader"),
    [
        (
            {
                "name": "retrieval",
                "max_text_len": 24,
                "embed_dim": 16,
                "vtm_weight": 1.0,
                "protocol": "re-rank",
                "rerank_top_k": 4,
            },
            "msrvtt_retrieval",
        ),
        ({"name": "question_answering"}, "msrvtt_qa"),
        ({"name": "multiple_choice"}, "msrvtt_mc"),
        ({"name": "linear_probe"}, "hmdb51"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_every_task_starts_from_it_and_is_evaluated(
    make_recipe: Callable[..., Recipe], pretrained: Path, tmp_path: Path, task: dict[str, Any], reader: str
) -> None:
    made = make_recipe(tmp_path / "run", task, reader, start=str(pretrained), optim={"epochs": 1, "batch_size": 18})
    run = trainer.train(made)
    about = checkpoint.read_json(checkpoint.find(run) / "config.json")
    parts = about["start"]["parts"]
    assert "model.video_encoder" in parts.split(";")[0]
    assert "patch_head" in parts.rpartition("left out: ")[2]
    if task["name"] in ("retrieval", "multiple_choice"):
        assert "match" in parts.split(";")[0]
    result = evaluate.of_checkpoint(run, "test")
    assert result.result["samples"] == len(result.summary.rows) == len(build.examples_of(made.data.test))
    assert result.result["unreadable"] == {}
    for name, chance in result.summary.chance.items():
        assert result.summary.metrics[name] >= 0
        assert chance > 0
    again = evaluate.of_checkpoint(run, "test")
    assert again.summary.rows == result.summary.rows
    evaluate.save(tmp_path / "result", result.result, result.summary)
    assert json.loads((tmp_path / "result" / "metrics.json").read_text())["metrics"] == result.summary.metrics
    assert len((tmp_path / "result" / "predictions.jsonl").read_text().splitlines()) == len(result.summary.rows)


@pytest.mark.parametrize(
    "table",
    [
        {"target": "pixels", "tokenizer": {"codebook": "gumbel"}, "codebook_weight": 0.001},
        {"target": "features", "teacher": {"backbone": "edgenext_xx_small"}},
    ],
    ids=lambda table: table["target"],
)
def test_other_tokenizers_label_pre_training_too(
    make_recipe: Callable[..., Recipe], tiny_tokenizer: TokenizerConfig, tmp_path: Path, table: dict[str, Any]
) -> None:
    """Table 6: a tokenizer that learned without words is another checkpoint in `task.tokenizer`, and no more."""
    shape = {**tiny_tokenizer.model_dump(), **table.get("tokenizer", {})}
    made = make_recipe(tmp_path / "tokenizer", {"name": "reconstruction", **table, "tokenizer": shape})
    run = trainer.train(made)
    assert mean_loss(run, slice(-3, None), "reconstruction") < mean_loss(run, slice(3), "reconstruction")
    found = evaluate.of_checkpoint(run, "test")
    assert set(found.summary.metrics) == {"voc_rate", "perplexity", "explained"}
    assert found.summary.metrics["voc_rate"] > 0
    task = {**PRETRAIN, "tokenizer": str(run)}
    trained = trainer.train(make_recipe(tmp_path / "pretrain", task, optim={"epochs": 0.5, "batch_size": 18}))
    about = checkpoint.read_json(checkpoint.find(trained) / "config.json")
    restored, _ = build.restore(run)
    assert isinstance(restored, ReconstructionTask)
    assert about["facts"] == {"codes": 24, "tokenizer": restored.video_tokenizer.fingerprint()}
    with pytest.raises(CheckpointError, match="holds a video tokenizer, which cannot be evaluated as retrieval"):
        evaluate.of_checkpoint(run, "test", task="retrieval")


def test_zero_shot_takes_the_heads_of_pre_training_and_only_those_it_has(
    make_recipe: Callable[..., Recipe], pretrained: Path, tmp_path: Path
) -> None:
    found = evaluate.of_checkpoint(pretrained, "test", task="retrieval")
    assert found.result["samples"] == 16
    assert set(found.summary.metrics) >= {"R@1", "R@5", "R@10", "MdR"}
    short = {"optim": {"epochs": 0.25, "batch_size": 18}}
    # VTM alone: pairs can be ranked, and there is no dual encoder to rank by.
    vtm = trainer.train(
        make_recipe(
            tmp_path / "vtm", {"name": "pretrain", "mvm_weight": 0, "mlm_weight": 0, "max_text_len": 24}, **short
        )
    )
    pairs = evaluate.of_checkpoint(vtm, "test", ["task.protocol=pairwise"], task="retrieval")
    assert "every pair fused; 16 texts x 16 videos" in pairs.result["rule"]
    with pytest.raises(CheckpointError, match="has no trained 'embed' head"):
        evaluate.of_checkpoint(vtm, "test", task="retrieval")
    # And a tuned one that would rank by a head that nothing trains is refused before it begins.
    ranked = {"name": "retrieval", "protocol": "re-rank", "max_text_len": 24}
    with pytest.raises(ConfigError, match="ranks by the 'match' head, which is random"):
        trainer.train(make_recipe(tmp_path / "random", ranked, **short))
    assert not (tmp_path / "random").exists()
    without = trainer.train(
        make_recipe(
            tmp_path / "mlm", {"name": "pretrain", "mvm_weight": 0, "vtm_weight": 0, "max_text_len": 24}, **short
        )
    )
    with pytest.raises(CheckpointError, match=r"has no trained 'embed' head, which retrieval needs: fine-tune it"):
        evaluate.of_checkpoint(without, "test", task="retrieval")


def test_captions_alone_teach_the_text_side_from_which_retrieval_goes_on(
    make_recipe: Callable[..., Recipe], small_world: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "captions"
    shutil.copytree(small_world, alone, ignore=shutil.ignore_patterns("videos"))
    source = {"reader": "msrvtt_retrieval", "annotations": str(alone)}
    data = {
        "train": source, "extra_train": [{**source, "split": "val"}], "test": {**source, "split": "val"},
        "validation": None, "cache": None,
    }  # fmt: skip
    task = {"name": "paraphrase", "max_text_len": 24, "embed_dim": 16}
    made = make_recipe(tmp_path / "text", task, data=data, optim={"epochs": 4, "batch_size": 20})
    assert len(build.training_examples(made.data)) == 72 + 8
    run = trainer.train(made)
    assert mean_loss(run, slice(-3, None)) < mean_loss(run, slice(3))
    found = evaluate.of_checkpoint(run, "test")
    assert "8 rows" in found.result["rule"]
    with pytest.raises(CheckpointError, match="has no trained 'embed' head, which retrieval needs"):
        evaluate.of_checkpoint(run, "test", task="retrieval")
    task = {"name": "retrieval", "max_text_len": 24, "embed_dim": 16, "captions_per_video": 3}
    tuned = trainer.train(make_recipe(tmp_path / "tuned", task, start=str(run), optim={"epochs": 0.5}))
    parts = checkpoint.read_json(checkpoint.find(tuned) / "config.json")["start"]["parts"]
    assert parts.endswith("random: embed; unused: nothing")  # its half for videos
    theirs, own = (checkpoint.read_tensors(checkpoint.find(each) / "model.safetensors") for each in (run, tuned))
    assert theirs.keys() < own.keys()
    assert own.keys() - theirs.keys() == {"embed.video_out.weight", "embed.video_out.bias"}
