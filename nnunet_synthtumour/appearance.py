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

from nnunet_synthtumour.lattice import Lattice
from nnunet_synthtumour.noise import coherent_noise
from nnunet_synthtumour.smoothing import block_sigma, gaussian

LABEL_FROM = 0.1
PAPER_MASK_SIGMA, PAPER_TISSUE_SIGMA = 1.0, 5.0  # voxels, as in the reference
EDGE_AT_SURFACE = 0.42
WIDEST = 1.0  # deviations of the edge's width that are let through
PART_SOFTNESS = 0.5  # width of the edge of a nested part, in widths of the lesion's
SPECK_MM, SPECK_RARITY = 4.0, 1.6


@dataclass(frozen=True)
class ChannelContrast:
    """The drawn contrast of one part in one channel: `factor` of the raw intensity, or `hu` added."""

    factor: float = 1.0
    hu: float | None = None


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

    @property
    def reach_mm(self) -> float:
        """How far beyond its surface a lesion can be seen."""
        return EDGE_AT_SURFACE * self.softness_mm * math.exp(WIDEST * self.softness_spread)


def paper_mask(mask: torch.Tensor) -> torch.Tensor:
    """m = G1(mask); the label of the reference is m > `LABEL_FROM`."""
    return gaussian(mask.float(), [PAPER_MASK_SIGMA] * mask.ndim)


def paper_training(
    u: torch.Tensor,
    tissue: torch.Tensor,
    m: torch.Tensor,
    factor: float,
    inner: torch.Tensor | None = None,
    inner_factor: float = 1.0,
) -> torch.Tensor:
    """The reference's training model: u (1 - m) + t G5(u) m, with m = G1(mask).

    `tissue` is G5(u); it and u are overwritten. `inner` is the m of the second, nested shape, where a second factor
    applies.
    """
    grown = tissue.mul_(factor)
    if inner is not None:
        grown.mul_(inner * (inner_factor - 1) + 1)
    return u.lerp_(grown, m)


def paper_shifted(u: torch.Tensor, mask: torch.Tensor, contrast: ChannelContrast, unit: float = 1.0) -> torch.Tensor:
    """The reference's validation model: t u inside of the hard mask; nothing is smoothed, texture is kept.

    For CT, u + HU / `unit` in its place, `unit` being the HU that make 1 in u.
    """
    return torch.where(mask, u * contrast.factor if contrast.hu is None else u + contrast.hu / unit, u)


@dataclass(frozen=True)
class Layers:
    """What the channels of a lesion share, on the blocks of its box."""

    host: torch.Tensor  # share of each block that is host
    smooth_host: torch.Tensor  # the same after the smoothing of `Tissue`
    halo: torch.Tensor | None  # 0 at the surface, 1 where the halo ends
    parts: list[torch.Tensor]  # opacity of the nested parts, outermost first
    texture: torch.Tensor | None  # factor


def edge_of(level: torch.Tensor, tissue: Tissue, spacing: Sequence[float], part: int | None = None) -> torch.Tensor:
    """Opacity before it is clamped to [0, 1]: `EDGE_AT_SURFACE` on the surface, a ramp whose width (mm) varies around it.

    A label at level 0 then lies where the lesion becomes visible, whatever the softness. Works on blocks, too: clamp
    after interpolating. Nested parts (`part` counts them) have sharper edges.
    """
    softness = tissue.softness_mm * (1 if part is None else PART_SOFTNESS)
    width: torch.Tensor | float = max(softness, 0.25 * min(spacing))
    if tissue.softness_spread > 0:
        generator = torch.Generator().manual_seed(tissue.seed + 1 + (0 if part is None else 2 + part))
        noise = coherent_noise(level.shape, spacing, 20.0, 1, generator)
        width = noise.clamp_(-WIDEST, WIDEST).mul_(tissue.softness_spread).exp_().mul_(width)
    return (level / width).add_(EDGE_AT_SURFACE)


def layers_of(
    level: torch.Tensor,
    parts: Sequence[torch.Tensor],
    host: torch.Tensor,
    lattice: Lattice,
    tissue: Tissue,
    radius_mm: float,
    spacing: Sequence[float],
) -> Layers:
    """Everything that the channels share. `level` and `parts` are levels (mm) on blocks, `host` (float) on voxels."""
    mm = lattice.spacing(spacing)
    generator = torch.Generator().manual_seed(tissue.seed)
    on_blocks = lattice.mean(host)
    halo = (level / max(tissue.halo_share * radius_mm, 1e-3)).clamp_(0, 1) if 0 < tissue.halo < 1 else None
    texture = None
    if tissue.texture > 0:
        texture = coherent_noise(level.shape, mm, tissue.texture_mm, 2, generator)
        texture.mul_(tissue.texture).add_(1).clamp_min_(0.05)
    if tissue.speck_factor != 1:
        specks = coherent_noise(level.shape, mm, SPECK_MM, 1, generator).sub_(SPECK_RARITY).clamp_(0, 0.4)
        specks.mul_(2.5 * (tissue.speck_factor - 1)).add_(1)
        texture = specks if texture is None else texture.mul_(specks)
    return Layers(
        host=on_blocks,
        smooth_host=gaussian(on_blocks, _sigma(tissue, lattice, spacing)).clamp_min(1e-3),
        halo=halo,
        parts=[edge_of(part, tissue, mm, i).clamp_(0, 1) for i, part in enumerate(parts)],
        texture=texture,
    )


def gain_and_offset(
    u: torch.Tensor,
    contrasts: Sequence[ChannelContrast],
    layers: Layers,
    lattice: Lattice,
    tissue: Tissue,
    spacing: Sequence[float],
    unit: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """g and o on blocks, such that the lesion's intensity is f b = g u + o.

    f is the factor of the contrast (for CT: added / `unit`), b = s + k (u - s) + h (mean - s) with s the tissue smoothed
    over the host, k the texture that is kept and h the homogeneity: g = f k and o = f ((1 - k - h) s + h mean). `u` is the
    mean of u over each block, 0 outside of the host; `contrasts` are of the lesion and its nested parts.
    """
    kept, alike = tissue.texture_kept, tissue.homogeneity
    level = float(u.sum() / layers.host.sum().clamp_min(1e-6))
    base = gaussian(u, _sigma(tissue, lattice, spacing)).div_(layers.smooth_host)
    base.mul_(1 - kept - alike).add_(alike * level)
    in_hu = contrasts[0].hu is not None
    values = [(c.hu or 0.0) / unit if in_hu else c.factor for c in contrasts]
    f = _blended(values, neutral=0.0 if in_hu else 1.0, layers=layers, halo=tissue.halo)
    if in_hu:
        return torch.full_like(base, kept), base.add_(f)
    if layers.texture is not None:
        f.mul_(layers.texture)
    return f * kept, base.mul_(f)


def _blended(values: Sequence[float], neutral: float, layers: Layers, halo: float) -> torch.Tensor:
    """The contrast on blocks: dimmer in the halo, then each nested part over what is around it."""
    whole = values[0]
    if layers.halo is None:
        f = torch.full_like(layers.host, whole)
    else:
        dim = neutral + (whole - neutral) * halo
        f = layers.halo * (whole - dim) + dim
    for opacity, value in zip(layers.parts, values[1:], strict=True):
        f.add_(opacity * (value - f))
    return f


def _sigma(tissue: Tissue, lattice: Lattice, spacing: Sequence[float]) -> list[float]:
    return block_sigma([tissue.smoothing_mm / mm for mm in spacing], lattice.steps)
