"""One brain, as tissue maps on a fine grid: hemispheres with a fissure and sulci, ventricles, deep grey, cerebellum, stem.

Every phantom subject is this brain seen through a smooth invertible deformation, so registration has a true answer.
Coordinates in mm from the middle: x to the left, y to the front, z up. Arrays are (X, Y, Z).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import ndimage

STRUCTURES = {"csf": 1, "cortex": 2, "white_matter": 3, "deep_grey": 4, "cerebellum": 5, "brain_stem": 6}
EXTENT_MM = (150.0, 180.0, 150.0)
FINE_MM = 1.5

CORTEX_MM = 3.4
SULCUS_DEPTH_MM = 17.0


@lru_cache(maxsize=1)
def template() -> np.ndarray:
    """Tissue maps (6, X, Y, Z) float32 in [0, 1] at `FINE_MM`, in the order of `STRUCTURES`; their sum is the brain."""
    x, y, z = np.meshgrid(*[_axis(mm) for mm in EXTENT_MM], indexing="ij")
    hull = _ellipsoid(x, y - 2, z - 4, (63, 79, 55))
    hull = np.minimum(hull, 46 + z + 0.12 * np.abs(y))  # a flat base
    cerebellum = np.maximum(*(_ellipsoid(x - side * 21, y + 52, z + 42, (27, 25, 19)) for side in (1, -1)))
    stem = _tube(x, y, z, [(0, -14, -18), (0, -26, -44), (0, -32, -70)], (11, 10, 8))
    tissue = np.minimum(hull, _not_fissure(x, y, z))
    tissue = np.minimum(tissue, _not_sulci(x, y, z, hull))
    ventricles = _ventricles(x, y, z)
    nuclei = np.maximum.reduce([_nuclei(x * side, y, z) for side in (1, -1)])

    in_tissue = tissue > 0
    depth = ndimage.distance_transform_edt(in_tissue) * FINE_MM
    brain_hull = hull > 0
    labels = np.zeros(x.shape, dtype=np.uint8)
    labels[brain_hull] = STRUCTURES["csf"]
    labels[in_tissue] = STRUCTURES["white_matter"]
    labels[in_tissue & (depth <= CORTEX_MM) & (np.abs(x) + 100 * (z > 2) > 9)] = STRUCTURES["cortex"]
    labels[(cerebellum > 0) & ~((hull > 4) & (z > -30))] = STRUCTURES["cerebellum"]
    folia = (cerebellum > 0) & (cerebellum < 12) & (np.sin(1.15 * np.hypot(y + 20, z + 60)) > 0.93)
    labels[folia & (labels == STRUCTURES["cerebellum"])] = STRUCTURES["csf"]
    labels[stem > 0] = STRUCTURES["brain_stem"]
    labels[(nuclei > 0) & (labels > 0)] = STRUCTURES["deep_grey"]
    labels[(ventricles > 0) & (labels > 0)] = STRUCTURES["csf"]
    maps = np.stack([labels == value for value in STRUCTURES.values()]).astype(np.float32)
    return np.stack([ndimage.gaussian_filter(m, 0.5) for m in maps])


def _axis(extent_mm: float) -> np.ndarray:
    n = round(extent_mm / FINE_MM)
    return (np.arange(n) - (n - 1) / 2) * FINE_MM


def _ellipsoid(x: np.ndarray, y: np.ndarray, z: np.ndarray, radii: tuple[float, ...]) -> np.ndarray:
    """Roughly the distance (mm) to the surface, positive inside."""
    rho = np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2)
    return (1 - rho) * min(radii)


def _tube(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, path: Sequence[tuple[float, ...]], radii: tuple[float, ...]
) -> np.ndarray:
    """Distance (mm), positive inside, to a chain of segments whose radius runs through `radii`."""
    best = np.full(x.shape, -1e3)
    for i in range(len(path) - 1):
        a, b = np.array(path[i], float), np.array(path[i + 1], float)
        step = b - a
        t = ((x - a[0]) * step[0] + (y - a[1]) * step[1] + (z - a[2]) * step[2]) / float(step @ step)
        t = np.clip(t, 0, 1)
        away = np.sqrt((x - a[0] - t * step[0]) ** 2 + (y - a[1] - t * step[1]) ** 2 + (z - a[2] - t * step[2]) ** 2)
        best = np.maximum(best, radii[i] + t * (radii[i + 1] - radii[i]) - away)
    return best


def _not_fissure(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Negative in the gap between the hemispheres, which the corpus callosum bridges."""
    floor = np.where(np.abs(y) < 38, 20 - 0.004 * y**2, -22)
    return np.where(z > floor, np.abs(x) - 1.6, 20.0)


def _not_sulci(x: np.ndarray, y: np.ndarray, z: np.ndarray, hull: np.ndarray) -> np.ndarray:
    """Negative in the sulci: thin sheets along the zeros of a smooth field, from the surface inward."""
    generator = np.random.default_rng(20240)
    field = np.zeros(x.shape)
    for wavelength, weight in ((17.0, 1.0), (9.0, 0.35)):
        noise = ndimage.gaussian_filter(generator.normal(size=x.shape), wavelength / 4.2 / FINE_MM)
        field += weight * noise / noise.std()
    slope = np.sqrt(sum(g**2 for g in np.gradient(field, FINE_MM))) + 0.02
    width = 1.1 + 1.1 * np.clip(1 - hull / 8, 0, 1)
    sheet = np.abs(field) / slope - width
    return np.where(hull < SULCUS_DEPTH_MM, sheet, 20.0)


def _ventricles(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The butterfly: frontal horns, bodies, atria with occipital and temporal horns, and the third ventricle."""
    lateral = []
    for side in (1, -1):
        body = [(side * 12, 34, 2), (side * 8, 22, 9), (side * 9, 0, 16), (side * 15, -22, 13), (side * 24, -34, 4)]
        lateral.append(_tube(x, y, z, body, (4.0, 5.5, 4.5, 5.5, 6.0)))
        lateral.append(_tube(x, y, z, [(side * 24, -34, 4), (side * 22, -56, 4)], (5.0, 2.5)))
        lateral.append(
            _tube(x, y, z, [(side * 24, -34, 4), (side * 33, -18, -12), (side * 32, 0, -18)], (4.5, 3.0, 2.0))
        )
    lateral.append(_tube(x, y, z, [(0, 4, 2), (0, -16, 0)], (2.6, 2.6)))
    return np.maximum.reduce(lateral)


def _nuclei(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Caudate, lentiform nucleus and thalamus of one side."""
    return np.maximum.reduce([
        _ellipsoid(x - 14.5, y - 21, z - 6, (4.5, 9.0, 8.0)),
        _ellipsoid(x - 25, y - 7, z + 1, (6.5, 15.0, 9.0)),
        _ellipsoid(x - 12, y + 10, z - 2, (8.5, 13.0, 8.5)),
    ])  # fmt: skip
