"""Dual encoders of transformers: CLIP, SigLIP and similar ones from a folder, or by name from the hub."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from evilm import hub
from evilm.encoders.base import Preprocessing, Towers, check_no_code, short, unknown_share
from evilm.errors import CheckpointError, DependencyError

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray
    from torch import Tensor

    from evilm.data.video import Fit
    from evilm.encoders.names import EncoderName

KINDS = (
    "altclip",
    "chinese_clip",
    "clip",
    "metaclip_2",
    "siglip",
)  # models that give one vector for a text and one for an image
SENTENCE_KINDS = ("bert",)  # sentence encoders: the mean of BERT's states, as sentence-transformers publishes them
_FULL_LENGTH = ("siglip",)  # trained on texts padded to the model's length, without a mask
_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
_SENTENCE_LENGTH = 64  # word pieces; captions are shorter
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


def towers(name: EncoderName) -> Towers:
    """Load the model of that name.

    Raises:
        CheckpointError: no such folder or name, another kind of model, damaged or unsafe files, or no network.
        DependencyError: transformers is missing, or a package that this model's tokenizer needs.
    """
    folder = Path(name.model).expanduser()
    if not folder.is_dir():
        if name.model.count("/") != 1 or name.model.startswith((".", "/", "~")):
            raise CheckpointError(f"{name}: no such folder; name one, or owner/name on the hub")
        folder = hub.fetch(name.model, _FILES)
    kind = _kind(folder, name)
    if kind in SENTENCE_KINDS:
        return _sentence_encoder(folder, name)
    model, tokenizer, preparation = _load(folder, name)
    assert preparation is not None
    text: Any = model.config.text_config
    length = min(int(text.max_position_embeddings), int(getattr(tokenizer, "model_max_length", 1 << 30)))
    if kind in ("altclip", "chinese_clip"):
        length = min(length, 77)  # BERT and RoBERTa accept more than they were trained on
    masked = "attention_mask" in tokenizer.model_input_names and kind not in _FULL_LENGTH

    def words(texts: list[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        padding = True if masked else "max_length"
        found = tokenizer(texts, padding=padding, truncation=True, max_length=length, return_tensors="np")
        ids = np.asarray(found["input_ids"], dtype=np.int64)
        return ids, np.asarray(found["attention_mask"], dtype=np.bool_) if masked else np.ones(
            ids.shape, dtype=np.bool_
        )

    def texts(ids: Tensor, mask: Tensor) -> Tensor:
        return _vector(model.get_text_features(input_ids=ids, attention_mask=mask.long() if masked else None))

    return Towers(
        module=model,
        encode_images=lambda pixels: _vector(model.get_image_features(pixel_values=pixels)),
        encode_texts=texts,
        tokenize=words,
        unknown_share=lambda found: unknown_share(tokenizer, found),
        preprocessing=preparation,
        max_text_len=length,
        temperature=float(1 / model.logit_scale.detach().exp().mean()),
    )


def _sentence_encoder(folder: Path, name: EncoderName) -> Towers:
    """A model of sentence-transformers that takes the mean of its states; others are refused."""
    try:
        pooling: Any = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
        averages = bool(pooling["pooling_mode_mean_tokens"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{name}: {folder / '1_Pooling/config.json'} does not say how it pools: {error}"
        ) from None
    if not averages:
        raise CheckpointError(f"{name}: pools its states in another way than by their mean, which is not supported")
    model, tokenizer, _ = _load(folder, name, images=False)
    length = min(_SENTENCE_LENGTH, int(model.config.max_position_embeddings))

    def words(texts: list[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        found = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="np")
        return np.asarray(found["input_ids"], np.int64), np.asarray(found["attention_mask"], np.bool_)

    def texts(ids: Tensor, mask: Tensor) -> Tensor:
        states = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        return (states * mask[..., None]).sum(1)  # normalised by the caller

    return Towers(
        module=model,
        encode_images=None,
        encode_texts=texts,
        tokenize=words,
        unknown_share=lambda found: unknown_share(tokenizer, found),
        preprocessing=Preprocessing(32, 32, "crop", (0.5,) * 3, (0.5,) * 3),
        max_text_len=length,
        temperature=0.05,  # of cosines in training with all-MiniLM's scale of 20
    )


def _kind(folder: Path, name: EncoderName) -> str:
    """The type of the model in a folder, read before any of its files is given to a library.

    Raises:
        CheckpointError: it is none of ``KINDS``.
    """
    check_no_code(folder, name)
    try:
        kind = str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{name}: {folder} holds no model of transformers: {type(error).__name__}: {error}"
        ) from None
    if kind not in (*KINDS, *SENTENCE_KINDS):
        raise CheckpointError(
            f"{name}: is a {kind} model; supported are the dual encoders {', '.join(KINDS)} and sentence encoders "
            f"({', '.join(SENTENCE_KINDS)})"
        )
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{name}: {folder} has no model.safetensors; pickled weights are not loaded")
    return kind


def _load(folder: Path, name: EncoderName, *, images: bool = True) -> tuple[Any, Any, Preprocessing | None]:
    """Model, tokenizer and, with ``images``, preprocessing. Nothing is downloaded, and no code of the folder is run."""
    try:
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
    except ModuleNotFoundError as error:
        raise DependencyError(f"{name}: needs {error.name}: pip install 'evilm[clip]'") from None
    plain: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    kinds: tuple[Any, Any, Any] = AutoModel, AutoTokenizer, AutoImageProcessor
    try:
        with _hide_progress_bars():
            model, report = kinds[0].from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **plain
            )
        tokenizer = kinds[1].from_pretrained(folder, **plain)
        processor = kinds[2].from_pretrained(folder, **plain) if images else None
    except (ImportError, ModuleNotFoundError) as error:
        raise DependencyError(f"{name}: its files need another package: {short(error)}") from None
    except Exception as error:
        raise CheckpointError(f"{name}: {folder} cannot be loaded: {short(error)}") from error
    lacking = sorted(key for key in cast("set[str]", report["missing_keys"]) if not key.startswith("pooler."))
    if lacking:
        raise CheckpointError(f"{name}: {folder} lacks {len(lacking)} of its weights, such as {lacking[0]}")
    return model, tokenizer, None if processor is None else _preprocessing(processor, name)


@contextmanager
def _hide_progress_bars() -> Generator[None]:
    """Hide the progress bar of loading tensors."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _vector(found: Any) -> Tensor:
    """(n, d) from either form of a model's output."""
    return found if isinstance(found, torch.Tensor) else found.pooler_output


def _preprocessing(processor: Any, name: EncoderName) -> Preprocessing:
    """The settings of an image processor.

    Raises:
        CheckpointError: it has settings that are not supported.
    """
    size, crop = _side_lengths(processor.size), _side_lengths(getattr(processor, "crop_size", None))
    centred = bool(getattr(processor, "do_center_crop", False))
    interpolation = _INTERPOLATIONS.get(int(processor.resample))
    shorter, height, width = (size.get(key) for key in ("shortest_edge", "height", "width"))
    side, form = (shorter, "crop") if shorter and centred else (height, "squash")
    centre = crop.get("height") if centred else side
    odd = (form == "squash" and height != width) or crop.get("height") != crop.get("width")
    if not side or not centre or centre > side or odd or interpolation is None:
        raise CheckpointError(f"{name}: needs images of size {size}, crop {crop}, which is not supported")
    if not processor.do_rescale or abs(float(processor.rescale_factor) * 255 - 1) > 1e-6:
        raise CheckpointError(f"{name}: needs pixels times {processor.rescale_factor}, which is not supported")
    colours: tuple[Any, Any] = (
        (processor.image_mean, processor.image_std) if processor.do_normalize else ((0,) * 3, (1,) * 3)
    )
    mean, std = (tuple(float(v) for v in values) for values in colours)
    return Preprocessing(side, centre, cast("Fit", f"{form}-{interpolation}"), mean, std)


def _side_lengths(value: Any) -> dict[str, int]:
    """A size in any form that transformers uses, by the names of its sides."""
    if value is None:
        return {}
    if isinstance(value, int):
        return {"shortest_edge": value, "height": value, "width": value}
    table = cast("dict[str, Any]", value if isinstance(value, dict) else vars(value))
    return {key: int(side) for key, side in table.items() if isinstance(side, int)}
