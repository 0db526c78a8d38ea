"""Gaussian smoothing and linear interpolation of small boxes, 2D or 3D, as matrix products along each axis.

On boxes of up to about 100 voxels a side this is the fastest there is on one thread, and exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F


def gaussian(field: torch.Tensor, sigma: Sequence[float]) -> torch.Tensor:
    """Gaussian smoothing of (X, Y[, Z]), sigma in voxels per axis, weights renormalised at the faces."""
    for axis, s in enumerate(sigma):
        if s > 0 and field.shape[axis] > 1:
            field = _along(field, _gaussian_matrix(field.shape[axis], round(float(s), 4)), axis)
    return field


def resize(field: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """(X, Y[, Z]) linearly interpolated to `shape`, corners on corners; the narrowest axes first, which is cheapest."""
    for axis in sorted(range(field.ndim), key=lambda a: shape[a] / field.shape[a]):
        if field.shape[axis] != shape[axis]:
            field = _along(field, _linear_matrix(shape[axis], field.shape[axis], True), axis)
    return field


def smoothed(u: torch.Tensor, sigma: Sequence[float], weight: torch.Tensor | None = None) -> torch.Tensor:
    """Gaussian mean of u, over the voxels of `weight` where one is given; sigma in voxels per axis.

    Wide Gaussians are computed on a coarser grid; what that changes lies far below the noise.
    """
    mean, steps = coarsely_smoothed(u if weight is None else u * weight, sigma)
    if weight is not None:
        mean = mean / coarsely_smoothed(weight, sigma)[0].clamp_min_(1e-3)
    return refined(mean, u.shape, steps)


def coarsely_smoothed(u: torch.Tensor, sigma: Sequence[float]) -> tuple[torch.Tensor, list[int]]:
    """The Gaussian mean on a grid of blocks, and their size in voxels per axis: as coarse as sigma allows."""
    steps = [1 if s < 1.8 else 2 if s < 4.8 else 3 if s < 8 else 4 for s in sigma]
    # Averaging blocks of k voxels and interpolating between them smooths by itself; the Gaussian makes up the rest.
    narrower = [
        math.sqrt(s * s - ((k * k - 1) / 12 + k * k / 6 if k > 1 else 0.0)) / k for s, k in zip(sigma, steps, strict=True)
    ]
    return gaussian(_pool(u, steps), narrower), steps


def refined(coarse: torch.Tensor, shape: Sequence[int], steps: Sequence[int]) -> torch.Tensor:
    """Linear interpolation between the middles of blocks of `steps` voxels, back to `shape`."""
    for axis, step in enumerate(steps):
        if step > 1:
            coarse = _along(coarse, _linear_matrix(shape[axis], coarse.shape[axis], False, step), axis)
    return coarse


def _pool(field: torch.Tensor, steps: Sequence[int]) -> torch.Tensor:
    """Mean over blocks of `steps` voxels; a block that is cut by the face is averaged as it is."""
    if max(steps) == 1:
        return field
    pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[field.ndim]
    return pool(field[None, None], list(steps), list(steps), ceil_mode=True, count_include_pad=False)[0, 0]


@lru_cache(maxsize=512)
def _gaussian_matrix(n: int, sigma: float) -> torch.Tensor:
    """(n, n): row i averages with a Gaussian around i, weights summing to 1."""
    at = torch.arange(n, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((at[None] - at[:, None]) / max(sigma, 1e-6)) ** 2)
    return (weights / weights.sum(1, keepdim=True)).float()


@lru_cache(maxsize=1024)
def _linear_matrix(n_out: int, n_in: int, corners: bool, step: int = 1) -> torch.Tensor:
    """(n_out, n_in): linear interpolation, corners on corners or, for block means, at the middles of blocks of `step`."""
    out = torch.arange(n_out, dtype=torch.float64)
    at = out * ((n_in - 1) / max(1, n_out - 1)) if corners else (out + 0.5) / step - 0.5
    at = at.clamp(0, n_in - 1)
    weights = 1 - (at[:, None] - torch.arange(n_in, dtype=torch.float64)[None]).abs()
    return weights.clamp_(min=0).float()


def _along(field: torch.Tensor, matrix: torch.Tensor, axis: int) -> torch.Tensor:
    shape = list(field.shape)
    shape[axis] = matrix.shape[0]
    if axis == field.ndim - 1:  # one large product; as a batch of matrix times vector it would be far slower
        return (field.reshape(-1, field.shape[axis]) @ matrix.T).reshape(shape)
    flat = field.reshape(math.prod(field.shape[:axis]), field.shape[axis], -1)
    return torch.matmul(matrix, flat).reshape(shape)
