"""Lesion shapes on a local grid: rotated, anisotropic bodies with a noisy surface, of exactly the volume asked for.

A shape is a *level field* in mm on a box of the patch: positive inside, zero on the surface, roughly the distance to it.
Volume is hit by choosing the level that encloses it after clipping to the host, not by growing again and again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nnunet_synthtumour.noise import coherent_noise

BISECTIONS = 30
SAMPLE = 2_000


@dataclass(frozen=True)
class Body:
    """A drawn shape. Axes are those of the patch; `centre` in voxels, lengths in mm."""

    family: str
    centre: tuple[float, ...]
    rotation: tuple[tuple[float, ...], ...]
    half_axes_mm: tuple[float, ...]
    size: float  # voxels' worth of volume (3D) or area (2D), in mm^3 or mm^2
    roughness: float
    wavelength: float
    octaves: int
    hug_tissue: float
    seed: int

    @property
    def radius_mm(self) -> float:
        """Radius of the ball (disc) of the same volume (area) as the half-axes span."""
        return float(np.prod(self.half_axes_mm) ** (1 / len(self.half_axes_mm)))


def half_axes(
    volume_ml: float, ratio: float, dims: int, generator: np.random.RandomState | None = None
) -> tuple[tuple[float, ...], float]:
    """Half-axes (mm) with longest over shortest = `ratio`, and the size (mm^3, or mm^2 of the middle section in 2D)."""
    draw = generator or np.random.mtrand._rand
    radius = (3 * volume_ml * 1000 / (4 * math.pi)) ** (1 / 3)
    relative = np.array([1.0, ratio] if dims == 2 else [1.0, draw.uniform(1, ratio), ratio])
    axes = radius * relative / np.prod(relative) ** (1 / dims)
    size = volume_ml * 1000 if dims == 3 else math.pi * radius**2
    return tuple(float(a) for a in axes), float(size)


def random_rotation(dims: int, generator: np.random.RandomState | None = None) -> tuple[tuple[float, ...], ...]:
    """A rotation drawn uniformly (QR of a normal matrix)."""
    draw = generator or np.random.mtrand._rand
    q, r = np.linalg.qr(draw.normal(size=(dims, dims)))
    q = q * np.sign(np.diag(r))
    if np.linalg.det(q) < 0:
        q[:, 0] *= -1
    return tuple(tuple(float(v) for v in row) for row in q)


def box_of(body: Body, shape: Sequence[int], spacing: Sequence[float], slack: float) -> tuple[slice, ...]:
    """The part of the patch that holds the body grown by `slack` (a factor) and a little more; may be empty."""
    rotation, axes = np.array(body.rotation), np.array(body.half_axes_mm)
    reach = np.sqrt(((rotation * axes) ** 2).sum(1)) * slack + 2 * np.array(spacing)
    lower = np.floor(np.array(body.centre) - reach / np.array(spacing)).astype(int)
    upper = np.ceil(np.array(body.centre) + reach / np.array(spacing)).astype(int) + 1
    return tuple(slice(int(max(0, lo)), int(min(n, hi))) for lo, hi, n in zip(lower, upper, shape, strict=True))


def level_field(body: Body, positions: Sequence[torch.Tensor], spacing: Sequence[float]) -> torch.Tensor:
    """Level (mm) before its volume is set, at `positions`: voxels of the patch, one tensor per axis, `spacing` mm apart.

    level = r (1 - rho + roughness * noise), rho the ellipsoidal radius, r the mean radius.
    """
    generator = torch.Generator().manual_seed(body.seed)
    radius = body.radius_mm
    x = _relative_mm(body, positions, spacing)
    level = _ellipsoidal_radius(body, x).neg_().add_(1)
    if body.family == "wedge":
        _cut_wedge(level, body, x)
    if body.roughness > 0:
        steps = [float(p[1] - p[0]) * mm if len(p) > 1 else mm for p, mm in zip(positions, spacing, strict=True)]
        noise = coherent_noise(level.shape, steps, max(body.wavelength * radius, 1e-3), body.octaves, generator)
        level.add_(noise, alpha=body.roughness)
    return level.mul_(radius)


def _relative_mm(body: Body, positions: Sequence[torch.Tensor], spacing: Sequence[float]) -> list[torch.Tensor]:
    """Position (mm) along each axis relative to the centre, shaped to broadcast over the grid."""
    dims = len(positions)
    return [
        ((at - c) * mm).reshape([-1 if d == i else 1 for d in range(dims)])
        for i, (at, c, mm) in enumerate(zip(positions, body.centre, spacing, strict=True))
    ]


def _ellipsoidal_radius(body: Body, x: Sequence[torch.Tensor]) -> torch.Tensor:
    rotation, axes = np.array(body.rotation), np.array(body.half_axes_mm)
    form = (rotation / axes**2) @ rotation.T
    squared: torch.Tensor | float = 0.0
    for i in range(len(x)):
        # x_i (M_ii x_i + 2 sum_{j > i} M_ij x_j): the inner bracket is small until the last axes join
        inner = float(form[i, i]) * x[i]
        for j in range(i + 1, len(x)):
            inner = inner + 2 * float(form[i, j]) * x[j]
        squared = squared + x[i] * inner
    assert isinstance(squared, torch.Tensor)
    return squared.clamp_(min=0).sqrt_()


def _cut_wedge(level: torch.Tensor, body: Body, x: Sequence[torch.Tensor]) -> None:
    """Keep the part of the body within 35 degrees of its long axis, seen from one of its ends: a vessel's territory."""
    long_axis = np.array(body.rotation)[:, int(np.argmax(body.half_axes_mm))]
    longest = max(body.half_axes_mm)
    along: torch.Tensor | float = longest
    square: torch.Tensor | float = 0.0
    for i, coordinate in enumerate(x):
        along = along + float(long_axis[i]) * coordinate
        square = square + (coordinate + longest * float(long_axis[i])) ** 2
    assert isinstance(square, torch.Tensor)
    aside = (square - along**2).clamp_(min=0).sqrt_()
    level.copy_(torch.minimum(level, (math.tan(math.radians(35)) * along - aside) / body.radius_mm))


def enclose(level: torch.Tensor, host: torch.Tensor, size: float, voxel: float) -> tuple[float, bool]:
    """The level above which `size` (mm^3 or mm^2) of the host lies, and whether the host has more than that.
    At least one voxel is taken.

    Found by counting at bisected levels: a count is fifty times as cheap as a sort or a histogram.
    """
    values = level.numpy()[host.numpy()]
    wanted = max(1.0, size / voxel)
    if len(values) <= wanted:
        return float(level.min()) - 1e-3, False
    low, high = _bracket(values, wanted)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        count = np.count_nonzero(values > middle)
        low, high = (middle, high) if count > wanted else (low, middle)
        if abs(count - wanted) <= 1e-3 * wanted:
            return middle, True
    return high, True


def _bracket(values: np.ndarray, wanted: float) -> tuple[float, float]:
    """Two levels between which the one lies that `wanted` of the values exceed, close together if a sample tells."""
    sample = np.sort(values[:: len(values) // SAMPLE + 1])
    at, reach = (1 - wanted / len(values)) * len(sample), 1 + len(sample) // 32
    low, high = float(sample[max(0, int(at) - reach)]), float(sample[min(len(sample) - 1, int(at) + reach)])
    if np.count_nonzero(values > low) <= wanted:
        low = float(values.min()) - 1e-3
    if np.count_nonzero(values > high) > wanted:
        high = float(values.max()) + 1e-3
    return low, high
