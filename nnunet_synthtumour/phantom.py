"""The embedded data set: seeded procedural brains, healthy and with tumours, in two modalities, with the truth.

subject = make_subject(seed=3, spacing=2.4, tumour=True, second="t1", visibility=0.2)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from scipy import ndimage

from nnunet_synthtumour.phantom_anatomy import EXTENT_MM, FINE_MM, STRUCTURES, template
from nnunet_synthtumour.phantom_tumour import CORE, NECROSIS, OEDEMA, Tumour, displaced, grow_tumour, mass_effect

# Mean signal per tissue, in the order of STRUCTURES, of three FLAIR protocols; and of a T1 and a CT (HU).
SCANNERS = {
    "a": ((0.16, 0.78, 0.60, 0.72, 0.70, 0.60), 400.0),
    "b": ((0.25, 0.74, 0.64, 0.70, 0.68, 0.62), 1500.0),
    "c": ((0.10, 0.85, 0.58, 0.76, 0.74, 0.63), 90.0),
}
T1 = (0.22, 0.56, 0.86, 0.66, 0.60, 0.82)
CT_HU = (9.0, 38.0, 30.0, 37.0, 36.0, 31.0)
MODALITIES = ("none", "t1", "ct")


@dataclass(frozen=True)
class Subject:
    """One phantom. Arrays (X, Y, Z); x to the left, y to the front, z up.

    `displacement` (3, X, Y, Z) in voxels of this grid: structure at x of the subject = structure at x + displacement(x) of
    the undeformed brain on the same grid. `regions`: 0 none, 1 oedema, 2 core, 3 necrosis.
    """

    images: dict[str, np.ndarray]
    anatomy: np.ndarray
    regions: np.ndarray
    displacement: np.ndarray
    spacing: float
    scanner: str
    tumour_ml: float
    brain: np.ndarray = field(repr=False)


def grid_shape(spacing: float) -> tuple[int, ...]:
    """The grid (multiples of 4) that holds the head at a spacing in mm: 64 x 76 x 64 at 2.4 mm."""
    return tuple(int(np.ceil(mm / spacing / 4)) * 4 for mm in EXTENT_MM)


def make_subject(
    seed: int,
    spacing: float = 2.4,
    tumour: bool = False,
    second: str = "none",
    visibility: float = 1.0,
    scanner: str | None = None,
    deformation: float = 1.0,
) -> Subject:
    """A subject. The same arguments give the same subject; `deformation` 0 is the undeformed brain.

    `second` adds a "t1" or "ct" image in which the tumour has `visibility` (1 full, 0 none) of its contrast.
    """
    generator = np.random.default_rng([20240, seed])
    shape = grid_shape(spacing)
    scanner = scanner or str(generator.choice(sorted(SCANNERS)))
    displacement = deformation * _smooth_deformation(shape, spacing, generator)
    maps = _tissues(shape, spacing, displacement)
    grown: Tumour | None = None
    if tumour:
        volume = float(np.exp(generator.uniform(np.log(6), np.log(100))))
        grown = grow_tumour(_labels(maps), spacing, volume, generator)
        pushed = mass_effect(grown, maps.sum(0) > 0.5, spacing, generator.uniform(0, 6))
        grown = displaced(grown, pushed)
        displacement = pushed + _sample(displacement, pushed)
        maps = _tissues(shape, spacing, displacement)
    anatomy = _labels(maps)
    brain = maps.sum(0) > 0.5
    images = {"flair": _flair(maps, brain, grown, scanner, spacing, generator)}
    if second != "none":
        images[second] = _second(second, maps, brain, grown, visibility, spacing, np.random.default_rng([777, seed]))
    regions = np.where(brain, grown.regions, 0).astype(np.uint8) if grown else np.zeros(shape, np.uint8)
    volume_ml = float((regions > 0).sum() * spacing**3 / 1000)
    return Subject(images, anatomy, regions, displacement.astype(np.float32), spacing, scanner, volume_ml, brain)


def _smooth_deformation(shape: tuple[int, ...], spacing: float, generator: np.random.Generator) -> np.ndarray:
    """Displacement (3, X, Y, Z) in voxels: a smooth velocity integrated by scaling and squaring, after a change of size."""
    velocity = np.stack([ndimage.gaussian_filter(generator.normal(size=shape), 20.0 / spacing) for _ in range(3)])
    velocity *= generator.uniform(2.5, 4.5) / spacing / velocity.std()
    flow = velocity / 2**6
    for _ in range(6):
        flow = flow + _sample(flow, flow)
    grid = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij"))
    size = generator.uniform(-0.06, 0.06, size=(3, 1, 1, 1))
    return size * grid + flow * (1 + size)


def _sample(field: np.ndarray, displacement: np.ndarray, order: int = 1) -> np.ndarray:
    """`field` (C, X, Y, Z) at x + displacement(x), both on one grid."""
    grid = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float64) for n in displacement.shape[1:]], indexing="ij"))
    return np.stack([ndimage.map_coordinates(f, grid + displacement, order=order, mode="nearest") for f in field])


def _tissues(shape: tuple[int, ...], spacing: float, displacement: np.ndarray) -> np.ndarray:
    """The template's tissue maps (6, X, Y, Z) on the subject's grid, averaged over its voxels (partial volume)."""
    fine = _template_at(spacing)
    grid = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float64) for n in shape], indexing="ij")) + displacement
    middle = np.array([(n - 1) / 2 for n in shape]).reshape(3, 1, 1, 1)
    fine_middle = np.array([(n - 1) / 2 for n in fine.shape[1:]]).reshape(3, 1, 1, 1)
    where = (grid - middle) * spacing / FINE_MM + fine_middle
    return np.stack([
        ndimage.map_coordinates(m, where, order=1, mode="constant") for m in fine
    ]).astype(np.float32)  # fmt: skip


@lru_cache(maxsize=2)
def _template_at(spacing: float) -> np.ndarray:
    """The tissue maps as voxels of `spacing` average them, still on the fine grid."""
    return np.stack([ndimage.gaussian_filter(m, 0.38 * spacing / FINE_MM) for m in template()])


def _labels(maps: np.ndarray) -> np.ndarray:
    return np.where(maps.sum(0) > 0.5, maps.argmax(0) + 1, 0).astype(np.uint8)


def _noise(shape: tuple[int, ...], mm: float, spacing: float, generator: np.random.Generator) -> np.ndarray:
    noise = ndimage.gaussian_filter(generator.normal(size=shape), mm / spacing)
    return noise / noise.std()


def _tumour_weights(grown: Tumour) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Soft opacity of oedema, core and necrosis, each within the next."""
    whole = np.clip(grown.oedema / 0.6, 0, 1) * ndimage.gaussian_filter((grown.regions > 0).astype(float), 0.5)
    core = ndimage.gaussian_filter((grown.regions >= CORE).astype(float), 0.6)
    necrosis = ndimage.gaussian_filter((grown.regions == NECROSIS).astype(float), 0.7)
    return whole, core, necrosis


def _paint(signal: np.ndarray, grown: Tumour | None, levels: tuple[float, float, float], texture: np.ndarray,
           visibility: float = 1.0) -> np.ndarray:  # fmt: skip
    """`signal` with oedema, core and necrosis at `levels`, textured; `visibility` scales the change."""
    if grown is None:
        return signal
    whole, core, necrosis = _tumour_weights(grown)
    painted = signal + whole * (levels[0] * (1 + 0.5 * texture) - signal) * 0.85
    painted = painted + core * (levels[1] * (1 + 1.5 * texture) - painted)
    painted = painted + necrosis * (levels[2] * (1 + texture) - painted)
    return signal + visibility * (painted - signal)


def _flair(maps: np.ndarray, brain: np.ndarray, grown: Tumour | None, scanner: str, spacing: float,
           generator: np.random.Generator) -> np.ndarray:  # fmt: skip
    usual, scale = SCANNERS[scanner]
    levels = np.array(usual) * generator.uniform(0.94, 1.06, size=6)
    signal = np.tensordot(levels, maps, 1) / np.maximum(maps.sum(0), 0.3)
    signal *= 1 + 0.025 * _noise(brain.shape, 8, spacing, generator)
    white = levels[2]
    tumour = (
        white * generator.uniform(1.45, 2.1),
        white * generator.uniform(1.1, 1.9),
        white * generator.uniform(0.35, 1.0),
    )
    signal = _paint(signal, grown, tumour, 0.07 * _noise(brain.shape, 4, spacing, generator))
    return _scanned(signal, brain, scale * generator.uniform(0.8, 1.25), 0.12, 0.025, spacing, generator)


def _second(modality: str, maps: np.ndarray, brain: np.ndarray, grown: Tumour | None, visibility: float, spacing: float,
            generator: np.random.Generator) -> np.ndarray:  # fmt: skip
    texture = 0.05 * _noise(brain.shape, 4, spacing, generator)
    weight = np.maximum(maps.sum(0), 0.3)
    if modality == "t1":
        signal = np.tensordot(np.array(T1), maps, 1) / weight
        signal = _paint(signal, grown, (0.62, 0.5, 0.3), texture, visibility)
        return _scanned(signal, brain, 700 * generator.uniform(0.7, 1.4), 0.1, 0.025, spacing, generator)
    signal = np.tensordot(np.array(CT_HU), maps, 1) / weight
    signal = _paint(signal, grown, (20.0, 40.0, 14.0), texture, visibility)
    noisy = signal + ndimage.gaussian_filter(generator.normal(size=brain.shape), 0.6) * 5.0
    return np.where(brain, noisy, -1000.0).astype(np.float32)


def _scanned(signal: np.ndarray, brain: np.ndarray, scale: float, bias: float, noise: float, spacing: float,
             generator: np.random.Generator) -> np.ndarray:  # fmt: skip
    """Bias field, Rician noise, scale; stripped to the brain."""
    shaded = signal * np.exp(bias * _noise(brain.shape, 45, spacing, generator).clip(-2, 2) / 2)
    real, imaginary = (noise * generator.normal(size=brain.shape) for _ in range(2))
    return np.where(brain, np.hypot(shaded + real, imaginary) * scale, 0).astype(np.float32)


__all__ = [
    "CORE",
    "MODALITIES",
    "NECROSIS",
    "OEDEMA",
    "SCANNERS",
    "STRUCTURES",
    "Subject",
    "grid_shape",
    "make_subject",
]
