"""A text encoder that starts from a published BERT of its width: from files, or by name from the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from evilm import hub
from evilm.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from evilm.model.evilm import EViLM
    from evilm.model.presets import ModelConfig
    from evilm.model.text_encoder import TextEncoder

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
WORDS = "embeddings.word_embeddings.weight"
PLACES = "embeddings.position_embeddings.weight"


def load_published(model: EViLM, pieces: Sequence[str], shape: ModelConfig) -> Iterator[str]:
    """Load the published text weights that a model's shape names; a line for each part, where it starts from."""
    source = shape.backbone_weights
    where = {"none": "at random", "hub": "from timm's hub"}.get(source, f"from {source}")
    yield f"video backbone {shape.backbone}: {where}"
    if shape.text_weights == "none":
        yield "text encoder: at random"
    else:
        yield from load_text_weights(model.text_encoder, pieces, shape.text_weights)
    yield "fusion decoder, projections, positions: at random"


def load_text_weights(encoder: TextEncoder, pieces: Sequence[str], source: str) -> list[str]:
    """Copy what a published BERT has a place for, word pieces by their spelling.

    Args:
        encoder: changed in place.
        pieces: its word pieces, in the order of their ids.
        source: a folder or a safetensors file with a ``vocab.txt`` beside it, or a name on the hub such as
            ``google/bert_uncased_L-6_H-128_A-2``.

    Returns:
        lines that say what was loaded, what starts at random and what was left out.

    Raises:
        CheckpointError: no such file or name, no network, a damaged file, or another width.
    """
    weights, words = _files(source)
    theirs, rows = _published(weights), {word: row for row, word in enumerate(_spelled(words))}
    own = encoder.bert.state_dict()
    found: dict[str, Tensor] = {}
    for name, tensor in own.items():
        other = theirs.get(name)
        if other is None:
            continue
        if name == PLACES and other.shape[1:] == tensor.shape[1:]:
            other = torch.cat([other[: len(tensor)], tensor[len(other) :]])
        if name == WORDS and other.shape[1:] == tensor.shape[1:]:
            known = [(own_row, rows[piece]) for own_row, piece in enumerate(pieces) if piece in rows]
            if known and max(row for _, row in known) >= len(other):
                raise CheckpointError(f"{words}: has more words than {weights.name} has embeddings")
            mixed = tensor.clone()
            if known:
                mixed[[row for row, _ in known]] = other[[row for _, row in known]]
            other = mixed
        if other.shape != tensor.shape:
            raise CheckpointError(
                f"{weights}: not a BERT of this model's width: {name} is {tuple(other.shape)} there and "
                f"{tuple(tensor.shape)} here; change model.text_embed_dim, text_hidden or text_weights"
            )
        found[name] = other
    if not found:
        raise CheckpointError(f"{weights}: holds no BERT; its tensors are {', '.join(sorted(theirs)[:3])}, ...")
    encoder.bert.load_state_dict({**own, **found})
    fresh, left = sorted(own.keys() - found.keys()), sorted(theirs.keys() - own.keys())
    shared = sum(piece in rows for piece in pieces)
    return [
        f"text encoder from {source}: {len(found)} of {len(own)} tensors, {shared} of {len(pieces)} word pieces",
        f"text encoder at random: {_named(fresh)}, {len(pieces) - shared} word pieces, the projection",
        f"left out of {source}: {_named(left)}",
    ]


def _named(names: Sequence[str]) -> str:
    """Tensors by the layer that they belong to."""
    return ", ".join(sorted({".".join(name.split(".")[:3]) for name in names})) or "nothing"


def _files(source: str) -> tuple[Path, Path]:
    """The weights and the words of ``source``."""
    path = Path(source)
    if path.is_file():
        weights, words = path, path.with_name("vocab.txt")
    elif path.is_dir():
        weights = next((path / name for name in WEIGHTS if (path / name).is_file()), path / WEIGHTS[0])
        words = path / "vocab.txt"
    else:
        weights, words = _fetched(source)
    for file in (weights, words):
        if not file.is_file():
            raise CheckpointError(f"{file}: missing; a published BERT comes as {WEIGHTS[0]} with a vocab.txt beside it")
    return weights, words


def _fetched(name: str) -> tuple[Path, Path]:
    """The files of a name on the hub."""
    try:
        from huggingface_hub import hf_hub_download  # pyright: ignore[reportUnknownVariableType], bare generics
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError:
        raise CheckpointError(f"model.text_weights = {name!r}: no such file, and no huggingface_hub to fetch it by name"
                              ) from None  # fmt: skip
    try:
        with hub.hub_or_cache():
            words = Path(hf_hub_download(name, "vocab.txt"))
            try:
                return Path(hf_hub_download(name, WEIGHTS[0])), words
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                return Path(hf_hub_download(name, WEIGHTS[1])), words
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"model.text_weights = {name!r}: no such file or folder here, and it cannot be fetched from the hub "
            f"({type(error).__name__}); without a network, name a folder with {WEIGHTS[0]} and vocab.txt"
        ) from None


def _published(path: Path) -> dict[str, Tensor]:
    """Tensors by the names of transformers' ``BertModel``, whatever task they were published with."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType], its PathLike is bare

    try:
        if path.suffix == ".bin":
            raw: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raw = load_file(path)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as weights: {error}") from None
    tidy = {name.removeprefix("bert."): tensor for name, tensor in raw.items() if not name.startswith("cls.")}
    return {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): tensor.float()
        for name, tensor in tidy.items()
        if not name.endswith("position_ids")
    }


def _spelled(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not readable as a vocabulary, one word piece a line: {error}") from None
