"""Between voxel displacements and displacement fields in the sense of ITK.

Axes: a tensor's spatial axes are those of `SimpleITK.GetArrayFromImage`, which is also how nnU-Net reads images: the
*last* tensor axis is ITK's first index axis. Tensor axis a is ITK index axis D - 1 - a.

ITK's field: on each voxel of the fixed grid, at the physical point p, a vector d(p) in mm (LPS, components x, y[, z])
such that the moving image is read at p + d(p). SimpleITK's DisplacementFieldTransform, ANTs and 3D Slicer read it so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """A voxel grid in space: `shape` in tensor order, the rest in ITK's order as SimpleITK returns it (mm, LPS)."""

    shape: tuple[int, ...]
    origin: tuple[float, ...]
    spacing: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: Any) -> Geometry:
        """The grid of a SimpleITK image."""
        return cls(image.GetSize()[::-1], image.GetOrigin(), image.GetSpacing(), image.GetDirection())

    def matrix(self) -> Tensor:
        """(D + 1, D + 1), float64, homogeneous: tensor index to physical point (x, y[, z]) in mm."""
        dims = len(self.shape)
        matrix = torch.eye(dims + 1, dtype=torch.float64)
        direction = torch.tensor(self.direction, dtype=torch.float64).reshape(dims, dims)
        matrix[:dims, :dims] = (direction * torch.tensor(self.spacing, dtype=torch.float64)).flip(1)
        matrix[:dims, dims] = torch.tensor(self.origin, dtype=torch.float64)
        return matrix


def voxel_map(fixed: Geometry, moving: Geometry, transform: Tensor | None = None) -> Tensor:
    """(D + 1, D + 1), float64: tensor index of the fixed grid to tensor index of the moving one.

    M_moving^-1 T M_fixed; T maps a fixed to a moving point in mm (homogeneous, as in ITK), the identity if None.
    """
    middle = torch.eye(len(fixed.shape) + 1, dtype=torch.float64) if transform is None else transform.double()
    return torch.linalg.solve(moving.matrix(), middle @ fixed.matrix())


def affine_displacement(matrix: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """u(x) = M x - x of shape (1, D, *shape), float64, for a homogeneous (D + 1, D + 1) matrix of voxel indices.

    With `voxel_map` it resamples an image onto another grid: warp(moving, affine_displacement(voxel_map(...), shape)).
    """
    dims = len(shape)
    offset = matrix.double() - torch.eye(dims + 1, dtype=torch.float64, device=matrix.device)
    displacement = offset[:dims, dims].reshape(1, dims, *[1] * dims).expand(1, dims, *shape).clone()
    for axis, size in enumerate(shape):
        along = [1] * dims
        along[axis] = size
        index = torch.arange(size, dtype=torch.float64, device=matrix.device).reshape(1, 1, *along)
        displacement += offset[:dims, axis].reshape(1, dims, *[1] * dims) * index
    return displacement


def to_physical(displacement: Tensor, fixed: Geometry, moving: Geometry | None = None) -> Tensor:
    """d(p) in mm of shape (B, X, Y[, Z], D), float64: d(M_f x) = M_m (x + u(x)) - M_f x.

    One item of the result goes into `SimpleITK.GetImageFromArray(item, isVector=True)` as it is. `moving` is the grid
    in whose voxels u is measured, the fixed one if None.
    """
    target = fixed if moving is None else moving
    dims = len(fixed.shape)
    linear = target.matrix()[:dims, :dims].to(displacement.device)
    physical = torch.einsum("ij,bj...->b...i", linear, displacement.double())
    if moving is not None:
        difference = moving.matrix() - fixed.matrix() + torch.eye(dims + 1, dtype=torch.float64)
        between = affine_displacement(difference.to(displacement.device), fixed.shape)
        physical = physical + between.movedim(1, -1)
    return physical


def from_physical(field: Tensor, fixed: Geometry, moving: Geometry | None = None) -> Tensor:
    """u of shape (B, D, X, Y[, Z]), float64, from ITK's d of shape (B, X, Y[, Z], D) in mm.

    The inverse of `to_physical`: u(x) = M_m^-1 (M_f x + d(M_f x)) - x.
    """
    target = fixed if moving is None else moving
    dims = len(fixed.shape)
    linear = torch.linalg.inv(target.matrix()[:dims, :dims]).to(field.device)
    displacement = torch.einsum("ij,b...j->bi...", linear, field.double())
    if moving is not None:
        displacement = displacement + affine_displacement(voxel_map(fixed, moving).to(field.device), fixed.shape)
    return displacement
