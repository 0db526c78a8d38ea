"""How much of a host lesions may take: a network that only ever sees full hosts learns that the organ is the tumour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from nnunet_synthtumour.drawing import Lesion
from nnunet_synthtumour.shapes import Body

MOST_OF_HOST = 0.5
"""The share of the host that all lesions together take at most. Half of it is more than most patients have
(`pseudolabels.max_host_share` drops more than that by default), and leaves tissue to tell the lesion from."""

STRIDE = 4  # a look at every fourth voxel along each axis says whether counting all of them is needed


def fitted(
    lesions: Sequence[Lesion],
    seg: torch.Tensor,
    ignore_label: int,
    spacing: Sequence[float],
    host_voxels: float | None = None,
) -> list[Lesion]:
    """`lesions`, all smaller by the same factor where they would take more than `MOST_OF_HOST` of the host.

    `host_voxels` is the size of the host; None: what `seg` (X, Y[, Z]) shows of it.
    """
    wanted = sum(lesion.body.size for lesion in lesions) / float(np.prod(spacing))
    needed = wanted / MOST_OF_HOST
    if host_voxels is None:
        host_voxels = _host_voxels(seg.numpy(), ignore_label, needed)
    if needed <= max(1.0, host_voxels):
        return list(lesions)
    factor = max(1.0, host_voxels) / needed
    return [replace(lesion, body=smaller(lesion.body, factor)) for lesion in lesions]


def smaller(body: Body, factor: float) -> Body:
    """The same body with `factor` of its volume (area)."""
    axes = tuple(axis * factor ** (1 / len(body.half_axes_mm)) for axis in body.half_axes_mm)
    return replace(body, size=body.size * factor, half_axes_mm=axes)


def _host_voxels(seg: np.ndarray, ignore_label: int, needed: float) -> float:
    """How many voxels the host has; only roughly where it has far more than `needed`."""
    few = seg[(slice(None, None, STRIDE),) * seg.ndim]
    roughly = float(np.count_nonzero(few == ignore_label)) * STRIDE**seg.ndim
    return roughly if roughly > 2 * needed else float(np.count_nonzero(seg == ignore_label))
