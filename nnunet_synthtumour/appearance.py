"""What a lesion does to intensities: the reference's models to the letter, and a model of tissue beyond them.

All work on raw-like intensities u = x - z0, where x is what nnU-Net's normalisation made of the raw image and z0 is where
it put the raw zero. Since x = (raw - mean) / std, u = raw / std: every formula that is homogeneous in u commutes with the
normalisation. Tensors are boxes (X, Y[, Z]) of one channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nnunet_synthtumour.noise import noise_lattice
from nnunet_synthtumour.smoothing import coarsely_smoothed, refined, resize, slabs

LABEL_FROM = 0.1
PAPER_MASK_SIGMA, PAPER_TISSUE_SIGMA = 1.0, 5.0  # voxels, as in the reference
EDGE_AT_SURFACE = 0.4


@dataclass(frozen=True)
class ChannelContrast:
    """The drawn contrast of one part in one channel: `factor` of the raw intensity, or `hu` added."""

    factor: float = 1.0
    hu: float | None = None


def paper_training(
    u: torch.Tensor,
    tissue: torch.Tensor,
    m: torch.Tensor,
    factor: float,
    inner: torch.Tensor | None = None,
    inner_factor: float = 1.0,
) -> torch.Tensor:
    """The reference's training model: u (1 - m) + t G5(u) m. The label is m > `LABEL_FROM`.

    `tissue` is G5(u) and `m` is G1(mask); `inner` is G1 of the second, nested mask, in which a second factor applies.
    """
    grown = tissue * factor
    if inner is not None:
        grown.mul_(inner * (inner_factor - 1) + 1)
    return torch.lerp(u, grown, m)


def paper_shifted(u: torch.Tensor, mask: torch.Tensor, factor: float) -> torch.Tensor:
    """The reference's validation model: t u inside of the hard mask; nothing is smoothed, texture is kept."""
    return torch.where(mask, u * factor, u)


@dataclass(frozen=True)
class Tissue:
    """The drawn appearance of a lesion, beside its contrast."""

    smoothing_mm: float = 3.0
    texture_kept: float = 0.2
    homogeneity: float = 0.5
    texture: float = 0.05
    texture_mm: float = 6.0
    softness_mm: float = 1.5
    softness_spread: float = 0.5
    halo: float = 0.0
    halo_share: float = 0.4
    speck_factor: float = 1.0
    seed: int = 0


def reach_mm(tissue: Tissue) -> float:
    """How far outside of its surface (mm) a lesion can still be seen."""
    return EDGE_AT_SURFACE * tissue.softness_mm * math.exp(1.5 * tissue.softness_spread)


class Edge:
    """Opacity in [0, 1]: `EDGE_AT_SURFACE` on the surface, a ramp of a width (mm) that varies around it.

    A label at level 0 then lies where the lesion becomes visible, whatever the softness. Nothing is left at `reach_mm`
    outside of the surface.
    """

    def __init__(self, tissue: Tissue, shape: Sequence[int], spacing: Sequence[float]) -> None:
        self.shape = shape
        self.width: float | torch.Tensor = max(tissue.softness_mm, 0.25 * min(spacing))
        if tissue.softness_spread > 0:
            lattice = [max(2, math.ceil(n * mm / 20.0) + 1) for n, mm in zip(shape, spacing, strict=True)]
            noise = torch.randn(lattice, generator=torch.Generator().manual_seed(tissue.seed + 1)).clamp_(-1.5, 1.5)
            self.width = noise.mul_(tissue.softness_spread).exp_().mul_(self.width)

    def opacities(self, levels: Sequence[torch.Tensor], rows: slice) -> list[torch.Tensor]:
        """The opacity for each of several level fields in `rows` of the box."""
        width = self.width if isinstance(self.width, float) else resize(self.width, self.shape, rows)
        return [(level / width).add_(EDGE_AT_SURFACE).clamp_(0, 1) for level in levels]


class Factor:
    """The factor by which the tissue under the lesion is multiplied: contrast, halo, texture, specks."""

    def __init__(self, tissue: Tissue, radius_mm: float, shape: Sequence[int], spacing: Sequence[float]) -> None:
        generator = torch.Generator().manual_seed(tissue.seed)
        self.tissue, self.radius_mm, self.shape = tissue, radius_mm, shape
        self.texture = noise_lattice(shape, spacing, tissue.texture_mm, 2, generator) if tissue.texture > 0 else None
        self.specks = noise_lattice(shape, spacing, 4.0, 1, generator) if tissue.speck_factor != 1 else None

    def values(
        self, depth: torch.Tensor, whole: float, parts: Sequence[tuple[torch.Tensor, float]], rows: slice
    ) -> torch.Tensor:
        """In `rows` of the box. `depth` is the level (mm), `parts` are (opacity, factor) of nested parts, outermost first."""
        tissue = self.tissue
        factor = torch.full_like(depth, whole)
        if 0 < tissue.halo < 1:  # an outer zone of dimmer contrast that belongs to the lesion
            dim = 1 + (whole - 1) * tissue.halo
            factor = (depth / max(tissue.halo_share * self.radius_mm, 1e-3)).clamp_(0, 1).mul_(whole - dim).add_(dim)
        for opacity, value in parts:
            factor.add_(opacity * (value - factor))
        if self.texture is not None:
            factor.mul_(resize(self.texture, self.shape, rows).mul_(tissue.texture).add_(1).clamp_min_(0.05))
        if self.specks is not None:
            specks = resize(self.specks, self.shape, rows).sub_(1.6).clamp_(0, 0.4)
            factor.mul_(specks.mul_(2.5 * (tissue.speck_factor - 1)).add_(1))
        return factor


class Base:
    """The tissue under a lesion: between the smoothed tissue (homogeneity 0) and one level, the host's mean (1).

    It keeps `texture_kept` of the tissue's own texture. What lies outside of the host has no part in the means.
    """

    def __init__(
        self, x: torch.Tensor, zero: float, host: torch.Tensor, tissue: Tissue, spacing: Sequence[float]
    ) -> None:
        self.tissue, self.shape = tissue, x.shape
        inside = None if bool(host.all()) else host
        mean, self.steps = coarsely_smoothed(x, [tissue.smoothing_mm / mm for mm in spacing], inside)
        self.mean = mean - zero
        weight = 1.0 if inside is None else float(host.float().mean())
        total = float(torch.where(host, x, zero).mean()) - zero
        self.level = total / max(weight, 1e-6)

    def values(self, u: torch.Tensor, rows: slice) -> torch.Tensor:
        """In `rows` of the box: local + kept (u - local) + homogeneity (level - local), with few passes."""
        kept, homogeneity = self.tissue.texture_kept, self.tissue.homogeneity
        base = refined(self.mean, self.steps, self.shape, rows) * (1 - kept - homogeneity)
        return base.add_(u, alpha=kept).add_(homogeneity * self.level)


def tissue_model(u: torch.Tensor, base: torch.Tensor, opacity: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """(1 - m) u + m f b: what multiplies."""
    return torch.lerp(u, base * factor, opacity)


def additive_model(u: torch.Tensor, base: torch.Tensor, opacity: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """(1 - m) u + m (b + a): what adds, in units of u (CT)."""
    return torch.lerp(u, base + added, opacity)


def push_away(
    image: torch.Tensor,
    host: torch.Tensor,
    level: torch.Tensor,
    radius_mm: float,
    share: float,
    centre: Sequence[float],
    spacing: Sequence[float],
) -> None:
    """Push the healthy tissue of a box (C, X, Y[, Z]) outward, in place, in the host: most at the lesion's surface.

    I'(x) = I(x - d(x)), d radial from `centre` (voxels of the box), |d| = share r exp(-(level / (0.6 r))^2), which a taper
    takes to zero at the faces of the box.
    """
    shape, before = level.shape, image.clone()
    dims = len(shape)
    for rows in slabs(shape):
        starts = [rows.start, *[0] * (dims - 1)]
        sizes = [rows.stop - rows.start, *shape[1:]]
        at = [torch.arange(start, start + n, dtype=torch.float32) for start, n in zip(starts, sizes, strict=True)]
        amount = torch.exp(-((level[rows] / (0.6 * radius_mm)) ** 2)).mul_(share * radius_mm)
        square: torch.Tensor | float = 0.0
        x = []
        for i, n in enumerate(shape):
            view = [-1 if d == i else 1 for d in range(dims)]
            taper = (torch.minimum(at[i], n - 1 - at[i]) / max(1.0, 0.15 * n)).clamp_(0, 1)
            amount.mul_(taper.reshape(view))
            x.append(((at[i] - centre[i]) * spacing[i]).reshape(view))
            square = square + x[i] ** 2
        assert isinstance(square, torch.Tensor)
        amount.div_(square.sqrt_().clamp_min_(1e-3))
        grid = torch.stack([
            ((1 - amount) * (x[i] / spacing[i]) + centre[i]) * (2 / max(1, shape[i] - 1)) - 1 for i in reversed(range(dims))
        ], -1)  # fmt: skip
        moved = F.grid_sample(before[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True)[0]
        image[:, rows] = torch.where(host[rows], moved, image[:, rows])
