"""What a junior found, corrected by what the tumour looks like in this patient.

A junior that was trained on grown lesions finds tumours, but their borders, dark cores and dim rims follow its training.
A patient's own intensities, inside of what was found and around it, say more: they are learnt as two histograms, and each
voxel is judged by both, junior and histograms, a few times over.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

REACH_MM = 18.0  # around what was found
SMOOTHING_MM = 2.0
JUNIOR_WEIGHT = 0.3
ROUNDS = 3
BINS, BIN_SMOOTHING = 40, 2.0
LEAST_SHARE = 1e-3  # of a bin: no intensity is impossible
FEWEST_VOXELS = 50  # of a tumour: fewer say nothing about intensities
CERTAIN = 1e-3


def corrected(
    tumour: np.ndarray, images: np.ndarray, host: np.ndarray, spacing: Sequence[float], upper: float, weight: float
) -> np.ndarray:
    """The probability of tumour (Z, Y, X), judged anew around what exceeds `upper`.

    logit p <- 0.3 logit(junior) + weight * mean over channels of log(h_t / h_b), smoothed; h_t and h_b are the histograms
    of `images` (C, Z, Y, X) weighted by p and 1 - p. `host` is the organ (bool), `spacing` in mm.
    """
    found = tumour >= max(upper, CERTAIN)
    if weight <= 0 or int(found.sum()) < FEWEST_VOXELS:
        return tumour
    box = _box_around(found, spacing)
    p, near = tumour[box], found[box]
    near = (ndimage.distance_transform_edt(~near, sampling=list(spacing)) <= REACH_MM) & (host[box] | near)
    sigma = [min(SMOOTHING_MM / mm, n / 4) for mm, n in zip(spacing, near.shape, strict=True)]
    bins = [_bins(ndimage.gaussian_filter(channel[box].astype(np.float32), sigma), near) for channel in images]
    sure = np.clip(p, CERTAIN, 1 - CERTAIN)
    junior = JUNIOR_WEIGHT * np.log(sure / (1 - sure))
    now = p
    for _ in range(ROUNDS):
        looks = np.mean([_log_ratio(b, now[near])[b] for b in bins], axis=0)
        logit = np.full(p.shape, np.log(CERTAIN / (1 - CERTAIN)), dtype=np.float32)
        logit[near] = junior[near] + weight * looks
        now = 1 / (1 + np.exp(-ndimage.gaussian_filter(logit, sigma)))
    result = tumour.copy()
    result[box][near] = now[near]
    return result


def _box_around(found: np.ndarray, spacing: Sequence[float]) -> tuple[slice, ...]:
    box = ndimage.find_objects(found.astype(np.uint8))[0]
    margins = [int(np.ceil((REACH_MM + 3 * SMOOTHING_MM) / mm)) for mm in spacing]
    return tuple(slice(max(0, s.start - m), s.stop + m) for s, m in zip(box, margins, strict=True))


def _bins(channel: np.ndarray, near: np.ndarray) -> np.ndarray:
    """The bin of each voxel of `near`."""
    values = channel[near]
    low, high = np.percentile(values, [0.5, 99.5])
    return np.clip((values - low) / max(float(high - low), 1e-6) * BINS, 0, BINS - 1).astype(np.intp)


def _log_ratio(bins: np.ndarray, p: np.ndarray) -> np.ndarray:
    """log(h_t / h_b) of each bin."""
    shares = []
    for weights in (p, 1 - p):
        counts = ndimage.gaussian_filter1d(np.bincount(bins, weights=weights, minlength=BINS), BIN_SMOOTHING)
        shares.append(counts / max(float(counts.sum()), 1e-6) + LEAST_SHARE)
    return np.log(shares[0] / shares[1])
