"""Labels that registration carried to an image, corrected by what the structures look like in that image.

A field that is off by a voxel leaves a border where the image shows none. Each structure's intensities are learnt as a
histogram from the carried labels themselves; near borders, every voxel is then judged by both, its distance to the
structures and its intensity, a few times over. A structure that the image does not set apart keeps its carried border.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

UNSURE_MM = 1.5  # how far a carried border may be off, at least a voxel
REACH = 5.0  # times that, voxels are judged anew
SMOOTHING = 0.4  # voxels
ROUNDS = 3
BINS, BIN_SMOOTHING = 32, 1.5
LEAST_SHARE = 1e-3  # of a bin: no intensity is impossible
FEWEST_VOXELS = 100  # near borders: fewer say nothing about intensities


class Corrected(NamedTuple):
    """Labels (X, Y, Z) and their probability in 0 ... 1, which is one away from borders."""

    labels: np.ndarray
    probability: np.ndarray


def corrected(
    labels: np.ndarray, image: np.ndarray, inside: np.ndarray, spacing: Sequence[float], weight: float
) -> Corrected:
    """`labels` (X, Y, Z) judged anew near borders between them, where `inside` the image (C, X, Y, Z).

    log p(c) = -distance to c / uncertainty + weight * mean over channels of log h_c, h_c being the histogram of `image`
    weighted by p(c).
    """
    nothing = Corrected(labels, np.ones(labels.shape, np.float32))
    unsure = max(UNSURE_MM, float(np.prod(spacing)) ** (1 / len(spacing)))
    values = np.unique(labels[inside])
    near = inside & (_distance(_borders(labels, inside), spacing) <= REACH * unsure)
    if weight <= 0 or len(values) < 2 or int(near.sum()) < FEWEST_VOXELS:
        return nothing
    place = np.stack([-_distance((labels == value) & inside, spacing)[near] / unsure for value in values])
    bins = [_bins(ndimage.gaussian_filter(channel.astype(np.float32), SMOOTHING)[near]) for channel in image]
    p = _softmax(place)
    for _ in range(ROUNDS):
        p = _softmax(place + weight * np.mean([_log_shares(b, p)[:, b] for b in bins], axis=0))
    found, probability = labels.copy(), nothing.probability
    found[near], probability[near] = values[p.argmax(0)], p.max(0)
    return Corrected(found, probability)


def _borders(labels: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Voxels with a neighbour of another label."""
    differs = np.zeros(labels.shape, bool)
    for axis in range(labels.ndim):
        one = tuple(slice(None, -1) if a == axis else slice(None) for a in range(labels.ndim))
        other = tuple(slice(1, None) if a == axis else slice(None) for a in range(labels.ndim))
        different = (labels[one] != labels[other]) & inside[one] & inside[other]
        differs[one] |= different
        differs[other] |= different
    return differs


def _distance(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """To the nearest voxel of `mask`, in mm; infinite where it has none."""
    if not mask.any():
        return np.full(mask.shape, np.inf, np.float32)
    return ndimage.distance_transform_edt(~mask, sampling=list(spacing)).astype(np.float32)


def _bins(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, [0.5, 99.5])
    return np.clip((values - low) / max(float(high - low), 1e-6) * BINS, 0, BINS - 1).astype(np.intp)


def _log_shares(bins: np.ndarray, p: np.ndarray) -> np.ndarray:
    """log h of every label and bin."""
    counts = np.stack([np.bincount(bins, weights=weights, minlength=BINS) for weights in p])
    smooth = ndimage.gaussian_filter1d(counts, BIN_SMOOTHING, axis=1)
    return np.log(smooth / np.maximum(smooth.sum(1, keepdims=True), 1e-6) + LEAST_SHARE)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(0))
    return exponents / exponents.sum(0)
