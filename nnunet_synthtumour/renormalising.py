"""nnU-Net's z-score once more, after a lesion has come into a healthy patch.

A patient's mean and deviation include the tumour: a large, bright one darkens the healthy tissue around it and dims
itself. In a patch of a healthy image, which was normalised without one, the same has to happen, or a network meets
contrasts that no patient has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

SAMPLED = 40_000  # voxels that are looked at: a lesion is smooth, and its effect on the whole image needs no more
NEGLIGIBLE = 0.01  # deviations
LEAST_VARIANCE = 0.25
SLAB = 8  # planes at a time stay in the cache


class Renormaliser:
    """x <- (x - m) / s, with m and s the mean and deviation of the whole image, which were 0 and 1, after a lesion.

    `masked` says for each z-scored channel whether nnU-Net normalises inside of the nonzero mask only, and is None for
    channels that are normalised otherwise and stay as they are.
    """

    def __init__(self, masked: Sequence[bool | None]) -> None:
        self.masked = tuple(masked)

    @staticmethod
    def of(configuration: Any) -> Renormaliser:
        """`configuration` is nnU-Net's `ConfigurationManager`. In 2D a slice does not tell what the volume has."""
        flat = len(configuration.patch_size) == 2
        schemes, masked = configuration.normalization_schemes, configuration.use_mask_for_norm
        return Renormaliser([bool(m) if s == "ZScoreNormalization" and not flat else None
                             for s, m in zip(schemes, masked, strict=True)])  # fmt: skip

    def sums(self, image: torch.Tensor) -> torch.Tensor:
        """Sum and sum of squares of every channel of (C, X, Y[, Z]), estimated from a lattice of voxels: (2, C)."""
        step = max(1, int((image[0].numel() / SAMPLED) ** (1 / (image.ndim - 1))))
        some = image[(slice(None), *[slice(step // 2, None, step)] * (image.ndim - 1))].flatten(1)
        scale = image[0].numel() / max(1, some.shape[1])
        return torch.stack([some.sum(1), some.square().sum(1)]).mul_(scale)

    def apply(self, image: torch.Tensor, before: torch.Tensor, voxels: tuple[float, float]) -> None:
        """Change `image` (C, X, Y[, Z]) in place. `before` are its `sums` without the lesion, `voxels` how many the whole
        image has, and how many of them lie inside of the nonzero mask.

        What is exactly 0 is padding, or lies outside of the mask, and stays.
        """
        change = (self.sums(image) - before).tolist()
        for channel, masked in enumerate(self.masked):
            n = voxels[1] if masked else voxels[0]
            if masked is None or n <= 0:
                continue
            mean = change[0][channel] / n
            deviation = max(1 + change[1][channel] / n - mean**2, LEAST_VARIANCE) ** 0.5
            if abs(mean) < NEGLIGIBLE and abs(deviation - 1) < NEGLIGIBLE:
                continue
            for part in image[channel].split(SLAB):
                part.mul_(1 / deviation).sub_((part != 0) * (mean / deviation))
