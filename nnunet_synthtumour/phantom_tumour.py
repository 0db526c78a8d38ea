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
MOBILITY = {"csf": 0.0, "cortex": 0.02, "white_matter": 0.07, "deep_grey": 0.04, "cerebellum": 0.03, "brain_stem": 0.05}
OEDEMA_MOBILITY = {
    "csf": 0.0,
    "cortex": 0.003,
    "white_matter": 0.09,
    "deep_grey": 0.01,
    "cerebellum": 0.01,
    "brain_stem": 0.03,
}
RATE = 0.08
MAX_MOBILITY = 0.16  # stable: six neighbours times 0.16 is below one
CELL_LEVEL, OEDEMA_LEVEL = 0.35, 0.3  # densities at which core and oedema are seen
REACH_MM = 60.0  # no phantom tumour gets further from its seed; growing in a box saves most of the time


@dataclass(frozen=True)
class Tumour:
    """Density of oedema (X, Y, Z) in [0, 1], sub-regions (0 none, 1 oedema, 2 core, 3 necrosis), the seed voxel."""

    oedema: np.ndarray
    regions: np.ndarray
    seed: tuple[int, ...]


def grow_tumour(anatomy: np.ndarray, spacing: float, volume_ml: float, generator: np.random.Generator) -> Tumour:
    """Grow from a voxel of deep white matter until the whole tumour has `volume_ml` (or can get no further)."""
    seed = _seed(anatomy, spacing, generator)
    oedema_share = generator.uniform(0.3, 0.85)
    obstacle = np.exp(0.8 * _smooth_noise(anatomy.shape, 5.0 / spacing, generator)).clip(0.2, 4)
    tracts = _tract_preference(anatomy.shape, spacing, generator)
    target = volume_ml * 1000 / spacing**3

    reach = round(REACH_MM / spacing)
    box = tuple(slice(max(s - reach, 0), s + reach + 1) for s in seed)
    tracts, obstacle, tissue = tracts[(slice(None), *box)], obstacle[box], anatomy[box]
    start = np.zeros(anatomy.shape)
    start[seed] = 1
    start = ndimage.gaussian_filter(start, 1.0)[box]
    cells = _spread(start / start.max(), _mobility(tissue, MOBILITY) * obstacle * tracts, RATE * obstacle, CELL_LEVEL,
                    target * (1 - oedema_share))  # fmt: skip
    oedema = np.zeros(anatomy.shape)
    oedema[box] = _spread(cells, _mobility(tissue, OEDEMA_MOBILITY) * obstacle * tracts, RATE, OEDEMA_LEVEL, target)
    oedema[anatomy == 0] = 0

    whole = oedema > OEDEMA_LEVEL
    pieces, _ = ndimage.label(whole)
    whole = pieces == pieces[seed] if pieces[seed] else whole
    whole = ndimage.binary_fill_holes(whole)
    core = np.zeros_like(whole)
    core[box] = cells > CELL_LEVEL
    core &= whole
    regions = np.where(whole, OEDEMA, 0).astype(np.uint8)
    regions[core] = CORE
    regions[_necrosis(core, spacing, generator)] = NECROSIS
    return Tumour(oedema * whole, regions, seed)


def _seed(anatomy: np.ndarray, spacing: float, generator: np.random.Generator) -> tuple[int, ...]:
    """A voxel of the cerebrum's white matter, some way from its surface and from the cerebellum."""
    deep = ndimage.distance_transform_edt(anatomy > 0) * spacing > 9
    below = ndimage.distance_transform_edt(anatomy != STRUCTURES["cerebellum"]) * spacing < 12
    places = np.argwhere((anatomy == STRUCTURES["white_matter"]) & deep & ~below)
    return tuple(int(v) for v in places[generator.integers(len(places))])


def _necrosis(core: np.ndarray, spacing: float, generator: np.random.Generator) -> np.ndarray:
    """What lies deeper in the core than a rim of varying thickness; small cores, and many others, have none."""
    depth = ndimage.distance_transform_edt(core) * spacing
    if depth.max() < 6 or generator.uniform() < 0.35:
        return np.zeros_like(core)
    rim = generator.uniform(3.5, 7.5) * np.exp(0.35 * _smooth_noise(core.shape, 5.0 / spacing, generator))
    return core & (depth > rim)


def _mobility(anatomy: np.ndarray, table: dict[str, float]) -> np.ndarray:
    lookup = np.zeros(max(STRUCTURES.values()) + 1)
    for name, value in STRUCTURES.items():
        lookup[value] = table[name]
    return lookup[anatomy]


def _tract_preference(shape: tuple[int, ...], spacing: float, generator: np.random.Generator) -> np.ndarray:
    """(3, X, Y, Z): how much easier spreading is along each axis than on average. Tracts run one way here, another there."""
    lean = np.stack([_smooth_noise(shape, 10.0 / spacing, generator) for _ in range(3)])
    return np.exp(0.9 * (lean - lean.mean(0)))


def _spread(u: np.ndarray, mobility: np.ndarray, rate: np.ndarray | float, level: float, target: float) -> np.ndarray:
    """Explicit steps until `target` voxels exceed `level`. `mobility` (3, X, Y, Z), per axis.

    The flux between two voxels takes the smaller of their mobilities, so that nothing crosses fluid.
    """
    mobility = np.minimum(mobility, MAX_MOBILITY)
    between = [np.minimum(np.take(mobility[axis], range(n - 1), axis), np.take(mobility[axis], range(1, n), axis))
               for axis, n in enumerate(u.shape)]  # fmt: skip
    alive = mobility[0] > 0
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


def mass_effect(tumour: Tumour, brain: np.ndarray, spacing: float, push_mm: float) -> np.ndarray:
    """Displacement (3, X, Y, Z) in voxels: where the tissue that is now at x was before the tumour pushed it.

    Radial from the seed, `push_mm` at the surface of the core, falling off over about its radius, and down to nothing
    at the surface of the brain, where the skull holds against it. It never folds: the push stays a fifth
    of the radius or less.
    """
    core = tumour.regions >= CORE
    radius = max(4.0, (3 * core.sum() * spacing**3 / (4 * np.pi)) ** (1 / 3))
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in core.shape], indexing="ij")).astype(float)
    away = (grid - np.array(tumour.seed).reshape(3, 1, 1, 1)) * spacing
    distance = np.sqrt((away**2).sum(0)) + 1e-6
    amount = np.minimum(distance / radius, 1) * np.exp(-np.maximum(distance - radius, 0) / (0.9 * radius))
    give = np.minimum(ndimage.distance_transform_edt(ndimage.binary_closing(brain, iterations=3)) * spacing / 16, 1)
    amount *= min(push_mm, 0.2 * radius) * ndimage.gaussian_filter(give, 2.0)
    return -away / distance * ndimage.gaussian_filter(amount, 1.0) / spacing


def displaced(tumour: Tumour, displacement: np.ndarray) -> Tumour:
    """The tumour at x + displacement(x) (voxels): what grew along the tissue is pushed with it."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in tumour.regions.shape], indexing="ij")) + displacement
    regions = np.zeros_like(tumour.regions)
    for value in (OEDEMA, CORE, NECROSIS):  # nested, each drawn over the one before
        inside = ndimage.map_coordinates((tumour.regions >= value).astype(np.float32), grid, order=1)
        regions[inside > 0.5] = value
    return Tumour(ndimage.map_coordinates(tumour.oedema, grid, order=1), regions, tumour.seed)
