"""One brain, as tissue maps on a fine grid: lobes with a fissure and sulci, ventricles, deep grey, cerebellum, stem.

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

CORTEX_MM = 3.1
CEREBRUM_MM = (64.0, 79.0, 59.0)
CEREBRUM_MIDDLE_Z = 4.0
CALLOSUM_TOP_MM = 20.0


@lru_cache(maxsize=1)
def template() -> np.ndarray:
    """Tissue maps (6, X, Y, Z) float32 in [0, 1] at `FINE_MM`, in the order of `STRUCTURES`; their sum is the brain."""
    x, y, z = np.meshgrid(*[_axis(mm) for mm in EXTENT_MM], indexing="ij")
    hull, surface = _hull(x, y, z), _surface_depth(x, y, z)
    tissue = np.minimum.reduce([hull, _not_fissure(x, y, z), _not_sylvian(x, y, z), _not_sulci(x, y, z, surface)])
    in_tissue = tissue > 0
    depth = ndimage.distance_transform_edt(in_tissue) * FINE_MM
    midbrain = (np.abs(x) < 12) & (np.abs(y + 8) < 18) & (z < 2)
    callosum = (np.abs(x) < 11) & (np.abs(y) < 40) & (z < CALLOSUM_TOP_MM + 1) & (z > -2)

    labels = np.zeros(x.shape, dtype=np.uint8)
    labels[hull > 0] = STRUCTURES["csf"]
    labels[in_tissue] = STRUCTURES["white_matter"]
    labels[in_tissue & (depth <= CORTEX_MM) & ~midbrain & ~callosum] = STRUCTURES["cortex"]
    _add_cerebellum(labels, x, y, z)
    stem = _tube(x, y, z, [(0, -10, -6), (0, -17, -26), (0, -20, -38), (0, -27, -70)], (12, 12, 13, 7))
    labels[stem > 0] = STRUCTURES["brain_stem"]
    nuclei = np.maximum.reduce([_nuclei(x * side, y, z) for side in (1, -1)])
    labels[(nuclei > 0) & (labels > 0)] = STRUCTURES["deep_grey"]
    labels[(_ventricles(x, y, z) > 0) & (labels > 0)] = STRUCTURES["csf"]
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


def _hull(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The cerebrum without its folds: a vault on a base that rises to front and back, and two temporal lobes."""
    vault = _ellipsoid(x, y, z - CEREBRUM_MIDDLE_Z, CEREBRUM_MM)
    base = z + 26 - 0.10 * np.clip(y - 20, 0, None) - 0.22 * np.clip(-y - 22, 0, None) + 0.004 * x**2
    temporal = [_tube(x, y, z, [(side * 38, 30, -26), (side * 44, 0, -26), (side * 46, -30, -14)], (14, 19, 18))
                for side in (1, -1)]  # fmt: skip
    overlap = np.maximum(24 - np.abs(vault - base), 0) ** 2 / 96  # rounds the edge between vault and base
    return np.maximum.reduce([np.minimum(vault, base) - overlap, *temporal])


def _surface_depth(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Distance (mm) from the outer or the medial surface of a hemisphere, positive inside."""
    return np.minimum(_hull(x, y, z), _not_fissure(x, y, z) + 4)


def _not_fissure(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Negative in the gap between the hemispheres, which the corpus callosum bridges."""
    floor = np.where(np.abs(y) < 40, CALLOSUM_TOP_MM - 0.005 * y**2, -30)
    return np.where(z > floor, np.abs(x) - 1.5, 20.0)


def _not_sylvian(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Negative in the lateral fissure, which parts the temporal lobe from the frontal and the parietal lobe."""
    plane = -9 - 0.5 * y + 0.35 * (np.abs(x) - 45) + 2.5 * np.sin(y / 7)
    inner = 35 + 0.10 * np.abs(y) + 3 * np.sin(y / 5)
    return np.where((np.abs(x) > inner) & (y > -36) & (y < 34), np.abs(z - plane) / 1.2 - 1.1, 20.0)


def _not_sulci(x: np.ndarray, y: np.ndarray, z: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """Negative in the sulci: thin sheets that descend from the surface, some deep and some shallow.

    They are the zeros of a noise that is read on the surface straight above each voxel, so that every sheet stands
    upright; white matter reaches into the gyri between them.
    """
    generator = np.random.default_rng(20240)
    shape = x.shape
    folds = _noise(shape, 4.6, generator) + 0.25 * _noise(shape, 2.4, generator)
    bend = [2.4 * _noise(shape, 7.0, generator) for _ in range(3)]
    reach = np.clip(16 + 5 * _noise(shape, 9.0, generator), 7, 26)
    up = z - CEREBRUM_MIDDLE_Z
    rho = np.sqrt((x / CEREBRUM_MM[0]) ** 2 + (y / CEREBRUM_MM[1]) ** 2 + (up / CEREBRUM_MM[2]) ** 2)
    stretch = 0.92 / np.maximum(rho, 0.35)
    # Towards the middle the rays crowd; half of the way back to the voxel itself keeps the gyri about equally wide.
    where = [v * (0.35 + 0.65 * stretch) + b for v, b in zip((x, y, up), bend, strict=True)]
    index = [v / FINE_MM + (n - 1) / 2 for v, n in zip(where, shape, strict=True)]
    field = ndimage.map_coordinates(folds, index, order=1, mode="reflect")
    slope = np.sqrt(sum(g**2 for g in np.gradient(field, FINE_MM))) + 0.03
    width = 0.7 + 0.7 * np.clip(1 - surface / 7, 0, 1)
    return np.where(surface < reach, np.abs(field) / slope - width, 20.0)


def _noise(shape: tuple[int, ...], sigma_mm: float, generator: np.random.Generator) -> np.ndarray:
    noise = ndimage.gaussian_filter(generator.normal(size=shape), sigma_mm / FINE_MM)
    return noise / noise.std()


def _add_cerebellum(labels: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
    """Two hemispheres and the vermis under the occipital lobes, with folia and a core of white matter."""
    halves = [_ellipsoid(x - side * 21, y + 50, z + 37, (29, 26, 22)) for side in (1, -1)]
    bulk = np.maximum(np.maximum(*halves), _ellipsoid(x, y + 48, z + 36, (14, 21, 20)))
    here = (bulk > 0) & ((labels == 0) | (z < -29))
    labels[here] = STRUCTURES["cerebellum"]
    folia = np.cos(1.0 * np.hypot(y + 24, z + 40) + 0.06 * np.abs(x)) > 0.86
    labels[here & (bulk < 6) & folia] = STRUCTURES["csf"]
    labels[here & (bulk > 8.5) & (np.abs(x) > 6)] = STRUCTURES["white_matter"]


def _ventricles(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The butterfly: frontal horns, bodies, atria with occipital and temporal horns, the third and the fourth ventricle."""
    parts = []
    for side in (1, -1):
        body = [(side * 13, 34, 2), (side * 8, 22, 9), (side * 8, 0, 15), (side * 15, -22, 13), (side * 24, -34, 4)]
        parts.append(_tube(x, y, z, body, (3.0, 5.0, 4.2, 5.0, 6.0)))
        parts.append(_tube(x, y, z, [(side * 24, -34, 4), (side * 22, -54, 4)], (5.0, 2.0)))
        parts.append(_tube(x, y, z, [(side * 24, -34, 4), (side * 33, -18, -14), (side * 32, 2, -24)], (4.5, 3.0, 2.0)))
    parts.append(_tube(x / 0.5, y, z, [(0, 6, -2), (0, -12, 2)], (5.0, 4.5)))
    parts.append(_tube(x / 1.6, y, z, [(0, -32, -32), (0, -36, -44)], (3.4, 2.4)))
    return np.maximum.reduce(parts)


def _nuclei(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Caudate, lentiform nucleus and thalamus of one side."""
    return np.maximum.reduce([
        _ellipsoid(x - 15, y - 21, z - 6, (5.0, 10.0, 9.0)),
        _ellipsoid(x - 26, y - 6, z + 1, (7.5, 17.0, 11.0)),
        _ellipsoid(x - 12.5, y + 11, z - 3, (9.0, 15.0, 9.5)),
    ])  # fmt: skip
