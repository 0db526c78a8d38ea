"""How well a structure stands out from its surroundings: contrast, edges, and features that a classifier can judge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

RING_MM, RING_VOXELS = 8.0, 2.0  # thickness of the ring: this many mm, and at least this many voxels
EDGE_NOISE = 2.5  # a boundary face is an edge from this many deviations of ordinary faces on
TEXTURES = ("intensity", "smoothed", "smoother", "over surroundings", "gradient", "local deviation")


def ring_around(mask: np.ndarray, body: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Voxels of the body that are not of the structure, within `RING_MM` of it."""
    if not mask.any():
        return np.zeros_like(mask)
    width = max(RING_MM, RING_VOXELS * max(spacing))
    box = tuple(
        slice(max(0, int(i.min()) - int(width / s) - 1), int(i.max()) + int(width / s) + 2)
        for i, s in zip(np.nonzero(mask), spacing, strict=True)
    )
    ring = np.zeros_like(mask)
    ring[box] = (ndimage.distance_transform_edt(~mask[box], sampling=spacing) <= width) & ~mask[box] & body[box]
    return ring


def contrast_to_noise(image: np.ndarray, mask: np.ndarray, ring: np.ndarray) -> float:
    """|mean inside - mean of the ring| / sqrt((variance inside + variance of the ring) / 2)."""
    inside, outside = image[mask], image[ring]
    if inside.size < 2 or outside.size < 2:
        return float("nan")
    noise = np.sqrt((inside.var() + outside.var()) / 2)
    return float(abs(inside.mean() - outside.mean()) / max(noise, 1e-9))


def edge_share(image: np.ndarray, mask: np.ndarray, ring: np.ndarray) -> float:
    """The share of the boundary's faces across which the intensity steps, beyond what other faces nearby do by chance.

    The step across a face is the mean of two voxels on one side minus that of two on the other. Faces inside of the
    structure or of the ring give the median size of a step where there is no boundary, and the share of them that would
    pass; a boundary like them has an edge share of zero.
    """
    known, across, elsewhere = mask | ring, [], []
    for axis in range(image.ndim):
        if image.shape[axis] < 4:
            continue
        four = [_along(image, axis, i) for i in range(4)]
        here = [_along(mask, axis, i) for i in range(4)]
        usable = np.logical_and.reduce([_along(known, axis, i) for i in range(4)])
        step = (four[0] + four[1] - four[2] - four[3]) / 2
        boundary = (here[0] == here[1]) & (here[2] == here[3]) & (here[1] != here[2]) & usable
        inner = (here[0] == here[1]) & (here[1] == here[2]) & (here[2] == here[3]) & usable
        across.append(np.where(here[0], step, -step)[boundary])
        elsewhere.append(step[inner])
    steps, others = (np.concatenate(v) if v else np.zeros(0) for v in (across, elsewhere))
    if len(steps) < 8 or len(others) < 8:
        return float("nan")
    threshold = EDGE_NOISE * 1.4826 * float(np.median(np.abs(others)))
    chance = float((np.abs(others) > threshold).mean())
    found = float((np.abs(steps) > threshold).mean())
    return float(np.clip((found - chance) / max(1 - chance, 1e-6), 0, 1))


def local_features(image: np.ndarray, body: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """(X, Y, Z) -> (X, Y, Z, 6), see `TEXTURES`, in units of the body's deviation."""
    inside = image[body] if body.any() else image.ravel()
    low, high = np.percentile(inside, [1, 99])
    kept = inside[(inside >= low) & (inside <= high)]
    scaled = np.clip((image - kept.mean()) / max(float(kept.std()), 1e-9), -6, 6).astype(np.float32)
    weight = body.astype(np.float32)

    def smooth(values: np.ndarray, voxels: float) -> np.ndarray:
        sigma = [voxels * min(spacing) / side for side in spacing]
        over = ndimage.gaussian_filter(weight, sigma)
        return ndimage.gaussian_filter(values * weight, sigma) / np.maximum(over, 1e-3)

    one, two, wide = (smooth(scaled, voxels) for voxels in (1.0, 2.0, 6.0))
    gradient = np.sqrt(sum(g**2 for g in np.gradient(one, *spacing)))
    deviation = np.sqrt(np.maximum(smooth(scaled**2, 1.5) - smooth(scaled, 1.5) ** 2, 0))
    return np.stack([scaled, one, two, one - wide, gradient, deviation], -1).astype(np.float32)


def _along(array: np.ndarray, axis: int, start: int) -> np.ndarray:
    """Voxels start, start + 1, ... along an axis, as many as there are runs of four."""
    at = [slice(None)] * array.ndim
    at[axis] = slice(start, array.shape[axis] - 3 + start)
    return array[tuple(at)]
