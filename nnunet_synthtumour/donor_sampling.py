"""From voxels of a patch to a donor's crop, and the crop's values there: the part of a paste that costs time.

The way is affine, bent by waves along the patch's axes. So a coordinate of the donor is a sum of one function per axis of
the patch, and costs no more with the bend than without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from nnunet_synthtumour.donor_placement import Paste

WAVES = 3
WAVELENGTHS_MM = (24.0, 72.0)


class Mapping:
    """Where voxels of the patch lie in the donor's crop. `matrix` takes voxels to voxels, both from the anchor."""

    def __init__(self, paste: Paste, anchor: Sequence[int], spacing: Sequence[float]) -> None:
        self.mm, self.anchor, self.dims = np.array(spacing), anchor, len(spacing)
        self.matrix = np.array(paste.matrix) * self.mm[None, :] / self.mm[:, None]
        self.heights = paste.elastic_mm / self.mm * math.sqrt(2 / (WAVES * self.dims))
        drawn = np.random.default_rng(paste.seed)
        size = (self.dims, self.dims, WAVES, 1)  # the patch's axis, the donor's, the waves, the voxels
        self.pitch = 2 * np.pi / drawn.uniform(*WAVELENGTHS_MM, size)
        self.phase = drawn.uniform(0, 2 * np.pi, size)

    def parts(self, positions: Sequence[np.ndarray]) -> list[list[torch.Tensor]]:
        """For `positions` along the patch's axes (voxels from the paste's centre) what each adds to each of the donor's."""
        lines = [self._line(axis, at) for axis, at in enumerate(positions)]
        lines[0] += np.array(self.anchor)[:, None]
        return [[torch.from_numpy(line[row]) for line in lines] for row in range(self.dims)]

    def _line(self, axis: int, at: np.ndarray) -> np.ndarray:
        line = self.matrix[:, axis, None] * at
        if self.heights.any():
            pitch, phase = self.pitch[axis], self.phase[axis]
            waves = np.sin(pitch * (at * self.mm[axis]) + phase) - np.sin(phase)  # the anchor stays
            line += waves.sum(1) * self.heights[:, None]
        return np.asarray(line, dtype=np.float32)


def grid(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of one vector per axis, over all of the box that they span."""
    total = parts[0].reshape(-1, *[1] * (len(parts) - 1))
    for axis, part in enumerate(parts[1:], 1):
        total = total + part.reshape([-1 if i == axis else 1 for i in range(len(parts))])
    return total


class Linear:
    """Linear interpolation in crops of one shape at points (one tensor of voxels per axis), which are not kept.

    Gathers of neighbours, a third of the time of `grid_sample`.
    """

    def __init__(self, shape: Sequence[int], points: Sequence[torch.Tensor]) -> None:
        self.steps = [math.prod(shape[axis + 1 :]) if n > 1 else 0 for axis, n in enumerate(shape)]
        self.base, self.fractions = torch.zeros((), dtype=torch.int32), []
        for at, n in zip(points, shape, strict=True):
            at.clamp_(0, np.nextafter(np.float32(n - 1), np.float32(0)))
            self.base = torch.add(at.int(), self.base, alpha=n)
            self.fractions.append(at.frac_())

    def keep(self, which: torch.Tensor) -> None:
        """Go on with these points alone."""
        self.base = self.base.index_select(0, which)
        self.fractions = [fraction.index_select(0, which) for fraction in self.fractions]

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """Each point's nearest voxel instead."""
        index = self.base.clone()
        for fraction, step in zip(self.fractions, self.steps, strict=True):
            index += fraction.round().int() * step
        return values.reshape(-1).take(index.numpy())

    def __call__(self, values: np.ndarray) -> torch.Tensor:
        flat = torch.from_numpy(np.array(values)).reshape(-1)
        found = _interpolated(flat, self.base.reshape(-1), [f.reshape(-1) for f in self.fractions], self.steps)
        return found.view(self.base.shape)


def _interpolated(
    values: torch.Tensor, base: torch.Tensor, fractions: Sequence[torch.Tensor], steps: Sequence[int]
) -> torch.Tensor:
    if not steps:
        return values.index_select(0, base).float()  # as small as they are stored, more of them are in the cache
    low, high = (_interpolated(part, base, fractions[1:], steps[1:]) for part in (values, values[steps[0] :]))
    return low.lerp_(high, fractions[0])
