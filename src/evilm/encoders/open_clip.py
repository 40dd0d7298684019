"""Models of open_clip: published ones by name and tag, folders and files in its own form.

The model is built here from its configuration, not by ``open_clip.create_model``: that one goes to the network for
parts of it, and leaves activation and pixel statistics of some published weights to whoever calls it.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from evilm import hub
from evilm.encoders.base import Preparation, Towers
from evilm.errors import CheckpointError, DependencyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from evilm.data.video import Fit
    from evilm.encoders.names import Name

CONFIG = "open_clip_config.json"
_WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors",
)  # fmt: skip
_WORDS = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.model", "config.json")
_FITS: dict[tuple[str, str], Fit] = {
    ("shortest", "bicubic"): "crop-bicubic", ("shortest", "bilinear"): "crop-bilinear",
    ("squash", "bicubic"): "squash-bicubic", ("squash", "bilinear"): "squash-bilinear",
}  # fmt: skip
_PREPARES = ("mean", "std", "interpolation", "resize_mode")


def towers(name: Name) -> Towers:
    """The model of that name.

    Raises:
        CheckpointError: no such model or weights, damaged or unsafe files, or no network for what has to be fetched.
        DependencyError: open_clip is missing.
    """
    library = _library(name)
    config, prepares, weights, home = _found(library, name)
    try:
        model = _built(library, config, name)
        _fill(model, weights, name)
        tokenizer, length = _tokenizer(config, home, name)
    except (CheckpointError, DependencyError):
        raise
    except Exception as error:
        raise CheckpointError(f"{name}: {weights} does not fit its configuration: {_line(error)}") from error
    module: Any = model

    def words(texts: list[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        ids = cast("Tensor", tokenizer(texts)).numpy().astype(np.int64)
        return ids, np.ones(ids.shape, dtype=np.bool_)

    return Towers(
        module=model,
        pictures=module.encode_image,
        texts=lambda ids, _: module.encode_text(ids),
        words=words,
        unknown=lambda found: unknown_share(getattr(tokenizer, "tokenizer", None), found),
        preparation=_preparation(prepares, module.visual.image_size, name),
        length=length,
        temperature=float(1 / module.logit_scale.detach().exp().mean()),
    )


def unknown_share(tokenizer: Any, texts: Sequence[str]) -> float:
    """The share of a tokenizer's unknown piece in texts; 0 where it has none, as byte-wise ones have not.

    Args:
        tokenizer: of transformers, or None.
        texts: any.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        return 0.0  # CLIP names its end "unknown" too
    ids = [piece for row in tokenizer(list(texts), add_special_tokens=False)["input_ids"] for piece in row]
    return ids.count(unknown) / len(ids) if ids else 0.0


def _library(name: Name) -> Any:
    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise DependencyError(f"{name}: needs {error.name}: pip install 'evilm[clip]'") from None
    return cast("Any", open_clip)


def _found(library: Any, name: Name) -> tuple[dict[str, Any], dict[str, Any], Path, Path | None]:
    """Configuration, how pictures are made ready, the file of weights, and the folder that may hold the words."""
    path = Path(name.model).expanduser()
    own = None if name.weights is None else Path(name.weights).expanduser()
    published = library.get_model_config(name.model.replace("/", "-"))
    if path.is_dir() or path.is_file():
        return _of_files(path, own, name)
    if published is None:
        if "/" not in name.model or name.model.count("/") > 1 or name.model.startswith((".", "/", "~")):
            raise CheckpointError(
                f"{name}: no such folder, and open_clip has no model {name.model!r}: open_clip.list_models() lists them"
            )
        return _of_files(hub.fetch(name.model, (CONFIG, "*.safetensors", *_WORDS)), own, name)
    config, known = copy.deepcopy(published), name.model.replace("/", "-")
    tags = library.list_pretrained_tags_by_model(known)
    settings = [library.get_pretrained_cfg(known, tag) for tag in tags]
    prepares = {
        key: settings[0][key] for key in _PREPARES if settings and all(s[key] == settings[0][key] for s in settings)
    }
    if own is not None and own.is_file():
        return config, prepares, own, None
    chosen: dict[str, Any] = {} if name.weights is None else library.get_pretrained_cfg(known, name.weights)
    if not chosen:
        said = "names no weights" if name.weights is None else f"{name.weights!r} is no file and no weights of it"
        some = ", ".join(tags[:8]) + (", ..." if len(tags) > 8 else "")
        raise CheckpointError(
            f"{name}: {said}: take open_clip:{known}:WEIGHTS with a file or one of {some or '(none published)'}"
        )
    config["quick_gelu"] = chosen.get("quick_gelu", False)  # the weights know which activation they were trained with
    return config, {key: chosen[key] for key in _PREPARES if key in chosen}, _fetched(chosen, name), None


def _of_files(path: Path, own: Path | None, name: Name) -> tuple[dict[str, Any], dict[str, Any], Path, Path | None]:
    """A folder in open_clip's form, or a configuration and a file of weights."""
    file = path / CONFIG if path.is_dir() else path
    try:
        table: Any = json.loads(file.read_text(encoding="utf-8"))
        config = dict(table.get("model_cfg", table))
        prepares = dict(table.get("preprocess_cfg", {}))
        if not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
            raise ValueError("it describes no model")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{name}: {file} is no configuration of open_clip: {_line(error)}") from None
    found = own or next((path / each for each in _WEIGHTS if path.is_dir() and (path / each).is_file()), None)
    if found is None or not found.is_file():
        raise CheckpointError(f"{name}: {path} has no weights, such as {_WEIGHTS[0]}")
    return config, prepares, found, path if path.is_dir() else path.parent


def _fetched(chosen: dict[str, Any], name: Name) -> Path:
    """Published weights, safe ones before others."""
    repository, _, file = str(chosen.get("hf_hub", "")).rpartition("/")
    if not repository:
        raise CheckpointError(f"{name}: is not on the hub: fetch its file yourself and name it in place of the tag")
    files = (os.path.splitext(file)[0] + ".safetensors", file) if file else _WEIGHTS  # noqa: PTH122 - a name on the hub
    return hub.fetch_first(repository, files)


def _built(library: Any, config: dict[str, Any], name: Name) -> nn.Module:
    """The model with random weights; nothing is fetched but the shape of a text tower of transformers."""
    shape = copy.deepcopy(config)
    vision, text = shape["vision_cfg"], shape["text_cfg"]
    vision["timm_model_pretrained"] = text["hf_model_pretrained"] = False
    if ":" in str(vision.get("timm_model_name", "")):
        raise CheckpointError(
            f"{name}: names its picture tower {vision['timm_model_name']!r}, which is not one of timm's own"
        )
    custom = bool(shape.pop("custom_text", False)) or "hf_model_name" in text
    if "hf_model_name" in text:
        folder = hub.fetch(str(text["hf_model_name"]), ("config.json",))
        check_plain(folder, name)
        text["hf_model_name"] = str(folder)
    kind = library.CLIP if not custom else library.CoCa if "multimodal_cfg" in shape else library.CustomTextCLIP
    return kind(**shape)


def check_plain(folder: Path, name: Name) -> None:
    """Refuse a folder of transformers whose files ask to run code of their own.

    Raises:
        CheckpointError: one does, or is damaged.
    """
    for file in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        if not (folder / file).is_file():
            continue
        try:
            table: Any = json.loads((folder / file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{name}: {folder / file} is damaged: {_line(error)}") from None
        if not isinstance(table, dict) or "auto_map" in table:
            raise CheckpointError(
                f"{name}: {folder / file} asks to run code that comes with the model, which is never done"
            )


def _fill(model: nn.Module, weights: Path, name: Name) -> None:
    """Every weight from the file, by loaders that run nothing of it.

    Raises:
        CheckpointError: damaged, unsafe, or of another model.
    """
    from pickle import UnpicklingError

    from open_clip.factory import load_checkpoint
    from safetensors import SafetensorError

    if weights.suffix not in (".safetensors", ".bin", ".pt", ".pth"):
        raise CheckpointError(f"{name}: {weights} is neither a .safetensors nor a .bin, .pt or .pth file")
    try:
        load_checkpoint(cast("Any", model), str(weights), strict=True, weights_only=True)
    except (SafetensorError, UnpicklingError, EOFError, OSError) as error:
        raise CheckpointError(
            f"{name}: {weights} is damaged, or more than tensors, which is not loaded: {_line(error)}"
        ) from None


def _tokenizer(config: dict[str, Any], home: Path | None, name: Name) -> tuple[Any, int]:
    """What turns texts into ids, with the model's own length."""
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer

    text = config["text_cfg"]
    length, settings = int(text.get("context_length", DEFAULT_CONTEXT_LENGTH)), dict(text.get("tokenizer_kwargs", {}))
    wanted = text.get("hf_tokenizer_name")
    if not wanted:
        return SimpleTokenizer(context_length=length, **settings), length
    local = home is not None and any((home / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json"))
    folder = home if home is not None and local else hub.fetch(str(wanted), _WORDS)
    check_plain(folder, name)
    settings |= {"local_files_only": True, "trust_remote_code": False}
    mode = text.get("tokenizer_mode")
    return HFTokenizer(str(folder), context_length=length, tokenizer_mode=mode, **settings), length


def _preparation(prepares: dict[str, Any], size: Any, name: Name) -> Preparation:
    from open_clip.transform import PreprocessCfg

    usual = PreprocessCfg()
    height, width = cast("tuple[int, int]", size if isinstance(size, tuple) else (size, size))
    mode = (
        str(prepares.get("resize_mode") or usual.resize_mode),
        str(prepares.get("interpolation") or usual.interpolation),
    )
    if height != width or mode not in _FITS:
        raise CheckpointError(
            f"{name}: wants pictures of {height}x{width} by {' and '.join(mode)}, which is not offered"
        )
    mean, std = (tuple(float(v) for v in prepares.get(key) or getattr(usual, key)) for key in ("mean", "std"))
    return Preparation(height, height, _FITS[mode], mean, std)


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] or type(error).__name__
