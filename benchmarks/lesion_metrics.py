"""Overlap, distance and lesion-wise agreement of two binary masks, as the benchmarks report them."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """2 |P n R| / (|P| + |R|); two empty masks agree (1)."""
    total = int(prediction.sum() + reference.sum())
    return 1.0 if total == 0 else 2.0 * int((prediction & reference).sum()) / total


def hd95(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> float:
    """95th percentile of the distances (mm) between the surfaces, both ways; NaN where one mask is empty."""
    if not prediction.any() or not reference.any():
        return float("nan")
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction, reference)]
    distances = [
        ndimage.distance_transform_edt(~there, sampling=spacing)[here]
        for here, there in (surfaces, surfaces[::-1])
    ]  # fmt: skip
    return float(np.percentile(np.concatenate(distances), 95))


def lesion_f1(prediction: np.ndarray, reference: np.ndarray, least_iou: float = 0.1) -> float:
    """F1 over connected components; a pair matches from an intersection over union of `least_iou`, one to one."""
    everywhere = np.ones((3,) * prediction.ndim)
    found, n_found = ndimage.label(prediction, everywhere)
    real, n_real = ndimage.label(reference, everywhere)
    if n_found == 0 and n_real == 0:
        return 1.0
    overlap = np.zeros((n_found + 1, n_real + 1), dtype=np.int64)
    np.add.at(overlap, (found.ravel(), real.ravel()), 1)
    sizes_found, sizes_real = overlap.sum(1)[1:], overlap.sum(0)[1:]
    shared = overlap[1:, 1:]
    iou = shared / np.maximum(1, sizes_found[:, None] + sizes_real[None] - shared)
    matched = 0
    while iou.size and iou.max() >= least_iou:
        row, column = np.unravel_index(iou.argmax(), iou.shape)
        iou[row], iou[:, column] = 0, 0
        matched += 1
    return 2 * matched / (n_found + n_real)
