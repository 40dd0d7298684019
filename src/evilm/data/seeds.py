"""Every random stream derives from (seed, epoch, sample).

Nothing depends on the order in which workers finish, on their number, or on where a run was cut: a sample's crop,
mask and caption are functions of three integers.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(*path: int | str) -> int:
    """A 63-bit seed for the stream that ``path`` names; equal paths give equal seeds on every machine."""
    digest = hashlib.blake2b("/".join(str(part) for part in path).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*path: int | str) -> np.random.Generator:
    """A NumPy generator for the stream that ``path`` names."""
    return np.random.Generator(np.random.PCG64(derive(*path)))


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of ``count`` samples in an epoch, (count,) int64."""
    return generator(seed, "order", epoch).permutation(count)
