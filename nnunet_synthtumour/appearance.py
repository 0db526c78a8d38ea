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

from nnunet_synthtumour.noise import coherent_noise
from nnunet_synthtumour.smoothing import gaussian, resize, smoothed

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
    mask: torch.Tensor,
    factor: float,
    inner: torch.Tensor | None = None,
    inner_factor: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference's training model: u (1 - m) + t G5(u) m, with m = G1(mask); the label is m > 0.1.

    `tissue` is G5(u). `inner` is the second, nested mask, in which a second factor applies.
    """
    m = gaussian(mask.float(), [PAPER_MASK_SIGMA] * u.ndim)
    grown = tissue * factor
    if inner is not None:
        grown.mul_(gaussian(inner.float(), [PAPER_MASK_SIGMA] * u.ndim).mul_(inner_factor - 1).add_(1))
    return torch.lerp(u, grown, m), m > LABEL_FROM


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


def soft_edge(level: torch.Tensor, tissue: Tissue, spacing: Sequence[float]) -> torch.Tensor:
    """Opacity in [0, 1]: `EDGE_AT_SURFACE` on the surface, a ramp of a width (mm) that varies around it.

    A label at level 0 then lies where the lesion becomes visible, whatever the softness.
    """
    width: torch.Tensor | float = max(tissue.softness_mm, 0.25 * min(spacing))
    if tissue.softness_spread > 0:
        generator = torch.Generator().manual_seed(tissue.seed + 1)
        lattice = [max(2, math.ceil(n * mm / 20.0) + 1) for n, mm in zip(level.shape, spacing, strict=True)]
        noise = torch.randn(lattice, generator=generator).mul_(tissue.softness_spread)
        width = resize(noise.exp_().mul_(width), level.shape)
    return (level / width).add_(EDGE_AT_SURFACE).clamp_(0, 1)


def tissue_factor(opacity: torch.Tensor, depth: torch.Tensor, radius_mm: float, parts: Sequence[tuple[torch.Tensor, float]],
                  whole: float, tissue: Tissue, spacing: Sequence[float]) -> torch.Tensor:  # fmt: skip
    """The factor by which the tissue under the lesion is multiplied, voxel by voxel.

    `parts` are (opacity, factor) of the nested parts, outermost first; `depth` is the level (mm). A halo is an outer
    zone of dimmer contrast that belongs to the lesion; texture and specks vary the factor inside.
    """
    generator = torch.Generator().manual_seed(tissue.seed)
    factor = torch.full_like(opacity, whole)
    if tissue.halo < 1 and tissue.halo > 0:
        dim = 1 + (whole - 1) * tissue.halo
        inside = (depth / max(tissue.halo_share * radius_mm, 1e-3)).clamp_(0, 1)
        factor = inside.mul_(whole - dim).add_(dim)
    for part_opacity, part_factor in parts:
        factor = torch.lerp(factor, torch.full_like(factor, part_factor), part_opacity)
    if tissue.texture > 0:
        noise = coherent_noise(opacity.shape, spacing, tissue.texture_mm, 2, generator)
        factor.mul_(noise.mul_(tissue.texture).add_(1).clamp_min_(0.05))
    if tissue.speck_factor != 1:
        noise = coherent_noise(opacity.shape, spacing, 4.0, 1, generator)
        factor.mul_(noise.sub_(1.6).clamp_(0, 0.4).mul_(2.5 * (tissue.speck_factor - 1)).add_(1))
    return factor


def tissue_model(u: torch.Tensor, host: torch.Tensor, opacity: torch.Tensor, factor: torch.Tensor, tissue: Tissue,
                 spacing: Sequence[float]) -> torch.Tensor:  # fmt: skip
    """(1 - m) u + m f b, with b between the smoothed tissue (homogeneity 0) and one level, the host's mean (1).

    b keeps `texture_kept` of the tissue's own texture. `host` (float) keeps what lies outside out of the means.
    """
    filled = float(host.sum())
    local = smoothed(u, [tissue.smoothing_mm / mm for mm in spacing], host if filled < host.numel() else None)
    level = float(torch.dot(u.reshape(-1), host.reshape(-1))) / max(filled, 1.0)
    # local + kept (u - local) + homogeneity (level - local), with few passes over the box
    base = local.mul_(1 - tissue.texture_kept - tissue.homogeneity).add_(u, alpha=tissue.texture_kept)
    return torch.lerp(u, base.add_(tissue.homogeneity * level).mul_(factor), opacity)


def additive_model(u: torch.Tensor, host: torch.Tensor, opacity: torch.Tensor, added: torch.Tensor, tissue: Tissue,
                   spacing: Sequence[float]) -> torch.Tensor:  # fmt: skip
    """(1 - m) u + m (b + a): as `tissue_model`, with a contrast that adds, in units of u (CT)."""
    return tissue_model(u, host, opacity, torch.ones_like(opacity), tissue, spacing).add_(opacity * added)


def push_away(image: torch.Tensor, level: torch.Tensor, radius_mm: float, share: float, centre: Sequence[float],
              spacing: Sequence[float]) -> torch.Tensor:  # fmt: skip
    """Healthy tissue (C, X, Y[, Z]) of the box pushed outward, most at the lesion's surface, not at all at the box's faces.

    I'(x) = I(x - d(x)), d radial from `centre` (voxels of the box), |d| = share r exp(-(level / (0.6 r))^2).
    """
    shape = level.shape
    dims = len(shape)
    amount = torch.exp(-((level / (0.6 * radius_mm)) ** 2)).mul_(share * radius_mm)
    x = [((torch.arange(n, dtype=torch.float32) - c) * mm).reshape([-1 if d == i else 1 for d in range(dims)])
         for i, (n, c, mm) in enumerate(zip(shape, centre, spacing, strict=True))]  # fmt: skip
    square: torch.Tensor | float = 0.0
    for i, n in enumerate(shape):
        square = square + x[i] ** 2
        at = torch.arange(n, dtype=torch.float32)
        taper = (torch.minimum(at, n - 1 - at) / max(1.0, 0.15 * n)).clamp_(0, 1)
        amount.mul_(taper.reshape([-1 if d == i else 1 for d in range(dims)]))
    assert isinstance(square, torch.Tensor)
    amount.div_(square.sqrt_().clamp_min_(1e-3))
    grid = torch.stack([
        (x[i] / spacing[i] + centre[i] - amount * x[i] / spacing[i]) * (2 / max(1, shape[i] - 1)) - 1
        for i in reversed(range(dims))
    ], -1)  # fmt: skip
    return F.grid_sample(image[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True)[0]
