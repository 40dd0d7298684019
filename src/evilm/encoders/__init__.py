"""Dual encoders of other libraries (CLIP, SigLIP and others): images and texts in one space, videos by their frames.

    open_clip:ViT-B-32:laion2b_s34b_b79k    a published model; its weights are downloaded
    open_clip:ViT-B-32:weights.safetensors  the same architecture with weights from a file
    open_clip:FOLDER, open_clip:owner/name  open_clip_config.json with weights beside it, local or on the hub
    transformers:FOLDER, transformers:owner/name    CLIP, SigLIP and others in the format of transformers
    ...@8                                   8 frames of each clip instead of 4

Apple's MobileCLIP and Meta's Perception Encoder are loaded by open_clip; timm has their image encoders only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evilm.distributed import DeviceName, Precision
    from evilm.encoders.base import DualEncoder


def load(name: str, device: DeviceName = "auto", precision: Precision = "auto") -> DualEncoder:
    """The encoder of that name; torch and its library are imported here.

    Raises:
        CheckpointError: no such model, damaged or unsafe files, or no network for a download.
        DependencyError: a library is missing.
        DeviceError: no such device.
    """
    from evilm.encoders.names import EncoderName
    from evilm.errors import DependencyError

    parsed = EncoderName.parse(name)
    try:
        from evilm import distributed
        from evilm.encoders import open_clip, transformers
        from evilm.encoders.base import DualEncoder
    except ModuleNotFoundError as error:
        raise DependencyError(f"{name}: needs {error.name}: pip install 'evilm[clip]'") from None
    build = {"open_clip": open_clip.towers, "transformers": transformers.towers}[parsed.library]
    return DualEncoder(parsed, build(parsed), distributed.device(device), precision)
