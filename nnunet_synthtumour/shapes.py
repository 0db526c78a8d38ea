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
from nnunet_synthtumour.smoothing import coarsely_smoothed, refined

BINS = 4096
SAMPLED = 100_000


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


def level_field(
    body: Body, box: tuple[slice, ...], spacing: Sequence[float], keep_off: torch.Tensor | None
) -> torch.Tensor:
    """Level (mm) on `box` before its volume is set; `keep_off` >= 0 marks tissue that the body shuns.

    level = r (1 - rho + roughness * noise - hug * keep_off), rho the ellipsoidal radius, r the mean radius.
    """
    generator = torch.Generator().manual_seed(body.seed)
    shape = [s.stop - s.start for s in box]
    radius = body.radius_mm
    level = _ellipsoidal_radius(body, box, spacing).neg_().add_(1)
    if body.family == "wedge":
        _cut_wedge(level, body, box, spacing)
    if body.roughness > 0:
        noise = coherent_noise(shape, spacing, max(body.wavelength * radius, 1e-3), body.octaves, generator)
        level.add_(noise, alpha=body.roughness)
    if keep_off is not None and body.hug_tissue > 0:
        level.sub_(keep_off, alpha=body.hug_tissue)
    return level.mul_(radius)


def _coordinates(body: Body, box: tuple[slice, ...], spacing: Sequence[float]) -> list[torch.Tensor]:
    """Position (mm) along each axis relative to the centre, shaped to broadcast over the box."""
    dims = len(box)
    return [
        ((torch.arange(s.start, s.stop, dtype=torch.float32) - c) * mm).reshape(
            [-1 if d == i else 1 for d in range(dims)]
        )
        for i, (s, c, mm) in enumerate(zip(box, body.centre, spacing, strict=True))
    ]


def _ellipsoidal_radius(body: Body, box: tuple[slice, ...], spacing: Sequence[float]) -> torch.Tensor:
    rotation, axes = np.array(body.rotation), np.array(body.half_axes_mm)
    form = (rotation / axes**2) @ rotation.T
    x = _coordinates(body, box, spacing)
    squared: torch.Tensor | float = 0.0
    for i in range(len(x)):
        # x_i (M_ii x_i + 2 sum_{j > i} M_ij x_j): the inner bracket is small until the last axes join
        inner = float(form[i, i]) * x[i]
        for j in range(i + 1, len(x)):
            inner = inner + 2 * float(form[i, j]) * x[j]
        squared = squared + x[i] * inner
    assert isinstance(squared, torch.Tensor)
    return squared.clamp_(min=0).sqrt_()


def _cut_wedge(level: torch.Tensor, body: Body, box: tuple[slice, ...], spacing: Sequence[float]) -> None:
    """Keep the part of the body within 35 degrees of its long axis, seen from one of its ends: a vessel's territory."""
    x = _coordinates(body, box, spacing)
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
    """The level above which `size` (mm^3 or mm^2) of the host lies, and whether the host in the box has that much.

    From a histogram of the levels in the host: linear in a bin, so exact to a fraction of a bin. Of large boxes a part of
    the voxels, evenly spread, is enough: 100,000 of them put the volume within a fraction of a percent.
    """
    step = max(1, level.numel() // SAMPLED)
    if step > 1:  # odd steps do not fall in with the even sides that boxes tend to have
        level, host, voxel = level.reshape(-1)[:: step | 1], host.reshape(-1)[:: step | 1], voxel * (step | 1)
    wanted, available = size / voxel, int(host.sum())
    low, high = (float(v) for v in torch.aminmax(level))
    if available <= wanted or high <= low:
        return low - 1e-3, available > wanted
    # histc passes over what lies outside of its range; selecting the host's voxels first would cost five times as much
    counts = torch.histc(torch.where(host, level, low - 1.0), BINS, low, high).numpy()
    above = np.cumsum(counts[::-1])
    at = int(np.searchsorted(above, wanted))
    before = above[at - 1] if at else 0.0
    fraction = (wanted - before) / max(1.0, float(counts[::-1][at]))
    return high - (at + fraction) * (high - low) / BINS, True


def keep_off_map(intensity: torch.Tensor, host: torch.Tensor, spacing: Sequence[float]) -> torch.Tensor:
    """How far a voxel's smoothed intensity lies from the host's middle, beyond one robust deviation, at most 3.

    White and grey matter lie in the middle; ventricles, sulci and vessels at the ends, dark or bright, in any sequence.
    """
    step = max(1, intensity.numel() // 4096)  # a sample is enough, and far cheaper than all voxels
    sample = intensity.reshape(-1)[::step][host.reshape(-1)[::step]].sort().values
    if len(sample) < 8:
        return torch.zeros_like(intensity)
    middle = float(sample[len(sample) // 2])
    spread = float(sample[int(0.84 * (len(sample) - 1))] - sample[int(0.16 * (len(sample) - 1))]) / 2
    smooth, steps = coarsely_smoothed(intensity, [min(2.5, 2.5 / mm) for mm in spacing])
    off = (smooth - middle).abs_().div_(max(spread, 1e-6)).sub_(1.2).clamp_(0, 3)
    return refined(off, intensity.shape, steps)
