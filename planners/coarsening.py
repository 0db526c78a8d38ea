"""Spacings made coarser until something fits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nnunet_synthtumour.errors import Refusal

STEP = 1.02


def coarsened(
    spacing: np.ndarray, shape_at: Callable[[np.ndarray], np.ndarray], fits: Callable[[np.ndarray], bool]
) -> np.ndarray:
    """`spacing` in mm, coarser in steps of 2 % until it `fits`: the finest axes first, so that it becomes isotropic before
    all axes lose. An axis of which `shape_at` leaves one voxel is left alone."""
    spacing = np.array(spacing, dtype=float)
    while not fits(spacing):
        can_shrink = shape_at(spacing) > 1
        if not can_shrink.any():
            raise Refusal("Not even one voxel fits into the memory target; raise -gpu_memory_target.")
        spacing[can_shrink & (spacing <= spacing[can_shrink].min() * STEP)] *= STEP
    return spacing
