"""Gaussian smoothing and linear interpolation of small boxes, 2D or 3D, as matrix products along each axis.

On boxes of up to about 100 voxels a side this is the fastest there is on one thread, and exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F

SLAB_BLOCKS = 4
NEGLIGIBLE = 1e-8


def gaussian(field: torch.Tensor, sigma: Sequence[float]) -> torch.Tensor:
    """Gaussian smoothing of (X, Y[, Z]), sigma in voxels per axis, weights renormalised at the faces."""
    for axis, s in enumerate(sigma):
        if s > 0 and field.shape[axis] > 1:
            field = along_axis(field, _gaussian_matrix(field.shape[axis], round(float(s), 4)), axis)
    return field


def resize(field: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """(X, Y[, Z]) linearly interpolated to `shape`, corners on corners; the narrowest axes first, which is cheapest."""
    for axis in sorted(range(field.ndim), key=lambda a: shape[a] / field.shape[a]):
        if field.shape[axis] != shape[axis]:
            field = along_axis(field, _corner_interpolation(shape[axis], field.shape[axis]), axis)
    return field


def smoothed(u: torch.Tensor, sigma: Sequence[float], inside: tuple[slice, ...] | None = None) -> torch.Tensor:
    """Gaussian mean of u, sigma in voxels per axis; of the voxels `inside` only, where that is given.

    Wide Gaussians are computed on blocks of up to three voxels; what that changes lies far below the noise.
    """
    steps = [max(1, min(3, n, int(s / 1.6))) for s, n in zip(sigma, u.shape, strict=True)]
    mean = gaussian(_block_means(u, steps), block_sigma(sigma, steps))
    for axis, step in enumerate(steps):
        part = slice(None) if inside is None else inside[axis]
        if step > 1:
            mean = along_axis(mean, block_interpolation(u.shape[axis], mean.shape[axis], step)[part], axis)
        elif inside is not None:
            mean = mean[(slice(None),) * axis + (part,)]
    return mean


def block_sigma(sigma: Sequence[float], steps: Sequence[int]) -> list[float]:
    """Width in blocks that is left to smooth: averaging blocks of k voxels and interpolating smooths by itself."""
    return [
        math.sqrt(max(0.0, s * s - ((k * k - 1) / 12 + k * k / 6 if k > 1 else 0.0))) / k
        for s, k in zip(sigma, steps, strict=True)
    ]


def _block_means(field: torch.Tensor, steps: Sequence[int]) -> torch.Tensor:
    if max(steps) == 1:
        return field
    pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[field.ndim]
    slab = steps[0] * SLAB_BLOCKS  # pooling copies its input if that is a part of something larger
    means = [
        pool(field[None, None, i : i + slab], [min(steps[0], len(field) - i), *steps[1:]], list(steps), ceil_mode=True,
             count_include_pad=False)[0, 0]
        for i in range(0, len(field), slab)
    ]  # fmt: skip
    return torch.cat(means)


@lru_cache(maxsize=64)
def _gaussian_matrix(n: int, sigma: float) -> torch.Tensor:
    """(n, n): row i averages with a Gaussian around i, weights summing to 1."""
    at = torch.arange(n, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((at[None] - at[:, None]) / max(sigma, 1e-6)) ** 2)
    weights[weights < NEGLIGIBLE] = 0  # products of numbers too small for a float's exponent take ten times as long
    return (weights / weights.sum(1, keepdim=True)).float()


@lru_cache(maxsize=512)
def _corner_interpolation(n_out: int, n_in: int) -> torch.Tensor:
    """(n_out, n_in): linear interpolation, corners on corners."""
    return _interpolation(torch.arange(n_out, dtype=torch.float64) * ((n_in - 1) / max(1, n_out - 1)), n_in)


@lru_cache(maxsize=512)
def block_interpolation(n_out: int, n_in: int, step: int) -> torch.Tensor:
    """(n_out, n_in): linear interpolation from the middles of blocks of `step` voxels to voxels."""
    return _interpolation((torch.arange(n_out, dtype=torch.float64) + 0.5) / step - 0.5, n_in)


def _interpolation(at: torch.Tensor, n_in: int) -> torch.Tensor:
    at = at.clamp(0, n_in - 1)
    weights = 1 - (at[:, None] - torch.arange(n_in, dtype=torch.float64)[None]).abs()
    return weights.clamp_(min=0).float()


def along_axis(field: torch.Tensor, matrix: torch.Tensor, axis: int) -> torch.Tensor:
    """Apply (n_out, n_in) along one axis of (X, Y[, Z])."""
    shape = list(field.shape)
    shape[axis] = matrix.shape[0]
    if axis == field.ndim - 1:  # one large product; as a batch of matrix times vector it would be far slower
        return (field.reshape(-1, field.shape[axis]) @ matrix.T).reshape(shape)
    flat = field.reshape(math.prod(field.shape[:axis]), field.shape[axis], -1)
    return torch.matmul(matrix, flat).reshape(shape)
