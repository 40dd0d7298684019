"""Dual encoders of other libraries, CLIP and its kin: pictures and texts into one space, videos by their frames.

    open_clip:ViT-B-32:laion2b_s34b_b79k    a published model, its weights fetched by name
    open_clip:ViT-B-32:weights.safetensors  the same with weights from a file
    open_clip:FOLDER, open_clip:owner/name  open_clip_config.json with weights beside it, here or on the hub
    transformers:FOLDER, transformers:owner/name    CLIP, SigLIP and others as transformers keeps them
    ...@8                                   8 frames of each clip instead of 4

Apple's MobileCLIP and Meta's Perception Encoder come through open_clip; timm itself has their picture towers alone.
"""
