"""The video encoder ENC_V: a 2-D backbone on each frame, then one sequence of patches (paper 3.1, Eq. 1)."""

from __future__ import annotations

import hashlib
import pickle
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from evilm import hub
from evilm.errors import CheckpointError, ConfigError, GridError
from evilm.model.layers import Normalise
from evilm.types import Encoded, Grid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evilm.model.presets import ModelConfig

_CHUNK_PIXELS = 2**18  # that a CPU encodes at a time


def build_backbone(
    name: str, stride: int, options: Mapping[str, Any], weights: str = "none", *, conv_head: bool = False
) -> tuple[nn.Module, int]:
    """A timm backbone that returns one feature map of the wanted stride, and the number of its channels.

    Args:
        name: any timm model that offers ``features_only``.
        stride: pixels of a patch's side.
        options: arguments of the backbone's constructor, e.g. ``img_size`` for a ViT.
        weights: ``none`` (random), ``hub`` (timm's pre-trained ones, downloaded), or a file: safetensors with timm's
            names, or a state dict of torch whose tensors have timm's order and shapes under any names.
        conv_head: include the 1x1 convolution after the last stage of a MobileNet or EfficientNet, which is trained to
            be pooled for its classes and which timm's feature maps leave out.

    Raises:
        ConfigError: no such backbone, a refused option, no feature map of that stride, or no ``conv_head``; the message
            lists what there is.
        CheckpointError: a weights file that does not fit.
    """
    import timm

    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_', maxsplit=1)[0]}*")[:8]
        raise ConfigError(f"unknown backbone {name!r}: timm has {', '.join(near) or 'nothing of that name'}")
    depth = options.get("depth")
    # timm takes the last three blocks of a ViT by default and fails where a ViT has fewer.
    last = {"out_indices": depth} if isinstance(depth, int) and depth in (1, 2) else {}
    try:
        probe: Any = timm.create_model(name, features_only=True, **last, **options)
        strides: list[int] = probe.feature_info.reduction()
        if stride not in strides:
            raise ConfigError(f"backbone {name!r} has no feature map of stride {stride}: it has {sorted(set(strides))}")
        # The last map of that stride, by its index in the whole backbone: of a ViT timm lists the last blocks only.
        level: int = probe.feature_info.out_indices[len(strides) - 1 - strides[::-1].index(stride)]
        if conv_head and stride != strides[-1]:
            raise ConfigError(f"backbone {name!r}: its conv_head has stride {strides[-1]}, not {stride}")
        form = {"num_classes": 0} if conv_head else {"features_only": True, "out_indices": (level,)}
        with hub.hub_or_cache() if weights == "hub" else nullcontext(), TemporaryDirectory() as folder:
            file = None if weights in ("none", "hub") else _check_weights(name, Path(weights), options, Path(folder))
            model: Any = timm.create_model(
                name,
                **form,
                pretrained=weights != "none",
                pretrained_cfg_overlay=None if file is None else {"file": str(file)},
                **options,
            )
    except OSError as error:
        raise CheckpointError(
            f"backbone {name!r}: its weights cannot be fetched ({type(error).__name__}); without a network, name a "
            "safetensors file in `backbone_weights`, or start at random with `none`"
        ) from None
    except (RuntimeError, TypeError, AssertionError, ValueError) as error:
        raise ConfigError(f"backbone {name!r} with options {dict(options)}: {str(error).splitlines()[0]}") from None
    if conv_head:
        if not isinstance(model, timm.models.EfficientNet):
            raise ConfigError(f"backbone {name!r} has no conv_head: set model.backbone_conv_head=false")
        return ConvHeadBackbone(model), int(cast("Any", model).num_features)
    return model, int(model.feature_info.channels()[-1])


class ConvHeadBackbone(nn.Module):
    """A MobileNet or EfficientNet up to its ``conv_head``, with the interface of timm's feature extractors.

    Args:
        net: a timm model without classes.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net, self.pretrained_cfg = net, net.pretrained_cfg

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(n, 3, H, W) to one map (n, C, h, w)."""
        return [self.net.forward_features(pixels)]


def _check_weights(name: str, path: Path, options: Mapping[str, Any], folder: Path) -> Path:
    """A safetensors file with every tensor of the backbone in its shape: ``path``, or a copy of it in ``folder``.

    timm leaves tensors that a file lacks at random; here only the classifier may be missing.

    Raises:
        CheckpointError: the file is missing, damaged, or of another backbone.
    """
    import timm
    from safetensors import SafetensorError, safe_open

    own = timm.create_model(name, num_classes=0, **options).state_dict()
    if path.suffix in (".pth", ".pt", ".bin"):
        path = _rename_tensors(path, list(own), folder / "renamed.safetensors")
    try:
        opened: Any = safe_open(path, "pt")
        with opened as file:
            shapes: dict[str, tuple[int, ...]] = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118, not a dict
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from None
    wrong = [
        key
        for key, tensor in own.items()
        if not key.endswith("num_batches_tracked") and shapes.get(key) != tuple(tensor.shape)
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: not weights of {name}: {len(wrong)} of {len(own)} tensors are missing or have another shape "
            f"({', '.join(wrong[:3])}, ...)"
        )
    return path


def _rename_tensors(path: Path, names: list[str], out: Path) -> Path:
    """Write the tensors of a torch file to ``out`` under ``names``, in order; the classifier, which is last, is left.

    Other implementations of a network name its tensors in their own way, but list them in the order of computation.
    """
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType], its PathLike is bare

    try:
        found: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        tensors = [tensor.contiguous() for tensor in found.values()]
    except (OSError, RuntimeError, EOFError, ValueError, AttributeError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: not readable as a state dict of torch: {reason}") from None
    save_file(dict(zip(names, tensors, strict=False)), out)
    return out


def pixel_statistics(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels that a backbone was trained on, one for each colour."""
    from timm.data import config

    table = cast("dict[str, tuple[float, ...]]", config.resolve_model_data_config(model))
    return table["mean"], table["std"]


def freeze_batch_norm(backbone: nn.Module) -> None:
    """Put a backbone without trainable parameters into evaluation mode.

    In training mode its batch norms would use and store each batch's statistics although nothing is trained, and the
    pre-trained features would be lost within an epoch.
    """
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        backbone.eval()


def backbone_features(backbone: nn.Module, pixels: Tensor) -> Tensor:
    """The backbone's feature map of pictures (n, 3, H, W).

    Without gradients a CPU encodes a few pictures at a time, whose activations stay in its caches: 256 frames of 64x64
    by ResNet-10-T take 70 ms instead of 88 ms, in float32 137 instead of 239 (2 cores, AVX-512).
    """
    if torch.compiler.is_compiling() or backbone.training or pixels.device.type != "cpu":
        return backbone(pixels)[0]
    learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in backbone.parameters())
    count = max(1, _CHUNK_PIXELS // (pixels.shape[-2] * pixels.shape[-1]))
    if learns or len(pixels) <= count:
        return backbone(pixels)[0]
    return torch.cat([backbone(pixels[i : i + count])[0] for i in range(0, len(pixels), count)])


def frame_differences(patches: Tensor) -> Tensor:
    """(B, T, n, D) to (B, T, n, 2 D): the change from the previous frame and to the next one; zero at the ends.

    Temporal differences as in TDN (Wang et al., 2021). Attention can compute them too, but learns to do so late.
    """
    steps = patches[:, 1:] - patches[:, :-1]
    return torch.cat([F.pad(steps, (0, 0, 0, 0, 1, 0)), F.pad(steps, (0, 0, 0, 0, 0, 1))], dim=-1)


class VideoEncoder(nn.Module):
    """Frames to patches of the fusion width, with learned positions in space and time.

    Args:
        config: the settings named ``backbone_*`` and ``stride`` to ``position_std``, and ``embed_dim``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, self.stride, self.pools = config.embed_dim, config.stride, config.pools
        self.backbone, self.channels = build_backbone(
            config.backbone,
            config.stride,
            config.backbone_options,
            config.backbone_weights,
            conv_head=config.backbone_conv_head,
        )
        mean, std = pixel_statistics(self.backbone)
        self.normalise = Normalise(config.mean or mean, config.std or std)
        self.project = nn.Linear(self.channels, width)
        side = config.image_size // config.stride
        # Positions for ``image_size`` and ``num_frames``; other sizes interpolate. Those in time start at zero by
        # default, so that a model that starts from images treats all frames alike at first.
        space_std, time_std = (0.02, 0.0) if config.position_std is None else (config.position_std, config.position_std)
        self.space = nn.Parameter(space_std * torch.randn(1, width, side, side))
        self.time = nn.Parameter(time_std * torch.randn(1, width, config.num_frames))
        self.motion = nn.Linear(2 * width, width, bias=False) if config.motion else None
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def train(self, mode: bool = True) -> VideoEncoder:
        """Set the mode; a frozen backbone stays in evaluation mode, so that its batch norms keep their statistics."""
        super().train(mode)
        freeze_batch_norm(self.backbone)
        return self

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """The patches of a clip of this size.

        Raises:
            GridError: a side that is no multiple of the stride, with the nearest that are.
        """
        for side in (height, width):
            if side < self.stride or side % self.stride:
                low = max(1, side // self.stride) * self.stride
                raise GridError(
                    f"frames of {height}x{width} do not fit an encoder of stride {self.stride}: "
                    f"a side of {side} must be a multiple of it, such as {low} or {low + self.stride}"
                )
        return Grid(frames, height // self.stride, width // self.stride)

    def forward(self, frames: Tensor) -> Encoded:
        """(B, T, 3, H, W) normalised pixels to e^V, (B, N, D) with N = T h w (Eq. 1)."""
        return self.patches(self.features(frames))

    def features(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) normalised pixels to the backbone's feature maps, (B, T, h, w, C)."""
        batch, count, _, height, width = frames.shape
        grid = self.grid(count, height, width)
        pixels = frames.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        features = backbone_features(self.backbone, pixels)
        if features.shape[-1] != self.channels or features.shape[1] != grid.height:
            features = features.permute(0, 2, 3, 1)  # all but Swin-like backbones return (B*T, C, h, w)
        return features.reshape(batch, count, grid.height, grid.width, self.channels)

    def patches(self, features: Tensor) -> Encoded:
        """Feature maps (B, T, h, w, C) to e^V: projected, with positions in space and time (Eq. 1)."""
        grid = Grid(*features.shape[1:4])
        patches = self.project(features.flatten(2, 3).to(self.project.weight.dtype))  # cached ones have half precision
        if self.motion is not None:
            patches = patches + self.motion(frame_differences(patches))
        patches = patches + self._positions(grid)[None]
        pooled = features.float().mean((1, 2, 3)) if self.pools else None
        return Encoded(patches.flatten(1, 2), None, grid, pooled)

    def fingerprint(self, precision: str) -> str:
        """16 hex digits that change with whatever decides the features: backbone, pixel statistics, precision."""
        digest = hashlib.sha256(precision.encode())
        for name, tensor in (*sorted(self.backbone.state_dict().items()), *self.normalise.named_buffers()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _positions(self, grid: Grid) -> Tensor:
        """(T, h*w, D): positions in space plus positions in time, interpolated to the grid."""
        space, time = self.space, self.time
        if space.shape[-2:] != (grid.height, grid.width):
            space = F.interpolate(space, (grid.height, grid.width), mode="bicubic", align_corners=False)
        if time.shape[-1] != grid.frames:
            time = F.interpolate(time, grid.frames, mode="linear", align_corners=True)
        return time[0].T[:, None, :] + space[0].flatten(1).T[None]
