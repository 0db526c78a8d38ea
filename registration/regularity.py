"""Regularity of displacement and velocity fields (B, D, X, Y[, Z]) in voxels; zero is best, every value a mean.

`spacing` (mm along the tensor axes, only its ratios matter) makes an anisotropic grid measure what an isotropic one
would: a step of one voxel along a coarse axis is long in u_i and in x_j alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_synthtumour.registration.fields import compose, jacobian_determinant

REFERENCE_SIDE = 128


def diffusion(field: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """mean_x sum_ij (du_i / dx_j)^2, forward differences; |Du|^2 does not depend on the resolution."""
    field, lengths = _precise(field), _relative(spacing, field)
    total = field.new_zeros(())
    for j in range(field.shape[1]):
        derivative = _forward(field, j)
        for i in range(field.shape[1]):
            total = total + (lengths[i] / lengths[j]) ** 2 * derivative[:, i].square().mean()
    return total


def bending_energy(field: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """mean_x sum_ijk (s d2u_i / dx_j dx_k)^2 with s = (n_1 ... n_D)^(1/D) / 128; zero for every affine map.

    Central second differences, mixed ones on cells of 2 x 2 voxels. A second derivative of voxels by voxels shrinks
    as the grid is refined; s takes that out: the same deformation costs the same on every grid, and weights tuned on
    128^3 voxels hold everywhere.
    """
    field, lengths = _precise(field), _relative(spacing, field)
    dims = field.shape[1]
    scale = math.prod(field.shape[2:]) ** (1 / dims) / REFERENCE_SIDE
    total = field.new_zeros(())
    for j in range(dims):
        first = _forward(field, j)
        for k in range(j, dims):
            second = _forward(first, k)
            for i in range(dims):
                times = 1 if j == k else 2
                factor = times * (scale * lengths[i] / (lengths[j] * lengths[k])) ** 2
                total = total + factor * second[:, i].square().mean()
    return total


def folding_penalty(displacement: Tensor, margin: float = 0.0) -> Tensor:
    """mean_x max(0, margin - det(I + Du)(x)), central differences (`fields.jacobian_determinant`)."""
    return (margin - jacobian_determinant(displacement)).clamp(min=0).mean()


def inverse_consistency(forward: Tensor, backward: Tensor) -> Tensor:
    """mean_x (|compose(u, w)(x)|^2 + |compose(w, u)(x)|^2) / 2 in voxels^2: zero where w is the inverse of u."""
    there_and_back = compose(forward, backward).square().sum(1).mean()
    back_and_there = compose(backward, forward).square().sum(1).mean()
    return (there_and_back + back_and_there) / 2


def _forward(field: Tensor, axis: int) -> Tensor:
    return torch.diff(field, dim=2 + axis)


def _precise(field: Tensor) -> Tensor:
    return field if field.dtype == torch.float64 else field.float()


def _relative(spacing: Sequence[float] | None, field: Tensor) -> list[float]:
    """Voxel sides divided by their geometric mean."""
    if spacing is None:
        return [1.0] * field.shape[1]
    mean = math.prod(spacing) ** (1 / len(spacing))
    return [side / mean for side in spacing]
