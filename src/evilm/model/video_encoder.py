"""The video encoder ENC_V: a 2-D backbone on each frame, then one sequence of regions (paper 3.1, Eq. 1)."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

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

_PIECE = 2**18  # pixels that a CPU sees at a time
Layer = Literal["stage", "last"]
Options = dict[str, int | float | bool | str | list[int]]


def backbone(
    name: str, stride: int, options: Mapping[str, Any], weights: str = "none", layer: Layer = "stage"
) -> tuple[nn.Module, int]:
    """A timm backbone that answers one feature map of the wanted stride, and its width.

    Args:
        name: any timm model that offers ``features_only``.
        stride: pixels per cell.
        options: passed to the backbone's constructor, e.g. ``img_size`` for a ViT.
        weights: ``none`` (random), ``hub`` (timm's pre-trained ones, downloaded), or a safetensors file.
        layer: ``stage``, the last of that stride; ``last``, the convolution after it that a MobileNet or EfficientNet
            pools for its classes, and that timm's feature maps leave out.

    Raises:
        ConfigError: no such backbone, a refused option, no feature map of that stride, or no such layer; names those
            there are.
        CheckpointError: a weights file that does not fit.
    """
    import timm

    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_', maxsplit=1)[0]}*")[:8]
        raise ConfigError(f"unknown backbone {name!r}: timm has {', '.join(near) or 'nothing of that name'}")
    depth = options.get("depth")
    # timm offers the last three blocks of a ViT, and stumbles over one that has fewer.
    last = {"out_indices": depth} if isinstance(depth, int) and depth in (1, 2) else {}
    try:
        probe: Any = timm.create_model(name, features_only=True, **last, **options)
        strides: list[int] = probe.feature_info.reduction()
        if stride not in strides:
            raise ConfigError(f"backbone {name!r} has no feature map of stride {stride}: it has {sorted(set(strides))}")
        # The last of that stride, by its number in the whole backbone: timm shows a ViT's last blocks alone.
        level: int = probe.feature_info.out_indices[len(strides) - 1 - strides[::-1].index(stride)]
        if layer == "last" and stride != strides[-1]:
            raise ConfigError(f"backbone {name!r}: its last layer has stride {strides[-1]}, not {stride}")
        shown = {"num_classes": 0} if layer == "last" else {"features_only": True, "out_indices": (level,)}
        file = _checked(name, Path(weights), options) if weights not in ("none", "hub") else None
        with hub.hub_or_cache() if weights == "hub" else nullcontext():
            model: Any = timm.create_model(
                name,
                **shown,
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
    if layer == "last":
        if not isinstance(model, timm.models.EfficientNet):
            raise ConfigError(f"backbone {name!r} pools its last stage as it is: set model.backbone_layer=stage")
        return LastLayer(model), int(cast("Any", model).num_features)
    return model, int(model.feature_info.channels()[-1])


class LastLayer(nn.Module):
    """A MobileNet or EfficientNet up to its last convolution, which answers as timm's feature extractors do.

    Args:
        net: of timm, without classes.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net, self.pretrained_cfg = net, net.pretrained_cfg

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(n, 3, H, W) to one map (n, C, h, w)."""
        return [self.net.forward_features(pixels)]


def _checked(name: str, path: Path, options: Mapping[str, Any]) -> Path:
    """The path of a weights file, once it is known to hold every tensor of the backbone in its shape.

    timm loads what it finds and leaves the rest at random; here nothing but the classifier may lack.

    Raises:
        CheckpointError: the file is missing, damaged, or of another backbone.
    """
    import timm
    from safetensors import SafetensorError, safe_open

    try:
        opened: Any = safe_open(path, "pt")
        with opened as file:
            found: dict[str, tuple[int, ...]] = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118, not a dict
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from None
    own = timm.create_model(name, num_classes=0, **options).state_dict()
    wrong = [
        key
        for key, tensor in own.items()
        if not key.endswith("num_batches_tracked") and found.get(key) != tuple(tensor.shape)
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: not weights of {name}: {len(wrong)} of {len(own)} tensors lack or have another shape "
            f"({', '.join(wrong[:3])}, ...)"
        )
    return path


def statistics(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels that a backbone was trained on, one a colour."""
    from timm.data import config

    found = cast("dict[str, tuple[float, ...]]", config.resolve_model_data_config(model))
    return found["mean"], found["std"]


def keep_frozen(backbone: nn.Module) -> None:
    """Put a backbone of which nothing is trained into evaluation mode.

    Without a gradient its batch norms would still take each batch's statistics for their own, and what it learned
    elsewhere would be lost within an epoch, most thoroughly where the norms were folded into the convolutions.
    """
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        backbone.eval()


def feature_map(backbone: nn.Module, pixels: Tensor) -> Tensor:
    """What a backbone sees in pictures (n, 3, H, W).

    Where nothing is learned from it a CPU sees a few pictures at a time, whose activations stay in its caches: 256
    frames of 64x64 by ResNet-10-T take 70 ms so and 88 ms at once, in float32 137 and 239 (2 cores, AVX-512).
    """
    if torch.compiler.is_compiling() or backbone.training or pixels.device.type != "cpu":
        return backbone(pixels)[0]
    learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in backbone.parameters())
    piece = max(1, _PIECE // (pixels.shape[-2] * pixels.shape[-1]))
    if learns or len(pixels) <= piece:
        return backbone(pixels)[0]
    return torch.cat([backbone(pixels[i : i + piece])[0] for i in range(0, len(pixels), piece)])


def differences(regions: Tensor) -> Tensor:
    """(B, T, n, D) to (B, T, n, 2 D): from the frame before, and to the frame after; zero where there is none.

    Temporal differences as of TDN (Wang et al., 2021). Attention can find them too, but needs long to begin.
    """
    steps = regions[:, 1:] - regions[:, :-1]
    return torch.cat([F.pad(steps, (0, 0, 0, 0, 1, 0)), F.pad(steps, (0, 0, 0, 0, 0, 1))], dim=-1)


class VideoEncoder(nn.Module):
    """Frames to regions of the decoder's width, with their places in space and time.

    Args:
        name, stride, options, weights, layer: see ``backbone``.
        width: D of the decoder.
        size: pixels of a frame's side at which the spatial positions are learned.
        frames: T at which the temporal positions are learned; others interpolate.
        space_start, time_start: standard deviations of the positions before training.
        motion: let each region also tell how it differs from the same place a frame before and after.
        mean, std: pixel statistics; the backbone's own by default.
    """

    def __init__(
        self,
        *,
        name: str,
        stride: int,
        options: Mapping[str, Any],
        weights: str,
        width: int,
        size: int,
        frames: int,
        space_start: float = 0.02,
        time_start: float = 0.0,
        motion: bool = False,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        layer: Layer = "stage",
    ) -> None:
        super().__init__()
        self.stride = stride
        self.backbone, channels = backbone(name, stride, options, weights, layer)
        self.channels = channels
        usual_mean, usual_std = statistics(self.backbone)
        self.normalise = Normalise(mean or usual_mean, std or usual_std)
        self.project = nn.Linear(channels, width)
        cells = self.grid(frames, size, size).height
        self.space = nn.Parameter(space_start * torch.randn(1, width, cells, cells))
        # Zero by default, so that a model started from images treats all frames alike until it learns otherwise.
        self.time = nn.Parameter(time_start * torch.randn(1, width, frames))
        self.motion = nn.Linear(2 * width, width, bias=False) if motion else None
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def train(self, mode: bool = True) -> VideoEncoder:
        """A frozen backbone stays in evaluation mode: its batch norms keep the statistics that it came with."""
        super().train(mode)
        keep_frozen(self.backbone)
        return self

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """The regions of a clip of this size.

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
        return self.regions(self.features(frames))

    def features(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) normalised pixels to (B, T, h, w, C), what the backbone sees."""
        batch, count, _, height, width = frames.shape
        grid = self.grid(count, height, width)
        pixels = frames.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        features = feature_map(self.backbone, pixels)
        if features.shape[-1] != self.channels or features.shape[1] != grid.height:
            features = features.permute(0, 2, 3, 1)  # all but Swin and its kin answer (B*T, C, h, w)
        return features.reshape(batch, count, grid.height, grid.width, self.channels)

    def regions(self, features: Tensor) -> Encoded:
        """(B, T, h, w, C) features to e^V: projected, with where and when (Eq. 1)."""
        grid = Grid(*features.shape[1:4])
        cells = features.flatten(2, 3).to(self.project.weight.dtype)  # what was kept is of half precision
        regions = self.project(cells)
        if self.motion is not None:
            regions = regions + self.motion(differences(regions))
        regions = regions + self._positions(grid)[None]
        return Encoded(regions.flatten(1, 2), None, grid)

    def fingerprint(self, precision: str) -> str:
        """16 hex digits that name what decides the features: backbone, pixel statistics, precision."""
        digest = hashlib.sha256(precision.encode())
        for name, tensor in (*sorted(self.backbone.state_dict().items()), *self.normalise.named_buffers()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _positions(self, grid: Grid) -> Tensor:
        """(T, h*w, D): where plus when, interpolated to another size or frame count."""
        space, time = self.space, self.time
        if space.shape[-2:] != (grid.height, grid.width):
            space = F.interpolate(space, (grid.height, grid.width), mode="bicubic", align_corners=False)
        if time.shape[-1] != grid.frames:
            time = F.interpolate(time, grid.frames, mode="linear", align_corners=True)
        return time[0].T[:, None, :] + space[0].flatten(1).T[None]
