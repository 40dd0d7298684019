"""The Python of docs/how-to-add.md does what the text around it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from evilm import config
from evilm.model.evilm import EViLM
from evilm.model.tokenizer import Tokenizer, TokenizerConfig
from evilm.training.recipe import Recipe
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Callable

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.presets import ModelConfig
    from evilm.types import Batch

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "how-to-add.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the blocks define."""
    found: dict[str, Any] = {"__name__": "how_to_add"}
    for block in blocks("python"):
        exec(compile(block, "how-to-add.md", "exec", dont_inherit=True), found)  # noqa: S102, it is our own document
    return found


def test_the_encoder_is_a_setting() -> None:
    import tomllib

    [table] = [tomllib.loads(block) for block in blocks("toml")]
    source = {"reader": "captions", "annotations": "a.csv"}
    recipe = config.check(Recipe, {**table, "task": {"name": "pretrain"}, "data": {"train": source}}, "how-to-add.md")
    assert recipe.model is not None
    assert EViLM(recipe.model, 100).video_encoder.grid(4, 256, 256).patches == 256


def test_the_quantizer_serves_a_tokenizer(names: dict[str, Any], tiny_tokenizer: TokenizerConfig) -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(tiny_tokenizer, 7)
    tokenizer.quantizer = names["RandomQuantizer"](tiny_tokenizer.codebook_size, tiny_tokenizer.code_dim)
    frames = torch.randint(0, 256, (2, 2, 3, 64, 64), dtype=torch.uint8)
    logits, quantized = tokenizer(frames)
    assert logits.shape == (2, 7)
    (logits.sum() + quantized.loss_commitment).backward()
    assert all(p.grad is not None and p.grad.any() for p in tokenizer.to_code.parameters())
    assert torch.equal(tokenizer.eval().labels(frames), tokenizer(frames)[1].labels)
    assert len(tokenizer.fingerprint()) == 16


def test_the_task_learns_and_is_measured(
    names: dict[str, Any], tiny: ModelConfig, vocabulary: Vocabulary, random_batch: Callable[..., Batch]
) -> None:
    torch.manual_seed(0)
    rows = [Example(str(i), f"video{i}", Clip(Path(f"{i}.mp4")), captions=("a red disc",)) for i in range(8)]
    task = names["Arrow"](EViLM(tiny, vocabulary.size), vocabulary, names["ArrowConfig"](), {})
    batch = random_batch(rows)
    losses = task.losses(batch)
    losses.total.backward()
    assert losses.total.item() == pytest.approx(0.69, abs=0.4)
    summary = task.eval().compute_metrics(task.predict(batch))
    assert 0 <= summary.metrics["accuracy"] <= 100
    assert [row["key"] for row in summary.rows] == [row.key for row in rows]


def test_the_dual_encoder_serves_search(names: dict[str, Any], small_world: Path, tmp_path: Path) -> None:
    import evilm

    (tmp_path / "videos").mkdir()
    for path in sorted((small_world / "videos").glob("*.mp4"))[:3]:
        (tmp_path / "videos" / path.name).symlink_to(path)
    with evilm.VideoIndex.build(tmp_path / "videos", names["by_colour"], tmp_path / "index") as index:
        assert len(index.search("a blue disc", k=2)) == 2
    texts = names["by_colour"].embed_texts(["red", "a red disc", "blue"])
    assert texts[0] @ texts[1] > 0.99 > texts[0] @ texts[2]


def test_the_reader_reads(names: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "scenes_train.tsv").write_text("film\tfrom\tto\twhat\nm\t61.5\t64\ta horse runs\n")
    [row] = names["scenes"](tmp_path, None, "train")
    assert row == Example("2", "m", Clip(tmp_path / "m.mp4", 61.5, 64.0), captions=("a horse runs",))
