"""What a bag of words reaches on the small MSR-VTT split: the number that E-ViLM has to beat there.

A dual encoder without a transformer and without order: the mean of a frozen ImageNet backbone's features over frames,
a linear layer; a tf-idf bag of the caption's words, a linear layer; symmetric InfoNCE, one caption of twenty drawn each
time a video comes. Nothing of E-ViLM is in it but its readers, its loss and its metrics.

    python benchmarks/msrvtt_mini_baseline.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evilm import losses, metrics
from evilm.data import readers
from evilm.data.video import read_clip
from evilm.tasks.caption_words import words_of

if TYPE_CHECKING:
    from evilm.types import Example


def features(examples: list[Example], weights: Path, size: int, frames: int) -> Tensor:
    """(videos, 1280) pooled features of the frozen backbone, the mean over frames."""
    overlay = {"file": str(weights)}
    model = timm.create_model("mobilenetv2_100", num_classes=0, pretrained=True, pretrained_cfg_overlay=overlay)
    model = model.eval().to(memory_format=torch.channels_last)
    rows: list[Tensor] = []
    with torch.inference_mode():
        for example in examples:
            pixels = torch.from_numpy(read_clip(example.clip, frames, size, fit="squash")).permute(0, 3, 1, 2)
            normal = (pixels.float() / 255 - 0.5) / 0.5  # the mean and deviation of these weights
            rows.append(model(normal.contiguous(memory_format=torch.channels_last)).mean(0))
    return torch.stack(rows)


class Bags:
    """Captions as l2-normalised tf-idf vectors over the words of the training captions."""

    def __init__(self, captions: list[str], at_least: int = 2) -> None:
        counts = Counter(word for caption in captions for word in set(words_of(caption)))
        self.index = {word: k for k, word in enumerate(sorted(w for w, n in counts.items() if n >= at_least))}
        self.weight = torch.tensor([math.log(len(captions) / counts[word]) for word in self.index])

    def __call__(self, captions: list[str]) -> Tensor:
        """(captions, words)."""
        bags = torch.zeros(len(captions), len(self.index))
        for row, caption in enumerate(captions):
            for word in words_of(caption):
                if (k := self.index.get(word)) is not None:
                    bags[row, k] += self.weight[k]
        return F.normalize(bags, dim=-1)


def train(
    video: Tensor,
    bags: list[Tensor],
    seed: int,
    *,
    epochs: int,
    lr: float,
    decay: float,
    batch: int = 64,
    width: int = 256,
) -> tuple[nn.Linear, nn.Linear]:
    """Two linear layers, contrasted with a learned temperature; AdamW, cosine."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    of_video, of_text = nn.Linear(video.shape[1], width), nn.Linear(bags[0].shape[1], width, bias=False)
    temperature = nn.Parameter(torch.tensor(math.log(0.05)))
    optimizer = torch.optim.AdamW(
        [*of_video.parameters(), *of_text.parameters(), temperature], lr=lr, weight_decay=decay
    )
    each = len(video) // batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * each)
    for _ in range(epochs):
        order = rng.permutation(len(video))
        for start in range(0, each * batch, batch):
            rows = order[start : start + batch]
            text = torch.stack([bags[row][rng.integers(len(bags[row]))] for row in rows])
            v, t = F.normalize(of_video(video[rows]), dim=-1), F.normalize(of_text(text), dim=-1)
            loss = losses.contrastive(v, t, temperature.exp().clamp(min=0.01))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return of_video, of_text


def main() -> None:
    """Train and test the baseline with several seeds, and write its recalls to the standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder with msrvtt-frames and weights"
    )
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.01, help="weight decay")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    began = time.monotonic()
    weights = given.data / "weights" / "mobilenetv2_100.imagenet.safetensors"
    rows = {split: readers.read("frames", given.data / "msrvtt-frames", None, split) for split in ("train", "test")}
    seen = {split: features(examples, weights, given.size, given.frames) for split, examples in rows.items()}
    mean, deviation = seen["train"].mean(0), seen["train"].std(0) + 1e-3
    video = {split: (found - mean) / deviation for split, found in seen.items()}
    bags = Bags([caption for example in rows["train"] for caption in example.captions])
    heard = [bags(list(example.captions)) for example in rows["train"]]
    asked = bags([example.captions[0] for example in rows["test"]])  # the one sentence of the 1k-A test
    own = np.eye(len(asked), dtype=bool)
    found: list[dict[str, float]] = []
    for seed in range(given.seeds):
        of_video, of_text = train(video["train"], heard, seed, epochs=given.epochs, lr=given.lr, decay=given.decay)
        with torch.inference_mode():
            v, t = F.normalize(of_video(video["test"]), dim=-1), F.normalize(of_text(asked), dim=-1)
        found.append(metrics.retrieval((t @ v.T).numpy(), own))
    result = {"seeds": found, "chance": metrics.chance_retrieval(own), "seconds": time.monotonic() - began}
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
