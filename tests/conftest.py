"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.presets import ModelConfig
    from evilm.model.tokenizer import TokenizerConfig
    from evilm.training.recipe import Recipe
    from evilm.types import Batch, Example

# Before anything imports torch: the suite runs in two processes on two cores, so one thread each. It needs no network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _no_curves() -> Iterator[None]:
    """Runs of tests plot no curves; the plot has a test of its own."""
    from evilm.training.logger import RunLogger

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLogger, "draw", lambda _: None)
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, which is not part of the project: a test that needs it is skipped where it is absent."""
    folder = Path(os.environ.get("EVILM_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; EVILM_SHARED_DATA names another folder")
    return folder


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of 96 clips: 72 to train on, 8 to validate, 16 to test. Tests read it and leave it as it is."""
    from evilm.data.synthetic import build

    return build(tmp_path_factory.mktemp("worlds") / "small", 96, 0, val=8, test=16, workers=1).path


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    """Specials, single letters, and a few words: small enough to reason about its ids."""
    from evilm.data.vocabulary import SPECIALS, Vocabulary

    letters = "abcdefghijklmnopqrstuvwxyz0123456789',:-?."
    words = "a the red blue green disc square star moves grows jumps left right up down what is doing and".split()
    pieces = (
        *SPECIALS,
        *letters,
        *(f"##{letter}" for letter in letters),
        *(word for word in words if word not in letters),
    )
    return Vocabulary(pieces)


@pytest.fixture(scope="session")
def tiny() -> ModelConfig:
    """The paper's backbone and decoder with next to nothing in them: 4x4 cells of 16 pixels, two frames."""
    from evilm.model.presets import ModelConfig

    return ModelConfig(
        backbone="edgenext_xx_small", backbone_options={"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]},
        stride=16, image_size=64, num_frames=2, embed_dim=32, depth=2, num_heads=2, mlp_dim=64,
        text_embed_dim=16, text_depth=1, text_num_heads=2, text_mlp_dim=32, max_text_len=64, dropout=0.0,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_tokenizer() -> TokenizerConfig:
    """A video tokenizer with the grid of ``tiny``: a ViT of three blocks (the fewest that timm takes), 24 codes."""
    from evilm.model.tokenizer import TokenizerConfig

    return TokenizerConfig(
        encoder="vit_tiny_patch16_224", encoder_options={"embed_dim": 32, "depth": 3, "num_heads": 2},
        stride=16, image_size=64, codebook_size=24, code_dim=8, embed_dim=32, depth=1, num_heads=2, mlp_dim=64,
    )  # fmt: skip


@pytest.fixture(scope="session")
def random_batch() -> Callable[..., Batch]:
    """``random_batch(examples, frames=2, size=64, seed=0)``: noise for pixels, as a loader would hand it over."""
    import torch

    from evilm.data.sampling import derive_seed
    from evilm.types import Batch

    def make(examples: Sequence[Example], frames: int = 2, size: int = 64, seed: int = 0) -> Batch:
        random = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (len(examples), frames, 3, size, size), generator=random, dtype=torch.uint8)
        own = torch.tensor([derive_seed(seed, "sample", example.key) for example in examples])
        return Batch(tuple(examples), pixels, own, torch.ones(len(examples), dtype=torch.bool))

    return make


@pytest.fixture(scope="session")
def make_recipe(
    small_world: Path, tiny: ModelConfig, tiny_tokenizer: TokenizerConfig, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Recipe]:
    """``make_recipe(out, task, reader="msrvtt_retrieval", **rest)``: a run of seconds on ``small_world``.

    ``task`` is the table of a task; ``optim``, ``run`` and ``data`` in ``rest`` are changes to those tables, and any
    other key of a recipe may stand there as it is. All runs share one cache of frames.
    """
    from evilm import config
    from evilm.training.recipe import Recipe

    cache = tmp_path_factory.mktemp("cache")

    def make(out: Path, task: dict[str, Any], reader: str = "msrvtt_retrieval", **rest: Any) -> Recipe:
        if task["name"] == "tokenizer":
            task = {"tokenizer": tiny_tokenizer.model_dump(), "num_frames": 2, "min_count": 4, **task}
        elif task["name"] == "reconstruction":
            task = {"tokenizer": tiny_tokenizer.model_dump(), "num_frames": 2, **task}
        elif "start" not in rest:
            rest = {"model": tiny.model_dump(), **rest}
        source = {"reader": reader, "annotations": str(small_world)}
        data = {
            "train": source, "validation": {**source, "split": "val"}, "test": {**source, "split": "test"},
            "cache": str(cache), "cached_frames": 4, "workers": 0,
        }  # fmt: skip
        optim = {"epochs": 2, "batch_size": 12, "lr": 2e-3}
        run = {
            "output_dir": str(out),
            "device": "cpu",
            "precision": "fp32",
            "threads": 1,
        }
        tables: dict[str, dict[str, Any]] = {"data": data, "optim": optim, "run": run}
        changed = {name: table | rest.pop(name, {}) for name, table in tables.items()}
        return config.check(Recipe, {"task": task, **changed, **rest}, "test")

    return make


@pytest.fixture(scope="session")
def tokenizer_run(make_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained video tokenizer, as far as two epochs of six steps go."""
    from evilm.training import trainer

    return trainer.train(make_recipe(tmp_path_factory.mktemp("runs") / "tokenizer", {"name": "tokenizer"}))


@pytest.fixture(scope="session")
def pretrained_run(make_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training run without MVM, of one epoch's quarter."""
    from evilm.training import trainer

    task = {"name": "pretrain", "mvm_weight": 0, "contrastive_weight": 1.0, "max_text_len": 24, "embed_dim": 16}
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    return trainer.train(make_recipe(out, task, optim={"epochs": 0.25, "batch_size": 18}))


@pytest.fixture(scope="session")
def trained(make_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``trained("retrieval")``: a run of a task as far as a few steps go, each made once.

    ``retrieval`` has both an embedding head and a match head.
    """
    from evilm.training import trainer

    tasks: dict[str, tuple[dict[str, Any], str]] = {
        "retrieval": ({"max_text_len": 24, "embed_dim": 16, "vtm_weight": 1.0}, "msrvtt_retrieval"),
        "question_answering": ({"max_text_len": 24}, "msrvtt_qa"),
        "multiple_choice": ({"max_text_len": 24}, "msrvtt_mc"),
        "linear_probe": ({}, "hmdb51"),
    }
    runs: dict[str, Path] = {}

    def make(task: str) -> Path:
        if task not in runs:
            settings, reader = tasks[task]
            out = tmp_path_factory.mktemp("runs") / task
            runs[task] = trainer.train(make_recipe(out, {"name": task, **settings}, reader, optim={"epochs": 1}))
        return runs[task]

    return make
