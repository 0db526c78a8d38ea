"""How good a registration is: overlap, surface and landmark distances, and how regular the field is.

Empty masks. A structure that is missing from *both* segmentations says nothing about a registration: its Dice and HD95
are NaN, and means are to be taken with `nanmean`. One that is missing from one of them was lost: Dice 0, HD95 infinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor

from nnunet_synthtumour.registration.fields import jacobian_determinant, transform_points

SMALLEST_DETERMINANT = 1e-9


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """2 |A n B| / (|A| + |B|) of two masks on one grid; for empty masks see the module."""
    first, second = first.astype(bool), second.astype(bool)
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else math.nan


def hd95(first: np.ndarray, second: np.ndarray, spacing: Sequence[float]) -> float:
    """The 95th percentile of the distances between two surfaces, in the unit of `spacing` (along the array's axes).

    Distances run from every surface voxel of A to the nearest of B and from B to A, and are pooled before the
    percentile is taken. The surface of a mask are its voxels with a face neighbour outside it; beyond the border of the
    image is outside. For empty masks see the module.
    """
    first, second = first.astype(bool), second.astype(bool)
    if not first.any() or not second.any():
        return math.nan if first.any() == second.any() else math.inf
    box = _common_box(first | second)
    edges = [mask[box] & ~binary_erosion(mask[box]) for mask in (first, second)]
    to_second = distance_transform_edt(~edges[1], sampling=spacing)[edges[0]]
    to_first = distance_transform_edt(~edges[0], sampling=spacing)[edges[1]]
    return float(np.percentile(np.concatenate((to_second, to_first)), 95))


def overlap(
    first: np.ndarray, second: np.ndarray, spacing: Sequence[float], labels: Sequence[int] | None = None
) -> dict[int, dict[str, float]]:
    """{label: {"dice": ..., "hd95": ...}} of two label maps; by default every label but 0 that occurs in either."""
    if labels is None:
        labels = sorted({int(value) for value in np.union1d(np.unique(first), np.unique(second))} - {0})
    return {
        label: {
            "dice": dice(first == label, second == label),
            "hd95": hd95(first == label, second == label, spacing),
        }
        for label in labels
    }


def target_registration_error(
    fixed_points: Tensor, moving_points: Tensor, displacement: Tensor, spacing: Sequence[float]
) -> Tensor:
    """|p + u(p) - q| for landmarks p of the fixed and q of the moving image: (B, N), in the unit of `spacing`.

    Points (B, N, D) in voxels, u (B, D, X, Y[, Z]) in voxels of the moving image, whose spacing (along the tensor's
    axes) is `spacing`.
    """
    difference = transform_points(fixed_points, displacement) - moving_points
    return (difference * difference.new_tensor(list(spacing))).norm(dim=-1)


def folds_percent(displacement: Tensor, mask: Tensor | None = None) -> float:
    """100 * share of voxels with det(I + Du) <= 0, central differences; `mask` is (B, X, Y[, Z])."""
    folded = jacobian_determinant(displacement) <= 0
    return 100 * float((folded if mask is None else folded[mask.bool()]).double().mean())


def sd_log_jacobian(displacement: Tensor, mask: Tensor | None = None) -> float:
    """The standard deviation of log det(I + Du); determinants below 1e-9, where the logarithm ends, count as 1e-9."""
    logarithm = jacobian_determinant(displacement).double().clamp(min=SMALLEST_DETERMINANT).log()
    return float((logarithm if mask is None else logarithm[mask.bool()]).std(correction=0))


def _common_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The voxels around a mask, one more on each side so that the crop makes no surface of its own."""
    box = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
        box.append(slice(max(int(inside[0]) - 1, 0), int(inside[-1]) + 2))
    return tuple(box)
