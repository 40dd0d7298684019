"""Models of open_clip: published ones by name and tag, or folders and files in its format.

The model is built here from its configuration and not by ``open_clip.create_model``, which downloads parts of it and
leaves the activation and the pixel statistics of some published weights to its caller.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from evilm import hub
from evilm.encoders.base import Preprocessing, Towers, check_no_code, short, unknown_share
from evilm.errors import CheckpointError, DependencyError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from evilm.data.video import Fit
    from evilm.encoders.names import EncoderName

CONFIG = "open_clip_config.json"
_WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors",
)  # fmt: skip
_WORDS = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.model", "config.json")
_RESIZE_MODES: dict[tuple[str, str], Fit] = {
    ("shortest", "bicubic"): "crop-bicubic", ("shortest", "bilinear"): "crop-bilinear",
    ("squash", "bicubic"): "squash-bicubic", ("squash", "bilinear"): "squash-bilinear",
}  # fmt: skip
_PREPROCESS = ("mean", "std", "interpolation", "resize_mode")


def towers(name: EncoderName) -> Towers:
    """Load the model of that name.

    Raises:
        CheckpointError: no such model or weights, damaged or unsafe files, or no network for a download.
        DependencyError: open_clip is missing.
    """
    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise DependencyError(f"{name}: needs {error.name}: pip install 'evilm[clip]'") from None
    library = cast("Any", open_clip)
    config, preprocess, weights, home = _locate(library, name)
    try:
        model = _build(library, config, name)
        _load_weights(model, weights, name)
        tokenizer, length = _tokenizer(config, home, name)
    except (CheckpointError, DependencyError):
        raise
    except Exception as error:
        raise CheckpointError(f"{name}: {weights} does not fit its configuration: {short(error)}") from error
    module: Any = model

    def words(texts: list[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        ids = cast("Tensor", tokenizer(texts)).numpy().astype(np.int64)
        return ids, np.ones(ids.shape, dtype=np.bool_)

    return Towers(
        module=model,
        encode_images=module.encode_image,
        encode_texts=lambda ids, _: module.encode_text(ids),
        tokenize=words,
        unknown_share=lambda texts: unknown_share(getattr(tokenizer, "tokenizer", None), texts),
        preprocessing=_preprocessing(preprocess, module.visual.image_size, name),
        max_text_len=length,
        temperature=float(1 / module.logit_scale.detach().exp().mean()),
    )


def _locate(library: Any, name: EncoderName) -> tuple[dict[str, Any], dict[str, Any], Path, Path | None]:
    """The configuration, the preprocessing, the file of weights, and the folder that may hold the tokenizer."""
    path = Path(name.model).expanduser()
    own = None if name.weights is None else Path(name.weights).expanduser()
    published = library.get_model_config(name.model.replace("/", "-"))
    if path.is_dir() or path.is_file():
        return _read_files(path, own, name)
    if published is None:
        if "/" not in name.model or name.model.count("/") > 1 or name.model.startswith((".", "/", "~")):
            raise CheckpointError(
                f"{name}: no such folder, and open_clip has no model {name.model!r}: open_clip.list_models() lists them"
            )
        return _read_files(hub.fetch(name.model, (CONFIG, "*.safetensors", *_WORDS)), own, name)
    config, known = copy.deepcopy(published), name.model.replace("/", "-")
    tags = library.list_pretrained_tags_by_model(known)
    settings = [library.get_pretrained_cfg(known, tag) for tag in tags]
    preprocess = {
        key: settings[0][key] for key in _PREPROCESS if settings and all(s[key] == settings[0][key] for s in settings)
    }
    if own is not None and own.is_file():
        return config, preprocess, own, None
    chosen: dict[str, Any] = {} if name.weights is None else library.get_pretrained_cfg(known, name.weights)
    if not chosen:
        reason = "names no weights" if name.weights is None else f"{name.weights!r} is no file and no weights of it"
        some = ", ".join(tags[:8]) + (", ..." if len(tags) > 8 else "")
        raise CheckpointError(
            f"{name}: {reason}: use open_clip:{known}:WEIGHTS with a file or one of {some or '(none published)'}"
        )
    config["quick_gelu"] = chosen.get("quick_gelu", False)  # the activation depends on the weights
    return config, {key: chosen[key] for key in _PREPROCESS if key in chosen}, _download(chosen, name), None


def _read_files(
    path: Path, own: Path | None, name: EncoderName
) -> tuple[dict[str, Any], dict[str, Any], Path, Path | None]:
    """Read a folder in open_clip's format, or a configuration and a file of weights; returns as ``_locate``."""
    file = path / CONFIG if path.is_dir() else path
    try:
        table: Any = json.loads(file.read_text(encoding="utf-8"))
        config = dict(table.get("model_cfg", table))
        preprocess = dict(table.get("preprocess_cfg", {}))
        if not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
            raise ValueError("embed_dim, vision_cfg or text_cfg is missing")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{name}: {file} is not a configuration of open_clip: {short(error)}") from None
    weights = own or next((path / each for each in _WEIGHTS if path.is_dir() and (path / each).is_file()), None)
    if weights is None or not weights.is_file():
        raise CheckpointError(f"{name}: {path} has no weights, such as {_WEIGHTS[0]}")
    return config, preprocess, weights, path if path.is_dir() else path.parent


def _download(chosen: dict[str, Any], name: EncoderName) -> Path:
    """Download published weights; safetensors are preferred."""
    repository, _, file = str(chosen.get("hf_hub", "")).rpartition("/")
    if not repository:
        raise CheckpointError(f"{name}: is not on the hub: download its file yourself and name it in place of the tag")
    files = (os.path.splitext(file)[0] + ".safetensors", file) if file else _WEIGHTS  # noqa: PTH122 - a name on the hub
    return hub.fetch_first(repository, files)


def _build(library: Any, config: dict[str, Any], name: EncoderName) -> nn.Module:
    """The model with random weights. Only the configuration of a text encoder of transformers is downloaded."""
    shape = copy.deepcopy(config)
    vision, text = shape["vision_cfg"], shape["text_cfg"]
    vision["timm_model_pretrained"] = text["hf_model_pretrained"] = False
    if ":" in str(vision.get("timm_model_name", "")):
        raise CheckpointError(f"{name}: its image encoder {vision['timm_model_name']!r} is not one of timm's own")
    custom = bool(shape.pop("custom_text", False)) or "hf_model_name" in text
    if "hf_model_name" in text:
        folder = hub.fetch(str(text["hf_model_name"]), ("config.json",))
        check_no_code(folder, name)
        text["hf_model_name"] = str(folder)
    kind = library.CLIP if not custom else library.CoCa if "multimodal_cfg" in shape else library.CustomTextCLIP
    return kind(**shape)


def _load_weights(model: nn.Module, weights: Path, name: EncoderName) -> None:
    """Load every weight from the file, by loaders that do not run code of it.

    Raises:
        CheckpointError: the file is damaged, unsafe, or of another model.
    """
    from pickle import UnpicklingError

    from open_clip.factory import load_checkpoint
    from safetensors import SafetensorError

    if weights.suffix not in (".safetensors", ".bin", ".pt", ".pth"):
        raise CheckpointError(f"{name}: {weights} is not a .safetensors, .bin, .pt or .pth file")
    try:
        load_checkpoint(cast("Any", model), str(weights), strict=True, weights_only=True)
    except (SafetensorError, UnpicklingError, EOFError, OSError) as error:
        raise CheckpointError(
            f"{name}: {weights} is damaged, or holds more than tensors, which is not loaded: {short(error)}"
        ) from None


def _tokenizer(config: dict[str, Any], home: Path | None, name: EncoderName) -> tuple[Any, int]:
    """The tokenizer and the length of the longest text."""
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer

    text = config["text_cfg"]
    length, settings = int(text.get("context_length", DEFAULT_CONTEXT_LENGTH)), dict(text.get("tokenizer_kwargs", {}))
    wanted = text.get("hf_tokenizer_name")
    if not wanted:
        return SimpleTokenizer(context_length=length, **settings), length
    local = home is not None and any((home / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json"))
    folder = home if home is not None and local else hub.fetch(str(wanted), _WORDS)
    check_no_code(folder, name)
    settings |= {"local_files_only": True, "trust_remote_code": False}
    mode = text.get("tokenizer_mode")
    return HFTokenizer(str(folder), context_length=length, tokenizer_mode=mode, **settings), length


def _preprocessing(preprocess: dict[str, Any], size: Any, name: EncoderName) -> Preprocessing:
    from open_clip.transform import PreprocessCfg

    usual = PreprocessCfg()
    height, width = cast("tuple[int, int]", size if isinstance(size, tuple) else (size, size))
    mode = (
        str(preprocess.get("resize_mode") or usual.resize_mode),
        str(preprocess.get("interpolation") or usual.interpolation),
    )
    if height != width or mode not in _RESIZE_MODES:
        raise CheckpointError(
            f"{name}: needs images of {height}x{width} resized by {' and '.join(mode)}, which is not supported"
        )
    mean, std = (tuple(float(v) for v in preprocess.get(key) or getattr(usual, key)) for key in ("mean", "std"))
    return Preprocessing(height, height, _RESIZE_MODES[mode], mean, std)
