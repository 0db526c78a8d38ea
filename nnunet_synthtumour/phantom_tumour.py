"""Phantom tumours, grown by a model that has nothing in common with the synthesis engine's: reaction and diffusion.

du/dt = div(D grad u) + r u (1 - u): tumour cells multiply and creep, faster along white matter, not at all in fluid.
Oedema is a second front that leaves the tumour through white matter. Cells die where they were first: necrosis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_synthtumour.phantom_anatomy import STRUCTURES

OEDEMA, CORE, NECROSIS = 1, 2, 3
MOBILITY = {"csf": 0.0, "cortex": 0.05, "white_matter": 0.16, "deep_grey": 0.08, "cerebellum": 0.08, "brain_stem": 0.1}
OEDEMA_MOBILITY = {
    "csf": 0.0,
    "cortex": 0.012,
    "white_matter": 0.16,
    "deep_grey": 0.03,
    "cerebellum": 0.08,
    "brain_stem": 0.08,
}
RATE = 0.1


@dataclass(frozen=True)
class Tumour:
    """Density of cells and of oedema (X, Y, Z) in [0, 1], sub-regions (0 none, 1 oedema, 2 core, 3 necrosis), the seed."""

    cells: np.ndarray
    oedema: np.ndarray
    regions: np.ndarray
    seed: tuple[int, ...]


def grow_tumour(anatomy: np.ndarray, spacing: float, volume_ml: float, generator: np.random.Generator) -> Tumour:
    """Grow from a voxel of deep white matter until the whole tumour has `volume_ml` (or the brain is full)."""
    white = anatomy == STRUCTURES["white_matter"]
    deep = ndimage.distance_transform_edt(anatomy > 0) * spacing > 9
    places = np.argwhere(white & deep)
    seed = tuple(int(v) for v in places[generator.integers(len(places))])
    oedema_share = generator.uniform(0.35, 0.75)
    obstacle = np.exp(0.9 * _smooth_noise(anatomy.shape, 7.0 / spacing, generator)).clip(0.4, 3)
    target = volume_ml * 1000 / spacing**3

    cells = np.zeros(anatomy.shape)
    cells[seed] = 1
    cells = ndimage.gaussian_filter(cells, 1.0)
    cells /= cells.max()
    cells = _spread(cells, _mobility(anatomy, MOBILITY) * obstacle, RATE * obstacle, 0.35, target * (1 - oedema_share))
    oedema = _spread(cells.copy(), _mobility(anatomy, OEDEMA_MOBILITY) * obstacle, RATE, 0.3, target)
    oedema[anatomy == 0] = 0

    whole = (oedema > 0.3) & (anatomy > 0)
    pieces, _ = ndimage.label(whole)
    whole = pieces == pieces[seed] if pieces[seed] else whole
    whole = ndimage.binary_fill_holes(whole)
    core = whole & (cells > 0.35)
    necrosis = _necrosis(core, spacing, generator)
    regions = np.where(whole, OEDEMA, 0).astype(np.uint8)
    regions[core] = CORE
    regions[necrosis] = NECROSIS
    return Tumour(cells, oedema * whole, regions, seed)


def _necrosis(core: np.ndarray, spacing: float, generator: np.random.Generator) -> np.ndarray:
    """What lies deeper in the core than a rim of varying thickness; small cores have none."""
    depth = ndimage.distance_transform_edt(core) * spacing
    if depth.max() < 6:
        return np.zeros_like(core)
    rim = generator.uniform(3.5, 8.0) * np.exp(0.35 * _smooth_noise(core.shape, 5.0 / spacing, generator))
    return core & (depth > rim)


def _mobility(anatomy: np.ndarray, table: dict[str, float]) -> np.ndarray:
    lookup = np.zeros(max(STRUCTURES.values()) + 1)
    for name, value in STRUCTURES.items():
        lookup[value] = table[name]
    return lookup[anatomy]


def _spread(u: np.ndarray, mobility: np.ndarray, rate: np.ndarray | float, level: float, target: float) -> np.ndarray:
    """Explicit steps until `target` voxels exceed `level`; the flux between two voxels takes the smaller mobility."""
    mobility = np.minimum(mobility, 0.16)  # stable: six neighbours times 0.16 is below one
    between = [np.minimum(np.take(mobility, range(n - 1), axis), np.take(mobility, range(1, n), axis))
               for axis, n in enumerate(u.shape)]  # fmt: skip
    alive = mobility > 0
    for step in range(600):
        change = rate * u * (1 - u) * alive
        for axis in range(3):
            flux = between[axis] * np.diff(u, axis=axis)
            lower = [slice(None)] * 3
            upper = [slice(None)] * 3
            lower[axis], upper[axis] = slice(None, -1), slice(1, None)
            change[tuple(lower)] += flux
            change[tuple(upper)] -= flux
        u = np.clip(u + change, 0, 1)
        if step % 2 and (u > level).sum() >= target:
            break
    return u


def _smooth_noise(shape: tuple[int, ...], sigma: float, generator: np.random.Generator) -> np.ndarray:
    noise = ndimage.gaussian_filter(generator.normal(size=shape), max(sigma, 0.5))
    return noise / noise.std()


def mass_effect(tumour: Tumour, spacing: float, push_mm: float) -> np.ndarray:
    """Displacement (3, X, Y, Z) in voxels: where the tissue that is now at x was before the tumour pushed it.

    Radial from the seed, `push_mm` at the surface of the core, falling off over about its radius.
    """
    core = tumour.regions >= CORE
    radius = max(4.0, (3 * core.sum() * spacing**3 / (4 * np.pi)) ** (1 / 3))
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in core.shape], indexing="ij")).astype(float)
    away = (grid - np.array(tumour.seed).reshape(3, 1, 1, 1)) * spacing
    distance = np.sqrt((away**2).sum(0)) + 1e-6
    amount = push_mm * np.minimum(distance / radius, 1) * np.exp(-np.maximum(distance - radius, 0) / (0.9 * radius))
    return -away / distance * ndimage.gaussian_filter(amount, 1.0) / spacing
