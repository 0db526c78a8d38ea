"""The result of a registration as files that SimpleITK, ANTs and 3D Slicer apply as they are.

A registration is two maps, one after the other: the deformation x -> x + u(x) on the fixed grid and the affine map from
fixed to moving points. A field written here is *total*: both in one ITK displacement field (mm, LPS), on the fixed grid
for resampling the moving image, and its inverse on the moving grid for resampling the fixed image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch
from torch import Tensor

from nnunet_synthtumour.registration.fields import compose
from nnunet_synthtumour.registration.physical import Geometry, affine_displacement, to_physical, voxel_map


def total_displacement(displacement: Tensor, fixed: Geometry, moving: Geometry, affine: Tensor | None = None) -> Tensor:
    """x -> A (x + u(x)) - x on the fixed grid, in voxels of the moving one: warp(moving, .) is the registered image.

    u (1, D, X, Y[, Z]) in voxels of the fixed grid; `affine` (D + 1, D + 1) maps fixed to moving points in mm.
    """
    matrix = voxel_map(fixed, moving, affine)
    # affine beyond the grid, too, where interpolating an affine field would stop at the border
    linear = matrix[:-1, :-1].to(displacement.device)
    return affine_displacement(matrix, fixed.shape).to(displacement.device) + torch.einsum(
        "ij,bj...->bi...", linear, displacement.double()
    )


def total_inverse(inverse: Tensor, fixed: Geometry, moving: Geometry, affine: Tensor | None = None) -> Tensor:
    """y -> A^-1 y + w(A^-1 y) - y on the moving grid, in voxels of the fixed one: warp(fixed, .) is the fixed image
    seen from the moving one. w is the inverse of u on the fixed grid, in its voxels."""
    backwards = torch.linalg.inv(voxel_map(fixed, moving, affine))
    return compose(inverse.double(), affine_displacement(backwards, moving.shape).to(inverse.device))


def displacement_image(total: Tensor, fixed: Geometry, moving: Geometry) -> Any:
    """The SimpleITK vector image (mm, LPS) on the grid of `fixed` for a displacement (1, D, ...) in voxels of `moving`.

    Float32 is a micrometre at most off in a head, at half the size.
    """
    field = to_physical(total, fixed, moving)[0].cpu().numpy()
    image = sitk.GetImageFromArray(field, isVector=True)
    image.SetOrigin(fixed.origin)
    image.SetSpacing(fixed.spacing)
    image.SetDirection(fixed.direction)
    return sitk.Cast(image, sitk.sitkVectorFloat32)


def load_field(path: Path) -> Any:
    """A displacement field file as a SimpleITK transform, to be given to `SimpleITK.Resample`."""
    # the transform takes the image over, in double precision only
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))


def labels_on(grid: Any, labels: Any, transform: Any) -> Any:
    """The label map through the transform on an image's grid: the nearest neighbour, zero outside."""
    return sitk.Resample(labels, grid, transform, sitk.sitkNearestNeighbor, 0, labels.GetPixelID())


def affine_matrix(transform: Any) -> Tensor:
    """(D + 1, D + 1), float64: the homogeneous matrix of a SimpleITK transform that is affine, T(p) = M p."""
    dims = transform.GetDimension()
    origin = torch.tensor(transform.TransformPoint([0.0] * dims), dtype=torch.float64)
    matrix = torch.eye(dims + 1, dtype=torch.float64)
    for axis in range(dims):
        unit = [1.0 if i == axis else 0.0 for i in range(dims)]
        matrix[:dims, axis] = torch.tensor(transform.TransformPoint(unit), dtype=torch.float64) - origin
    matrix[:dims, dims] = origin
    return matrix


def affine_transform_of(matrix: Tensor) -> Any:
    """The SimpleITK transform p -> M p of a homogeneous matrix (D + 1, D + 1): the inverse of `affine_matrix`."""
    dims = len(matrix) - 1
    return sitk.AffineTransform(matrix[:dims, :dims].flatten().tolist(), matrix[:dims, dims].tolist())
