"""Gaussian smoothing and linear interpolation of small boxes, 2D or 3D, as matrix products along each axis.

On boxes of up to about 100 voxels a side this is the fastest there is on one thread, and exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F

SLAB_VOXELS = 30_000


def gaussian(field: torch.Tensor, sigma: Sequence[float]) -> torch.Tensor:
    """Gaussian smoothing of (X, Y[, Z]), sigma in voxels per axis, weights renormalised at the faces."""
    for axis, s in enumerate(sigma):
        if s > 0 and field.shape[axis] > 1:
            field = _along(field, _gaussian_matrix(field.shape[axis], round(float(s), 4)), axis)
    return field


def resize(field: torch.Tensor, shape: Sequence[int], rows: slice | None = None) -> torch.Tensor:
    """(X, Y[, Z]) linearly interpolated to `shape`, corners on corners; of the first axis only `rows`, if given."""
    if rows is not None:
        field = _along(field, _linear_matrix(shape[0], field.shape[0], True)[rows], 0)
        shape = field.shape[:1] + torch.Size(shape[1:])
    # the narrowest axes first, which is cheapest
    for axis in sorted(range(field.ndim), key=lambda a: shape[a] / field.shape[a]):
        if field.shape[axis] != shape[axis]:
            field = _along(field, _linear_matrix(shape[axis], field.shape[axis], True), axis)
    return field


def smoothed(u: torch.Tensor, sigma: Sequence[float], inside: torch.Tensor | None = None) -> torch.Tensor:
    """Gaussian mean of u, over the voxels `inside` (bool) if given; sigma in voxels per axis.

    Wide Gaussians are computed on a coarser grid; what that changes lies far below the noise.
    """
    mean, steps = coarsely_smoothed(u, sigma, inside)
    return refined(mean, steps, u.shape)


def coarsely_smoothed(
    u: torch.Tensor, sigma: Sequence[float], inside: torch.Tensor | None = None
) -> tuple[torch.Tensor, list[int]]:
    """The Gaussian mean on a grid of blocks, and their size in voxels per axis: as coarse as sigma allows."""
    steps = [1 if s < 1.8 else 2 if s < 4.8 else 3 if s < 8 else 4 for s in sigma]
    # Averaging blocks of k voxels and interpolating between them smooths by itself; the Gaussian makes up the rest.
    narrower = [
        math.sqrt(s * s - ((k * k - 1) / 12 + k * k / 6 if k > 1 else 0.0)) / k
        for s, k in zip(sigma, steps, strict=True)
    ]
    mean = gaussian(_pool(u, steps, inside), narrower)
    if inside is not None:
        mean = mean / gaussian(_pool(inside, steps), narrower).clamp_min_(1e-3)
    return mean, steps


def refined(
    coarse: torch.Tensor, steps: Sequence[int], shape: Sequence[int], rows: slice | None = None
) -> torch.Tensor:
    """Linear interpolation between the middles of blocks of `steps` voxels, back to `shape` (or `rows` of it)."""
    for axis, step in enumerate(steps):
        matrix = _linear_matrix(shape[axis], coarse.shape[axis], False, step)
        if axis == 0 and rows is not None:
            matrix = matrix[rows]
        if step > 1 or (axis == 0 and rows is not None):
            coarse = _along(coarse, matrix, axis)
    return coarse


def slabs(shape: Sequence[int], multiple_of: int = 1) -> list[slice]:
    """The rows (first axis) of a box in slabs of about `SLAB_VOXELS`: work that is done slab by slab needs no second box."""
    planes = max(1, SLAB_VOXELS // max(1, math.prod(shape[1:])))
    planes = -(-planes // multiple_of) * multiple_of
    return [slice(start, min(start + planes, shape[0])) for start in range(0, shape[0], planes)]


def _pool(field: torch.Tensor, steps: Sequence[int], inside: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over blocks of `steps` voxels, zero outside of `inside`; a block cut by the face is averaged as it is."""
    pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[field.ndim]
    parts = []
    for rows in slabs(field.shape, steps[0]):
        part = field[rows].float() if inside is None else torch.where(inside[rows], field[rows], 0.0)
        if max(steps) > 1:
            kernel = [min(k, n) for k, n in zip(steps, part.shape, strict=True)]  # torch refuses larger ones
            part = pool(part[None, None], kernel, list(steps), ceil_mode=True, count_include_pad=False)[0, 0]
        parts.append(part)
    return torch.cat(parts)


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
