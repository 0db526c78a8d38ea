"""Displacement and velocity fields on voxel grids.

One convention for the whole library, 2D and 3D alike:

* A displacement is a tensor u of shape (B, D, X, Y[, Z]). Its unit is the *voxel of the moving grid*, which is its own
  grid unless said otherwise, and channel i is the displacement along tensor axis 2 + i. "X, Y, Z" are tensor axes in
  the order in which they come, whatever they are called outside (`physical.py` says how they meet ITK's).
* u stands for the map phi(x) = x + u(x) from the fixed grid to the moving image, so the warped image is
  warp(m, u)(x) = m(x + u(x)).
* A velocity v has the same shape and unit; exp(v) is the flow of the stationary field v after unit time, and its
  inverse is exp(-v).
* Fields are extended beyond their grid by their nearest border value.

Everything is computed in at least float32, autocast or not: a coordinate in float16 is off by a tenth of a voxel
from 256 on.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Mode = Literal["linear", "nearest"]
Padding = Literal["border", "zeros"]


def warp(image: Tensor, displacement: Tensor, mode: Mode = "linear", padding: Padding = "border") -> Tensor:
    """The image seen through the map: warp(m, u)(x) = m(x + u(x)).

    image: (B, C, X', Y'[, Z']), displacement: (B, D, X, Y[, Z]); a batch of one on either side is broadcast. The two
    grids may differ; x + u(x) is a position in voxels of `image`. "nearest" keeps the data type (labels stay labels),
    "linear" gives floating point, float32 at least. Outside the image is its nearest border value, or zero.
    """
    computed = _at_least_float32(image)
    field = displacement.to(torch.promote_types(computed.dtype, _at_least_float32(displacement).dtype))
    computed = computed.to(field.dtype)
    batch = max(len(image), len(field))
    warped = F.grid_sample(
        computed.expand(batch, *computed.shape[1:]),
        _sampling_grid(field, image.shape[2:]).expand(batch, *field.shape[2:], field.shape[1]),
        mode="bilinear" if mode == "linear" else "nearest",
        padding_mode=padding,
        align_corners=True,
    )
    return warped.to(image.dtype) if mode == "nearest" else warped


def compose(u: Tensor, v: Tensor) -> Tensor:
    """The displacement of phi_u after phi_v: compose(u, v)(x) = v(x) + u(x + v(x)).

    warp(m, compose(u, v)) = warp(warp(m, u), v). Shapes (B, D, X, Y[, Z]); the result lives on v's grid.
    """
    return v + warp(u, v)


def exponentiate(velocity: Tensor, steps: int = 7) -> Tensor:
    """The displacement of exp(v) by scaling and squaring: u_0 = v / 2^steps, u_(k+1) = compose(u_k, u_k).

    The error of the first step grows with (|v| / 2^steps)^2: seven steps are right for some tens of voxels.
    """
    displacement = _at_least_float32(velocity) / 2**steps
    for _ in range(steps):
        displacement = compose(displacement, displacement)
    return displacement


@torch.no_grad()
def invert(displacement: Tensor, iterations: int = 30, tolerance: float = 1e-3) -> Tensor:
    """The displacement w of the inverse map, w(x) = -u(x + w(x)), for any invertible displacement u.

    Fixed-point iteration w <- w - a (I + Du(x + w))^-1 r with the residual r = w + u(x + w). Without the matrix it
    would diverge wherever u stretches by more than two or turns; every voxel has a step a of its own, halved whenever
    its |r| would grow. Stops when no |r| exceeds `tolerance` voxels. Carries no gradient. Where a velocity is known,
    exp(-v) is cheaper.
    """
    u = _at_least_float32(displacement)
    dims = u.shape[1]
    matrix = jacobian(u) + torch.eye(dims, dtype=u.dtype, device=u.device).reshape(1, dims, dims, *[1] * dims)
    inverse, residual = -u, compose(u, -u)
    error = residual.norm(dim=1, keepdim=True)
    step = torch.ones_like(error)
    for _ in range(iterations):
        if error.max() <= tolerance:
            break
        here = warp(matrix.flatten(1, 2), inverse).unflatten(1, (dims, dims)).movedim((1, 2), (-2, -1))
        correction = torch.linalg.solve_ex(here, residual.movedim(1, -1).unsqueeze(-1))[0].squeeze(-1).movedim(-1, 1)
        trial = inverse - step * correction
        trial_residual = compose(u, trial)
        trial_error = trial_residual.norm(dim=1, keepdim=True)
        better = trial_error < error  # false for the NaN of a singular matrix, too
        inverse = torch.where(better, trial, inverse)
        residual = torch.where(better, trial_residual, residual)
        error = torch.where(better, trial_error, error)
        step = torch.where(better, (2 * step).clamp(max=1.0), 0.5 * step)
    return inverse


def resize(field: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """A displacement or velocity on another grid that covers the same extent.

    Voxel edges coincide (as in image resizing with `align_corners=False`, average pooling and nnU-Net's resampling):
    x' = (x + 1/2) n'/n - 1/2 and u'_i(x') = u_i(x) n'_i / n_i, interpolated linearly.
    """
    if tuple(field.shape[2:]) == tuple(shape):
        return field
    factors = [new / old for new, old in zip(shape, field.shape[2:], strict=True)]
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    resized = F.interpolate(_at_least_float32(field), size=tuple(shape), mode=mode, align_corners=False)
    return resized * resized.new_tensor(factors).reshape(1, -1, *[1] * len(shape))


def jacobian(displacement: Tensor) -> Tensor:
    """Du of shape (B, D, D, X, Y[, Z]), [:, i, j] = du_i / dx_j, in voxels per voxel.

    Central differences (u(x + 1) - u(x - 1)) / 2 inside, one-sided differences on the outermost voxels.
    """
    u = _at_least_float32(displacement)
    wide = [axis for axis in range(2, u.ndim) if u.shape[axis] > 1]  # along a single slice nothing changes
    along = dict(zip(wide, torch.gradient(u, dim=wide), strict=True)) if wide else {}
    return torch.stack([along.get(axis, torch.zeros_like(u)) for axis in range(2, u.ndim)], dim=2)


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """det(I + Du) of shape (B, X, Y[, Z]): the local change of volume; at or below zero the map folds.

    Du by central differences, see `jacobian`. Where fixed and moving grid differ in spacing, the unit is voxels.
    """
    du = jacobian(displacement)
    if du.shape[1] == 2:
        return (1 + du[:, 0, 0]) * (1 + du[:, 1, 1]) - du[:, 0, 1] * du[:, 1, 0]
    # written out: torch.linalg.det wants the matrices last and is many times slower on millions of 3 x 3 ones
    a, b, c = 1 + du[:, 0, 0], du[:, 0, 1], du[:, 0, 2]
    d, e, f = du[:, 1, 0], 1 + du[:, 1, 1], du[:, 1, 2]
    g, h, i = du[:, 2, 0], du[:, 2, 1], 1 + du[:, 2, 2]
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def transform_points(points: Tensor, displacement: Tensor) -> Tensor:
    """p + u(p) for points p of shape (B, N, D) in voxels of the fixed grid (landmarks, mesh vertices)."""
    positions = points.transpose(1, 2).reshape(*points.transpose(1, 2).shape, *[1] * (points.shape[2] - 1))
    grid = points.new_zeros(1, points.shape[2], points.shape[1], *[1] * (points.shape[2] - 1))
    grid[:, 0, :] = torch.arange(points.shape[1], dtype=points.dtype, device=points.device).reshape(
        1, -1, *[1] * (points.shape[2] - 1)
    )
    moved = warp(displacement, positions - grid)
    return points + moved.flatten(2).transpose(1, 2)


def _at_least_float32(field: Tensor) -> Tensor:
    return field if field.dtype == torch.float64 else field.float()


def _sampling_grid(displacement: Tensor, image_shape: torch.Size) -> Tensor:
    """x + u(x) as `grid_sample` wants it: (B, X, Y[, Z], D), last axis first, -1 and 1 the outermost voxel centres."""
    normalised = []
    for axis, size in enumerate(image_shape):
        along = [1] * len(image_shape)
        along[axis] = displacement.shape[2 + axis]
        index = torch.arange(along[axis], dtype=displacement.dtype, device=displacement.device).reshape(along)
        normalised.append((displacement[:, axis] + index) * (2 / max(size - 1, 1)) - 1)
    return torch.stack(normalised[::-1], dim=-1)
